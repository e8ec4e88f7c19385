"""DICOM, image beside image: places that are not even, folders of several series and patients, damaged files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pydicom.data
import pytest
from helpers_volume import (
    AXIAL,
    CORONAL,
    HU,
    IDENTITY,
    NAME,
    OBLIQUE,
    PLACE,
    STORED,
    compress,
    image,
    make_series,
    no_itk_warnings,
    phantom,
    read_by_itk,
    sample,
    save,
)
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from svd_hub.errors import OptionError, VolumeError
from svd_hub.volume import list_series, read

# ---- places --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", [AXIAL, OBLIQUE])
def test_a_missing_slice_is_refused_or_filled(tmp_path: Path, orientation: tuple[float, ...]) -> None:
    paths = make_series(tmp_path, STORED, orientation=orientation)
    paths[3].unlink()
    with pytest.raises(VolumeError, match=r"1 slice\(s\) are missing in 1 place.*images 3 and 5.*missing='fill'"):
        read(tmp_path)
    volume = read(tmp_path, missing="fill")
    got = volume.undo(volume.array)
    kept = [0, 1, 2, 4, 5, 6]
    assert (got[kept] == HU[kept]).all()
    assert np.abs(got[3] - (HU[2] + HU[4]) / 2).max() <= 0.5
    assert [source.plane for source in volume.sources] == kept
    assert any("filled in by linear interpolation" in note for note in volume.notes)
    mask = (volume.array > 500).astype(np.uint8)
    assert (volume.to_planes(mask) == volume.undo(mask)[kept]).all()
    (line,) = list_series(tmp_path)
    assert (line.slices, line.size) == (6, (7, 20, 24))


def test_slices_that_are_there_twice_are_dropped(tmp_path: Path) -> None:
    paths = make_series(tmp_path, STORED)
    shutil.copy(paths[2], tmp_path / "copy.dcm")
    again = pydicom.dcmread(paths[5])
    again.SOPInstanceUID = "1.2.3.4.5"
    save(again, tmp_path / "again.dcm")
    (tmp_path / "link.dcm").symlink_to(paths[0])
    volume = read(tmp_path)
    assert (volume.array == HU).all()
    assert len(volume.sources) == 7
    assert any(note.startswith("3 image(s) were there twice") for note in volume.notes)


@pytest.mark.parametrize("packed", [False, True])
def test_different_images_at_one_place_are_refused(tmp_path: Path, packed: bool) -> None:
    def late(data: Dataset, k: int) -> None:
        data.AcquisitionNumber, data.InstanceNumber = "2", k + 8

    paths = make_series(tmp_path / "a", STORED) + make_series(tmp_path / "b", phantom(seed=1), edit=late)
    if packed:
        for path in paths:
            compress(path, "JPEG")
    with pytest.raises(VolumeError, match=r"14 images, 7 places.*4D.*AcquisitionNumber, InstanceNumber.*Next"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ([0, 5, 10, 15, 17.5, 20, 22.5], r"2.5 to 5 mm apart \(mixed spacing\).*images 1 and 2"),
        ([0, 5, 10, 15, 18, 21, 24], r"3 to 5 mm apart \(mixed spacing\).*evenly resampled"),
        ([0, 5, 10, 15, 20, 25, 300], "slices would be invented|missing"),
    ],
)
def test_mixed_spacing_is_refused(tmp_path: Path, places: list[float], message: str) -> None:
    make_series(tmp_path, STORED, positions=[(0, 0, z) for z in places])
    with pytest.raises(VolumeError, match=message):
        read(tmp_path)


def test_mixed_spacing_of_multiples_can_be_filled_and_too_much_cannot(tmp_path: Path) -> None:
    make_series(tmp_path / "a", STORED, positions=[(0, 0, z) for z in (0, 5, 10, 15, 17.5, 20, 22.5)])
    volume = read(tmp_path / "a", missing="fill")
    assert volume.shape[0] == 10
    assert volume.spacing[0] == pytest.approx(2.5)
    assert (volume.array[[0, 2, 4, 6, 7, 8, 9]] == HU).all()
    make_series(tmp_path / "b", STORED, positions=[(0, 0, z) for z in (0, 5, 10, 15, 20, 25, 300)])
    with pytest.raises(VolumeError, match="slices would be invented for 7"):
        read(tmp_path / "b", missing="fill")


def test_rounded_positions_are_even(tmp_path: Path) -> None:
    """Slices of 0.625 mm with two decimals, as some scanners write them; and a real jitter, which is said."""
    make_series(tmp_path / "a", STORED, positions=[(0, 0, round(0.625 * k, 2)) for k in range(7)])
    volume = read(tmp_path / "a")
    assert volume.spacing[0] == pytest.approx(0.625, abs=0.001)
    assert volume.notes == ()
    make_series(tmp_path / "b", STORED, positions=[(0, 0, 2.5 * k + 0.1 * (k % 2)) for k in range(7)])
    (note,) = read(tmp_path / "b").notes
    assert "off even places" in note


@pytest.mark.parametrize("degrees", [(12.0, 0.0), (-20.0, 0.0), (5.0, 8.0)])
@pytest.mark.parametrize("orientation", [AXIAL, OBLIQUE])
def test_a_tilted_gantry_is_corrected(
    tmp_path: Path, degrees: tuple[float, float], orientation: tuple[float, ...]
) -> None:
    """A field that is linear in space is known everywhere, and linear interpolation keeps it exactly."""
    spacing = (3.0, 0.8, 0.7)
    row, column = np.reshape(orientation, (2, 3))
    shift = 3.0 * (np.tan(np.radians(degrees[0])) * column + np.tan(np.radians(degrees[1])) * row)
    step = 3.0 * np.cross(row, column) + shift
    gradient = np.array([3.0, -5.0, 7.0])
    y, x = np.mgrid[:20, :24]
    stored, positions = [], []
    for k in range(7):
        origin = np.array([-10.0, 20.0, -30.0]) + k * step
        places = origin + y[..., None] * 0.8 * column + x[..., None] * 0.7 * row
        stored.append(np.rint(20 * (places @ gradient)).astype(np.int16))
        positions.append(origin)
    place = {"spacing": spacing, "orientation": orientation, "positions": positions}
    make_series(tmp_path, np.array(stored), **place, slope="0.05", intercept=0)
    volume = read(tmp_path, modality="CT")
    assert any("tilted gantry" in note for note in volume.notes)
    index = np.argwhere(volume.array > -1000)
    values = volume.array[tuple(index.T)]
    truth = volume.grid.points(index) @ gradient
    inside = np.abs(values - truth) < 0.1
    assert inside.sum() >= 7 * 19 * 23  # all of every slice but the rims, which mix with air
    planes = volume.to_planes((volume.array > np.median(stored) / 20).astype(np.uint8))
    assert planes.shape == (7, 20, 24)
    order = [pydicom.dcmread(source.path).InstanceNumber - 1 for source in volume.sources]
    wanted = np.array(stored)[order] > np.median(stored)
    assert (planes == wanted).mean() > 0.95  # the nearest voxel is up to half a pixel off
    with no_itk_warnings():
        assert read_by_itk(tmp_path).GetSize()[2] == 7  # SimpleITK stacks it as if it were straight


def test_slices_shifted_at_random_are_refused(tmp_path: Path) -> None:
    make_series(tmp_path, STORED, positions=[(5 * (k == 3), 0, 2.5 * k) for k in range(7)])
    with pytest.raises(VolumeError, match="shifted sideways"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("PixelSpacing", ["0.9", "0.7"], "2 pixel spacings"),
        ("ImageOrientationPatient", ["0", "1", "0", "-1", "0", "0"], "1 of 7 images are turned"),
        ("FrameOfReferenceUID", "1.2.9", "2 frames of reference"),
        ("RescaleType", "US", "2 units"),
        ("PhotometricInterpretation", "MONOCHROME1", "2 kinds of MONOCHROME"),
        ("ImagePositionPatient", None, "1 of 7 images do not say where they lie"),
        ("PixelSpacing", ["0", "0.7"], "pixel spacings|spacing"),
        ("RescaleSlope", "0", "RescaleSlope of 0"),
        ("ModalityLUTSequence", Sequence([Dataset()]), "modality look-up table"),
        ("SamplesPerPixel", 3, "colour picture"),
    ],
)
def test_one_image_unlike_the_others_is_refused(tmp_path: Path, name: str, value: Any, message: str) -> None:
    def edit(data: Dataset, k: int) -> None:
        if k == 2:
            if value is None:
                del data[name]
            else:
                setattr(data, name, value)

    make_series(tmp_path, STORED, edit=edit)
    with pytest.raises(VolumeError, match=message) as caught:
        read(tmp_path)
    assert "Next" in str(caught.value)


def test_sizes_that_differ_are_refused_and_a_scout_is_left_out(tmp_path: Path) -> None:
    make_series(tmp_path, STORED)
    scout = image(STORED[0][:10], orientation=CORONAL, instance=99)
    save(scout, tmp_path / "scout.dcm")
    with pytest.raises(VolumeError, match=r"2 sizes: \(10, 24\), \(20, 24\)"):
        read(tmp_path)
    scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    save(scout, tmp_path / "scout.dcm")
    volume = read(tmp_path)
    assert (volume.array == HU).all()
    assert "1 localizer image(s) of the series left out" in volume.notes


# ---- folders of several --------------------------------------------------------------------------------------------


def test_several_series_are_listed_and_one_is_asked_for(tmp_path: Path) -> None:
    make_series(tmp_path / "a", STORED, series="1.2.1", number=3)
    make_series(tmp_path / "b", phantom(seed=1), series="1.2.2", number=4, spacing=(5.0, 0.8, 0.7))
    make_series(tmp_path / "c", STORED, series="1.2.3", number=5, modality="MR")
    with pytest.raises(VolumeError) as caught:
        read(tmp_path)
    message = str(caught.value)
    assert "3 series that could be read. Next: name one with series=" in message
    assert "number 4, CT, 7 image(s), 7 x 20 x 24 at 5 x 0.8 x 0.7 mm\n" in message
    assert "1.2.2" not in message, "a UID names a person"
    for series in (4, "4", "1.2.2"):
        volume = read(tmp_path, series=series)
        assert (volume.array == phantom(seed=1).astype(int) - 1024).all()
        assert "2 other series of the folder left out" in volume.notes
    assert read(tmp_path, modality="MR").modality == "MR"
    for series, modality, said in (
        (9, None, "series=9 is not in the folder; there are:\n  number 3, CT"),
        (3, "MR", "series is CT; allowed: MR"),
    ):
        with pytest.raises(VolumeError, match=said):
            read(tmp_path, series=series, modality=modality)
    found = list_series(tmp_path)
    assert [(s.number, s.modality, s.slices, s.size, s.spacing and s.spacing[0]) for s in found] == [
        (3, "CT", 7, (7, 20, 24), 2.5),
        (4, "CT", 7, (7, 20, 24), 5.0),
        (5, "MR", 7, (7, 20, 24), 2.5),
    ]


def test_what_is_no_volume_is_passed_over_where_one_is(tmp_path: Path) -> None:
    make_series(tmp_path / "a", STORED, series="1.2.1", number=3)
    save(image(STORED[0], series="1.2.2", number=1), tmp_path / "one.dcm")
    report = image(STORED[0], series="1.2.3", modality="SR", number=7)
    del report.PixelData, report.Rows
    save(report, tmp_path / "report.dcm")
    assert (read(tmp_path).array == HU).all()
    found = {one.number: one for one in list_series(tmp_path)}
    assert "one slice" in found[1].problem
    assert "modality of the DICOM series is SR" in found[7].problem
    assert found[3].problem == ""
    with pytest.raises(VolumeError, match="one slice"):
        read(tmp_path, series=1)
    with pytest.raises(VolumeError, match="modality of the DICOM series is SR; allowed: CT"):
        read(tmp_path, series=7)


def test_two_patients_are_refused(tmp_path: Path) -> None:
    make_series(tmp_path / "a", STORED, series="1.2.1", number=1)
    make_series(tmp_path / "b", STORED, series="1.2.2", number=2, patient=("OTHER^NAME", "OTHER-ID"))
    for series in (None, 1, "2"):
        with pytest.raises(VolumeError, match=r"files of 2 patients; allowed: one\. Next") as caught:
            read(tmp_path, series=series)
        for word in (NAME, IDENTITY, "OTHER", PLACE, "1.2.1", "1.2.2"):
            assert word not in str(caught.value)
        assert "patient 2, number 2, CT" in str(caught.value)
    with pytest.raises(VolumeError, match="series=99 is not in the folder; there are:\n  patient 1, number 1"):
        read(tmp_path, series=99)
    assert [one.patient for one in list_series(tmp_path)] == [1, 2]
    assert (read(tmp_path, series="1.2.2").array == HU).all()


@pytest.mark.parametrize("patient", [("OTHER^NAME", IDENTITY), (NAME, "OTHER-ID")])
def test_two_patients_in_one_series_are_refused_whatever_is_asked(tmp_path: Path, patient: tuple[str, str]) -> None:
    paths = make_series(tmp_path, STORED)
    data = pydicom.dcmread(paths[4])
    data.PatientName, data.PatientID = patient
    save(data, paths[4])
    for series in (None, 1, "1.2.3.5"):
        with pytest.raises(VolumeError, match="2 patients"):
            read(tmp_path, series=series)


def test_one_patient_written_in_two_ways_is_one(tmp_path: Path) -> None:
    paths = make_series(tmp_path, STORED)
    data = pydicom.dcmread(paths[4])
    data.PatientName = NAME.title() + "^^"
    save(data, paths[4])
    assert (read(tmp_path).array == HU).all()


def test_the_wrong_modality_is_refused(tmp_path: Path) -> None:
    make_series(tmp_path, STORED, modality="MR")
    assert read(tmp_path).modality == "MR"
    with pytest.raises(VolumeError, match="series is MR; allowed: CT"):
        read(tmp_path, modality="CT")
    with pytest.raises(VolumeError, match="series is MR; allowed: CT"):
        read(next(tmp_path.iterdir()), modality="CT")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("SC_rgb_small_odd.dcm", "colour picture"),
        ("SC_rgb_rle_2frame.dcm", "colour picture"),
        ("examples_ybr_color.dcm", "colour picture"),
        ("examples_palette.dcm", "colour picture"),
        ("liver_1frame.dcm", "pixels of 1 bits"),
        ("rtdose.dcm", "RTDOSE"),
        ("rtplan.dcm", "RTPLAN"),
        ("reportsi.dcm", "SR"),
        ("image_dfl.dcm", "deflated"),
        ("MR_truncated.dcm", "cut off"),
        ("waveform_ecg.dcm", "ECG"),
        ("JPEG-lossy.dcm", "one slice|where they lie"),
    ],
)
def test_the_samples_of_pydicom_that_are_no_volume(tmp_path: Path, name: str, message: str) -> None:
    shutil.copy(sample(name), tmp_path)
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(VolumeError, match=message) as caught:
            read(path)
        assert "Next" in str(caught.value)


def test_frames_without_a_place_are_refused(tmp_path: Path) -> None:
    film = image(STORED[0])
    film.NumberOfFrames = 7
    film.PixelData = STORED.tobytes()
    with pytest.raises(VolumeError, match="7 frames that have no place"):
        read(save(film, tmp_path / "film.dcm"))


# ---- damage -------------------------------------------------------------------------------------------------------


def test_pixels_cut_off_are_found(tmp_path: Path) -> None:
    paths = make_series(tmp_path, STORED)
    paths[2].write_bytes(paths[2].read_bytes()[:-100])
    with pytest.raises(VolumeError, match=r"860 of the 960 bytes.*cut off.*1 files of 7|cut off"):
        read(tmp_path)


def test_a_damaged_file_among_good_ones_is_not_passed_over(tmp_path: Path) -> None:
    """It could be the last slice, and nobody would miss it."""
    paths = make_series(tmp_path, STORED)
    whole = paths[6].read_bytes()
    paths[6].write_bytes(whole[:150] + b"\xff" * 40 + whole[190:])
    with pytest.raises(VolumeError, match=r"1 of 7 DICOM files of the folder are not usable"):
        read(tmp_path)


def test_what_cannot_be_opened_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """git-annex leaves a broken link where a file is not fetched yet."""
    paths = make_series(tmp_path, STORED)
    paths[6].unlink()
    paths[6].symlink_to(tmp_path / "absent")
    with pytest.raises(VolumeError, match=r"cannot be opened \(a broken link.*could be a slice.*Next"):
        read(tmp_path)
    paths[6].unlink()
    assert read(tmp_path).shape[0] == 6
    (tmp_path / "more").mkdir()
    real = os.scandir

    def closed(path: str) -> Any:  # what a folder without permission is to anyone but root
        if str(path).endswith("more"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(VolumeError, match="a folder cannot be opened: Permission denied; it could hold slices"):
        read(tmp_path)


def test_images_that_name_no_series(tmp_path: Path) -> None:
    """All of them: an anonymised folder. Some of them: a slice of the series may have lost its name."""

    def nameless(data: Dataset, k: int) -> None:
        del data.SeriesInstanceUID, data.SeriesNumber

    make_series(tmp_path / "all", STORED, edit=nameless)
    assert (read(tmp_path / "all").array == HU).all()
    assert (read(next((tmp_path / "all").iterdir())).array == HU).all()
    (line,) = list_series(tmp_path / "all")
    assert "no number, CT, 7 image(s)" in str(line)
    make_series(tmp_path / "some", STORED, edit=lambda data, k: nameless(data, k) if k == 6 else None)
    with pytest.raises(VolumeError, match=r"1 image\(s\) of the folder name no series"):
        read(tmp_path / "some")
    assert read(tmp_path / "some", series="1.2.3.5").shape[0] == 6


def test_a_deflated_data_set_is_not_unpacked(tmp_path: Path) -> None:
    data = image(np.zeros((2000, 2000), np.uint16))
    data.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    path = save(data, tmp_path / "bomb.dcm")
    assert path.stat().st_size < 20_000
    with pytest.raises(VolumeError, match="deflated data set is not allowed"):
        read(path)


def test_series_of_one_number_are_told_apart_by_their_uids(tmp_path: Path) -> None:
    make_series(tmp_path / "a", STORED, series="1.2.1", number=3)
    paths = make_series(tmp_path / "b", STORED, series="1.2.2", number=3)
    with pytest.raises(VolumeError, match=r"(?s)2 series of the folder have it; allowed: the UID of one:.*mm, 1.2.1"):
        read(tmp_path, series=3)
    with pytest.raises(
        OptionError, match=r"series=3 is for DICOM folders, and the input is one file. Next: leave it out"
    ):
        read(paths[0], series=3)
