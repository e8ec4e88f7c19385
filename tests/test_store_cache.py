"""Laws of svd_hub.store.cache: what is loaded was promised, and what is kept is whole."""

from __future__ import annotations

import builtins
import dataclasses
import errno
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import servers
from helpers_store import BODY, OTHER, SHA, VERSION, bring, by_hand, make

from svd_hub import store, transport
from svd_hub.errors import IntegrityError, OptionError
from svd_hub.store import places


def test_fetch_once_then_from_the_cache(server: servers.Server, home: Path) -> None:
    entry = make(url=server.add("/model.pth", servers.ok(BODY)))
    assert store.cached(entry, converter_version=VERSION) is None
    assert not home.exists(), "looking created something"
    local = bring(entry)
    assert local.path == home / SHA / f"{VERSION}.safetensors"
    assert hashlib.sha256(local.path.read_bytes()).hexdigest() == local.sha256
    assert (local.source, local.source_sha256) == (entry.source.url, SHA)
    assert bring(entry) == local
    assert len(server.seen) == 1
    assert list((home / "tmp").iterdir()) == []
    assert not list(home.rglob("*.pth")), "the upstream pickle stayed"


def test_looking_writes_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read-only cache that holds a good file loads, in both modes (root ignores file modes: writing is refused)."""
    by_hand(home)
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


def test_versions_live_beside_each_other(home: Path) -> None:
    by_hand(home)
    one, two = bring(make(), "a-1.2"), bring(make(), "a-1.3")
    assert one.path != two.path
    assert one.path.parent == two.path.parent
    assert {used.path for used in store.usage()} == {one.path, two.path}
    assert all(used == ("net", used.path, used.path.stat().st_size) for used in store.usage())


def test_an_entry_is_never_served_another_source(home: Path) -> None:
    """The overlay law: what was cached under another promise (full, prefix or none) is not this entry's."""
    overlay = make(sha256=hashlib.sha256(OTHER).hexdigest(), url="http://overlay/model.pth")
    by_hand(home, OTHER)
    bring(overlay)
    bring(dataclasses.replace(overlay, source=dataclasses.replace(overlay.source, sha256="")))
    for sha in (SHA, SHA[:8], ""):
        assert store.cached(make(sha256=sha), converter_version=VERSION) is None
    for sha in (SHA, SHA[:8]):
        with pytest.raises(IntegrityError, match="refused and left alone"):
            bring(make(sha256=sha))
    assert store.cached(overlay, converter_version=VERSION) is not None


def test_bundled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "bundled_path", lambda file: tmp_path / file)
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


def test_publish_keeps_what_is_good(home: Path, tmp_path: Path) -> None:
    by_hand(home)
    local = bring(make())
    inode = local.path.stat().st_ino
    with store.workdir() as folder:
        fetched = store.fetch(make(), folder)
        (folder / "second").write_bytes(b"another conversion")
        again = store.publish(make(), folder / "second", converter_version=VERSION, fetched=fetched)
    assert again.sha256 == local.sha256
    assert again.path.stat().st_ino == inode


def test_publish_refuses_another_source(home: Path, tmp_path: Path) -> None:
    fetched = store.Fetched(path=tmp_path, sha256="0" * 64, size=1, source="x")
    with pytest.raises(IntegrityError):
        store.publish(make(), tmp_path / "file", converter_version=VERSION, fetched=fetched)
    assert not home.exists()


@pytest.mark.parametrize("where", ["home", "home/tmp", "home/locks", f"home/{SHA}"])
def test_a_file_where_a_folder_should_be(server: servers.Server, tmp_path: Path, where: str) -> None:
    (tmp_path / where).parent.mkdir(exist_ok=True)
    (tmp_path / where).write_text("in the way")
    with pytest.raises(transport.FolderError) as caught:
        bring(make(url=server.add("/m", servers.ok(BODY))))
    assert str(tmp_path / "home") in str(caught.value)
    assert "SVD_HUB_HOME" in str(caught.value)


@pytest.mark.parametrize("step", ["replace", "fsync"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_full_or_read_only_cache(home: Path, monkeypatch: pytest.MonkeyPatch, step: str, code: int) -> None:
    by_hand(home)

    def refuse(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, step, refuse)
    with pytest.raises(transport.FolderError, match="SVD_HUB_HOME") as caught:
        bring(make())
    assert str(home) in str(caught.value)
    monkeypatch.undo()
    monkeypatch.setenv("SVD_HUB_HOME", str(home))
    assert bring(make()).source_sha256 == SHA, "what the failure left stands in the way"
    assert not list(home.rglob("*.tmp"))
