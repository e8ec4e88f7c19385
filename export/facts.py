"""What a manifest says of a network, whatever the format."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..errors import OptionError
from ..predict.record import Record
from . import artifact
from .contract import INPUT
from .network import Network


def described(network: Network) -> dict[str, Any]:
    """Return which network it is, what it takes and returns, and what is here that exports it."""
    source: Any = network.source
    entry = getattr(source, "entry", None)
    return {
        "entry": entry.name if entry is not None else type(source).__name__,
        "architecture": entry.architecture if entry is not None else type(source).__name__,
        "task": getattr(source, "task", entry.task if entry is not None else "backbone"),
        "options": plain(getattr(source, "options", {})),
        "licence": entry.licence if entry is not None else "",
        "status": entry.status if entry is not None else "",
        "kind": network.kind,
        "norm": network.norm,
        "weights_sha256": weights_sha256(source),
        "input": {"name": INPUT, "dtype": "float32", "axes": "N, C, D, H, W"},
        "outputs": [{"name": name, "dtype": "int64" if name == "labels" else "float32"} for name in network.outputs],
        "versions": artifact.versions(),
        "use": "research use, not a medical device",
    }


def preprocessing(source: Any) -> dict[str, Any]:
    """Return what a server has to know to prepare an image and to read the result."""
    rule, inference, entry = (getattr(source, name, None) for name in ("preprocess", "inference", "entry"))
    count = getattr(source, "num_classes", 0)
    classes = list(entry.classes) if entry is not None and len(entry.classes) == count else []
    return {
        "preprocess": plain(dataclasses.asdict(rule)) if rule is not None else {},
        "words": rule.describe().split("\n") if rule is not None else [],
        "inference": plain(dataclasses.asdict(inference)) if inference is not None else {},
        "classes": classes,
        "predicts": _predicts(source),
    }


def record(source: Any, *, weights_sha256: str = "") -> tuple[Record | None, str]:
    """Return the record of a network that predicts on images, or why it does not."""
    try:
        return Record.of_model(source, weights_sha256=weights_sha256), ""
    except OptionError as error:
        return None, str(error)
    except AttributeError:  # a network that was not loaded has no entry and no rules
        return None, "the network carries no preprocessing. Next: export what load gives"


def _predicts(source: Any) -> dict[str, Any]:
    """Return which task an artifact can be predicted with, and its labels, or why with none."""
    found, why = record(source)
    return {"task": found.task, "classes": list(found.classes)} if found is not None else {"why_not": why}


def weights_sha256(model: nn.Module) -> str:
    """Return the sha256 of all tensors of a network: name, type, shape and bytes of each, in the order of names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8) if tensor.numel() else tensor
        digest.update(raw.numpy().data)
    return digest.hexdigest()


def plain(value: Any) -> Any:
    """Return a value as JSON has it."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | type(None)) else str(value)
