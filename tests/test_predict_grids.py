"""What is found comes back to where it was: a network that sees brightness draws a blob, in every kind of file."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch
from helpers_predict import Bright, blob
from helpers_volume import (
    AXIAL,
    CORONAL,
    OBLIQUE,
    SAGITTAL,
    compress,
    dice,
    make_series,
    rotation,
    save,
)
from nibabel.orientations import axcodes2ornt
from pydicom.dataset import Dataset
from torch import Tensor

from svd_hub import Inference, Predictor
from svd_hub.predict import Outputs, predict_files

BLOB, INSIDE = blob()
STORED = (BLOB + 1024).astype(np.uint16)
ABOVE = 500  # HU: what is brighter is the blob
SPACING = (2.5, 0.8, 0.7)
CODES = [a + b + c for a in "LRAPSI" for b in "LRAPSI" for c in "LRAPSI"
         if len({"LR" if x in "LR" else "AP" if x in "AP" else "SI" for x in (a, b, c)}) == 3]  # fmt: skip


def run(path: Path, out: Path, model: Any = None, *, mask: str = "nii.gz", **options: Any) -> Path:
    """Predict one input; return the folder of its result."""
    want = Outputs(mask=mask, picture=False)
    (case,) = predict_files(Predictor(model or Bright(ABOVE)), [path], out, outputs=want, **options)
    assert case.state == "done", case.error
    return out / case.name


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


def bright(data: Dataset) -> np.ndarray:
    return data.pixel_array.astype(int) * int(data.RescaleSlope) + int(data.RescaleIntercept) > ABOVE


def check_mask(folder: Path, result: Path, exact: bool = True) -> None:
    """The written volume, asked for by SimpleITK where each pixel of each image lies in the patient."""
    mask = sitk.ReadImage(str(result / "mask.nii.gz"))
    found, truth = [], []
    for path in sorted(folder.rglob("*.dcm")):
        data = pydicom.dcmread(path)
        row, column = np.reshape(data.ImageOrientationPatient, (2, 3)).astype(float)
        origin = np.array(data.ImagePositionPatient, float)
        down, right = map(float, data.PixelSpacing)
        inside = bright(data)
        for y, x in np.ndindex(inside.shape):
            if y % 2 or inside[y, x]:
                point = origin + x * right * row + y * down * column
                index = mask.TransformPhysicalPointToIndex(point.tolist())
                there = all(0 <= i < n for i, n in zip(index, mask.GetSize(), strict=True))
                found.append(there and mask[index] == 1)
                truth.append(inside[y, x])
    assert sum(truth) > 50
    if exact:
        assert found == truth
    else:
        assert dice(np.array(found), np.array(truth)) > 0.85


def check_seg(folder: Path, result: Path, exact: bool = True) -> None:
    """The DICOM object, read by highdicom image by image, by the UIDs it refers to."""
    seg = highdicom.seg.segread(result / "mask.dcm")
    files = {str(data.SOPInstanceUID): data for data in map(pydicom.dcmread, sorted(folder.rglob("*.dcm")))}
    referred = [uid for _, _, uid in seg.get_source_image_uids()]
    assert set(referred) <= set(files)
    masks = seg.get_pixels_by_source_instance(referred, ignore_spatial_locations=True)
    assert masks.shape[-1] == 1
    found, truth = masks[..., 0] > 0, np.stack([bright(files[uid]) for uid in referred])
    assert truth.any()
    assert (found == truth).all() if exact else dice(found, truth) > 0.85
    one = next(iter(files.values()))
    for name in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert getattr(seg, name) == getattr(one, name)
    assert seg.SeriesInstanceUID != one.SeriesInstanceUID
    assert [item.SegmentLabel for item in seg.SegmentSequence] == ["blob"]


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


def complete(data: Dataset, k: int) -> None:
    """What highdicom's converter asks of a CT image."""
    data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL", "NONE"]
    data.StudyDate = data.ContentDate = data.AcquisitionDate = "20200101"
    data.StudyTime = data.ContentTime = data.AcquisitionTime = "000000"
    data.PatientSex, data.StudyID, data.AccessionNumber, data.ReferringPhysicianName = "O", "1", "1", ""
    data.Manufacturer, data.PositionReferenceIndicator, data.RescaleType = "svd-hub", "", "HU"
    data.KVP, data.AcquisitionNumber, data.PatientPosition = "120", "1", "HFS"


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


# ---- what DICOM objects cannot be made of --------------------------------------------------------------------------


def notes_of(result: Path) -> str:
    return (result / "result.json").read_text()


def test_nothing_found_is_no_object_and_says_so(tmp_path: Path) -> None:
    make_series(tmp_path / "in", STORED)
    result = run(tmp_path / "in", tmp_path / "out", Bright(5000.0))
    assert not (result / "mask.dcm").exists()
    assert "no mask.dcm: no voxel has a class" in notes_of(result)
    assert sitk.GetArrayFromImage(sitk.ReadImage(str(result / "mask.nii.gz"))).max() == 0


class Band(Bright):
    """Class 1 where the value is near `above`."""

    def forward(self, x: Tensor) -> Tensor:
        logit = 40 - (x[:, :1] - self.above).abs()
        return torch.cat((-logit, logit), 1)


def test_a_class_on_filled_slices_alone(tmp_path: Path) -> None:
    """Between 176 and 1376 HU lies 776, on the slice that no image shows."""
    stored = STORED.copy()
    stored[INSIDE] = 900
    stored[3, 4:8, 4:8], stored[5, 4:8, 4:8] = 1200, 2400
    make_series(tmp_path / "in", stored)[4].unlink()
    result = run(tmp_path / "in", tmp_path / "out", Band(776.0, window=(-1000.0, 2000.0)), missing="fill")
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(result / "mask.nii.gz")))
    assert mask[4, 4:8, 4:8].all()
    assert mask.sum() == 16
    assert not (result / "mask.dcm").exists()
    assert "no mask.dcm: no voxel has a class" in notes_of(result)


@pytest.mark.parametrize("names", [
    ("SOPInstanceUID",), ("StudyInstanceUID",), ("FrameOfReferenceUID",), ("SOPClassUID", "SOPInstanceUID"),
    ("PatientName", "PatientID", "PatientBirthDate"), ("StudyInstanceUID", "FrameOfReferenceUID"),
])  # fmt: skip
def test_identifiers_that_were_emptied(tmp_path: Path, names: tuple[str, ...]) -> None:
    """As some anonymisers leave them: the object is made all the same, and the notes say what is new."""

    def emptied(data: Dataset, k: int) -> None:
        data.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.4.{k + 1}"
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
        for name in names:
            if k % 2:
                delattr(data, name)
            else:
                setattr(data, name, "")

    def edit(data: Dataset, k: int) -> None:
        emptied(data, 0 if len(names) == 1 and names[0] == "FrameOfReferenceUID" else k)
        data.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.4.{k + 1}"

    paths = make_series(tmp_path / "raw", STORED)
    (tmp_path / "in").mkdir()
    for k, path in enumerate(paths):
        data = pydicom.dcmread(path)
        edit(data, k)
        data.save_as(tmp_path / "in" / path.name, enforce_file_format=False)
    result = run(tmp_path / "in", tmp_path / "out")
    assert (result / "mask.dcm").exists(), notes_of(result)
    seg = highdicom.seg.segread(result / "mask.dcm")
    assert seg.pixel_array.sum() == INSIDE.sum()
    if not names[0].startswith("Patient"):
        assert "have no" in notes_of(result)


def test_files_without_a_preamble(tmp_path: Path) -> None:
    """Read with a word, and referred to as well."""
    for path in make_series(tmp_path / "raw", STORED):
        (tmp_path / "in").mkdir(exist_ok=True)
        data = pydicom.dcmread(path)
        with (tmp_path / "in" / path.name).open("wb") as file:
            pydicom.dcmwrite(file, Dataset(data), implicit_vr=False, little_endian=True, enforce_file_format=False)
    assert (tmp_path / "in" / "0000.dcm").read_bytes()[128:132] != b"DICM"
    result = run(tmp_path / "in", tmp_path / "out")
    assert (result / "mask.dcm").exists(), notes_of(result)


@pytest.mark.parametrize("edit", [
    lambda data, k: setattr(data, "StudyDate", "not a date"),
    lambda data, k: setattr(data, "PatientBirthDate", "99999999"),
    lambda data, k: setattr(data, "PatientName", "=" * 8),
    lambda data, k: setattr(data, "PatientSex", "UNKNOWN AND TOO LONG FOR ITS VR"),
    lambda data, k: setattr(data, "SpecificCharacterSet", "ISO_IR 999"),
    lambda data, k: setattr(data, "StudyInstanceUID", "not.a.uid"),
    lambda data, k: setattr(data, "AccessionNumber", "x" * 300),
])  # fmt: skip
def test_odd_headers_cost_the_object_at_most(tmp_path: Path, edit: Callable[[Dataset, int], None]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom says what is wrong with the values
        make_series(tmp_path / "in", STORED, edit=edit)
    result = run(tmp_path / "in", tmp_path / "out")
    assert (result / "mask.nii.gz").exists()
    if not (result / "mask.dcm").exists():
        assert "no mask.dcm: no DICOM Segmentation can be made" in notes_of(result)


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
    for name in ("mask.nii.gz", "result.json"):
        assert (plain / name).read_bytes() == (mapped / name).read_bytes()
    one, two = (highdicom.seg.segread(folder / "mask.dcm").pixel_array for folder in (plain, mapped))
    assert (one == two).all()
    assert one.any()
