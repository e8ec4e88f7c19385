"""Images with true boxes: what a data set holds, how a sample is scaled and mirrored, how samples become a batch.

Boxes are x0, y0, x1, y1 in pixels of continuous coordinates, width = x1 - x0 (docs/architecture.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from ...models.detection import Target, stack_images
from ..evaluation.boxes import Truth
from ..seeding import Place, sample_generator

Flip = Literal["horizontal", "vertical", "depth"]
AXES: dict[Flip, int] = {"depth": 1, "vertical": 2, "horizontal": 3}  # of an image (1, D, H, W)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image of a data set, not yet read, with its true boxes.

    Attributes:
        file: under the folder of the images.
        size: (height, width) in pixels.
        boxes: (G, 4) float32; G may be 0.
        labels: (G,) from 0.
        crowd: (G,) True where a box holds many objects, or what is to be ignored: it counts neither way.
        area: (G,) of the objects in square pixels, for the sizes of COCO's measures.
        interval: mm between stored slices; 0 = there are none.
    """

    file: str
    size: tuple[int, int]
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    area: np.ndarray
    interval: float = 0.0

    def only(self, kept: np.ndarray) -> Picture:
        """Return the picture with some of its boxes: a mask (G,)."""
        columns = {name: getattr(self, name)[kept] for name in ("boxes", "labels", "crowd", "area")}
        return replace(self, **columns)

    def truth(self) -> Truth:
        """Return what a detector is measured by."""
        columns = (self.boxes, self.labels, self.crowd, self.area)
        return Truth(*(torch.from_numpy(column) for column in columns))


def for_training(pictures: Sequence[Picture]) -> tuple[list[Picture], dict[str, int]]:
    """Return the pictures that train, with boxes inside of them, and how many of what was left out.

    Left out are crowds, boxes of which no whole pixel lies in the image, and pictures without a box, as upstream does
    (urmagicsmine/MP3D@08e5ace mmdet/datasets/coco.py).
    """
    kept, crowds, small, empty = [], 0, 0, 0
    for picture in pictures:
        limits = np.array([picture.size[1], picture.size[0]] * 2, np.float32)
        inside = replace(picture, boxes=picture.boxes.clip(0, limits))
        sides = inside.boxes[:, 2:] - inside.boxes[:, :2]
        large = (sides >= 1).all(1)
        crowds += int(picture.crowd.sum())
        small += int((~large & ~picture.crowd).sum())
        inside = inside.only(large & ~picture.crowd)
        empty += not len(inside.boxes)
        kept += [inside] if len(inside.boxes) else []
    found = {"images": len(kept), "boxes": sum(len(p.boxes) for p in kept)}
    return kept, found | {"crowds left out": crowds, "boxes left out": small, "images without a box": empty}


class Sample(NamedTuple):
    """One image (1, D, H, W) of 0..255 as the network sees it, its objects, and what it was.

    Attributes:
        target: boxes in the image as it is here.
        truth: boxes in the image as it is stored.
        scale: (2,) how many pixels here one stored pixel is, in x and y.
    """

    image: Tensor
    target: Target
    truth: Truth
    scale: Tensor


class Batch(NamedTuple):
    """Samples side by side: images (N, 1, D, H, W) padded below and on the right, their sizes (N, 2), scales (N, 2)."""

    images: Tensor
    sizes: Tensor
    targets: tuple[Target, ...]
    truth: tuple[Truth, ...]
    scales: Tensor


def collate(samples: Sequence[Sample]) -> Batch:
    """Return a batch of samples whose H and W may differ."""
    images, sizes = stack_images([sample.image for sample in samples])
    targets, truth = tuple(s.target for s in samples), tuple(s.truth for s in samples)
    return Batch(images, sizes, targets, truth, torch.stack([s.scale for s in samples]))


# ---- geometry ------------------------------------------------------------------------------------------------------


def resized(image: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """Return an image (1, D, H, W) whose longer side of H and W is `longest`, and its scale (2,) in x and y.

    Bilinear between pixel centres, without antialiasing, sides rounded to the nearest pixel: as upstream
    (open-mmlab/mmcv@v1.3.0 mmcv/image/geometric.py, imrescale).
    """
    height, width = image.shape[2:]
    factor = longest / max(height, width)
    sides = [max(1, int(side * factor + 0.5)) for side in (height, width)]
    if sides != [height, width]:
        image = F.interpolate(image, size=sides, mode="bilinear", align_corners=False)
    return image, torch.tensor([sides[1] / width, sides[0] / height])


def mirrored(image: Tensor, boxes: Tensor, flip: Flip) -> tuple[Tensor, Tensor]:
    """Return an image (1, D, H, W) and its boxes (G, 4) the other way round; the order of slices moves no box."""
    axis = AXES[flip]
    image = image.flip(axis)
    if flip == "depth":
        return image, boxes
    low, high = (0, 2) if flip == "horizontal" else (1, 3)
    moved = boxes.clone()
    moved[:, low], moved[:, high] = image.shape[axis] - boxes[:, high], image.shape[axis] - boxes[:, low]
    return image, moved


class Boxed(Dataset[Sample]):
    """(epoch, index) -> sample. What is drawn for it depends on (seed, epoch, index) only.

    Args:
        pictures: of the split.
        read: a picture as (1, D, H, W) of 0..255, float32, at its own size.
        sizes: pixels of the longer side, one of them drawn for each sample.
        flips: each done for half of the samples.
        seed: of all that is drawn.
    """

    def __init__(
        self,
        pictures: Sequence[Picture],
        read: Callable[[Picture], Tensor],
        *,
        sizes: Sequence[int],
        flips: Sequence[Flip] = (),
        seed: int = 0,
    ) -> None:
        self.pictures, self.read = list(pictures), read
        self.sizes, self.flips, self.seed = tuple(sizes), tuple(flips), seed

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, place: Place) -> Sample:
        epoch, index = place
        picture, random = self.pictures[index], sample_generator(self.seed, epoch, index)
        longest = self.sizes[int(random.integers(len(self.sizes)))]
        image, scale = resized(self.read(picture), longest)
        truth = picture.truth()
        boxes = truth.boxes * scale.repeat(2)
        for flip in self.flips:
            if random.random() < 0.5:
                image, boxes = mirrored(image, boxes, flip)
        return Sample(image, Target(boxes, truth.labels), truth, scale)
