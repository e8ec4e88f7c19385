"""MetaImage: a text header, then voxels, plain or packed, in the same file (.mha) or beside it (.mhd).

Read here and not by SimpleITK, so that a damaged file or one that names another file cannot reach further than this.
Format: itk.org/Wiki/MetaIO/Documentation.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from ..errors import VolumeError
from . import streams
from .beside import data_file
from .grid import Grid, grid_of
from .record import Volume, finish
from .values import check_bytes, rescaled

_HEADER = 1 << 16
TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
# Several names for one thing, as MetaIO reads them.
_NAMES = {"orientation": "transformmatrix", "rotation": "transformmatrix", "position": "offset", "origin": "offset",
          "elementbyteordermsb": "binarydatabyteordermsb"}  # fmt: skip


def is_metaimage(head: bytes) -> bool:
    """Return whether bytes begin a MetaImage header."""
    return re.match(rb"\s*(ObjectType|NDims|Comment)\s*=", head) is not None and b"NDims" in head


def read_metaimage(path: Path, *, modality: str, largest: int) -> Volume:
    """Return the volume of a MetaImage file.

    Args:
        path: the file (.mha), or the header (.mhd) of one beside it.
        modality: what the caller says it is, or "".
        largest: bytes of voxels at most.

    Raises:
        VolumeError: not one 3D volume of real numbers, a damaged header, a file that is cut off, data elsewhere.
    """
    with streams.open_regular(path) as file:
        fields, offset = _fields(file.read(_HEADER))
    size = _size(fields)
    if fields.get("elementtype", "") not in TYPES:
        raise VolumeError(_damaged(f"ElementType {fields.get('elementtype', 'none')[:30]!r}"))
    order = ">" if _yes(fields, "binarydatabyteordermsb") else "<"
    dtype = np.dtype(order + TYPES[fields["elementtype"]])
    if not _yes(fields, "binarydata", default=True) or int(_numbers(fields, "headersize", "0", 1)[0]) not in (0, -1):
        raise VolumeError(
            "MetaImage voxels as text, or behind a foreign header, are not allowed. Next: save it as .mha"
        )
    scale = _numbers(fields, "elementtointensityfunctionslope", "1", 1)
    scale += _numbers(fields, "elementtointensityfunctionoffset", "0", 1)
    count = check_bytes(size, max(2, dtype.itemsize), largest) // max(2, dtype.itemsize) * dtype.itemsize
    grid, notes = _grid(fields, size)
    if (name := fields["elementdatafile"]).upper() != "LOCAL":
        path, offset = data_file(path, name), 0
    packed = int(_numbers(fields, "compresseddatasize", "-1", 1)[0])
    with streams.open_regular(path) as file:
        if fields.get("headersize", "").startswith("-1"):  # the voxels are the end of the file
            offset = max(offset, file.seek(0, 2) - count)
        raw = streams.voxels(
            file,
            offset=offset,
            shape=size,
            dtype=dtype,
            packing="zlib" if _yes(fields, "compresseddata") else "",
            packed=packed,
        )
    unit = "HU" if modality == "CT" else ""
    stored = dtype if scale == [1, 0] else None
    raw = rescaled(raw, *scale)
    return finish(raw, grid, modality=modality, unit=unit, notes=notes, stored=stored)


def _fields(head: bytes) -> tuple[dict[str, str], int]:
    """Return the fields of a header, names in lower case, and where it ends: after ElementDataFile."""
    fields: dict[str, str] = {}
    position = 0
    while (end := head.find(b"\n", position)) >= 0:
        name, equals, value = head[position:end].decode("latin-1").partition("=")
        position = end + 1
        key = re.sub(r"\s", "", name).lower()
        if equals:
            fields[_NAMES.get(key, key)] = value.strip()
        if key == "elementdatafile":
            return fields, position
    raise VolumeError(_damaged("no ElementDataFile"))


def _size(fields: dict[str, str]) -> tuple[int, int, int]:
    try:
        size = [int(n) for n in fields["dimsize"].split()]
        channels = int(fields.get("elementnumberofchannels", "1"))
        if len(size) != int(fields["ndims"]) or any(n < 1 for n in size) or not 1 <= len(size) <= 16:
            raise ValueError
    except (KeyError, ValueError):
        raise VolumeError(_damaged(f"DimSize {fields.get('dimsize', 'none')[:60]!r}")) from None
    while len(size) > 3 and size[-1] == 1:
        size.pop()
    if len(size) > 3 or channels != 1:
        raise VolumeError(
            f"the MetaImage file holds {' x '.join(map(str, size))} voxels of {channels} channels; allowed: one 3D "
            "grey volume. Next: split it (one time or channel) and give one"
        )
    size += [1] * (3 - len(size))
    return size[2], size[1], size[0]


def _grid(fields: dict[str, str], size: tuple[int, int, int]) -> tuple[Grid, list[str]]:
    """Return the grid; MetaImage's axes are DICOM's: Left, Posterior, Superior."""
    dims = int(fields["ndims"])
    if dims < 3:  # refused as one slice by `finish`, with its own words
        return Grid(size=size, spacing=(1.0, 1.0, 1.0)), []
    spacing = _numbers(fields, "elementspacing", fields.get("elementsize", "1 " * dims), dims)[:3]
    identity = " ".join("1" if r == c else "0" for r in range(dims) for c in range(dims))
    matrix = np.reshape(_numbers(fields, "transformmatrix", identity, dims * dims), (dims, dims))[:3, :3]
    origin = _numbers(fields, "offset", "0 " * dims, dims)[:3]
    return grid_of(size, matrix.T * np.asarray(spacing), origin, what="TransformMatrix")  # its rows are the axes


def _numbers(fields: dict[str, str], name: str, default: str, count: int) -> list[float]:
    text = fields.get(name, default)
    try:
        found = [float(n) for n in text.split()]
    except ValueError:
        found = []
    if len(found) != count or not np.isfinite(found).all():
        raise VolumeError(_damaged(f"{name} {text[:60]!r}"))
    return found


def _yes(fields: dict[str, str], name: str, *, default: bool = False) -> bool:
    return fields[name][:1].upper() in ("T", "1") if fields.get(name) else default


def _damaged(what: str) -> str:
    return f"the MetaImage header is damaged: {what} is not allowed. Next: copy the file again, or export it again"
