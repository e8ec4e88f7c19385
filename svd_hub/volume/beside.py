"""The voxel file that a header names: only one that lies beside the header, whatever the header asks for."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import VolumeError

_NAMED = re.compile(
    rb"^(?:ElementDataFile[ \t]*=|data ?file:)[ \t]*([^\r\n]+?)[ \t]*\r?$", re.IGNORECASE | re.MULTILINE
)


def named_in(header: Path, head: bytes) -> Path | None:
    """Return the voxel file that a header of NRRD or MetaImage names, where it is one beside it.

    Args:
        header: the header.
        head: how it begins.
    """
    match = _NAMED.search(head)
    if match is None or match[1].upper() == b"LOCAL":
        return None
    try:
        return data_file(header, match[1].decode("utf-8", "replace"))
    except VolumeError:
        return None


def data_file(header: Path, name: str) -> Path:
    """Return the file that a header names.

    Args:
        header: the header.
        name: what it says, which is not trusted.

    Raises:
        VolumeError: a list, a pattern, another folder, or a file that is not there.
    """
    plain = name and name == Path(name).name and "\\" not in name and ":" not in name and not name.startswith(".")
    if not plain or name.upper() == "LIST" or "%" in name or "\0" in name:
        raise VolumeError(
            "the header names its voxels by a list, a pattern or another folder; allowed: one file beside it. "
            "Next: save the volume as one file (.nrrd, .mha)"
        )
    path = header.with_name(name)
    if not path.is_file():
        raise VolumeError("the voxel file that the header names is not beside it. Next: give both files in one folder")
    return path
