"""Our own files: a network with the record that rebuilds it. Writing one, and reading what it says of itself."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import checkpoint, models
from .adapt import plain, values_that_fit
from .catalog import NOT_STATED, Entry, all_entries, all_licences
from .errors import CheckpointError, OptionError, SvdHubError
from .files import sha256_of
from .skeleton import shapes, skeleton
from .store import Verified

SUFFIX, TRAINED = ".safetensors", "model.safetensors"  # of our files, and what a finished run calls its network
EXPORTED = "manifest.json"  # in every folder that `svd-hub export` writes

# ---- writing -------------------------------------------------------------------------------------------------------


def save(model: Any, path: str | os.PathLike[str], *, classes: tuple[str, ...] | None = None) -> Path:
    """Write a network that `load` made, fine-tuned or not, so that `load(path)` rebuilds it alone.

    Args:
        model: it carries `.entry`, `.preprocess` and `.options`.
        path: a `.safetensors` file; it is written beside and moved into place.
        classes: names of the outputs; None = the entry's, where their number fits.

    Raises:
        OptionError: not such a model or path, or one that was changed since (another head put in, depth preserved):
            its record would rebuild another network.
        SvdHubError: the file cannot be written.
    """
    entry = getattr(model, "entry", None)
    if not isinstance(entry, Entry):
        raise OptionError(f"{type(model).__name__} does not come from svd_hub.load; allowed: a model that does")
    _refuse_changed(model, entry)
    count = 0 if model.options.get("features_only") else model.options["num_classes"]
    names = tuple(classes) if classes is not None else entry.classes if len(entry.classes) == count else ()
    if names and len(names) != count:
        raise OptionError(f"{len(names)} classes for {count} outputs; allowed: one name per output")
    record = {
        "entry": entry.name,
        "architecture": entry.architecture,
        "options": {**model.options, "num_classes": count},
        "task": getattr(model, "task", "classification") if count else entry.task,
        "classes": list(names),
        "preprocess": dataclasses.asdict(model.preprocess),
        "inference": model.inference.data(),
        "licence": entry.licence,
        "licence_url": entry.licence_url,
        "trained_on": entry.trained_on,
    }
    write_out(Path(path), model.state_dict(), record)
    return Path(path)


def write_out(path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write a file of ours where a user asked for it.

    Raises:
        OptionError: another ending than `.safetensors`.
        SvdHubError: the folder is missing, read-only or full.
    """
    if path.suffix != SUFFIX:
        raise OptionError(f"path={str(path)!r} is not allowed; allowed: a name that ends with .safetensors")
    try:
        checkpoint.write(path, tensors, record)
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise SvdHubError(f"cannot write {path}: {why}. Next: choose a folder that is there and writable") from error


def _refuse_changed(model: Any, entry: Entry) -> None:
    rebuilt = skeleton(entry.architecture, model.options)
    expected = shapes(rebuilt.state_dict())
    if shapes(model.state_dict()) != expected:
        told = checkpoint.diagnose(model.state_dict(), expected)
        raise OptionError(
            f"the model's tensors are not those of its options: {told}. Next: ask load for the head (num_classes=...)"
        )
    here, there = _geometry(model), _geometry(rebuilt)
    if changed := [name for name in here if here[name] != there.get(name)]:
        raise OptionError(
            f"{len(changed)} modules are of another kind or have other strides or paddings than the model's "
            f"options build ({changed[0]} first). Next: ask load for them (depth_stride=...), or "
            "svd_hub.restore_depth(model) before saving"
        )


def _geometry(network: nn.Module) -> dict[str, list[str]]:
    keys = ("kernel_size", "stride", "padding", "dilation")
    return {
        name: [type(module).__name__, *(str(getattr(module, key)) for key in keys if hasattr(module, key))]
        for name, module in network.named_modules()
    }


# ---- reading -------------------------------------------------------------------------------------------------------


def file_of(place: Path) -> Path:
    """Return the weights' file that a path means: of a run's folder its network, else the path itself.

    Raises:
        CheckpointError: what `svd-hub export` wrote, which is no file of a network any more, or a folder without one.
    """
    folder = place if place.is_dir() else place.parent
    if place.suffix != SUFFIX and (folder / EXPORTED).is_file():
        raise CheckpointError(
            f"{place} is of an export, for an inference server; allowed: a name, a .safetensors file or a run's "
            "folder. Next: give the network that it was exported from. svd_hub.export.predictor(FOLDER) runs the export"
        )
    if not place.is_dir():
        return place
    if not (place / TRAINED).is_file():
        raise CheckpointError(
            f"{place} holds no {TRAINED}; allowed: the folder of a finished run. Next: svd-hub train --resume {place}, "
            "or give the file"
        )
    return place / TRAINED


def verify_file(file: Path) -> Verified:
    """Read a file of ours whole and hold its tensors against the network that its record builds.

    Raises:
        CheckpointError: there is no such file, or it is not one of ours.
    """
    entry = entry_of_file(file)
    tensors, wanted = checkpoint.read(file).tensors, shapes(skeleton(entry.architecture, entry.options).state_dict())
    odd = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    note = f"sha256 {sha256_of(file)}, {len(tensors)} tensors of a {entry.architecture}"
    if shapes(tensors) != wanted:
        return Verified(entry=str(file), path=file, state="damaged", note=checkpoint.diagnose(tensors, wanted))
    if odd:
        return Verified(entry=str(file), path=file, state="damaged", note=f"{len(odd)} tensors hold NaN or infinity")
    return Verified(entry=str(file), path=file, state="ok", note=note)


def own_record(file: Path) -> dict[str, Any]:
    """Return what a file of ours says of its network; {} for a file of others.

    Raises:
        CheckpointError: there is no such file, or its record is damaged.
    """
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file. Next: check the path; names of the catalogue: svd-hub list")
    if checkpoint.sniff(file) != "safetensors":
        return {}
    record = checkpoint.unpack_metadata(checkpoint.read(file).metadata)
    known = isinstance(record.get("architecture"), str) and isinstance(record.get("options"), dict)
    return record if known else {}


def entry_as_in(file: Path, entry: Entry) -> Entry:
    """Return `entry` as a file of ours has it: head, strides, classes, preprocessing; itself for a file of others.

    Raises:
        CheckpointError: the file is ours and holds another network.
    """
    if not (record := own_record(file)):
        return entry
    defaults = models.default_options(entry.architecture)
    options = record["options"]
    stored = {**options, **record.get("stored", {})}
    keys = models.weight_options(entry.architecture)
    fixed = {key: values_that_fit(entry, key, defaults[key]) for key in keys}
    if record.get("stored"):  # a file of the cache
        fixed |= {key: [*fixed[key], plain(entry.stored[key])] for key in entry.stored if key in fixed}
    other = [key for key, fits in fixed.items() if plain(stored.get(key, defaults[key])) not in fits]
    if record["architecture"] != entry.architecture or other:
        wanted = {key: fits[0] for key, fits in fixed.items()}
        ours = record["architecture"] in models.ARCHITECTURES
        step = f"svd_hub.load({str(file)!r}) loads it as what it is" if ours else "take another file"
        raise CheckpointError(
            f"{file.name} holds a {record['architecture']} with {stored}, {entry.name!r} is a {entry.architecture} "
            f"with {wanted}. Next: {step}"
        )
    found = entry_of_file(file)
    return dataclasses.replace(
        entry,
        options=found.options,
        stored=found.stored,
        inflation=found.inflation,
        licence=found.licence,
        licence_url=found.licence_url,
        terms=found.terms,
        trained_on=found.trained_on,
        task=found.task,
        classes=found.classes,
        preprocess_data=found.preprocess_data,
        inference_data=found.inference_data,
    )


def entry_of_file(file: Path) -> Entry:
    """Return the entry that a file of ours describes; what its record leaves out is its catalogue entry's.

    Raises:
        CheckpointError: no such file, or it does not say which network it is.
    """
    if not (record := own_record(file)):
        raise CheckpointError(
            f"{file.name} does not say which network it is. Next: svd_hub.load(NAME, weights={str(file)!r}) with the "
            "name of the entry it belongs to"
        )
    base = all_entries().get(str(record.get("entry")))
    rest = {
        "task": base.task if base else "backbone",
        "classes": base.classes if base else (),
        "preprocess": base.preprocess_data if base else {},
        "inference": base.inference_data if base else {},
        "licence": base.licence if base else NOT_STATED,
        "licence_url": base.licence_url if base else "",
        "trained_on": base.trained_on if base else "",
    } | record
    try:
        return Entry(
            name=file.name,
            summary=f"saved from {record.get('entry', 'a network of ours')}",
            architecture=record["architecture"],
            options=record["options"],
            stored=record.get("stored", {}),
            inflation=record.get("inflation", ""),
            task=rest["task"],
            classes=tuple(rest["classes"]),
            status="derived",
            licence=str(rest["licence"]),
            licence_url=str(rest["licence_url"]),
            terms=all_licences().get(str(rest["licence"])),
            trained_on=f"{rest['trained_on']}, and whatever else its owner used" if rest["trained_on"] else "",
            paper=base.paper if base else "",
            citation=base.citation if base else "",
            link=base.link if base else "",
            preprocess_data=dict(rest["preprocess"]),
            inference_data=dict(rest["inference"]),
        )
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{file.name}: its record is damaged ({error}). Next: save or convert it again"
        ) from error
