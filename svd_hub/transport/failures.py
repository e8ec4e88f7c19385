"""What every way of bringing a file shares: the kinds of failure, and the wish to stay offline."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from ..errors import DownloadError


class MissingError(DownloadError):
    """The server answers and does not give the file (403, 404, 410)."""


class FolderError(DownloadError):
    """The folder on this machine cannot be written."""


def folder_error(folder: Path, error: OSError) -> FolderError:
    """Say which folder cannot be written, why, and how to choose another."""
    why = error.strerror or type(error).__name__
    todo = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "make it a writable folder"
    return FolderError(f"cannot write in {folder}: {why}. Next: {todo}, or set SVD_HUB_HOME to another folder")


_OFFLINE = ("HF_HUB_OFFLINE", "SVD_HUB_OFFLINE")


def offline() -> bool:
    """True where HF_HUB_OFFLINE or SVD_HUB_OFFLINE asks that no socket is opened."""
    return any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in _OFFLINE)


def stop_if_offline(what: str, hint: str) -> None:
    """Raise `DownloadError` where no socket may be opened; `hint` is what a person can do instead."""
    if offline():
        names = " and ".join(name for name in _OFFLINE if os.environ.get(name))
        raise DownloadError(f"{what} is not on this machine and {names} forbids the network. Next: unset it, or {hint}")
