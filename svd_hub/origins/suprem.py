"""SuPreM: the U-Net (Models Genesis' network) and the SegResNet, supervised on 2,100 CT volumes.

By what the code does, files are tables {net, optimizer, scheduler, epoch}. The U-Net's names start with
`module.backbone.`, it has no final convolution, and beside it is a head that makes one per organ from a text
embedding (`precls_conv`, `GAP`, `controller`, `organ_embedding`, `text_to_vision`); `unet_backbone.pth` has the U-Net
alone. The SegResNet's names are MONAI's behind `module.`; third parties report 32 classes. Nobody of this project has
opened one of these files, so the file says how many classes it has.
Sources: MrGiovanni/SuPreM@76e1a64 supervised_pretraining/{train.py,backbone/Universal_model.py,backbone/unet.py},
target_applications/totalsegmentator/train.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from . import genesis
from .conversion import Conversion, Rule, convert_by_rules
from .genesis import channels_option, unet_options

_PARTS = r"(?:convInit|down_layers|up_layers|up_samples|conv_final)\."
_PREFIX = rf"^(?:(?:module|model|backbone)\.)+(?={_PARTS})"
_TEXT_HEAD: Rule = (
    r"^(?:module\.)?(?:precls_conv|GAP|controller|organ_embedding|text_to_vision)(?:\.|$)",
    "the head that makes a final convolution per organ from a text embedding; the hub keeps the U-Net before it",
)


def _segresnet(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    plain = {re.sub(_PREFIX, "", name): tensor for name, tensor in tensors.items()}
    return plain if "convInit.conv.weight" in plain else {}


def options_of(tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a file says of its network: its classes and input channels, whether it has a decoder.

    Args:
        tensors: the file's.
        options: of the entry.
    """
    plain = _segresnet(tensors)
    if not plain:
        return genesis.options_of(tensors, options)
    final = plain.get("conv_final.2.conv.weight")
    decoder = any(name.startswith("up_layers.") for name in plain)
    told = unet_options(options, decoder=decoder, classes=0 if final is None else final.shape[0])
    return told | channels_option(options, plain["convInit.conv.weight"])


def convert(tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> Conversion:
    """Return the U-Net under Models Genesis' names or the SegResNet under MONAI's: the file's names decide which.

    Args:
        tensors: the file's.
        options: of the entry; none matters here, `options_of` says what the file holds.

    Raises:
        CheckpointError: two tensors with one name.
    """
    if _segresnet(tensors):
        return convert_by_rules(tensors, rename=((_PREFIX, ""),))
    return genesis.convert_unet(tensors, drop=(_TEXT_HEAD,))
