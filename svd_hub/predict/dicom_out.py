"""Results as DICOM objects beside the images they belong to: masks as Segmentation, boxes as Structured Report.

These two, and nothing else that svd-hub writes, carry the patient's attributes: highdicom copies them from the images,
so that an archive files the result with the right study.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..errors import MissingExtraError, VolumeError
from ..volume import Volume, memory
from ..volume.libraries import pydicom, quiet
from .codes import OWN_SCHEME, Code, code_of
from .results import RESEARCH_USE, Detection, Prediction, Segmentation, on_input

EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
SERIES_NUMBER = 7001  # far from what scanners give


def _highdicom() -> Any:
    try:
        import highdicom
    except ImportError:
        raise MissingExtraError("highdicom", "volume") from None
    return highdicom


def can_refer(result: Prediction) -> bool:
    """Return whether the result's input is DICOM, whose images an object can refer to."""
    return result.volume is not None and bool(result.volume.sources)


def segmentation(result: Segmentation) -> bytes:
    """Return a DICOM Segmentation (BINARY, a segment for each class), with the references of its source images.

    Raises:
        VolumeError: the input was not DICOM, or no voxel has a class.
        MissingExtraError: highdicom or pydicom is not installed.
    """
    hd, volume = _highdicom(), result.scan
    headers = _headers(volume)
    used = [k for k in range(1, len(result.classes)) if result.voxels[k]]
    if not used:
        raise VolumeError("no voxel has a class: DICOM knows no empty segmentation. Next: use the NIfTI file")
    planes = _planes(result, headers)
    segments = [_segment(hd, number, result, k) for number, k in enumerate(used, start=1)]
    for (plane,) in memory.planes(planes):  # segments are numbered without gaps, as DICOM wants
        plane[...] = np.searchsorted(used, plane, side="left").astype(plane.dtype) + (plane > 0)
    with quiet():
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
    return _bytes(made)


def report(result: Detection) -> bytes:
    """Return a DICOM Structured Report (TID 1500): each finding's box on its key slice, with class and score.

    Raises:
        VolumeError: the input was not axial DICOM.
        MissingExtraError: highdicom or pydicom is not installed.
    """
    hd, volume = _highdicom(), result.scan
    headers = _headers(volume)
    if volume.turn.order != (0, 1, 2):
        raise VolumeError("the input's slices are not axial: boxes do not lie on them. Next: use the JSON file's mm")
    by_plane = {source.plane: source for source in volume.sources}
    by_path = {str(path): header for path, header in zip(_paths(volume), headers, strict=True)}
    with quiet():
        device = hd.sr.DeviceObserverIdentifyingAttributes(uid=hd.UID(), name="svd-hub", model_name=result.entry[:64])
        observer = hd.sr.ObserverContext(
            observer_type=_concept(hd, Code("121007", "DCM", "Device")), observer_identifying_attributes=device
        )
        groups = []
        for number, one in enumerate(result.findings, start=1):
            plane, (x0, y0, x1, y1) = on_input(volume, one.plane, one.box)
            source = by_plane.get(plane)
            if source is None:  # a slice that was filled in: no image shows it
                continue
            dy, dx = _shift(volume, source)
            ring = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]) - [dx, dy]
            header = by_path[str(source.path)]
            ring = ring.clip(0, [header.Columns, header.Rows])
            region = hd.sr.ImageRegion(
                graphic_type=hd.sr.GraphicTypeValues.POLYLINE,
                graphic_data=ring,
                source_image=hd.sr.SourceImageForRegion(
                    header.SOPClassUID,
                    header.SOPInstanceUID,
                    referenced_frame_numbers=[source.frame + 1] if "NumberOfFrames" in header else None,
                ),
            )
            groups.append(
                hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
                    tracking_identifier=hd.sr.TrackingIdentifier(uid=hd.UID(), identifier=f"finding {number}"),
                    referenced_region=region,
                    finding_type=_concept(hd, code_of(one.label)),
                    measurements=[
                        hd.sr.Measurement(
                            name=_concept(hd, Code("score", OWN_SCHEME, "Score of the detector")),
                            value=round(one.score, 6),
                            unit=_concept(hd, Code("1", "UCUM", "no units")),
                        )
                    ],
                )
            )
        content = hd.sr.MeasurementReport(
            observation_context=hd.sr.ObservationContext(observer_device_context=observer),
            procedure_reported=_concept(hd, Code("77477000", "SCT", "Computed tomography")),
            imaging_measurements=groups,
        )
        made = hd.sr.ComprehensiveSR(
            evidence=headers,
            content=content[0],
            is_complete=True,
            is_final=False,
            is_verified=False,
            series_description=f"svd-hub {result.entry}"[:64],
            institution_name=None,
            **{k: v for k, v in _equipment(hd, result).items() if k not in ("software_versions", "device_serial_number",
                                                                              "manufacturer_model_name")},
        )  # fmt: skip
    return _bytes(made)


# ---- parts ---------------------------------------------------------------------------------------------------------


def _paths(volume: Volume) -> list[Path]:
    return list(dict.fromkeys(source.path for source in volume.sources))


def _headers(volume: Volume) -> list[Any]:
    """Return the headers of the source images, in the order of `volume.sources`, without their pixels.

    Raises:
        VolumeError: the input was not DICOM, or a file went away.
    """
    if not volume.sources:
        raise VolumeError("the input is not DICOM: there are no images to refer to. Next: use the NIfTI or JSON file")
    try:
        with quiet():
            return [pydicom().dcmread(path, stop_before_pixels=True) for path in _paths(volume)]
    except OSError:
        raise VolumeError("a file of the input can no longer be read. Next: leave the folder as it is") from None


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


def _shift(volume: Volume, source: Any) -> tuple[float, float]:
    """Return by how many rows and columns an image of a tilted gantry was moved on the input's grid."""
    return volume.shifts[volume.sources.index(source)] if volume.shifts else (0.0, 0.0)


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
