"""Masks and images on the input's grid, whole or not at all, with nothing in their headers but the grid."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

import numpy as np

from ..errors import VolumeError
from ..files import sync_folder
from .grid import Grid
from .libraries import simpleitk
from .record import Volume, to_image

FORMATS = (".nii.gz", ".nii", ".nrrd", ".mha")


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
    low, high = (int(mask.min()), int(mask.max())) if mask.size else (0, 0)
    if low < 0 or high > 65535:
        raise VolumeError(f"labels {low} to {high} are not allowed; allowed: 0 to 65535")
    return _write(volume.undo(mask.astype(np.uint8 if high < 256 else np.uint16)), volume, path)


def write_image(volume: Volume, path: str | os.PathLike[str]) -> Path:
    """Write the voxels of a volume on the input's grid, as `write_mask` does a mask.

    Raises:
        VolumeError: another ending, or a file of the input itself.
        OSError: the folder is missing, full or read-only. Nothing is left behind.
    """
    return _write(volume.undo(volume.array), volume, path)


def _write(array: np.ndarray, volume: Volume, path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    ending = next((end for end in FORMATS if path.name.lower().endswith(end)), None)
    if ending is None:
        raise VolumeError(f"the ending of {path.name!r} is not allowed; allowed: {', '.join(FORMATS)}")
    if path.exists() and any(path.samefile(source.path) for source in volume.sources):
        raise VolumeError("the file to write is one of the input's own. Next: give another name")
    write_array(array, volume.source_grid, path, ending)
    return path


def write_array(array: np.ndarray, grid: Grid, path: Path, ending: str) -> None:
    """Write (z, y, x) voxels: beside, brought to the disk, moved into place.

    Raises:
        OSError: it cannot be written. Nothing is left behind.
    """
    sitk = simpleitk()
    temporary = path.with_name(
        f".{secrets.token_hex(8)}{ending}"
    )  # ITK goes by the ending; no part of the name is kept
    try:
        try:
            sitk.WriteImage(to_image(array, grid), str(temporary), useCompression=ending != ".nii")
        except RuntimeError:
            raise OSError(f"{path} cannot be written: the folder is missing, full or read-only") from None
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
