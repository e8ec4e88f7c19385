"""The authors' COCO detectors: `mp3d63-d720bda1.pth` and the backbones inside such files.

Third parties report mmdet V1 names and half precision for it; nobody of this project has opened it.

Whole detectors have `backbone.`, `neck.`, `rpn_head.` and `bbox_head.` (mmdet V1) or `roi_head.` (V2); published
backbones have the first part cut off. P3D calls its stem `conv1_custom` and its norms `norm_1`; ResNet3D has `gn1`.
Sources: urmagicsmine/MP3D@08e5ace mmdet/models/backbones/{p3d,modified_p3d}.py; urmagicsmine/CCF-Net@4bcbefe
mmdet/models/backbones/resnet_3D.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .conversion import Conversion, Rule, convert_by_rules
from .svdnet_imagenet import RESNET_RULES, check_stem

_DETECTOR = "belongs to the detector; the backbone entry holds the backbone alone"
_DROP: tuple[Rule, ...] = (
    (r"^(neck|rpn_head|bbox_head|roi_head|mask_head)\.", _DETECTOR),
    # The group transform turns volumes into 2D maps for the neck; third parties found none in the released file.
    (r"^(backbone\.)?groupconv_\d\.", f"the group transform {_DETECTOR}"),
)
_P3D_RULES: tuple[Rule, ...] = ((r"^conv1_custom\.", "conv1."), (r"(^|\.)norm_(\d)\.", r"\1norm\2."))


def convert(tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> Conversion:
    """Return the backbone under our names: P3D's `conv1`, `norm1`, `layerL.i.norm1..4`, or those of ResNet3D.

    The two families share no name that means something else in the other, so the file's names decide.

    Args:
        tensors: the file's.
        options: of the entry; none matters here.

    Raises:
        CheckpointError: a stem that cannot be expressed, or two tensors with one name.
    """
    check_stem(tensors)
    return convert_by_rules(tensors, rename=((r"^backbone\.", ""), *_P3D_RULES, *RESNET_RULES), drop=_DROP)
