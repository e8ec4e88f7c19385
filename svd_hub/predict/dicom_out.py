"""Results as DICOM objects beside the images they belong to: masks as Segmentation, boxes as Structured Report.

These two, and nothing else that svd-hub writes, carry the patient's attributes: highdicom copies them from the images,
so that an archive files the result with the right study.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..errors import MissingExtraError, VolumeError
from ..volume import Volume, memory
from ..volume.libraries import pydicom, quiet
from .codes import OWN_SCHEME, Code, code_of
from .results import RESEARCH_USE, Detection, Finding, Prediction, Segmentation, on_input

EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
SERIES_NUMBER = 7001  # far from what scanners give
_OF_A_REPORT = ("series_instance_uid", "series_number", "sop_instance_uid", "instance_number", "manufacturer")
_PROCEDURES = {
    "CT": Code("77477000", "SCT", "Computed tomography"),
    "MR": Code("113091000", "SCT", "Magnetic resonance imaging"),
}
_REQUIRED = (  # of the patient and study, which may be empty and must be there
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip


def _highdicom() -> Any:
    try:
        import highdicom
    except ImportError:
        raise MissingExtraError("highdicom", "volume") from None
    return highdicom


def can_refer(result: Prediction) -> bool:
    """Return whether the result's input is DICOM, whose images an object can refer to."""
    return result.volume is not None and bool(result.volume.sources)


def segmentation(result: Segmentation) -> tuple[bytes, list[str]]:
    """Return a DICOM Segmentation (BINARY, a segment for each class) that refers to its source images, and notes.

    Raises:
        VolumeError: the input was not DICOM, or no voxel has a class.
        MissingExtraError: highdicom or pydicom is not installed.
    """
    hd, volume = _highdicom(), result.scan
    headers, notes = _headers(volume)
    used = [k for k in range(1, len(result.classes)) if result.voxels[k]]
    if not used:
        raise VolumeError("no voxel has a class: DICOM knows no empty segmentation. Next: use the NIfTI file")
    planes = _planes(result, headers)
    segments = [_segment(hd, number, result, k) for number, k in enumerate(used, start=1)]
    for (plane,) in memory.planes(planes):  # segments are numbered without gaps, as DICOM wants
        plane[...] = np.searchsorted(used, plane, side="left").astype(plane.dtype) + (plane > 0)
    with _refusals("DICOM Segmentation"):
        made = hd.seg.Segmentation(
            source_images=headers,
            pixel_array=planes,
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=segments,
            transfer_syntax_uid=EXPLICIT_LITTLE_ENDIAN,
            content_label="SVDHUB",
            content_description=RESEARCH_USE,
            series_description=f"svd-hub {result.entry}"[:64],
            **_equipment(hd, result),
        )
        return _bytes(made), notes


def report(result: Detection) -> tuple[bytes, list[str]]:
    """Return a DICOM Structured Report (TID 1500), each finding's box on its key slice with class and score, and notes.

    Raises:
        VolumeError: the input was not axial DICOM.
        MissingExtraError: highdicom or pydicom is not installed.
    """
    hd, volume = _highdicom(), result.scan
    headers, notes = _headers(volume)
    if volume.turn.order != (0, 1, 2):
        raise VolumeError("the input's slices are not axial: boxes do not lie on them. Next: use the JSON file's mm")
    with _refusals("DICOM Structured Report"):
        regions = [_region(hd, volume, headers, one) for one in result.findings]
        groups = [
            _group(hd, number, one, region)
            for number, (one, region) in enumerate(zip(result.findings, regions, strict=True), start=1)
            if region is not None
        ]
        if len(groups) < len(regions):
            notes.append(
                f"{len(regions) - len(groups)} findings are on slices that were filled in: no image shows them"
            )
        content = hd.sr.MeasurementReport(
            observation_context=hd.sr.ObservationContext(observer_device_context=_observer(hd, result)),
            procedure_reported=_concept(hd, _PROCEDURES.get(volume.modality, _PROCEDURES["CT"])),
            imaging_measurements=groups,
        )
        equipment = _equipment(hd, result)
        made = hd.sr.ComprehensiveSR(
            evidence=headers,
            content=content[0],
            is_complete=True,
            is_final=False,
            is_verified=False,
            series_description=f"svd-hub {result.entry}"[:64],
            **{key: equipment[key] for key in _OF_A_REPORT},
        )
        return _bytes(made), notes


def _observer(hd: Any, result: Prediction) -> Any:
    who = hd.sr.DeviceObserverIdentifyingAttributes(uid=hd.UID(), name="svd-hub", model_name=result.entry[:64])
    kind = _concept(hd, Code("121007", "DCM", "Device"))
    return hd.sr.ObserverContext(observer_type=kind, observer_identifying_attributes=who)


def _region(hd: Any, volume: Volume, headers: list[Any], one: Finding) -> Any:
    """Return the box of a finding on the image it lies on, None where that slice was filled in."""
    plane, (x0, y0, x1, y1) = on_input(volume, one.plane, one.box)
    number = next((k for k, source in enumerate(volume.sources) if source.plane == plane), None)
    if number is None:
        return None
    source = volume.sources[number]
    header = headers[_paths(volume).index(source.path)]
    down, right = volume.shifts[number] if volume.shifts else (0.0, 0.0)  # a tilted gantry's, which was corrected
    ring = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]) - [right, down]
    frames = [source.frame + 1] if int(header.get("NumberOfFrames", 0) or 0) > 1 else None
    image = hd.sr.SourceImageForRegion(header.SOPClassUID, header.SOPInstanceUID, referenced_frame_numbers=frames)
    return hd.sr.ImageRegion(
        graphic_type=hd.sr.GraphicTypeValues.POLYLINE,
        graphic_data=ring.clip(0, [header.Columns, header.Rows]),
        source_image=image,
    )


def _group(hd: Any, number: int, one: Finding, region: Any) -> Any:
    score = hd.sr.Measurement(
        name=_concept(hd, Code("score", OWN_SCHEME, "Score of the detector")),
        value=round(one.score, 6),
        unit=_concept(hd, Code("1", "UCUM", "no units")),
    )
    return hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid=hd.UID(), identifier=f"finding {number}"),
        referenced_region=region,
        finding_type=_concept(hd, code_of(one.label)),
        measurements=[score],
    )


# ---- parts ---------------------------------------------------------------------------------------------------------


def _paths(volume: Volume) -> list[Path]:
    return list(dict.fromkeys(source.path for source in volume.sources))


def _headers(volume: Volume) -> tuple[list[Any], list[str]]:
    """Return the headers of the source images, in the order of `volume.sources`, without pixels, and what was mended.

    Raises:
        VolumeError: the input was not DICOM, or a file went away.
    """
    if not volume.sources:
        raise VolumeError("the input is not DICOM: there are no images to refer to. Next: use the NIfTI or JSON file")
    try:
        with quiet():
            headers = [pydicom().dcmread(path, stop_before_pixels=True) for path in _paths(volume)]
    except OSError:
        raise VolumeError("a file of the input can no longer be read. Next: leave the folder as it is") from None
    return headers, _mend(headers)


def _mend(headers: list[Any]) -> list[str]:
    """Fill in identifiers that were emptied, as some anonymisers do, and say so; highdicom needs them."""
    notes = []
    for name, other in (("SOPClassUID", "MediaStorageSOPClassUID"), ("SOPInstanceUID", "MediaStorageSOPInstanceUID")):
        if empty := [header for header in headers if not header.get(name)]:
            for header in empty:
                setattr(header, name, header.file_meta.get(other, ""))
            notes.append(f"{len(empty)} images have no {name}; that of their file's own header is referred to")
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        if empty := [header for header in headers if not header.get(name)]:
            made = pydicom().uid.generate_uid()
            for header in empty:
                setattr(header, name, made)
            notes.append(f"the images have no {name}; the object has a new one, which no archive knows")
    for header in headers:
        for name in _REQUIRED:
            if name not in header:
                setattr(header, name, None)
    return notes


@contextlib.contextmanager
def _refusals(what: str) -> Iterator[None]:
    """What highdicom finds wrong with the images' headers becomes a `VolumeError`, without the values it quotes."""
    try:
        with quiet():
            yield
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise VolumeError(
            f"no {what} can be made: the headers of the images lack or contradict what it needs "
            f"({type(error).__name__} in highdicom). Next: use the other files"
        ) from None


def _planes(result: Segmentation, headers: list[Any]) -> np.ndarray:
    """Return labels (images, rows, columns) in the order of the headers, or of an enhanced file's frames."""
    volume = result.scan
    found = volume.to_planes(result.labels)
    if len(headers) == len(volume.sources):
        return found
    if len(headers) > 1:
        raise VolumeError("the input is several files of many frames each: no DICOM object is written for those")
    frames = memory.empty((int(headers[0].NumberOfFrames), *found.shape[1:]), found.dtype)
    frames[...] = 0
    for source, plane in zip(volume.sources, found, strict=True):
        frames[source.frame] = plane
    return frames


def _segment(hd: Any, number: int, result: Segmentation, k: int) -> Any:
    name, code = result.classes[k], code_of(result.classes[k])
    category = (
        Code("49755003", "SCT", "Morphologically Abnormal Structure")
        if code.abnormal
        else Code("91723000", "SCT", "Anatomical Structure")
    )
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=name[:64],
        segmented_property_category=_concept(hd, category),
        segmented_property_type=_concept(hd, code),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=result.entry[:64],
            version=__version__,
            family=_concept(hd, Code("123109", "DCM", "Artificial Intelligence")),
        ),
    )


def _equipment(hd: Any, result: Prediction) -> dict[str, Any]:
    return {
        "series_instance_uid": hd.UID(),
        "series_number": SERIES_NUMBER,
        "sop_instance_uid": hd.UID(),
        "instance_number": 1,
        "manufacturer": "svd-hub",
        "manufacturer_model_name": result.entry[:64],
        "software_versions": __version__,
        "device_serial_number": "none",
    }


def _concept(hd: Any, code: Code) -> Any:
    return hd.sr.CodedConcept(code.value, code.scheme, code.meaning)


def _bytes(dataset: Any) -> bytes:
    file = io.BytesIO()
    with quiet():
        dataset.save_as(file)
    return file.getvalue()
