"""What goes into a detector and what comes out: images of different sizes, true boxes, detections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import OptionError
from ...ops import larger_than


class Target(NamedTuple):
    """The true boxes of one image: (G, 4) as x0, y0, x1, y1 in its pixels, labels (G,) from 0; G may be 0."""

    boxes: Tensor
    labels: Tensor


class Detections(NamedTuple):
    """The detections of one image by falling score: boxes (K, 4) in its pixels, scores (K,), labels (K,) from 0."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def stack_images(images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return images (C, D, H, W), whose H and W may differ, as a batch (N, C, D, H', W') and their sizes (N, 2).

    Zeros are appended below and on the right. They take part in the statistics of GroupNorm, as in the authors'
    batches: put images of like sizes together.

    Raises:
        OptionError: no images, or images that differ in more than H and W.
    """
    if not images or any(x.ndim != 4 or x.shape[:2] != images[0].shape[:2] for x in images):
        found = [tuple(x.shape) for x in images]
        raise OptionError(f"images of shapes {found} are not allowed; allowed: (C, D, H, W) each, with one C and D")
    height, width = (max(x.shape[axis] for x in images) for axis in (2, 3))
    batch = torch.stack([F.pad(x, (0, width - x.shape[3], 0, height - x.shape[2])) for x in images])
    return batch, torch.tensor([x.shape[2:] for x in images], device=batch.device)


def checked_sizes(sizes: Tensor | Sequence[Sequence[int]] | None, images: Tensor) -> Tensor:
    """Return the sizes (N, 2) of the images (N, C, D, H, W) of a batch, on their device; None means all of H and W.

    Raises:
        OptionError: another number of sizes, or one that is beyond the batch.
    """
    none = torch.zeros(images.shape[0], dtype=torch.int64, device=images.device)
    whole = torch.stack([none + images.shape[3], none + images.shape[4]], 1)  # added, or a trace would burn them in
    if sizes is None:
        return whole
    try:
        given = sizes if isinstance(sizes, Tensor) else torch.tensor([[*size] for size in sizes])
    except (TypeError, ValueError):  # no pairs of numbers, or some of another length
        given = torch.zeros(0)
    given = given.to(images.device)
    if given.shape != whole.shape or given.is_floating_point() or bool(((given < 1) | (given > whole)).any()):
        raise OptionError(
            f"sizes={sizes} are not allowed for images {tuple(images.shape)}; allowed: (height, width) of "
            f"each of the {len(images)}, at most {tuple(images.shape[3:])}"
        )
    return given


def checked_targets(targets: Sequence[Target], num_classes: int, images: Tensor) -> list[Target]:
    """Return the targets of a batch on its device, boxes in float32 at least.

    Raises:
        OptionError: another number of targets than images, or a target that is none: see `refuse`.
    """
    if len(targets) != len(images) or len(targets) == 0:
        raise OptionError(
            f"{len(targets)} targets for {len(images)} images are not allowed; allowed: one for each, and one or more"
        )
    checked = []
    for number, target in enumerate(targets):
        boxes, labels = pair(number, target)
        if boxes.shape != (len(labels), 4) or labels.ndim != 1 or labels.is_floating_point():
            raise OptionError(
                f"target {number} with boxes {tuple(boxes.shape)} and labels {tuple(labels.shape)} of {labels.dtype} "
                "is not allowed; allowed: (G, 4) and (G,) integers, G = 0 for an image without objects"
            )
        boxes = boxes.to(device=images.device, dtype=torch.promote_types(boxes.dtype, torch.float32))
        labels = labels.to(device=images.device, dtype=torch.int64)
        sound = larger_than(boxes) & boxes.isfinite().all(1) & (labels >= 0) & (labels < num_classes)
        if not bool(sound.all()):
            refuse(number, boxes, labels, sound, num_classes)
        checked.append(Target(boxes, labels))
    return checked


def pair(number: int, target: object) -> tuple[Tensor, Tensor]:
    """Return boxes and labels of a target, or raise `OptionError`; torchvision's detectors take dicts, these do not."""
    if isinstance(target, tuple | list) and len(target) == 2 and all(isinstance(part, Tensor) for part in target):
        return target[0], target[1]
    parts = (
        f" of {', '.join(type(part).__name__ for part in target)}" if isinstance(target, tuple | list | dict) else ""
    )
    found = f"a {type(target).__name__}{parts}"
    raise OptionError(
        f"target {number} is {found}; allowed: two tensors, boxes (G, 4) and labels (G,). Next: "
        "svd_hub.models.detection.Target(boxes, labels)"
    )


def refuse(number: int, boxes: Tensor, labels: Tensor, sound: Tensor, num_classes: int) -> None:
    """Raise `OptionError` for the first box of a target that is not sound."""
    first = int((~sound).nonzero()[0])
    raise OptionError(
        f"target {number} has a box {boxes[first].tolist()} with label {int(labels[first])}; allowed: x0 < x1, "
        f"y0 < y1, finite; labels 0 to {num_classes - 1}, the background is none. Next: leave such boxes out where the "
        "data are read and cropped (svd_hub.ops.larger_than), and count labels from 0"
    )
