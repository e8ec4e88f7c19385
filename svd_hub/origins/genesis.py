"""Models Genesis, Semantic Genesis, TransVW, and whatever else is trained on their U-Net's encoder.

By what the code does, files are tables {epoch, state_dict, optimizer_state_dict, ...} with `module.` before every key;
Semantic Genesis and TransVW add numbers (`best_loss`, `best_acc`) that may be numpy's, and a classifier `clc_out`;
their instructions also cut off `classficationNet.` (sic). Re-implementations of Rubik's Cube have the encoder under
`encoder.` with heads beside it. Nobody of this project has opened one of these files.
Sources: MrGiovanni/ModelsGenesis@12f7feb pytorch/Genesis_Chest_CT.py; fhaghighi/SemanticGenesis@bed8d90
pytorch/{README.md,train.py,models/ynet3d.py}; fhaghighi/TransVW@bd4f3e3, the same files.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .conversion import Conversion, Rule, convert_by_rules

_PARTS = r"(?:down_tr(?:64|128|256|512)|up_tr(?:256|128|64)|out_tr)\."
_PREFIX = rf"^(?:(?:module|classficationNet|classificationNet|backbone|encoder|base_model)\.)+(?={_PARTS})"
_TASK = "a head of the pre-training task, which the U-Net does without"
_DROP: tuple[Rule, ...] = (
    (r"(?:^|\.)clc_out\.", "the classifier of anatomical patterns beside the U-Net"),
    (r"(?:^|\.)(?:projection_head|prototypes)(?:\.|$)", _TASK),
    (r"(?:^|\.)(?:fc6|order_fc|hor_rot_fc|ver_rot_fc|mask_fc)\.", f"Rubik's Cube: {_TASK}"),
    # A part of the U-Net under a prefix nobody documented stays, and is then refused by name.
    (rf"^(?!(?:.*\.)?{_PARTS})", "no part of the U-Net (down_tr, up_tr, out_tr)"),
)


def plain_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of the U-Net under their names without a prefix."""
    plain = {re.sub(_PREFIX, "", name): tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in plain.items() if re.match(_PARTS, name)}


def options_of(tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a file says of its network: its classes and input channels, whether it has a decoder.

    Args:
        tensors: the file's.
        options: of the entry.
    """
    found = plain_names(tensors)
    if not found:
        return {}
    final = found.get("out_tr.final_conv.weight")
    decoder = any(name.startswith("up_tr") for name in found)
    told = unet_options(options, decoder=decoder, classes=0 if final is None else final.shape[0])
    return told | channels_option(options, found.get("down_tr64.ops.0.conv1.weight"))


def unet_options(options: Mapping[str, Any], *, decoder: bool, classes: int) -> dict[str, Any]:
    """Return `num_classes`, and `keep_decoder` where it differs from the entry's, of a file with these parts."""
    keep = decoder and not classes
    changed = keep != options.get("keep_decoder", False) and not classes
    return {"num_classes": classes} | ({"keep_decoder": keep} if changed else {})


def channels_option(options: Mapping[str, Any], first: Tensor | None) -> dict[str, Any]:
    """Return `in_channels` where the first kernel reads another number than the entry says."""
    if first is None or first.ndim != 5 or first.shape[1] == options.get("in_channels", 1):
        return {}
    return {"in_channels": first.shape[1]}


def convert(tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> Conversion:
    """Return the U-Net, or its encoder, under upstream's names without their prefix.

    A file without any part of the U-Net is returned as it is, so that it can be told what it is instead.

    Args:
        tensors: the file's.
        options: of the entry; none matters here, `options_of` says what the file holds.

    Raises:
        CheckpointError: two tensors with one name.
    """
    return convert_unet(tensors)


def convert_unet(tensors: Mapping[str, Tensor], *, drop: Sequence[Rule] = ()) -> Conversion:
    """Return the U-Net of a file; `drop` is tried before the rules of this module."""
    found = plain_names(tensors)
    if not found:
        return convert_by_rules(tensors)
    done = with_counters(convert_by_rules(tensors, rename=((_PREFIX, ""),), drop=(*drop, *_DROP)))
    tops = {name.split("_")[0] for name in found}
    if "up" not in tops:
        note = "the file holds the encoder alone"
    elif "out" not in tops:
        note = "the file holds a decoder without a final convolution"
    else:
        return done
    return dataclasses.replace(done, notes=(*done.notes, note))


def with_counters(conversion: Conversion) -> Conversion:
    """Return a conversion in which every norm has its counter of batches: old torch versions saved none."""
    norms = [name.removesuffix("running_mean") for name in conversion.tensors if name.endswith("running_mean")]
    absent = [name for norm in norms if (name := f"{norm}num_batches_tracked") not in conversion.tensors]
    if not absent:
        return conversion
    tensors = conversion.tensors | {name: torch.zeros((), dtype=torch.int64) for name in absent}
    note = f"{len(absent)} counters of batches (num_batches_tracked) are not in the file and start at 0"
    return dataclasses.replace(conversion, tensors=tensors, notes=(*conversion.notes, note))
