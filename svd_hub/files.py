"""Files and folders that are whole or not there: written beside, brought to the disk, moved into place. Their hash."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

if sys.platform != "win32":
    import fcntl

_PART = ".part-"
_STALE = 86400.0  # seconds after which unfinished work is nobody's, where the file system knows no locks


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file: a reader, or whoever comes after a crash, sees the old one or the whole new one.

    It has the mode of any new file, and a process that has mapped the old one keeps what it mapped.

    Raises:
        OSError: the folder is read-only, full or missing; `filename` says where. Nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a write's own error does not say it
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where the platform can: a moved file survives a power cut."""
    with contextlib.suppress(OSError):  # not every platform opens folders, not every file system syncs them
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, in lower-case hex.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@contextlib.contextmanager
def unfinished(out: Path) -> Iterator[Path]:
    """Yield a new folder under `out`, which is removed at the end if it was not moved away.

    It is locked: the system releases it when this process dies, however it dies, and `sweep` finds it then.
    """
    while True:
        part = out / f"{_PART}{secrets.token_hex(8)}"
        part.mkdir()
        with contextlib.suppress(FileNotFoundError):  # a sweep can take it in the moment before it is locked
            handle = _lock(part)
            if handle != -1 and part.exists():
                break
    try:
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def sweep(out: Path) -> None:
    """Remove what killed processes left under `out`, not what a living one is about to finish, here or elsewhere."""
    for path in out.iterdir():
        if not path.name.startswith(_PART) or not path.is_dir():
            continue
        with contextlib.suppress(OSError):  # another process may sweep too
            handle = _lock(path)
            if handle == -1:
                continue
            if handle is not None or time.time() - path.stat().st_mtime > _STALE:
                shutil.rmtree(path, ignore_errors=True)
            if handle is not None:
                os.close(handle)


def _lock(folder: Path) -> int | None:
    """Lock a folder for this process: a handle to close, -1 where another has it, None where there are no locks."""
    if sys.platform == "win32":
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return -1
    except OSError:
        os.close(handle)
        return None
    return handle
