"""The one place where an entry, an architecture and weights meet: load()."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor

from . import checkpoint, consent, models, saved
from .adapt import CHANNEL_RULES, adapt, plain, values_that_fit
from .canonical import cached_or_fetched, convert
from .catalog import NOT_STATED, Entry, all_entries, get_entry
from .consent import LicenceWarning as LicenceWarning
from .diagnosis import some
from .errors import (
    CheckpointError,
    OptionError,
    WeightsUnavailableError,
    check_choice,
    nearest,
)
from .files import sha256_of
from .models import Backbone
from .origins.conversion import Conversion
from .report import LoadReport as LoadReport
from .saved import save as save
from .skeleton import shapes, skeleton

Weights = str | os.PathLike[str] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Bytes:
    """Canonical tensors, before any adaptation, with where they came from."""

    tensors: Mapping[str, Tensor]
    source: str
    sha256: str
    source_sha256: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # what the file decides, not the entry
    checked: bool = False
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
    features_only: bool | None = None,
    accept_licence: bool = False,
    progress: bool = True,
    return_report: bool = False,
    **options: Any,
) -> Any:
    """Return a verified network, in eval mode, as it was trained unless asked otherwise.

    Args:
        name_or_path: a name of the catalogue, a `.safetensors` file that `save` wrote, or the folder of a finished run.
        weights: "default"; None = random, asked for; or a file: ours, or the upstream checkpoint as its authors
            published it.
        num_classes: another number than the weights' gives a new head, 0 no head; None = as trained.
        in_channels: None = as trained; another number adapts the first kernel by `in_channels_rule`:
            "sum" (equal on grey volumes) or "mean".
        depth_stride: 1 = depth is never strided, 2 = stem, pool and stages stride in depth too; None = as trained.
        output_stride: 4, 8, 16 or 32 in H and W, by dilation; None = as trained.
        features_only: True = no head, the network returns its pyramid; None = as trained or saved.
        accept_licence: consent to a licence that asks for it; it is remembered for all entries under it.
        progress: show a progress bar where a file has to be fetched.
        return_report: return (model, LoadReport).
        **options: further arguments of the architecture that do not change its weights.

    Returns:
        The model; it carries `.entry`, `.preprocess`, `.inference`, `.options` and `.classes` (() where its outputs
        have no names).

    Raises:
        UnknownEntryError, OptionError, WeightsUnavailableError, LicenceError, DownloadError, IntegrityError,
        CheckpointError: see `svd_hub.errors`; each message ends with the next step.
    """
    check_choice("in_channels_rule", in_channels_rule, CHANNEL_RULES)
    file = _as_path(name_or_path)
    entry = saved.entry_of_file(file) if file else get_entry(str(name_or_path))
    if weights is not None and weights != "default":
        file = _file_of(weights)
        entry = saved.entry_as_in(file, entry)
    if not entry.architecture:
        raise WeightsUnavailableError(
            f"{entry.name!r} is listed, and not to be had here: {entry.reason}. Next: {entry.link or 'svd-hub list'}"
        )
    trained = {"num_classes": 0, **entry.options}
    asked = {"num_classes": num_classes, "in_channels": in_channels, "depth_stride": depth_stride}
    asked |= {"output_stride": output_stride, "features_only": features_only}
    asked = {**options, **{k: v for k, v in asked.items() if v is not None}}
    wanted = {**trained, **asked}
    if wanted.get("features_only") and num_classes:
        raise OptionError(
            f"num_classes={num_classes} and features_only exclude each other; allowed: one. Next: features_only=False"
        )
    model: Any
    if weights is None:
        model, report = _random(entry, wanted)
        entry = dataclasses.replace(entry, trained_on="nothing: random weights", licence=NOT_STATED, terms=None)
    else:
        _refuse_weight_options(entry, options)
        model = skeleton(entry.architecture, wanted)  # before anything is fetched, because it checks the options
        if file is None:
            _check_weights(entry)
            consent.check(entry, accepted=accept_licence, stacklevel=2)
        if file is None or not saved.own_record(file):
            consent.warn_unstated(entry, stacklevel=2)
        found = _from_file(entry, file, model) if file else _from_hub(entry, progress=progress)
        trained |= found.options
        new_head = {**trained, **asked}["num_classes"] not in (trained["num_classes"], 0)
        wanted = {**trained, **(model.new_head_options if new_head else {}), **asked}
        if found.options or new_head:
            model = skeleton(entry.architecture, wanted)
        report = _fill(model, entry, found, in_channels_rule, new_head=new_head)
    model.eval()
    own = in_channels is None and wanted.get("in_channels") == entry.options.get("in_channels")
    channels = entry.preprocess.channels if own else wanted["in_channels"]
    model.entry, model.options, model.classes = entry, wanted, _classes(entry, wanted)
    model.preprocess = dataclasses.replace(entry.preprocess, channels=channels)
    model.inference = entry.inference
    return (model, report) if return_report else model


def _classes(entry: Entry, options: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of a network's outputs; a new head has none."""
    return entry.classes if len(entry.classes) == options.get("num_classes") else ()


def _as_path(name_or_path: str | os.PathLike[str]) -> Path | None:
    text = os.fspath(name_or_path)
    if (
        isinstance(name_or_path, os.PathLike)
        or os.sep in text
        or text.endswith((".safetensors", ".pth", ".pt", ".ckpt"))
    ):
        return saved.file_of(Path(text))
    if text not in all_entries() and (Path(text) / saved.TRAINED).is_file():
        return saved.file_of(Path(text))
    return None


def _file_of(weights: object) -> Path:
    if not isinstance(weights, str | os.PathLike):
        raise OptionError(f"weights={weights!r} is not allowed; allowed: 'default', None (random), or a file")
    return saved.file_of(Path(weights))


def _random(entry: Entry, options: Mapping[str, Any]) -> tuple[Backbone, LoadReport]:
    model = models.build(entry.architecture, options)
    names = tuple(model.state_dict())
    note = "random weights, as asked for by weights=None"
    return model, LoadReport(
        name=entry.name, architecture=entry.architecture, total=len(names), missing=names, notes=(note,)
    )


def _refuse_weight_options(entry: Entry, options: Mapping[str, Any]) -> None:
    """Options that decide names or shapes of parameters belong to the weights."""
    allowed = models.default_options(entry.architecture)
    for name, value in options.items():
        if name not in allowed:
            raise OptionError(
                f"{entry.name!r} ({entry.architecture}) has no option {name!r}; nearest: {nearest(name, allowed)}; "
                f"allowed: {', '.join(allowed)}"
            )
        fits = values_that_fit(entry, name, allowed[name])
        if name in models.weight_options(entry.architecture) and plain(value) not in fits:
            raise OptionError(
                f"{name}={value!r} does not fit the weights of {entry.name!r}, which are {name}={fits[0]!r}; "
                f"allowed: {' or '.join(map(repr, fits))}, or weights=None for a random network"
            )


def _check_weights(entry: Entry) -> None:
    if not entry.loadable:
        recipe = f" Its recipe: svd-hub train {entry.recipe}." if entry.recipe else ""
        raise WeightsUnavailableError(
            f"{entry.name!r} has no weights (status {entry.status}): {entry.reason}.{recipe} "
            f'Next: svd_hub.load("{entry.name}", weights=None) for a random network, or weights="file" for your own'
        )


def _from_hub(entry: Entry, *, progress: bool) -> _Bytes:
    """The canonical tensors of an entry, from the cache or, once, from where the catalogue says they are."""
    local = cached_or_fetched(entry, progress=progress)
    read = checkpoint.read(local.path)
    record = checkpoint.unpack_metadata(read.metadata)
    return _Bytes(
        tensors=read.tensors,
        source=local.source,
        sha256=local.sha256,
        source_sha256=local.source_sha256,
        options=record.get("found", {}),
        checked=True,
        renamed=record.get("renamed", {}),
        dropped=record.get("dropped", {}),
        notes=(*record.get("notes", ()), *filter(None, [local.note])),
    )


def _from_file(entry: Entry, file: Path, model: Backbone) -> _Bytes:
    """Tensors of a file the user names: ours, or a plain state dict of `model`, as they are; else as upstream's."""
    read = checkpoint.read(file)
    if saved.own_record(file):
        done = Conversion(read.tensors)
    elif shapes(read.tensors) == shapes(model.state_dict()):
        note = "a plain state dict of this network; svd_hub.save would have kept its options and preprocessing too"
        told = {"num_classes": 0 if model.features_only else model.num_classes, "in_channels": model.in_channels}
        done = Conversion(read.tensors, notes=(note,), options=told)
    else:
        done = convert(entry, file, own=True)
    digest = sha256_of(file)
    return _Bytes(
        tensors=done.tensors,
        source=str(file),
        sha256=digest,
        source_sha256=digest,
        options=done.options,
        renamed=done.renamed,
        dropped=done.dropped,
        notes=done.notes,
    )


def _fill(model: Backbone, entry: Entry, found: _Bytes, in_channels_rule: str, *, new_head: bool) -> LoadReport:
    """Put tensors into a model on the meta device, strictly."""
    tensors, cast = checkpoint.to_float32(found.tensors)
    bad = [] if found.checked else [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if bad:
        warnings.warn(
            f"{found.source}: {len(bad)} of {len(tensors)} tensors hold NaN or infinity ({some(bad)}); a network with "
            "them gives no result. Next: take the file of a run that did not diverge",
            stacklevel=3,
        )
    notes = (*found.notes, *(f"{count} tensors cast from {dtype} at load" for dtype, count in cast.items()))
    tensors, changes = adapt(
        tensors, model, in_channels_rule=in_channels_rule, new_head=new_head, inflation=entry.inflation
    )
    wanted = shapes(model.state_dict())
    if shapes(tensors) != wanted:
        raise CheckpointError(
            f"{found.source} does not fit {entry.name!r} with these options: {checkpoint.diagnose(tensors, wanted)}. "
            "Next: leave the options out that change the network"
        )
    model.load_state_dict(tensors, strict=True, assign=True)
    new = {change.name for change in changes if change.before is None}
    touched = {change.name for change in changes}
    return LoadReport(
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
        checked=found.checked,
        overlay=entry.overlay,
        notes=notes,
    )
