"""The ledger: what each file of the cache must hash to, sealed, so that its own damage is noticed too."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

from .. import transport
from ..catalog import Entry
from ..errors import DownloadError, check_choice
from ..files import write_atomic
from . import places

log = logging.getLogger(__name__)
VERIFY = ("sha256", "stat")


def record_path(path: Path) -> Path:
    """Return the record that belongs to a file of the cache."""
    return path.with_name(path.name.removesuffix(".safetensors") + ".json")


def first_seen_path(entry: Entry) -> Path:
    """Return the record of the hash first seen.

    What the catalogue says of the source is part of its name, so an overlay with another place or hash neither meets
    nor changes the memory of the real one.
    """
    source = entry.source
    place = json.dumps([source.kind, source.url, source.repo, source.revision, source.id, source.file, source.sha256])
    key = hashlib.sha256(place.encode()).hexdigest()[:16]
    return places.cache_dir() / "entries" / places.part("entry", entry.name) / f"{key}.json"


def _seal(data: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def read(path: Path) -> dict[str, Any] | None:
    """Return a record of the ledger, or None where there is none or its bytes were damaged."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        seal = data.pop("seal")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        log.warning("ledger record %s cannot be used: %s", path, type(error).__name__)
        return None
    if seal != _seal(data):
        log.warning("ledger record %s is damaged and is not used", path)
        return None
    return dict(data)


def write(path: Path, data: dict[str, Any]) -> None:
    """Seal a record and put it into its place.

    Raises:
        FolderError: the cache cannot be written.
    """
    places.make_folder(path.parent)
    try:
        write_atomic(path, json.dumps({**data, "seal": _seal(data)}, indent=1, sort_keys=True).encode())
    except OSError as error:
        raise transport.folder_error(path.parent, error) from error


def expected_sha256(entry: Entry) -> str:
    """Return the hash that the upstream file must have.

    In full (the catalogue's, or the one first seen at this place), else the prefix that is all the catalogue knows,
    else "".
    """
    stated = places.checked_hash(entry.source.sha256)
    if len(stated) == 64:
        return stated
    seen = (read(first_seen_path(entry)) or {}).get("source_sha256", "")
    return seen if len(seen) == 64 and seen.startswith(stated) else stated


def verify_mode() -> str:
    """Return how a cached file is checked, one of `VERIFY`: SVD_HUB_VERIFY, else by its hash."""
    mode = os.environ.get("SVD_HUB_VERIFY") or VERIFY[0]
    check_choice("SVD_HUB_VERIFY", mode, VERIFY)
    return mode


def stamp_of(state: os.stat_result) -> list[int]:
    """Return what changes with a file: size, time in nanoseconds, inode."""
    return [state.st_size, state.st_mtime_ns, state.st_ino]


def check(path: Path, mode: str) -> tuple[str, dict[str, Any], list[int]]:
    """Hold a cached file against its ledger: (state as in `Verified`, record, stamp of the file)."""
    while True:
        record = read(record_path(path))
        try:
            with open(path, "rb") as handle:
                stamp = stamp_of(os.fstat(handle.fileno()))
                if record is None or (record.get("source_sha256"), record.get("file")) != (path.parent.name, path.name):
                    return "unrecorded", {}, stamp
                if mode == "stat" and record.get("stamp") == stamp:
                    return "ok", record, stamp
                digest = hashlib.file_digest(handle, "sha256").hexdigest()
        except (FileNotFoundError, NotADirectoryError):
            return "absent", {}, []
        except OSError as error:
            raise DownloadError(
                f"cannot read {path}: {error.strerror}. Next: repair it, or set SVD_HUB_HOME"
            ) from error
        if digest == record["sha256"]:
            return "ok", record, stamp
        # Another process may have put both anew between the two looks: only an unchanged record proves damage.
        if read(record_path(path)) == record:
            return "damaged", {**record, "found": digest}, stamp


def discard(path: Path, stamp: list[int]) -> None:
    """Remove a damaged file, unless another process has put a good one there since."""
    try:
        if stamp_of(os.stat(path)) == stamp:
            path.unlink()
            record_path(path).unlink(missing_ok=True)
    except FileNotFoundError:
        pass
    except OSError as error:
        log.warning("%s is damaged and cannot be removed: %s", path, error.strerror)
