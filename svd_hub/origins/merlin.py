"""Merlin's image encoder: torchvision's ResNet-152 inflated and trained on abdominal CT with reports and codes.

By what the authors' code does, the main file (`i3_resnet_clinical_longformer_best_clip_...pt`) is a flat state dict:
the encoder under `encode_image.i3_resnet.` with two heads of 1x1x1 convolutions (`classifier`, `contrastive_head`),
the text encoder under `encode_text.`, and `logit_scale`. The file of the five-year prediction has the bare names of
the encoder and its heads. Below the prefix the names are ours; the stem reads three channels, of which upstream's
forward gives it three copies of the volume. Nobody of this project has opened one of these files.
Sources: StanfordMIMI/Merlin@2489a96 merlin/models/{build,i3res,inflate,load}.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .conversion import Conversion, Rule, convert_by_rules

_ENCODER = r"^(?:encode_image\.)?(?:i3_resnet\.)?"
_RENAME: tuple[Rule, ...] = ((_ENCODER, ""),)
_DROP: tuple[Rule, ...] = (
    (r"^encode_text\.", "the text encoder; this entry is the image encoder"),
    (r"^logit_scale$", "the temperature of the contrast between images and reports"),
    (rf"{_ENCODER}classifier\.", "the head of diagnosis codes; this entry is the encoder before it"),
    (rf"{_ENCODER}contrastive_head\.", "the head towards the reports; this entry is the encoder before it"),
)


def convert(tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> Conversion:
    """Return the image encoder: `conv1`, `bn1`, `layerL.i....`.

    Args:
        tensors: the file's.
        options: of the entry; none matters here.

    Raises:
        CheckpointError: two tensors with one name, or no image encoder in the file.
    """
    return convert_by_rules(tensors, rename=_RENAME, drop=_DROP)
