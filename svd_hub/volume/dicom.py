"""What one DICOM file says of its images, read from its header alone; no patient's data are kept.

Attributes and their meaning: DICOM PS3.3 (C.7.6.2 Image Plane, C.7.6.16 multi-frame functional groups, C.11.1 Modality
LUT, C.7.5.1.1.2 pixel padding) and PS3.5 (transfer syntaxes).
"""

from __future__ import annotations

import functools
import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import VolumeError
from . import streams
from .layout import PIXELS, Layout, floats, integer, layout_of, many, word
from .libraries import pydicom, quiet

_FIRST = (
    b"\0\0",
    b"\1\0",
    b"\5\0",
    b"\x08\0",
    b"\x12\0",
    b"\x16\0",
)  # elements a data set without preamble begins with
_DIRECTORY = "1.2.840.10008.1.3.10"  # a DICOMDIR: a list of files, no image
# What can tell two images at one place apart: the dimensions beyond space.
_APART = (
    "ImageType", "AcquisitionNumber", "TemporalPositionIdentifier", "TriggerTime", "EchoTime", "EchoNumbers",
    "DiffusionBValue", "AcquisitionTime", "ContentTime", "InstanceNumber",
)  # fmt: skip
_CONTENT = ("TemporalPositionIndex", "StackID", "FrameAcquisitionNumber")
_WANTED = (
    "ImageType", "SpecificCharacterSet", "SOPInstanceUID", "Modality", "PatientName", "PatientID", "SeriesInstanceUID",
    "SeriesNumber", "InstanceNumber", "ImagePositionPatient", "ImageOrientationPatient", "FrameOfReferenceUID",
    "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns", "PixelSpacing",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit",
    "RescaleIntercept", "RescaleSlope", "RescaleType", "LossyImageCompression", "ModalityLUTSequence",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Plane:
    """One image: a file, or one frame of it. Lengths in mm; `position` and `orientation` are DICOM's own."""

    layout: Layout
    frame: int
    number: str
    instance: str
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]
    slope: float
    intercept: float
    unit: str


@dataclass(frozen=True, kw_only=True)
class Header:
    """One file. `patient` tells patients apart and no more. `fault` is why its images cannot be used, or ""."""

    path: Path
    series: str
    number: int | None
    modality: str
    patient: bytes
    reference: str
    localizer: bool
    planes: tuple[Plane, ...]
    images: int
    fault: str


class _Bounded(io.BufferedReader):
    """A file that is never read to its end in one go, as pydicom does to unpack a deflated data set of any size."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            raise VolumeError(
                "a deflated data set is not allowed. Next: store it uncompressed, e.g. gdcmconv --raw IN OUT"
            )
        return super().read(size)


def is_dicom(head: bytes) -> bool:
    """Return whether bytes begin a DICOM file, with or without its preamble."""
    bare = head[:4] == b"\2\0\0\0" or (head[:2] == b"\x08\0" and head[2:4] in _FIRST)
    return head[128:132] == b"DICM" or bare


def read_header(path: Path) -> Header | None:
    """Return what a DICOM file says, None where it is none.

    Raises:
        VolumeError: it is damaged, or cannot be opened.
        MissingExtraError: pydicom is not installed.
    """
    pydicom()
    seen: list[tuple[int, str | None, int]] = []

    def at_pixels(tag: int, vr: str | None, length: int) -> bool:
        number = int(tag)  # pydicom's own comparison of tags is slow, and this is asked of every element
        if number in PIXELS:
            seen.append((number, vr, length))
        return number >= PIXELS[0]

    with _opened(path) as file:
        head = file.read(132)
        if not is_dicom(head):
            return None
        file.seek(0)
        try:
            with quiet():
                data = _parsed(file, _WANTED, at_pixels)
                begin = file.tell()
                if data.file_meta.get("MediaStorageSOPClassUID") == _DIRECTORY:
                    return None
                if not seen and not data.get("SeriesInstanceUID"):
                    raise VolumeError("a DICOM file is damaged: it holds nothing. Next: copy the files again")
                return _header(path, data, seen[0] if seen else None, begin, file.seek(0, io.SEEK_END))
        except VolumeError:
            if head[128:] == b"DICM":
                raise
        except Exception as error:  # a damaged header can fail in any way; what pydicom says of it may quote a patient
            if head[128:] == b"DICM":
                raise VolumeError(
                    f"a DICOM file is damaged: its header cannot be read ({type(error).__name__}). "
                    "Next: copy the files again"
                ) from None
    return None  # it only began like one


def told_apart(one: Plane, other: Plane) -> list[str]:
    """Return the names of the attributes that differ between two images at one place."""
    values = []
    for plane in (one, other):
        with _opened(plane.layout.path) as file, quiet():
            try:
                data = _parsed(file, (*_APART, "PerFrameFunctionalGroupsSequence"), lambda tag, *_: tag >= PIXELS[0])
                frames = data.get("PerFrameFunctionalGroupsSequence") or [{}]
                content = (frames[min(plane.frame, len(frames) - 1)].get("FrameContentSequence") or [{}])[0]
                values.append([str(data.get(name)) for name in _APART] + [str(content.get(name)) for name in _CONTENT])
            except Exception:  # as above
                values.append([])
    return [name for name, a, b in zip((*_APART, *_CONTENT), *values, strict=False) if a != b]


def _opened(path: Path) -> _Bounded:
    return _Bounded(streams.open_regular(path).detach())  # type: ignore[attr-defined]


def _parsed(file: _Bounded, names: tuple[str, ...], stop: Callable[[int, str | None, int], bool]) -> Any:
    module = pydicom()
    return module.filereader.read_partial(file, stop_when=stop, specific_tags=_tags(names), force=True)


@functools.cache
def _tags(names: tuple[str, ...]) -> list[Any]:
    return [pydicom().tag.Tag(name) for name in names]


def _header(path: Path, data: Any, pixels: tuple[int, str | None, int] | None, begin: int, end: int) -> Header:
    layout, fault = None, ""
    try:
        layout = layout_of(path, data, pixels, begin, end)
    except VolumeError as error:
        fault = str(error)
    frames = integer(data, "NumberOfFrames", 1)
    planes: tuple[Plane, ...] = ()
    if layout is not None:
        try:
            planes = _planes(data, layout)
        except VolumeError as error:
            fault = str(error)
    name = "".join(ch for ch in str(data.get("PatientName") or "").casefold() if ch.isalnum())
    patient = f"{str(data.get('PatientID') or '').strip()}\0{name}"
    return Header(
        path=path,
        series=word(data, "SeriesInstanceUID"),
        number=integer(data, "SeriesNumber", None),
        modality=word(data, "Modality"),
        patient=hashlib.sha256(patient.encode("utf-8", "replace")).digest(),
        reference=str(data.get("FrameOfReferenceUID") or ""),
        localizer="LOCALIZER" in [str(part).upper() for part in many(data.get("ImageType"))],
        planes=planes,
        images=frames if pixels else 0,
        fault=fault,
    )


def _planes(data: Any, layout: Layout) -> tuple[Plane, ...]:
    """Return the images of a file: itself, or its frames."""
    if data.get("ModalityLUTSequence"):
        raise VolumeError(
            "a modality look-up table is not allowed; allowed: RescaleSlope and RescaleIntercept. "
            "Next: give the original CT or MR series"
        )
    number, instance = str(integer(data, "InstanceNumber", -1)), str(data.get("SOPInstanceUID") or "")
    number = "of no number" if number == "-1" else number
    frames = data.get("PerFrameFunctionalGroupsSequence")
    if not frames:
        if layout.frames != 1:
            raise VolumeError(
                f"the DICOM file holds {layout.frames} frames that have no place in the patient (a film or "
                "screenshots); allowed: an enhanced CT or MR, or one image a file. Next: give the original series"
            )
        return (_plane(data, data, data, data, layout, 0, number, instance),)
    if len(frames) != layout.frames:
        raise VolumeError(
            f"the DICOM header is damaged: {layout.frames} frames and places for {len(frames)}. "
            "Next: copy the files again"
        )
    shared = (data.get("SharedFunctionalGroupsSequence") or [{}])[0]

    def group(frame: Any, name: str) -> Any:
        return (frame.get(name) or shared.get(name) or [{}])[0]

    planes = []
    for k, frame in enumerate(frames):
        planes.append(
            _plane(
                group(frame, "PlanePositionSequence"),
                group(frame, "PlaneOrientationSequence"),
                group(frame, "PixelMeasuresSequence"),
                group(frame, "PixelValueTransformationSequence") or data,
                layout,
                k,
                f"{number}, frame {k + 1}",
                f"{instance}/{k}",
            )
        )
    return tuple(planes)


def _plane(
    place: Any, turn: Any, measures: Any, rescale: Any, layout: Layout, frame: int, number: str, instance: str
) -> Plane:  # fmt: skip
    slope, intercept = floats(rescale, "RescaleSlope", 1), floats(rescale, "RescaleIntercept", 1)
    if slope == (0.0,):
        raise VolumeError("the DICOM header is damaged: a RescaleSlope of 0. Next: copy the files again")
    spacing = floats(measures, "PixelSpacing", 2)
    return Plane(
        layout=layout,
        frame=frame,
        number=number,
        instance=instance,
        position=floats(place, "ImagePositionPatient", 3),
        orientation=floats(turn, "ImageOrientationPatient", 6),
        spacing=spacing,
        slope=slope[0] if slope else 1.0,
        intercept=intercept[0] if intercept else 0.0,
        unit=word(rescale, "RescaleType") if slope else "not rescaled",
    )
