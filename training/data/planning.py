"""The preprocessing of a user's own volumes: what the starting point asks for, and what their own sizes decide.

The entry's rule comes first, then what the recipe says. What neither says is taken from the volumes: their median
spacing, and their median extent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...catalog import get_entry
from ...errors import OptionError, check_choice
from ...images import patient_axes
from ...preprocess import Colours, Preprocess
from ...saved import entry_of_file
from ...variable_dimension import PRETRAIN_MEAN, PRETRAIN_STD

ORIENTATION = "SPL"
Triple = tuple[int, int, int]
Millimetres = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How large a volume is: voxels and mm as (z, y, x) of the patient."""

    size: Triple
    spacing: Millimetres


def starting_point(
    init: str, *, modality: str, window: tuple[float, float] | None, ct_window: tuple[float, float]
) -> Preprocess:
    """Return the preprocessing that weights were trained with, as it is for grey volumes of `modality`.

    Pictures and clips have no window: `ct_window` of a CT becomes the range of their values, and MR, whose values have
    no unit, gets each volume's own mean and standard deviation. So does MR where the entry is for HU.

    Args:
        init: an entry, a file of ours, or "none".
        modality: "CT" or "MR", of the user's volumes.
        window: the user's own, in the volumes' units, or None.
        ct_window: HU, where the entry has none.
    """
    check_choice("modality", modality, ("CT", "MR"))
    base = _of(init)
    trained_on = base.modality
    if trained_on in ("RGB", "video"):
        scale = base.scale or (0.0, 255.0)
        base = Preprocess(window=ct_window, scale=scale, mean=base.mean, std=base.std)
    base = replace(base, modality=modality, channels=1, orientation=base.orientation or ORIENTATION, note="")
    base = replace(base, mean=grey(base.mean), std=grey(base.std))
    if window is None:
        if modality == "MR" and trained_on != "MR" and base.statistics == "fixed":
            return replace(base, window=None, scale=None, statistics="volume", pad=None, mean=0.0, std=1.0)
        return base
    if base.statistics == "fixed" and base.window is None:
        raise OptionError(
            f"window={window} does not fit init={init!r}, whose values are not windowed; allowed: null. Next: leave "
            "data.init_args.window out"
        )
    return replace(base, window=window)


def _of(init: str) -> Preprocess:
    if init == "none":
        return Preprocess(modality="RGB", mean=PRETRAIN_MEAN, std=PRETRAIN_STD)
    path = Path(init)
    entry = entry_of_file(path) if path.suffix == ".safetensors" else get_entry(init)
    return entry.preprocess


def grey(value: Colours) -> float:
    """Return what a grey volume takes of a number, or of one for each colour."""
    return sum(value) / 3 if isinstance(value, tuple) else value


# ---- what the volumes decide ---------------------------------------------------------------------------------------


def median_spacing(extents: Sequence[Extent]) -> Millimetres:
    """Return the median spacing of volumes in mm (z, y, x)."""
    z, y, x = np.median([extent.spacing for extent in extents], axis=0).tolist()
    return (z, y, x)


def median_lengths(extents: Sequence[Extent]) -> np.ndarray:
    """Return the median side lengths of volumes in mm (z, y, x)."""
    return np.median([np.multiply(extent.size, extent.spacing) for extent in extents], axis=0)


def coarsened(spacing: Millimetres, lengths: np.ndarray, voxels: int) -> Millimetres:
    """Return the spacing at which sides of `lengths` mm have `voxels` voxels at most, the finest axes coarser first."""
    low, high = min(spacing), float(lengths.max())
    if np.prod(lengths / spacing) <= voxels:
        return spacing
    for _ in range(60):  # the least spacing of every axis, by bisection
        middle = math.sqrt(low * high)
        low, high = (low, middle) if np.prod(lengths / np.maximum(spacing, middle)) <= voxels else (middle, high)
    z, y, x = (round(max(s, high), 3) for s in spacing)
    return (z, y, x)


def whole_volumes(rule: Preprocess, extents: Sequence[Extent], *, voxels: int, fixed: bool) -> Preprocess:
    """Return the rule with a spacing and a size that hold the median volume, for networks that see all of it at once.

    Args:
        rule: see `starting_point`; what it has of spacing and size is kept.
        extents: of the volumes of training.
        voxels: as many at most, by a coarser spacing.
        fixed: the user's own spacing is never made coarser.
    """
    if rule.size is not None:
        fits = rule.spacing is not None or rule.fit == "resize"
        return rule if fits else replace(rule, spacing=median_spacing(extents))
    lengths = median_lengths(extents)
    spacing = rule.spacing or median_spacing(extents)
    spacing = spacing if fixed else coarsened(spacing, lengths, voxels)
    sides = [max(8, 8 * math.ceil(n / 8)) for n in np.rint(lengths / spacing)]
    return replace(rule, spacing=spacing, size=_at_least(rule, _turned(sides, rule)))


def patches(
    rule: Preprocess, extents: Sequence[Extent], *, size: Triple | None, voxels: int
) -> tuple[Preprocess, Triple]:
    """Return the rule for volumes of any size, and the (D, H, W) of a patch of them, multiples of 16.

    Args:
        rule: see `starting_point`; its size is that of an input, and none of whole volumes.
        extents: of the volumes of training.
        size: the user's own patch, or None.
        voxels: of a patch at most where it is not the user's own.
    """
    spacing = rule.spacing or median_spacing(extents)
    if size is None:
        sides = [max(16, 16 * int(n // 16)) for n in np.rint(median_lengths(extents) / spacing)]
        while np.prod(sides) > voxels and max(sides) > 16:
            sides[sides.index(max(sides))] -= 16
        size = _at_least(rule, _turned(sides, rule))
    return replace(rule, spacing=spacing, size=None, fit="crop", minimum=(1, 1, 1), divisor=(1, 1, 1)), size


def _turned(sides: Sequence[int], rule: Preprocess) -> Triple:
    """Return sides (z, y, x) of the patient in the order of the rule's axes D, H, W."""
    d, h, w = (sides[axis] for axis in patient_axes(rule.orientation or ORIENTATION))
    return (d, h, w)


def _at_least(rule: Preprocess, sides: Triple) -> Triple:
    d, h, w = (-(-max(n, m) // v) * v for n, m, v in zip(sides, rule.minimum, rule.divisor, strict=True))
    return (d, h, w)
