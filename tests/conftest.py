"""What every test gets: a home of its own, one thread, this machine's own addresses only, and a fresh catalogue."""

from __future__ import annotations

import os

# Before torch is imported anywhere; subprocesses inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import ipaddress
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import servers
from synthetic import Shelf

FOREIGN = ("HF_", "SVD_HUB_", "XDG_CACHE_HOME", "TORCH_HOME")


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache of its own, and no setting of the person who runs the tests."""
    for name in list(os.environ):
        if name.upper().endswith("_PROXY") or name.startswith(FOREIGN):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SVD_HUB_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return tmp_path / "home"


@pytest.fixture(autouse=True)
def _no_memory() -> Iterator[None]:
    """The catalogue is read anew, and every warning is a first one."""

    def forget() -> None:
        if catalog := sys.modules.get("svd_hub.catalog"):
            catalog._read.cache_clear()
        if consent := sys.modules.get("svd_hub.consent"):
            consent._told.clear()

    forget()
    yield
    forget()


@pytest.fixture(autouse=True)
def _loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("connect", "connect_ex"):
        real = getattr(socket.socket, name)

        def guarded(self: socket.socket, address: Any, real: Any = real) -> Any:
            if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_loopback(address[0]):
                raise AssertionError(f"a test reached for the network: {address}")
            return real(self, address)

        monkeypatch.setattr(socket.socket, name, guarded)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@pytest.fixture
def server() -> Iterator[servers.Server]:
    with servers.Server() as running:
        yield running


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Shelf:
    """Entries of the test's own: files in a mirror folder, and the catalogue overlay that names them."""
    made = Shelf(tmp_path)
    monkeypatch.setenv("SVD_HUB_CATALOG", str(made.overlay))
    monkeypatch.setenv("SVD_HUB_MIRROR", str(made.mirror))
    return made
