"""The authors' ResNet3D files: `res3d18_imagenet_BN_73.07-5ff2ecb7.pth`, and whatever the same code saves.

By what the code does, the published file has bare names (`conv1.weight`, `layer1.0.bn1.weight`) and convolutions in
half precision; nobody of this project has opened it. The code also saves `backbone.` and `head.fc.`, GroupNorm as
`gn1`, and the deep stem in three layouts.
Sources: urmagicsmine/CSPR@390a413 tools/publish_model.py, mmcls/models/backbones/resnet3d.py,
medseg/mmseg/models/backbones/resnet3d.py; urmagicsmine/CCF-Net@4bcbefe mmdet/models/backbones/resnet_3D.py.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..errors import CheckpointError
from .conversion import Conversion, Rule, convert_by_rules

_PARTS = "(weight|bias|running_mean|running_var|num_batches_tracked)$"
# A deep stem as one flat Sequential: convolution, norm, ReLU, three times. Of a stem of ConvModules, only `gn` differs.
_FLAT_STEM: tuple[Rule, ...] = tuple(
    (rf"^stem\.{3 * index + offset}\.{_PARTS}", rf"stem.{index}.{part}.\1")
    for index in range(3)
    for offset, part in enumerate(("conv", "bn"))
)
RESNET_RULES: tuple[Rule, ...] = (*_FLAT_STEM, (r"(^|\.)gn(\d?)\.", r"\1bn\2."))
_HEAD = r"^(?:head\.)?fc\."


def check_stem(tensors: Mapping[str, Tensor]) -> None:
    """Refuse the one deep stem that our network cannot express.

    Raises:
        CheckpointError: a flat deep stem followed by one more norm (CCF-Net's detector).
    """
    flat = any(re.match(r"(backbone\.)?stem\.0\.weight$", name) for name in tensors)
    extra = sorted(name for name in tensors if re.match(r"(backbone\.)?(gn|bn|norm)1\.", name))
    if flat and extra:
        raise CheckpointError(
            f"this file has a deep stem with one more norm after it ({', '.join(extra)}); allowed: three convolutions "
            "with a norm each (stem='v1c'), or one convolution and norm. Next: no network of the hub has this stem; "
            "take a file of the classifier code"
        )


def convert(tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> Conversion:
    """Return ResNet3D names: `conv1`, `bn1` or `stem.{i}.{conv,bn}`, `layerL.i....`, `fc`.

    Args:
        tensors: the file's.
        options: of the entry; the classifier is kept where `num_classes` is above 0.

    Raises:
        CheckpointError: a stem that cannot be expressed, or two tensors with one name.
    """
    check_stem(tensors)
    classes = next((t.shape[0] for n, t in tensors.items() if re.fullmatch(_HEAD + "weight", n)), 0)
    keep = int(options.get("num_classes") or 0) > 0
    why = f"the classifier of {classes} classes; this entry has none (num_classes=0)"
    conversion = convert_by_rules(
        tensors,
        rename=((r"^backbone\.", ""), (_HEAD, "fc."), *RESNET_RULES),
        drop=() if keep else ((_HEAD, why),),
    )
    if keep and classes:
        note = f"the file's classifier has {classes} classes"
        conversion = dataclasses.replace(conversion, notes=(*conversion.notes, note))
    return conversion
