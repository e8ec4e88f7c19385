"""NIfTI-1 and NIfTI-2 in one file, plain or gzipped.

Read here and not by SimpleITK, which gives the missing half of a file that is cut off as zeros and sees no damaged
check sum. Layout and the two transforms: nifti1.h of NIfTI-1.1 and nifti2.h (NIfTI Data Format Working Group).
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import VolumeError
from . import streams
from .grid import Grid, grid_of
from .record import Volume, finish
from .values import check_bytes, rescaled

TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
_NOT_GREY = {32: "complex", 1792: "complex", 2048: "complex", 128: "RGB colour", 2304: "RGBA colour", 1: "one-bit"}
_UNITS = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # xyzt_units: not said (mm by custom), metre, mm, micrometre
TO_LPS = np.array([-1.0, -1.0, 1.0])  # NIfTI's x and y run to Right and Anterior
# name: (offset, struct format) in NIfTI-1 and in NIfTI-2
FIELDS = {
    "dim": ((40, "8h"), (16, "8q")),
    "datatype": ((70, "h"), (12, "h")),
    "bitpix": ((72, "h"), (14, "h")),
    "pixdim": ((76, "8f"), (104, "8d")),
    "vox_offset": ((108, "f"), (168, "q")),
    "scale": ((112, "2f"), (176, "2d")),
    "xyzt_units": ((123, "B"), (500, "i")),
    "codes": ((252, "2h"), (344, "2i")),
    "quaternion": ((256, "6f"), (352, "6d")),
    "sform": ((280, "12f"), (400, "12d")),
}


def is_nifti(head: bytes) -> bool:
    """Return whether bytes begin a NIfTI file, one of a header and image pair included."""
    return head[344:348] in (b"n+1\0", b"ni1\0") or head[4:8] in (b"n+2\0", b"ni2\0")


def read_nifti(path: Path, head: bytes, *, packed: bool, modality: str, largest: int) -> Volume:
    """Return the volume of a NIfTI file.

    Args:
        path: the file.
        head: its first unpacked bytes, 540 or more.
        packed: whether it is gzip.
        modality: what the caller says it is, or "".
        largest: bytes of voxels at most.

    Raises:
        VolumeError: not one 3D volume of real numbers, a damaged header, a file that is cut off.
    """
    fields = _fields(head)
    size = _size(fields["dim"])
    code = fields["datatype"][0]
    if code not in TYPES:
        kind = _NOT_GREY.get(code, f"number {code}")
        raise VolumeError(
            f"the voxels of the NIfTI file are of the type {kind}; allowed: integers and real numbers. "
            "Next: export one grey volume"
        )
    dtype = np.dtype(fields["order"] + TYPES[code])
    if fields["bitpix"][0] != 8 * dtype.itemsize:
        raise VolumeError(_damaged(f"bitpix {fields['bitpix'][0]} beside a type of {8 * dtype.itemsize} bits"))
    first = 352 if fields["version"] == 1 else 544
    offset = fields["vox_offset"][0] or first
    if not (np.isfinite(offset) and float(offset).is_integer() and first <= offset < 2**31):
        raise VolumeError(_damaged(f"vox_offset {offset:g}"))
    check_bytes(size, max(2, dtype.itemsize), largest)
    grid, notes = _grid(fields, size)
    slope, intercept = fields["scale"]
    if not np.isfinite([slope, intercept]).all() or slope == 0:
        slope, intercept = 1.0, 0.0  # "if scl_slope is 0, the values are not scaled"; nibabel writes NaN for that
    with streams.open_regular(path) as file:
        raw = streams.voxels(file, offset=int(offset), shape=size, dtype=dtype, packing="file" if packed else "")
    unscaled = (slope, intercept) == (1, 0)
    raw = rescaled(raw, slope, intercept)
    return finish(
        raw,
        grid,
        modality=modality,
        unit="HU" if modality == "CT" else "",
        notes=notes,
        stored=dtype if unscaled else None,
    )


def _fields(head: bytes) -> dict[str, Any]:
    """Return the values of a header, its byte order and its version."""
    for version, length in ((1, 348), (2, 540)):
        for order in "<>":
            if len(head) >= length and struct.unpack_from(order + "i", head)[0] == length:
                if head[344:347] == b"ni1" or head[4:7] == b"ni2":
                    raise VolumeError(
                        "the file is the header of a NIfTI pair (.hdr and .img); allowed: one file. "
                        "Next: save it as .nii or .nii.gz"
                    )
                places = {name: both[version - 1] for name, both in FIELDS.items()}
                found = {name: struct.unpack_from(order + kind, head, at) for name, (at, kind) in places.items()}
                return {**found, "order": order, "version": version}
    raise VolumeError(_damaged("sizeof_hdr is neither 348 nor 540"))


def _size(dim: tuple[int, ...]) -> tuple[int, int, int]:
    """Return (z, y, x) of the `dim` of a header."""
    if not 1 <= dim[0] <= 7 or any(n < 1 for n in dim[1 : dim[0] + 1]):
        raise VolumeError(_damaged(f"dim {list(dim)}"))
    shape = [*dim[1 : dim[0] + 1], 1, 1][: max(3, dim[0])]
    if any(n > 1 for n in shape[3:]):
        raise VolumeError(
            f"the NIfTI file holds {' x '.join(map(str, shape))} voxels, {len(shape)}D: several volumes; allowed: one "
            "3D volume. Next: split it (one time, echo or channel) and give one"
        )
    return shape[2], shape[1], shape[0]


def _grid(fields: dict[str, Any], size: tuple[int, int, int]) -> tuple[Grid, list[str]]:
    """Return the grid, and what had to be said: sform before qform, as nifti1.h and nibabel have it."""
    unit = _UNITS.get(int(fields["xyzt_units"][0]) & 7)
    if unit is None:
        raise VolumeError(_damaged(f"xyzt_units {fields['xyzt_units'][0]}"))
    notes = [] if unit == 1 else ["the header's lengths were not in mm and are converted"]
    scale = unit * TO_LPS
    qform, sform = (code > 0 for code in fields["codes"])
    if sform:
        rows = np.reshape(fields["sform"], (3, 4)) * scale[:, None]
        try:
            grid, said = grid_of(size, rows[:, :3], rows[:, 3].tolist(), what="axes of the sform")
        except VolumeError:
            if not qform:
                raise
            notes.append("the sform of the header is not usable; the qform is used")
        else:
            if qform and not grid.is_like(_qform(fields, size, scale)[0], tolerance=0.5 * min(grid.spacing)):
                notes.append("the sform and the qform of the header disagree; the sform is used")
            return grid, [*notes, *said]
    if qform:
        grid, said = _qform(fields, size, scale)
        return grid, [*notes, *said]
    spacing = np.abs(np.asarray(fields["pixdim"][1:4], dtype=float)) * unit
    grid, said = grid_of(size, np.diag(spacing), (0.0, 0.0, 0.0))
    notes.append("the file does not say how it lies in the patient: x, y, z are taken as Left, Posterior, Superior")
    return grid, [*notes, *said]


def _qform(fields: dict[str, Any], size: tuple[int, int, int], scale: np.ndarray) -> tuple[Grid, list[str]]:
    """Return the grid of the header's quaternion (nifti1.h, "METHOD 2")."""
    b, c, d, *origin = (float(v) for v in fields["quaternion"])
    rest = 1.0 - (b * b + c * c + d * d)
    if not rest > -1e-3:
        raise VolumeError(_damaged(f"a quaternion ({b:g}, {c:g}, {d:g}) longer than 1"))
    a = np.sqrt(max(rest, 0.0))
    turn = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    lengths = np.abs(np.asarray(fields["pixdim"][1:4], dtype=float))
    lengths[2] *= -1.0 if fields["pixdim"][0] < 0 else 1.0  # qfac
    steps = turn * lengths * scale[:, None]
    return grid_of(size, steps, (np.asarray(origin) * scale).tolist(), what="axes of the qform")


def _damaged(what: str) -> str:
    return f"the NIfTI header is damaged: {what} is not allowed. Next: copy the file again, or export it again"
