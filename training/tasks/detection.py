"""Detection: boxes of objects in pseudo-3D photographs (pre-training) and of lesions in CT slices (transfer)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ...checkpoint import diagnose
from ...errors import OptionError, SvdHubError
from ...models import build, weight_options
from ...models.detection import Detections
from ...skeleton import shapes
from ..data.boxes import Batch
from ..evaluation.boxes import Measure, Truth, detection_metrics, stored
from ..ranks import gathered
from .base import Network, Task
from .checks import check_finite
from .optimiser import Optimiser

ARCHITECTURE = "faster_rcnn3d"
LOSSES = ("loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox")
MEAN, STD = 123.675, 58.395  # of all slices, on 0..255: urmagicsmine/MP3D@08e5ace configs/_base_/datasets
# What may be new where a whole detector is taken over: other classes, another number of slices.
NEW = ("bbox_head.fc_cls.", "bbox_head.fc_reg.", "gtm.")
# Options of an encoder in which it is as the backbone that it starts from, whatever the recipe says: "init" is then the
# one word that changes between the rows of the paper's Table VI. Depth, width and stem are to agree.
FOLLOWED = ("norm", "shortcut", "detach_shortcut", "convolution", "stem_depth", "downsample_bias", "init")
Transfer = Literal["backbone", "detector"]


def build_detector(network: Network, *, transfer: Transfer = "backbone") -> Any:
    """Return the detector, initialised as `network.init` says, in training mode; it carries `.options`.

    Args:
        network: `init` is "none", a backbone's entry or file, whose norm and shortcut the encoder takes (`FOLLOWED`),
            or the entry or file of a detector.
        transfer: what is taken of a detector: its backbone, as the authors do (their loader drops neck and heads in
            silence), or all that fits; then only the last layers of the box head and the group transform may be new.

    Raises:
        SvdHubError: no such option or entry, or an init that is another network than the options say.
    """
    if network.architecture != ARCHITECTURE:
        raise OptionError(f"architecture={network.architecture!r} finds no boxes; allowed: {ARCHITECTURE!r}")
    options = dict(network.options)
    if network.init == "none":
        return _fresh(options)
    if (file := Path(network.init)).suffix == ".safetensors" and not file.is_file():
        told = f"svd-hub train {file.parent.name}" if file.parent.parent.name == "runs" else "train what it is from"
        raise SvdHubError(
            f"init={network.init!r} does not exist. Next: {told}, or --init with an entry, a file or 'none'"
        )
    from ...hub import load
    from ...tasks import task_model

    found: Any = load(network.init)
    if found.entry.architecture == ARCHITECTURE:
        made = _fresh(options)
        _take_over(made, found, transfer, network.init)
        return made
    if (own := options.pop("encoder", found.entry.architecture)) != found.entry.architecture:
        raise SvdHubError(
            f"network.options.encoder={own!r} does not fit init={network.init!r}, a {found.entry.architecture}. "
            "Next: another init, or another encoder with its options"
        )
    asked = {key: value for key, value in (options.pop("encoder_options", None) or {}).items() if key not in FOLLOWED}
    return task_model(found, ARCHITECTURE, encoder_options=asked, **options).train()


def _fresh(options: Mapping[str, Any]) -> Any:
    made: Any = build(ARCHITECTURE, options)
    # in full: a later release may take another form for the detector's
    made.options = {**options, "encoder_options": dict(made.encoder_options)}
    return made.train()


def _take_over(made: Any, found: Any, transfer: Transfer, init: str) -> None:
    """Put the tensors of one detector into another."""
    have, want = found.state_dict(), made.state_dict()
    if transfer == "detector" and found.convention != made.convention:
        raise SvdHubError(
            f"init={init!r} has another convention than network.options: its anchors lie elsewhere. Next: "
            f"options.convention={found.options.get('convention', 'mmdet2')!r}, or transfer='backbone'"
        )
    own = _owned(have, transfer)
    if shapes(own) != (wanted := shapes(_owned(want, transfer))):
        raise SvdHubError(
            f"init={init!r} is a detector of other options than network.options: {diagnose(own, wanted)}. Next: "
            f"give its own ({', '.join(weight_options(ARCHITECTURE))}), or another init"
        )
    if transfer == "detector":
        own |= {n: have[n] for n in want if n.startswith(NEW) and n in have and have[n].shape == want[n].shape}
    made.load_state_dict(own, strict=False)


def _owned(tensors: Mapping[str, Tensor], transfer: Transfer) -> dict[str, Tensor]:
    """Return what must be the same in two detectors."""
    if transfer == "backbone":
        return {name: tensor for name, tensor in tensors.items() if name.startswith("backbone.")}
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(NEW)}


class Detection(Task):
    """The four losses of Faster R-CNN, added up; COCO's AP, or FROC, or both, of the evaluation split.

    Which anchors and proposals train is drawn by torch's generator, which `StepSeed` seeds before each step: a function
    of (seed, epoch, batch, rank), on any device.

    Args:
        network: what is trained, a `faster_rcnn3d`.
        optimiser: how.
        measures: "ap" for objects of many classes, "froc" for lesions.
        transfer: what is taken of an init that is a detector: see `build_detector`.
        freeze: parts of the backbone that keep their values, norms in evaluation: "stem", "layer1" to "layer4".
        norm_eval: batch norms of the backbone keep their statistics, as upstream's; group norms have none.
        mean, std: of the input values; the default is the official rule on 0..255.
    """

    def __init__(
        self,
        *,
        network: Network,
        optimiser: Optimiser,
        measures: tuple[Measure, ...] = ("ap",),
        transfer: Transfer = "backbone",
        freeze: tuple[str, ...] = (),
        norm_eval: bool = True,
        mean: float = MEAN,
        std: float = STD,
    ) -> None:
        # of this epoch: images, loss, its parts
        sums, made = torch.zeros(2 + len(LOSSES), dtype=torch.float64), build_detector(network, transfer=transfer)
        super().__init__(
            config=network, network=made, optimiser=optimiser, sums=sums, freeze=freeze, norm_eval=norm_eval
        )
        self.measures, self.mean, self.std = measures, mean, std
        self.found: list[Detections] = []
        self.truth: list[Truth] = []

    def normalised(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Return a batch (N, 1, D, H, W) of 0..255 with mean and std taken off, and zeros again behind each image.

        Padding is behind the normalisation, as upstream's: it is grey, not the black of air.
        """
        rows = torch.arange(images.shape[3], device=images.device) < sizes[:, :1]
        columns = torch.arange(images.shape[4], device=images.device) < sizes[:, 1:]
        inside = (rows[:, :, None] & columns[:, None, :])[:, None, None]
        return torch.where(inside, (images.float() - self.mean) / self.std, 0.0)

    def forward(self, batch: Batch) -> list[Detections]:
        """Return the detections of each image, in the pixels of the batch."""
        found: list[Detections] = self.network(self.normalised(batch.images, batch.sizes), sizes=batch.sizes)
        return found

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss; a loss that is not finite stops the run with the batch named."""
        images = self.normalised(batch.images, batch.sizes)
        losses: dict[str, Tensor] = self.network(images, batch.targets, sizes=batch.sizes)
        parts = torch.stack([losses[name] for name in LOSSES])
        loss = parts.sum()
        check_finite(loss, self, batch_idx)
        count = len(batch.images)
        means = torch.cat([loss.detach()[None], parts.detach()]).double().cpu()
        self.sums += torch.cat([means.new_ones(1), means]) * count
        return loss

    def on_train_epoch_end(self) -> None:
        """Log the means of the epoch; Lightning's own would begin again where a run goes on in the middle of one."""
        count, *means = self.sums.tolist()
        self.sums.zero_()
        names = ("loss", *LOSSES)
        self.log_dict({f"train/{n}": value / count for n, value in zip(names, means, strict=True)}, sync_dist=True)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep what was found in each image, in its stored pixels; the measures are of the whole set."""
        self.found += [stored(one, scale) for one, scale in zip(self(batch), batch.scales, strict=True)]
        self.truth += [Truth(*(column.cpu() for column in one)) for one in batch.truth]

    def on_validation_epoch_end(self) -> None:
        """Log the measures of the whole evaluation split."""
        found, truth = gathered(self, self.found), gathered(self, self.truth)
        self.found, self.truth = [], []
        metrics = detection_metrics(found, truth, self.measures)
        self.log_dict({f"val/{name}": value for name, value in metrics.items()}, sync_dist=True)
