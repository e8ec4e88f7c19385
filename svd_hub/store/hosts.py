"""Hosts that could not be reached a moment ago: within one survey the second entry need not find out by itself."""

from __future__ import annotations

import contextlib
import errno
import socket
import urllib.error
from collections.abc import Iterator
from contextvars import ContextVar

from ..catalog import Entry
from ..errors import DownloadError
from ..transport.huggingface import UnreachableError
from . import places

_unreached: ContextVar[set[str] | None] = ContextVar("_unreached", default=None)


@contextlib.contextmanager
def remembering_hosts(unreached: set[str]) -> Iterator[None]:
    """Inside: a host that could not be reached is put into `unreached`, and one that is in it is not tried."""
    token = _unreached.set(unreached)
    try:
        yield
    finally:
        _unreached.reset(token)


@contextlib.contextmanager
def reaching(host: str, entry: Entry) -> Iterator[None]:
    """Inside: `host` is asked for the file of `entry`; see `remembering_hosts`.

    Raises:
        DownloadError: it is known not to answer.
    """
    unreached = _unreached.get()
    if unreached is not None and host in unreached:
        raise DownloadError(
            f"{entry.source.file} of {entry.name!r} was not tried: {host} could not be reached a moment ago. "
            f"Next: check the network, then svd-hub fetch {entry.name}, or {places.by_hand(entry)}"
        )
    try:
        yield
    except DownloadError as error:
        if unreached is not None and _is_unreached(error):
            unreached.add(host)
        raise


def _is_unreached(error: BaseException | None) -> bool:
    """Tell whether there was no connection at all: no such host, refused, no way there; not what a server answered."""
    while error is not None:
        if isinstance(error, UnreachableError):
            return True
        if isinstance(error, urllib.error.URLError):  # of a connection; a time-out while reading comes bare
            return isinstance(error.reason, socket.gaierror | ConnectionRefusedError | TimeoutError) or (
                isinstance(error.reason, OSError) and error.reason.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH)
            )
        error = error.__cause__
    return False
