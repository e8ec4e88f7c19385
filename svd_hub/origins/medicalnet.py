"""MedicalNet (Med3D): `resnet_{10,18,34,50,101,152,200}.pth` and `resnet_{10,18,34,50}_23dataset.pth`.

By what the authors' code does and by the sizes of the published files, a file is {"state_dict": ...} with `module.`
before torchvision's names, holds the backbone alone, and has no `downsample` at depth 18 and 34 (shortcut A). What
their training saves besides has the segmentation head `conv_seg`, "ecpoch" (sic), "batch_id" and "optimizer". Nobody
of this project has opened one of these files.
Sources: Tencent/MedicalNet@20f76aa models/resnet.py, train.py, README.md (which depth has which shortcut).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .conversion import Conversion, Rule, convert_by_rules

_DROP: tuple[Rule, ...] = ((r"^conv_seg\.", "the segmentation head of the pre-training; this entry is the backbone"),)


def convert(tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> Conversion:
    """Return the backbone: its names are ours as soon as `module.` is gone, which reading took off.

    Args:
        tensors: the file's.
        options: of the entry; none matters here.

    Raises:
        CheckpointError: a file with nothing but the segmentation head.
    """
    return convert_by_rules(tensors, drop=_DROP)
