"""One process at a time, and work that is not finished: locks, work folders, and what killed processes left."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from .. import transport
from ..catalog import Entry
from . import places
from .places import Used

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

log = logging.getLogger(__name__)
STALE = 86400.0  # seconds after which unfinished work without a lock file is nobody's
_held = threading.local()


@contextlib.contextmanager
def lock(entry: Entry) -> Iterator[None]:
    """Hold the lock of `entry` across processes and threads; may be entered again inside itself.

    The system releases it when a process dies, however it dies. Look with `cached` again once inside.

    Raises:
        FolderError: the cache cannot be written.
    """
    path = places.cache_dir() / "locks" / f"{places.part('entry', entry.name)}.lock"
    paths: set[Path] = _held.__dict__.setdefault("paths", set())
    if path in paths:
        yield
        return
    handle = _open_lock(path)
    try:
        if _acquire(handle) is False:
            log.warning("waiting for another process that brings %s (%s)", entry.name, path)
            _acquire(handle, wait=True)
        paths.add(path)
        yield
    finally:
        paths.discard(path)
        os.close(handle)


def _open_lock(path: Path) -> int:
    places.make_folder(path.parent)
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise transport.folder_error(path.parent, error) from error


def _acquire(handle: int, *, wait: bool = False) -> bool | None:
    """Lock an open file: True, False where another one has it, None where the file system knows no locks.

    Without locks the work may be done twice; unique temporary names and atomic moves keep it correct.
    """
    if sys.platform == "win32":
        while True:
            try:
                msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
                return True
            except OSError:
                if not wait:
                    return False
                time.sleep(0.1)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        log.warning("this file system has no locks (%s); going on without", error.strerror)
        return None
    return True


@contextlib.contextmanager
def workdir() -> Iterator[Path]:
    """Yield a new folder inside the cache, for a download and its conversion; it is removed afterwards.

    What killed processes left is removed first: a folder whose lock nobody holds any more.

    Raises:
        FolderError: the cache cannot be written.
    """
    root = places.cache_dir() / "tmp"
    places.make_folder(places.cache_dir() / "incoming")
    sweep()
    while True:
        folder = root / secrets.token_hex(8)
        lock_path = folder.with_suffix(".lock")
        handle = _open_lock(lock_path)
        # The lock comes before the folder; a sweep may take a lock file in the moment before it is locked.
        if _acquire(handle) is not False and lock_path.exists():
            break
        os.close(handle)
    try:
        places.make_folder(folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)  # before the removal, for Windows
        with contextlib.suppress(OSError):
            lock_path.unlink()


def sweep() -> list[Used]:
    """Remove unfinished work of dead processes: nobody holds its lock, or it has none and is old."""
    removed: list[Used] = []
    for item in places.listing(places.cache_dir() / "tmp"):
        path = Path(item.path)
        with contextlib.suppress(OSError):  # another process may sweep too
            if item.is_dir(follow_symlinks=False):
                if not path.with_suffix(".lock").exists() and _old(path):
                    removed.append(_remove_work(path))
            elif path.suffix == ".lock" and item.is_file(follow_symlinks=False):
                handle = os.open(path, os.O_RDWR)
                try:
                    free = _acquire(handle)
                    if free or (free is None and _old(path)):
                        removed.append(_remove_work(path.with_suffix("")))
                        path.unlink()
                finally:
                    os.close(handle)
    return [used for used in removed if used.size]


def _old(path: Path) -> bool:
    return time.time() - path.lstat().st_mtime > STALE


def _remove_work(folder: Path) -> Used:
    size = sum(item.stat(follow_symlinks=False).st_size for item in places.listing(folder))
    shutil.rmtree(folder, ignore_errors=True)  # follows no link
    return Used("", folder, size)
