"""Classification: of pseudo-3D images (pre-training) and of volumes (transfer)."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...models import build
from ...variable_dimension import PRETRAIN_MEAN, PRETRAIN_STD, rgb_to_depth
from ..ranks import gathered_rows
from ..twins import ResNet2D
from .base import Network as Network
from .base import Task
from .checks import check_finite
from .optimiser import Optimiser as Optimiser
from .starting import classifier_from


def build_network(network: Network) -> nn.Module:
    """Return the network, initialised as it says, in training mode.

    Raises:
        SvdHubError: no such architecture, option or entry.
    """
    if network.architecture == "resnet2d":
        return ResNet2D(**network.options)
    if network.init == "none":
        return build(network.architecture, network.options)
    # it loads for evaluation, and Lightning keeps what it finds
    return classifier_from(network.init, network.architecture, network.options).train()


class Classification(Task):
    """Cross-entropy training with top-1 and top-5 accuracy, or AUC where there are two classes.

    Args:
        network: what is trained.
        optimiser: how.
        label_smoothing: of the training loss.
        class_weights: "balanced" = the training loss counts each class as much as another, however many of it there
            are: images / (classes * images of the class).
        freeze: parts of the network that keep their values, norms in evaluation: "stem", "layer1" to "layer4".
        mean, std: of the input values; the default is the official pre-training rule on 0..255.
    """

    def __init__(
        self,
        *,
        network: Network,
        optimiser: Optimiser,
        label_smoothing: float = 0.0,
        class_weights: Literal["none", "balanced"] = "none",
        freeze: tuple[str, ...] = (),
        mean: float = PRETRAIN_MEAN,
        std: float = PRETRAIN_STD,
    ) -> None:
        made = build_network(network)
        # of this epoch's training batches: loss, hits, images
        super().__init__(config=network, network=made, optimiser=optimiser, sums=torch.zeros(3), freeze=freeze)
        self.label_smoothing, self.mean, self.std = label_smoothing, mean, std
        self.class_weights = class_weights
        self.weights: Tensor | None = None
        self.validation: list[tuple[Tensor, Tensor]] = []
        self.scores: list[dict[str, float]] = []  # of the last evaluation, case by case; of two classes

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of a raw batch: (N, 3, H, W) images on 0..255 or (N, 1, D, H, W) volumes."""
        x = (x.float() - self.mean) / self.std
        return self.network(rgb_to_depth(x) if self.config.form == "pseudo3d" else x)

    def on_fit_start(self) -> None:
        """Weigh the classes by how many images of training the data have of each."""
        if self.class_weights == "balanced":
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            counts = torch.tensor(data.class_counts(), dtype=torch.float32)
            self.weights = (counts.sum() / (len(counts) * counts)).to(self.device)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss; a loss that is not finite stops the run with the batch named."""
        x, label = batch
        logits = self(x)
        loss = F.cross_entropy(logits, label, weight=self.weights, label_smoothing=self.label_smoothing)
        check_finite(loss, self, batch_idx)
        hits = (logits.detach().argmax(1) == label).sum()
        self.sums = self.sums.to(loss.device) + torch.stack(
            [loss.detach() * len(label), hits, hits.new_tensor(len(label))]
        )
        return loss

    def on_train_epoch_end(self) -> None:
        """Log the means of the epoch; Lightning's own would begin again where a run goes on in the middle of one."""
        loss, hits, count = self.sums.tolist()
        self.sums.zero_()
        self.log_dict({"train/loss": loss / count, "train/top1": hits / count}, sync_dist=True)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Keep logits and labels; the metrics are of the whole set, not means of batches."""
        x, label = batch
        self.validation.append((self(x).float(), label))

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the whole validation set."""
        from ..evaluation import classification_metrics

        logits, labels = (gathered_rows(self, torch.cat(parts)) for parts in zip(*self.validation, strict=True))
        self.validation.clear()
        if logits.shape[1] == 2:
            shares = logits.softmax(1)[:, 1].tolist()
            self.scores = [{"label": y, "score": p} for y, p in zip(labels.tolist(), shares, strict=True)]
        self.log_dict({f"val/{k}": v for k, v in classification_metrics(logits, labels).items()}, sync_dist=True)
