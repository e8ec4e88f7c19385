"""A server is found, started on this machine's own address, and stopped however the work with it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import svd_hub
from svd_hub.errors import MissingExtraError, OptionError, SvdHubError
from svd_hub.export.triton import client, server
from svd_hub.export.triton.client import Client, RefusedError
from svd_hub.export.triton.installation import PYTHON, Installation, find

# A tritonserver of a few lines: it says that it is ready, has a child, leaves shared memory, and may not want to stop.
FAKE = """#!{python}
import http.server, os, signal, subprocess, sys, time
told = dict(word.lstrip("-").split("=", 1) for word in sys.argv[1:] if "=" in word)
print("ARGS", *sys.argv[1:], flush=True)
if told.get("fake") == "broken":
    print("I000 loading")
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print("E1231 failed to load 'net' version 1", flush=True)
    sys.exit(3)
if told.get("fake") == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
region = told["backend-config"].split("shm-region-prefix-name=")[1]
open("/dev/shm/" + region + "left", "w").close()
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("PIDS", os.getpid(), child.pid, region, flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(503 if told.get("fake") == "never" else 200)
        self.end_headers()
    def log_message(self, *args):
        pass
http.server.HTTPServer((told["http-address"], int(told["http-port"])), Handler).serve_forever()
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installation:
    root = tmp_path / "server"
    (root / "bin").mkdir(parents=True)
    (root / "backends" / "onnxruntime").mkdir(parents=True)
    (root / "bin" / "tritonserver").write_text(FAKE.format(python=sys.executable))
    (root / "bin" / "tritonserver").chmod(0o755)
    monkeypatch.setattr(server, "GRACE", 1.0)
    return Installation(root)


def facts(log: Path) -> tuple[list[str], int, int, str]:
    """Arguments, the server's process, its child, its shared memory."""
    words = [line.split() for line in log.read_text().splitlines()]
    (args,) = (line[1:] for line in words if line[0] == "ARGS")
    ((own, child, region),) = (line[1:] for line in words if line[0] == "PIDS")
    return args, int(own), int(child), region


def gone(pid: int, patience: float = 5.0) -> bool:
    end = time.monotonic() + patience
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True  # it has ended; nobody has asked how yet
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("mood", ["willing", "stubborn"])
def test_nothing_is_left_of_a_server(fake: Installation, tmp_path: Path, mood: str) -> None:
    with server.running([tmp_path], fake, options=[f"--fake={mood}"]) as started:
        assert started.alive()
        args, own, child, region = facts(started.log)
        assert own == started.pid
        assert Path(f"/dev/shm/{region}left").exists()
    assert gone(own)
    assert gone(child)
    assert not Path(f"/dev/shm/{region}left").exists()
    assert not started.log.exists()
    assert not started.alive()
    assert {f"--{kind}-address=127.0.0.1" for kind in ("http", "grpc", "metrics")} <= set(args)
    ports = {word.split("=")[1] for word in args if "-port=" in word}
    assert len(ports) == 3
    assert f"--model-repository={tmp_path}" in args


def test_it_is_stopped_when_the_work_fails(fake: Installation, tmp_path: Path) -> None:
    pids = []

    def work() -> None:
        with server.running([tmp_path], fake) as started:
            pids.extend(facts(started.log)[1:3])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    own, child = pids
    assert gone(own)
    assert gone(child)


def test_one_that_does_not_start_says_why(fake: Installation, tmp_path: Path) -> None:
    says = r"the server ended with code 3:\n  E1231 failed to load 'net' version 1\nNext: "
    with pytest.raises(SvdHubError, match=says), server.running([tmp_path], fake, options=["--fake=broken"]):
        pass
    with (
        pytest.raises(SvdHubError, match=r"the server is not ready after 1 s:\n"),
        server.running([tmp_path], fake, options=["--fake=never"], patience=1.0),
    ):
        pass


# In a process of its own: a server, then nothing for a long time.
WORK = """
import signal, sys, time
from pathlib import Path
from svd_hub.export.triton import commands, server
from svd_hub.export.triton.installation import Installation
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, commands._end)
with server.running([Path(sys.argv[1])], Installation(Path(sys.argv[2]))) as started:
    print(started.log.read_text(), flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_the_program_that_started_it(fake: Installation, tmp_path: Path, how: signal.Signals) -> None:
    root = Path(__file__).resolve().parents[1]
    line = [sys.executable, "-c", WORK, str(tmp_path), str(fake.root)]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, "TMPDIR": str(tmp_path)}  # what is killed leaves its log
    work = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env)
    assert work.stdout is not None
    for told in work.stdout:
        if told.startswith("PIDS"):
            own, child = (int(word) for word in told.split()[1:3])
            left = Path(f"/dev/shm/{told.split()[3]}left")
            break
    work.send_signal(how)
    code = work.wait(30)
    work.stdout.close()
    assert code == {signal.SIGINT: -signal.SIGINT, signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}[how]
    assert gone(own, 10)
    assert how == signal.SIGKILL or gone(child)
    assert how == signal.SIGKILL or not left.exists()
    if how == signal.SIGKILL:  # of the fake's own; Triton's processes watch each other
        os.kill(child, signal.SIGKILL)
        left.unlink()


# ---- finding one -----------------------------------------------------------------------------------------------------


def test_a_server_is_found_where_it_is_named(fake: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    python = fake.root / "backends" / "python"
    python.mkdir()
    with pytest.raises(SvdHubError, match=f"runs no models of Python {PYTHON}"):
        find(fake.root)
    (python / "triton_python_backend_stub").touch()
    assert find(fake.root) == Installation(fake.root)
    monkeypatch.setenv("SVD_HUB_TRITON", str(fake.root))
    assert find().root == fake.root
    monkeypatch.setenv("SVD_HUB_TRITON", str(fake.root / "bin"))
    with pytest.raises(SvdHubError, match=r"no bin/tritonserver in .*Next: make tools .* --server or SVD_HUB_TRITON"):
        find()


def test_the_layout_of_the_wheel(tmp_path: Path) -> None:
    root = tmp_path / "pytriton" / "tritonserver"
    stub = f"python_backend_stubs/{PYTHON}/triton_python_backend_stub"
    for name in ("bin/tritonserver", "backends/python/libtriton_python.so", stub):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (tmp_path / "nvidia_pytriton.libs").mkdir()
    found = find(tmp_path)
    assert (found.root, found.libraries) == (root, tmp_path / "nvidia_pytriton.libs")
    backends = found.backends(tmp_path / "backends")
    assert {path.name for path in (backends / "python").iterdir()} == {
        "libtriton_python.so",
        "triton_python_backend_stub",
    }
    assert "onnxruntime_backend" in (backends / "onnxruntime" / "model.py").read_text()
    assert not any(path.is_symlink() for path in backends.rglob("*"))


def test_its_python_imports_what_this_one_does(fake: Installation, tmp_path: Path) -> None:
    env = fake.environment(tmp_path / "python")
    env.pop("PYTHONPATH", None)
    code = "import svd_hub, numpy, svd_hub.export.triton.service; print(svd_hub.__file__, numpy.__file__)"
    done = subprocess.run(["python3", "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [svd_hub.__file__, np.__file__]


# ---- asking one ------------------------------------------------------------------------------------------------------


def test_whose_fault_a_refusal_is() -> None:
    assert [RefusedError(status, "why").is_clients for status in ("400", "INVALID_ARGUMENT", "404", "NOT_FOUND")] == [
        True
    ] * 4
    assert [RefusedError(status, "why").is_clients for status in ("500", "INTERNAL", "503", "UNAVAILABLE", "")] == [
        False
    ] * 5
    assert str(RefusedError("400", "why")) == "the server answered 400: why"


def test_what_a_client_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match="protocol='ftp' is not allowed; allowed: 'http', 'grpc'"):
        Client("ftp", "127.0.0.1:1")
    for error in (ModuleNotFoundError, RuntimeError):  # tritonclient's own word where one of its extras is missing

        def absent(name: str, error: type[Exception] = error) -> None:
            raise error(name)

        monkeypatch.setattr(client.importlib, "import_module", absent)
        with pytest.raises(MissingExtraError, match=r'pip install "svd-hub\[serve\]"'):
            Client("http", "127.0.0.1:1")
