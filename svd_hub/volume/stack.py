"""Images of a series in their order, as one grid: finds duplicates, gaps, mixed spacing and a tilted gantry."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import VolumeError
from .dicom import Header, Plane, told_apart
from .frames import same_pixels
from .grid import Grid, grid_of

_PLACE = 0.01  # mm closer than which two images lie at one place
_EVEN = 0.05  # of the spacing: jitter of positions that rounding in headers explains
_TURN = 1e-3  # cosines of two images up to which they are parallel
_SHIFT = 0.1  # pixels of sideways shift over the whole series below which a gantry is not called tilted


@dataclass(frozen=True, kw_only=True)
class Stack:
    """The images of one volume.

    Attributes:
        planes: in their order along the normal of the images, without duplicates.
        slots: the place of each along the first axis of `grid`.
        grid: axes (z, y, x): along the normal, down the columns, along the rows.
        shifts: tilted gantry: (rows, columns) in pixels by which each plane lies off the grid's corner; else empty.
        notes: what was found.
    """

    planes: tuple[Plane, ...]
    slots: tuple[int, ...]
    grid: Grid
    shifts: tuple[tuple[float, float], ...] = ()
    notes: tuple[str, ...] = ()


def stack(headers: Sequence[Header], *, missing: str = "refuse") -> Stack:
    """Return the images of one series as one volume.

    Args:
        headers: its files.
        missing: "refuse" gaps, or "fill" them by linear interpolation.

    Raises:
        VolumeError: images that are no volume; says which, by their instance numbers, and what to do.
    """
    notes: list[str] = []
    if scouts := sum(header.localizer for header in headers):
        if scouts == len(headers):
            raise VolumeError(
                "the series holds localizers (scouts) alone; allowed: a volume. Next: give another series"
            )
        headers = [header for header in headers if not header.localizer]
        notes.append(f"{scouts} localizer image(s) of the series left out")
    if faults := [header.fault for header in headers if header.fault]:
        more = f" ({len(faults)} files of {len(headers)})" if len(headers) > 1 else ""
        raise VolumeError(f"{faults[0]}{more}")
    planes = [plane for header in headers for plane in header.planes]
    references = {header.reference for header in headers}
    _check_alike(planes, references)
    row, column, normal = _axes(planes[0])
    where = np.array([plane.position for plane in planes]) @ normal
    order = np.argsort(where, kind="stable")
    planes, where = [planes[k] for k in order], where[order]
    planes, where = _without_duplicates(planes, where, notes)
    if len(planes) < 2:
        raise VolumeError(
            "the series is one slice, a 2D image; allowed: a volume of at least two. Next: give the whole series"
        )
    spacing, slots = _spacing(planes, where, missing, notes)
    steps = np.stack([row * planes[0].spacing[1], column * planes[0].spacing[0], normal * spacing], axis=1)
    size = (slots[-1] + 1, planes[0].layout.rows, planes[0].layout.columns)
    grid, said = grid_of(size, steps, planes[0].position, what="rows and columns")
    notes += said
    shifts, grid = _tilt(planes, where, grid, notes)
    if len({(plane.slope, plane.intercept) for plane in planes}) > 1:
        notes.append("the images have rescale slopes or intercepts of their own; each is read with its own")
    return Stack(planes=tuple(planes), slots=slots, grid=grid, shifts=shifts, notes=tuple(notes))


def _check_alike(planes: Sequence[Plane], references: set[str]) -> None:
    """Refuse images that are not parallel, of one size, one pixel spacing and one frame of reference."""
    if not planes:
        raise VolumeError("the series holds no image; allowed: CT or MR images. Next: give another series")
    if bare := [plane for plane in planes if not (plane.position and plane.orientation and plane.spacing)]:
        raise VolumeError(
            f"{len(bare)} of {len(planes)} images do not say where they lie (ImagePositionPatient, "
            "ImageOrientationPatient, PixelSpacing); allowed: images with all three. Next: give the original series, "
            "or a NIfTI, NRRD or MHA file"
        )
    first = planes[0]
    _one_of("sizes", [(plane.layout.rows, plane.layout.columns) for plane in planes])
    _one_of("pixel spacings", [tuple(round(s, 4) for s in plane.spacing) for plane in planes])
    _one_of("units", [plane.unit for plane in planes])
    _one_of("kinds of MONOCHROME", [1 if plane.layout.inverted else 2 for plane in planes])
    if len(references) > 1:
        raise VolumeError(
            f"the series has {len(references)} frames of reference: its images do not lie in one space; allowed: one. "
            "Next: give each acquisition in a folder of its own"
        )
    turns = np.array([plane.orientation for plane in planes])
    if not np.abs(np.linalg.norm(turns.reshape(-1, 2, 3), axis=2) - 1).max() < 0.01:
        raise VolumeError("the DICOM header is damaged: an ImageOrientationPatient that is no direction")
    if off := int((np.abs(turns - first.orientation).max(axis=1) > _TURN).sum()):
        raise VolumeError(
            f"{off} of {len(planes)} images are turned against the first (several orientations in one series); "
            "allowed: parallel images. Next: give each orientation in a folder of its own"
        )


def _axes(plane: Plane) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the unit vectors along the rows, down the columns, and of the normal."""
    row, column = (axis / np.linalg.norm(axis) for axis in np.reshape(plane.orientation, (2, 3)))
    normal = np.cross(row, column)
    if not (length := float(np.linalg.norm(normal))) > 0.99:
        raise VolumeError("the DICOM header is damaged: an ImageOrientationPatient whose axes are at no right angle")
    return row, column, normal / length


def _one_of(what: str, values: Sequence[object]) -> None:
    if len(found := sorted(set(map(str, values)))) > 1:
        shown = ", ".join(found[:4])
        raise VolumeError(
            f"the images of the series have {len(found)} {what}: {shown}; allowed: one. "
            "Next: give each kind in a folder of its own"
        )


def _without_duplicates(planes: list[Plane], where: np.ndarray, notes: list[str]) -> tuple[list[Plane], np.ndarray]:
    """Leave out images that are stored twice; refuse different images at one place.

    Two images lie at one place where their origins do: of a tilted gantry too, no two share the place along the normal.
    """
    kept = [0]
    for k in range(1, len(planes)):
        if where[k] - where[kept[-1]] > _PLACE:
            kept.append(k)
            continue
        one, other = planes[kept[-1]], planes[k]
        if (one.slope, one.intercept) == (other.slope, other.intercept) and same_pixels(one, other):
            continue
        apart = told_apart(one, other)
        places = len({round(float(p) / _PLACE) for p in where})
        raise VolumeError(
            f"images {one.number} and {other.number} are different images at one place ({len(planes)} images, {places} "
            f"places): several times, echoes or reconstructions (4D); they differ in {', '.join(apart) or 'pixels'}; "
            "allowed: one image at each place. Next: give each in a folder of its own"
        )
    if twice := len(planes) - len(kept):
        notes.append(f"{twice} image(s) were there twice; one of each is used")
    return [planes[k] for k in kept], where[kept]


def _spacing(
    planes: Sequence[Plane], where: np.ndarray, missing: str, notes: list[str]
) -> tuple[float, tuple[int, ...]]:
    """Return mm between slices and the slot of each plane; say or refuse gaps."""
    gaps = np.diff(where)
    count = len(planes)
    mean = float(where[-1] - where[0]) / (count - 1)
    off = float(np.abs(where - where[0] - mean * np.arange(count)).max())
    if off <= max(_EVEN * mean, _PLACE):
        if off > 2 * _PLACE:
            notes.append(f"slices lie up to {off:.2f} mm off even places, {mean:.4g} mm apart; read as even")
        return mean, tuple(range(count))
    step = float(np.median(gaps[gaps <= gaps.min() * (1 + 2 * _EVEN)]))
    step = float(gaps.sum() / np.rint(gaps / step).sum())
    steps = np.rint(gaps / step).astype(int)
    slots = np.concatenate([[0], np.cumsum(steps)])
    if np.abs(where - where[0] - step * slots).max() > max(2 * _EVEN * step, _PLACE):
        raise VolumeError(
            f"the slices are {gaps.min():.3g} to {gaps.max():.3g} mm apart (mixed spacing); allowed: even spacing. "
            "Next: give each part in a folder of its own, or an evenly resampled volume"
        )
    lost, wide = int(steps.sum()) + 1 - count, int((steps > 1).sum())
    if not lost:
        notes.append(f"slices lie up to {off:.2f} mm off even places, {mean:.4g} mm apart; read as even")
        return mean, tuple(range(count))
    first = int(np.flatnonzero(steps > 1)[0])
    what = (
        f"{lost} slice(s) are missing in {wide} place(s)"
        if 2 * wide < len(steps) and lost <= count
        else f"the slices are {gaps.min():.3g} to {gaps.max():.3g} mm apart (mixed spacing)"
    )
    at = f"the first between images {planes[first].number} and {planes[first + 1].number}"
    if missing != "fill":
        raise VolumeError(
            f"{what}, {at}; allowed: even spacing. Next: copy the series again, or fill the gaps by interpolation "
            "(missing='fill')"
        )
    if lost > count:
        raise VolumeError(
            f"{what}: {lost} slices would be invented for {count}; allowed: fewer. Next: copy the series again"
        )
    notes.append(f"{what}, {at}; {lost} slice(s) at {step:.4g} mm were filled in by linear interpolation")
    return step, tuple(int(s) for s in slots)


def _tilt(
    planes: Sequence[Plane], where: np.ndarray, grid: Grid, notes: list[str]
) -> tuple[tuple[tuple[float, float], ...], Grid]:
    """Return the shift of each plane on a grid of right angles that holds them all, and that grid."""
    place = grid.indices(np.array([plane.position for plane in planes]))[:, 1:]  # rows, columns off the first image
    if np.abs(place).max() <= _SHIFT:
        return (), grid
    along = (where - where[0])[:, None]
    slope = (along * place).sum(axis=0) / (along**2).sum()
    if np.abs(place - along * slope).max() > max(_SHIFT, 0.02 * np.abs(place).max()):
        raise VolumeError(
            "the images are shifted sideways against each other, unevenly; allowed: a straight stack, or an evenly "
            "tilted one. Next: give each acquisition in a folder of its own"
        )
    place = place - place.min(axis=0)
    corner = grid.points(np.array([0.0, *(grid.indices(np.array([p.position for p in planes]))[:, 1:].min(axis=0))]))
    more = np.ceil(place.max(axis=0) - 1e-9).astype(int)
    size = (grid.size[0], grid.size[1] + int(more[0]), grid.size[2] + int(more[1]))
    degrees = float(np.degrees(np.arctan(np.linalg.norm(slope * grid.spacing[1:]))))
    notes.append(
        f"tilted gantry, {degrees:.1f} degrees: slices shifted (linear interpolation) onto a grid of right angles, "
        f"{size[1]} x {size[2]} instead of {grid.size[1]} x {grid.size[2]}; results are on that grid"
    )
    origin = (float(corner[0]), float(corner[1]), float(corner[2]))
    return tuple((float(y), float(x)) for y, x in place), dataclasses.replace(grid, size=size, origin=origin)
