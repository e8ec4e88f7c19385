"""The corruption drill: 500 flips, truncations and swaps of local files; not one becomes a model unnoticed."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from pathlib import Path

import pytest
import torch
from synthetic import TINY, Shelf, ours, values

import svd_hub
from svd_hub import store
from svd_hub.catalog import get_entry
from svd_hub.errors import SvdHubError

COUNT = 500
r = random.Random(20261123)


def damage(path: Path, good: bytes, other: Path) -> str:
    """Do one random harm to a file that holds `good`; return what it was."""
    kind = r.choice(["flip", "flip", "flip", "truncate", "extend", "swap", "zero", "empty"])
    at = r.randrange(len(good))
    if kind == "flip":
        path.write_bytes(good[:at] + bytes([good[at] ^ (1 << r.randrange(8))]) + good[at + 1 :])
    elif kind == "truncate":
        path.write_bytes(good[:at])
    elif kind == "extend":
        path.write_bytes(good + r.randbytes(1 + at % 64))
    elif kind == "zero":
        end = min(len(good), at + 1 + r.randrange(512))
        path.write_bytes(good[:at] + bytes(b ^ 255 for b in good[at:end]) + good[end:])
    elif kind == "empty":
        path.write_bytes(b"")
    else:  # a good file, but another's
        shutil.copyfile(other, path)
    return f"{kind} at {at}"


WANT = [(values(TINY, seed=seed), hashlib.sha256(ours(TINY, seed=seed)).hexdigest()) for seed in (0, 1)]


def is_right(name: str, seed: int) -> bool:
    model, report = svd_hub.load(name, progress=False, return_report=True)
    want, digest = WANT[seed]
    return (
        report.checked
        and report.source_sha256 == digest
        and all(torch.equal(t, want[k]) for k, t in model.state_dict().items())
    )


@pytest.fixture
def two(shelf: Shelf) -> tuple[Path, Path]:
    """Two cached entries of one architecture, so that each file would fit the other's network."""
    paths = []
    for seed, name in enumerate(("one", "two")):
        shelf.put_tiny(name, seed=seed)
        assert is_right(name, seed)
        paths += [item.path for item in store.usage() if item.entry == name]
    return paths[0], paths[1]


def test_damaged_cache(two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """With nowhere to fetch from: always an error. With the mirror: always repaired. Files and ledger alike."""
    mirror = Path(os.environ["SVD_HUB_MIRROR"])
    path, other = two
    record, record_other = path.with_suffix(".json"), other.with_suffix(".json")
    good, good_record, other_bytes = path.read_bytes(), record.read_bytes(), other.read_bytes()
    undetected, unrepaired = [], []
    for index in range(COUNT):
        in_ledger = index % 10 == 9
        told = damage(record, good_record, record_other) if in_ledger else damage(path, good, other)
        if index % 7 == 3:  # two files change places, ledgers and all
            shutil.copyfile(other, path)
            shutil.copyfile(record_other, record)
            told = "swap of both"
        if index % 5:
            monkeypatch.setenv("SVD_HUB_MIRROR", str(mirror.parent / "gone"))
            try:
                svd_hub.load("one", progress=False)
                harmless = in_ledger and is_right("one", 0)
                undetected += [] if harmless else [told]
            except SvdHubError:
                pass
        else:
            monkeypatch.setenv("SVD_HUB_MIRROR", str(mirror))
            unrepaired += [] if is_right("one", 0) and is_right("one", 0) else [told]
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(good)
        record.write_bytes(good_record)
    assert undetected == []
    assert unrepaired == []
    assert other.read_bytes() == other_bytes, "what was not damaged was not touched"
    monkeypatch.setenv("SVD_HUB_MIRROR", str(mirror.parent / "gone"))
    assert is_right("one", 0)
    assert is_right("two", 1)


def test_damaged_mirror(shelf: Shelf) -> None:
    shelf.put_tiny("two", seed=1)
    path = shelf.put_tiny("one", seed=0)
    good = path.read_bytes()
    for _ in range(60):
        told = damage(path, good, shelf.mirror / "two.pth")
        with pytest.raises(SvdHubError, match="Next: "):
            svd_hub.load("one", progress=False)
        assert store.usage() == [], told
    path.write_bytes(good)
    assert is_right("one", 0)


def test_damaged_bundled_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bundled = [name for name in svd_hub.list_entries(status="ours") if get_entry(name).source.kind == "bundled"]
    if not bundled:
        pytest.skip("nothing is bundled")
    real = store.bundled_path(get_entry(bundled[0]).source.file)
    path, other, good = tmp_path / real.name, tmp_path / "other", real.read_bytes()
    other.write_bytes(good[::-1])
    monkeypatch.setattr(store.places, "bundled_path", lambda _: path)
    for _ in range(60):
        damage(path, good, other)
        with pytest.raises(SvdHubError, match=r"bundled file.*expected sha256.*Next: pip install --force-reinstall"):
            svd_hub.load(bundled[0])
        assert path.exists(), "the package's own file is not ours to remove"
    path.write_bytes(good)
    assert svd_hub.load(bundled[0], return_report=True)[1].checked
