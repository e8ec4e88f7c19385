"""The hub's own files: what it made of an upstream file, once, and what comes inside the package."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import transport
from ..catalog import Entry
from ..errors import DownloadError, IntegrityError
from ..files import sha256_of, sync_folder
from . import ledger, locks, places
from .fetching import Fetched, decide

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Local:
    """A verified file that can be loaded: its path and sha256, where it came from, and what is to be told."""

    path: Path
    sha256: str
    source: str
    source_sha256: str
    note: str = ""


def cached(entry: Entry, *, converter_version: str) -> Local | None:
    """Return the verified file of `entry` on this machine, or None. Opens no socket, creates no file.

    Args:
        entry: the entry; its source decides which conversions are its own.
        converter_version: names everything the conversion depends on (origin, its version, its options), since two
            entries may be made from one upstream file.

    Raises:
        IntegrityError: a bundled file is missing or damaged. A damaged file of the cache is removed and told in the log
            instead, so that the caller brings it anew.
    """
    mode = ledger.verify_mode()
    action = decide(entry.source.kind, cached=True)
    if action == "bundled":
        return bundled(entry)
    if action == "unavailable":
        return None
    expected = ledger.expected_sha256(entry)
    if len(expected) < 64:
        return None
    path = places.canonical_path(expected, converter_version)
    state, record, stamp = ledger.check(path, mode)
    if state == "damaged":
        log.warning("%s is damaged (expected %s, got %s): removed", path, record["sha256"], record["found"])
        ledger.discard(path, stamp)
    if state != "ok":
        return None
    if mode == "stat" and record.get("stamp") != stamp:  # a copied cache: trusted again from its next use on
        with contextlib.suppress(DownloadError):
            ledger.write(ledger.record_path(path), {**record, "stamp": stamp})
    return _local(path, record)


def _local(path: Path, record: dict[str, Any], note: str = "") -> Local:
    return Local(
        path=path, sha256=record["sha256"], source=record["source"], source_sha256=record["source_sha256"], note=note
    )


def bundled(entry: Entry) -> Local:
    """Return the verified file of `entry` that comes inside the package.

    Raises:
        IntegrityError: it is missing or damaged.
        OptionError: the entry does not state its full hash.
    """
    path, expected = places.bundled_path(places.file_name(entry)), places.checked_hash(entry.source.sha256, full=True)
    try:
        got = sha256_of(path)
    except OSError as error:
        got = f"nothing ({error.strerror})"
    if got != expected:
        raise IntegrityError(
            f"bundled file of {entry.name!r} {path}: expected sha256 {expected}, got {got}. "
            "Next: pip install --force-reinstall svd-hub"
        )
    return Local(path=path, sha256=got, source=f"bundled {path.name}", source_sha256=got)


def publish(entry: Entry, file: Path, *, converter_version: str, fetched: Fetched) -> Local:
    """Move the conversion `file` (made in `workdir()`) into the cache, write the ledger and return the cached file.

    Where a good one is there already, that one is kept and returned.

    Raises:
        IntegrityError: `fetched` is not what the entry promises. FolderError: the cache cannot be written.
    """
    expected = ledger.expected_sha256(entry)
    if not places.checked_hash(fetched.sha256, full=True).startswith(expected):
        raise IntegrityError(f"conversion of {entry.name!r}: expected source {expected}, got {fetched.sha256}")
    path = places.canonical_path(fetched.sha256, converter_version)
    with locks.lock(entry):
        state, record, _ = ledger.check(path, "sha256")
        if state != "ok":
            record = _place_canonical(entry, file, path, converter_version, fetched)
        if not ledger.first_seen_path(entry).is_file() or expected != fetched.sha256:
            ledger.write(ledger.first_seen_path(entry), {"entry": entry.name, "source_sha256": fetched.sha256})
    return _local(path, record, fetched.note)


def _place_canonical(entry: Entry, file: Path, path: Path, converter_version: str, fetched: Fetched) -> dict[str, Any]:
    places.make_folder(path.parent)
    try:
        with open(file, "rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
            os.fsync(handle.fileno())
        ledger.record_path(path).unlink(missing_ok=True)  # an old record beside a new file would call it damaged
        os.replace(file, path)
        sync_folder(path.parent)
        stamp = ledger.stamp_of(path.stat())
    except OSError as error:
        raise transport.folder_error(path.parent, error) from error
    record = {
        "entry": entry.name,
        "file": path.name,
        "sha256": digest,
        "stamp": stamp,
        "source": fetched.source,
        "source_sha256": fetched.sha256,
        "source_size": fetched.size,
        "converter_version": converter_version,
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    ledger.write(ledger.record_path(path), record)
    return record
