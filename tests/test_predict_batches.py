"""A batch: each result whole or not there, none made twice, none lost, and nothing of anybody else's touched."""

from __future__ import annotations

import csv
import dataclasses
import errno
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_predict import Bright, batch, blob, names, nifti
from helpers_volume import make_series

from svd_hub import Inference, Predictor
from svd_hub.errors import OptionError, SvdHubError
from svd_hub.predict import Outputs, files, folders, outputs

BLOB, INSIDE = blob()
REPORTS = ("run.json", "results.csv")


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    return [nifti(tmp_path / "in" / f"{name}.nii.gz", seed=k) for k, name in enumerate(("anna", "bert", "carl"))]


def test_a_folder_for_each_named_by_its_content(tmp_path: Path, three: list[Path]) -> None:
    cases = batch(three, tmp_path / "out")
    assert [case.state for case in cases] == ["done"] * 3
    assert names(tmp_path / "out") == sorted([*(case.name for case in cases), "results.csv", "run.json"])
    for case in cases:
        assert case.name == f"{files.digest_of(case.path)[:12]}-bright"
        assert names(tmp_path / "out" / case.name) == ["key.json", "mask.nii.gz", "result.json"]
        facts = json.loads((tmp_path / "out" / case.name / "result.json").read_text())
        assert facts["files"] == ["mask.nii.gz"]
        assert facts["classes"][1] == {"label": 1, "name": "blob", "voxels": int(INSIDE.sum()),
                                       "ml": round(INSIDE.sum() / 1000, 3)}  # fmt: skip
        assert set(case.seconds) == {"read", "predict", "write"}
        assert set(facts["made"]) == {"finished", "versions", "device", "dtype", "seconds"}
        assert case.facts == facts
    report = json.loads((tmp_path / "out" / "run.json").read_text())
    assert report["inputs"] == 3
    assert [one["state"] for one in report["cases"]] == ["done"] * 3
    assert [(one["position"], one["result"]) for one in report["cases"]] == [(c.number, c.name) for c in cases]
    assert report["versions"]["torch"] == torch.__version__
    assert report["use"] == "Research use. Not a medical device."


def test_what_is_there_is_not_made_again(tmp_path: Path, three: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    batch(three[:2], tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*") if path.name not in REPORTS}
    asked: list[Path] = []
    real = Predictor.__call__
    monkeypatch.setattr(
        Predictor, "__call__", lambda self, path, **rest: asked.append(path) or real(self, path, **rest)
    )
    assert [case.state for case in batch(three, tmp_path / "out")] == ["there", "there", "done"]
    assert asked == three[2:]
    assert [case.state for case in batch(three, tmp_path / "out", overwrite=True)] == ["there"] * 3, "nothing is other"
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())


def test_the_same_bytes_under_another_name_are_the_same_input(tmp_path: Path, three: list[Path]) -> None:
    shutil.copy(three[0], tmp_path / "copy.nii.gz")
    assert [case.state for case in batch([three[0], tmp_path / "copy.nii.gz"], tmp_path / "out")] == ["done", "there"]


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
    (first,) = batch(three[:1], tmp_path / "out")
    other = changed(what)
    (case,) = batch(three[:1], tmp_path / "out", **other)
    assert case.state == "failed"
    assert "holds another result: of other weights, options or another input. Next: another out=" in case.error
    assert [one.state for one in batch(three[:1], tmp_path / "out")] == ["there"], "it was left alone"
    (case,) = batch(three[:1], tmp_path / "out", overwrite=True, **other)
    assert (case.state, case.name) == ("done", first.name)
    assert [one.state for one in batch(three[:1], tmp_path / "out", **other)] == ["there"]


def test_only_results_are_ever_replaced(tmp_path: Path) -> None:
    """Not the input itself, not a folder of the same name, not a result to which somebody added a file."""
    series = tmp_path / "data" / "anna"
    make_series(series, (BLOB + 1024).astype(np.uint16))
    before = {path: path.read_bytes() for path in series.iterdir()}
    with pytest.raises(OptionError, match="lies inside the input"):
        batch([tmp_path / "data"], tmp_path / "data", names=True, overwrite=True)
    with pytest.raises(OptionError, match="lies inside the input"):
        batch([series], series / "out", names=True)
    (tmp_path / "data" / "anna-bright").mkdir()
    (case,) = batch([series], tmp_path / "data", names=True, overwrite=True)
    assert case.state == "failed"
    assert "is there, and is no result of this command alone: it is left as it is" in case.error
    assert {path: path.read_bytes() for path in series.iterdir()} == before
    (case,) = batch([series], tmp_path / "out", names=True)
    (tmp_path / "out" / "anna-bright" / "notes.txt").write_text("mine")
    (case,) = batch([series], tmp_path / "out", Bright(400), names=True, overwrite=True)
    assert "is no result of this command alone" in case.error
    assert (tmp_path / "out" / "anna-bright" / "notes.txt").read_text() == "mine"


def bytes_of(path: Path) -> bytes:
    """The bytes of a file; of `result.json` without when it was made."""
    if path.name != "result.json":
        return path.read_bytes()
    facts = json.loads(path.read_text())
    facts["made"].pop("finished"), facts["made"].pop("seconds")
    return json.dumps(facts).encode()


def test_the_bytes_of_a_result_are_the_same_again(tmp_path: Path, three: list[Path]) -> None:
    for out in ("one", "two"):
        batch(three[:1], tmp_path / out, want=Outputs())
    for path in (tmp_path / "one").rglob("*.*"):
        if path.is_file() and path.name != "run.json":
            assert bytes_of(path) == bytes_of(tmp_path / "two" / path.relative_to(tmp_path / "one")), path.name
    series = tmp_path / "dicom"
    make_series(series, (BLOB + 1024).astype(np.uint16))
    (a,), (b,) = (batch([series], tmp_path / out, want=Outputs()) for out in ("one", "two"))
    one, two = (bytes_of(tmp_path / out / a.name / "result.json") for out in ("one", "two"))
    assert one == two
    assert b"mask.dcm" in one
    assert a.name == b.name


# ---- what goes wrong -----------------------------------------------------------------------------------------------


def test_one_that_fails_stops_no_other(tmp_path: Path, three: list[Path]) -> None:
    three[1].write_bytes(b"no volume")
    cases = batch([*three, tmp_path / "gone.nii"], tmp_path / "out")
    assert [case.state for case in cases] == ["done", "failed", "done", "failed"]
    assert "is no volume that is known here" in cases[1].error
    assert "cannot be read" in cases[3].error
    report = json.loads((tmp_path / "out" / "run.json").read_text())
    assert [one["state"] for one in report["cases"]] == ["done", "failed", "done", "failed"]
    assert report["cases"][1]["error"].startswith("the input is no volume that is known here; allowed: ")
    assert report["cases"][1]["result"] == f"{files.digest_of(three[1])[:12]}-bright", "where it would be"
    assert len(names(tmp_path / "out")) == 4
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").read_text().splitlines()))
    assert [(row["position"], row["state"]) for row in rows] == [("1", "done"), ("2", "failed"), ("3", "done"),
                                                               ("4", "failed")]  # fmt: skip
    assert rows[0]["ml_blob"] == str(round(INSIDE.sum() / 1000, 3))
    assert rows[1]["ml_blob"] == ""
    again = batch(three[:1], tmp_path / "out")
    assert again[0].state == "there"
    assert (
        next(csv.DictReader((tmp_path / "out" / "results.csv").read_text().splitlines()))["ml_blob"]
        == rows[0]["ml_blob"]
    )


@pytest.mark.parametrize(
    ("error", "message"),
    [(RuntimeError("SENTINEL"), "a fault of svd-hub or of a library it uses: RuntimeError in test_predict_batches.py"),
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

    cases = batch(three[:2], tmp_path / "out", Faulty())
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
        cases = batch(three[:1], tmp_path / "out")
        message = cases[0].error
    except SvdHubError as error:
        message = str(error)
    assert f"{tmp_path / 'out'} cannot be written: No space left on device. Next: make room" in message
    monkeypatch.undo()
    assert [name for name in names(tmp_path / "out") if name not in REPORTS] == []
    assert [case.state for case in batch(three[:1], tmp_path / "out")] == ["done"]


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_computed(
    tmp_path: Path, three: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Predictor, "__call__", lambda *args, **rest: pytest.fail("it was computed"))
    (tmp_path / "file").write_bytes(b"x")
    for out, what in ((tmp_path / "file", "is a file"), (tmp_path / "file" / "out", "lies inside a file")):
        with pytest.raises(OptionError, match=rf"{what}; allowed: a folder, which is made if need be. Next: "):
            batch(three, out)
    with pytest.raises(SvdHubError, match=r"cannot be written: .*\. Next: make room, or another out="):
        batch(three, Path("/proc/out"))
    monkeypatch.setattr(files, "write_atomic", full)
    with pytest.raises(SvdHubError, match="cannot be written: No space left on device"):
        batch(three, tmp_path / "out")


def test_networks_share_a_folder_and_a_wrong_input_is_told_first(tmp_path: Path, three: list[Path]) -> None:
    other = Bright(400.0)
    other.entry = dataclasses.replace(other.entry, name="brighter")
    out = tmp_path / "out"
    one, two = batch(three[:1], out), batch(three[:1], out, other)
    assert [(case.state, case.name.partition("-")[2]) for case in (*one, *two)] == [
        ("done", "bright"),
        ("done", "brighter"),
    ]
    three[0].write_bytes(b"\x89PNG\r\n\x1a\n no volume")
    batch(three[1:2], out, names=True)
    (out / "anna-bright").mkdir()
    (case,) = batch(three[:1], out, names=True)
    assert "is a PNG picture" in case.error, "and not that its folder holds something else"
