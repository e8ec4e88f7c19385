"""Input that is none, or odd: each kind gets a clear error or a stated handling, in all three tasks; nothing hangs."""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from helpers_predict import Bright, blob, command, detector, saved, segmenter
from helpers_volume import damage, make_series, phantom, sample, save

from svd_hub import Predictor
from svd_hub.predict import Outputs, predict_files
from svd_hub.volume import read

HU = np.random.default_rng(0).integers(-150, 250, (6, 40, 40)).astype(np.int16)


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An entry of each task."""
    folder = tmp_path_factory.mktemp("nets")
    return {
        "segmentation": saved(segmenter(rule={"minimum": (16, 16, 16)}), folder / "segmenter.safetensors"),
        "detection": saved(detector(), folder / "detector.safetensors"),
        "classification": "resnet3d18w16_lidc",
    }


TASKS = ("segmentation", "detection", "classification")


def nifti(path: Path, array: np.ndarray, spacing: tuple[float, ...] = (1.0, 1.0, 2.5)) -> Path:
    if array.ndim == 3:
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(spacing)
        sitk.WriteImage(image, str(path))
    else:
        nibabel.save(nibabel.Nifti1Image(array.T.copy(), np.eye(4)), path)
    return path


def wrong(kind: str, folder: Path) -> Path:
    """An input that is none of these weights'."""
    path = folder / "in.nii.gz"
    if kind == "text":
        path = folder / "notes.txt"
        path.write_text("no image")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "one slice":
        nifti(path, HU[:1])
    elif kind == "4D":
        nifti(path, np.stack([HU, HU]))
    elif kind == "RGB volume":
        rgb = sitk.GetImageFromArray(np.zeros((4, 5, 6, 3), np.uint8), isVector=True)
        sitk.WriteImage(rgb, str(path))
    elif kind in ("NaN", "infinite"):
        array = HU.astype(np.float32)
        array[2, 3, 4] = np.nan if kind == "NaN" else np.inf
        nifti(path, array)
    elif kind == "constant":
        nifti(path, np.full_like(HU, -1000))
    elif kind == "8-bit":
        nifti(path, np.clip(HU, 0, 255).astype(np.uint8))
    elif kind == "a photograph":
        from PIL import Image

        path = folder / "photo.png"
        Image.new("RGB", (20, 30)).save(path)
    elif kind == "a picture inside DICOM":
        path = folder / "screenshots"
        path.mkdir()
        data = pydicom.dcmread(sample("examples_rgb_color.dcm"))
        for k in range(3):
            data.InstanceNumber, data.SOPInstanceUID = k, f"1.2.{k}"
            save(data, path / f"{k}.dcm")
    elif kind == "MR":
        path = folder / "mr"
        make_series(path, phantom((5, 20, 20)), modality="MR", intercept=0)
    elif kind == "two patients":
        path = folder / "two"
        for k in range(2):
            make_series(path / str(k), phantom((5, 20, 20)), patient=(f"P{k}", f"ID{k}"), series=f"1.2.{k}")
    elif kind == "two series":
        path = folder / "two"
        for k in range(2):
            make_series(path / str(k), phantom((5, 20, 20)), series=f"1.2.{k}", number=k)
    elif kind == "no DICOM":
        path = folder / "nothing"
        path.mkdir()
        (path / "a.txt").write_text("x")
    elif kind == "spacing of a micrometre":
        nifti(path, HU, (1e-6, 1e-6, 1e-6))
    return path


WRONG = {
    "text": "is no volume that is known here; allowed: a DICOM file or folder",
    "empty": "is empty; allowed: a DICOM file or folder",
    "one slice": "one slice, a 2D image; allowed: a volume",
    "4D": "4D: several volumes; allowed: one 3D volume",
    "RGB volume": "several volumes; allowed|RGB colour; allowed",
    "NaN": "1 of 9600 voxels are NaN or infinite; allowed: finite numbers",
    "infinite": "1 of 9600 voxels are NaN or infinite; allowed: finite numbers",
    "constant": "every voxel is -1000: an empty image",
    "8-bit": "the values are 8-bit numbers",
    "a photograph": "is a PNG picture; allowed: a DICOM file or folder",
    "a picture inside DICOM": "the modality of the DICOM series is|RGB",
    "MR": "of modality CT|the modality of the DICOM series is MR; allowed: CT",
    "two patients": "the folder holds files of 2 patients; allowed: one",
    "two series": "the folder holds 2 series that could be read. Next: name one with --series",
    "no DICOM": r"holds no DICOM file \(1 other file\(s\)\)",
    "spacing of a micrometre": "the spacing .* is not allowed; allowed: 0.001 to 100 mm",
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_refused_is_refused_with_a_word(tmp_path: Path, nets: dict[str, Any], kind: str) -> None:
    path, number = wrong(kind, tmp_path), list(WRONG).index(kind)
    for task in TASKS if number % 4 == 0 else [TASKS[number % 3]]:  # they share the reading: one each, and some in all
        code, printed, errors = command("predict", nets[task], path, "--out", tmp_path / task)
        import re

        assert code == 1
        assert errors.startswith(f"1/1 {path}: failed: ")
        assert re.search(WRONG[kind], errors), errors
        assert "Next: " in errors
        assert "Traceback" not in errors
        assert printed == "Research use. Not a medical device.\n"
        assert sorted(p.name for p in (tmp_path / task).iterdir()) == ["results.csv", "run.json"]


def odd(kind: str, folder: Path) -> Path:
    """An input that is odd, and read."""
    path = folder / "in.nii.gz"
    array, spacing = HU, (1.0, 1.0, 2.5)
    if kind == "20:1":
        spacing = (0.5, 0.5, 10.0)
    elif kind == "20:1 in the plane":
        spacing = (10.0, 0.5, 1.0)
    elif kind == "two voxels":
        array = HU[:2, :2, :2]
    elif kind == "thin":
        array = HU[:, :2, :]
    elif kind == "long":
        array = np.tile(HU[:2, :4, :4], (60, 1, 1))
    elif kind == "not HU":
        array = HU + 1000
    elif kind == "huge values":
        array = HU.astype(np.float32) * 1e30
    elif kind == "floats":
        array = HU + np.float32(0.5)
    return nifti(path, array, spacing)


ODD = {
    "20:1": "20 times longer",
    "20:1 in the plane": "20 times longer",
    "two voxels": "",
    "thin": "",
    "long": "",
    "not HU": "no value is below 0",
    "huge values": "check that these are HU",
    "floats": "",
}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", ODD)
def test_what_is_odd_is_run_and_said(tmp_path: Path, nets: dict[str, Any], kind: str, task: str) -> None:
    path = odd(kind, tmp_path)
    more = ["--key-slice", "1"] if task == "detection" and kind != "20:1" else []
    code, printed, errors = command("predict", nets[task], path, "--out", tmp_path / "out", "--json", *more)
    assert (code, errors) == (0, "")
    facts = json.loads(printed)
    assert any(ODD[kind] in note for note in facts["notes"]) or not ODD[kind]
    assert facts["input"]["size_zyx"] == list(read(path).shape)
    (folder,) = (p for p in (tmp_path / "out").iterdir() if p.is_dir())
    assert (folder / "picture.png").stat().st_size > 500
    if task == "segmentation":
        mask = sitk.ReadImage(str(folder / "mask.nii.gz"))
        assert list(mask.GetSize()[::-1]) == facts["input"]["size_zyx"]
        assert sum(row["voxels"] for row in facts["classes"]) == mask.GetNumberOfPixels()
    elif task == "classification":
        assert sum(facts["probabilities"].values()) == pytest.approx(1.0, abs=1e-5)
        sides = np.array(facts["input"]["size_zyx"]) * facts["input"]["spacing_zyx_mm"]
        assert any("padded" in note for note in facts["notes"]) == bool((sides < 31.5).any())
    else:
        assert all(0 <= row["slice"] < facts["input"]["size_zyx"][0] for row in facts["findings"])


# ---- damaged files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["nii", "nii.gz", "dicom"])
def test_damaged_files_crash_nothing_and_hang_nothing(tmp_path: Path, kind: str) -> None:
    """100 of each: a result whose mask lies on the input, or a word."""
    rng, count = random.Random(0), 100
    hu, _ = blob((5, 12, 14))
    if kind == "dicom":
        paths = make_series(tmp_path / "in", (hu + 1024).astype(np.uint16))
        place, target, head = tmp_path / "in", paths[2], 1200
    else:
        target = place = nifti(tmp_path / f"in.{kind}", hu)
        head = 400
    whole, predictor = target.read_bytes(), Predictor(Bright())
    states = {"done": 0, "failed": 0}
    for k in range(count):
        target.write_bytes(damage(whole, rng, head))
        started = time.monotonic()
        (case,) = predict_files(predictor, [place], tmp_path / "out", outputs=Outputs(picture=k % 20 == 0))
        assert time.monotonic() - started < 20, f"damage {k} took long"
        states[case.state] += 1
        if case.state == "done":
            mask = sitk.ReadImage(str(tmp_path / "out" / case.name / "mask.nii.gz"))
            assert mask.GetSize()[::-1] == read(place, modality="CT").source_grid.size
        else:
            assert "Next: " in case.error, f"damage {k}: {case.error}"
            assert "fault of svd-hub" not in case.error, f"damage {k}: {case.error}"
        shutil.rmtree(tmp_path / "out")
    assert states["failed"] > 10, "the damage does no harm"
    assert kind == "nii.gz" or states["done"] > 0
