"""From an entry to one verified local file: what to do, the cache and its ledger. Builds no network, imports no torch.

    <cache>/<sha256 of the upstream file>/<converter version>.safetensors   what the hub made of it, once
    <cache>/<sha256 of the upstream file>/<converter version>.json          the ledger: its own sha256, size, origin
    <cache>/entries/<entry>/<place>.json     the full hash first seen at that place, held to ever after
    <cache>/incoming/[<entry>/]<file>        upstream files that a person puts there by hand
    <cache>/locks, <cache>/tmp               one process at a time, and work that is not finished

Every file appears under its name complete and is never changed in place, so a process that mapped it is safe.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import html
import json
import logging
import os
import re
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple

from . import transport
from .catalog import Entry, Source
from .errors import DownloadError, IntegrityError, OptionError, WeightsUnavailableError, check_choice

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

log = logging.getLogger(__name__)
VERIFY = ("sha256", "stat")
STALE = 86400.0  # seconds after which unfinished work without a lock file is nobody's
Action = Literal["bundled", "cached", "local", "mirror", "origin", "by hand", "offline", "unavailable"]


@dataclass(frozen=True, kw_only=True)
class Local:
    """A verified file that can be loaded: its path and sha256, where it came from, and what is to be told."""

    path: Path
    sha256: str
    source: str
    source_sha256: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """An upstream file as its authors published it, checked: path, full sha256, bytes, where from, what to tell."""

    path: Path
    sha256: str
    size: int
    source: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Verified:
    """One line of `verify`. `state` is "ok", "damaged", "unrecorded" (no ledger) or "absent" (not on this machine)."""

    entry: str
    path: Path | None
    state: str
    note: str = ""


class Used(NamedTuple):
    """One file of the cache: entry ("" where unknown), path, bytes."""

    entry: str
    path: Path
    size: int


# ---- deciding ------------------------------------------------------------------------------------------------------


def decide(
    kind: str, *, cached: bool = False, local: bool = False, mirror: bool = False, offline: bool = False
) -> Action:
    """Say what is to be done for an entry, from facts alone.

    Args:
        kind: the kind of its source, one of `catalog.SOURCES`.
        cached: its verified conversion is in the cache.
        local: its upstream file lies on this machine: put there by hand, or in a mirror folder.
        mirror: there is a mirror server that was not asked yet.
        offline: no socket may be opened.
    """
    if kind in ("none", "bundled"):
        return "bundled" if kind == "bundled" else "unavailable"
    if cached or local:
        return "cached" if cached else "local"
    if offline:
        return "offline"
    if mirror:
        return "mirror"
    return "by hand" if kind == "folder" else "origin"


# ---- places --------------------------------------------------------------------------------------------------------


def cache_dir() -> Path:
    """Return the cache folder: SVD_HUB_HOME, else $XDG_CACHE_HOME/svd_hub, else ~/.cache/svd_hub. Creates nothing."""
    if home := os.environ.get("SVD_HUB_HOME", ""):
        return Path(home).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()) / "svd_hub"


def bundled_path(file: str) -> Path:
    """Return where a file that comes inside the package lies."""
    return Path(str(resources.files(__package__))) / "weights" / file


def incoming_path(entry: Entry) -> Path:
    """Return where a person can put the upstream file of `entry` by hand."""
    return cache_dir() / "incoming" / _file(entry)


def canonical_path(source_sha256: str, converter_version: str) -> Path:
    """Return where the conversion of an upstream file is cached."""
    return (
        cache_dir() / _hash(source_sha256, full=True) / f"{_part('converter_version', converter_version)}.safetensors"
    )


def _part(what: str, value: str) -> str:
    """Return `value` if it can be a part of a path without leading elsewhere."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._@+-]*", value):
        raise OptionError(f"{what}={value!r} is not allowed; allowed: letters, digits and . _ @ + -, no dot in front")
    return value


def _file(entry: Entry) -> str:
    file = entry.source.file
    if file in ("", ".", "..") or re.search(r"[/\\\x00-\x1f]", file):
        raise OptionError(f"source.file={file!r} of {entry.name!r} is not allowed; allowed: a bare file name")
    return file


def _hash(value: str, *, full: bool = False) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}" if full else r"[0-9a-f]{0,64}", value):
        raise OptionError(
            f"sha256={value!r} is not allowed; allowed: {'64' if full else 'at most 64'} lower-case hex digits"
        )
    return value


def _local_places(entry: Entry) -> list[Path]:
    folders = [cache_dir() / "incoming"]
    if isinstance(mirror := transport.mirror(), Path):
        folders.append(mirror)
    name, file = _part("entry", entry.name), _file(entry)
    return [path for folder in folders for path in (folder / name / file, folder / file)]


def _place(source: Source) -> str:
    """Return where upstream the bytes are, in words."""
    return {
        "url": transport.public_url(source.url),
        "gdrive": f"Google Drive file {source.id}",
        "hf": f"huggingface.co/{source.repo}@{source.revision[:12]}/{source.file}",
        "folder": transport.public_url(source.url),
    }.get(source.kind, source.kind)


def _by_hand(entry: Entry) -> str:
    return f"put {_file(entry)} by hand at {incoming_path(entry)} (or set SVD_HUB_MIRROR to a folder that has it)"


# ---- the ledger ----------------------------------------------------------------------------------------------------


def _seal(data: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _read_record(path: Path) -> dict[str, Any] | None:
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


def _write_record(path: Path, data: dict[str, Any]) -> None:
    _make_folder(path.parent)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "x", encoding="utf-8") as handle:
            json.dump({**data, "seal": _seal(data)}, handle, indent=1, sort_keys=True)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise transport.folder_error(path.parent, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _record_path(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(".safetensors") + ".json")


def _first_seen_path(entry: Entry) -> Path:
    """Return the record of the hash first seen.

    What the catalogue says of the source is part of its name, so an overlay with another place or hash neither meets
    nor changes the memory of the real one.
    """
    source = entry.source
    place = json.dumps([source.kind, source.url, source.repo, source.revision, source.id, source.file, source.sha256])
    return (
        cache_dir() / "entries" / _part("entry", entry.name) / f"{hashlib.sha256(place.encode()).hexdigest()[:16]}.json"
    )


def expected_sha256(entry: Entry) -> str:
    """Return the hash that the upstream file must have.

    In full (the catalogue's, or the one first seen at this place), else the prefix that is all the catalogue knows,
    else "".
    """
    stated = _hash(entry.source.sha256)
    if len(stated) == 64:
        return stated
    seen = (_read_record(_first_seen_path(entry)) or {}).get("source_sha256", "")
    return seen if len(seen) == 64 and seen.startswith(stated) else stated


def _mode() -> str:
    mode = os.environ.get("SVD_HUB_VERIFY") or VERIFY[0]
    check_choice("SVD_HUB_VERIFY", mode, VERIFY)
    return mode


def _stamp(state: os.stat_result) -> list[int]:
    return [state.st_size, state.st_mtime_ns, state.st_ino]


def _sha256(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _check_canonical(path: Path, mode: str) -> tuple[str, dict[str, Any], list[int]]:
    """Hold a cached file against its ledger: (state as in `Verified`, record, stamp of the file)."""
    while True:
        record = _read_record(_record_path(path))
        try:
            with open(path, "rb") as handle:
                stamp = _stamp(os.fstat(handle.fileno()))
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
        if _read_record(_record_path(path)) == record:
            return "damaged", {**record, "found": digest}, stamp


def _discard(path: Path, stamp: list[int]) -> None:
    """Remove a damaged file, unless another process has put a good one there since."""
    try:
        if _stamp(os.stat(path)) == stamp:
            path.unlink()
            _record_path(path).unlink(missing_ok=True)
    except FileNotFoundError:
        pass
    except OSError as error:
        log.warning("%s is damaged and cannot be removed: %s", path, error.strerror)


# ---- finding -------------------------------------------------------------------------------------------------------


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
    mode = _mode()
    action = decide(entry.source.kind, cached=True)
    if action == "bundled":
        return _bundled(entry)
    if action == "unavailable":
        return None
    expected = expected_sha256(entry)
    if len(expected) < 64:
        return None
    path = canonical_path(expected, converter_version)
    state, record, stamp = _check_canonical(path, mode)
    if state == "damaged":
        log.warning("%s is damaged (expected %s, got %s): removed", path, record["sha256"], record["found"])
        _discard(path, stamp)
    if state != "ok":
        return None
    if mode == "stat" and record.get("stamp") != stamp:  # a copied cache: trusted again from its next use on
        with contextlib.suppress(DownloadError):
            _write_record(_record_path(path), {**record, "stamp": stamp})
    return _local(path, record)


def _local(path: Path, record: dict[str, Any], note: str = "") -> Local:
    return Local(
        path=path, sha256=record["sha256"], source=record["source"], source_sha256=record["source_sha256"], note=note
    )


def _bundled(entry: Entry) -> Local:
    path, expected = bundled_path(_file(entry)), _hash(entry.source.sha256, full=True)
    try:
        got = _sha256(path)
    except OSError as error:
        got = f"nothing ({error.strerror})"
    if got != expected:
        raise IntegrityError(
            f"bundled file of {entry.name!r} {path}: expected sha256 {expected}, got {got}. "
            "Next: pip install --force-reinstall svd-hub"
        )
    return Local(path=path, sha256=got, source=f"bundled {path.name}", source_sha256=got)


# ---- fetching ------------------------------------------------------------------------------------------------------


def fetch(entry: Entry, folder: Path, *, progress: bool = True) -> Fetched:
    """Bring the upstream file of `entry` into `folder` (see `workdir`) and check it.

    In this order: put there by hand (<cache>/incoming), the mirror (SVD_HUB_MIRROR), huggingface_hub's own cache, the
    origin. A wrong file from the network is removed, fetched once more, then reported; other people's files are refused
    and left alone.

    Raises:
        WeightsUnavailableError: no such file exists. IntegrityError: not the promised bytes.
        DownloadError: it could not be brought here; the message says where to put it by hand.
    """
    source, server = entry.source, transport.mirror()
    local = next((path for path in _local_places(entry) if os.path.isfile(path)), None) if source.file else None
    facts = {"local": local is not None, "offline": transport.offline()}
    action = decide(source.kind, mirror=isinstance(server, str), **facts)
    if action == "local" and local is not None:
        return _copy_local(entry, local, folder)
    notes = [f"{source.file} is not in the mirror folder {server}"] if isinstance(server, Path) else []
    if action == "mirror" and isinstance(server, str):
        if (found := _from_mirror(entry, server, folder, progress=progress)) is not None:
            return found
        notes.append(f"{source.file} could not be had from the mirror {transport.public_url(server)}")
        action = decide(source.kind, **facts)
    if source.kind == "hf" and (known := transport.hf_cached(source.repo, source.revision, _file(entry))):
        try:
            return _copy_local(entry, known, folder)
        except IntegrityError as error:  # a cache repairs itself, so this is no reason to stop
            notes.append(f"huggingface_hub's cache has another file at {known}")
            log.warning("%s", error)
    if action != "origin":
        raise _refusal(entry, action, notes)
    for note in notes:
        log.warning("%s; going on to %s", note, _place(source))
    return _from_network(entry, _place(source), lambda: _bring(entry, folder, progress=progress), notes)


def _refusal(entry: Entry, action: Action, notes: Iterable[str]) -> Exception:
    name, source = entry.name, entry.source
    told = "".join(f"{note}. " for note in notes)
    if action == "offline":
        return DownloadError(
            f"{name!r} is not on this machine and HF_HUB_OFFLINE or SVD_HUB_OFFLINE forbids the network. {told}"
            f"Next: unset it, or {_by_hand(entry)}; it comes from {_place(source)}"
        )
    if action == "by hand":
        return DownloadError(
            f"{name!r} comes from a shared folder without a link per file. {told}Next: open {_place(source)}, fetch "
            f"{source.file}, then svd-hub convert {name} {source.file}, or {_by_hand(entry)}"
        )
    if action == "bundled":
        return OptionError(
            f"{name!r} is bundled with the package: there is nothing to fetch. Next: svd-hub verify {name}"
        )
    reason = f": {entry.reason.rstrip('.')}" if entry.reason else ""
    return WeightsUnavailableError(
        f"{name!r} has no weights (status {entry.status}){reason}. Next: svd-hub info {name}"
    )


def _copy_local(entry: Entry, path: Path, folder: Path) -> Fetched:
    """Copy first and check the copy: the original may change under our hands, and it is not ours to remove."""
    target = folder / _file(entry)
    try:
        if (size := path.stat().st_size) > entry.source.max_size:
            raise IntegrityError(f"{path}: {size} bytes, allowed: {entry.source.max_size}. Next: replace or remove it")
        shutil.copyfile(path, target)
    except OSError as error:
        if os.access(path, os.R_OK):
            raise transport.folder_error(folder, error) from error
        raise DownloadError(f"cannot read {path}: {error.strerror}. Next: make it readable") from error
    try:
        return examine(entry, target, source=str(path))
    except IntegrityError as error:
        target.unlink()
        raise IntegrityError(
            f"{error} The file was refused and left alone. Next: replace or remove {path}; where it belongs to another "
            f"entry, put it into {path.parent / '<that entry>' / path.name}"
        ) from None


def _from_mirror(entry: Entry, server: str, folder: Path, *, progress: bool) -> Fetched | None:
    for url in transport.mirror_urls(server, entry.name, _file(entry)):
        with contextlib.suppress(transport.MissingError):
            try:
                bring = _downloader(entry, url, folder, progress=progress)
                return _from_network(entry, transport.public_url(url), bring, ())
            except (transport.MissingError, transport.FolderError):
                raise
            except DownloadError as error:
                log.warning("the mirror failed: %s", error)
                return None
    return None


def _downloader(entry: Entry, url: str, folder: Path, *, progress: bool) -> Callable[[], Path]:
    target, source = folder / _file(entry), entry.source

    def bring() -> Path:
        transport.download(
            url,
            target,
            max_size=source.max_size,
            expected_size=source.size,
            progress=progress,
            hint=f"try again later, or {_by_hand(entry)}",
        )
        return target

    return bring


def _bring(entry: Entry, folder: Path, *, progress: bool) -> Path:
    source = entry.source
    if source.kind == "hf":
        return transport.hf_download(
            source.repo, source.revision, _file(entry), folder, progress=progress, hint=_by_hand(entry)
        )
    url = transport.gdrive_url(source.id) if source.kind == "gdrive" else source.url
    return _downloader(entry, url, folder, progress=progress)()


def _from_network(entry: Entry, where: str, bring: Callable[[], Path], notes: Iterable[str]) -> Fetched:
    first = ""
    while True:
        path = bring()
        try:
            return examine(entry, path, source=where, notes=notes)
        except IntegrityError as error:
            path.unlink()
            if first:
                raise IntegrityError(
                    f"{error} It was fetched twice and removed. Next: svd-hub fetch {entry.name}, or {_by_hand(entry)}"
                ) from None
            first = str(error)
            log.warning("%s Removed, fetching it once more.", first)


def examine(entry: Entry, path: Path, *, source: str = "", notes: Iterable[str] = ()) -> Fetched:
    """Check a file against what is known of the upstream file of `entry`; reads it, changes nothing.

    Args:
        entry: the entry that the file is said to belong to.
        path: the file.
        source: where it came from, in words; the path where not given.
        notes: what the result is to tell.

    Raises:
        IntegrityError: not the promised bytes. Where no hash is known: visibly no weights at all.
    """
    if not path.is_file():
        raise DownloadError(f"no file {path}. Next: {_by_hand(entry)}")
    expected, size = expected_sha256(entry), path.stat().st_size
    kind, digest = _describe(path), _sha256(path)
    stated = entry.source.size
    no_weights = size == 0 or kind.startswith(("an HTML", "a Git LFS"))
    if no_weights or not digest.startswith(expected) or (stated and size != stated):
        ending = "..." if len(expected) < 64 else ""
        promised = f"sha256 {expected}{ending}" if expected else "weights (no hash is known)"
        raise IntegrityError(
            f"{source or path} is not the file of {entry.name!r}: expected {promised}"
            f"{f', {stated} bytes' if stated else ''}; got sha256 {digest}, {size} bytes: {kind}"
            f"{', cut off' if 0 < size < stated and not no_weights else ''} ({path})."
            f"{_held_note(entry, expected)}"
        )
    if len(expected) < 64:
        stated_words = f"only {expected!r} of the hash is" if expected else "no hash is"
        notes = (*notes, f"{stated_words} known upstream: sha256 {digest} is trusted from this first use on")
    return Fetched(path=path, sha256=digest, size=size, source=source or str(path), note=". ".join(notes))


def _held_note(entry: Entry, expected: str) -> str:
    if len(expected) == 64 and expected != entry.source.sha256:
        return f" This hash was recorded at the first use; to trust another file remove {_first_seen_path(entry)}."
    return ""


def _describe(path: Path) -> str:
    """Say in words what the head of a file looks like."""
    with open(path, "rb") as handle:
        head = handle.read(4096)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "an empty file"
    if text.startswith((b"<!doctype html", b"<html", b"<head")):
        found = re.search(rb"<title[^>]*>(.*?)</title>", head, re.IGNORECASE | re.DOTALL)
        title = html.unescape(found[1].decode("utf-8", "replace")) if found else ""
        shown = "".join(c for c in " ".join(title.split()) if c.isprintable())[:80]
        return f"an HTML page titled {shown!r}" if shown else "an HTML page"
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, the text that stands for the file"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000:
        return "a safetensors file"
    magics = (
        (b"PK\x03\x04", "a zip archive, as torch.save writes"),
        (b"\x80", "a pickle"),
        (b"\x1f\x8b", "a gzip file"),
    )
    return next((words for magic, words in magics if head.startswith(magic)), "bytes of no known format")


# ---- keeping -------------------------------------------------------------------------------------------------------


def publish(entry: Entry, file: Path, *, converter_version: str, fetched: Fetched) -> Local:
    """Move the conversion `file` (made in `workdir()`) into the cache, write the ledger and return the cached file.

    Where a good one is there already, that one is kept and returned.

    Raises:
        IntegrityError: `fetched` is not what the entry promises. FolderError: the cache cannot be written.
    """
    expected = expected_sha256(entry)
    if not _hash(fetched.sha256, full=True).startswith(expected):
        raise IntegrityError(f"conversion of {entry.name!r}: expected source {expected}, got {fetched.sha256}")
    path = canonical_path(fetched.sha256, converter_version)
    with lock(entry):
        state, record, _ = _check_canonical(path, "sha256")
        if state != "ok":
            record = _place_canonical(entry, file, path, converter_version, fetched)
        if not _first_seen_path(entry).is_file() or expected != fetched.sha256:
            _write_record(_first_seen_path(entry), {"entry": entry.name, "source_sha256": fetched.sha256})
    return _local(path, record, fetched.note)


def _place_canonical(entry: Entry, file: Path, path: Path, converter_version: str, fetched: Fetched) -> dict[str, Any]:
    _make_folder(path.parent)
    try:
        with open(file, "rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
            os.fsync(handle.fileno())
        _record_path(path).unlink(missing_ok=True)  # an old record beside a new file would call it damaged
        os.replace(file, path)
        _sync_folder(path.parent)
        stamp = _stamp(path.stat())
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
    _write_record(_record_path(path), record)
    return record


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not every platform can open a folder
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise transport.folder_error(folder, error) from error


# ---- one at a time -------------------------------------------------------------------------------------------------

_held = threading.local()


@contextlib.contextmanager
def lock(entry: Entry) -> Iterator[None]:
    """Hold the lock of `entry` across processes and threads; may be entered again inside itself.

    The system releases it when a process dies, however it dies. Look with `cached` again once inside.

    Raises:
        FolderError: the cache cannot be written.
    """
    path = cache_dir() / "locks" / f"{_part('entry', entry.name)}.lock"
    paths: set[Path] = _held.__dict__.setdefault("paths", set())
    if path in paths:
        yield
        return
    handle = _open_lock(path)
    try:
        if _acquire(handle) is False:
            log.info("waiting for another process that brings %s (%s)", entry.name, path)
            _acquire(handle, wait=True)
        paths.add(path)
        yield
    finally:
        paths.discard(path)
        os.close(handle)


def _open_lock(path: Path) -> int:
    _make_folder(path.parent)
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
    root = cache_dir() / "tmp"
    _make_folder(cache_dir() / "incoming")
    _sweep()
    while True:
        folder = root / secrets.token_hex(8)
        lock_path = folder.with_suffix(".lock")
        handle = _open_lock(lock_path)
        # The lock comes before the folder; a sweep may take a lock file in the moment before it is locked.
        if _acquire(handle) is not False and lock_path.exists():
            break
        os.close(handle)
    try:
        _make_folder(folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)  # before the removal, for Windows
        with contextlib.suppress(OSError):
            lock_path.unlink()


def _sweep() -> list[Used]:
    """Remove unfinished work of dead processes: nobody holds its lock, or it has none and is old."""
    removed: list[Used] = []
    for item in _scan(cache_dir() / "tmp"):
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
    size = sum(item.stat(follow_symlinks=False).st_size for item in _scan(folder))
    shutil.rmtree(folder, ignore_errors=True)  # follows no link
    return Used("", folder, size)


# ---- looking after it ----------------------------------------------------------------------------------------------


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as items:
            return sorted(items, key=lambda item: item.name)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise DownloadError(f"cannot read {folder}: {error.strerror}. Next: repair it, or set SVD_HUB_HOME") from error


def _files(*suffixes: str) -> Iterator[Path]:
    """Yield the cache's own files by ending: real files in real folders named by a hash, nothing behind a link."""
    for folder in _scan(cache_dir()):
        if re.fullmatch(r"[0-9a-f]{64}", folder.name) and folder.is_dir(follow_symlinks=False):
            for item in _scan(Path(folder.path)):
                if item.name.endswith(suffixes) and item.is_file(follow_symlinks=False):
                    yield Path(item.path)


def _owner(path: Path) -> str:
    return str((_read_record(_record_path(path)) or {}).get("entry", ""))


def _owned(path: Path, entry: Entry) -> bool:
    return path.parent.name == expected_sha256(entry) or _owner(path) == entry.name


def verify(entries: Iterable[Entry] | None = None) -> list[Verified]:
    """Hash the local files of `entries` (None: everything in the cache) against the ledger. Removes nothing."""
    if entries is None:
        return [_verify_file(_owner(path), path) for path in _files(".safetensors")]
    results = []
    for entry in entries:
        if entry.source.kind == "bundled":
            try:
                results.append(Verified(entry=entry.name, path=_bundled(entry).path, state="ok"))
            except IntegrityError as error:
                path = bundled_path(_file(entry))
                results.append(Verified(entry=entry.name, path=path, state="damaged", note=str(error)))
            continue
        found = [path for path in _files(".safetensors") if path.parent.name == expected_sha256(entry)]
        results += [_verify_file(entry.name, path) for path in found]
        if not found:
            results.append(
                Verified(entry=entry.name, path=None, state="absent", note=f"Next: svd-hub fetch {entry.name}")
            )
    return results


def _verify_file(name: str, path: Path) -> Verified:
    state, record, _ = _check_canonical(path, "sha256")
    notes = {
        "damaged": f"{path}: expected sha256 {record.get('sha256')}, got {record.get('found')}. "
        f"Next: svd-hub fetch {name}",
        "unrecorded": f"{path} has no usable ledger record and is not used. Next: svd-hub fetch {name}",
    }
    return Verified(entry=name, path=path, state=state, note=notes.get(state, ""))


def usage() -> list[Used]:
    """Return every conversion in the cache with its entry and size."""
    return [Used(_owner(path), path, path.stat().st_size) for path in _files(".safetensors")]


def clean(entry: Entry | None = None) -> list[Used]:
    """Remove the conversions of `entry` (None: all) and unfinished work of dead processes; return what was removed.

    The hashes first seen, the locks and the files put there by hand stay. Follows no link out of the cache.
    """
    removed = _sweep()
    for path in list(_files(".safetensors", ".tmp")):
        if entry is None or _owned(path, entry):
            try:
                used = Used(_owner(path), path, path.stat().st_size)
                path.unlink()
                if path.suffix == ".safetensors":
                    _record_path(path).unlink(missing_ok=True)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise transport.folder_error(path.parent, error) from error
            removed.append(used)
            with contextlib.suppress(OSError):  # not empty yet
                path.parent.rmdir()
    return removed
