"""What is found comes back to where it was: a network that sees brightness draws a blob, in every kind of file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from helpers_masks import ABOVE, BLOB, INSIDE, SPACING, STORED, check_mask, check_seg, run
from helpers_predict import Bright, complete
from helpers_volume import (
    AXIAL,
    CORONAL,
    OBLIQUE,
    SAGITTAL,
    compress,
    make_series,
    rotation,
    save,
)
from nibabel.orientations import axcodes2ornt

from svd_hub import Inference, Predictor
from svd_hub.predict import predict_files

CODES = [a + b + c for a in "LRAPSI" for b in "LRAPSI" for c in "LRAPSI"
         if len({"LR" if x in "LR" else "AP" if x in "AP" else "SI" for x in (a, b, c)}) == 3]  # fmt: skip


def straight() -> nibabel.Nifti1Image:
    """The blob as nibabel has it, axes (x, y, z) to Left, Posterior, Superior."""
    affine = np.diag([-SPACING[2], -SPACING[1], SPACING[0], 1.0])
    affine[:3, 3] = 10.0, -20.0, 30.0
    return nibabel.Nifti1Image(BLOB.transpose(2, 1, 0).copy(), affine)


def test_there_are_48_orientations() -> None:
    assert len(CODES) == 48


@pytest.mark.parametrize("codes", CODES)
def test_nifti_of_every_orientation(tmp_path: Path, codes: str) -> None:
    """Nibabel turns the file and reads the mask; SimpleITK finds the blob's own points in it."""
    turn = nibabel.orientations.ornt_transform(nibabel.io_orientation(straight().affine), axcodes2ornt(codes))
    turned = straight().as_reoriented(turn)
    assert "".join(nibabel.aff2axcodes(turned.affine)) == codes
    nibabel.save(turned, tmp_path / "ct.nii.gz")
    path = run(tmp_path / "ct.nii.gz", tmp_path / "out") / "mask.nii.gz"
    mask = nibabel.load(path)
    assert np.allclose(mask.affine, turned.affine, atol=1e-5)
    assert (np.asarray(mask.dataobj) == (np.asarray(turned.dataobj) > ABOVE)).all()
    image = sitk.ReadImage(str(path))
    for z, y, x in np.argwhere(INSIDE)[::7].tolist():
        right, anterior, superior, _ = straight().affine @ (x, y, z, 1)
        assert image[image.TransformPhysicalPointToIndex((-right, -anterior, superior))] == 1
    assert sitk.GetArrayFromImage(image).sum() == INSIDE.sum()


@pytest.mark.parametrize("ending", ["nii.gz", "nii", "nrrd", "mha"])
@pytest.mark.parametrize("source", ["nii.gz", "nrrd", "mha"])
def test_every_format_of_an_oblique_volume(tmp_path: Path, ending: str, source: str) -> None:
    image = sitk.GetImageFromArray(BLOB)
    image.SetSpacing(SPACING[::-1])
    image.SetOrigin((10, -20, 30))
    image.SetDirection((rotation(25, 3) @ np.array([[0, 0, -1], [1, 0, 0], [0, 1, 0]])).ravel())
    sitk.WriteImage(image, str(tmp_path / f"ct.{source}"))
    mask = sitk.ReadImage(str(run(tmp_path / f"ct.{source}", tmp_path / "out", mask=ending) / f"mask.{ending}"))
    assert (sitk.GetArrayFromImage(mask) == INSIDE).all()
    for name in ("GetSpacing", "GetOrigin", "GetDirection"):
        assert np.allclose(getattr(mask, name)(), getattr(image, name)(), atol=1e-5)


# ---- DICOM ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "orientation",
    [AXIAL, CORONAL, SAGITTAL, OBLIQUE, (-1, 0, 0, 0, -1, 0), (0, 1, 0, 1, 0, 0), (1, 0, 0, 0, -1, 0)],
)
def test_dicom_of_every_orientation(tmp_path: Path, orientation: tuple[float, ...]) -> None:
    make_series(tmp_path / "in", STORED, orientation=orientation)
    result = run(tmp_path / "in", tmp_path / "out")
    check_mask(tmp_path / "in", result)
    check_seg(tmp_path / "in", result)


@pytest.mark.parametrize(
    ("pixels", "orientation", "exact"),
    [((1, 0), AXIAL, True), ((-1, 0), AXIAL, True), ((0, 2), AXIAL, True), ((-1, 1), OBLIQUE, True),
     ((-0.6, 0), AXIAL, False), ((0.4, 0.3), (-1, 0, 0, 0, 1, 0), False)],
)  # fmt: skip
def test_a_tilted_gantry(tmp_path: Path, pixels: tuple[float, float], orientation: Any, exact: bool) -> None:
    """Shifts of whole pixels come back exactly; of others, to the nearest."""
    row, column = np.reshape(orientation, (2, 3)).astype(float)
    step = 2.5 * np.cross(row, column) + pixels[0] * 0.8 * column + pixels[1] * 0.7 * row
    positions = [np.array([5.0, -7.0, 11.0]) + k * step for k in range(len(STORED))]
    make_series(tmp_path / "in", STORED, orientation=orientation, positions=positions)
    result = run(tmp_path / "in", tmp_path / "out")
    check_mask(tmp_path / "in", result, exact)
    check_seg(tmp_path / "in", result, exact)


def test_images_that_are_there_twice(tmp_path: Path) -> None:
    paths = make_series(tmp_path / "in", STORED)
    again = pydicom.dcmread(paths[4])
    again.SOPInstanceUID = "1.2.3.4.5"
    save(again, tmp_path / "in" / "again.dcm")
    shutil.copy(paths[2], tmp_path / "in" / "copy.dcm")
    result = run(tmp_path / "in", tmp_path / "out")
    check_mask(tmp_path / "in", result)
    check_seg(tmp_path / "in", result)


def test_gaps_that_were_filled(tmp_path: Path) -> None:
    """The volume's mask has the filled slice, the object for the images has not."""
    paths = make_series(tmp_path / "in", STORED)
    paths[6].unlink()
    (case,) = predict_files(Predictor(Bright(ABOVE)), [tmp_path / "in"], tmp_path / "out")
    assert "missing" in case.error
    result = run(tmp_path / "in", tmp_path / "out", missing="fill")
    check_mask(tmp_path / "in", result)
    check_seg(tmp_path / "in", result)
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(result / "mask.nii.gz")))
    assert mask.shape == STORED.shape
    assert mask[6].any()


@pytest.mark.parametrize("kind", ["JPEG", "JPEG2000"])
def test_compressed_images(tmp_path: Path, kind: str) -> None:
    plain = make_series(tmp_path / "plain", STORED)
    shutil.copytree(tmp_path / "plain", tmp_path / "in")
    for path in plain:
        compress(tmp_path / "in" / path.name, kind)
    result = run(tmp_path / "in", tmp_path / "out")
    check_mask(tmp_path / "plain", result)
    check_seg(tmp_path / "plain", result)


@pytest.mark.parametrize("order", [1, -1])
def test_one_enhanced_file(tmp_path: Path, order: int) -> None:
    from highdicom.legacy import LegacyConvertedEnhancedCTImage

    paths = make_series(tmp_path / "single", STORED, edit=complete)[::order]
    made = LegacyConvertedEnhancedCTImage([pydicom.dcmread(p) for p in paths], "1.2.9", 9, "1.2.9.1", 1)
    (tmp_path / "in").mkdir()
    made.save_as(tmp_path / "in" / "all.dcm")
    for place in (tmp_path / "in", tmp_path / "in" / "all.dcm"):
        result = run(place, tmp_path / f"out {place.name}")
        check_mask(tmp_path / "single", result)
        seg = highdicom.seg.segread(result / "mask.dcm")
        frames = list(range(1, len(STORED) + 1))
        masks = seg.get_pixels_by_source_frame(made.SOPInstanceUID, frames, ignore_spatial_locations=True,
                                               assert_missing_frames_are_empty=True)  # fmt: skip
        truth = made.pixel_array.astype(int) - 1024 > ABOVE
        assert (masks[..., 0].astype(bool) == truth).all()


@pytest.mark.parametrize("orientation", [AXIAL, CORONAL, OBLIQUE])
def test_dicom_and_nifti_of_one_series_give_the_same(tmp_path: Path, orientation: tuple[float, ...]) -> None:
    """A real network; the NIfTI file is SimpleITK's own reading of the series."""
    from helpers_predict import segmenter
    from helpers_volume import read_by_itk

    make_series(tmp_path / "in", STORED, orientation=orientation)
    sitk.WriteImage(read_by_itk(tmp_path / "in"), str(tmp_path / "ct.nii.gz"))
    predictor = Predictor(segmenter(rule={"spacing": (2.0, 1.0, 1.0)}))
    one, other = predictor(tmp_path / "in"), predictor(tmp_path / "ct.nii.gz")
    assert (one.labels == other.labels).all()
    assert len(np.unique(one.labels)) > 2
    assert one.volume.grid.is_like(other.volume.grid, tolerance=1e-3)


# ---- arrays in files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", [AXIAL, OBLIQUE, SAGITTAL])
def test_volumes_that_lie_in_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, orientation: Any) -> None:
    """What is done with long scans, done with a short one: everything is mapped, and released all the time."""
    from svd_hub.volume import memory

    make_series(tmp_path / "in", STORED, orientation=orientation)
    model = Bright(ABOVE, spacing=(2.5, 0.9, 0.7), orientation="RAS")
    model.inference = Inference(window=(8, 8, 8), largest=("blob",))
    plain = run(tmp_path / "in", tmp_path / "plain", model)
    monkeypatch.setattr(memory, "MAPPED", 1)
    monkeypatch.setattr(memory, "SLAB", 1000)
    assert memory.is_mapped(Predictor(model)(tmp_path / "in").scan.array)
    mapped = run(tmp_path / "in", tmp_path / "mapped", model)
    assert (plain / "mask.nii.gz").read_bytes() == (mapped / "mask.nii.gz").read_bytes()
    told = [json.loads((folder / "result.json").read_text()) for folder in (plain, mapped)]
    for result in told:
        assert "seconds" in result.pop("made")  # when and how fast may differ
    assert told[0] == told[1]
    one, two = (highdicom.seg.segread(folder / "mask.dcm").pixel_array for folder in (plain, mapped))
    assert (one == two).all()
    assert one.any()
