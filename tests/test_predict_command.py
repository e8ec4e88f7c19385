"""The command `svd-hub predict`: what it prints, how it ends, and what it leaves when it is stopped."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers_predict import batch, blob, command, names, nifti, saved, segmenter, start
from helpers_volume import make_series

import svd_hub
from svd_hub import Predictor
from svd_hub.errors import CheckpointError
from svd_hub.predict import files, folders, predict_files

BLOB, INSIDE = blob()


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    return [nifti(tmp_path / "in" / f"{name}.nii.gz", seed=k) for k, name in enumerate(("anna", "bert", "carl"))]


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
        batch(three[:1], out)
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
    wait_for(out, process, "????????????-own-*/result.json")
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
    told = json.loads(printed)
    assert (told.pop("position"), told["entry"][:11]) == (1, "own-unet3d-")
    assert told == {"result": told["result"], **json.loads((out / told["result"] / "result.json").read_text())}
    assert told["result"] == f"{files.digest_of(three[0])[:12]}-{told['entry']}"
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
    assert [name.partition("-own-")[0] for name in names(tmp_path / "out")] == [
        "anna",
        "carl",
        "results.csv",
        "run.json",
    ]
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").read_text().splitlines()))
    assert [(row["file"], row["state"]) for row in rows] == [("anna.nii.gz", "done"), ("bert.nii.gz", "failed"),
                                                              ("carl.nii.gz", "done")]  # fmt: skip


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
    assert [name.partition("-own-")[0] for name in names(tmp_path / "out")] == [
        "anna",
        "bert",
        "results.csv",
        "run.json",
    ]
    assert "mask.dcm" in names(next((tmp_path / "out").glob("anna-*")))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["no_such_entry", "IN", "--out", "OUT"], "no_such_entry"),
        (["nothing.safetensors", "IN", "--out", "OUT"], "no such file"),
        (["resnet3d34_imagenet", "IN", "--out", "OUT"], "has no weights"),
        (["NET", "GONE", "--out", "OUT"], "GONE is not there"),
        (["NET", "IN", "--out", "OUT", "--mask", "png"], "--mask png is not allowed; allowed: 'nii.gz'"),
        (
            ["NET", "IN", "--out", "OUT", "--device", "cuda:77"],
            "--device cuda:77 is not on this machine. Next: --device cpu",
        ),
        (["NET", "IN", "--out", "OUT", "--dtype", "int8"], "--dtype int8 is not allowed"),
        (["NET", "IN", "--out", "OUT", "--point", "1,2"], "--point '1,2' is not allowed; allowed: X,Y,Z in mm"),
        (["NET", "IN", "--out", "OUT", "--point", "-1,2,3"], "is not allowed: 'net.safetensors' does segmentation"),
        (
            ["NET", "IN", "--out", "OUT", "--key-slice", "3"],
            "--key-slice 3 is not allowed: 'net.safetensors' does segm",
        ),
        (["NET", "IN", "--out", "OUT", "--most", "3"], "--most 3 is not allowed: 'net.safetensors' does segmentation"),
        (["NET", "IN", "--out", "OUT", "--key-slice", "3", "--every-slice"], "exclude each other; allowed: one"),
        (["NET", "IN", "--out", "IN"], "lies inside the input"),
        (["NET", "IN", "--out", "NET"], "--out .*net.safetensors is a file; allowed: a folder"),
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


def test_a_file_of_an_export_is_no_network(tmp_path: Path, three: list[Path]) -> None:
    """Its folder is one to predict with, see test_export_predicting.py."""
    folder = tmp_path / "onnx"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    (folder / "model.onnx").write_bytes(b"\x08\x07")
    code, _, errors = command("predict", folder / "model.onnx", three[0], "--out", tmp_path / "out")
    assert code == 1
    assert (
        f"{folder / 'model.onnx'} is of an export, for an inference server; allowed: a name, a .safetensors" in errors
    )
    with pytest.raises(CheckpointError, match=r"is of an export.*Next: .*svd_hub\.export\.predictor\(FOLDER\)"):
        Predictor(folder)


def test_notes_are_told_once_and_a_run_folder_is_a_network(tmp_path: Path, three: list[Path]) -> None:
    net = svd_hub.load("resnet3d18w16_lidc", weights=None, width=4, depth=10)
    (tmp_path / "run").mkdir()
    saved(net, tmp_path / "run" / "model.safetensors")
    code, printed, errors = command("predict", tmp_path / "run", *three, "--out", tmp_path / "out", "--no-picture")
    assert (code, errors) == (0, "")
    (note,) = [line for line in printed.splitlines() if "padded with" in line]
    assert note.startswith("note: the volume is smaller than")
    assert note.endswith("(3 of 3 inputs)")


def test_a_silent_run_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from svd_hub.predict import commands

    now = [0.0]
    monkeypatch.setattr(commands.time, "monotonic", lambda: now[0])
    lines = commands._Lines(2)
    for seconds, part in ((10.0, 1), (31.0, 2), (40.0, 3), (62.0, 4)):
        now[0] = seconds
        lines.done(part, 9)
    lines.step()
    lines.done(1, 9)
    assert capsys.readouterr().err.splitlines() == ["1/2: 2 of 9 parts done", "1/2: 4 of 9 parts done"]
