"""Laws of svd_hub.store.fetching: only the promised bytes arrive, other people's files stay as they are."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import itertools
import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import servers
from helpers_store import BODY, COMMIT, OTHER, SHA, bring, by_hand, fails, make

from svd_hub import store, transport
from svd_hub.catalog import SOURCES, Source
from svd_hub.errors import DownloadError, IntegrityError, WeightsUnavailableError


def test_decide_never_asks_the_network_when_it_need_not() -> None:
    yes_no = (False, True)
    for kind, cached, local, mirror, offline in itertools.product(SOURCES, yes_no, yes_no, yes_no, yes_no):
        action = store.decide(kind, cached=cached, local=local, mirror=mirror, offline=offline)
        reachable = kind in ("url", "gdrive", "hf") or (kind in ("folder", "mirror") and mirror)
        assert (action in ("mirror", "origin")) == (reachable and not (cached or local or offline))
        assert (action == "cached") == (cached and kind not in ("none", "bundled"))
        assert (action == "bundled", action == "unavailable") == (kind == "bundled", kind == "none")
        assert (action == "mirror") <= mirror
        assert (action == "local") <= local


@pytest.mark.parametrize("body", [b"", servers.QUOTA_PAGE, servers.LFS_POINTER], ids=["empty", "html", "lfs"])
def test_no_hash_is_no_licence_for_rubbish(server: servers.Server, body: bytes) -> None:
    fails(make(url=server.add("/m", servers.ok(body)), sha256="", size=0), IntegrityError)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (OTHER, "no known format"),
        (BODY[:-1], f"got sha256 {hashlib.sha256(BODY[:-1]).hexdigest()}, {len(BODY) - 1} bytes: bytes of no known"),
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


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", BODY[:5000])
    return buffer.getvalue()


def tensors(*, end: int = 400) -> bytes:
    header = json.dumps({"a": {"dtype": "F32", "shape": [100], "data_offsets": [0, end]}}).encode()
    return len(header).to_bytes(8, "little") + header + b"\0" * 400


@pytest.mark.parametrize(
    ("body", "words", "no_weights"),
    [
        (zipped(), "a zip archive, as torch.save writes", False),
        (zipped()[:-30], "a zip archive, as torch.save writes, cut off: its end is missing", True),
        (tensors(), "a safetensors file", False),
        (tensors()[:-1], "a safetensors file, cut off: its end is missing", True),
        (tensors()[:20], "a safetensors file, cut off: its end is missing", True),
        (tensors(end=-1).replace(b'"a"', b"[[["), "a safetensors file", False),
        (b"\x80\x02}q\x00", "a pickle", False),
        (b"", "an empty file", True),
        (servers.QUOTA_PAGE, "an HTML page titled 'Google Drive - Quota exceeded'", True),
        (servers.LFS_POINTER, "a Git LFS pointer, the text that stands for the file", True),
    ],
)
@pytest.mark.parametrize("how", ["examine", "local", "network"])
def test_cut_off_is_what_lacks_its_end(
    server: servers.Server, home: Path, tmp_path: Path, body: bytes, words: str, no_weights: bool, how: str
) -> None:
    """A smaller file than promised may be whole, and another's; `no_weights` says which can be no network's at all."""
    (tmp_path / "file.pth").write_bytes(body)
    entry = make(url=server.add("/m", servers.ok(body)))
    if how == "local":
        by_hand(home, body)
    with pytest.raises(IntegrityError) as caught:
        store.examine(entry, tmp_path / "file.pth") if how == "examine" else store.fetch(entry, tmp_path)
    assert f"{len(body)} bytes: {words}." in str(caught.value)
    assert caught.value.no_weights is no_weights
    unknown = dataclasses.replace(entry, source=dataclasses.replace(entry.source, sha256="", size=0))
    if not no_weights:
        assert store.examine(unknown, tmp_path / "file.pth").size == len(body)
    else:
        with pytest.raises(IntegrityError):
            store.examine(unknown, tmp_path / "file.pth")


def test_wrong_bytes_do_not_stay(server: servers.Server, tmp_path: Path) -> None:
    for entry in (make(url=server.add("/m", servers.ok(OTHER))), make(file="other.pth")):
        by_hand(tmp_path / "home", OTHER, "other.pth")
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


def test_download_errors_name_the_hand(server: servers.Server, home: Path) -> None:
    fails(make(url=server.add("/m", servers.status(404))), DownloadError, "404", home / "incoming" / "model.pth")
    by_hand(home)
    assert bring(make(url=server.url("/m"))).source == str(home / "incoming" / "model.pth")


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
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, sha: str
) -> None:
    monkeypatch.setenv("SVD_HUB_MIRROR", str(tmp_path / "mirror"))
    path = (home / "incoming" if where == "incoming" else tmp_path / "mirror") / "model.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(OTHER)
    before = path.stat()
    fails(make(sha256=sha), IntegrityError, path, sha, hashlib.sha256(OTHER).hexdigest(), "left alone")
    after = path.stat()
    assert path.read_bytes() == OTHER
    assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)


def test_mirror_file_above_the_limit(home: Path) -> None:
    by_hand(home)
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
@pytest.mark.parametrize("kind", ["url", "gdrive", "hf", "folder", "mirror"])
def test_offline(server: servers.Server, monkeypatch: pytest.MonkeyPatch, home: Path, name: str, kind: str) -> None:
    monkeypatch.setenv(name, "1")
    monkeypatch.setenv("SVD_HUB_MIRROR", server.base)
    entry = make(kind=kind, url=server.url("/m"), id="abc", repo="org/net", revision=COMMIT)
    fails(entry, DownloadError, name, home / "incoming" / "model.pth")
    assert server.seen == []
    by_hand(home)
    assert bring(entry).source_sha256 == SHA


def test_folder_by_hand(home: Path) -> None:
    entry = make(kind="folder", url="https://example.org/shared")
    fails(entry, DownloadError, "https://example.org/shared", "svd-hub convert net model.pth", home / "incoming")
    by_hand(home, file="net/model.pth")
    assert bring(entry).source_sha256 == SHA


def test_release_folder(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = make(kind="mirror", url="")
    fails(entry, DownloadError, "no link to one", "Next: set SVD_HUB_MIRROR to that folder", home / "incoming")
    (tmp_path / "releases" / "net").mkdir(parents=True)
    monkeypatch.setenv("SVD_HUB_MIRROR", str(tmp_path / "releases"))
    fails(entry, DownloadError, f"model.pth is not in the mirror folder {tmp_path / 'releases'}")
    (tmp_path / "releases" / "net" / "model.pth").write_bytes(BODY)
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


def test_full_disk_while_copying(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_hand(home)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfile", full)
    fails(make(), transport.FolderError, "No space left", "SVD_HUB_HOME")
