"""What stands before the voxels in each format that is written: the type of the voxels, the grid, and nothing else.

Layouts: nifti1.h of NIfTI-1.1, teem.sourceforge.net/nrrd/format.html, itk.org/Wiki/MetaIO/Documentation.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

import numpy as np

from ..errors import VolumeError
from . import metaimage as metaimages
from . import nifti as niftis
from . import nrrd as nrrds
from .grid import Grid

_NIFTI = {kind: number for number, kind in niftis.TYPES.items()}
_NRRD = {kind: names.partition("|")[0] for kind, names in nrrds.TYPES.items()}
_META = {kind: name for name, kind in metaimages.TYPES.items()}
_LONGEST = 32767  # voxels along an axis: NIfTI-1 counts in 16 bits
_MM, _SCANNER = 2, 1  # NIFTI_UNITS_MM, NIFTI_XFORM_SCANNER_ANAT


def nifti(grid: Grid, dtype: np.dtype) -> bytes:
    """Return the header of a NIfTI-1 file, little-endian, the grid in its sform and in its qform.

    Args:
        grid: where the voxels lie.
        dtype: of the voxels.

    Raises:
        VolumeError: an axis longer than the format allows.
    """
    if max(grid.size) > _LONGEST:
        raise VolumeError(f"{max(grid.size)} voxels along an axis are not allowed in NIfTI-1; allowed: {_LONGEST}. "
                          "Next: give a name that ends in .nrrd")  # fmt: skip
    turn = np.reshape(grid.direction, (3, 3)) * niftis.TO_LPS[:, None]  # the signs are their own inverse
    spacing, origin = grid.spacing[::-1], np.asarray(grid.origin) * niftis.TO_LPS
    sform = np.column_stack([turn * spacing, origin])
    handed = -1.0 if np.linalg.det(turn) < 0 else 1.0  # qfac: a quaternion cannot say it
    quaternion = _quaternion(turn * (1.0, 1.0, handed))
    values: dict[str, Iterable[float]] = {
        "dim": (3, *grid.size[::-1], 1, 1, 1, 1),
        "datatype": (_NIFTI[dtype.str[1:]],),
        "bitpix": (8 * dtype.itemsize,),
        "pixdim": (handed, *spacing, 0, 0, 0, 0),
        "vox_offset": (352,),
        "scale": (1, 0),
        "xyzt_units": (_MM,),
        "codes": (_SCANNER, _SCANNER),
        "quaternion": (*quaternion, *origin),
        "sform": sform.ravel(),
    }
    head = bytearray(352)  # 348, and four bytes that say: no extension
    struct.pack_into("<i", head, 0, 348)
    head[344:348] = b"n+1\0"
    for name, numbers in values.items():
        offset, form = niftis.FIELDS[name][0]
        struct.pack_into("<" + form, head, offset, *numbers)
    return bytes(head)


def nrrd(grid: Grid, dtype: np.dtype) -> bytes:
    """Return the header of an NRRD file whose voxels are a gzip stream; arguments as in `nifti`."""
    steps = (np.reshape(grid.direction, (3, 3)) * grid.spacing[::-1]).T.tolist()
    vectors = [f"({_text(vector, ',')})" for vector in [*steps, grid.origin]]
    lines = [
        "NRRD0004",
        f"type: {_NRRD[dtype.str[1:]]}",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {_text(grid.size[::-1])}",
        f"space directions: {' '.join(vectors[:3])}",
        "kinds: domain domain domain",
        "endian: little",
        "encoding: gzip",
        f"space origin: {vectors[3]}",
    ]
    return "\n".join([*lines, "", ""]).encode()


def metaimage(grid: Grid, dtype: np.dtype, packed: int = 0) -> bytes:
    """Return the header of a MetaImage file, of one length for any `packed`: the bytes of its zlib stream.

    Other arguments as in `nifti`.
    """
    lines = [
        "ObjectType = Image",
        "NDims = 3",
        "BinaryData = True",
        "BinaryDataByteOrderMSB = False",
        "CompressedData = True",
        f"CompressedDataSize = {packed:20d}",
        f"TransformMatrix = {_text(np.reshape(grid.direction, (3, 3)).T.ravel().tolist())}",  # its rows are the axes
        f"Offset = {_text(grid.origin)}",
        "CenterOfRotation = 0 0 0",
        f"ElementSpacing = {_text(grid.spacing[::-1])}",
        f"DimSize = {_text(grid.size[::-1])}",
        f"ElementType = {_META[dtype.str[1:]]}",
        "ElementDataFile = LOCAL",
    ]
    return "\n".join([*lines, ""]).encode()


def _text(numbers: Iterable[float], between: str = " ") -> str:
    return between.join(f"{number:.17g}" for number in numbers)


def _quaternion(turn: np.ndarray) -> tuple[float, float, float]:
    """Return (b, c, d) of the quaternion (a, b, c, d), a >= 0, of a rotation (3, 3): nifti1.h, "METHOD 2"."""
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = turn.tolist()
    products = np.array(  # 4 q q^T: any of its rows is the quaternion times a number; the longest is the most exact
        [
            [1 + xx + yy + zz, zy - yz, xz - zx, yx - xy],
            [zy - yz, 1 + xx - yy - zz, yx + xy, xz + zx],
            [xz - zx, yx + xy, 1 - xx + yy - zz, zy + yz],
            [yx - xy, xz + zx, zy + yz, 1 - xx - yy + zz],
        ]
    )
    row = products[int(np.argmax(np.diag(products)))]
    _, b, c, d = (row / np.linalg.norm(row) * (-1.0 if row[0] < 0 else 1.0)).tolist()
    return b, c, d
