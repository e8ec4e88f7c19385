"""Pixels of DICOM images as voxels: unpacked, rescaled plane by plane, padding and display inversion seen to."""

from __future__ import annotations

import itertools
import math
import zlib

import numpy as np

from ..errors import VolumeError
from . import memory
from .dicom import Plane
from .frames import stored
from .stack import Stack
from .values import AIR, check_bytes, is_whole, narrowed

_INT16 = np.iinfo(np.int16)


def voxels(stack: Stack, modality: str, largest: int, notes: list[str]) -> np.ndarray:
    """Return the voxels (z, y, x) of a stack on its grid, int16 where that is exact, float32 otherwise.

    Args:
        stack: the images in their order.
        modality: of the series; decides what padding and MONOCHROME1 become.
        largest: bytes of voxels at most.
        notes: what was done is added.

    Raises:
        VolumeError: an image that cannot be unpacked, named by its instance number; images of padding alone.
    """
    whole = all(is_whole(plane.slope) and is_whole(plane.intercept) for plane in stack.planes) and not stack.shifts
    check_bytes(stack.grid.size, 2 if whole else 4, largest)
    out = memory.empty(stack.grid.size, np.int16 if whole else np.float32)
    inverted = stack.planes[0].layout.inverted and modality != "CT"
    low, high = math.inf, -math.inf
    padded: list[tuple[int, bytes]] = []
    for plane, slot, (raw, mask) in zip(stack.planes, stack.slots, stored(stack.planes), strict=True):
        if out.dtype == np.int16 and not _fits(raw, plane):
            check_bytes(stack.grid.size, 4, largest)
            out = _widened(out)
        target = out[slot, : raw.shape[0], : raw.shape[1]]  # its corner: `_shear` moves it where a tilt asks for it
        _rescale(raw, plane, target)
        if mask is not None:
            padded.append((slot, zlib.compress(np.packbits(mask).tobytes(), 1)))
        if modality != "CT" and (seen := target if mask is None else target[~mask]).size:
            low, high = min(low, float(seen.min())), max(high, float(seen.max()))
        memory.release(out[slot])
    fill = float(AIR) if modality == "CT" else high if inverted else low
    if not math.isfinite(fill):
        raise VolumeError("every voxel is padding: an empty image; allowed: an image. Next: check the export")
    _see_to_padding(out, stack, padded, fill, notes)
    if stack.shifts:
        _shear(out, stack, fill)
    _fill_gaps(out, stack.slots)
    if inverted:
        for (image,) in memory.planes(out):
            np.subtract(low + high, image, out=image, casting="unsafe")
        notes.append("MONOCHROME1: inverted within its range, so that high values are bright")
    elif stack.planes[0].layout.inverted:
        notes.append("MONOCHROME1 is about display only: HU are as they are stored")
    return narrowed(out) if out.dtype == np.float32 else out


def _widened(array: np.ndarray) -> np.ndarray:
    """Return an array as float32."""
    out = memory.empty(array.shape, np.float32)
    memory.copy(array, out)
    return out


def _fits(raw: np.ndarray, plane: Plane) -> bool:
    """Return whether an image fits int16 when it is rescaled; slope and intercept are whole."""
    bits, signed = plane.layout.stored, plane.layout.signed
    stored_ends = (-(1 << (bits - 1)) if signed else 0, (1 << (bits - signed)) - 1)
    for low, high in (stored_ends, (int(raw.min()), int(raw.max()))):  # what the bits allow is known without a look
        ends = [value * int(plane.slope) + int(plane.intercept) for value in (low, high)]
        if _INT16.min <= min(ends) and max(ends) <= _INT16.max:
            return True
    return False


def _rescale(raw: np.ndarray, plane: Plane, out: np.ndarray) -> None:
    """Write raw * slope + intercept into `out`; where it is int16, `_fits` has been asked."""
    if out.dtype == np.int16:
        # Modulo 2^16 throughout, as the result fits: no wider copy is needed.
        factor, offset = (np.array([int(v)], np.int64).astype(np.int16)[0] for v in (plane.slope, plane.intercept))
        if factor == 1:
            np.add(raw.astype(np.int16, copy=False), offset, out=out)
        else:
            np.add(raw.astype(np.int16) * factor, offset, out=out)
    else:
        out[...] = raw * plane.slope + plane.intercept


def _see_to_padding(
    out: np.ndarray, stack: Stack, padded: list[tuple[int, bytes]], fill: float, notes: list[str]
) -> None:
    """Give padding the low end: air for CT, the lowest value of the image for others."""
    rows, columns = stack.planes[0].layout.rows, stack.planes[0].layout.columns
    total = 0
    for slot, bits in padded:
        mask = np.unpackbits(np.frombuffer(zlib.decompress(bits), np.uint8), count=rows * columns).astype(bool)
        out[slot, :rows, :columns][mask.reshape(rows, columns)] = fill
        memory.release(out[slot])
        total += int(mask.sum())
    if total:
        notes.append(f"{total} voxels are padding (PixelPaddingValue): set to {fill:g}")


def _shear(out: np.ndarray, stack: Stack, fill: float) -> None:
    """Move each image by its shift, by linear interpolation; what no image covers becomes `fill`."""
    rows, columns = stack.planes[0].layout.rows, stack.planes[0].layout.columns
    for slot, (down, right) in zip(stack.slots, stack.shifts, strict=True):
        image = out[slot, :rows, :columns].copy()
        for axis, shift in ((0, down), (1, right)):
            whole = math.floor(shift + 1e-9)
            part = max(0.0, shift - whole)
            size = list(image.shape)
            size[axis] = out.shape[1 + axis]
            moved = np.full(size, fill, np.float32)
            ahead = [slice(None), slice(None)]
            ahead[axis] = slice(whole, whole + image.shape[axis])
            moved[tuple(ahead)] = image
            if part > 1e-6:  # its neighbour on the side it moves away from weighs `part`
                behind = np.full(size, fill, np.float32)
                ahead[axis] = slice(whole + 1, whole + 1 + image.shape[axis])
                behind[tuple(ahead)] = image
                moved = (1 - part) * moved + part * behind
            image = moved
        out[slot] = image
        memory.release(out[slot])


def _fill_gaps(out: np.ndarray, slots: tuple[int, ...]) -> None:
    """Fill empty slots by linear interpolation between their neighbours."""
    for before, after in itertools.pairwise(slots):
        for slot in range(before + 1, after):
            weight = (slot - before) / (after - before)
            mixed = out[before] * np.float32(1 - weight) + out[after] * np.float32(weight)
            out[slot] = np.rint(mixed) if out.dtype == np.int16 else mixed
        memory.release(out[before : after + 1])
