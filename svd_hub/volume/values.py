"""Voxel values: int16 where that is exact and float32 otherwise, finite, not all the same; what is odd about them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import VolumeError
from . import memory

LARGEST = 4 * 2**30  # bytes of voxels read at most unless told otherwise: 4,096 slices of 512 x 512 in float32
AIR = -1024  # HU: the low end of the CT scale that scanners store
HU_BELOW = -500  # no MR has such values, unless it was scaled; lung and air of a CT have
_INT16 = np.iinfo(np.int16)


def check_bytes(size: Sequence[int], item: int, largest: int) -> int:
    """Return the bytes of an array of `size` with items of `item` bytes.

    Raises:
        VolumeError: more than `largest`.
    """
    count = item
    for n in size:
        count *= int(n)
    if count > largest:
        raise VolumeError(
            f"the file declares {' x '.join(map(str, size))} voxels, {count / 2**30:.1f} GiB; allowed: "
            f"{largest / 2**30:.1f} GiB. Next: check that it is whole, or give read(..., largest=BYTES)"
        )
    return count


def is_whole(value: float) -> bool:
    """Return whether a rescale slope or intercept is a whole number that arithmetic in int64 can take."""
    return abs(value) < 2**31 and float(value).is_integer()


def rescaled(raw: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """Return raw * slope + intercept: int16 where every value fits exactly, float32 otherwise.

    Args:
        raw: (z, y, x), integers, bool or floats. A whole int16 array comes back as it is, not as a copy.
        slope: factor, not 0.
        intercept: what is added.
    """
    if raw.dtype == np.int16 and raw.dtype.isnative and (slope, intercept) == (1, 0):
        return raw
    if raw.dtype.kind in "iu" and raw.dtype.itemsize <= 4 and is_whole(slope) and is_whole(intercept):
        ends = [int(end) * int(slope) + int(intercept) for end in extremes(raw)]
        if _INT16.min <= min(ends) and max(ends) <= _INT16.max:
            out = memory.empty(raw.shape, np.int16)
            for plane, target in memory.planes(raw, out):
                target[...] = plane
                if (slope, intercept) != (1, 0):
                    target[...] = plane.astype(np.int64) * int(slope) + int(intercept)
            return out
    if raw.dtype == np.float32 and (slope, intercept) == (1, 0):
        return narrowed(raw)
    out = memory.empty(raw.shape, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # what float32 cannot hold becomes infinite and is refused later
        for plane, target in memory.planes(raw, out):
            target[...] = plane.astype(np.float64) * slope + intercept
    return narrowed(out)


def narrowed(array: np.ndarray) -> np.ndarray:
    """Return a float32 array (z, y, x) as int16 where that changes no value, and as it is otherwise."""
    out = memory.empty(array.shape, np.int16)
    with np.errstate(invalid="ignore"):  # what int16 cannot hold comes out as another number, and is seen by that
        for plane, target in memory.planes(array, out):
            target[...] = plane
            if (target != plane).any():
                return array
    return out


def extremes(array: np.ndarray) -> tuple[Any, Any]:
    """Return the lowest and the highest value of (z, y, x), both NaN where there is one."""
    ends = [(plane.min(), plane.max()) for (plane,) in memory.planes(array)]
    return np.min([low for low, _ in ends]), np.max([high for _, high in ends])


def check_values(array: np.ndarray) -> tuple[float, float]:
    """Return the lowest and highest value of (z, y, x).

    Raises:
        VolumeError: NaN or infinite values, or one value everywhere.
    """
    low, high = extremes(array)
    if array.dtype.kind == "f" and not (np.isfinite(low) and np.isfinite(high)):
        wrong = sum(int((~np.isfinite(plane)).sum()) for (plane,) in memory.planes(array))
        raise VolumeError(
            f"{wrong} of {array.size} voxels are NaN or infinite; allowed: finite numbers. "
            f"Next: replace them where the file was made (for CT with {AIR}, air)"
        )
    if low == high:
        raise VolumeError(
            f"every voxel is {float(low):g}: an empty image; allowed: an image. Next: check the export, or that the "
            "file is the volume and not a mask"
        )
    return float(low), float(high)


def oddities(modality: str, low: float, high: float, stored: np.dtype | None) -> list[str]:
    """Return what is worth saying about the values of a volume.

    Args:
        modality: "CT", "MR", or another, or "".
        low: lowest value.
        high: highest value.
        stored: the type the file keeps, None where that says nothing.

    Raises:
        VolumeError: values that cannot be HU, of a volume said to be CT.
    """
    if modality == "MR" and low < HU_BELOW:
        return [f"values down to {low:g} look like HU of a CT: check that this is MR"]
    if modality != "CT":
        return []
    if low >= 0 and stored == np.uint8:
        raise VolumeError(
            f"the values are 8-bit numbers, {low:g} to {high:g}; allowed for CT: HU, where air is -1000. The file is a "
            "mask, a picture of a CT, or of another modality. Next: give the image in HU"
        )
    if low >= 0:
        return [f"no value is below 0 ({low:g} to {high:g}): CT in HU has air at -1000; check that these are HU"]
    if high > 100_000 or low < -100_000:
        return [f"the values reach from {low:g} to {high:g}: check that these are HU"]
    return []
