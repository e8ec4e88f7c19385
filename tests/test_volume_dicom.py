"""DICOM, image by image: the same voxels as SimpleITK's reader where that is right, and every value accounted for."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pydicom.data
import pytest
import SimpleITK as sitk
from helpers_volume import (
    AXIAL,
    CORONAL,
    HU,
    OBLIQUE,
    SAGITTAL,
    STORED,
    compress,
    make_series,
    read_by_itk,
    sample,
)
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from svd_hub.errors import VolumeError
from svd_hub.volume import read


def same_as_itk(folder: Path, **options: Any) -> None:
    volume, witness = read(folder, **options), read_by_itk(folder)
    assert np.allclose(volume.undo(volume.array), sitk.GetArrayFromImage(witness), atol=1e-3)
    assert np.allclose(volume.source_grid.origin, witness.GetOrigin(), atol=1e-4)
    assert np.allclose(volume.source_grid.spacing[::-1], witness.GetSpacing(), atol=1e-4)
    assert np.allclose(volume.source_grid.direction, witness.GetDirection(), atol=1e-6)
    turned = sitk.DICOMOrient(witness, "LPS")
    assert np.allclose(volume.array, sitk.GetArrayFromImage(turned), atol=1e-3)
    assert np.allclose(volume.grid.origin, turned.GetOrigin(), atol=1e-4)


# ---- as SimpleITK reads it -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", [AXIAL, CORONAL, SAGITTAL, OBLIQUE, (-1, 0, 0, 0, -1, 0), (0, 1, 0, 1, 0, 0)])
def test_every_orientation_is_simpleitks(tmp_path: Path, orientation: tuple[float, ...]) -> None:
    make_series(tmp_path, STORED, orientation=orientation)
    same_as_itk(tmp_path)
    volume = read(tmp_path)
    assert volume.array.dtype == np.int16
    assert volume.grid.axes == "SPL"
    assert (volume.modality, volume.unit) == ("CT", "HU")
    assert (volume.undo(volume.array) == HU).all() or (volume.undo(volume.array) == HU[::-1]).all()


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("signed", [False, True])
def test_every_plain_transfer_syntax(tmp_path: Path, syntax: str, signed: bool) -> None:
    stored = HU.astype(np.int16) if signed else STORED
    make_series(tmp_path, stored, syntax=syntax, intercept=0 if signed else -1024)
    same_as_itk(tmp_path)
    assert (read(tmp_path).array == HU).all()


@pytest.mark.parametrize("kind", ["JPEG", "JPEG2000"])
@pytest.mark.parametrize("signed", [False, True])
def test_lossless_compression_changes_nothing(tmp_path: Path, kind: str, signed: bool) -> None:
    stored = HU.astype(np.int16) if signed else STORED
    for path in make_series(tmp_path, stored, intercept=0 if signed else -1024):
        compress(path, kind)
        assert pydicom.dcmread(path).file_meta.TransferSyntaxUID.is_compressed
    volume = read(tmp_path)
    assert (volume.array == HU).all()
    assert volume.array.dtype == np.int16


@pytest.mark.parametrize(
    "name",
    ["MR_small.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "CT_small.dcm",
     "MR_small_bigendian.dcm", "MR_small_implicit.dcm", "MR_small_padded.dcm", "693_J2KI.dcm", "examples_overlay.dcm",
     "J2K_pixelrep_mismatch.dcm"],
)  # fmt: skip
def test_the_samples_of_pydicom_made_into_a_series(tmp_path: Path, name: str) -> None:
    data = pydicom.dcmread(sample(name))
    witness = sitk.GetArrayFromImage(sitk.ReadImage(str(sample(name))))[0]
    for k in range(3):
        data.ImagePositionPatient = [0, 0, 3 * k]
        data.ImageOrientationPatient = list(AXIAL)
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"1.2.{k + 1}"
        data.InstanceNumber = k
        data.save_as(tmp_path / f"{k}.dcm")
    volume = read(tmp_path)
    if "PixelPaddingValue" in data and data.Modality == "CT":
        witness = np.where(pydicom.dcmread(sample(name)).pixel_array == data.PixelPaddingValue, -1024, witness)
    assert volume.shape == (3, data.Rows, data.Columns)
    assert all((plane == witness).all() for plane in volume.array)


def test_enhanced_ct_made_by_highdicom(tmp_path: Path) -> None:
    legacy = pytest.importorskip("highdicom.legacy")
    paths = make_series(tmp_path / "single", STORED, edit=complete)
    made = legacy.LegacyConvertedEnhancedCTImage(
        [pydicom.dcmread(p) for p in reversed(paths)], "1.2.9", 9, "1.2.9.1", 1
    )  # fmt: skip
    (tmp_path / "enhanced").mkdir()
    made.save_as(tmp_path / "enhanced" / "all.dcm")
    single = read(tmp_path / "single")
    for path in (tmp_path / "enhanced", tmp_path / "enhanced" / "all.dcm"):
        volume = read(path)
        assert (volume.array == single.array).all()
        assert volume.grid.is_like(single.grid)
        assert (volume.modality, volume.unit, volume.array.dtype) == ("CT", "HU", np.int16)
        frames = pydicom.dcmread(tmp_path / "enhanced" / "all.dcm").pixel_array
        for source in volume.sources:
            assert (frames[source.frame] == STORED[source.plane]).all()


def complete(data: Dataset, k: int) -> None:
    """What highdicom's converter asks of a CT image."""
    data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL", "NONE"]
    data.StudyDate = data.ContentDate = data.AcquisitionDate = "20200101"
    data.StudyTime = data.ContentTime = data.AcquisitionTime = "000000"
    data.PatientSex, data.StudyID, data.AccessionNumber, data.ReferringPhysicianName = "O", "1", "1", ""
    data.Manufacturer, data.PositionReferenceIndicator, data.RescaleType = "svd-hub", "", "HU"
    data.KVP, data.AcquisitionNumber, data.PatientPosition = "120", "1", "HFS"


def test_a_file_stands_for_its_series(tmp_path: Path) -> None:
    paths = make_series(tmp_path, STORED)
    make_series(tmp_path / "other", STORED, series="1.2.99")
    make_series(tmp_path / "beside", STORED, series="1.2.98")
    for path in (tmp_path / "beside").iterdir():
        path.rename(tmp_path / f"beside_{path.name}")
    volume = read(paths[3])
    assert (volume.array == HU).all()
    assert any("7 images of the series beside the file" in note for note in volume.notes)
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(paths[3], alone)
    with pytest.raises(VolumeError, match="one slice, a 2D image"):
        read(next(alone.iterdir()))


def test_names_links_and_folders_do_not_matter(tmp_path: Path) -> None:
    store = tmp_path / "store"
    for k, path in enumerate(make_series(store, STORED)):
        folder = tmp_path / "series" / f"{k % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"IM{k}").symlink_to(path)
    (tmp_path / "series" / "README.txt").write_text("hello")
    (tmp_path / "series" / "ring").symlink_to(tmp_path / "series")
    assert (read(tmp_path / "series").array == HU).all()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "series")
    assert (read(link).array == HU).all()


def test_a_data_set_without_preamble_is_read(tmp_path: Path) -> None:
    for path in make_series(tmp_path, STORED, syntax=ImplicitVRLittleEndian):
        whole = path.read_bytes()
        path.write_bytes(whole[whole.index(b"\x08\0\x08\0") :])  # from ImageType on
    assert (read(tmp_path).array == HU).all()


# ---- values --------------------------------------------------------------------------------------------------------


def test_each_slice_has_its_own_slope(tmp_path: Path) -> None:
    slopes = [1, 2, 0.5, 1, 1, 3, 1]

    def edit(data: Dataset, k: int) -> None:
        data.RescaleSlope, data.RescaleIntercept = str(slopes[k]), str(-k)

    make_series(tmp_path, STORED, edit=edit, modality="MR")
    volume = read(tmp_path)
    expected = STORED * np.array(slopes)[:, None, None] - np.arange(7)[:, None, None]
    assert np.allclose(volume.array, expected)
    assert volume.array.dtype == np.float32
    assert any("slopes or intercepts of their own" in note for note in volume.notes)


def test_whole_slopes_stay_int16_and_what_does_not_fit_does_not(tmp_path: Path) -> None:
    make_series(tmp_path / "a", STORED, slope="1.000000", intercept="-1024.0")
    assert read(tmp_path / "a").array.dtype == np.int16
    make_series(tmp_path / "b", STORED, slope=20, intercept=0)
    volume = read(tmp_path / "b")
    assert volume.array.dtype == np.float32
    assert (volume.array == STORED.astype(int) * 20).all()
    make_series(tmp_path / "c", (STORED + 40000).astype(np.uint16), intercept=-40000)
    assert (read(tmp_path / "c").array == STORED).all()
    make_series(tmp_path / "d", STORED, slope="0.1", intercept="0")
    assert np.allclose(read(tmp_path / "d").array, STORED * 0.1)


@pytest.mark.parametrize("signed", [False, True])
def test_bits_beside_the_stored_ones_are_not_read(tmp_path: Path, signed: bool) -> None:
    """Twelve bits in sixteen, an old overlay in the upper four."""
    values = STORED.astype(int) % 4096 - (2048 if signed else 0)
    stored = (values % 4096 + 0x3000).astype(np.uint16)

    def edit(data: Dataset, _: int) -> None:
        data.BitsStored, data.HighBit, data.PixelRepresentation = 12, 11, int(signed)

    make_series(tmp_path, stored, edit=edit, intercept=0)
    assert (read(tmp_path).array == values).all()


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize(("signed", "padding"), [(True, -2000), (True, 63536), (False, 63536), (False, 0)])
def test_padding_becomes_air(tmp_path: Path, signed: bool, padding: int, syntax: str) -> None:
    """63536 is -2000 as some writers put it."""
    stored = (STORED.astype(int) + 1).astype(np.int16 if signed else np.uint16)
    outside = -2000 if signed else padding
    stored[:, :5], stored[2, :, :] = outside, np.maximum(stored[2], 1)

    def edit(data: Dataset, _: int) -> None:
        data.add_new(0x00280120, "US" if padding >= 0 else "SS", padding)

    make_series(tmp_path, stored, edit=edit, syntax=syntax, intercept=-24)
    volume = read(tmp_path)
    expected = np.where(stored == outside, -1024, stored.astype(int) - 24)
    assert (expected == -1024).sum() == 6 * 5 * 24
    assert (volume.array == expected).all()
    assert "720 voxels are padding (PixelPaddingValue): set to -1024" in volume.notes


def test_padding_of_an_mr_becomes_its_lowest_value_and_a_range_is_one(tmp_path: Path) -> None:
    stored = STORED.astype(np.int16) + 10
    stored[:, 0], stored[:, 1], stored[:, 2] = -5, -4, -3

    def edit(data: Dataset, _: int) -> None:
        data.add_new(0x00280120, "SS", -5)
        data.add_new(0x00280121, "SS", -4)

    make_series(tmp_path, stored, edit=edit, modality="MR", intercept=0)
    assert (read(tmp_path).array == np.where(stored < -3, -3, stored)).all()


def test_padding_everywhere_is_no_image(tmp_path: Path) -> None:
    def edit(data: Dataset, _: int) -> None:
        data.add_new(0x00280120, "US", 7)

    make_series(tmp_path / "mr", np.full_like(STORED, 7), edit=edit, modality="MR")
    make_series(tmp_path / "ct", np.full_like(STORED, 7), edit=edit)
    for name, message in (("mr", "every voxel is padding"), ("ct", "every voxel is -1024")):
        with pytest.raises(VolumeError, match=message):
            read(tmp_path / name)


def test_monochrome1_is_display_for_ct_and_inverted_for_mr(tmp_path: Path) -> None:
    def edit(data: Dataset, _: int) -> None:
        data.PhotometricInterpretation = "MONOCHROME1"

    make_series(tmp_path / "ct", STORED, edit=edit)
    volume = read(tmp_path / "ct")
    assert (volume.array == HU).all()
    assert any("MONOCHROME1 is about display only" in note for note in volume.notes)
    make_series(tmp_path / "mr", STORED, edit=edit, modality="MR", intercept=0)
    volume = read(tmp_path / "mr")
    assert (volume.array == int(STORED.max()) + int(STORED.min()) - STORED.astype(int)).all()
    assert any("inverted" in note for note in volume.notes)


def test_units_that_are_not_hu_are_said(tmp_path: Path) -> None:
    def dual_energy(data: Dataset, _: int) -> None:
        data.RescaleType = "Z_EFF"

    def bare(data: Dataset, _: int) -> None:
        del data.RescaleSlope, data.RescaleIntercept

    make_series(tmp_path / "a", STORED, edit=dual_energy)
    volume = read(tmp_path / "a")
    assert volume.unit == "Z_EFF"
    assert "the values are 'Z_EFF', not HU" in volume.notes
    make_series(tmp_path / "b", HU.astype(np.int16), edit=bare)
    volume = read(tmp_path / "b")
    assert (volume.array == HU).all()
    assert any("no rescale slope" in note for note in volume.notes)


def test_missing_libraries_are_named(tmp_path: Path) -> None:
    make_series(tmp_path, STORED)
    for library, call in (("pydicom", "read(sys.argv[1])"), ("SimpleITK", "read(sys.argv[1]).image")):
        code = (
            f"import sys; sys.modules[{library!r}] = None; from svd_hub.volume import read\n"
            "from svd_hub.errors import MissingExtraError\n"
            f"try: {call}\nexcept MissingExtraError as error: print(error)"
        )
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
        assert done.stdout == f'{library} is not installed. Next: pip install "svd-hub[volume]"\n', done.stderr


def test_importing_brings_in_neither_library() -> None:
    code = "import sys, svd_hub.volume; print(sorted({'SimpleITK', 'pydicom', 'torch', 'monai'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_sources_lead_back_to_the_images(tmp_path: Path) -> None:
    for orientation in (AXIAL, CORONAL, OBLIQUE):
        folder = tmp_path / str(orientation)
        make_series(folder, STORED, orientation=orientation)
        volume = read(folder)
        planes = volume.to_planes(volume.array)
        assert [source.plane for source in volume.sources] == list(range(7))
        for plane, source in itertools.zip_longest(planes, volume.sources):
            data = pydicom.dcmread(source.path)
            assert (plane == data.pixel_array.astype(int) - 1024).all()
            corner = volume.source_grid.points(np.array([source.plane, 0, 0]))
            assert np.allclose(corner, data.ImagePositionPatient, atol=1e-6)
