"""torchvision's video networks, of which one is a plain ResNet3D-18: `r3d_18-b3b3357e.pth` (Kinetics-400).

By what torchvision's code does, the file is a flat state dict: the stem is `stem.0` (3x7x7) and `stem.1`, each
convolution of a block sits with its norm in `conv1` or `conv2` (`layer1.0.conv1.0.weight`, `layer1.0.conv1.1.bias`),
shortcuts and `fc` are called as ours. `mc3_18` and `r2plus1d_18` have other kernels and are refused. Nobody of this
project has opened the file.
Source: pytorch/vision@0614eac torchvision/models/video/resnet.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .conversion import Conversion, Rule, convert_by_rules
from .genesis import with_counters
from .kinetics import head_rules, variant, with_notes

_NORM = r"(weight|bias|running_mean|running_var|num_batches_tracked)$"
# To the end of each name: the halves of an R(2+1)D convolution (`conv1.0.0.weight`) must stay recognisable.
_RENAME: tuple[Rule, ...] = (
    (r"^stem\.0\.weight$", "conv1.weight"),
    (rf"^stem\.1\.{_NORM}", r"bn1.\1"),
    (r"^(layer\d\.\d+\.conv\d)\.0\.weight$", r"\1.weight"),
    (rf"^(layer\d\.\d+)\.conv(\d)\.1\.{_NORM}", r"\1.bn\2.\3"),
)


def options_of(tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a file says of its network: a user's own classes, no classifier, or another number of channels.

    Args:
        tensors: the file's.
        options: of the entry.
    """
    return variant(options, stem=tensors.get("stem.0.weight"), head=tensors.get("fc.weight"))


def convert(tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> Conversion:
    """Return ResNet3D names: `conv1`, `bn1`, `layerL.i.conv1`, `layerL.i.bn1`, ...

    Args:
        tensors: the file's.
        options: of the entry; the classifier is kept where `num_classes` is above 0.

    Raises:
        CheckpointError: two tensors with one name, or nothing but the classifier.
    """
    done = convert_by_rules(tensors, rename=_RENAME, drop=head_rules(options, tensors.get("fc.weight")))
    return with_notes(with_counters(done), options_of(tensors, options))
