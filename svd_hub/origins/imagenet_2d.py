"""2D ImageNet networks that the hub inflates: torchvision's ResNet-18, 34, 50 and DenseNet-121, and timm's copies.

By what torchvision's code does, its files are flat state dicts. A ResNet has our names and 4-D kernels, which is the
state dict of `ResNet3D(convolution="acs")`. A DenseNet has `features.` before all but its `classifier`, and in the
published file the first names of its layers (`denselayer1.norm.1.weight`), which torchvision mends while it loads.
Files from before 2018 have no `num_batches_tracked`. timm's safetensors have the names of today. Nobody of this
project has opened one of these files.
Sources: pytorch/vision@01db3ba torchvision/models/densenet.py; the names of timm resnet{18,34,50}.tv_in1k.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..errors import CheckpointError
from .conversion import Conversion, Rule, convert_by_rules
from .genesis import with_counters
from .kinetics import head_rules, variant, with_notes

_RENAME: tuple[Rule, ...] = (
    (r"^features\.", ""),
    (r"^classifier\.", "fc."),
    (r"(\.denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2."),
)


def _head(tensors: Mapping[str, Tensor]) -> Tensor | None:
    return tensors.get("fc.weight", tensors.get("classifier.weight"))


def options_of(tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a file says of its network: a user's own classes, no classifier, or another number of channels.

    Args:
        tensors: the file's.
        options: of the entry, as the 2D network is stored.
    """
    stem = tensors.get("conv1.weight", tensors.get("features.conv0.weight"))
    return variant(options, stem=stem, head=_head(tensors))


def convert(tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> Conversion:
    """Return the 2D network under our names; the kernels stay 2D, their inflation is a step of loading.

    Args:
        tensors: the file's.
        options: of the entry; the classifier is kept where `num_classes` is above 0.

    Raises:
        CheckpointError: a 3D network where the entry stores a 2D one, two tensors with one name, or nothing but the
            classifier.
    """
    solid = next((name for name, tensor in tensors.items() if tensor.ndim == 5), None)
    if solid is not None and options.get("convolution") == "acs":
        raise CheckpointError(
            f"this file is a 3D network ({solid} {tuple(tensors[solid].shape)}); allowed: a 2D one, whose kernels this "
            "entry inflates. Next: take the entry whose 3D weights these are (svd-hub list)"
        )
    drop = head_rules(options, _head(tensors), prefix=r"^(?:fc|classifier)\.")
    done = convert_by_rules(tensors, rename=_RENAME, drop=drop)
    return with_notes(with_counters(done), options_of(tensors, options))
