"""Bringing the upstream file of an entry to this machine and checking it: what to do, then doing it."""

from __future__ import annotations

import contextlib
import html
import json
import logging
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from .. import transport
from ..catalog import Entry
from ..errors import DownloadError, IntegrityError, OptionError, WeightsUnavailableError
from ..files import sha256_of
from ..transport.huggingface import hf_host
from . import hosts, ledger, places

log = logging.getLogger(__name__)
Action = Literal["bundled", "cached", "local", "mirror", "origin", "by hand", "offline", "unavailable"]


class WrongFileError(IntegrityError):
    """A file that was examined and refused; `no_weights`: it is empty, a page, a pointer or a part, of any network."""

    def __init__(self, message: str, *, no_weights: bool = False) -> None:
        super().__init__(message)
        self.no_weights = no_weights


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """An upstream file as its authors published it, checked: path, full sha256, bytes, where from, what to tell."""

    path: Path
    sha256: str
    size: int
    source: str
    note: str = ""


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
    return "by hand" if kind in ("folder", "mirror") else "origin"


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
    local = next((path for path in places.local_places(entry) if os.path.isfile(path)), None) if source.file else None
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
    if source.kind == "hf" and (known := transport.hf_cached(source.repo, source.revision, places.file_name(entry))):
        try:
            return _copy_local(entry, known, folder)
        except IntegrityError as error:  # a cache repairs itself, so this is no reason to stop
            notes.append(f"huggingface_hub's cache has another file at {known}")
            log.warning("%s", error)
    if action != "origin":
        raise _refusal(entry, action, notes)
    for note in notes:
        log.warning("%s; going on to %s", note, places.upstream(source))
    return _from_network(entry, places.upstream(source), lambda: _bring(entry, folder, progress=progress), notes)


def _refusal(entry: Entry, action: Action, notes: Iterable[str]) -> Exception:
    name, source = entry.name, entry.source
    told = "".join(f"{note}. " for note in notes)
    if action == "offline":
        return DownloadError(
            f"{name!r} is not on this machine and HF_HUB_OFFLINE or SVD_HUB_OFFLINE forbids the network. {told}"
            f"Next: unset it, or {places.by_hand(entry)}; it comes from {places.upstream(source)}"
        )
    if action == "by hand" and source.kind == "mirror":
        return DownloadError(
            f"{name!r} was published to a release folder, and there is no link to one. {told}"
            f"Next: set SVD_HUB_MIRROR to that folder or its address, or {places.by_hand(entry)}"
        )
    if action == "by hand":
        return DownloadError(
            f"{name!r} comes from a shared folder without a link per file. {told}Next: open {places.upstream(source)}, "
            f"fetch {source.file}, then svd-hub convert {name} {source.file}, or {places.by_hand(entry)}"
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
    target = folder / places.file_name(entry)
    try:
        if (size := path.stat().st_size) > entry.source.max_size:
            raise WrongFileError(f"{path}: {size} bytes, allowed: {entry.source.max_size}. Next: replace or remove it")
        shutil.copyfile(path, target)
    except OSError as error:
        if os.access(path, os.R_OK):
            raise transport.folder_error(folder, error) from error
        raise DownloadError(f"cannot read {path}: {error.strerror}. Next: make it readable") from error
    try:
        return examine(entry, target, source=str(path))
    except WrongFileError as error:
        target.unlink()
        shelf = path.parent.parent if path.parent.name == entry.name else path.parent
        other = shelf / "<that entry>" / path.name
        raise WrongFileError(
            f"{error} The file was refused and left alone. Next: replace or remove {path}"
            f"{'' if error.no_weights else f'; where it belongs to another entry, put it into {other}'}",
            no_weights=error.no_weights,
        ) from None


def _from_mirror(entry: Entry, server: str, folder: Path, *, progress: bool) -> Fetched | None:
    urls = transport.mirror_urls(server, entry.name, places.file_name(entry))
    for url in urls[:1] if places.name_is_shared(entry) else urls:
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
    target, source = folder / places.file_name(entry), entry.source

    def bring() -> Path:
        with hosts.reaching(urlsplit(url).hostname or "", entry):
            transport.download(
                url,
                target,
                max_size=source.max_size,
                expected_size=source.size,
                progress=progress,
                hint=f"try again later, or {places.by_hand(entry)}",
            )
        return target

    return bring


def _bring(entry: Entry, folder: Path, *, progress: bool) -> Path:
    source = entry.source
    if source.kind == "hf":
        file, hint = places.file_name(entry), places.by_hand(entry)
        with hosts.reaching(hf_host(), entry):
            return transport.hf_download(source.repo, source.revision, file, folder, progress=progress, hint=hint)
    url = transport.gdrive_url(source.id) if source.kind == "gdrive" else source.url
    return _downloader(entry, url, folder, progress=progress)()


# ---- checking ------------------------------------------------------------------------------------------------------


def _from_network(entry: Entry, where: str, bring: Callable[[], Path], notes: Iterable[str]) -> Fetched:
    first = ""
    while True:
        path = bring()
        try:
            return examine(entry, path, source=where, notes=notes)
        except WrongFileError as error:
            path.unlink()
            if first:
                raise WrongFileError(
                    f"{error} It was fetched twice and removed. Next: svd-hub fetch {entry.name}, "
                    f"or {places.by_hand(entry)}",
                    no_weights=error.no_weights,
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
        WrongFileError: an IntegrityError: not the promised bytes. Where no hash is known: visibly no whole file of
            weights; its `no_weights` says so.
    """
    if not path.is_file():
        raise DownloadError(f"no file {path}. Next: {places.by_hand(entry)}")
    expected, size = ledger.expected_sha256(entry), path.stat().st_size
    (kind, no_weights), digest = _describe(path), sha256_of(path)
    stated = entry.source.size
    if no_weights or not digest.startswith(expected) or (stated and size != stated):
        ending = "..." if len(expected) < 64 else ""
        promised = f"sha256 {expected}{ending}" if expected else "weights (no hash is known)"
        raise WrongFileError(
            f"{source or path} is not the file of {entry.name!r}: expected {promised}"
            f"{f', {stated} bytes' if stated else ''}; got sha256 {digest}, {size} bytes: {kind}."
            f"{_held_note(entry, expected)}",
            no_weights=no_weights,
        )
    if len(expected) < 64:
        notes = (*notes, trust_note(entry, digest))
    return Fetched(path=path, sha256=digest, size=size, source=source or str(path), note=". ".join(notes))


def trust_note(entry: Entry, sha256: str) -> str:
    """Return what is to be told of a file whose hash the catalogue does not know in full; "" where it does."""
    stated = entry.source.sha256
    if len(stated) == 64:
        return ""
    words = f"only {stated!r} of the hash is" if stated else "no hash is"
    return f"{words} known upstream: sha256 {sha256} is trusted from this first use on"


def _held_note(entry: Entry, expected: str) -> str:
    if len(expected) == 64 and expected != entry.source.sha256:
        record = ledger.first_seen_path(entry)
        return f" This hash was recorded at the first use; to trust another file remove {record}."
    return ""


def _describe(path: Path) -> tuple[str, bool]:
    """Say in words what a file looks like, and whether it is no whole file of weights of any network."""
    with open(path, "rb") as handle:
        head = handle.read(4096)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "an empty file", True
    if text.startswith((b"<!doctype html", b"<html", b"<head")):
        found = re.search(rb"<title[^>]*>(.*?)</title>", head, re.IGNORECASE | re.DOTALL)
        title = html.unescape(found[1].decode("utf-8", "replace")) if found else ""
        shown = "".join(c for c in " ".join(title.split()) if c.isprintable())[:80]
        return (f"an HTML page titled {shown!r}" if shown else "an HTML page"), True
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, the text that stands for the file", True
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000:
        whole = path.stat().st_size >= _safetensors_size(path)
        return "a safetensors file" + ("" if whole else CUT_OFF), not whole
    if head.startswith(b"PK\x03\x04"):
        whole = zipfile.is_zipfile(path)  # looks for the end of the central directory, the last thing written
        return "a zip archive, as torch.save writes" + ("" if whole else CUT_OFF), not whole
    magics = ((b"\x80", "a pickle"), (b"\x1f\x8b", "a gzip file"))
    return next((words for magic, words in magics if head.startswith(magic)), "bytes of no known format"), False


CUT_OFF = ", cut off: its end is missing"


def _safetensors_size(path: Path) -> int:
    """Return how many bytes a safetensors file has by its own header, at least; one that makes no sense says little."""
    with open(path, "rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        header = handle.read(length)
    if len(header) < length:
        return 8 + length
    try:
        tensors = [value for name, value in json.loads(header).items() if name != "__metadata__"]
        return 8 + length + max((int(tensor["data_offsets"][1]) for tensor in tensors), default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError, OverflowError):
        return 8 + length
