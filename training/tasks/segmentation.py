"""Segmentation of volumes: a task's network on a pre-trained encoder, Dice and cross-entropy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...checkpoint import diagnose
from ...errors import SvdHubError
from ...metrics import confusion, dice_of
from ...models import build, option_names
from ...skeleton import shapes
from ...variable_dimension import PRETRAIN_MEAN, PRETRAIN_STD
from ..evaluation import Triple, segmentation_metrics, sliding_window, strides
from ..ranks import gathered
from .base import Network, Task
from .checks import check_finite
from .optimiser import Optimiser

Case = tuple[Tensor, Tensor, Tensor]  # (1, C, D, H, W) values, (1, D, H, W) classes, (1, K) which are annotated


def build_segmenter(network: Network) -> nn.Module:
    """Return the network, its encoder initialised as `network.init` says, in training mode; it carries `.options`.

    Args:
        network: `init` is "none", a backbone's entry or file (decoder and head are new), or a file of this network. A
            network of segmentation of any kind goes on as it is, with a new head for another number of classes, where
            `options` say nothing of an encoder.

    Raises:
        SvdHubError: no such architecture, option or entry.
    """
    options = dict(network.options)
    if network.init == "none":
        made: Any = build(network.architecture, options)
        if hasattr(made, "encoder_options"):  # in full: a later release may take another form for the task's
            options["encoder_options"] = dict(made.encoder_options)
        made.options = options
        return made.train()
    from ...hub import load
    from ...tasks import task_model

    found: Any = load(network.init)
    if getattr(found, "task", "") == "segmentation" and not {"encoder", "encoder_options"} & set(options):
        fitting = {name: value for name, value in options.items() if name in option_names(found.entry.architecture)}
        return load(network.init, **fitting).train()
    if found.entry.architecture == network.architecture:
        return _continued(network, load(network.init, num_classes=options.get("num_classes")))
    if (own := options.pop("encoder", found.entry.architecture)) != found.entry.architecture:
        raise SvdHubError(
            f"network.options.encoder={own!r} does not fit init={network.init!r}, a {found.entry.architecture}. "
            "Next: another init, or leave the encoder out"
        )
    if "in_channels" in options:  # the backbone decides: 3 of a clip's colours become 1
        found = load(network.init, in_channels=options.pop("in_channels"))
    made = task_model(found, network.architecture, **options)
    return made.train()


def _continued(network: Network, found: nn.Module) -> nn.Module:
    """Return the network as its options say, with all tensors of one that was trained before."""
    made = build_segmenter(replace(network, init="none"))
    if shapes(made.state_dict()) != shapes(found.state_dict()):
        raise SvdHubError(
            f"init={network.init!r} is a {network.architecture} of other options than network.options: "
            f"{diagnose(found.state_dict(), shapes(made.state_dict()))}. Next: its own options"
        )
    made.load_state_dict(found.state_dict())
    return made


class Segmentation(Task):
    """Dice and cross-entropy training on patches; Dice by organ on whole volumes, by sliding windows.

    Args:
        network: what is trained; `options.num_classes` counts the background, class 0.
        optimiser: how.
        organs: names of classes 1, 2, ..., for the log: val/dice_<organ>; None = the data's, where they say them.
        window: (D, H, W) of the sliding windows; None = the data's, where they say it.
        overlap: of neighbouring windows.
        dice_weight, ce_weight: of the two terms of the loss.
        pooled: also log Dice of all voxels of all volumes together, the paper's measure for nodules.
        pad: value of what a volume lacks to a window; None = the volume's lowest, unless the data say it.
        freeze: parts of the backbone that keep their values, norms in evaluation: "stem", "layer1" to "layer4".
        mean, std: of the input values; the default is the official pre-training rule on 0..255.
    """

    def __init__(
        self,
        *,
        network: Network,
        optimiser: Optimiser,
        organs: list[str] | None = None,
        window: Triple | None = (48, 48, 48),
        overlap: float = 0.5,
        dice_weight: float = 1.0,
        ce_weight: float = 1.0,
        pooled: bool = False,
        pad: float | None = 0.0,
        freeze: tuple[str, ...] = (),
        mean: float = PRETRAIN_MEAN,
        std: float = PRETRAIN_STD,
    ) -> None:
        from monai.losses import DiceCELoss

        if organs is None or window is None:
            raise SvdHubError(f"organs={organs}, window={window} are not allowed with these data; allowed: both given")
        if network.options.get("num_classes") != len(organs) + 1:
            raise SvdHubError(
                f"{len(organs)} organs and the background are not network.options.num_classes="
                f"{network.options.get('num_classes')}. Next: one class for each organ, and one more"
            )
        # of this epoch's training batches: loss, patches
        sums, made = torch.zeros(2, dtype=torch.float64), build_segmenter(network)
        super().__init__(config=network, network=made, optimiser=optimiser, sums=sums, freeze=freeze)
        self.organs, self.window, self.overlap, self.mean, self.std = organs, window, overlap, mean, std
        self.pad, self.pooled = pad, pooled
        # Dice over the batch: a patch without an organ has none of its own
        self.loss = DiceCELoss(
            include_background=False,
            to_onehot_y=True,
            softmax=True,
            batch=True,
            lambda_dice=dice_weight,
            lambda_ce=ce_weight,
        )
        self.validation: list[tuple[np.ndarray, np.ndarray]] = []
        self.scores: list[dict[str, float]] = []  # of the last evaluation: Dice of each organ, case by case

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, K, D, H, W) of a raw batch (N, 1, D, H, W), values as the preprocessing scales them."""
        logits: Tensor = self.network((x.float() - self.mean) / self.std)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss; a loss that is not finite stops the run with the batch named."""
        x, target = batch
        loss: Tensor = self.loss(self(x).float(), target[:, None])
        check_finite(loss, self, batch_idx)
        self.sums += self.sums.new_tensor([float(loss.detach()) * len(x), len(x)])
        return loss

    def on_train_epoch_end(self) -> None:
        """Log the mean of the epoch; Lightning's own would begin again where a run goes on in the middle of one."""
        loss, count = self.sums.tolist()
        self.sums.zero_()
        self.log("train/loss", loss / count, sync_dist=True)

    def inference(self) -> dict[str, Any]:
        """Return arguments of `svd_hub.Inference`: the windows of the evaluation."""
        return {"window": list(self.window), "stride": list(strides(self.window, self.overlap))}

    def validation_step(self, batch: Case, batch_idx: int) -> None:
        """Count what a whole volume's voxels are given; Dice is of the volume, not a mean of its windows."""
        x, target, known = batch[0].float(), batch[1], batch[2]
        pad = float(x.min()) if self.pad is None else self.pad
        classes = sliding_window(self, x, window=self.window, overlap=self.overlap, pad=pad).argmax(1)
        for given, truth, which in zip(classes, target, known, strict=True):
            self.validation.append((confusion(given, truth, len(self.organs) + 1), which.cpu().numpy()))

    def on_validation_epoch_end(self) -> None:
        """Log Dice of each organ, the mean over the volumes that have it annotated, and the mean over organs."""
        counts, known = (np.stack(parts) for parts in zip(*gathered(self, self.validation), strict=True))
        self.validation.clear()
        metrics = segmentation_metrics(counts, known, self.organs)
        self.scores = [
            dict(zip(self.organs, np.where(which, dice_of(count), np.nan)[1:].tolist(), strict=True))
            for count, which in zip(counts, known, strict=True)
        ]
        if self.pooled:
            metrics["dice_pooled"] = float(np.nanmean(dice_of(counts.sum(0))[1:]))
        self.log_dict({f"val/{k}": v for k, v in metrics.items()}, sync_dist=True)
