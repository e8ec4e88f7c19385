"""Stored pixel values of DICOM images, one at a time, as their files have them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from ..errors import VolumeError
from . import streams
from .codec import Decoder, frames_of
from .dicom import Plane
from .layout import BIG_ENDIAN, Layout


def same_pixels(one: Plane, other: Plane) -> bool:
    """Return whether two images store the same bytes."""
    if one.instance and one.instance == other.instance and one.layout.path.samefile(other.layout.path):
        return True
    if (one.layout.syntax, one.layout.length) != (other.layout.syntax, other.layout.length):
        return False
    if one.layout.length < 0:
        return frames_of(one.layout)[one.frame] == frames_of(other.layout)[other.frame]
    with streams.open_regular(one.layout.path) as a, streams.open_regular(other.layout.path) as b:
        return np.array_equal(_plain(a, one), _plain(b, other))


def stored(planes: tuple[Plane, ...]) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Yield the stored values (rows, columns) of each image, and where they are padding."""
    with Decoder() as decoder:
        for plane in planes:
            layout = plane.layout
            try:
                if layout.length < 0:
                    raw = _clean(decoder.decode(layout, plane.frame), layout)
                else:
                    with streams.open_regular(layout.path) as file:
                        raw = _clean(_plain(file, plane), layout)
            except VolumeError as error:
                raise VolumeError(f"image {plane.number}: {error}") from None
            mask = None
            if layout.padding is not None:
                mask = (raw >= layout.padding[0]) & (raw <= layout.padding[1])
                mask = mask if mask.any() else None
            yield raw, mask


def _plain(file: BinaryIO, plane: Plane) -> np.ndarray:
    """Return the pixels of an uncompressed image as the file has them."""
    layout = plane.layout
    order = ">" if layout.syntax == BIG_ENDIAN else "<"
    if order == ">" and layout.allocated == 8:
        raise VolumeError("8-bit pixels in big-endian order are not allowed. Next: store them little-endian")
    dtype = np.dtype(f"{order}{'i' if layout.signed else 'u'}{layout.allocated // 8}")
    count = layout.rows * layout.columns * dtype.itemsize
    return streams.voxels(
        file, offset=layout.offset + plane.frame * count, shape=(1, layout.rows, layout.columns), dtype=dtype
    )[0]


def _clean(raw: np.ndarray, layout: Layout) -> np.ndarray:
    """Return the stored values: bits beside the BitsStored ones may hold an overlay, or anything."""
    if layout.stored == layout.allocated:
        return raw
    left, right = layout.allocated - 1 - layout.high, layout.allocated - layout.stored
    kind = np.dtype(f"{'i' if layout.signed else 'u'}{layout.allocated // 8}")
    return np.right_shift(np.left_shift(raw.astype(kind, copy=False), left), right)
