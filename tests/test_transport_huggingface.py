"""Laws of svd_hub.transport.huggingface, in subprocesses where its library reads its variables once, at import."""

from __future__ import annotations

import errno
import os
import random
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import servers
from helpers_store import COMMIT, ROOT

from svd_hub import transport
from svd_hub.errors import DownloadError, OptionError
from svd_hub.transport import huggingface

BODY = random.Random(0).randbytes(300_000)
HF = """
import sys
from pathlib import Path
from svd_hub import transport
from svd_hub.errors import DownloadError
sys.stderr.isatty = lambda: True
repo, revision, file, folder = sys.argv[1:]
try:
    found = transport.hf_cached(repo, revision, file)
    path = transport.hf_download(repo, revision, file, Path(folder), progress=False)
except DownloadError as error:
    print(type(error).__name__, error)
else:
    print("cached", found, "path", path)
"""


def hf(server: servers.Server, tmp_path: Path, file: str = "model.pth", **env: str) -> str:
    return hf_lines(server, tmp_path, file, **env)[0]


def hf_lines(server: servers.Server, tmp_path: Path, file: str = "model.pth", **env: str) -> tuple[str, str]:
    folder = tmp_path / "work"
    folder.mkdir(exist_ok=True)
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", HF, "org/net", COMMIT, file, str(folder)],
        env={
            **clean,
            "HF_ENDPOINT": server.base,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            **env,
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "model.pth" not in done.stderr, "a progress bar that nobody asked for"
    return done.stdout.strip(), done.stderr


@pytest.mark.parametrize("env", [{}, {"HF_HUB_DISABLE_XET": "1"}], ids=["xet", "no-xet"])
def test_hf(server: servers.Server, tmp_path: Path, env: dict[str, str]) -> None:
    server.add_hf("org/net", COMMIT, "model.pth", BODY)
    assert hf(server, tmp_path, **env) == f"cached None path {tmp_path / 'work' / 'model.pth'}"
    assert (tmp_path / "work" / "model.pth").read_bytes() == BODY
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["model.pth"]
    assert not list((tmp_path / "hf").rglob("*.pth")), "a pickle landed in huggingface_hub's cache"


def test_hf_file_in_a_folder(server: servers.Server, tmp_path: Path) -> None:
    server.add_hf("org/net", COMMIT, "models/model.pth", BODY)
    assert hf(server, tmp_path, "models/model.pth").endswith("work/model.pth")


def test_hf_gated(server: servers.Server, tmp_path: Path) -> None:
    server.add_hf("org/net", COMMIT, "model.pth", BODY, gated=True)
    told = hf(server, tmp_path)
    assert all(words in told for words in ("gated", "https://huggingface.co/org/net", "HF_TOKEN", "HTTP 403"))


@pytest.mark.parametrize(
    ("code", "words"),
    [("RevisionNotFound", "no such commit"), ("EntryNotFound", "no such file"), ("RepoNotFound", "no such repository")],
)
def test_hf_missing(server: servers.Server, tmp_path: Path, code: str, words: str) -> None:
    server.add(f"/org/net/resolve/{COMMIT}/model.pth", servers.status(404, headers={"X-Error-Code": code}))
    told = hf(server, tmp_path)
    assert told.startswith("MissingError")
    assert words in told
    assert "Next: " in told


def test_hf_endpoint_that_is_no_hub(server: servers.Server, tmp_path: Path) -> None:
    server.add(f"/org/net/resolve/{COMMIT}/model.pth", servers.ok(BODY))
    told = hf(server, tmp_path)
    assert "cannot be reached" in told
    assert server.base in told
    assert "by hand" in told


def test_hf_that_nobody_answers(server: servers.Server, tmp_path: Path) -> None:
    """Told after one further attempt, not after seven and their pauses, and without a word of the library's own."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: every connection is refused
        dead = f"http://127.0.0.1:{taken.getsockname()[1]}"
        told, lines = hf_lines(server, tmp_path, HF_ENDPOINT=dead, HF_HUB_ETAG_TIMEOUT="3")
    assert told.startswith("UnreachableError model.pth of org/net")
    assert "the Hub cannot be reached (ConnectError)" in told
    assert f"HF_ENDPOINT is {dead}. Next: check the network, or" in told
    assert lines == ""


@pytest.mark.parametrize(("kind", "tries"), [("ConnectError", 2), ("ConnectTimeout", 1), ("ProxyError", 1)])
def test_hf_without_a_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, tries: int) -> None:
    import huggingface_hub

    asked = []

    def raises(*given: Any, **_: Any) -> None:
        asked.append(given)
        raise type(kind, (Exception,), {})("x")

    monkeypatch.setattr(huggingface, "PAUSE", 0)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", raises)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", None)
    with pytest.raises(huggingface.UnreachableError, match=rf"cannot be reached \({kind}\).* Next: "):
        transport.hf_download("org/net", COMMIT, "model.pth", tmp_path)
    assert len(asked) == tries
    assert list(tmp_path.iterdir()) == []


def test_hf_verbosity_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.utils import logging

    seen = []

    def raises(*_: Any, **__: Any) -> None:
        seen.append(logging.get_verbosity())
        raise KeyError("x")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *_, **__: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", raises)
    before = logging.get_verbosity()
    try:
        for level in (logging.WARNING, logging.INFO, logging.CRITICAL):
            logging.set_verbosity(level)
            with pytest.raises(DownloadError):
                transport.hf_download("org/net", COMMIT, "model.pth", tmp_path)
            assert logging.get_verbosity() == level
    finally:
        logging.set_verbosity(before)
    assert seen == [logging.ERROR, logging.INFO, logging.CRITICAL]


def test_hf_host(monkeypatch: pytest.MonkeyPatch) -> None:
    assert huggingface.hf_host() == "huggingface.co"
    monkeypatch.setenv("HF_ENDPOINT", "https://user:word@hub.local:8443/x")
    assert huggingface.hf_host() == "hub.local"


def test_hf_cached_opens_no_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    file = tmp_path / "models--org--net" / "snapshots" / COMMIT / "model.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(BODY)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(socket, "socket", None)
    assert transport.hf_cached("org/net", COMMIT, "model.pth") == file
    assert transport.hf_cached("org/net", COMMIT[::-1], "model.pth") is None


@pytest.mark.parametrize(
    "failure", [OSError(errno.ENOSPC, "No space left on device"), ConnectionError("x"), KeyError("x")]
)
def test_hf_other_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    import huggingface_hub

    def raises(*_: Any, **__: Any) -> None:
        raise failure

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", raises)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", raises)
    with pytest.raises(DownloadError, match="Next: ") as caught:
        transport.hf_download("org/net", COMMIT, "model.pth", tmp_path)
    assert isinstance(caught.value, transport.FolderError) == (getattr(failure, "errno", None) == errno.ENOSPC)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("revision", ["main", "", COMMIT[:39], COMMIT.upper(), COMMIT + "\n"])
def test_hf_revision_is_pinned(tmp_path: Path, revision: str) -> None:
    with pytest.raises(OptionError, match="40 hex"):
        transport.hf_download("org/net", revision, "model.pth", tmp_path)
