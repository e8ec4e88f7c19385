"""Laws of svd_hub.store.locks: one process brings a file, the dead block nobody, the cached needs no network."""

from __future__ import annotations

import errno
import inspect
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import servers
from helpers_store import BODY, ROOT, SHA, VERSION, bring, by_hand, convert, make

from svd_hub import store

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
def test_kill_during_a_download(server: servers.Server, home: Path) -> None:
    gate, reached = threading.Event(), threading.Event()
    url = server.add("/m", servers.drip(BODY, first=100_000, gate=gate, reached=reached), servers.ok(BODY))
    child = start(url)
    assert reached.wait(20)
    child.kill()
    child.communicate(timeout=20)
    gate.set()
    left = list((home / "tmp").iterdir())
    assert left, "the test killed too late"
    assert bring(make(url=url)).source_sha256 == SHA
    assert list((home / "tmp").iterdir()) == []
    assert len(server.seen) == 2


def test_work_of_the_living_is_left_alone(home: Path) -> None:
    with store.workdir() as mine:
        (mine / "half").write_bytes(b"x")
        old = home / "tmp" / "old"
        new = home / "tmp" / "new"
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
    assert [path.name for path in (home / "tmp").iterdir()] == ["new"]


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
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def unsupported(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    by_hand(home)
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
