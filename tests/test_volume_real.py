"""svd_hub.volume on real scans, where there are any; expected values come with the data or from SimpleITK's reader."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from helpers_volume import dice, read_by_itk

from svd_hub.errors import VolumeError
from svd_hub.volume import list_series, read, resample, restore, write_image, write_mask

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
ORGANS, LUNG = DATA / "ct_organ_seg", DATA / "lung_petct_dx"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not (ORGANS.is_dir() and LUNG.is_dir()), reason="no real data")]
SERIES = [ORGANS / "ts_dicom_20slices" / "dicom", LUNG / "dicom_A0002_s3"]


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(array.astype("<i2").tobytes()).hexdigest()


def test_lung_series_have_the_hash_that_came_with_them() -> None:
    for entry in json.loads((LUNG / "instances.json").read_text())["series"]:
        volume = read(LUNG / entry["file"], modality="CT")
        assert sha256(volume.undo(volume.array)) == entry["sha256_int16_zyx"]
        assert list(volume.source_grid.size) == entry["shape_zyx"]
        assert np.allclose(volume.source_grid.spacing[::-1], entry["spacing_xyz"], atol=1e-4)
        assert np.allclose(volume.source_grid.origin, entry["origin_xyz"], atol=1e-3)
        assert (volume.array.min(), volume.array.max()) == (entry["hu_min"], entry["hu_max"])


@pytest.mark.parametrize("folder", SERIES, ids=lambda p: p.name)
def test_dicom_is_what_simpleitk_reads(folder: Path) -> None:
    volume, witness = read(folder), read_by_itk(folder)
    assert (volume.undo(volume.array) == sitk.GetArrayFromImage(witness)).all()
    assert volume.array.dtype == np.int16
    assert np.allclose(volume.source_grid.origin, witness.GetOrigin())
    assert np.allclose(volume.source_grid.spacing[::-1], witness.GetSpacing())
    assert np.allclose(volume.source_grid.direction, witness.GetDirection())


@pytest.mark.parametrize("folder", SERIES, ids=lambda p: p.name)
@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_dicom_and_nifti_of_one_series_are_the_same_array(tmp_path: Path, folder: Path, ending: str) -> None:
    """The other file is written by SimpleITK from its own reading of the series."""
    sitk.WriteImage(read_by_itk(folder), str(tmp_path / f"a{ending}"))
    volume, other = read(folder), read(tmp_path / f"a{ending}", modality="CT")
    assert (volume.array == other.array).all()
    assert volume.array.dtype == other.array.dtype
    assert volume.grid.is_like(other.grid, tolerance=1e-3)


def test_a_mask_whose_y_axis_is_flipped_lies_on_its_dicom_series() -> None:
    volume = read(SERIES[0])
    mask = read(ORGANS / "ts_dicom_20slices" / "seg.nii.gz")
    assert mask.source_grid.axes == "SAL"
    assert mask.grid.is_like(volume.grid, tolerance=0.01)
    names = json.loads((ORGANS / "labels.json").read_text())["ts_dicom_20slices"]
    means = {}
    for label, entry in names.items():
        inside = volume.array[mask.array == int(label)]
        assert inside.size == entry["voxels"]
        means[entry["name"]] = inside.mean()
    assert min(value for name, value in means.items() if name.startswith(("rib_", "vertebrae_", "humerus_"))) > 150
    assert 70 < means["liver"] < 110
    assert 70 < means["spleen"] < 110
    assert means["aorta"] > 150  # contrast
    assert abs(means["spinal_cord"]) < 50


def test_the_manual_liver_mask_lies_on_the_liver() -> None:
    folder = ORGANS / "dcmqi_liver_3slices"
    volume = read(folder)  # the segmentation object beside the images is left out
    mask = read(folder / "liver_seg.nrrd")
    assert mask.grid.is_like(volume.grid, tolerance=0.01)
    assert np.median(volume.array[mask.array == 1]) == 45
    for axis in range(3):  # turned over, it takes in more that is no liver
        assert volume.array[np.flip(mask.array, axis) == 1].std() > volume.array[mask.array == 1].std()
    assert volume.array.min() == -1024
    assert any("PixelPaddingValue" in note for note in volume.notes)
    assert [one.modality for one in list_series(folder)] == ["SEG", "CT"]
    with pytest.raises(VolumeError, match="SEG"):
        read(folder / "liver.dcm")


@pytest.mark.parametrize("spacing", [(1.5, 1.5, 1.5), (1.0, 1.0, 1.0), (2.5, 1.0, 1.0), (3.0, 2.0, 2.0)])
def test_a_liver_goes_through_resampling_and_orientation_and_back(
    tmp_path: Path, spacing: tuple[float, float, float]
) -> None:
    """Drawn in input space, brought to the volume, resampled, restored, written, and read by nibabel."""
    folder = ORGANS / "ts_abdomen_3mm"
    volume, drawn = read(folder / "ct.nii.gz", modality="CT"), nibabel.load(folder / "seg.nii.gz")
    liver = np.asarray(drawn.dataobj) == 5
    assert liver.sum() == 41_692
    mask = volume.turn.apply(liver.transpose(2, 1, 0))
    there = resample(volume, spacing)
    on_grid = restore(mask.astype(np.float32), of=volume, to=there, order="linear") > 0.5
    back = restore(on_grid.astype(np.float32), of=there, to=volume, order="linear") > 0.5
    written = nibabel.load(write_mask(back, volume, tmp_path / "liver.nii.gz"))
    assert np.allclose(written.affine, drawn.affine, atol=1e-4)
    assert dice(np.asarray(written.dataobj) > 0, liver) >= 0.99


def test_what_is_written_of_a_real_series_holds_nobody(tmp_path: Path) -> None:
    for folder in SERIES:
        volume = read(folder)
        data = pydicom.dcmread(volume.sources[0].path, stop_before_pixels=True)
        words = {
            str(data.get(name, "")) for name in ("PatientID", "PatientName", "StudyInstanceUID", "InstitutionName")
        }
        for ending in (".nii", ".nrrd", ".mha"):
            content = write_image(volume, tmp_path / f"a{ending}").read_bytes()
            assert not any(word.encode() in content for word in words if len(word) > 5)
            assert str(DATA).encode() not in content
