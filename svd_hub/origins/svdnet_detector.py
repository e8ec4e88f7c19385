"""The authors' detectors, whole: backbone, group transform, neck, proposal network, box head.

`mp3d63-d720bda1.pth`, by what third parties report: names of mmdet 1, an 81-way head, no group transform, half
precision; nobody of this project has opened it. What mmdet 2 saves (the DeepLesion configurations) is read too.

The trap of the class order: mmdet 1 counts the background as class 0 and COCO's 80 as 1 ... 80, mmdet 2 counts them as
0 ... 79 and the background as 80. Names and number of rows are the same, so a file of one loads into the other without
a word and calls each object by its neighbour's name. Here the background is the last (mmdet 2), and what tells the two
apart is `fc_reg`: mmdet 1 has four rows for the background, first, mmdet 2 has none. A file whose names say otherwise
is refused. Where anchors lie and how RoIs are pooled differs as well: that is the network's option `convention`.

Sources: urmagicsmine/MP3D@08e5ace mmdet/models (names), tools/model_converters/upgrade_model_version.py and
configs/legacy_1.x (what mmdet 1 does otherwise).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..errors import CheckpointError
from .conversion import Conversion, Rule, convert_by_rules
from .svdnet_coco import _P3D_RULES as P3D_RULES
from .svdnet_imagenet import RESNET_RULES, check_stem

_HEAD = r"(?:roi_head\.)?bbox_head\."
_GTM = r"(?:backbone\.)?groupconv_(\d)\."
_DROP: tuple[Rule, ...] = ((r"^(?:roi_head\.)?mask_head\.", "masks: the hub's detector has boxes alone"),)
_BACKBONE_ONLY: Rule = (
    rf"^(?:(?:neck|rpn_head)\.|{_HEAD}|{_GTM})",
    "belongs to the detector; this network is the backbone alone (num_classes=0)",
)


def detector_rules() -> tuple[Rule, ...]:
    """Return the rules from the authors' names to those of `FasterRCNN3D`, for `convert_by_rules`.

    Backbones are `conv1_custom`, `norm_1` (P3D) or `gn1` (ResNet3D), with or without `backbone.` before them; the group
    transforms are `groupconv_1` ... `groupconv_4` beside the backbone's layers; a convolution of the neck is a module
    `conv` of its own; mmdet 2 has `roi_head.` before `bbox_head.`.
    """
    groups = tuple((rf"^groupconv_{level + 1}\.", f"gtm.{level}.") for level in range(4))
    return (
        (r"^backbone\.", ""),
        *P3D_RULES,
        *RESNET_RULES,
        *groups,
        (r"^(neck\.(?:lateral|fpn)_convs\.\d)\.conv\.", r"\1."),
        (r"^roi_head\.", ""),
        (r"^(?!(?:gtm|neck|rpn_head|bbox_head)\.)", "backbone."),
    )


def options_of(tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a file says of its network: classes, convention, group transform.

    Args:
        tensors: the file's.
        options: of the entry.

    Raises:
        CheckpointError: a head that is of neither convention.
    """
    convention = convention_of(tensors)
    if not convention:
        return {"num_classes": 0}
    told: dict[str, Any] = {"num_classes": _part(tensors, "fc_cls").shape[0] - 1, "convention": convention}
    groups = [tensor for name, tensor in tensors.items() if re.match(_GTM, name)]
    if not groups:
        return told | {"reduction": "centre"}
    return told | {"reduction": "group", "slices": max(tensor.shape[1] for tensor in groups)}


def convention_of(tensors: Mapping[str, Tensor]) -> str:
    """Return "mmdet1" or "mmdet2", by the rows of `fc_reg`; "" where there is no head.

    Raises:
        CheckpointError: rows of neither, or of the one under names of the other.
    """
    heads = sorted({match[0] for name in tensors if (match := re.match(_HEAD, name))})
    if not heads:
        return ""
    classes, rows = (_part(tensors, part).shape[0] for part in ("fc_cls", "fc_reg"))
    by_rows = {4 * classes: "mmdet1", 4 * (classes - 1): "mmdet2"}.get(rows, "neither")
    by_name = "mmdet2" if any(head.startswith("roi_head.") for head in heads) else "mmdet1"
    if by_rows != by_name:
        raise CheckpointError(
            f"this file's head is named {', '.join(heads)}, as in {by_name}, while fc_cls has {classes} rows and "
            f"fc_reg {rows}, as in {by_rows}: where the background is cannot be told; allowed: bbox_head with four "
            "rows of fc_reg for each of fc_cls (mmdet1, background first), or roi_head.bbox_head with four rows fewer "
            "(mmdet2, background last). Next: take the file as its training saved it"
        )
    return by_rows


def _part(tensors: Mapping[str, Tensor], part: str) -> Tensor:
    """Return the weight of `fc_cls` or `fc_reg`."""
    found = [tensor for name, tensor in tensors.items() if re.fullmatch(rf"{_HEAD}{part}\.weight", name)]
    if len(found) != 1:
        raise CheckpointError(
            f"this file has {len(found)} heads with {part}.weight; allowed: one. Next: check that it is a detector of "
            "boxes (Faster R-CNN), whole"
        )
    return found[0]


def convert(tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> Conversion:
    """Return a detector under the names of `FasterRCNN3D`, classes from 0, the background last.

    Args:
        tensors: the file's.
        options: of the entry; where `num_classes` is 0, the backbone alone is kept.

    Raises:
        CheckpointError: a stem that cannot be expressed, two tensors with one name, a head of neither convention.
    """
    check_stem(tensors)
    convention = convention_of(tensors)
    drop = _DROP if int(options.get("num_classes") or 0) > 0 else (*_DROP, _BACKBONE_ONLY)
    done = convert_by_rules(tensors, rename=detector_rules(), drop=drop)
    if convention != "mmdet1" or not any(name.startswith("bbox_head.") for name in done.tensors):
        return done
    moved = {name: background_last(name, tensor) for name, tensor in done.tensors.items()}
    note = (
        "mmdet 1 counts the background as class 0: the rows of bbox_head.fc_cls (one) and bbox_head.fc_reg (four) that "
        "belong to it were moved behind those of the classes"
    )
    return dataclasses.replace(done, tensors=moved, notes=(*done.notes, note))


def background_last(name: str, tensor: Tensor) -> Tensor:
    """Return a tensor of mmdet 1's head with the background's rows moved to the end; any other as it is."""
    if name.startswith("bbox_head.fc_cls."):
        return tensor.roll(-1, 0)
    return tensor.roll(-4, 0) if name.startswith("bbox_head.fc_reg.") else tensor
