"""Patches of annotated volumes, drawn, turned, scaled and changed in contrast; a function of (seed, epoch, index)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from ...errors import OptionError
from ..seeding import Place, sample_generator

Triple = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A patient on the network's grid.

    Attributes:
        name: of the folder.
        image: (1, D, H, W) in the window's scale.
        target: (D, H, W) int64 or uint8, class 0 is everything but the organs.
        known: (K,) bool, the classes that are annotated in this patient; the background always is.
    """

    name: str
    image: Tensor
    target: Tensor
    known: Tensor


@dataclass(frozen=True, kw_only=True)
class Values:
    """The values of images.

    Attributes:
        low, high: the ends of the range that the preprocessing maps to.
        clamped: nothing is beyond them.
    """

    low: float = 0.0
    high: float = 255.0
    clamped: bool = True


WINDOWED = Values()


def check_axes(option: str, axes: str) -> None:
    """Raise `OptionError` unless `axes` are different letters of "DHW"."""
    if len(set(axes)) != len(axes) or set(axes) - set("DHW"):
        raise OptionError(f"{option}={axes!r} is not allowed; allowed: letters of 'DHW', once each, or ''")


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What a patch meets, besides its place. No flips: liver and spleen are on their sides, and organs on their ends.

    Attributes:
        flip: axes of "DHW" that are mirrored in half of the patches; "" where sides matter.
        scale: the image is shown larger or smaller by up to this share.
        degrees: turned by up to this about each axis.
        contrast, brightness, noise: of the 0..255 scale: values times 1 +- contrast, plus +- brightness, plus normal
            noise of a standard deviation of up to `noise`.
        about: share of the patches that are about a voxel of an organ, whose others are anywhere.
        slab: share of the patches of which only some slices are kept, the others being air: short scans are padded so.
    """

    flip: str = ""
    scale: float = 0.2
    degrees: float = 12.0
    contrast: float = 0.2
    brightness: float = 20.0
    noise: float = 12.0
    slab: float = 0.3
    about: float = 0.5

    def __post_init__(self) -> None:
        check_axes("augmentation.flip", self.flip)


STANDARD = Augmentation()


def affine(random: np.random.Generator, rule: Augmentation) -> np.ndarray:
    """Return the matrix (3, 3) that takes a patch's voxel offsets (z, y, x) to the volume's: turned and scaled."""
    matrix = np.eye(3) * np.exp(random.uniform(-1, 1) * math.log1p(rule.scale))
    for first, second in ((0, 1), (0, 2), (1, 2)):
        angle = math.radians(random.uniform(-rule.degrees, rule.degrees))
        turn = np.eye(3)
        turn[[first, second], [first, second]] = math.cos(angle)
        turn[first, second], turn[second, first] = -math.sin(angle), math.sin(angle)
        matrix = matrix @ turn
    return matrix


def cut(
    case: Case, centre: np.ndarray, matrix: np.ndarray, size: Triple, outside: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return the patch (1, *size) about a place of the volume, trilinear, and its classes *size, nearest.

    Args:
        case: on the network's grid.
        centre: (3,) voxel (z, y, x) of the patch's centre.
        matrix: see `affine`.
        size: (D, H, W).
        outside: the value outside the volume, where the classes are the background.
    """
    sides = np.asarray(case.target.shape)
    # torch's grid: -1 and 1 are the outer borders of the first and last voxel, and the last axis comes first
    to_unit = 2 / sides
    linear = to_unit[:, None] * matrix * (np.asarray(size) / 2)[None]
    offset = (centre + 0.5) * to_unit - 1
    theta = torch.from_numpy(np.concatenate([linear[::-1, ::-1], offset[::-1, None]], 1)).float()
    grid = F.affine_grid(theta[None], [1, 1, *size], align_corners=False)
    inside = case.image[None] - outside if outside else case.image[None]
    image = F.grid_sample(inside, grid, mode="bilinear", padding_mode="zeros", align_corners=False) + outside
    classes = F.grid_sample(
        case.target[None, None].float(), grid, mode="nearest", padding_mode="zeros", align_corners=False
    )
    return image[0], classes[0, 0].long()


def changed(x: Tensor, random: np.random.Generator, rule: Augmentation, values: Values) -> Tensor:
    """Return the image as another scanner or phase of contrast would have it."""
    gain = 1 + random.uniform(-1, 1) * rule.contrast
    shift, noise = random.uniform(-1, 1) * rule.brightness, random.uniform(0, rule.noise)
    middle, unit = (values.low + values.high) / 2, (values.high - values.low) / 255
    x = (x - middle) * gain + middle + shift * unit
    x = x + torch.from_numpy(random.standard_normal(x.shape, dtype=np.float32)) * (noise * unit)
    return x.clamp(values.low, values.high) if values.clamped else x


def places_of(case: Case, most: int = 0) -> list[Tensor]:
    """Return the voxels (n, 3) of each organ that the case has; where there are more than `most` > 0, evenly fewer."""
    found = [voxels for k in range(1, len(case.known)) if len(voxels := (case.target == k).nonzero())]
    return [voxels[:: -(-len(voxels) // most)].clone() for voxels in found] if most else found


class Patches(Dataset[tuple[Tensor, Tensor]]):
    """(epoch, index) -> patch (1, *size) and its classes; see `Augmentation`.

    Args:
        cases: taken in turn.
        count: patches an epoch.
        size: (D, H, W) of a patch.
        rule: the augmentation.
        seed: of all that is drawn.
        values: of the images.
        places: of each case, see `places_of`; None = found here, which reads every case.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        *,
        count: int,
        size: Triple,
        rule: Augmentation,
        seed: int,
        values: Values = WINDOWED,
        places: Sequence[list[Tensor]] | None = None,
    ) -> None:
        self.cases, self.count, self.size, self.rule, self.seed = cases, count, size, rule, seed
        self.values = values
        self.organs = [places_of(case) for case in cases] if places is None else places

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: Place) -> tuple[Tensor, Tensor]:
        epoch, index = place
        random = sample_generator(self.seed, epoch, index)
        case, organs = self.cases[index % len(self.cases)], self.organs[index % len(self.cases)]
        if organs and random.random() < self.rule.about:  # an organ first, or the liver would have nearly all of them
            voxels = organs[random.integers(len(organs))]
            centre = voxels[random.integers(len(voxels))].numpy() + random.uniform(-0.25, 0.25, 3) * self.size
        else:
            sides = np.asarray(case.target.shape)
            room = np.maximum(sides - np.asarray(self.size), 0)
            centre = (sides - 1) / 2 + random.uniform(-0.5, 0.5, 3) * room
        outside = self.values.low if self.values.clamped else float(case.image.min())
        x, target = cut(case, centre, affine(random, self.rule), self.size, outside)
        x = changed(x, random, self.rule, self.values)
        if self.rule.flip and (axes := [-3 + "DHW".index(a) for a in self.rule.flip if random.random() < 0.5]):
            x, target = x.flip(axes), target.flip(axes)
        if random.random() < self.rule.slab:
            depth = self.size[0]
            kept = int(random.integers(1, depth + 1))
            first = int(random.integers(0, depth - kept + 1))
            for part in (slice(0, first), slice(first + kept, depth)):
                x[:, part], target[part] = outside, 0
        return x, target


class Whole(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """(epoch, index) -> image, target and known classes of a whole patient."""

    def __init__(self, cases: Sequence[Case]) -> None:
        self.cases = cases

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, place: Place) -> tuple[Tensor, Tensor, Tensor]:
        case = self.cases[place[1]]
        return case.image, case.target, case.known
