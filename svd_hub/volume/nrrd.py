"""NRRD: a text header, then voxels, plain or gzipped, in the same file or beside it (.nhdr).

Read here and not by SimpleITK, so that a damaged file or one that names another file cannot reach further than this.
Format: teem.sourceforge.net/nrrd/format.html.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np

from ..errors import VolumeError
from . import streams
from .beside import data_file
from .grid import Grid, grid_of
from .record import Volume, finish
from .values import check_bytes, rescaled

_HEADER = 1 << 20  # bytes a header may have: key/value pairs of other tools can be long
TYPES = {
    "i1": "signed char|int8|int8_t",
    "u1": "uchar|unsigned char|uint8|uint8_t",
    "i2": "short|short int|signed short|signed short int|int16|int16_t",
    "u2": "ushort|unsigned short|unsigned short int|uint16|uint16_t",
    "i4": "int|signed int|int32|int32_t",
    "u4": "uint|unsigned int|uint32|uint32_t",
    "i8": "longlong|long long|long long int|signed long long|signed long long int|int64|int64_t",
    "u8": "ulonglong|unsigned long long|unsigned long long int|uint64|uint64_t",
    "f4": "float",
    "f8": "double",
}
_CODES = {name: code for code, names in TYPES.items() for name in names.split("|")}
_SPACES = {  # the signs that bring a space to Left, Posterior, Superior
    "left-posterior-superior": (1, 1, 1),
    "lps": (1, 1, 1),
    "right-anterior-superior": (-1, -1, 1),
    "ras": (-1, -1, 1),
    "left-anterior-superior": (1, -1, 1),
    "las": (1, -1, 1),
}


def read_nrrd(path: Path, *, modality: str, largest: int) -> Volume:
    """Return the volume of an NRRD file.

    Args:
        path: the file, or the header (.nhdr) of one beside it.
        modality: what the caller says it is, or "".
        largest: bytes of voxels at most.

    Raises:
        VolumeError: not one 3D volume of real numbers, a damaged header, a file that is cut off, data elsewhere.
    """
    with streams.open_regular(path) as file:
        fields, offset = _fields(file.read(_HEADER))
    size = _size(fields)
    code = _CODES.get(fields.get("type", "").lower())
    if code is None:
        raise VolumeError(_damaged(f"type {fields.get('type', 'none')!r}"))
    packing = {"raw": "", "gzip": "gzip", "gz": "gzip"}.get(fields.get("encoding", "").lower())
    if packing is None:
        raise VolumeError(
            f"the NRRD encoding {fields.get('encoding', 'none')!r} is not allowed; allowed: raw, gzip. "
            "Next: save it again as .nrrd"
        )
    if int(code[1]) > 1 and fields.get("endian", "").lower() not in ("little", "big"):
        raise VolumeError(_damaged(f"endian {fields.get('endian', 'none')!r}"))
    dtype = np.dtype(("<" if fields.get("endian", sys.byteorder).lower() == "little" else ">") + code)
    count = check_bytes(size, max(2, dtype.itemsize), largest) // max(2, dtype.itemsize) * dtype.itemsize
    grid, notes = _grid(fields, size)
    if name := fields.get("data file", fields.get("datafile", "")):
        path, offset = data_file(path, name), 0
    if fields.get("line skip", "0") != "0" or fields.get("byte skip", "0") not in ("0", "-1"):
        raise VolumeError(
            "NRRD data that begin after other lines or bytes are not allowed. Next: save it again as .nrrd"
        )
    with streams.open_regular(path) as file:
        if fields.get("byte skip") == "-1" and not packing:  # the voxels are the end of the file
            offset = max(offset, file.seek(0, 2) - count)
        raw = streams.voxels(file, offset=offset, shape=size, dtype=dtype, packing=packing)
    unit = "HU" if modality == "CT" else ""
    raw = rescaled(raw, 1, 0)
    return finish(raw, grid, modality=modality, unit=unit, notes=notes, stored=dtype)


def _fields(head: bytes) -> tuple[dict[str, str], int]:
    """Return the fields of a header, names in lower case, and where it ends."""
    end = re.search(rb"\r?\n\r?\n", head)
    if end is None and len(head) >= _HEADER:
        raise VolumeError(_damaged(f"no end within {_HEADER} bytes"))
    text = (head[: end.start()] if end else head).decode("latin-1")
    fields: dict[str, str] = {}
    for line in text.splitlines()[1:]:
        name, colon, value = line.partition(":")
        if not line.startswith("#") and colon and not value.startswith("="):  # ":=" is a key of somebody's own
            fields[name.strip().lower()] = value.strip()
    return fields, end.end() if end else len(head)


def _size(fields: dict[str, str]) -> tuple[int, int, int]:
    try:
        size = [int(n) for n in fields["sizes"].split()]
        if len(size) != int(fields["dimension"]) or any(n < 1 for n in size) or not 1 <= len(size) <= 16:
            raise ValueError
    except (KeyError, ValueError):
        raise VolumeError(_damaged(f"sizes {fields.get('sizes', 'none')!r}")) from None
    if len(size) != 3 or any(kind in fields.get("kinds", "").lower() for kind in ("color", "vector", "list", "matrix")):
        raise VolumeError(
            f"the NRRD file holds {' x '.join(map(str, size))} numbers of the kinds "
            f"{fields.get('kinds', 'not said')!r}; allowed: one 3D grey volume. Next: split it (one time or channel) "
            "and give one"
        )
    return size[2], size[1], size[0]


def _grid(fields: dict[str, str], size: tuple[int, int, int]) -> tuple[Grid, list[str]]:
    """Return the grid, and what had to be said."""
    notes: list[str] = []
    space = fields.get("space", "").lower()
    if "space directions" not in fields:
        spacing = _numbers(fields.get("spacings", "1 1 1").replace("nan", "1").replace("NaN", "1"), 3, "spacings")
        notes.append("the file does not say how it lies in the patient: x, y, z are taken as Left, Posterior, Superior")
        grid, said = grid_of(size, np.diag(spacing), (0.0, 0.0, 0.0))
        return grid, [*notes, *said]
    signs = _SPACES.get(space)
    if signs is None:
        if space and "scanner" not in space and space not in ("3d-right-handed", "3d-left-handed"):
            raise VolumeError(_damaged(f"space {space!r}"))
        signs = (1, 1, 1)
        notes.append("the file does not name the patient's axes: they are taken as Left, Posterior, Superior")
    turn = np.array(signs, dtype=float)[:, None]
    steps = np.array(_numbers(fields["space directions"], 9, "space directions")).reshape(3, 3).T
    origin = np.array(_numbers(fields.get("space origin", "(0,0,0)"), 3, "space origin"))
    grid, said = grid_of(size, steps * turn, (origin * turn[:, 0]).tolist(), what="space directions")
    return grid, [*notes, *said]


def _numbers(text: str, count: int, name: str) -> list[float]:
    try:
        found = [float(n) for n in re.sub(r"[(),]", " ", text).split()]
    except ValueError:
        found = []
    if len(found) != count:
        raise VolumeError(_damaged(f"{name} {text[:60]!r}"))
    return found


def _damaged(what: str) -> str:
    return f"the NRRD header is damaged: {what} is not allowed. Next: copy the file again, or export it again"
