"""Anything a user hands to a `Predictor` becomes a `Volume`, or a picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import MissingExtraError, OptionError, VolumeError
from ..volume import Volume, read
from ..volume.grid import CANONICAL

_PIXELS = 178_956_970  # of a picture at most: Pillow's own limit
PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"BM", b"GIF8", b"II*\0", b"MM\0*", b"RIFF")


def to_volume(
    image: Any,
    *,
    modality: str,
    spacing: Sequence[float] | None = None,
    axes: str | None = None,
    series: str | int | None = None,
    missing: str = "refuse",
) -> Volume:
    """Return the volume of a path, an array, a tensor, a SimpleITK image, a MONAI MetaTensor, or a volume.

    Args:
        image: see above. A MetaTensor is (X, Y, Z) or (1, X, Y, Z), with its affine.
        modality: what the weights are for, "CT" or "MR".
        spacing: mm for each axis of a bare array, and of nothing else.
        axes: the direction each axis of a bare array runs to; None = "SPL", a straight DICOM series.
        series: of a DICOM folder; see `svd_hub.volume.read`.
        missing: see `svd_hub.volume.read`.

    Raises:
        VolumeError: not a volume, or of another modality.
        OptionError: spacing or axes of what has its own.
    """
    bare = isinstance(image, np.ndarray) or (_is_tensor(image) and not hasattr(image, "affine"))
    if not bare and (spacing is not None or axes is not None):
        raise OptionError(
            f"spacing={spacing!r}, axes={axes!r} are for bare arrays; this {type(image).__name__} brings its own. "
            "Next: leave them out"
        )
    if isinstance(image, str | os.PathLike):
        return read(image, modality=modality, series=series, missing=missing)
    if series is not None:
        raise OptionError(f"series={series!r} is for DICOM folders. Next: leave it out")
    if isinstance(image, Volume):
        if image.modality not in ("", modality):
            raise VolumeError(
                f"the volume is {image.modality} and these weights are for {modality}. Next: another entry"
            )
        return image
    if hasattr(image, "GetSpacing"):
        return Volume.from_image(image, modality=modality)
    if not bare and _is_tensor(image):
        array = image.detach().cpu().numpy()
        array = array[0] if array.ndim == 4 and len(array) == 1 else array
        return Volume.from_affine(array, np.asarray(image.affine), modality=modality)
    if not bare:
        raise VolumeError(
            f"a {type(image).__name__} is not allowed; allowed: a path, an array with its spacing, a SimpleITK image, "
            "a MONAI MetaTensor, or what svd_hub.volume.read gave"
        )
    if spacing is None:
        raise VolumeError("an array needs its spacing. Next: spacing=(z, y, x) in mm, one for each of its axes")
    array = image.detach().cpu().numpy() if _is_tensor(image) else image
    return Volume.from_array(array, spacing=spacing, axes=axes or CANONICAL, modality=modality)


def _is_tensor(image: Any) -> bool:
    return hasattr(image, "detach") and hasattr(image, "cpu")


def is_picture(path: Path) -> bool:
    """Return whether a file begins as a picture does."""
    with path.open("rb") as file:
        return file.read(16).startswith(PICTURES)


def to_picture(image: Any) -> np.ndarray:
    """Return a picture (H, W, 3) of 0..255: of a path, a picture of Pillow, or an array.

    Raises:
        VolumeError: no picture, or one that is too large.
        MissingExtraError: a path, and Pillow is not installed.
    """
    if not isinstance(image, str | os.PathLike):
        return np.asarray(image.convert("RGB") if hasattr(image, "convert") else image)
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError("pillow", "volume") from None
    path = Path(image)
    if not path.is_file():
        raise VolumeError(f"{path} is no file; these weights read photographs. Next: check the path")
    try:
        with Image.open(path) as opened:
            if opened.width * opened.height > _PIXELS:
                raise VolumeError(f"{path} declares {opened.width} x {opened.height} pixels; allowed: {_PIXELS:,}")
            return np.asarray(opened.convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise VolumeError(
            f"{path} is no picture that can be read ({type(error).__name__}); these weights read photographs. "
            "Next: give a JPEG or PNG file, or an entry for CT or MR"
        ) from None
