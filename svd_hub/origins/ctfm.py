"""CT-FM: the feature extractor (SegResEncoder) and the segmenters that start from it (SegResNetDS).

By what the authors' code and third parties say, the published files are flat safetensors: the feature extractor with
bare names (`conv_init.weight`, `layers.0.blocks...`), the segmenters with `encoder.`, `up_layers.` and a head at the
finest levels (`up_layers.3.head`); the authors' own checkpoints have `backbone.` or `trunk.` before them. All norms
are BatchNorm with running statistics. Nobody of this project has opened one of these files.
Sources: project-lighter/CT-FM@f58c89a scripts/feature_extractor.py, evaluation/baselines/*.yaml,
models/{wrapper.py,frameworks/simclr.py}.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .conversion import Conversion, Rule, convert_by_rules
from .genesis import channels_option, unet_options

_WRAP = r"(?:(?:module|model|_orig_mod|backbone|trunk)\.)"
_PARTS = r"(?:encoder|conv_init|layers|up_layers)\."
_RENAME: tuple[Rule, ...] = ((rf"^{_WRAP}+(?={_PARTS})", ""), (r"^(?=(?:conv_init|layers)\.)", "encoder."))
_DROP: tuple[Rule, ...] = (
    (rf"^{_WRAP}*projection_head\.", "the projection head of the contrastive pre-training"),
    (rf"^{_WRAP}*head\.", "a head beside the network, of a later training"),
)


def plain_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under MONAI's names, the encoder's with `encoder.`."""
    plain = {}
    for name, tensor in tensors.items():
        for pattern, new in _RENAME:
            name = re.sub(pattern, new, name)
        plain[name] = tensor
    return plain


def _heads(plain: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: t for name, t in plain.items() if re.fullmatch(r"up_layers\.\d+\.head\.weight", name)}


def _levels(plain: Mapping[str, Tensor]) -> int:
    """Return how many levels the decoder has."""
    return 1 + max((int(m[1]) for name in plain if (m := re.match(r"up_layers\.(\d+)\.", name))), default=-1)


def is_encoder(options: Mapping[str, Any]) -> bool:
    """Return whether an entry is the encoder alone: the segmenter's says how many heads it has, `dsdepth`."""
    return "dsdepth" not in options


def options_of(tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a file says of its network: classes, heads, decoder, input channels.

    Args:
        tensors: the file's.
        options: of the entry; one without `dsdepth` is the encoder alone, whatever else the file has.
    """
    plain = plain_names(tensors)
    if "encoder.conv_init.weight" not in plain:
        return {}
    told = channels_option(options, plain["encoder.conv_init.weight"])
    if is_encoder(options):
        return told
    heads = _heads(plain)
    classes = next((t.shape[0] for t in heads.values()), 0)
    told |= unet_options(options, decoder=_levels(plain) > 0, classes=classes)
    return told | ({"dsdepth": len(heads)} if heads else {})


def convert(tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> Conversion:
    """Return `encoder.*`, and for a segmenter `up_layers.*` and `heads.*`, heads.0 being the full resolution's.

    Args:
        tensors: the file's.
        options: of the entry; one without `dsdepth` is the encoder alone.

    Raises:
        CheckpointError: two tensors with one name.
    """
    plain = plain_names(tensors)
    if "encoder.conv_init.weight" not in plain:
        return convert_by_rules(tensors)  # something else: it can then be told what
    drop = [*_DROP]
    if is_encoder(options):
        drop.append((rf"^{_WRAP}*up_layers\.", "the decoder; this entry is the encoder alone"))
    count = _levels(plain)
    heads = tuple((rf"^up_layers\.{i}\.head\.", f"heads.{count - 1 - i}.") for i in range(count))
    return convert_by_rules(tensors, rename=(*_RENAME, *heads), drop=drop)
