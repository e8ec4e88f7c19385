"""Inputs on disk: which there are, what they are called, which bytes count, and that no report says where they lie."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers_predict import batch, blob, nifti
from helpers_volume import make_series, save

from svd_hub.errors import OptionError, VolumeError
from svd_hub.predict import files, find_inputs, places

BLOB, INSIDE = blob()


def test_inputs_of_folders(tmp_path: Path) -> None:
    from PIL import Image

    for patient in ("anna", "bert"):
        make_series(tmp_path / "dicom" / patient, (BLOB[:3] + 1024).astype(np.uint16))
    make_series(tmp_path / "one", (BLOB[:3] + 1024).astype(np.uint16))
    Image.new("RGB", (4, 4)).save(tmp_path / "one" / "preview.png")
    for name in ("a.nii.gz", "b.nrrd", ".hidden.nii"):
        nifti(tmp_path / "volumes" / name)
    (tmp_path / "volumes" / "notes.txt").write_text("no image")
    for name in ("a.png", "b.jpg"):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "photos" / name)
    assert find_inputs([tmp_path / "dicom"]) == [tmp_path / "dicom"]
    assert find_inputs([tmp_path / "one"]) == [tmp_path / "one"], "the picture beside DICOM files is none of them"
    assert find_inputs([tmp_path / "dicom"], each=True) == [tmp_path / "dicom" / name for name in ("anna", "bert")]
    assert find_inputs([tmp_path / "volumes"]) == [tmp_path / "volumes" / name for name in ("a.nii.gz", "b.nrrd")]
    assert find_inputs([tmp_path / "photos"]) == [tmp_path / "photos" / name for name in ("a.png", "b.jpg")]
    file = tmp_path / "volumes" / "a.nii.gz"
    assert find_inputs([file, str(file), tmp_path / "one"]) == [file, tmp_path / "one"]
    assert find_inputs([tmp_path / "volumes" / "notes.txt"]) == [tmp_path / "volumes" / "notes.txt"], "named, so tried"


def test_folders_that_are_not_clear(tmp_path: Path) -> None:
    make_series(tmp_path / "mixed", (BLOB[:3] + 1024).astype(np.uint16))
    nifti(tmp_path / "mixed" / "mask.nii.gz")
    nifti(tmp_path / "deep" / "a.nii")
    (tmp_path / "deep" / "b").mkdir()
    (tmp_path / "empty").mkdir()
    for place, message in (
        ("mixed", r"holds 1 volume file\(s\) and 3 DICOM file\(s\); allowed: one DICOM input, or volume files. Next: "),
        ("deep", r"holds 1 volume file\(s\) and 1 folder\(s\); allowed"),
        ("empty", "holds no image"),
        ("nothing", "is not there. Next: check the path"),
    ):
        with pytest.raises(VolumeError, match=message):
            find_inputs([tmp_path / place])
    with pytest.raises(VolumeError, match="holds no image"):
        find_inputs([tmp_path / "empty"], each=True)
    assert len(find_inputs([tmp_path / "mixed"], each=True)) == 2, "the volume, and one of the series"


def test_each_takes_a_folder_as_if_it_was_named(tmp_path: Path) -> None:
    """Patients of NIfTI, of DICOM and of both, and loose files of two series."""
    nifti(tmp_path / "pats" / "a" / "ct.nii.gz")
    nifti(tmp_path / "pats" / "b" / "ct.nii.gz")
    found = [tmp_path / "pats" / name / "ct.nii.gz" for name in "ab"]
    assert find_inputs([tmp_path / "pats"], each=True) == found
    with pytest.raises(
        VolumeError, match=r"2 folder\(s\) with 2 volume file\(s\) in them.*each=True takes each folder"
    ):
        find_inputs([tmp_path / "pats"])
    make_series(tmp_path / "pats" / "c", (BLOB[:3] + 1024).astype(np.uint16))
    nifti(tmp_path / "pats" / "c" / "mask.nii.gz")
    assert find_inputs([tmp_path / "pats"], each=True) == [*found, tmp_path / "pats" / "c"], "not clear: left whole"
    for number in (1, 2):
        made = make_series(tmp_path / str(number), (BLOB[:3] + 1024).astype(np.uint16), series=f"1.2.{number}")
        for path in made:
            (tmp_path / "loose").mkdir(exist_ok=True)
            shutil.copy(path, tmp_path / "loose" / f"{number}-{path.name}")
    loose = find_inputs([tmp_path / "loose"], each=True)
    assert [path.name[0] for path in loose] == ["1", "2"]
    assert [case.state for case in batch(loose, tmp_path / "out")] == ["done", "done"]


def test_a_digest_is_of_all_the_bytes_that_are_read(tmp_path: Path) -> None:
    """Two patients whose headers are the same: the voxels lie in another file."""
    for ending in ("mhd", "nhdr"):
        paths = []
        for k, patient in enumerate(("anna", "bert")):
            paths.append(nifti(tmp_path / ending / patient / f"ct.{ending}", seed=k))
        assert paths[0].read_bytes() == paths[1].read_bytes()
        cases = batch(paths, tmp_path / f"{ending} out")
        assert [case.state for case in cases] == ["done", "done"]
        assert cases[0].name != cases[1].name
    one, two = (make_series(tmp_path / k, (BLOB + 1024).astype(np.uint16), shuffle=False) for k in "ab")
    shutil.copy(one[0], two[0])
    before = files.digest_of(two[0])
    import pydicom

    data = pydicom.dcmread(two[5])
    data.PixelData = bytes(len(data.PixelData))
    save(data, two[5])
    assert files.digest_of(two[0]) != before, "an image of its series is another"
    assert files.digest_of(one[0]) != files.digest_of(one[1])
    digest = files.digest_of(tmp_path / "a")
    one[3].rename(tmp_path / "a" / "renamed")
    assert files.digest_of(tmp_path / "a") == digest, "a name says nothing"


@pytest.mark.parametrize(
    ("path", "name"),
    [("anna.nii.gz", "anna"), ("a b,c.nrrd", "a_b_c"), ("1.2.840.113.nii", "1.2.840.113"), ("IM0001", "IM0001"),
     ("1.2.840.77", "1.2.840.77"), ("photo.JPEG", "photo"), ("..nii", "input"), ("run.json.nii", "run.json"),
     ("Ünal.mha", "_nal"), (".part-1-00000000.nii", "part-1-00000000"), ("$(x);`y`.nii", "_x_y_")],
)  # fmt: skip
def test_names_of_inputs(tmp_path: Path, path: str, name: str) -> None:
    (tmp_path / path).write_bytes(b"x")
    assert places.names_of([tmp_path / path]) == [name]


def test_names_that_are_the_same_are_refused(tmp_path: Path) -> None:
    paths = [tmp_path / "one" / "a.nii", tmp_path / "two" / "A.nrrd"]
    for path in paths:
        path.parent.mkdir()
        path.write_bytes(b"x")
    with pytest.raises(OptionError, match=r"two inputs have the same name. Next: leave out names=True"):
        batch(paths, tmp_path / "out", names=True)
    assert not (tmp_path / "out").exists()


def test_folders_are_named_by_their_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_series(tmp_path / "v1.nii", (BLOB + 1024).astype(np.uint16))
    monkeypatch.chdir(tmp_path / "v1.nii")
    (case,) = batch([Path(".")], tmp_path / "out", names=True)
    assert (case.state, case.name) == ("done", "v1-bright")


def test_the_report_holds_no_place_and_no_series(tmp_path: Path) -> None:
    folder = tmp_path / "SENTINEL ANNA" / "CT 1"
    for number in (1, 2):
        make_series(folder / f"s{number}", (BLOB + 1024).astype(np.uint16), series=f"1.2.3.{number}777", number=number)
    cases = batch([folder], tmp_path / "out")
    cases += batch([folder], tmp_path / "out", series="1.2.3.4777")
    text = (tmp_path / "out" / "run.json").read_text()
    assert [case.state for case in cases] == ["failed"] * 2
    assert "number 1, CT" in cases[0].error, "on the screen one can choose"
    for word in ("SENTINEL", "ANNA", "777", str(tmp_path)):
        assert word not in text
    assert json.loads(text)["cases"][0]["error"].startswith("series='...' is not in the folder; there are")


@pytest.mark.parametrize(
    ("message", "path", "expected"),
    [("/a/anna is no volume", "/a/anna", "the input is no volume"),
     ("/a/anna/s 1.dcm: bad", "/a/anna", "the input 1.dcm: bad"),
     ("a part of a", "a", "the input part of the input"),
     ("read 'ct.nii' twice", "/x/ct.nii", "read 'the input' twice"),
     ("/a/annabel is another", "/a/anna", "/a/annabel is another")],
)  # fmt: skip
def test_places_are_taken_out_of_messages(message: str, path: str, expected: str) -> None:
    assert places.without_places(message, Path(path)) == expected
