"""What a conversion is, and the small engine of rules that makes one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import to_float32
from ..errors import CheckpointError

Rule = tuple[str, str]


@dataclass(frozen=True)
class Conversion:
    """A foreign checkpoint in our form.

    Attributes:
        tensors: canonical name -> float32 tensor (counters int64), in the file's order.
        renamed: the file's name -> ours, where they differ.
        dropped: the file's name -> why it is not there.
        notes: anything else a user should know, one sentence each.
        options: what the file says of the network where the entry leaves it open (its classes, its parts).
        upstream: what the file held before anything was done to it; not an origin's work but its caller's.
    """

    tensors: dict[str, Tensor]
    renamed: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    upstream: Mapping[str, Any] = field(default_factory=dict)


def convert_by_rules(
    tensors: Mapping[str, Tensor], *, rename: Sequence[Rule] = (), drop: Sequence[Rule] = ()
) -> Conversion:
    """Return the tensors after two lists of rules.

    Args:
        tensors: the file's.
        rename: (pattern, replacement) for `re.sub`, applied one after the other to what the earlier made; anchor
            the patterns.
        drop: (pattern, reason); the first that `re.search` finds in the file's own name drops the tensor.

    Raises:
        CheckpointError: two tensors would get one name, or none is left.
    """
    kept: dict[str, Tensor] = {}
    source: dict[str, str] = {}
    dropped: dict[str, str] = {}
    for old, tensor in tensors.items():
        reason = next((why for pattern, why in drop if re.search(pattern, old)), None)
        if reason is not None:
            dropped[old] = reason
            continue
        new = old
        for pattern, replacement in rename:
            new = re.sub(pattern, replacement, new)
        if new in kept:
            raise CheckpointError(
                f"both {source[new]!r} and {old!r} of this file would become {new!r}; allowed: one of them. "
                "Next: check whether the file holds two networks, and save the one you mean"
            )
        kept[new], source[new] = tensor, old
    if not kept:
        raise CheckpointError(
            f"none of the {len(tensors)} tensors of this file belongs to the entry ({len(dropped)} dropped: "
            f"{', '.join(sorted(set(dropped.values()))) or 'no tensors'}). Next: check that this is the file you meant"
        )
    cast, counts = to_float32(kept)
    renamed = {old: new for new, old in source.items() if old != new}
    return Conversion(cast, renamed, dropped, _notes(cast, counts, dropped))


def _notes(tensors: Mapping[str, Tensor], counts: Mapping[str, int], dropped: Mapping[str, str]) -> tuple[str, ...]:
    notes = [f"{count} {dtype} tensors were cast to {_target(dtype)}" for dtype, count in counts.items()]
    groups = Counter((name.split(".")[0], reason) for name, reason in dropped.items())
    notes += [f"{count} tensors of {top} were dropped: {reason}" for (top, reason), count in groups.items()]
    bad = [name for name, tensor in tensors.items() if not (tensor.is_meta or torch.isfinite(tensor).all())]
    if bad:
        notes.append(f"{len(bad)} tensors hold NaN or infinity, {bad[0]} first")
    return tuple(notes)


def _target(dtype: str) -> str:
    return "float32" if "float" in dtype else "int64"
