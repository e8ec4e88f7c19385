"""DICOM Segmentations of odd series: what cannot be made costs the object alone, and is said."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom
import pydicom
import pytest
import SimpleITK as sitk
import torch
from helpers_masks import ABOVE, INSIDE, STORED, run
from helpers_predict import Bright
from helpers_volume import (
    make_series,
)
from pydicom.dataset import Dataset
from torch import Tensor


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


@pytest.mark.parametrize(
    ("charset", "name"),
    [(None, "Plain^Name"), ("ISO_IR 100", "Müller^Jürgen"), ("ISO_IR 192", "山田^太郎"),
     (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"), ("GB18030", "Wang^XiaoDong=王^小东=")],
)  # fmt: skip
def test_names_in_any_character_set(tmp_path: Path, charset: Any, name: str) -> None:
    """The patient keeps the name, and a class one of its own letters."""

    def named(data: Dataset, k: int) -> None:
        if charset:
            data.SpecificCharacterSet = charset
        data.PatientName = name

    make_series(tmp_path / "in", STORED, edit=named)
    model = Bright(ABOVE)
    model.entry = dataclasses.replace(model.entry, classes=("background", "肝臓 (Größe)"))
    result = run(tmp_path / "in", tmp_path / "out", model)
    seg = highdicom.seg.segread(result / "mask.dcm")
    assert str(seg.PatientName).rstrip("=") == name.rstrip("=")
    assert seg.SegmentSequence[0].SegmentLabel == "肝臓 (Größe)"


def test_codes_are_those_of_snomed() -> None:
    """As pydicom's copy of DICOM PS3.16 has them; other classes have a code of their own, none another's."""
    from pydicom.sr import _concepts_dict

    from svd_hub.predict import codes

    known: dict[str, str] = {}
    for table in _concepts_dict.concepts["SCT"].values():
        for code, (meaning, _) in table.items():
            known[code] = f"{known.get(code, '')}; {meaning}".lower()
    for name in (*codes._SCT, *codes._ABNORMAL):
        found = codes.code_of(name)
        assert found.scheme == "SCT"
        assert found.abnormal == (name in codes._ABNORMAL)
        assert found.meaning.lower() in known.get(found.value, found.meaning.lower()), name
    assert sum(codes.code_of(name).value in known for name in codes._SCT) >= 14
    assert codes.code_of("Urinary Bladder").value == codes.code_of("urinary_bladder").value
    own = [codes.code_of(f"left_upper_lobe_of_the_lung_{k}") for k in range(3)]
    assert len({code.value for code in own}) == 3
    assert {code.scheme for code in own} == {"99SVDHUB"}
