"""Laws of svd_hub.files: a file is the old one or the whole new one."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from svd_hub import files


def test_what_is_written_is_read_and_nothing_else_is_there(tmp_path: Path) -> None:
    for content in (b"one", b"", b"two" * 100_000):
        files.write_atomic(tmp_path / "a", content)
        assert (tmp_path / "a").read_bytes() == content
        assert files.sha256_of(tmp_path / "a") == hashlib.sha256(content).hexdigest()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    files.write_atomic(tmp_path / "a", b"old")

    def full(*_: Any) -> None:
        assert len(list(tmp_path.iterdir())) == 2, "nothing was written beside"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space left"):
        files.write_atomic(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_who_holds_the_old_file_keeps_it(tmp_path: Path) -> None:
    files.write_atomic(tmp_path / "a", b"old")
    with open(tmp_path / "a", "rb") as held:
        files.write_atomic(tmp_path / "a", b"new")
        assert held.read() == b"old"


@pytest.mark.skipif(os.name == "nt", reason="folders cannot be opened")
def test_the_bytes_reach_the_disk_before_the_name_and_the_name_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(handle: int) -> None:
        done.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")
        fsync(handle)

    def noted_replace(old: Any, new: Any) -> None:
        done.append("move")
        replace(old, new)

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc")
    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    files.write_atomic(tmp_path / "a", b"x")
    assert done == ["file", "move", "folder"]


def test_a_folder_that_cannot_be_synced_is_no_failure(tmp_path: Path) -> None:
    files.sync_folder(tmp_path)
    files.sync_folder(tmp_path / "absent")
