"""Laws of svd_hub.store.ledger: damage is noticed, and what was seen first is held to."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import shutil
from pathlib import Path

import pytest
import servers
from helpers_store import BODY, OTHER, SHA, VERSION, bring, by_hand, fails, make

from svd_hub import store
from svd_hub.errors import IntegrityError, OptionError
from svd_hub.store import ledger


def test_prefix_is_completed_and_held_to(server: servers.Server, home: Path) -> None:
    entry = make(url=server.add("/m", servers.ok(BODY)), sha256=SHA[:8], size=0)
    local = bring(entry)
    assert SHA in local.note
    assert SHA[:8] in local.note
    assert store.expected_sha256(entry) == SHA
    assert store.cached(entry, converter_version=VERSION) == dataclasses.replace(local, note="")


def test_trust_on_first_use_is_told_and_held_to(server: servers.Server, home: Path) -> None:
    entry = make(url=server.add("/m", servers.ok(BODY), servers.ok(OTHER)), sha256="")
    assert "trusted from this first use" in bring(entry).note
    store.clean(entry)
    told = fails(entry, IntegrityError, SHA, hashlib.sha256(OTHER).hexdigest(), "recorded at the first use")
    record = Path(told.split("remove ")[1].split(".json")[0] + ".json")
    record.unlink()
    assert bring(entry).source_sha256 == hashlib.sha256(OTHER).hexdigest()


def test_an_overlay_does_not_change_what_was_first_seen(server: servers.Server) -> None:
    entry = make(url=server.add("/m", servers.ok(BODY), servers.ok(OTHER)), sha256="")
    bring(entry)
    bring(make(url=entry.source.url, sha256=hashlib.sha256(OTHER).hexdigest()[:8]))
    assert store.expected_sha256(entry) == SHA


def test_damaged_file_is_removed_and_brought_again(server: servers.Server, caplog: pytest.LogCaptureFixture) -> None:
    entry = make(url=server.add("/m", servers.ok(BODY)))
    local = bring(entry)
    good = local.path.read_bytes()
    local.path.write_bytes(good[:-1] + b"!")
    assert store.cached(entry, converter_version=VERSION) is None
    assert not local.path.exists()
    assert str(local.path) in caplog.text
    assert local.sha256 in caplog.text
    assert bring(entry).path.read_bytes() == good
    assert len(server.seen) == 2


def test_corruption_drill(home: Path) -> None:
    """500 random flips, truncations, growths and swaps of the file or its ledger: none is served."""
    by_hand(home)
    local = bring(make())
    record, dice = ledger.record_path(local.path), random.Random(7)
    good, written = local.path.read_bytes(), record.read_bytes()
    for _ in range(500):
        target, original = dice.choice([(local.path, good), (local.path, good), (record, written)])
        change, at = dice.randrange(4), dice.randrange(len(original))
        bad = bytearray(original)
        if change == 0:
            bad[at] ^= 1 << dice.randrange(8)
        elif change == 1:
            del bad[at:]
        elif change == 2:
            bad[at:at] = dice.randbytes(dice.randrange(1, 9)).replace(b" ", b"#").replace(b"\n", b"#")
        else:
            bad = bytearray(dice.randbytes(len(original)))
        target.write_bytes(bad)
        found = store.cached(make(), converter_version=VERSION)
        # White space added to JSON changes nothing that it says; anything else must be noticed.
        same = target == record and _same_json(bytes(bad), written)
        assert found is None or same, (target.name, change, at)
        local.path.write_bytes(good)
        record.write_bytes(written)
    assert store.cached(make(), converter_version=VERSION) is not None


def _same_json(one: bytes, two: bytes) -> bool:
    try:
        return bool(json.loads(one) == json.loads(two))
    except ValueError:
        return False


def test_swapped_files_are_noticed(home: Path) -> None:
    by_hand(home)
    one, two = bring(make(), "one"), bring(make(), "two")
    other = make("other", sha256=hashlib.sha256(OTHER).hexdigest(), file="other.pth")
    by_hand(home, OTHER, "other.pth")
    far = bring(other, "one")
    for path in (two.path, far.path):  # with its ledger: a good pair in the wrong place
        shutil.copy(path, one.path)
        shutil.copy(ledger.record_path(path), ledger.record_path(one.path))
        assert store.cached(make(), converter_version="one") is None


def test_damage_seen_late_does_not_remove_the_repair(home: Path) -> None:
    by_hand(home)
    local = bring(make())
    old = ledger.stamp_of(local.path.stat())
    copy = local.path.with_name("copy")
    shutil.copyfile(local.path, copy)
    os.replace(copy, local.path)
    ledger.discard(local.path, old)
    assert local.path.exists()


def test_record_that_changes_meanwhile_proves_no_damage(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_hand(home)
    local = bring(make())
    real = ledger.read
    good = real(ledger.record_path(local.path)) or {}
    answers = iter([{**good, "sha256": "0" * 64}])
    monkeypatch.setattr(ledger, "read", lambda path: next(answers, None) or real(path))
    assert store.cached(make(), converter_version=VERSION) == dataclasses.replace(local, note="")


def test_stat_mode(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_hand(home)
    local = bring(make())
    good, state = local.path.read_bytes(), local.path.stat()
    monkeypatch.setenv("SVD_HUB_VERIFY", "stat")
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("hashed an unchanged file"))
    assert store.cached(make(), converter_version=VERSION) is not None
    monkeypatch.undo()
    monkeypatch.setenv("SVD_HUB_HOME", str(home))
    # The same size and time, other bytes: what "stat" cannot see and "sha256" does.
    local.path.write_bytes(good[:-1] + b"!")
    os.utime(local.path, ns=(state.st_atime_ns, state.st_mtime_ns))
    monkeypatch.setenv("SVD_HUB_VERIFY", "stat")
    assert store.cached(make(), converter_version=VERSION) is not None
    os.utime(local.path)
    assert store.cached(make(), converter_version=VERSION) is None
    local = bring(make())
    os.utime(local.path, ns=(0, 0))  # a copied cache: hashed once, then trusted again
    assert store.cached(make(), converter_version=VERSION) is not None
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("hashed an unchanged file"))
    assert store.cached(make(), converter_version=VERSION) is not None


def test_unknown_verify_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVD_HUB_VERIFY", "off")
    with pytest.raises(OptionError, match=r"sha256.*stat"):
        store.cached(make(), converter_version=VERSION)
