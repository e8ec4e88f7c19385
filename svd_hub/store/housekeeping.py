"""Looking after the cache: what is in it, whether it is whole, and taking it out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .. import transport
from ..catalog import Entry
from ..errors import IntegrityError
from . import cache, ledger, locks, places
from .places import Used


@dataclass(frozen=True, kw_only=True)
class Verified:
    """One line of `verify`. `state` is "ok", "damaged", "unrecorded" (no ledger) or "absent" (not on this machine)."""

    entry: str
    path: Path | None
    state: str
    note: str = ""


def verify(entries: Iterable[Entry] | None = None) -> list[Verified]:
    """Hash the local files of `entries` (None: everything in the cache) against the ledger. Removes nothing."""
    if entries is None:
        return [_verify_file(_owner(path), path) for path in places.own_files(".safetensors")]
    results = []
    for entry in entries:
        if entry.source.kind == "bundled":
            try:
                results.append(Verified(entry=entry.name, path=cache.bundled(entry).path, state="ok"))
            except IntegrityError as error:
                path = places.bundled_path(places.file_name(entry))
                results.append(Verified(entry=entry.name, path=path, state="damaged", note=str(error)))
            continue
        found = [path for path in places.own_files(".safetensors") if path.parent.name == ledger.expected_sha256(entry)]
        results += [_verify_file(entry.name, path) for path in found]
        if not found:
            results.append(
                Verified(
                    entry=entry.name,
                    path=None,
                    state="absent",
                    note=f"Next: svd-hub fetch {entry.name}" if entry.loadable else f"no weights exist: {entry.reason}",
                )
            )
    return results


def _verify_file(name: str, path: Path) -> Verified:
    state, record, _ = ledger.check(path, "sha256")
    notes = {
        "damaged": f"{path}: expected sha256 {record.get('sha256')}, got {record.get('found')}. "
        f"Next: svd-hub fetch {name}",
        "unrecorded": f"{path} has no usable ledger record and is not used. Next: svd-hub fetch {name}",
    }
    return Verified(entry=name, path=path, state=state, note=notes.get(state, ""))


def usage() -> list[Used]:
    """Return every conversion in the cache with its entry and size."""
    return [Used(_owner(path), path, path.stat().st_size) for path in places.own_files(".safetensors")]


def clean(entry: Entry | None = None) -> list[Used]:
    """Remove the conversions of `entry` (None: all) and unfinished work of dead processes; return what was removed.

    The hashes first seen, the locks and the files put there by hand stay. Follows no link out of the cache.
    """
    removed = locks.sweep()
    for path in list(places.own_files(".safetensors", ".tmp")):
        if entry is None or _owned(path, entry):
            try:
                used = Used(_owner(path), path, path.stat().st_size)
                path.unlink()
                if path.suffix == ".safetensors":
                    ledger.record_path(path).unlink(missing_ok=True)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise transport.folder_error(path.parent, error) from error
            removed.append(used)
            with contextlib.suppress(OSError):  # not empty yet
                path.parent.rmdir()
    return removed


def _owner(path: Path) -> str:
    return str((ledger.read(ledger.record_path(path)) or {}).get("entry", ""))


def _owned(path: Path, entry: Entry) -> bool:
    return path.parent.name == ledger.expected_sha256(entry) or _owner(path) == entry.name
