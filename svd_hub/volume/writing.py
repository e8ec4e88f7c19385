"""Masks and images on the input's grid, whole or not at all, with nothing in their headers but the grid."""

from __future__ import annotations

import contextlib
import os
import secrets
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..errors import VolumeError
from ..files import sync_folder
from . import headers
from .grid import Grid
from .record import Volume
from .values import extremes

FORMATS = (".nii.gz", ".nii", ".nrrd", ".mha")
_LEVEL = 4  # a mask comes out as small as with zlib's usual 6 in half the time, an image in 40 % of it, 2 % larger


def write_mask(mask: np.ndarray, volume: Volume, path: str | os.PathLike[str]) -> Path:
    """Write a mask on the input's grid: NIfTI, NRRD or MetaImage, by the end of the name; packed, except for .nii.

    Args:
        mask: (D, H, W) labels on `volume`, bool or integers 0..65535.
        volume: what `read` gave.
        path: the file; one that is there is replaced.

    Returns:
        Path: the file.

    Raises:
        VolumeError: not such a mask, another ending, or a file of the input itself.
        OSError: the folder is missing, full or read-only. Nothing is left behind.
    """
    if mask.dtype.kind not in "bui" or mask.ndim != 3:
        raise VolumeError(
            f"a mask {mask.shape} {mask.dtype} is not allowed; allowed: (D, H, W), bool or integers. "
            "Next: take the argmax of probabilities, or round it"
        )
    volume.check_shape(mask)
    low, high = (int(end) for end in extremes(mask))
    if low < 0 or high > 65535:
        raise VolumeError(f"labels {low} to {high} are not allowed; allowed: 0 to 65535")
    return _write(mask, np.dtype(np.uint8 if high < 256 else np.uint16), volume, path)


def write_image(volume: Volume, path: str | os.PathLike[str]) -> Path:
    """Write the voxels of a volume on the input's grid, as `write_mask` does a mask.

    Raises:
        VolumeError: another ending, or a file of the input itself.
        OSError: the folder is missing, full or read-only. Nothing is left behind.
    """
    return _write(volume.array, volume.array.dtype, volume, path)


def _write(array: np.ndarray, dtype: np.dtype, volume: Volume, path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    ending = next((end for end in FORMATS if path.name.lower().endswith(end)), None)
    if ending is None:
        raise VolumeError(f"the ending of {path.name!r} is not allowed; allowed: {', '.join(FORMATS)}")
    if path.exists() and any(path.samefile(source.path) for source in volume.sources):
        raise VolumeError("the file to write is one of the input's own. Next: give another name")
    dtype = dtype.newbyteorder("<")
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")  # no part of the name is kept
    try:
        with open(temporary, "xb") as file:
            _write_voxels(file, volume.undone(array, dtype), volume.source_grid, dtype, ending)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        what = f"{path} cannot be written: the folder is missing, full or read-only ({error.strerror})"
        raise OSError(error.errno, what) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
    return path


def _write_voxels(file: BinaryIO, parts: Iterable[np.ndarray], grid: Grid, dtype: np.dtype, ending: str) -> None:
    """Write (z, y, x) voxels, given some planes at a time. The bytes follow from them and the grid alone."""
    if ending == ".nii":
        file.write(headers.nifti(grid, dtype))
        for part in parts:
            file.write(part.data)
        return
    # zlib's own header of a gzip stream holds neither a name nor a time.
    stream = zlib.compressobj(_LEVEL, zlib.DEFLATED, 15 if ending == ".mha" else 31)
    if ending == ".nii.gz":
        file.write(stream.compress(headers.nifti(grid, dtype)))
    else:
        file.write((headers.nrrd if ending == ".nrrd" else headers.metaimage)(grid, dtype))
    begin = file.tell()
    for part in parts:
        file.write(stream.compress(part.data))
    file.write(stream.flush())
    if ending == ".mha":  # its header says how long the stream is
        packed = file.tell() - begin
        file.seek(0)
        file.write(headers.metaimage(grid, dtype, packed))
