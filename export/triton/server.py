"""A real tritonserver on this machine's own address, from start to stop, however the program around it ends."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import SvdHubError
from .installation import Installation

HOST = "127.0.0.1"
READY = 180.0  # seconds to be ready in: a Python with torch for each instance, and a first run of each network
GRACE = 4.0  # seconds to stop in; nothing that is under way is worth waiting for
_LOG = 4  # lines of the log that an error shows
_ERROR = re.compile(r"E\d{4} |error: ")
_SHARED = Path("/dev/shm")  # noqa: S108  where the Python backend lays its tensors
_PARENT_DIED = 1  # PR_SET_PDEATHSIG, linux/prctl.h


@dataclass(frozen=True)
class Server:
    """A server that answers.

    Attributes:
        http, grpc, metrics: ports on `HOST`.
        pid: of its process.
        seconds: from start to ready.
        log: the file it writes to.
    """

    http: int
    grpc: int
    metrics: int
    pid: int
    seconds: float
    log: Path

    def alive(self) -> bool:
        """Return whether it says that it is ready."""
        return _ready(self.http)


@contextlib.contextmanager
def running(
    repositories: Sequence[Path], installation: Installation, *, options: Sequence[str] = (), patience: float = READY
) -> Iterator[Server]:
    """Start a server, give it when it is ready, and stop it whatever happens inside.

    Args:
        repositories: folders of models, each with a name of its own.
        installation: which server.
        options: more of tritonserver's.
        patience: seconds to be ready in.

    Raises:
        SvdHubError: it does not start; says why, in the server's words.
    """
    with tempfile.TemporaryDirectory(prefix="svd_hub_triton_") as name:
        folder, region = Path(name), f"svd_hub_{secrets.token_hex(6)}_"
        backends = installation.backends(folder / "backends")
        http, grpc, metrics = _free_ports(3)
        log = folder / "server.log"
        line = [str(installation.binary), *(f"--model-repository={place.resolve()}" for place in repositories)]
        line += [f"--http-port={http}", f"--grpc-port={grpc}", f"--metrics-port={metrics}"]
        line += [f"--{kind}-address={HOST}" for kind in ("http", "grpc", "metrics")]
        line += [f"--backend-directory={backends}", f"--backend-config=python,shm-region-prefix-name={region}"]
        # what the repository says is what is served: nothing is filled in, so that nothing missing goes unseen
        line += ["--disable-auto-complete-config", f"--exit-timeout-secs={GRACE / 2:.0f}", "--log-info=true", *options]
        started = time.monotonic()
        with log.open("wb") as written:
            process = subprocess.Popen(  # noqa: S603  the program that the user has named, or that we have brought
                line,
                stdin=subprocess.DEVNULL,
                stdout=written,
                stderr=subprocess.STDOUT,
                env=installation.environment(folder / "python"),
                cwd=folder,
                start_new_session=True,  # Ctrl-C is for us, who then stop it
                preexec_fn=_die_with_us if sys.platform == "linux" else None,
            )
        try:
            _wait(process, http, log, patience)
            yield Server(http, grpc, metrics, process.pid, time.monotonic() - started, log)
        finally:
            _stop(process)
            for left in _SHARED.glob(f"{region}*"):  # of processes that had to be killed
                left.unlink(missing_ok=True)


def _wait(process: subprocess.Popen[bytes], port: int, log: Path, patience: float) -> None:
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if (code := _ended(process.pid)) is not None:
            raise SvdHubError(f"the server ended with code {code}:\n{_last_words(log)}\nNext: see these lines")
        if _ready(port):
            return
        time.sleep(0.05)
    raise SvdHubError(f"the server is not ready after {patience:.0f} s:\n{_last_words(log)}\nNext: see these lines")


def _ready(port: int) -> bool:
    try:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://{HOST}:{port}/v2/health/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and the processes of its Python models: asked first, then killed."""
    os.kill(process.pid, signal.SIGTERM)
    end = time.monotonic() + GRACE
    while time.monotonic() < end and _ended(process.pid) is None:
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _ended(pid: int) -> int | None:
    """Return the code, or signal, with which a child has ended; None: it has not.

    It stays a zombie until `_stop` waits for it: its number, which names its group, is not given to another meanwhile.
    """
    found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    return None if found is None else found.si_status


def _die_with_us() -> None:
    """In the new process: be ended when this one is, even where it is killed and can stop nothing."""
    ctypes.CDLL(None).prctl(_PARENT_DIED, signal.SIGTERM)


def _last_words(log: Path) -> str:
    """Return the last errors of a log, else its last lines."""
    lines = log.read_text(errors="replace").splitlines()
    errors = [line for line in lines if _ERROR.match(line)]
    return "\n".join(f"  {line}" for line in (errors or lines)[-_LOG:])


def _free_ports(count: int) -> list[int]:
    """Return ports on `HOST` that nobody listens on; all are held until the last is found."""
    with contextlib.ExitStack() as held:
        ports = []
        for _ in range(count):
            one = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            one.bind((HOST, 0))
            ports.append(int(one.getsockname()[1]))
        return ports
