"""What a classifier sees of a volume: the middle of it, or the surroundings of a point."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import OptionError, VolumeError
from ..images import centre
from ..prepared import Prepared
from ..preprocess import Preprocess
from ..volume import Volume
from .results import Point


def classifier_input(volume: Volume, rule: Preprocess, point: Point | None) -> tuple[Tensor, list[str]]:
    """Return the network's input (1, C, D, H, W) of a volume, and what is to be said of it.

    About a point it is cut from what `rule` makes of the whole volume, on the network's grid: spacing, statistics and
    padding are those of an input about the middle, and the voxel at the point comes where the middle's would.

    Args:
        volume: the whole one.
        rule: the weights' preprocessing.
        point: mm (x, y, z) that becomes the middle; None = the volume's own.

    Raises:
        VolumeError: the point lies outside the volume.
        OptionError: a point that is none, or one where the weights read whole volumes.
    """
    if rule.size is None or rule.fit != "crop":
        if point is not None:
            raise OptionError(f"point={point} is not allowed: these weights read whole volumes. Next: leave it out")
        return rule(volume.array, spacing=volume.spacing, orientation="SPL"), []
    prepared = Prepared(rule, volume.array, volume.spacing)
    if point is None:
        x = rule(volume.array, spacing=volume.spacing, orientation="SPL")
        starts = [cut.start - max(0, want - n) // 2 for cut, n, want in
                  zip(centre(prepared.sides, rule.size), prepared.sides, rule.size, strict=True)]  # fmt: skip
    else:
        starts = [at - want // 2 for at, want in zip(_place(volume, prepared, point), rule.size, strict=True)]
        x = _cut(prepared, starts, rule.size)[None]
    return x, _notes(volume, prepared, starts, middle=point is None)


def _place(volume: Volume, prepared: Prepared, point: Point) -> list[int]:
    """Return the voxel of the network's grid that is nearest to a point in mm."""
    try:
        given = np.asarray(point, dtype=float)
    except (TypeError, ValueError):
        given = np.zeros(0)
    if given.shape != (3,) or not np.isfinite(given).all():
        raise OptionError(f"point={point!r} is not allowed; allowed: three numbers, mm to Left, Posterior, Superior")
    at = volume.grid.indices(given)
    if not ((at >= -0.5 - 1e-6) & (at <= np.array(volume.shape) - 0.5 + 1e-6)).all():
        ends = volume.grid.points(np.array([[0, 0, 0], [n - 1 for n in volume.shape]]))
        low, high = ends.min(0).round(1).tolist(), ends.max(0).round(1).tolist()
        raise VolumeError(
            f"the point {tuple(given.tolist())} mm lies outside the volume; allowed: {low} to {high} mm (x, y, z to "
            "Left, Posterior, Superior). Next: negate x and y of a point that counts to Right and Anterior"
        )
    places = []
    for letter, axis, side in zip(prepared.orientation, prepared.order, prepared.sides, strict=True):
        stored = volume.shape[axis]
        along = at[axis] if letter == "SPL"[axis] else stored - 1 - at[axis]
        places.append(min(side - 1, max(0, math.floor((along + 0.5) * side / stored))))
    return places


def _cut(prepared: Prepared, starts: Sequence[int], sides: Sequence[int]) -> Tensor:
    """Return (C, *sides) from `starts` on, padded beyond the volume."""
    inside = [slice(max(0, at), min(n, at + side)) for at, side, n in zip(starts, sides, prepared.sides, strict=True)]
    part = prepared.block(inside)
    x = torch.empty(len(part), *sides).copy_(torch.as_tensor(prepared.pad))
    d, h, w = (slice(cut.start - at, cut.stop - at) for cut, at in zip(inside, starts, strict=True))
    x[:, d, h, w] = part
    return x


def _notes(volume: Volume, prepared: Prepared, starts: Sequence[int], *, middle: bool) -> list[str]:
    rule, notes = prepared.rule, []
    size = rule.size or prepared.sides
    if short := sum(at < 0 or at + side > n for at, side, n in zip(starts, size, prepared.sides, strict=True)):
        what = "the volume is smaller than" if middle else "about the point the volume ends within"
        notes.append(
            f"{what} the input of these weights along {short} of its axes: padded with {rule.padding:g}, the window's "
            "low end unless the weights say otherwise"
        )
    if middle and any(n > 2 * side for n, side in zip(prepared.sides, size, strict=True)):
        stored = [volume.shape[axis] * volume.spacing[axis] for axis in prepared.order]
        mm = [side * have / n for side, have, n in zip(size, stored, prepared.sides, strict=True)]
        notes.append(
            f"the network sees the middle {' x '.join(f'{s:.3g}' for s in mm)} mm of the volume alone; give a point "
            "(mm) to cut about"
        )
    return notes
