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
    return done.stdout.strip()


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

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", raises)
    with pytest.raises(DownloadError, match="Next: ") as caught:
        transport.hf_download("org/net", COMMIT, "model.pth", tmp_path)
    assert isinstance(caught.value, transport.FolderError) == (getattr(failure, "errno", None) == errno.ENOSPC)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("revision", ["main", "", COMMIT[:39], COMMIT.upper(), COMMIT + "\n"])
def test_hf_revision_is_pinned(tmp_path: Path, revision: str) -> None:
    with pytest.raises(OptionError, match="40 hex"):
        transport.hf_download("org/net", revision, "model.pth", tmp_path)
