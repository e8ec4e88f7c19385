"""Volumes on another spacing, and masks and probabilities back on the first."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from ..errors import VolumeError, check_choice
from .grid import Grid, Turn, check_spacing
from .libraries import simpleitk
from .record import Volume, to_image

_ORDERS = {"nearest": "sitkNearestNeighbor", "linear": "sitkLinear", "bspline": "sitkBSpline"}


def resample(
    volume: Volume, spacing: Sequence[float], *, order: str = "linear", antialias: bool = False, exact: bool = False
) -> Volume:
    """Return a volume on another spacing.

    Args:
        volume: what `read` gave.
        spacing: mm as (z, y, x).
        order: "nearest", "linear" or "bspline" (cubic; it can go beyond the values it is between).
        antialias: smooth each axis that becomes coarser before, with the Gaussian whose width at half maximum is
            sqrt(new^2 - old^2) mm (Cardoso et al. 2015, "Scale factor point spread function matching").
        exact: False keeps the outer edges of the volume, as torch's `interpolate` does: the spacing comes out as near
            to `spacing` as whole voxels allow. True keeps the first voxel's centre and the spacing exactly, and leaves
            out what is left at the far end.

    Returns:
        Volume: float32 (the type of `volume` for "nearest"); `undo` is not for it: bring results back with `restore`.

    Raises:
        OptionError: `order` is not allowed.
        VolumeError: `spacing` is not allowed, or leaves less than two voxels along an axis.
    """
    check_choice("order", order, tuple(_ORDERS))
    check_spacing(list(spacing))
    old = volume.grid
    grid = _grid(old, spacing, exact)
    if min(grid.size) < 2:
        raise VolumeError(
            f"{tuple(spacing)} mm leaves {grid.size} voxels of {old.size} at {old.spacing} mm; allowed: two along each "
            "axis"
        )
    array = volume.array
    if order != "nearest":
        array = array.astype(np.float32)
        if antialias:
            array = _smoothed(array, old, grid.spacing)
    return dataclasses.replace(
        volume,
        array=_moved(array, old, grid, order),
        grid=grid,
        source_grid=grid,
        turn=Turn(),
        sources=(),
        shifts=(),
        notes=(*volume.notes, f"resampled to {', '.join(f'{s:.4g}' for s in grid.spacing)} mm ({order})"),
    )


def restore(array: np.ndarray, *, of: Volume, to: Volume, order: str = "nearest") -> np.ndarray:
    """Return an array that lies on one volume on another of the same patient, such as the one before `resample`.

    Args:
        array: (..., D, H, W) on `of`: labels, or probabilities.
        of: where it lies, such as what `resample` gave.
        to: where it goes, such as what was resampled.
        order: "nearest" for labels, "linear" or "bspline" for probabilities (then float32).

    Raises:
        OptionError: `order` is not allowed.
        VolumeError: `array` does not lie on `of`.
    """
    check_choice("order", order, tuple(_ORDERS))
    of.check_shape(array)
    lead = array.shape[:-3]
    kind = array.dtype if order == "nearest" else np.dtype(np.float32)
    out = np.empty((math.prod(lead), *to.shape), kind)
    for k, part in enumerate(array.reshape(-1, *of.shape)):
        part = part.astype(np.uint8) if part.dtype.kind == "b" else part if order == "nearest" else part.astype(kind)
        out[k] = _moved(part, of.grid, to.grid, order)
    return out.reshape(*lead, *to.shape)


def _grid(old: Grid, spacing: Sequence[float], exact: bool) -> Grid:
    if exact:
        size = [int((n - 1) * s / t + 1e-6) + 1 for n, s, t in zip(old.size, old.spacing, spacing, strict=True)]
        mm, corner = [float(t) for t in spacing], np.zeros(3)
    else:
        size = [max(1, round(n * s / t)) for n, s, t in zip(old.size, old.spacing, spacing, strict=True)]
        mm = [n * s / m for n, s, m in zip(old.size, old.spacing, size, strict=True)]
        corner = np.array([(m / s - 1) / 2 for m, s in zip(mm, old.spacing, strict=True)])  # of the new first voxel
    origin = old.points(corner)
    return dataclasses.replace(
        old,
        size=(size[0], size[1], size[2]),
        spacing=(mm[0], mm[1], mm[2]),
        origin=(float(origin[0]), float(origin[1]), float(origin[2])),
    )


def _moved(array: np.ndarray, old: Grid, new: Grid, order: str) -> np.ndarray:
    """Return (z, y, x) of one grid on another; a place outside takes the nearest edge within half a voxel, 0 beyond."""
    sitk = simpleitk()
    image = to_image(array, old)
    size, origin = [int(n) for n in reversed(new.size)], [float(o) for o in new.origin]
    mm, direction = [float(s) for s in reversed(new.spacing)], [float(d) for d in new.direction]
    kind = getattr(sitk, _ORDERS[order])
    moved = sitk.Resample(image, size, sitk.Transform(), kind, origin, mm, direction, 0.0, image.GetPixelID())
    return sitk.GetArrayFromImage(moved)


def _smoothed(array: np.ndarray, grid: Grid, spacing: Sequence[float]) -> np.ndarray:
    sitk = simpleitk()
    width = [math.sqrt(max(0.0, t * t - s * s)) for s, t in zip(grid.spacing, spacing, strict=True)]  # at half maximum
    variance = [(w / (2 * math.sqrt(2 * math.log(2)))) ** 2 for w in reversed(width)]  # mm^2, as (x, y, z)
    return sitk.GetArrayFromImage(sitk.DiscreteGaussian(to_image(array, grid), variance, 64, 0.001, True))
