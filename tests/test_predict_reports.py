"""Structured Reports of findings, read by highdicom: each box lies on the lesion, on the very image it names."""

from __future__ import annotations

import io
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from helpers_spots import HU, SPACING, Spots, lesion_series
from helpers_volume import AXIAL, CORONAL, OBLIQUE, make_series

from svd_hub import Predictor, Preprocess
from svd_hub.predict import Detection, Outputs
from svd_hub.predict.outputs import write


def regions(result: Detection) -> list[tuple[pydicom.Dataset, np.ndarray]]:
    """The image and the ring of each finding of the DICOM object, read by highdicom."""
    from svd_hub.predict import dicom_out

    content, _ = dicom_out.report(result)
    document = highdicom.sr.srread(io.BytesIO(content))
    images = {}
    for source in result.volume.sources:
        data = pydicom.dcmread(source.path)
        images[data.SOPInstanceUID] = data
    found = []
    for group in document.content.get_planar_roi_measurement_groups():
        region = group.roi
        uid = region.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        found.append((images[uid], region.value))
    return found


@pytest.mark.parametrize(
    "orientation", [AXIAL, (-1, 0, 0, 0, -1, 0), (1, 0, 0, 0, -1, 0), (-1, 0, 0, 0, 1, 0), OBLIQUE]
)
def test_the_structured_report_puts_the_box_on_the_lesion(tmp_path: Path, orientation: tuple[float, ...]) -> None:
    lesion_series(tmp_path, orientation)
    ((data, ring),) = regions(Predictor(Spots())(tmp_path))
    inside = np.argwhere(data.pixel_array.astype(int) - 1024 > 200)
    assert len(inside) == 32
    assert ring[:, 0].min() == inside[:, 1].min()
    assert ring[:, 0].max() == inside[:, 1].max() + 1
    assert ring[:, 1].min() == inside[:, 0].min()
    assert ring[:, 1].max() == inside[:, 0].max() + 1
    assert (data.pixel_array.max() - 1024) == 700
    assert (ring[0] == ring[-1]).all()


@pytest.mark.parametrize("pixels", [(1, 0), (-1, 0), (0, 1), (-0.5, 0.25)])
def test_a_tilted_gantrys_boxes_lie_on_its_images(tmp_path: Path, pixels: tuple[float, float]) -> None:
    """In the report and in the rows alike."""
    step = np.array([pixels[1] * 0.7, pixels[0] * 0.8, 2.5])
    lesion_series(tmp_path, positions=[k * step for k in range(13)])
    result = Predictor(Spots())(tmp_path)
    ((data, ring),) = regions(result)
    inside = np.argwhere(data.pixel_array.astype(int) - 1024 > 200)
    (y0, x0), (y1, x1) = inside.min(0), inside.max(0) + 1
    off = 0.0 if float(pixels[0]).is_integer() else 1.0
    assert np.allclose([*ring.min(0), *ring.max(0)], [x0, y0, x1, y1], atol=off + 1e-6)
    (row,) = result.rows()
    assert np.allclose(row["box_px"], [x0, y0, x1, y1], atol=off + 1e-3)
    assert row["slice"] == 5


def test_a_report_of_nothing_and_of_slices_that_are_not_axial(tmp_path: Path) -> None:
    lesion_series(tmp_path / "axial")
    lesion_series(tmp_path / "coronal", CORONAL)
    predictor = Predictor(Spots())
    for kind, planes, why in (
        ("axial", [0], "nothing was found"),
        ("coronal", None, "the input's slices are not axial"),
    ):
        out = tmp_path / f"{kind} out"
        out.mkdir()
        notes = write(predictor(tmp_path / kind, planes=planes), out, predictor.preprocess, Outputs())
        assert any(f"no findings.dcm: {why}" in note for note in notes)
        assert sorted(p.name for p in out.iterdir()) == ["findings.csv", "picture.png", "result.json"]


def test_a_finding_on_a_slice_that_was_filled_in(tmp_path: Path) -> None:
    paths = lesion_series(tmp_path / "in")
    paths[5].unlink()
    result = Predictor(Spots())(tmp_path / "in", missing="fill", planes=[5])
    assert result.findings[0].plane == 5
    (tmp_path / "out").mkdir()
    (note,) = write(result, tmp_path / "out", Preprocess(), Outputs(picture=False))
    assert note.startswith("no findings.dcm: 1 finding(s) lie on slices that were filled in: no image shows them")
    hu = HU.copy()
    hu[9:12, 2:6, 2:6] = 900
    series = make_series(tmp_path / "two", (hu + 1024).astype(np.uint16), spacing=SPACING)
    series[10].unlink()
    result = Predictor(Spots())(tmp_path / "two", missing="fill", planes=[5, 10])
    assert len(result.findings) == 2
    assert len(regions(result)) == 1


def test_an_enhanced_files_frame_is_named(tmp_path: Path) -> None:
    from highdicom.legacy import LegacyConvertedEnhancedCTImage
    from test_predict_grids import complete

    paths = lesion_series(tmp_path / "single", edit=complete)
    made = LegacyConvertedEnhancedCTImage([pydicom.dcmread(p) for p in reversed(paths)], "1.2.9", 9, "1.2.9.1", 1)
    made.save_as(tmp_path / "all.dcm")
    from svd_hub.predict import dicom_out

    content, _ = dicom_out.report(Predictor(Spots())(tmp_path / "all.dcm"))
    (group,) = highdicom.sr.srread(io.BytesIO(content)).content.get_planar_roi_measurement_groups()
    reference = group.roi.ContentSequence[0].ReferencedSOPSequence[0]
    frame = made.pixel_array[int(reference.ReferencedFrameNumber) - 1].astype(int) - 1024
    ring = group.roi.value
    assert frame.max() == 700
    assert frame[int(ring[0, 1]) : int(ring[2, 1]), int(ring[0, 0]) : int(ring[2, 0])].min() == 700
