"""FMCIB, the foundation model of cancer imaging biomarkers: `model_weights.torch`, a ResNet3D-50 of double width.

By what the authors' code does, the file is a table {"trunk_state_dict": ...}, perhaps with "head_state_dict" beside
it, under MONAI's names, which are ours: 322 tensors, a bias in every shortcut convolution, no `fc`. What their
trainer (lighter) saves is {"state_dict": ...} with `model.trunk.` and `model.heads.`, and in pre-training
`model.backbone.` and `model.projection_head.`. Nobody of this project has opened one of these files.
Sources: AIM-Harvard/foundation-cancer-image-biomarker@1f1c0c8 fmcib/models/{__init__,load_model}.py,
fmcib/ssl/modules/exneg_simclr.py, experiments/pretraining/fmcib_pretrain.yaml.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .conversion import Conversion, Rule, convert_by_rules

_RENAME: tuple[Rule, ...] = ((r"^model\.(?:trunk|backbone)\.", ""),)
_DROP: tuple[Rule, ...] = (
    (r"^model\.heads\.", "the head of a later training; this entry is the trunk"),
    (r"^model\.projection_head\.", "the projection head of the contrastive pre-training; this entry is the trunk"),
)


def convert(tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> Conversion:
    """Return the trunk: `conv1`, `bn1`, `layerL.i....`.

    Args:
        tensors: the file's.
        options: of the entry; none matters here.

    Raises:
        CheckpointError: two tensors with one name, or nothing but a head.
    """
    return convert_by_rules(tensors, rename=_RENAME, drop=_DROP)
