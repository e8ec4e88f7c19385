"""Laws of svd_hub.store: what is loaded was promised, one process fetches, other people's files stay as they are."""

from __future__ import annotations

import builtins
import dataclasses
import errno
import hashlib
import inspect
import itertools
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import servers

from svd_hub import store, transport
from svd_hub.catalog import SOURCES, Entry, Source
from svd_hub.errors import DownloadError, IntegrityError, OptionError, WeightsUnavailableError

ROOT = Path(__file__).resolve().parents[1]
BODY = random.Random(0).randbytes(200_000)
SHA = hashlib.sha256(BODY).hexdigest()
OTHER = random.Random(1).randbytes(200_000)
VERSION = "test-1"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in list(os.environ):
        if name.upper().endswith("_PROXY") or name.startswith(("HF_", "SVD_HUB_", "XDG_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SVD_HUB_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def server() -> Iterator[servers.Server]:
    with servers.Server() as running:
        yield running


def make(name: str = "net", **source: Any) -> Entry:
    given = {
        "kind": "url",
        "file": "model.pth",
        "url": "http://127.0.0.1:9/model.pth",
        "sha256": SHA,
        "size": len(BODY),
    }
    return Entry(
        name=name, summary="a test", architecture="none", status="official", source=Source(**{**given, **source})
    )


def convert(path: Path) -> bytes:
    return b"converted " + hashlib.sha256(path.read_bytes()).digest() + b"." * 5000


def bring(entry: Entry, version: str = VERSION) -> store.Local:
    """What the hub does, without a network."""
    if (local := store.cached(entry, converter_version=version)) is not None:
        return local
    with store.lock(entry):
        if (local := store.cached(entry, converter_version=version)) is not None:
            return local
        with store.workdir() as folder:
            fetched = store.fetch(entry, folder, progress=False)
            file = folder / "canonical.safetensors"
            file.write_bytes(convert(fetched.path))
            return store.publish(entry, file, converter_version=version, fetched=fetched)


def by_hand(cache: Path, body: bytes = BODY, file: str = "model.pth") -> Path:
    path = cache / "incoming" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)
    return path


def fails(entry: Entry, kind: type[Exception], *words: object) -> str:
    """Hold what every failed fetch owes: the error names the words and the next step, and no work is left."""
    with pytest.raises(kind) as caught:
        bring(entry)
    told = str(caught.value)
    assert all(str(word) in told for word in (*words, "Next: ")), told
    tmp = store.cache_dir() / "tmp"
    assert not tmp.is_dir() or list(tmp.iterdir()) == []
    assert store.usage() == []
    return told


# ---- deciding ------------------------------------------------------------------------------------------------------


def test_decide_never_asks_the_network_when_it_need_not() -> None:
    yes_no = (False, True)
    for kind, cached, local, mirror, offline in itertools.product(SOURCES, yes_no, yes_no, yes_no, yes_no):
        action = store.decide(kind, cached=cached, local=local, mirror=mirror, offline=offline)
        reachable = kind in ("url", "gdrive", "hf") or (kind == "folder" and mirror)
        assert (action in ("mirror", "origin")) == (reachable and not (cached or local or offline))
        assert (action == "cached") == (cached and kind not in ("none", "bundled"))
        assert (action == "bundled", action == "unavailable") == (kind == "bundled", kind == "none")
        assert (action == "mirror") <= mirror
        assert (action == "local") <= local


def test_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert store.cache_dir() == tmp_path / "cache"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SVD_HUB_HOME", "here")
    assert store.cache_dir() == tmp_path / "here"
    monkeypatch.delenv("SVD_HUB_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert store.cache_dir() == tmp_path / "xdg" / "svd_hub"
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert store.cache_dir() == tmp_path / ".cache" / "svd_hub"


@pytest.mark.parametrize("name", ["..", ".hidden", "a/b", "a\\b", "", "a b", "a\n", "/etc"])
def test_names_lead_nowhere_else(name: str) -> None:
    with pytest.raises(OptionError), store.lock(make(name)):
        pass
    with pytest.raises(OptionError):
        store.cached(make(), converter_version=name)
    for sha in (name or "Z", SHA.upper(), SHA + "0"):
        with pytest.raises(OptionError):
            store.expected_sha256(make(sha256=sha))


def test_file_names_lead_nowhere_else(tmp_path: Path) -> None:
    for file in ("..", ".", "", "a\\b"):
        with pytest.raises(OptionError):
            store.fetch(make(file=file), tmp_path)


# ---- the round trip ------------------------------------------------------------------------------------------------


def test_fetch_once_then_from_the_cache(server: servers.Server, cache: Path) -> None:
    entry = make(url=server.add("/model.pth", servers.ok(BODY)))
    assert store.cached(entry, converter_version=VERSION) is None
    assert not cache.exists(), "looking created something"
    local = bring(entry)
    assert local.path == cache / SHA / f"{VERSION}.safetensors"
    assert hashlib.sha256(local.path.read_bytes()).hexdigest() == local.sha256
    assert (local.source, local.source_sha256) == (entry.source.url, SHA)
    assert bring(entry) == local
    assert len(server.seen) == 1
    assert list((cache / "tmp").iterdir()) == []
    assert not list(cache.rglob("*.pth")), "the upstream pickle stayed"


def test_looking_writes_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read-only cache that holds a good file loads, in both modes (root ignores file modes: writing is refused)."""
    by_hand(cache)
    local = bring(make())
    real = builtins.open

    def read_only(path: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        if set(mode) & set("wxa+"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return real(path, mode, *args, **options)

    def refuse(path: Any, *_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    os.utime(local.path)
    monkeypatch.setattr(builtins, "open", read_only)
    for name in ("mkdir", "open", "replace", "unlink"):
        monkeypatch.setattr(os, name, refuse)
    for mode in store.VERIFY:
        monkeypatch.setenv("SVD_HUB_VERIFY", mode)
        assert bring(make()) == dataclasses.replace(local, note="")


def test_versions_live_beside_each_other(cache: Path) -> None:
    by_hand(cache)
    one, two = bring(make(), "a-1.2"), bring(make(), "a-1.3")
    assert one.path != two.path
    assert one.path.parent == two.path.parent
    assert {used.path for used in store.usage()} == {one.path, two.path}
    assert all(used == ("net", used.path, used.path.stat().st_size) for used in store.usage())


def test_an_entry_is_never_served_another_source(cache: Path) -> None:
    """The overlay law: what was cached under another promise (full, prefix or none) is not this entry's."""
    overlay = make(sha256=hashlib.sha256(OTHER).hexdigest(), url="http://overlay/model.pth")
    by_hand(cache, OTHER)
    bring(overlay)
    bring(dataclasses.replace(overlay, source=dataclasses.replace(overlay.source, sha256="")))
    for sha in (SHA, SHA[:8], ""):
        assert store.cached(make(sha256=sha), converter_version=VERSION) is None
    for sha in (SHA, SHA[:8]):
        with pytest.raises(IntegrityError, match="refused and left alone"):
            bring(make(sha256=sha))
    assert store.cached(overlay, converter_version=VERSION) is not None


def test_prefix_is_completed_and_held_to(server: servers.Server, cache: Path) -> None:
    entry = make(url=server.add("/m", servers.ok(BODY)), sha256=SHA[:8], size=0)
    local = bring(entry)
    assert SHA in local.note
    assert SHA[:8] in local.note
    assert store.expected_sha256(entry) == SHA
    assert store.cached(entry, converter_version=VERSION) == dataclasses.replace(local, note="")


def test_trust_on_first_use_is_told_and_held_to(server: servers.Server, cache: Path) -> None:
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


@pytest.mark.parametrize("body", [b"", servers.QUOTA_PAGE, servers.LFS_POINTER], ids=["empty", "html", "lfs"])
def test_no_hash_is_no_licence_for_rubbish(server: servers.Server, body: bytes) -> None:
    fails(make(url=server.add("/m", servers.ok(body)), sha256="", size=0), IntegrityError)


# ---- wrong bytes from the network ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (OTHER, "no known format"),
        (BODY[:-1], "cut off"),
        (b"", "an empty file"),
        (servers.QUOTA_PAGE, "HTML page titled 'Google Drive - Quota exceeded'"),
        (servers.LFS_POINTER, "Git LFS pointer"),
        (b"\x80\x02}q\x00" + BODY[5:], "a pickle"),
        (b"PK\x03\x04" + BODY[4:], "a zip archive"),
        (b"\x1f\x8b" + BODY[2:], "gzip"),
    ],
)
def test_wrong_bytes_are_fetched_once_more_and_reported(server: servers.Server, body: bytes, words: str) -> None:
    entry = make(url=server.add("/model.pth", servers.ok(body)))
    got = hashlib.sha256(body).hexdigest()
    fails(
        entry, IntegrityError, words, SHA, got, f"{len(body)} bytes", entry.source.url, "svd-hub fetch net", "incoming"
    )
    assert len(server.gets()) == 2


def test_wrong_bytes_do_not_stay(server: servers.Server, tmp_path: Path) -> None:
    for entry in (make(url=server.add("/m", servers.ok(OTHER))), make(file="other.pth")):
        by_hand(tmp_path / "cache", OTHER, "other.pth")
        (tmp_path / "work").mkdir(exist_ok=True)
        with pytest.raises(IntegrityError):
            store.fetch(entry, tmp_path / "work")
        assert list((tmp_path / "work").iterdir()) == []


def test_wrong_bytes_once(server: servers.Server, caplog: pytest.LogCaptureFixture) -> None:
    entry = make(url=server.add("/model.pth", servers.ok(servers.QUOTA_PAGE), servers.ok(BODY)))
    assert bring(entry).source_sha256 == SHA
    assert "Quota exceeded" in caplog.text


def test_right_hash_wrong_size(server: servers.Server) -> None:
    fails(make(url=server.add("/m", servers.ok(BODY)), size=len(BODY) + 1), IntegrityError, len(BODY), len(BODY) + 1)


def test_download_errors_name_the_hand(server: servers.Server, cache: Path) -> None:
    fails(make(url=server.add("/m", servers.status(404))), DownloadError, "404", cache / "incoming" / "model.pth")
    by_hand(cache)
    assert bring(make(url=server.url("/m"))).source == str(cache / "incoming" / "model.pth")


# ---- on this machine: by hand and mirrors --------------------------------------------------------------------------


def test_mirror_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = tmp_path / "mir ror"
    for place, value in (("net/model.pth", str(mirror)), ("model.pth", mirror.as_uri())):
        shutil.rmtree(mirror, ignore_errors=True)
        (mirror / place).parent.mkdir(parents=True)
        (mirror / place).write_bytes(BODY)
        monkeypatch.setenv("SVD_HUB_MIRROR", value)
        assert bring(make()).source == str(mirror / place)
        store.clean()


@pytest.mark.parametrize("sha", [SHA, SHA[:8]])
@pytest.mark.parametrize("where", ["incoming", "mirror"])
def test_other_peoples_wrong_file_is_refused_and_left(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, sha: str
) -> None:
    monkeypatch.setenv("SVD_HUB_MIRROR", str(tmp_path / "mirror"))
    path = (cache / "incoming" if where == "incoming" else tmp_path / "mirror") / "model.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(OTHER)
    before = path.stat()
    fails(make(sha256=sha), IntegrityError, path, sha, hashlib.sha256(OTHER).hexdigest(), "left alone")
    after = path.stat()
    assert path.read_bytes() == OTHER
    assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)


def test_mirror_file_above_the_limit(cache: Path) -> None:
    by_hand(cache)
    fails(make(max_size=len(BODY) - 1), IntegrityError, len(BODY), len(BODY) - 1)


def test_mirror_that_lacks_the_file(
    server: servers.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SVD_HUB_MIRROR", str(tmp_path / "nowhere"))
    entry = make(url=server.add("/model.pth", servers.ok(BODY)))
    assert f"not in the mirror folder {tmp_path / 'nowhere'}" in bring(entry).note
    assert "going on to http" in caplog.text
    store.clean()
    monkeypatch.setenv("SVD_HUB_OFFLINE", "1")
    fails(entry, DownloadError, "nowhere", "SVD_HUB_OFFLINE", "incoming")


@pytest.mark.parametrize("place", ["/base/net/model.pth", "/base/model.pth"])
def test_mirror_server(server: servers.Server, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setenv("SVD_HUB_MIRROR", server.url("/base"))
    server.add(place, servers.ok(BODY))
    server.add("/model.pth", servers.status(500))
    assert bring(make(url=server.url("/model.pth"))).source == server.url(place)
    assert server.gets("/model.pth") == []


@pytest.mark.parametrize("code", [403, 404, 401])
def test_mirror_server_that_lacks_the_file(server: servers.Server, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setenv("SVD_HUB_MIRROR", f"http://user:s3cret@127.0.0.1:{server.server_address[1]}/base")
    server.add("/base/net/model.pth", servers.status(code))
    local = bring(make(url=server.add("/model.pth", servers.ok(BODY))))
    assert local.source == server.url("/model.pth")
    assert "mirror" in local.note
    assert "s3cret" not in local.note


def test_mirror_server_with_a_wrong_file(server: servers.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVD_HUB_MIRROR", server.base)
    server.add("/net/model.pth", servers.ok(OTHER))
    fails(make(url=server.add("/origin", servers.ok(BODY))), IntegrityError, "/net/model.pth")
    assert server.gets("/origin") == []


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "SVD_HUB_OFFLINE"])
@pytest.mark.parametrize("kind", ["url", "gdrive", "hf", "folder"])
def test_offline(server: servers.Server, monkeypatch: pytest.MonkeyPatch, cache: Path, name: str, kind: str) -> None:
    monkeypatch.setenv(name, "1")
    monkeypatch.setenv("SVD_HUB_MIRROR", server.base)
    entry = make(kind=kind, url=server.url("/m"), id="abc", repo="org/net", revision=COMMIT)
    fails(entry, DownloadError, name, cache / "incoming" / "model.pth")
    assert server.seen == []
    by_hand(cache)
    assert bring(entry).source_sha256 == SHA


def test_folder_by_hand(cache: Path) -> None:
    entry = make(kind="folder", url="https://example.org/shared")
    fails(entry, DownloadError, "https://example.org/shared", "svd-hub convert net model.pth", cache / "incoming")
    by_hand(cache, file="net/model.pth")
    assert bring(entry).source_sha256 == SHA


def test_no_weights(tmp_path: Path) -> None:
    entry = dataclasses.replace(make(), status="recipe", reason="never trained.", source=Source())
    fails(entry, WeightsUnavailableError, "recipe", "never trained. Next: svd-hub info net")


def test_gdrive(server: servers.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    url = server.add("/download", servers.ok(BODY))
    monkeypatch.setattr(transport, "gdrive_url", lambda file_id: f"{url}?id={file_id}")
    assert bring(make(kind="gdrive", id="abc", url="")).source == "Google Drive file abc"
    assert server.seen[0].path == "/download?id=abc"


def test_examine_reads_only(tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    path.write_bytes(BODY)
    assert store.examine(make(), path) == store.Fetched(path=path, sha256=SHA, size=len(BODY), source=str(path))
    path.write_bytes(OTHER)
    with pytest.raises(IntegrityError):
        store.examine(make(), path)
    assert path.read_bytes() == OTHER
    with pytest.raises(DownloadError, match="no file"):
        store.examine(make(), tmp_path / "absent.pth")


def test_hf_cache_is_used_and_its_damage_passed_over(
    server: servers.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    entry = make(kind="hf", repo="org/net", revision=COMMIT)
    known = tmp_path / "known"
    known.write_bytes(BODY)
    monkeypatch.setattr(transport, "hf_cached", lambda *_: known)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert bring(entry).source == str(known)
    store.clean()
    known.write_bytes(OTHER)
    fails(entry, DownloadError, known)
    monkeypatch.delenv("HF_HUB_OFFLINE")

    def arrives(repo: str, revision: str, file: str, folder: Path, **_: Any) -> Path:
        (folder / file).write_bytes(BODY)
        return folder / file

    monkeypatch.setattr(transport, "hf_download", arrives)
    local = bring(entry)
    assert local.source == f"huggingface.co/org/net@{COMMIT[:12]}/model.pth"
    assert str(known) in local.note
    assert known.read_bytes() == OTHER


# ---- damage in the cache -------------------------------------------------------------------------------------------


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


def test_corruption_drill(cache: Path) -> None:
    """500 random flips, truncations, growths and swaps of the file or its ledger: none is served."""
    by_hand(cache)
    local = bring(make())
    record, dice = store._record_path(local.path), random.Random(7)
    good, ledger = local.path.read_bytes(), record.read_bytes()
    for _ in range(500):
        target, original = dice.choice([(local.path, good), (local.path, good), (record, ledger)])
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
        same = target == record and _same_json(bytes(bad), ledger)
        assert found is None or same, (target.name, change, at)
        local.path.write_bytes(good)
        record.write_bytes(ledger)
    assert store.cached(make(), converter_version=VERSION) is not None


def _same_json(one: bytes, two: bytes) -> bool:
    try:
        return bool(json.loads(one) == json.loads(two))
    except ValueError:
        return False


def test_swapped_files_are_noticed(cache: Path) -> None:
    by_hand(cache)
    one, two = bring(make(), "one"), bring(make(), "two")
    other = make("other", sha256=hashlib.sha256(OTHER).hexdigest(), file="other.pth")
    by_hand(cache, OTHER, "other.pth")
    far = bring(other, "one")
    for path in (two.path, far.path):  # with its ledger: a good pair in the wrong place
        shutil.copy(path, one.path)
        shutil.copy(store._record_path(path), store._record_path(one.path))
        assert store.cached(make(), converter_version="one") is None


def test_damage_seen_late_does_not_remove_the_repair(cache: Path) -> None:
    by_hand(cache)
    local = bring(make())
    old = store._stamp(local.path.stat())
    copy = local.path.with_name("copy")
    shutil.copyfile(local.path, copy)
    os.replace(copy, local.path)
    store._discard(local.path, old)
    assert local.path.exists()


def test_record_that_changes_meanwhile_proves_no_damage(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_hand(cache)
    local = bring(make())
    real = store._read_record
    good = real(store._record_path(local.path)) or {}
    answers = iter([{**good, "sha256": "0" * 64}])
    monkeypatch.setattr(store, "_read_record", lambda path: next(answers, None) or real(path))
    assert store.cached(make(), converter_version=VERSION) == dataclasses.replace(local, note="")


def test_stat_mode(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_hand(cache)
    local = bring(make())
    good, state = local.path.read_bytes(), local.path.stat()
    monkeypatch.setenv("SVD_HUB_VERIFY", "stat")
    monkeypatch.setattr(store.hashlib, "file_digest", lambda *_: pytest.fail("hashed an unchanged file"))
    assert store.cached(make(), converter_version=VERSION) is not None
    monkeypatch.undo()
    monkeypatch.setenv("SVD_HUB_HOME", str(cache))
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
    monkeypatch.setattr(store.hashlib, "file_digest", lambda *_: pytest.fail("hashed an unchanged file"))
    assert store.cached(make(), converter_version=VERSION) is not None


def test_unknown_verify_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVD_HUB_VERIFY", "off")
    with pytest.raises(OptionError, match=r"sha256.*stat"):
        store.cached(make(), converter_version=VERSION)


def test_bundled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "bundled_path", lambda file: tmp_path / file)
    entry = make(kind="bundled", file="net.safetensors")
    path = tmp_path / "net.safetensors"
    path.write_bytes(BODY)
    local = store.cached(entry, converter_version=VERSION)
    assert local is not None
    assert (local.path, local.sha256, local.source_sha256) == (path, SHA, SHA)
    assert [line.state for line in store.verify([entry])] == ["ok"]
    with pytest.raises(OptionError, match="nothing to fetch"):
        store.fetch(entry, tmp_path)
    for body in (OTHER, None):
        path.unlink()
        if body:
            path.write_bytes(body)
        with pytest.raises(IntegrityError) as caught:
            store.cached(entry, converter_version=VERSION)
        for words in (path, SHA, "pip install --force-reinstall svd-hub"):
            assert str(words) in str(caught.value)
        assert [line.state for line in store.verify([entry])] == ["damaged"]
        path.write_bytes(BODY)


def test_bundled_needs_a_full_hash(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="64"):
        store.cached(make(kind="bundled", sha256=SHA[:8]), converter_version=VERSION)


def test_bundled_path_is_inside_the_package() -> None:
    assert store.bundled_path("x.safetensors") == ROOT / "svd_hub" / "weights" / "x.safetensors"


# ---- publishing ----------------------------------------------------------------------------------------------------


def test_publish_keeps_what_is_good(cache: Path, tmp_path: Path) -> None:
    by_hand(cache)
    local = bring(make())
    inode = local.path.stat().st_ino
    with store.workdir() as folder:
        fetched = store.fetch(make(), folder)
        (folder / "second").write_bytes(b"another conversion")
        again = store.publish(make(), folder / "second", converter_version=VERSION, fetched=fetched)
    assert again.sha256 == local.sha256
    assert again.path.stat().st_ino == inode


def test_publish_refuses_another_source(cache: Path, tmp_path: Path) -> None:
    fetched = store.Fetched(path=tmp_path, sha256="0" * 64, size=1, source="x")
    with pytest.raises(IntegrityError):
        store.publish(make(), tmp_path / "file", converter_version=VERSION, fetched=fetched)
    assert not cache.exists()


@pytest.mark.parametrize("where", ["cache", "cache/tmp", "cache/locks", f"cache/{SHA}"])
def test_a_file_where_a_folder_should_be(server: servers.Server, tmp_path: Path, where: str) -> None:
    (tmp_path / where).parent.mkdir(exist_ok=True)
    (tmp_path / where).write_text("in the way")
    with pytest.raises(transport.FolderError) as caught:
        bring(make(url=server.add("/m", servers.ok(BODY))))
    assert str(tmp_path / "cache") in str(caught.value)
    assert "SVD_HUB_HOME" in str(caught.value)


@pytest.mark.parametrize("step", ["replace", "fsync"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_full_or_read_only_cache(cache: Path, monkeypatch: pytest.MonkeyPatch, step: str, code: int) -> None:
    by_hand(cache)

    def refuse(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, step, refuse)
    with pytest.raises(transport.FolderError, match="SVD_HUB_HOME") as caught:
        bring(make())
    assert str(cache) in str(caught.value)
    monkeypatch.undo()
    monkeypatch.setenv("SVD_HUB_HOME", str(cache))
    assert bring(make()).source_sha256 == SHA, "what the failure left stands in the way"
    assert not list(cache.rglob("*.tmp"))


def test_full_disk_while_copying(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_hand(cache)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfile", full)
    fails(make(), transport.FolderError, "No space left", "SVD_HUB_HOME")


# ---- processes -----------------------------------------------------------------------------------------------------

# The functions' own text, because importing this file would import pytest, sixteen times.
CHILD = f"""
import hashlib, sys
from pathlib import Path
from typing import Any
from svd_hub import store
from svd_hub.catalog import Entry, Source
SHA, BODY, VERSION = {SHA!r}, bytes({len(BODY)}), {VERSION!r}
{inspect.getsource(make)}
{inspect.getsource(convert)}
{inspect.getsource(bring)}
entry = make(url=sys.argv[1])
print("ready", flush=True)
local = bring(entry)
print(local.path, local.sha256, flush=True)
"""


def start(url: str, *before: str, code: str = CHILD, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*before, sys.executable, "-c", code, url],
        cwd=ROOT,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("count", [2, 16])
def test_many_processes_one_download(server: servers.Server, count: int) -> None:
    gate = threading.Event()
    url = server.add("/m", servers.drip(BODY, first=1000, gate=gate))
    children = [start(url) for _ in range(count)]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    gate.set()
    told = [child.communicate(timeout=60) for child in children]
    assert [child.returncode for child in children] == [0] * count, told
    assert len({out for out, _ in told}) == 1
    assert len(server.seen) == 1


def test_threads_one_download(server: servers.Server) -> None:
    entry = make(url=server.add("/m", servers.ok(BODY)))
    found: list[store.Local] = []
    threads = [threading.Thread(target=lambda: found.append(bring(entry))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({local.path for local in found}) == 1
    assert len(found) == 8
    assert len(server.seen) == 1


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_kill_during_a_download(server: servers.Server, cache: Path) -> None:
    gate, reached = threading.Event(), threading.Event()
    url = server.add("/m", servers.drip(BODY, first=100_000, gate=gate, reached=reached), servers.ok(BODY))
    child = start(url)
    assert reached.wait(20)
    child.kill()
    child.communicate(timeout=20)
    gate.set()
    left = list((cache / "tmp").iterdir())
    assert left, "the test killed too late"
    assert bring(make(url=url)).source_sha256 == SHA
    assert list((cache / "tmp").iterdir()) == []
    assert len(server.seen) == 2


def test_work_of_the_living_is_left_alone(cache: Path) -> None:
    with store.workdir() as mine:
        (mine / "half").write_bytes(b"x")
        old = cache / "tmp" / "old"
        new = cache / "tmp" / "new"
        for folder in (old, new):
            folder.mkdir()
            (folder / "part").write_bytes(b"x")
        os.utime(old, (0, 0))
        with store.workdir() as second:
            assert mine.is_dir()
            assert second.is_dir()
            assert new.is_dir()
            assert not old.exists()
        store.clean()
        assert (mine / "half").exists()
    assert [path.name for path in (cache / "tmp").iterdir()] == ["new"]


def test_lock_excludes_and_may_be_entered_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "svd_hub")
    entry, inside = make(), threading.Event()

    def other() -> None:
        with store.lock(entry):
            inside.set()

    thread = threading.Thread(target=other)
    with store.lock(entry):
        with store.lock(entry), store.lock(make("another")):
            thread.start()
        assert not inside.wait(0.05), "the inner exit gave the lock away"
    thread.join(10)
    assert inside.is_set()
    assert "waiting for another process that brings net" in caplog.text


def test_file_system_without_locks(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def unsupported(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    by_hand(cache)
    with store.workdir() as mine:
        assert bring(make()).source_sha256 == SHA
        assert mine.is_dir(), "without locks somebody else's work looks like nobody's"
    assert "no locks" in caplog.text


NO_SOCKET = """
import sys
def refuse(event, args):
    if event.startswith("socket."):
        raise SystemExit(f"a socket was touched: {event}")
sys.addaudithook(refuse)
"""


def test_cached_opens_no_socket(server: servers.Server) -> None:
    url = server.add("/m", servers.ok(BODY))
    bring(make(url=url))
    child = start(url, code=NO_SOCKET + CHILD)
    err = child.communicate(timeout=60)[1]
    assert child.returncode == 0, err
    fresh = start(server.add("/n", servers.ok(BODY)), code=NO_SOCKET + CHILD, SVD_HUB_HOME=os.devnull + "/x")
    assert fresh.communicate(timeout=60)
    assert fresh.returncode != 0
    assert len(server.seen) == 1


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize("cached", [True, False])
def test_no_socket_seen_from_outside(server: servers.Server, tmp_path: Path, cached: bool) -> None:
    url = server.add("/m", servers.ok(BODY))
    if cached:
        bring(make(url=url))
    trace = tmp_path / "trace"
    child = start(url, "strace", "-f", "-qq", "-e", "trace=network", "-o", str(trace))
    err = child.communicate(timeout=60)[1]
    if "ptrace" in err or not trace.exists():
        pytest.skip("strace may not trace here")
    assert child.returncode == 0, err
    assert ("socket(" in trace.read_text()) == (not cached)


# ---- looking after it ----------------------------------------------------------------------------------------------


def test_verify(cache: Path) -> None:
    by_hand(cache)
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
    store._record_path(local.path).unlink()
    assert [line.state for line in store.verify()] == ["unrecorded"]
    assert bring(make()).path.read_bytes() == good


def test_clean_takes_what_was_asked(cache: Path) -> None:
    hand = by_hand(cache)
    other = make("other", sha256=hashlib.sha256(OTHER).hexdigest(), file="other.pth")
    by_hand(cache, OTHER, "other.pth")
    one, two = bring(make()), bring(other)
    assert [(used.entry, used.path) for used in store.clean(make())] == [("net", one.path)]
    assert not one.path.parent.exists()
    assert two.path.exists()
    assert hand.exists()
    assert store.cached(other, converter_version=VERSION) is not None
    assert [used.entry for used in store.clean()] == ["other"]
    assert store.usage() == []
    assert hand.exists()


def test_clean_follows_no_link(cache: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious.safetensors").write_bytes(b"x")
    by_hand(cache)
    local = bring(make())
    (cache / ("a" * 64)).symlink_to(outside)
    (cache / "tmp" / "dead").symlink_to(outside)
    (local.path.parent / "link.safetensors").symlink_to(outside / "precious.safetensors")
    (cache / "mine.safetensors").write_bytes(b"x")
    assert [used.path for used in store.usage()] == [local.path]
    store.clean()
    assert (outside / "precious.safetensors").exists()
    assert (cache / "mine.safetensors").exists()
    assert not local.path.exists()


def test_a_cache_behind_a_link_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.setenv("SVD_HUB_HOME", str(tmp_path / "link"))
    by_hand(tmp_path / "link")
    assert bring(make()).path.is_file()
    assert len(store.clean()) == 1
