"""Reading checkpoints safely, and writing our own: unwrap, split, check. Nothing here runs a pickle.

A file is judged by its content (`sniffing`); foreign pickles are read without running them (`pickles`); what does not
fit is described (`diagnosis`). The hub itself writes only safetensors.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from .diagnosis import diagnose as diagnose
from .diagnosis import some
from .errors import CheckpointError, OptionError
from .files import write_atomic
from .pickles import damaged, read_torch
from .sniffing import READABLE, REFUSED
from .sniffing import sniff as sniff

METADATA_KEY = "svd_hub"
SCHEMA = 1
# Tables that hold the weights inside a checkpoint, in the order they are tried.
WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "network_weights",
    "trunk_state_dict",
    "encoder_state_dict",
    "model",
    "net",
    "module",
    "weights",
)
# What a flat checkpoint may hold beside its tensors; it is left out, and named in `Checkpoint.skipped`.
BESIDE = (
    "meta",
    "optimizer",
    "optimizer_state",
    "optimizer_state_dict",
    "optimizer_states",
    "scheduler",
    "lr_scheduler",
    "lr_schedulers",
    "scheduler_state_dict",
    "scaler",
    "amp",
    "callbacks",
    "loops",
    "hyper_parameters",
    "args",
    "config",
)


@dataclass(frozen=True)
class Checkpoint:
    """What one file holds.

    Attributes:
        tensors: name -> dense CPU tensor, in the file's order and dtypes; perhaps still backed by the file.
        wrapper: the table the weights were in, such as "state_dict" or "model.state_dict"; "flat" where none was.
        metadata: the safetensors header's own, or the plain values found beside the weights (epoch, arch).
        kind: what `sniff` said.
        prefix: the prefix that every key had and that was taken off ("module."), or "".
        skipped: names found in or beside the weights that are no tensors and were left out.
    """

    tensors: dict[str, Tensor]
    wrapper: str
    metadata: dict[str, str] = field(default_factory=dict)
    kind: str = ""
    prefix: str = ""
    skipped: tuple[str, ...] = ()


def read(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint of any known wrapping; never executes what is in it.

    Raises:
        CheckpointError: not a checkpoint, damaged, holding code, or holding no dense tensors; the message says
            what was found and what to do next.
    """
    path = Path(path)
    kind = sniff(path)
    skipped: tuple[str, ...] = ()
    if kind == "safetensors":
        tensors, metadata = _read_safetensors(path)
        wrapper = "flat"
    elif kind in ("zip", "pickle"):
        table, wrapper, metadata = _unwrap(path, read_torch(path, kind))
        tensors, skipped = _split(path, table, flat=wrapper == "flat")
    else:
        what, step = REFUSED[kind]
        raise CheckpointError(f"{path} is {what}; allowed: {', '.join(READABLE)} checkpoints. Next: {step}")
    _check_tensors(path, tensors)
    stripped = strip_prefix(tensors, "module.")
    prefix = "module." if stripped.keys() != tensors.keys() else ""
    return Checkpoint(stripped, wrapper, metadata, kind, prefix, skipped)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
        return load_file(path), metadata
    except Exception as error:  # whatever a foreign file makes the reader say: a bad file
        raise damaged(path, error) from error


def _unwrap(path: Path, content: Any) -> tuple[Mapping[Any, Any], str, dict[str, str]]:
    names: list[str] = []
    metadata: dict[str, str] = {}
    # Three levels are more than any known file has; a pickled table may contain itself.
    for _ in range(3):
        if not isinstance(content, Mapping):
            break
        key = next((k for k in WRAPPERS if isinstance(content.get(k), Mapping) and content[k]), None)
        if key is None:
            break
        metadata |= {str(k): str(v)[:200] for k, v in content.items() if _plain(v) and v is not None}
        names.append(key)
        content = content[key]
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}; allowed: a table of tensors, plain or under one of "
            f"{', '.join(WRAPPERS)}. Next: save model.state_dict() and give that file"
        )
    return content, ".".join(names) or "flat", metadata


def _plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float | np.generic)


def _split(path: Path, table: Mapping[Any, Any], *, flat: bool) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the tensors of a table, detached, and the names of what was left out."""
    tensors = {k: v.detach() for k, v in table.items() if isinstance(k, str) and isinstance(v, Tensor)}
    others = {str(k): v for k, v in table.items() if k not in tensors}
    if not tensors:
        raise CheckpointError(
            f"{path} holds no tensors; found the keys {some(others)}; looked for a table of tensors, plain or under "
            f"one of {', '.join(WRAPPERS)}. Next: save the table of weights alone and give that file"
        )
    wrong = [k for k, v in others.items() if not _plain(v) and not (flat and k in BESIDE)]
    if wrong:
        raise CheckpointError(
            f"{path} holds values among its weights that are no tensors: {some(wrong)}; allowed: tensors and plain "
            "values. Next: save the table of weights alone and give that file"
        )
    return tensors, tuple(others)


def _check_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse what is not an ordinary dense tensor with its bytes in the file."""
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors. Next: check that this is the file you meant")
    wrong: list[str] = []
    for name, tensor in tensors.items():
        dense = tensor.layout is torch.strided and not tensor.is_nested
        if not dense or tensor.is_quantized or tensor.is_complex() or tensor.device.type != "cpu":
            wrong.append(f"{name} ({tensor.dtype}, {tensor.layout}, on {tensor.device.type})")
    if wrong:
        raise CheckpointError(
            f"{path} holds tensors that are sparse, quantised, complex or without data: {some(wrong)}; allowed: dense "
            "real tensors. Next: take the release's unquantised file"
        )
    # A stride of 0 lets four bytes pose as any number of values.
    if sum(t.numel() * t.element_size() for t in tensors.values()) > 100 * path.stat().st_size + (1 << 20):
        raise CheckpointError(f"{path} declares more than 100 times its own size. Next: remove it and fetch it again")


def strip_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors without `prefix`, however often it is repeated, if every name has it; else as they are."""
    stripped = dict(tensors)
    while prefix and stripped and all(name.startswith(prefix) and name != prefix for name in stripped):
        stripped = {name.removeprefix(prefix): tensor for name, tensor in stripped.items()}
    return stripped


def to_float32(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Return every real tensor as float32 (`num_batches_tracked` as int64, other integers untouched).

    Also returns how many were cast, by the name of the dtype they had ("float16": 20).
    """
    cast: dict[str, Tensor] = {}
    counts: Counter[str] = Counter()
    for name, tensor in tensors.items():
        target = torch.float32 if tensor.is_floating_point() else tensor.dtype
        target = torch.int64 if name.endswith("num_batches_tracked") else target
        if tensor.dtype != target:
            counts[str(tensor.dtype).removeprefix("torch.")] += 1
        cast[name] = tensor.to(target)
    return cast, dict(sorted(counts.items()))


def pack_metadata(record: Mapping[str, Any]) -> dict[str, str]:
    """Return a record of JSON values as the one header entry of our files.

    One entry, because safetensors orders several differently in each process, and equal files must have equal hashes.

    Raises:
        OptionError: a value that JSON cannot hold.
    """
    try:
        text = json.dumps({"schema": SCHEMA, **record}, sort_keys=True, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise OptionError(f"metadata cannot be written: {error}; allowed: JSON values under text keys") from error
    return {METADATA_KEY: text}


def unpack_metadata(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the record that `pack_metadata` stored, its "schema" included; {} where the file is not one of ours.

    Raises:
        CheckpointError: the record is damaged, or of a later svd_hub.
    """
    if METADATA_KEY not in metadata:
        return {}
    try:
        record = json.loads(metadata[METADATA_KEY])
        schema = record["schema"]
        later = schema > SCHEMA
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError("the svd_hub record of this file is damaged. Next: fetch or convert it again") from error
    if later:
        raise CheckpointError(
            f"this file has a record of schema {schema}; this svd_hub reads up to {SCHEMA}. "
            "Next: pip install --upgrade svd-hub"
        )
    return dict(record)


def write(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write safetensors: equal input gives equal bytes, and a reader sees the old file or the whole new one.

    Args:
        path: the file; its folder must exist. Tensors that are mapped from an older file there keep their values.
        tensors: any dense tensors; views, shared storages and other devices are copied.
        metadata: a record of JSON values, or what `pack_metadata` made of one.

    Raises:
        CheckpointError: nothing to write, or a tensor without data.
        OptionError: metadata that JSON cannot hold.
        OSError: the folder is read-only, full or missing. Nothing is left behind.
    """
    path = Path(path)
    packed = set(metadata) == {METADATA_KEY} and isinstance(metadata[METADATA_KEY], str)
    content = save(_dense(path, tensors), dict(metadata) if packed else pack_metadata(metadata))
    # Not safetensors.save_file: it writes with mode 0600, and a cache is often shared by a group.
    write_atomic(path, content)


def _dense(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors sorted, on the CPU, contiguous, each with a storage of its own."""
    if not tensors:
        raise CheckpointError(f"{path}: no tensors to write")
    dense: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        if tensor.is_meta or tensor.layout is not torch.strided or tensor.is_quantized:
            raise CheckpointError(
                f"{path}: {name} is {tensor.dtype}, {tensor.layout}; allowed: dense tensors with data"
            )
        tensor = tensor.cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        dense[name] = tensor
    return dense
