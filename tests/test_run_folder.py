"""Laws of a run folder: what it says of a run, four forms of one log, and what a full disk leaves."""

from __future__ import annotations

import csv
import errno
import io
import json
import math
import os
import signal
import struct
import subprocess
from pathlib import Path
from typing import Any

import miniature
import pytest
import torch
from helpers_training import At, kill, killed, log, resume, run, same
from PIL import Image

from svd_hub.errors import SvdHubError
from svd_hub.training import curves, events, facts, tree
from svd_hub.training import recipe as recipes
from svd_hub.training.miniature import pictures

WHOLE = [
    "curves.png", "events.out.tfevents.svd-hub", "last.ckpt", "log.csv", "log.jsonl", "model.safetensors",
    "recipe.yaml", "run.json",
]  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    pictures.image_set(folder / "set")
    miniature.recipe(folder / "plain.yaml")
    return folder


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    monkeypatch.setenv("SVD_HUB_HOME", str(here / "cache"))


@pytest.fixture
def whole(here: Path) -> Path:
    """The uninterrupted run, made once."""
    if not (here / "whole").exists():
        run(here, "plain", here / "whole")
    return here / "whole"


def decoded(content: bytes) -> list[tuple[float, int, dict[str, float]]]:
    """The records of an event file: time, step, values; read by the form's own description."""

    def number(data: bytes, at: int) -> tuple[int, int]:
        value, shift = 0, 0
        while True:
            value |= (data[at] & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if not data[at - 1] & 0x80:
                return value, at

    def fields(data: bytes) -> list[tuple[int, Any]]:
        found, at = [], 0
        while at < len(data):
            key, at = number(data, at)
            if key & 7 == 0:
                value, at = number(data, at)
            else:
                size, at = (8, at) if key & 7 == 1 else (4, at) if key & 7 == 5 else number(data, at)
                value, at = data[at : at + size], at + size
            found.append((key >> 3, value))
        return found

    out = []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        message, content = content[12 : 12 + length], content[16 + length :]
        event = dict(fields(message))
        values = {}
        for _, value in fields(event.get(5, b"")):
            parts = dict(fields(value))
            values[parts[1].decode()] = struct.unpack("<f", parts[2])[0]
        out.append((struct.unpack("<d", event[1])[0], event.get(2, 0), values))
    return out


def check_forms(folder: Path) -> None:
    """All four say the same."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    table = list(csv.DictReader(io.StringIO((folder / "log.csv").read_text())))
    assert [{k: float(v) for k, v in row.items()} for row in table] == rows
    first, *others = decoded((folder / events.NAME).read_bytes())
    assert first[1:] == (0, {})
    begun = first[0]
    for row, (time, step, values) in zip(rows, others, strict=True):
        begun += row["seconds"]
        assert (time, step) == (pytest.approx(begun), row["step"])
        assert values == pytest.approx({k: v for k, v in row.items() if k not in events.PLACES}, rel=1e-6)
    assert (folder / "curves.png").read_bytes() == curves.draw(rows)


# ---- what it says --------------------------------------------------------------------------------------------------


def test_it_says_what_was_run_and_names_nobody(here: Path, whole: Path) -> None:
    assert sorted(file.name for file in whole.iterdir()) == WHOLE
    said = json.loads((whole / "run.json").read_text())
    assert said["versions"]["torch"] == torch.__version__
    assert {"python", "svd-hub", "pytorch-lightning", "monai", "numpy"} <= set(said["versions"])
    assert said["seeds"] == {"run.seed": 3, "data.init_args.seed": 3}
    assert said["data"]["train"]["images"] == pictures.TRAIN
    assert said["machine"]["device"] == "cpu" or torch.cuda.is_available()
    host = os.uname().nodename
    for file in whole.iterdir():
        assert host not in file.name.split(".")
        if file.name not in ("recipe.yaml", "last.ckpt"):  # which are what goes on here, with the data's folder
            content = file.read_bytes()
            assert not [word for word in (str(here), str(Path.home())) if word.encode() in content]
            if file.suffix in (".json", ".jsonl", ".csv"):  # others could hold a short name by chance
                assert host not in content.decode()
    assert recipes.read(str(whole / "recipe.yaml")).text == (whole / "recipe.yaml").read_text()


def test_git_state_is_that_of_the_code_s_own_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
        return subprocess.run(
            ["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    code = tmp_path / "training" / "engine.py"
    code.parent.mkdir()
    assert tree.present(root=tmp_path) is None  # no checkout
    git("init")
    assert tree.present(root=tmp_path) is None  # no commit
    code.write_text("one")
    git("add", ".")
    git("commit", "-m", "first")
    clean = tree.present(root=tmp_path)
    assert clean == tree.Tree(commit=git("rev-parse", "HEAD").strip())
    assert tree.present(root=code.parent) is None  # a package somewhere inside another's repository
    (tmp_path / "notes.txt").write_text("not code")
    assert tree.present(root=tmp_path) == clean
    code.write_text("two")
    (code.parent / "new.py").write_text("three")
    changed = tree.present(root=tmp_path)
    assert changed is not None
    assert changed.changed == ("training/engine.py", "training/new.py")
    monkeypatch.setenv("PATH", "")
    assert tree.present(root=tmp_path) is None  # no git


def test_a_run_that_goes_on_with_another_library_says_so(
    here: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "git_state", lambda: {"commit": "a" * 40, "dirty": False})
    killed(here, "plain", tmp_path / "run", At("on_train_batch_start", 4, kill))
    before = json.loads((tmp_path / "run" / "run.json").read_text())
    assert before["git"] == {"commit": "a" * 40, "dirty": False}
    monkeypatch.setattr(facts, "git_state", lambda: {"commit": "b" * 40, "dirty": True})
    monkeypatch.setattr(facts, "versions", lambda: {**before["versions"], "torch": "9.9"})
    told = r"torch 2\.\S+, now 9\.9; the code of commit aaaaaaaaaaaa, now bbbbbbbbbbbb with changes: it goes on"
    with pytest.warns(UserWarning, match=told):
        resume(tmp_path / "run")
    after = json.loads((tmp_path / "run" / "run.json").read_text())
    (change,) = after.pop("resumed")
    assert after == before
    assert change["versions"]["torch"] == "9.9"
    assert change["git"] == {"commit": "b" * 40, "dirty": True}
    resume(tmp_path / "run")  # the same again is nothing new, and no warning
    assert len(json.loads((tmp_path / "run" / "run.json").read_text())["resumed"]) == 1
    assert same(tmp_path / "run", whole)


# ---- the log -------------------------------------------------------------------------------------------------------


def test_four_forms_of_one_log(whole: Path) -> None:
    check_forms(whole)
    with Image.open(whole / "curves.png") as image:
        assert image.width == 2 * (curves.LEFT + curves.WIDTH + curves.RIGHT)  # losses, metrics


@pytest.mark.parametrize("call", [3, 5])  # saves: steps 2 and 4, the end of the epoch, step 6, step 8
def test_epochs_that_are_run_again_are_in_no_form_twice(here: Path, whole: Path, tmp_path: Path, call: int) -> None:
    """Killed behind the row of an epoch, before its checkpoint; and in the middle of the next epoch."""
    folder = tmp_path / "run"
    killed(here, "plain", folder, At("on_save_checkpoint", call, kill))
    check_forms(folder)
    with (folder / events.NAME).open("r+b") as file:  # a kill may also have left half of a record
        file.truncate(file.seek(0, os.SEEK_END) - 7)
    rows: list[int] = []
    resume(folder, callbacks=[At("on_train_batch_start", 1, lambda: rows.append(len(log(folder))))])
    assert rows == [0 if call == 3 else 1]  # what will be written again is taken out before it
    check_forms(folder)
    assert log(folder) == log(whole)


def test_an_event_file_is_byte_for_byte_that_of_tensorboard() -> None:
    """Made by tensorboard 2.21.0: its RecordWriter, a version and two scalars."""
    assert events.crc32c(b"123456789") == 0xE3069283  # of the CRC's own definition (RFC 3720, appendix B.4)
    row = {"epoch": 0, "step": 300, "seconds": 12.5, "val/auc": 0.75, "train/loss": 0.5}
    assert events.encode([row], begun=1.7e9).hex() == (
        "1800000000000000a37f4b220900000040fc54d9411a0d627261696e2e4576656e743a32eced8f9d31000000000000009d8383e909"
        "00002043fc54d94110ac022a230a0e0a0776616c2f617563150000403f0a110a0a747261696e2f6c6f7373150000003f0f232eaf"
    )


def test_a_log_that_goes_on_is_appended_to(here: Path, tmp_path: Path) -> None:
    """TensorBoard keeps the file open; a file that were moved into its place would never be seen to grow."""
    files: list[int] = []
    seen = At("on_save_checkpoint", 5, lambda: files.append((tmp_path / "run" / events.NAME).stat().st_ino))
    run(here, "plain", tmp_path / "run", callbacks=[seen])
    assert files == [(tmp_path / "run" / events.NAME).stat().st_ino]
    check_forms(tmp_path / "run")


def test_what_curves_show() -> None:
    place = {"step": 1, "seconds": 1.0}
    rows = [
        {"epoch": 0, **place, "train/loss": 2.0, "val/auc": math.nan},
        {"epoch": 1, **place, "train/loss": 1.0, "val/auc": 0.5, "val/froc": 0.25},
    ]
    shown = curves.panels(rows)
    assert shown == {
        "loss": {"train/loss": [(1, 2.0), (2, 1.0)]},
        "metrics": {"val/auc": [(2, 0.5)], "val/froc": [(2, 0.25)]},
    }
    picture = Image.open(io.BytesIO(curves.draw(rows))).convert("RGB")
    colour = tuple(int(curves.COLOURS[0][k : k + 2], 16) for k in (1, 3, 5))
    frame = picture.crop((curves.LEFT, curves.TOP, curves.LEFT + curves.WIDTH, curves.TOP + curves.HEIGHT))
    place_of = [(x, y) for x in range(frame.width) for y in range(frame.height) if near(frame.getpixel((x, y)), colour)]
    highest, lowest = min(place_of, key=lambda p: p[1]), max(place_of, key=lambda p: p[1])
    assert highest[0] < 10 < frame.width - 10 < lowest[0]  # it falls from corner to corner
    assert Image.open(io.BytesIO(curves.draw([]))).width > 0


def near(a: Any, b: Any) -> bool:
    return all(abs(x - y) < 24 for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    ("low", "high", "first", "last", "count"),
    [(0, 1, 0, 1, 6), (0.25, 1.32, 0.4, 1.2, 5), (1, 16, 2, 16, 8), (5, 5, 5, 5, 1), (-3, 2, -3, 2, 6)],
)
def test_ticks_are_round_and_inside(low: float, high: float, first: float, last: float, count: int) -> None:
    found = curves.ticks(low, high)
    assert (found[0], found[-1], len(found)) == (pytest.approx(first), pytest.approx(last), count)


# ---- a full disk ---------------------------------------------------------------------------------------------------


def full_at(monkeypatch: pytest.MonkeyPatch, name: str, call: int) -> None:
    """The nth time that a file whose name holds `name` is brought to the disk, there is no room for it."""
    count, before = [0], os.fsync

    def fsync(handle: int) -> None:
        count[0] += name in Path(os.readlink(f"/proc/self/fd/{handle}")).name
        if count[0] == call:
            count[0] += 1
            raise OSError(errno.ENOSPC, "No space left on device")
        before(handle)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("recipe.yaml", 1),
        ("run.json", 1),
        ("last.ckpt", 2),
        ("log.csv", 1),
        ("curves.png", 2),
        (events.NAME, 1),
        (events.NAME, 2),
        ("log.jsonl", 2),
        ("model.safetensors", 1),
    ],
)
def test_a_full_disk_stops_the_run_with_the_next_step_and_loses_nothing(
    here: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, call: int
) -> None:
    folder = tmp_path / "run"
    step = "the same command" if name == "recipe.yaml" else "svd-hub train --resume"
    with monkeypatch.context() as patch:
        full_at(patch, name, call)
        with pytest.raises(SvdHubError, match=rf"{name} cannot be written: No space left.* is whole\. Next: .*{step}"):
            run(here, "plain", folder)
    assert not [file for file in folder.iterdir() if file.name.endswith((".part", ".tmp"))]
    assert not (folder / "model.safetensors").exists()
    if name == "recipe.yaml":
        run(here, "plain", folder)
    else:
        resume(folder)
    assert same(folder, whole)
    assert log(folder) == log(whole)
    check_forms(folder)


def test_an_error_of_the_data_is_not_taken_for_one_of_the_run(here: Path, tmp_path: Path) -> None:
    def fail() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(here / "set"))

    with pytest.raises(OSError, match="No space left") as caught:
        run(here, "plain", tmp_path / "run", callbacks=[At("on_train_batch_start", 2, fail)])
    assert not isinstance(caught.value, SvdHubError)


def test_ctrl_c_leaves_all_forms_of_the_log(here: Path, tmp_path: Path) -> None:
    stop = At("on_train_batch_start", 7, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run(here, "plain", tmp_path / "run", callbacks=[stop])
    check_forms(tmp_path / "run")
    assert [row["epoch"] for row in log(tmp_path / "run")] == [0]
