"""Where voxels lie in the patient, and the permutations and flips that bring any grid into one orientation."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import OptionError, VolumeError

CANONICAL = "SPL"  # (z, y, x) of an image in SimpleITK's orientation "LPS": DICOM's own axes, the identity direction
_LETTERS = ("LR", "PA", "SI")  # the two directions of the patient's axes x, y, z; the first is DICOM's positive one
_SKEW = 1e-3  # cosine between two axes up to which rounding in a header explains it
_SPACINGS = (1e-3, 100.0)  # mm; outside, a header is in another unit or damaged
_IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)

Floats3 = tuple[float, float, float]
Triple = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Size and place of an array with axes (z, y, x).

    Attributes:
        size: voxels as (z, y, x).
        spacing: mm as (z, y, x).
        origin: mm of the centre of voxel (0, 0, 0), as (x, y, z) towards Left, Posterior, Superior.
        direction: the unit vectors of the axes x, y, z as the columns of a 3x3 matrix, row by row, as SimpleITK has it.
    """

    size: Triple
    spacing: Floats3
    origin: Floats3 = (0.0, 0.0, 0.0)
    direction: tuple[float, ...] = _IDENTITY

    @property
    def matrix(self) -> np.ndarray:
        """(3, 3): what one step along z, y, x (columns) is in mm to the Left, Posterior, Superior (rows)."""
        return np.reshape(self.direction, (3, 3))[:, ::-1] * np.asarray(self.spacing)

    @property
    def axes(self) -> str:
        """The letters of the directions that z, y, x run closest to, such as "SPL"."""
        return "".join(_LETTERS[world][sign < 0] for world, sign in self._closest())

    def points(self, index: np.ndarray) -> np.ndarray:
        """Return (..., 3) mm (x, y, z) of voxel coordinates (..., 3) (z, y, x), fractions allowed."""
        return np.asarray(index, dtype=float) @ self.matrix.T + self.origin

    def indices(self, points: np.ndarray) -> np.ndarray:
        """Return (..., 3) voxel coordinates (z, y, x), with fractions, of points (..., 3) in mm (x, y, z)."""
        return (np.asarray(points, dtype=float) - self.origin) @ np.linalg.inv(self.matrix).T

    def is_like(self, other: Grid, tolerance: float = 1e-3) -> bool:
        """Return whether size is the same and every corner lies within `tolerance` mm."""
        if self.size != other.size:
            return False
        corners = np.array(list(itertools.product(*((0, n - 1) for n in self.size))))
        return bool(np.abs(self.points(corners) - other.points(corners)).max() <= tolerance)

    def _closest(self) -> list[tuple[int, int]]:
        """For z, y, x: the patient's axis (0, 1, 2) each is closest to, all three different, and its sign."""
        cosines = np.reshape(self.direction, (3, 3))[:, ::-1]
        best = max(itertools.permutations(range(3)), key=lambda p: sum(abs(cosines[w, a]) for a, w in enumerate(p)))
        return [(world, 1 if cosines[world, axis] >= 0 else -1) for axis, world in enumerate(best)]

    def turned(self, axes: str = CANONICAL) -> tuple[Grid, Turn]:
        """Return the grid whose axes run closest to `axes`, and the turn that brings an array onto it.

        Only permutations and flips: no voxel is interpolated, and oblique axes keep their angles.

        Raises:
            OptionError: `axes` does not name three different axes of the patient.
        """
        wanted = []
        for letter in axes if isinstance(axes, str) else "":
            wanted += [(world, -1 if pair[1] == letter else 1) for world, pair in enumerate(_LETTERS) if letter in pair]
        if len(wanted) != 3 or sorted(world for world, _ in wanted) != [0, 1, 2]:
            raise OptionError(f"axes={axes!r} is not allowed; allowed: one each of L/R, P/A and S/I, such as 'SPL'")
        now = self._closest()
        order = [next(axis for axis, (world, _) in enumerate(now) if world == w) for w, _ in wanted]
        turn = Turn(
            order=(order[0], order[1], order[2]),
            flips=tuple(now[axis][1] != sign for axis, (_, sign) in zip(order, wanted, strict=True)),
        )
        return turn.grid(self), turn


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A permutation, then flips, of the last three axes of an array.

    Attributes:
        order: for each axis of the result, the axis of the input it comes from.
        flips: for each axis of the result, whether it runs backwards.
    """

    order: Triple = (0, 1, 2)
    flips: tuple[bool, ...] = (False, False, False)

    def apply(self, array: np.ndarray) -> np.ndarray:
        """Return a view of (..., z, y, x) in the new order."""
        lead = array.ndim - 3
        turned = array.transpose(*range(lead), *(lead + axis for axis in self.order))
        return np.flip(turned, tuple(lead + axis for axis, flip in enumerate(self.flips) if flip))

    def undo(self, array: np.ndarray) -> np.ndarray:
        """Return a view of what `apply` gave in the old order: exactly its inverse."""
        lead = array.ndim - 3
        flipped = np.flip(array, tuple(lead + axis for axis, flip in enumerate(self.flips) if flip))
        return flipped.transpose(*range(lead), *(lead + self.order.index(axis) for axis in range(3)))

    def grid(self, old: Grid) -> Grid:
        """Return the grid of the turned array."""
        steps = np.reshape(old.direction, (3, 3))[:, ::-1][:, list(self.order)]
        size = [old.size[axis] for axis in self.order]
        spacing = [old.spacing[axis] for axis in self.order]
        origin = np.asarray(old.origin, dtype=float)
        for axis, flip in enumerate(self.flips):
            if flip:
                origin = origin + steps[:, axis] * spacing[axis] * (size[axis] - 1)
        steps = np.where(self.flips, -steps, steps) + 0.0  # no -0.0
        return Grid(
            size=(size[0], size[1], size[2]),
            spacing=(spacing[0], spacing[1], spacing[2]),
            origin=(float(origin[0]), float(origin[1]), float(origin[2])),
            direction=tuple(steps[:, ::-1].ravel().tolist()),
        )


def grid_of(
    size: Sequence[int], steps: np.ndarray, origin: Sequence[float], *, what: str = "axes"
) -> tuple[Grid, list[str]]:
    """Return the grid of a header, and what had to be said of it.

    Args:
        size: voxels as (z, y, x).
        steps: (3, 3) mm to the Left, Posterior, Superior (rows) of one step along x, y, z (columns).
        origin: mm (x, y, z) of the first voxel.
        what: the header's word for its axes.

    Raises:
        VolumeError: a step of no length or of no believable length, or axes that are not at right angles.
    """
    steps, start = np.asarray(steps, dtype=float), np.asarray(origin, dtype=float)
    lengths = np.linalg.norm(steps, axis=0) if np.isfinite(steps).all() else np.zeros(3)
    check_spacing(lengths[::-1].tolist())
    if not (np.isfinite(start).all() and np.abs(start).max() < 1e6):
        raise VolumeError(f"the origin {start.tolist()} mm is not allowed; allowed: finite, within 1 km. The header is "
                          "damaged. Next: export the volume again")  # fmt: skip
    unit = steps / lengths
    skew = np.abs(unit.T @ unit - np.eye(3)).max()
    notes = []
    if skew > _SKEW:
        degrees = float(np.degrees(np.arcsin(min(1.0, skew))))
        if degrees > 1:
            raise VolumeError(
                f"the {what} of the file are {degrees:.1f} degrees off right angles (a sheared grid); allowed: up to "
                "1. Next: resample the volume to a grid of right angles with the tool that made it"
            )
        notes.append(f"the {what} were {degrees:.2f} degrees off right angles; the nearest right angles are used")
    if skew > 1e-6:  # the nearest orthonormal matrix (polar decomposition)
        left, _, right = np.linalg.svd(unit)
        unit = left @ right
    grid = Grid(
        size=(int(size[0]), int(size[1]), int(size[2])),
        spacing=(float(lengths[2]), float(lengths[1]), float(lengths[0])),
        origin=(float(start[0]), float(start[1]), float(start[2])),
        direction=tuple((unit + 0.0).ravel().tolist()),
    )
    return grid, notes


def check_spacing(spacing: Sequence[float]) -> None:
    """Refuse a spacing (z, y, x) that no scanner has.

    Raises:
        VolumeError: not positive, not finite, or outside 0.001 to 100 mm.
    """
    low, high = _SPACINGS
    if len(spacing) != 3 or not all(low <= s <= high for s in spacing):
        shown = tuple(round(float(s), 6) for s in spacing)
        raise VolumeError(
            f"the spacing {shown} mm (z, y, x) is not allowed; allowed: {low:g} to {high:g} mm. The header is damaged "
            "or in another unit. Next: correct the header where the file was made"
        )
