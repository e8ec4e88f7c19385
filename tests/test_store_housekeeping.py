"""Laws of svd_hub.store.housekeeping: looking changes nothing, cleaning takes what was asked."""

from __future__ import annotations

import hashlib
from pathlib import Path

from helpers_store import OTHER, VERSION, bring, by_hand, make

from svd_hub import store
from svd_hub.store import ledger


def test_verify(home: Path) -> None:
    by_hand(home)
    assert [line.state for line in store.verify([make()])] == ["absent"]
    local = bring(make())
    assert store.verify([make()]) == store.verify() == [store.Verified(entry="net", path=local.path, state="ok")]
    good = local.path.read_bytes()
    local.path.write_bytes(b"x" + good[1:])
    (line,) = store.verify([make()])
    assert line.state == "damaged"
    assert local.sha256 in line.note
    assert "svd-hub fetch net" in line.note
    assert local.path.exists(), "verify only looks"
    ledger.record_path(local.path).unlink()
    assert [line.state for line in store.verify()] == ["unrecorded"]
    assert bring(make()).path.read_bytes() == good


def test_clean_takes_what_was_asked(home: Path) -> None:
    hand = by_hand(home)
    other = make("other", sha256=hashlib.sha256(OTHER).hexdigest(), file="other.pth")
    by_hand(home, OTHER, "other.pth")
    one, two = bring(make()), bring(other)
    assert [(used.entry, used.path) for used in store.clean(make())] == [("net", one.path)]
    assert not one.path.parent.exists()
    assert two.path.exists()
    assert hand.exists()
    assert store.cached(other, converter_version=VERSION) is not None
    assert [used.entry for used in store.clean()] == ["other"]
    assert store.usage() == []
    assert hand.exists()


def test_clean_follows_no_link(home: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious.safetensors").write_bytes(b"x")
    by_hand(home)
    local = bring(make())
    (home / ("a" * 64)).symlink_to(outside)
    (home / "tmp" / "dead").symlink_to(outside)
    (local.path.parent / "link.safetensors").symlink_to(outside / "precious.safetensors")
    (home / "mine.safetensors").write_bytes(b"x")
    assert [used.path for used in store.usage()] == [local.path]
    store.clean()
    assert (outside / "precious.safetensors").exists()
    assert (home / "mine.safetensors").exists()
    assert not local.path.exists()
