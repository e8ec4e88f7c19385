"""How a DICOM file stores its pixels, checked against the size of the file before a byte of them is read.

Attributes: DICOM PS3.3 C.7.6.3 (Image Pixel), C.7.5.1.1.2 (padding); transfer syntaxes: PS3.5.
"""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import VolumeError

IMPLICIT, EXPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)  # floats, doubles, integers
_NO_LENGTH = 0xFFFFFFFF


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a file stores its pixels.

    Attributes:
        path: the file.
        syntax: UID of the transfer syntax.
        offset: where the value of PixelData begins.
        length: its bytes, -1 where it is encapsulated (compressed).
        rows, columns, frames: its size.
        allocated, stored, high: bits of a pixel, bits used of them, and the highest one used.
        signed: whether pixels are two's complement.
        inverted: MONOCHROME1: low values are bright on a screen.
        padding: (low, high) stored values that are no image, or None.
        lossy: whether the file says that its image lost something to compression.
    """

    path: Path
    syntax: str
    offset: int
    length: int
    rows: int
    columns: int
    frames: int
    allocated: int
    stored: int
    high: int
    signed: bool
    inverted: bool
    padding: tuple[int, int] | None
    lossy: bool


def layout_of(path: Path, data: Any, pixels: tuple[int, str | None, int] | None, begin: int, end: int) -> Layout:
    """Return how the pixels of a file are stored.

    Args:
        path: the file.
        data: its header, as pydicom has it.
        pixels: tag, value representation and length of the pixel data, None where there are none.
        begin: where that element begins.
        end: the size of the file.

    Raises:
        VolumeError: no grey image, a damaged header, or a file that is cut off.
    """
    if pixels is None:
        raise VolumeError("a DICOM file holds no image. Next: copy the files again, or give another series")
    tag, vr, length = pixels
    implicit, little = data.original_encoding
    syntax = word(data.file_meta, "TransferSyntaxUID")
    samples, photometric = integer(data, "SamplesPerPixel", 1), str(data.get("PhotometricInterpretation") or "")
    if samples != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2", ""):
        raise VolumeError(
            f"the image is a colour picture of {samples} sample(s) a pixel, such as a screenshot (secondary capture); "
            "allowed: grey values. Next: give the original CT or MR series"
        )
    allocated = integer(data, "BitsAllocated", 0)
    if tag != PIXELS[2] or allocated not in (8, 16, 32):
        raise VolumeError(
            f"pixels of {allocated} bits or of real numbers are not allowed; allowed: integers of 8, 16 or 32 bits. "
            "Next: give the original CT or MR series"
        )
    stored = integer(data, "BitsStored", allocated)
    high = integer(data, "HighBit", stored - 1)
    rows, columns = integer(data, "Rows", 0), integer(data, "Columns", 0)
    frames = integer(data, "NumberOfFrames", 1)
    if not (1 <= stored <= high + 1 <= allocated and rows > 0 and columns > 0 and frames > 0):
        raise VolumeError(
            f"the DICOM header is damaged: {rows} rows, {columns} columns, {frames} frames, {allocated} bits, "
            f"{stored} stored, {high} highest. Next: copy the files again"
        )
    offset = begin + (8 if implicit or vr not in ("OB", "OW", "UN") else 12)
    if length == _NO_LENGTH:
        length = -1
    elif length < (need := rows * columns * frames * allocated // 8) or offset + length > end:
        raise VolumeError(
            f"an image holds {max(0, min(length, end - offset))} of the {need} bytes its header declares: the file "
            "is cut off. Next: copy the files again"
        )
    signed = integer(data, "PixelRepresentation", 0) == 1
    return Layout(
        path=path,
        syntax=syntax or (IMPLICIT if implicit else EXPLICIT if little else BIG_ENDIAN),
        offset=offset,
        length=length,
        rows=rows,
        columns=columns,
        frames=frames,
        allocated=allocated,
        stored=stored,
        high=high,
        signed=signed,
        inverted=photometric == "MONOCHROME1",
        padding=_padding(data, allocated, signed, little),
        lossy=str(data.get("LossyImageCompression") or "") == "01",
    )


def _padding(data: Any, allocated: int, signed: bool, little: bool) -> tuple[int, int] | None:
    """Return the stored values that stand for "no image" as (low, high).

    The two attributes are US or SS as the pixels are; writers mix them up, so their bits are read as the pixels' are.
    """
    found = []
    for name in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
        value = data.get(name)
        if isinstance(value, bytes) and len(value) == 2:  # implicit VR: the type is not in the file
            value = struct.unpack("<H" if little else ">H", value)[0]
        if isinstance(value, int):
            bits = value & ((1 << allocated) - 1)
            found.append(bits - (1 << allocated) if signed and bits >> (allocated - 1) else bits)
    return (min(found), max(found)) if found else None


def many(value: Any) -> list[Any]:
    """Return the values of an attribute, which pydicom gives alone where there is one."""
    if value is None or value == "":
        return []
    return [value] if isinstance(value, str | int | float) else list(value)


def floats(data: Any, name: str, count: int) -> tuple[float, ...]:
    """Return the numbers of an attribute, () where it is not there.

    Raises:
        VolumeError: not so many, or not finite.
    """
    values = tuple(float(v) for v in many(data.get(name)))
    if values and (len(values) != count or not all(map(math.isfinite, values))):
        raise VolumeError(f"the DICOM header is damaged: {name} is not {count} number(s). Next: copy the files again")
    return values


def word(data: Any, name: str) -> str:
    """Return a code or a UID, "" where it is not there.

    Raises:
        VolumeError: anything else: where a length is damaged, a value runs into the next ones, the patient's name too.
    """
    value = str(data.get(name) or "")
    if not re.fullmatch(r"[A-Za-z0-9_. -]{0,64}", value):
        raise VolumeError(
            f"the DICOM header is damaged: {name} is neither a code nor a UID. Next: copy the files again"
        )
    return value


def integer(data: Any, name: str, default: Any) -> Any:
    """Return the number of an attribute, `default` where it is not there."""
    value = data.get(name)
    return default if value is None or value == "" else int(value)
