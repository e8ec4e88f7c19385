"""From an upstream file to the one canonical file of the cache: read, convert, check, write. Strict, and done once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from . import checkpoint, origins, store
from .catalog import Entry, get_entry
from .diagnosis import some
from .errors import CheckpointError, IntegrityError, OptionError, SvdHubError
from .files import sha256_of
from .identify import identify
from .origins.conversion import Conversion
from .report import LoadReport
from .saved import write_out
from .skeleton import shapes, skeleton
from .transport import folder_error


def converter_version(entry: Entry) -> str:
    """Return what the conversion of an entry's file depends on, for the cache path."""
    parts = [entry.architecture, dict(entry.options), *filter(None, [dict(entry.stored), entry.inflation])]
    text = json.dumps(parts, sort_keys=True)
    return f"{entry.origin}-{origins.CONVERTER_VERSION}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def cached_or_fetched(entry: Entry, *, progress: bool) -> store.Local:
    """Return the verified canonical file of an entry: the cache's, or fetched and converted by one process for all.

    Raises:
        DownloadError, IntegrityError, CheckpointError: nothing was put into the cache.
    """
    version = converter_version(entry)
    if (local := store.cached(entry, converter_version=version)) is not None:
        return local
    with store.lock(entry):
        return store.cached(entry, converter_version=version) or _bring(entry, progress)


def _bring(entry: Entry, progress: bool) -> store.Local:
    with store.workdir() as work:
        fetched = store.fetch(entry, work, progress=progress)
        try:
            done = convert(entry, fetched.path, own=False)
        except CheckpointError as error:
            told = CheckpointError(f"{entry.name!r}: what came from {fetched.source} was not kept. {error}")
            told.upstream = {**error.upstream, "sha256": fetched.sha256, "size": fetched.size}
            raise told from error
        return _publish(entry, done, work, fetched)


def _publish(entry: Entry, done: Conversion, work: Path, fetched: store.Fetched) -> store.Local:
    target = work / "canonical.safetensors"
    try:
        checkpoint.write(target, done.tensors, _record(entry, done, fetched.sha256))
    except OSError as error:
        raise folder_error(target.parent, error) from error
    return store.publish(entry, target, converter_version=converter_version(entry), fetched=fetched)


def _record(entry: Entry, done: Conversion, source_sha256: str) -> dict[str, Any]:
    """The record of a conversion: no time, no path, so that equal files convert to equal bytes."""
    return {
        "entry": entry.name,
        "architecture": entry.architecture,
        "options": {**entry.options, **done.options},
        "stored": dict(entry.stored),
        "inflation": entry.inflation,
        "found": dict(done.options),
        "task": entry.task,
        "classes": list(entry.classes),
        "preprocess": dict(entry.preprocess_data),
        "licence": entry.licence,
        "origin": entry.origin,
        "converter_version": origins.CONVERTER_VERSION,
        "source_sha256": source_sha256,
        "source_file": entry.source.file,
        "upstream": dict(done.upstream),
        "renamed": dict(done.renamed),
        "dropped": dict(done.dropped),
        "notes": list(done.notes),
    }


def convert(entry: Entry, file: Path, *, own: bool, called: str = "") -> Conversion:
    """Read a foreign or own checkpoint as `entry`'s, strictly: every tensor of the trained network, and no other.

    Args:
        entry: what the file is said to be.
        file: the checkpoint.
        own: a user's own file of this network, which may have other classes, say; what goes into the cache under the
            entry's name may differ only in what the entry leaves `open`.

        called: its name in messages; "" = the file's own.

    Raises:
        CheckpointError: it is not that network; the message names what it looks like.
    """
    read = checkpoint.read(file)
    upstream = _held(read)
    try:
        done = _convert(entry, read, called or file.name, own=own)
    except CheckpointError as error:
        error.upstream = upstream
        raise
    return dataclasses.replace(done, upstream=upstream)


def _look_at(file: Path, name: str) -> tuple[str, bool]:
    """Return in a sentence what a file that was refused looks like, and whether it has the layout of entry `name`."""
    try:
        names = identify(checkpoint.read(file).tensors)
    except SvdHubError as error:
        why = str(error).partition(" Next:")[0].removeprefix(str(file)).strip()
        return f" It cannot be read as a checkpoint: {why}", False
    if not names:
        return " Its tensors are those of no entry.", False
    names = sorted(names, key=lambda one: one != name)
    return f" Its tensors have the layout of {some(names, 4)}.", names[0] == name


def _held(read: checkpoint.Checkpoint) -> dict[str, Any]:
    """What a file holds, as JSON values: kept in the record, so that its layout can be told without it."""
    tensors = [[name, str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in read.tensors.items()]
    facts = {"kind": read.kind, "wrapper": read.wrapper, "prefix": read.prefix, "skipped": list(read.skipped)}
    return {**facts, "tensors": tensors}


def _convert(entry: Entry, read: checkpoint.Checkpoint, file_name: str, *, own: bool) -> Conversion:
    origin = origins.get_origin(entry.origin)
    done = origin.convert(read.tensors, entry.stored_options)
    options_of = getattr(origin, "options_of", None)
    found = options_of(read.tensors, entry.stored_options) if options_of else {}
    found = {key: value for key, value in found.items() if value != entry.stored_options.get(key)}
    found = {key: value for key, value in found.items() if own or key in entry.open}
    expected = shapes(skeleton(entry.architecture, {**entry.stored_options, **found}).state_dict())
    if shapes(done.tensors) != expected:
        told = checkpoint.diagnose(done.tensors, expected)
        names = [name for name in identify(read.tensors) if name != entry.name]
        fits = f" It has the layout of {some(names, 4)}." if names else ""
        use = f"take {names[0]!r} if that is what it is" if names else "svd-hub list says which entry yours may be"
        raise CheckpointError(
            f"{file_name} is not a checkpoint of {entry.name!r}: {told}.{fits} "
            f"Next: svd-hub info {entry.name} says which file it is; {use}"
        )
    notes = list(done.notes)
    notes += [f"the file has {key}={value!r}, the entry {entry.options.get(key)!r}" for key, value in found.items()]
    if read.prefix:
        notes.append(f"prefix {read.prefix!r} stripped from every key")
    if read.wrapper != "flat":
        notes.append(f"taken from {read.wrapper!r} of the file")
    return dataclasses.replace(done, notes=tuple(notes), options=found)


def convert_file(name: str, file: Path, *, to: Path | None = None) -> LoadReport:
    """Do for a file on disk what `load` does for a link: check it, convert it, put it into the cache (or into `to`).

    Args:
        name: the entry it belongs to.
        file: the upstream checkpoint as its authors published it; it is not changed.
        to: a `.safetensors` file to write instead of the cache.

    Raises:
        OptionError: without `to`, an entry that has no upstream file.
        IntegrityError: not the file the entry promises (with `to`, any file that is this network is taken).
        CheckpointError: not that network.
    """
    entry = get_entry(name)
    if not entry.architecture:
        raise OptionError(f"{name!r} is listed only: no network of this hub. Next: svd-hub info {name}")
    if to is None and entry.source.kind in ("none", "bundled"):
        raise OptionError(
            f"{name!r} has no upstream file (source {entry.source.kind!r}), so nothing of it is cached. Next: add "
            f"--to FILE.safetensors, or svd_hub.load({name!r}, weights={str(file)!r})"
        )
    if to is not None:
        done, digest = convert(entry, file, own=True), sha256_of(file)
        write_out(to, done.tensors, _record(entry, done, digest))
        if sha256_of(file) != digest:
            to.unlink()
            raise CheckpointError(f"{file} changed while it was read; nothing was written. Next: convert it again")
        place = to
    else:
        with store.workdir() as work:
            copy = work / "upstream"  # what is hashed must be what is read, whatever happens to the original
            try:
                shutil.copyfile(file, copy)
            except OSError as error:
                raise CheckpointError(f"{file} cannot be read: {error.strerror}. Next: check the path") from error
            try:
                fetched = store.examine(entry, copy, source=str(file))
            except IntegrityError as error:
                words, fits = _look_at(copy, name)
                step = f"take the file that svd-hub info {name} names"
                if fits:
                    step += (
                        f"; to use this one all the same, svd_hub.load({name!r}, weights={str(file)!r}), or add "
                        "--to FILE.safetensors"
                    )
                raise IntegrityError(f"{error}{words} Next: {step}") from None
            done, digest = convert(entry, copy, own=False, called=file.name), fetched.sha256
            place = _publish(entry, done, work, fetched).path
    return LoadReport(
        name=entry.name,
        architecture=entry.architecture,
        total=len(done.tensors),
        matched=tuple(done.tensors),
        renamed=done.renamed,
        dropped=done.dropped,
        source=str(file),
        sha256=digest,
        source_sha256=digest,
        checked=to is None,
        overlay=entry.overlay,
        notes=(*done.notes, f"written to {place}"),
    )
