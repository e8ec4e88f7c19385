"""A batch: each result whole or not there, none made twice, none lost, and nothing of anybody else's touched."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers_predict import Bright, blob, command, saved, segmenter, start
from helpers_volume import make_series, save

import svd_hub
from svd_hub import Inference, Predictor
from svd_hub.errors import OptionError, SvdHubError, VolumeError
from svd_hub.predict import Outputs, files, find_inputs, folders, outputs, places, predict_files

BLOB, INSIDE = blob()
QUICK = Outputs(picture=False, dicom=False)


def nifti(path: Path, *, seed: int = 0) -> Path:
    """A volume; each seed has its own."""
    hu = BLOB.copy()
    hu[0, 0, 0] = seed
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(hu), str(path))
    return path


def run(inputs: list[Path], out: Path, model: Any = None, *, want: Outputs = QUICK, **options: Any) -> list[Any]:
    return list(predict_files(Predictor(model or Bright()), inputs, out, outputs=want, **options))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    return [nifti(tmp_path / "in" / f"{name}.nii.gz", seed=k) for k, name in enumerate(("anna", "bert", "carl"))]


# ---- results -------------------------------------------------------------------------------------------------------


def test_a_folder_for_each_named_by_its_content(tmp_path: Path, three: list[Path]) -> None:
    cases = run(three, tmp_path / "out")
    assert [case.state for case in cases] == ["done"] * 3
    assert names(tmp_path / "out") == sorted([*(case.name for case in cases), "run.json"])
    for case in cases:
        assert case.name == files.digest_of(case.path)[:12]
        assert names(tmp_path / "out" / case.name) == ["key.json", "mask.nii.gz", "result.json"]
        facts = json.loads((tmp_path / "out" / case.name / "result.json").read_text())
        assert facts["files"] == ["mask.nii.gz"]
        assert facts["classes"][1] == {"label": 1, "name": "blob", "voxels": int(INSIDE.sum()),
                                       "ml": round(INSIDE.sum() / 1000, 3)}  # fmt: skip
        assert set(case.seconds) == {"read", "predict", "write"}
    report = json.loads((tmp_path / "out" / "run.json").read_text())
    assert report["inputs"] == 3
    assert [one["state"] for one in report["cases"]] == ["done"] * 3
    assert report["versions"]["torch"] == torch.__version__
    assert report["use"] == "Research use. Not a medical device."


def test_what_is_there_is_not_made_again(tmp_path: Path, three: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    run(three[:2], tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*") if path.name != "run.json"}
    asked: list[Path] = []
    real = Predictor.__call__
    monkeypatch.setattr(
        Predictor, "__call__", lambda self, path, **rest: asked.append(path) or real(self, path, **rest)
    )
    assert [case.state for case in run(three, tmp_path / "out")] == ["there", "there", "done"]
    assert asked == three[2:]
    assert [case.state for case in run(three, tmp_path / "out", overwrite=True)] == ["there"] * 3, "nothing is other"
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())


def test_the_same_bytes_under_another_name_are_the_same_input(tmp_path: Path, three: list[Path]) -> None:
    shutil.copy(three[0], tmp_path / "copy.nii.gz")
    assert [case.state for case in run([three[0], tmp_path / "copy.nii.gz"], tmp_path / "out")] == ["done", "there"]


def changed(what: str) -> dict[str, Any]:
    """Ways in which a result can be another one."""
    model = Bright()
    if what == "weights":
        with torch.no_grad():
            model.scale.fill_(0.5)
    elif what == "preprocessing":
        model.preprocess = dataclasses.replace(model.preprocess, window=(-900.0, 1000.0))
    elif what == "windows":
        model.inference = Inference(window=(8, 8, 8))
    elif what == "the network's options":
        model.options = {**model.options, "depth_stride": 1}
    elif what == "outputs":
        return {"want": Outputs(picture=False, dicom=False, mask="nrrd")}
    elif what == "arguments":
        return {"missing": "fill"}
    return {"model": model}


@pytest.mark.parametrize(
    "what", ["weights", "preprocessing", "windows", "the network's options", "outputs", "arguments"]
)
def test_another_result_is_replaced_only_where_one_says_so(tmp_path: Path, three: list[Path], what: str) -> None:
    (first,) = run(three[:1], tmp_path / "out")
    other = changed(what)
    (case,) = run(three[:1], tmp_path / "out", **other)
    assert case.state == "failed"
    assert "holds another result: of other weights, options or another input. Next: another --out" in case.error
    assert [one.state for one in run(three[:1], tmp_path / "out")] == ["there"], "it was left alone"
    (case,) = run(three[:1], tmp_path / "out", overwrite=True, **other)
    assert (case.state, case.name) == ("done", first.name)
    assert [one.state for one in run(three[:1], tmp_path / "out", **other)] == ["there"]


def test_only_results_are_ever_replaced(tmp_path: Path) -> None:
    """Not the input itself, not a folder of the same name, not a result to which somebody added a file."""
    series = tmp_path / "data" / "anna"
    make_series(series, (BLOB + 1024).astype(np.uint16))
    before = {path: path.read_bytes() for path in series.iterdir()}
    with pytest.raises(OptionError, match="lies inside the input"):
        run([tmp_path / "data"], tmp_path / "data", names=True, overwrite=True)
    with pytest.raises(OptionError, match="lies inside the input"):
        run([series], series / "out", names=True)
    (case,) = run([series], tmp_path / "data", names=True, overwrite=True)
    assert case.state == "failed"
    assert "is there, and is no result of this command alone: it is left as it is" in case.error
    assert {path: path.read_bytes() for path in series.iterdir()} == before
    (case,) = run([series], tmp_path / "out", names=True)
    (tmp_path / "out" / "anna" / "notes.txt").write_text("mine")
    (case,) = run([series], tmp_path / "out", Bright(400), names=True, overwrite=True)
    assert "is no result of this command alone" in case.error
    assert (tmp_path / "out" / "anna" / "notes.txt").read_text() == "mine"


def test_the_bytes_of_a_result_are_the_same_again(tmp_path: Path, three: list[Path]) -> None:
    for out in ("one", "two"):
        run(three[:1], tmp_path / out, want=Outputs())
    for path in (tmp_path / "one").rglob("*.*"):
        if path.is_file() and path.name != "run.json":
            assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes(), path.name
    series = tmp_path / "dicom"
    make_series(series, (BLOB + 1024).astype(np.uint16))
    (a,), (b,) = (run([series], tmp_path / out, want=Outputs()) for out in ("one", "two"))
    one, two = ((tmp_path / out / a.name / "result.json").read_bytes() for out in ("one", "two"))
    assert one == two
    assert b"mask.dcm" in one
    assert a.name == b.name


# ---- inputs --------------------------------------------------------------------------------------------------------


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
    assert len(find_inputs([tmp_path / "mixed"], each=True)) == 4


def test_a_digest_is_of_all_the_bytes_that_are_read(tmp_path: Path) -> None:
    """Two patients whose headers are the same: the voxels lie in another file."""
    for ending in ("mhd", "nhdr"):
        paths = []
        for k, patient in enumerate(("anna", "bert")):
            paths.append(nifti(tmp_path / ending / patient / f"ct.{ending}", seed=k))
        assert paths[0].read_bytes() == paths[1].read_bytes()
        cases = run(paths, tmp_path / f"{ending} out")
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
     ("1.2.840.77", "1.2.840.77"), ("photo.JPEG", "photo"), ("..nii", "input"), ("run.json.nii", "run.json_"),
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
    with pytest.raises(OptionError, match=r"two inputs have the same name. Next: leave --names out"):
        run(paths, tmp_path / "out", names=True)
    assert not (tmp_path / "out").exists()


def test_folders_are_named_by_their_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_series(tmp_path / "v1.nii", (BLOB + 1024).astype(np.uint16))
    monkeypatch.chdir(tmp_path / "v1.nii")
    (case,) = run([Path(".")], tmp_path / "out", names=True)
    assert (case.state, case.name) == ("done", "v1")


# ---- what goes wrong -----------------------------------------------------------------------------------------------


def test_one_that_fails_stops_no_other(tmp_path: Path, three: list[Path]) -> None:
    three[1].write_bytes(b"no volume")
    cases = run([*three, tmp_path / "gone.nii"], tmp_path / "out")
    assert [case.state for case in cases] == ["done", "failed", "done", "failed"]
    assert "is no volume that is known here" in cases[1].error
    assert "cannot be read" in cases[3].error
    report = json.loads((tmp_path / "out" / "run.json").read_text())
    assert [one["state"] for one in report["cases"]] == ["done", "failed", "done", "failed"]
    assert report["cases"][1]["error"].startswith("the input is no volume that is known here; allowed: ")
    assert report["cases"][1]["result"] == ""
    assert len(names(tmp_path / "out")) == 3


@pytest.mark.parametrize(
    ("error", "message"),
    [(RuntimeError("SENTINEL"), "a fault of svd-hub or of a library it uses: RuntimeError in test_predict_files.py"),
     (MemoryError(), "there is not enough memory. Next: "),
     (RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory"), "there is not enough memory"),
     (PermissionError(errno.EACCES, "Permission denied", "SENTINEL"), "cannot be read: Permission denied")],
)  # fmt: skip
def test_a_fault_that_nobody_foresaw(
    tmp_path: Path, three: list[Path], monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    class Faulty(Bright):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise error

    cases = run(three[:2], tmp_path / "out", Faulty())
    assert [case.state for case in cases] == ["failed", "failed"]
    assert message in cases[0].error
    assert "SENTINEL" not in cases[0].error + (tmp_path / "out" / "run.json").read_text()


def full(*args: Any, **options: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device", "/tmp/SENTINEL")


@pytest.mark.parametrize("where", ["mask", "json", "move"])
def test_a_full_disk(tmp_path: Path, three: list[Path], monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """The result is not half there, and the message says what to do."""
    if where == "mask":
        from svd_hub.volume import writing

        monkeypatch.setattr(writing.os, "fsync", full)
    elif where == "json":
        real = outputs.write_atomic
        monkeypatch.setattr(
            outputs, "write_atomic", lambda path, content: full() if path.name == "result.json" else real
        )
    else:
        monkeypatch.setattr(folders.Path, "rename", full)
    try:
        cases = run(three[:1], tmp_path / "out")
        message = cases[0].error
    except SvdHubError as error:
        message = str(error)
    assert f"{tmp_path / 'out'} cannot be written: No space left on device. Next: make room" in message
    monkeypatch.undo()
    assert [name for name in names(tmp_path / "out") if name != "run.json"] == []
    assert [case.state for case in run(three[:1], tmp_path / "out")] == ["done"]


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_computed(
    tmp_path: Path, three: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Predictor, "__call__", lambda *args, **rest: pytest.fail("it was computed"))
    (tmp_path / "file").write_bytes(b"x")
    for out in (tmp_path / "file", tmp_path / "file" / "out", Path("/proc/out")):
        with pytest.raises(SvdHubError, match=r"cannot be written: .*\. Next: make room, or --out with another folder"):
            run(three, out)
    monkeypatch.setattr(files, "write_atomic", full)
    with pytest.raises(SvdHubError, match="cannot be written: No space left on device"):
        run(three, tmp_path / "out")


def test_the_report_holds_no_place_and_no_series(tmp_path: Path) -> None:
    folder = tmp_path / "SENTINEL ANNA" / "CT 1"
    for number in (1, 2):
        make_series(folder / f"s{number}", (BLOB + 1024).astype(np.uint16), series=f"1.2.3.{number}777", number=number)
    cases = run([folder], tmp_path / "out")
    cases += run([folder], tmp_path / "out", series="1.2.3.4777")
    text = (tmp_path / "out" / "run.json").read_text()
    assert [case.state for case in cases] == ["failed"] * 2
    assert "1.2.3.1777" in cases[0].error, "on the screen one can choose"
    for word in ("SENTINEL", "ANNA", "777", str(tmp_path)):
        assert word not in text
    assert json.loads(text)["cases"][0]["error"].startswith("series='...': 0 series of the folder have it")


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


# ---- killed runs ---------------------------------------------------------------------------------------------------


def test_what_killed_runs_left_is_removed_and_what_goes_on_is_not(tmp_path: Path, three: list[Path]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / ".part-0000").mkdir()
    (out / ".part-0000" / "mask.nii.gz").write_bytes(b"half")
    (out / ".partial").write_text("somebody's file")
    with folders.unfinished(out) as alive:
        (alive / "mask.nii.gz").write_bytes(b"being written")
        other = start_sweep(out)
        assert other == ""
        assert names(out) == sorted([alive.name, ".partial"])
        run(three[:1], out)
        assert (alive / "mask.nii.gz").read_bytes() == b"being written"
    assert not alive.exists()
    assert (out / ".partial").exists()


def start_sweep(out: Path) -> str:
    """Another process sweeps."""
    code = f"from pathlib import Path; from svd_hub.predict import folders; folders.sweep(Path({str(out)!r}))"
    root = Path(__file__).resolve().parents[1]
    line = [sys.executable, "-c", code]
    return subprocess.run(line, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(root)}).stderr


def wait_for(out: Path, process: subprocess.Popen[str], pattern: str) -> None:
    end = time.monotonic() + 120
    while not any(out.glob(pattern)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_leaves_nothing_half_done(tmp_path: Path, number: signal.Signals) -> None:
    """Many inputs, stopped after the first; a second run does the rest, and only the rest."""
    weights = saved(segmenter(window=(16, 16, 16)), tmp_path / "net.safetensors")
    inputs = [nifti(tmp_path / "in" / f"{k}.nii", seed=k) for k in range(40)]
    out = tmp_path / "out"
    process = start("predict", weights, *inputs, "--out", out)
    wait_for(out, process, "????????????/result.json")
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert "stopped. Next: the same command again" in errors
        assert not list(out.glob(".part-*"))
    assert "Traceback" not in errors
    whole = [path for path in out.iterdir() if path.is_dir() and not path.name.startswith(".")]
    assert 0 < len(whole) < 40
    for path in whole:
        assert json.loads((path / "result.json").read_text())["files"] == ["mask.nii.gz", "picture.png"]
    (out / ".part-ffff").mkdir()
    cases = list(predict_files(Predictor(weights), inputs[:2], out))
    assert [case.state for case in cases] == ["there", "there" if len(whole) > 1 else "done"]
    assert not list(out.glob(".part-*"))


# ---- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return saved(segmenter(), tmp_path / "net.safetensors")


def test_what_the_command_prints(tmp_path: Path, three: list[Path], weights: Path) -> None:
    out = tmp_path / "out"
    code, printed, errors = command("predict", weights, three[0], three[1], "--out", out, "--no-picture")
    assert (code, errors) == (0, "")
    lines = printed.splitlines()
    assert lines[0].startswith(f"1/2 {three[0]} -> {out}/")
    assert lines[0].endswith(" s)")
    assert lines[1].startswith("  liver ")
    assert lines[-1] == "Research use. Not a medical device."
    code, printed, _ = command("predict", weights, three[0], three[1], "--out", out, "--no-picture")
    assert code == 0
    assert printed.count("(there already)") == 2
    code, printed, _ = command("predict", weights, three[0], "--out", out, "--no-picture", "--json")
    assert json.loads(printed) == json.loads((out / files.digest_of(three[0])[:12] / "result.json").read_text())
    code, _, errors = command("predict", weights, three[0], "--out", out)
    assert code == 1
    assert "holds another result" in errors


def test_exit_codes_and_failures(tmp_path: Path, three: list[Path], weights: Path) -> None:
    three[1].write_bytes(b"no volume")
    code, printed, errors = command("predict", weights, tmp_path / "in", "--out", tmp_path / "out", "--names")
    assert code == 1
    assert errors.splitlines() == [line for line in errors.splitlines() if line.startswith("2/3 ")]
    assert f"2/3 {three[1]}: failed: {three[1]} is no volume" in errors
    assert "1/3" in printed
    assert "3/3" in printed
    assert names(tmp_path / "out") == ["anna", "carl", "run.json"]


def test_each(tmp_path: Path, weights: Path) -> None:
    for k, patient in enumerate(("anna", "bert")):
        hu = BLOB.copy()
        hu[0, 0, 0] = k
        make_series(
            tmp_path / "in" / patient, (hu + 1024).astype(np.uint16), patient=(patient, patient), series=f"1.2.{k}"
        )
    code, _, errors = command("predict", weights, tmp_path / "in", "--out", tmp_path / "out")
    assert code == 1
    assert "the folder holds files of 2 patients" in errors
    code, _, _ = command("predict", weights, tmp_path / "in", "--out", tmp_path / "out", "--each", "--names")
    assert code == 0
    assert names(tmp_path / "out") == ["anna", "bert", "run.json"]
    assert "mask.dcm" in names(tmp_path / "out" / "anna")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["no_such_entry", "IN", "--out", "OUT"], "no_such_entry"),
        (["nothing.safetensors", "IN", "--out", "OUT"], "no such file"),
        (["resnet3d34_imagenet", "IN", "--out", "OUT"], "has no weights"),
        (["NET", "GONE", "--out", "OUT"], "GONE is not there"),
        (["NET", "IN", "--out", "OUT", "--mask", "png"], "mask='png' is not allowed; allowed: 'nii.gz'"),
        (["NET", "IN", "--out", "OUT", "--device", "cuda:77"], "device='cuda:77' is not on this machine"),
        (["NET", "IN", "--out", "OUT", "--dtype", "int8"], "dtype='int8' is not allowed"),
        (["NET", "IN", "--out", "OUT", "--point", "1,2"], "--point '1,2' is not allowed; allowed: X,Y,Z in mm"),
        (["NET", "IN", "--out", "OUT", "--point", "-1,2,3"], "is not allowed: 'net.safetensors' does segmentation"),
        (["NET", "IN", "--out", "OUT", "--key-slice", "3"], "planes=.* is not allowed: 'net.safetensors' does segm"),
        (["NET", "IN", "--out", "OUT", "--most", "3"], "most=3 is not allowed: 'net.safetensors' does segmentation"),
        (["NET", "IN", "--out", "IN"], "lies inside the input"),
        (["NET", "IN", "--out", "NET"], "cannot be written: File exists|Not a directory"),
    ],
)
def test_mistakes_of_a_user_are_one_message(
    tmp_path: Path, three: list[Path], weights: Path, args: list[str], message: str
) -> None:
    import re

    names_of = {"IN": tmp_path / "in", "OUT": tmp_path / "out", "NET": weights, "GONE": tmp_path / "GONE"}
    code, printed, errors = command("predict", *(names_of.get(arg, arg) for arg in args))
    assert (code, printed) == (1, "")
    assert errors.startswith("error: ")
    assert re.search(message, errors), errors
    assert "Traceback" not in errors
    assert not list((tmp_path / "in").glob(".*"))


def test_a_name_that_no_terminal_can_print(tmp_path: Path, weights: Path) -> None:
    odd = nifti(tmp_path / "in" / "a.nii")
    for name in (b"b\xff\x1b[31m.nii", b"c\nd.nii"):
        shutil.copy(odd, os.fsencode(tmp_path / "in") + b"/" + name)
    (tmp_path / "in" / "e\udcff.nii").write_bytes(b"no volume")
    process = start("predict", weights, tmp_path / "in", "--out", tmp_path / "out", "--no-picture")
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "Traceback" not in errors
    assert "\x1b" not in printed + errors
    assert r"b\xff" in printed or r"b\udcff" in printed
    assert "failed" in errors
    assert svd_hub.__version__
