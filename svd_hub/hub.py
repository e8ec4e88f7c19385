"""The one place where an entry, an architecture and weights meet: load() and save()."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor

from . import checkpoint, models, origins, store
from .adapt import CHANNEL_RULES, adapt
from .catalog import NOT_STATED, Entry, get_entry
from .errors import CheckpointError, OptionError, WeightsUnavailableError, check_choice, nearest
from .models import Backbone
from .report import LoadReport

Weights = Literal["default"] | None | str | os.PathLike[str]


class LicenceWarning(UserWarning):
    """Upstream states no licence for these weights."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Bytes:
    """Canonical tensors, before any adaptation, with where they came from."""

    tensors: Mapping[str, Tensor]
    source: str
    sha256: str
    source_sha256: str
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    dropped: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


@overload
def load(name_or_path: str | os.PathLike[str], *, return_report: Literal[False] = False, **options: Any) -> Any: ...
@overload
def load(
    name_or_path: str | os.PathLike[str], *, return_report: Literal[True], **options: Any
) -> tuple[Any, LoadReport]: ...
@overload
def load(name_or_path: str | os.PathLike[str], *, return_report: bool = False, **options: Any) -> Any: ...
def load(
    name_or_path: str | os.PathLike[str],
    *,
    weights: Weights = "default",
    num_classes: int | None = None,
    in_channels: int | None = None,
    in_channels_rule: str = "sum",
    depth_stride: int | None = None,
    output_stride: int | None = None,
    features_only: bool = False,
    accept_licence: bool = False,
    progress: bool = True,
    return_report: bool = False,
    **options: Any,
) -> Any:
    """Return a verified network, in eval mode, as it was trained unless asked otherwise.

    Args:
        name_or_path: a name of the catalogue, or a `.safetensors` file that `save` wrote.
        weights: "default"; None = random, asked for; or a file: ours, or the upstream checkpoint as its authors
            published it.
        num_classes: another number than the weights' gives a new head, 0 no head; None = as trained.
        in_channels: None = as trained; another number adapts the first kernel by `in_channels_rule`:
            "sum" (equal on grey volumes) or "mean".
        depth_stride: 1 = depth is never strided, 2 = stem, pool and stages stride in depth too; None = as trained.
        output_stride: 4, 8, 16 or 32 in H and W, by dilation; None = as trained.
        features_only: no head; the network then returns its pyramid.
        accept_licence: consent to a licence that asks for it.
        progress: show a progress bar where a file has to be fetched.
        return_report: return (model, LoadReport).
        **options: further arguments of the architecture that do not change its weights.

    Returns:
        The model; it carries `.entry`, `.preprocess` and `.options`.

    Raises:
        UnknownEntryError, OptionError, WeightsUnavailableError, DownloadError, IntegrityError, CheckpointError:
        see `svd_hub.errors`; each message ends with the next step.
    """
    check_choice("in_channels_rule", in_channels_rule, CHANNEL_RULES)
    path = _as_path(name_or_path)
    entry = _entry_of_file(path) if path else get_entry(str(name_or_path))
    trained = {"num_classes": 0, **entry.options}
    asked = {"num_classes": num_classes, "in_channels": in_channels, "depth_stride": depth_stride}
    wanted = {**trained, **options, **{k: v for k, v in asked.items() if v is not None}}
    wanted |= {"output_stride": output_stride} if output_stride is not None else {}
    wanted |= {"features_only": True} if features_only else {}
    if weights is None:
        model = models.build(entry.architecture, wanted)
        total = len(model.state_dict())
        report = LoadReport(
            name=entry.name,
            architecture=entry.architecture,
            total=total,
            missing=tuple(model.state_dict()),
            notes=("random weights, as asked for by weights=None",),
        )
    else:
        _refuse_weight_options(entry, options)
        found = _bytes(entry, path if weights == "default" else Path(weights), progress)
        with torch.device("meta"):
            model = models.build(entry.architecture, wanted)
        model, report = _fill(
            model, entry, found, in_channels_rule, new_head=wanted["num_classes"] != trained["num_classes"]
        )
    model.eval()
    model.entry, model.preprocess, model.options = entry, entry.preprocess, wanted
    return (model, report) if return_report else model


def _as_path(name_or_path: str | os.PathLike[str]) -> Path | None:
    text = os.fspath(name_or_path)
    if (
        isinstance(name_or_path, os.PathLike)
        or os.sep in text
        or text.endswith((".safetensors", ".pth", ".pt", ".ckpt"))
    ):
        return Path(text)
    return None


def _refuse_weight_options(entry: Entry, options: Mapping[str, Any]) -> None:
    """Options that decide names or shapes of parameters belong to the weights."""
    allowed = models.default_options(entry.architecture)
    for name, value in options.items():
        if name not in allowed:
            raise OptionError(
                f"{entry.name!r} ({entry.architecture}) has no option {name!r}; nearest: {nearest(name, allowed)}; "
                f"allowed: {', '.join(allowed)}"
            )
        trained = entry.options.get(name, allowed[name])
        if name in models.weight_options(entry.architecture) and value != trained:
            raise OptionError(
                f"{name}={value!r} does not fit the weights of {entry.name!r}, which are {name}={trained!r}; "
                "allowed: leave it out, or weights=None for a random network"
            )


def _bytes(entry: Entry, file: Path | None, progress: bool) -> _Bytes:
    if file is not None:
        return _from_file(entry, file)
    if not entry.loadable:
        recipe = f" Its recipe: svd-hub train {entry.recipe}." if entry.recipe else ""
        reason = entry.reason or "nobody has released them"
        raise WeightsUnavailableError(
            f"{entry.name!r} has no weights (status {entry.status}): {reason}.{recipe} "
            f'Next: svd_hub.load("{entry.name}", weights=None) for a random network, or weights="file" for your own'
        )
    if entry.licence == NOT_STATED and entry.status != "ours":
        warnings.warn(
            f"{entry.name!r}: upstream states no licence for these weights; ask its authors before you redistribute "
            f"them or build a product on them ({entry.link or entry.paper})",
            LicenceWarning,
            stacklevel=4,
        )
    local = store.cached(entry, converter_version=converter_version(entry))
    if local is None:
        with store.lock(entry):
            local = store.cached(entry, converter_version=converter_version(entry)) or _bring(entry, progress)
    read = checkpoint.read(local.path)
    record = checkpoint.unpack_metadata(read.metadata)
    return _Bytes(
        tensors=read.tensors,
        source=local.source,
        sha256=local.sha256,
        source_sha256=local.source_sha256,
        renamed=record.get("renamed", {}),
        dropped=record.get("dropped", {}),
        notes=(*record.get("notes", ()), *filter(None, [local.note])),
    )


def converter_version(entry: Entry) -> str:
    """Return what the conversion of an entry's file depends on, for the cache path."""
    text = json.dumps([entry.architecture, dict(entry.options)], sort_keys=True)
    return f"{entry.origin}-{origins.CONVERTER_VERSION}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _bring(entry: Entry, progress: bool) -> store.Local:
    """Fetch the upstream file, convert it, and put the conversion into the cache; a wrong file never gets there."""
    with store.workdir() as work:
        fetched = store.fetch(entry, work, progress=progress)
        done = convert(entry, fetched.path)
        target = work / "canonical.safetensors"
        checkpoint.write(target, done.tensors, _record(entry, done, fetched.sha256))
        return store.publish(entry, target, converter_version=converter_version(entry), fetched=fetched)


def _record(entry: Entry, done: _Bytes, source_sha256: str) -> dict[str, Any]:
    """The record of a conversion: no time, no path, so that equal files convert to equal bytes."""
    return {
        "entry": entry.name,
        "architecture": entry.architecture,
        "options": dict(entry.options),
        "origin": entry.origin,
        "converter_version": origins.CONVERTER_VERSION,
        "source_sha256": source_sha256,
        "source_file": entry.source.file,
        "licence": entry.licence,
        "renamed": dict(done.renamed),
        "dropped": dict(done.dropped),
        "notes": list(done.notes),
    }


def convert(entry: Entry, file: Path) -> _Bytes:
    """Read a foreign or own checkpoint as `entry`'s, strictly: every tensor of the trained network, and no other.

    Raises:
        CheckpointError: it is not that network; the message names what it looks like.
    """
    read = checkpoint.read(file)
    done = origins.get_origin(entry.origin).convert(read.tensors, entry.options)
    with torch.device("meta"):
        expected = models.build(entry.architecture, entry.options).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    if {name: tuple(tensor.shape) for name, tensor in done.tensors.items()} != shapes:
        told = checkpoint.diagnose(done.tensors, shapes)
        raise CheckpointError(
            f"{file.name} is not a checkpoint of {entry.name!r}: {told}. "
            f"Next: svd-hub info {entry.name} says which file it is, svd-hub list which entry yours may be"
        )
    notes = list(done.notes)
    if read.prefix:
        notes.append(f"prefix {read.prefix!r} stripped from every key")
    if read.wrapper != "flat":
        notes.append(f"taken from {read.wrapper!r} of the file")
    return _Bytes(
        tensors=done.tensors, source="", sha256="", source_sha256="",
        renamed=done.renamed, dropped=done.dropped, notes=tuple(notes),
    )  # fmt: skip


def _from_file(entry: Entry, file: Path) -> _Bytes:
    """Tensors of a file the user names: ours by its record, anything else as upstream's."""
    if not file.is_file():
        raise CheckpointError(f"weights {file}: no such file. Next: check the path, or weights='default'")
    with file.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    facts: dict[str, Any] = {"source": file.name, "sha256": digest, "source_sha256": digest}
    if checkpoint.sniff(file) == "safetensors":
        read = checkpoint.read(file)
        record = checkpoint.unpack_metadata(read.metadata)
        if record:
            if record.get("architecture") != entry.architecture:
                raise CheckpointError(
                    f"{file.name} holds a {record.get('architecture')}, {entry.name!r} is a {entry.architecture}. "
                    f"Next: svd_hub.load({str(file)!r}) loads it as what it is"
                )
            return _Bytes(tensors=read.tensors, **facts)
    return dataclasses.replace(convert(entry, file), **facts)


def _entry_of_file(path: Path) -> Entry:
    """The entry that `save` described in a file's record."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file. Next: check the path; names of the catalogue: svd-hub list")
    record = checkpoint.unpack_metadata(checkpoint.read(path).metadata)
    if "architecture" not in record or "options" not in record:
        raise CheckpointError(
            f"{path.name} does not say which network it is. Next: svd_hub.load(NAME, weights={str(path)!r}) with the "
            "name of the entry it belongs to"
        )
    return Entry(
        name=path.stem,
        summary=f"saved from {record.get('entry', 'a network of ours')}",
        architecture=record["architecture"],
        options=record["options"],
        task=record.get("task", "backbone"),
        classes=tuple(record.get("classes", ())),
        status="ours",
        licence=record.get("licence", NOT_STATED),
        preprocess_data=record.get("preprocess", {}),
        checked="file",
    )


def _fill(
    model: Backbone, entry: Entry, found: _Bytes, in_channels_rule: str, *, new_head: bool
) -> tuple[Backbone, LoadReport]:
    """Put tensors into a model on the meta device, strictly."""
    tensors, _ = checkpoint.to_float32(found.tensors)
    tensors, changes = adapt(tensors, model, in_channels_rule=in_channels_rule, new_head=new_head)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != wanted:
        raise CheckpointError(
            f"{found.source} does not fit {entry.name!r} with these options: {checkpoint.diagnose(tensors, wanted)}. "
            "Next: leave the options out that change the network"
        )
    model.load_state_dict(tensors, strict=True, assign=True)
    new = {change.name for change in changes if not change.before}
    touched = {change.name for change in changes}
    return model, LoadReport(
        name=entry.name,
        architecture=entry.architecture,
        total=len(wanted),
        matched=tuple(name for name in wanted if name not in touched),
        missing=tuple(sorted(new)),
        renamed=found.renamed,
        dropped=found.dropped,
        adapted=tuple(changes),
        source=found.source,
        sha256=found.sha256,
        source_sha256=found.source_sha256,
        overlay=entry.overlay,
        notes=found.notes,
    )


def save(model: Any, path: str | os.PathLike[str], *, classes: tuple[str, ...] | None = None) -> Path:
    """Write a network that `load` made, fine-tuned or not, so that `load(path)` rebuilds it alone.

    Args:
        model: it carries `.entry`, `.preprocess` and `.options`.
        path: a `.safetensors` file; it is written beside and moved into place.
        classes: names of the outputs; None = the entry's, where their number fits.

    Raises:
        OptionError: not such a model or path.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise OptionError(f"path={str(path)!r} is not allowed; allowed: a name that ends with .safetensors")
    entry = getattr(model, "entry", None)
    if not isinstance(entry, Entry):
        raise OptionError(f"{type(model).__name__} does not come from svd_hub.load; allowed: a model that does")
    count = model.options.get("num_classes", 0)
    names = tuple(classes) if classes is not None else entry.classes if len(entry.classes) == count else ()
    if names and len(names) != count:
        raise OptionError(f"{len(names)} classes for {count} outputs; allowed: one name per output")
    record = {
        "entry": entry.name,
        "architecture": entry.architecture,
        "options": dict(model.options),
        "task": "classification" if count else entry.task,
        "classes": list(names),
        "preprocess": {k: v for k, v in dataclasses.asdict(model.preprocess).items()},
        "licence": entry.licence,
    }
    checkpoint.write(path, model.state_dict(), record)
    return path


def convert_file(name: str, file: Path, *, to: Path | None = None) -> LoadReport:
    """Do for a file on disk what `load` does for a link: check it, convert it, put it into the cache (or into `to`).

    Args:
        name: the entry it belongs to.
        file: the upstream checkpoint as its authors published it; it is not changed.
        to: a `.safetensors` file to write instead of the cache.

    Raises:
        IntegrityError: not the file the entry promises (with `to`, any file that is this network is taken).
        CheckpointError: not that network.
    """
    entry = get_entry(name)
    with store.workdir() as work:
        fetched = store.examine(entry, file) if to is None else None
        done = convert(entry, file)
        with file.open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
        target = to if to is not None else work / "canonical.safetensors"
        checkpoint.write(target, done.tensors, _record(entry, done, digest))
        place = str(to)
        if fetched is not None:
            place = str(store.publish(entry, target, converter_version=converter_version(entry), fetched=fetched).path)
    return LoadReport(
        name=entry.name,
        architecture=entry.architecture,
        total=len(done.tensors),
        matched=tuple(done.tensors),
        renamed=done.renamed,
        dropped=done.dropped,
        source=file.name,
        sha256=digest,
        source_sha256=digest,
        overlay=entry.overlay,
        notes=(*done.notes, f"written to {place}"),
    )
