"""A volume in memory: voxels of one orientation, and the way back to the grid they came from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import VolumeError, check_choice
from . import memory, values
from .grid import CANONICAL, Grid, Turn, check_spacing, grid_of
from .libraries import simpleitk

_ANISOTROPY = 10  # spacing ratio from which it is said


class Source(NamedTuple):
    """One plane of the input: the file it is in, its frame there, and its place along the input's first axis."""

    path: Path
    frame: int
    plane: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Volume:
    """Voxels with axes (D, H, W) that run to Superior, Posterior and Left, and where they came from.

    Attributes:
        array: (D, H, W), int16 where that is exact, float32 otherwise. Contiguous. A large one that was read lies in a
            file without a name (see `memory`): go through it plane by plane, and `release` what you have gone through.
        grid: size, spacing (z, y, x) in mm, origin and direction of `array`. Oblique volumes keep their cosines.
        modality: "CT", "MR", "PT", "NM", or "" where nobody said.
        unit: "HU", what the file says, or "".
        notes: what was found and done on reading, in words without patient data.
        source_grid: the input's own grid.
        turn: what brought the input's array onto `grid`.
        sources: DICOM: for each stored image its file, frame and place along the first axis of `source_grid`.
        shifts: tilted gantry: the (rows, columns) by which each of `sources` was moved on `source_grid`.
    """

    array: np.ndarray
    grid: Grid
    modality: str = ""
    unit: str = ""
    notes: tuple[str, ...] = ()
    source_grid: Grid
    turn: Turn = field(default_factory=Turn)
    sources: tuple[Source, ...] = field(default=(), repr=False)
    shifts: tuple[tuple[float, float], ...] = field(default=(), repr=False)

    def __repr__(self) -> str:  # no voxels, no path
        spacing = ", ".join(f"{s:g}" for s in self.spacing)
        kind = " ".join(part for part in (self.modality, self.unit) if part)
        return f"Volume({self.shape}, {self.array.dtype}, spacing=({spacing}) mm, {kind or 'modality not known'})"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(D, H, W)."""
        return self.grid.size

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Mm as (z, y, x)."""
        return self.grid.spacing

    @property
    def image(self) -> Any:
        """A SimpleITK image of `array` on `grid`; it copies the voxels."""
        return to_image(self.array, self.grid)

    @classmethod
    def from_array(
        cls, array: np.ndarray, *, spacing: Sequence[float], axes: str = CANONICAL, modality: str | None = None
    ) -> Volume:
        """Return the volume of an array in memory.

        Args:
            array: three axes of real numbers.
            spacing: mm for each axis of `array`.
            axes: the direction each axis of `array` runs to: one each of L/R, P/A, S/I.
            modality: "CT" (then the values are HU), "MR", or None.

        Raises:
            VolumeError: not such an array; says what was found and what is allowed.
            OptionError: `axes` or `modality` is not allowed.
        """
        check_spacing(list(spacing))
        size = np.shape(array) if np.ndim(array) == 3 else (2, 2, 2)
        mm = (float(spacing[0]), float(spacing[1]), float(spacing[2]))
        # The turn that leads from plain axes to `axes` says which way each axis of the array runs.
        plain = Grid(size=(2, 2, 2), spacing=(1.0, 1.0, 1.0)).turned(axes)[0]
        grid = Grid(size=(size[0], size[1], size[2]), spacing=mm, direction=plain.direction)
        return _from_memory(np.asarray(array), grid, modality)

    @classmethod
    def from_image(cls, image: Any, *, modality: str | None = None) -> Volume:
        """Return the volume of a SimpleITK image of any orientation.

        Args:
            image: three dimensions, one number a voxel.
            modality: "CT" (then the values are HU), "MR", or None.

        Raises:
            VolumeError: not such an image; says what was found and what is allowed.
            OptionError: `modality` is not allowed.
        """
        found = (image.GetDimension(), image.GetNumberOfComponentsPerPixel())
        if found != (3, 1):
            raise VolumeError(
                f"an image of {found[0]} dimensions and {found[1]} components is not allowed; allowed: 3 and 1. "
                "Next: take one volume of it"
            )
        direction = np.reshape(image.GetDirection(), (3, 3))
        grid, notes = grid_of(image.GetSize()[::-1], direction * image.GetSpacing(), image.GetOrigin())
        return _from_memory(simpleitk().GetArrayFromImage(image), grid, modality, notes)

    @classmethod
    def from_affine(cls, array: np.ndarray, affine: np.ndarray, *, modality: str | None = None) -> Volume:
        """Return the volume of an array as nibabel and MONAI have it.

        Args:
            array: (x, y, z), real numbers.
            affine: (4, 4), from voxels (x, y, z) to mm to the Right, Anterior, Superior.
            modality: "CT" (then the values are HU), "MR", or None.

        Raises:
            VolumeError: not such an array, or an affine that is no grid of right angles.
            OptionError: `modality` is not allowed.
        """
        found, matrix = np.asarray(array), np.asarray(affine, dtype=float)
        if found.ndim != 3 or matrix.shape != (4, 4):
            raise VolumeError(
                f"an array {found.shape} with an affine {matrix.shape} is not allowed; allowed: three axes and (4, 4). "
                "Next: take one volume, one channel"
            )
        to_lps = np.array([-1.0, -1.0, 1.0])
        steps, origin = matrix[:3, :3] * to_lps[:, None], matrix[:3, 3] * to_lps
        grid, notes = grid_of(found.shape[::-1], steps, origin, what="columns of the affine")
        return _from_memory(found.transpose(2, 1, 0), grid, modality, notes)

    def undo(self, array: np.ndarray) -> np.ndarray:
        """Return an array (..., D, H, W) of this volume's shape, such as a mask, on the input's axes, exactly.

        Raises:
            VolumeError: another shape.
        """
        self.check_shape(array)
        return _contiguous(self.turn.undo(array))

    def undone(self, array: np.ndarray, dtype: Any = None) -> Iterator[np.ndarray]:
        """Yield what `undo` gives of an array (D, H, W), a few planes of the input at a time.

        Args:
            array: of this volume's shape.
            dtype: what its numbers become, None for what they are.

        Raises:
            VolumeError: another shape.
        """
        self.check_shape(array)
        turned = self.turn.undo(array)
        step = max(1, memory.SLAB // turned[:1].nbytes)
        for start in range(0, len(turned), step):
            part = turned[start : start + step]
            out = np.empty(part.shape, dtype or array.dtype)
            memory.copy(part, out)
            yield out

    def release(self) -> None:
        """Give back the memory of voxels that were touched; they come back from the file as they are touched again."""
        memory.release(self.array)

    def undo_image(self, array: np.ndarray) -> Any:
        """Return an array (D, H, W) of this volume's shape as a SimpleITK image on the input's grid."""
        return to_image(self.undo(array), self.source_grid)

    def to_planes(self, mask: np.ndarray) -> np.ndarray:
        """Return a mask (D, H, W) as (planes, rows, columns) on the very images of `sources`, in their order.

        A tilt that was corrected is put back (nearest voxel); planes that were filled in on reading are left out.

        Raises:
            VolumeError: another shape, or a volume that did not come from DICOM.
        """
        if not self.sources:
            raise VolumeError("the volume did not come from DICOM: it has no images. Next: use undo() or write_mask()")
        undone = self.undo(mask)
        shifts = self.shifts or ((0.0, 0.0),) * len(self.sources)
        # The corrected grid is larger than an image by the largest shift, rounded up: see `stack`.
        rows = undone.shape[1] - int(np.ceil(max(dy for dy, _ in shifts) - 1e-9))
        columns = undone.shape[2] - int(np.ceil(max(dx for _, dx in shifts) - 1e-9))
        planes = memory.empty((len(self.sources), rows, columns), undone.dtype)
        for source, (dy, dx), (plane,) in zip(self.sources, shifts, memory.planes(planes), strict=True):
            y, x = round(dy), round(dx)
            plane[...] = undone[source.plane, y : y + rows, x : x + columns]
            memory.release(undone[source.plane])
        return planes

    def check_shape(self, array: np.ndarray) -> None:
        """Refuse an array that does not lie on this volume.

        Raises:
            VolumeError: its last three axes are not this volume's.
        """
        if array.shape[-3:] != self.shape:
            raise VolumeError(
                f"an array {array.shape} does not lie on this volume; allowed: (..., "
                f"{', '.join(map(str, self.shape))}). Next: bring it back with svd_hub.volume.restore()"
            )


def to_image(array: np.ndarray, grid: Grid) -> Any:
    """Return (z, y, x) voxels on a grid as a SimpleITK image, without any metadata."""
    image = simpleitk().GetImageFromArray(np.ascontiguousarray(array))
    image.SetSpacing([float(s) for s in reversed(grid.spacing)])
    image.SetOrigin([float(o) for o in grid.origin])
    image.SetDirection([float(d) for d in grid.direction])
    return image


def finish(
    array: np.ndarray,
    grid: Grid,
    *,
    modality: str = "",
    unit: str = "",
    notes: Sequence[str] = (),
    stored: np.dtype | None = None,
    sources: tuple[Source, ...] = (),
    shifts: tuple[tuple[float, float], ...] = (),
) -> Volume:
    """Return the volume of an input's voxels: checked, and brought into the canonical orientation.

    Args:
        array: (z, y, x) on `grid`, int16 or float32.
        grid: the input's own grid.
        modality: what the file or the caller says it is.
        unit: what the values are.
        notes: what was said on the way.
        stored: the type the file keeps.
        sources: see `Volume`.
        shifts: see `Volume`.

    Raises:
        VolumeError: one slice, values that are no image, or values that cannot be of that modality.
    """
    if min(array.shape) < 2:
        raise VolumeError(
            f"the input is {' x '.join(map(str, array.shape))} (z, y, x): one slice, a 2D image; allowed: a volume of "
            "at least two voxels along each axis. Next: give the whole series"
        )
    said = [*notes, *values.oddities(modality, *values.check_values(array), stored)]
    ratio = max(grid.spacing) / min(grid.spacing)
    if ratio >= _ANISOTROPY:
        said.append(f"the voxels are {ratio:.0f} times longer along one axis than along another")
    canonical, turn = grid.turned()
    if (came := grid.axes) != CANONICAL:
        said.append(f"the input's axes z, y, x run to {came}; brought to {CANONICAL}, and undone in what is written")
    return Volume(
        array=_contiguous(turn.apply(array)),
        grid=canonical,
        modality=modality,
        unit=unit,
        notes=tuple(said),
        source_grid=grid,
        turn=turn,
        sources=sources,
        shifts=shifts,
    )


def _contiguous(array: np.ndarray) -> np.ndarray:
    """Return an array (..., z, y, x) whose voxels follow each other: itself where they do."""
    if array.flags.c_contiguous:
        return array
    out = memory.empty(array.shape, array.dtype)
    memory.copy(array, out)
    return out


def _from_memory(array: np.ndarray, grid: Grid, modality: str | None, notes: Sequence[str] = ()) -> Volume:
    check_choice("modality", modality, (None, "CT", "MR"))
    if array.ndim != 3 or array.dtype.kind not in "buif" or not array.size:
        raise VolumeError(
            f"an array {array.shape} {array.dtype} is not allowed; allowed: three axes of real numbers. "
            "Next: take one volume, one channel"
        )
    raw = array.astype(np.uint8) if array.dtype.kind == "b" else array
    unit = "HU" if modality == "CT" else ""
    return finish(values.rescaled(raw, 1, 0), grid, modality=modality or "", unit=unit, notes=notes, stored=raw.dtype)
