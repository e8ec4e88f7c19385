"""UNet3D: the paper's network for the liver (LiTS), on ResNet3D-18 or any other backbone with a pyramid.

Sources: SVD-Net paper, section IV-B; urmagicsmine/CSPR@390a413 medseg/configs/LiTS_liver/res3dstdunet_* (form of
the encoder), medseg/mmseg/models/necks/unet_neck.py (decoder), medseg/mmseg/models/decode_heads/fcn_head.py (head).
Names of parameters are upstream's: `backbone.*`, `neck.decoder.{k}.upsample.interp_upsample.1.conv`, `.bn`,
`neck.decoder.{k}.conv_block.convs.{0,1}.conv`, `.bn`, `decode_head.convs.{0,1}.conv`, `.bn`, `decode_head.conv_seg`.
`neck.decoder.0` makes the finest level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import OptionError
from .layers import Feature
from .unet import BackboneUNet, check_positive, final_convolution, resize, unit

FORMS: dict[str, dict[str, Any]] = {
    "resnet3d": {
        "stem_stride": 1,
        "stem_pool": True,
        "pool_stride": 2,
        "strides": (1, 2, 2, 2),
        "dilations": (1, 1, 1, 1),
        "depth_stride": 2,
    },
    "densenet3d": {"stem_stride": 1, "stem_pool": True, "depth_stride": 2},
}


class Up(nn.Module):
    """One step up: resize to the finer level, 1x1x1 to its channels; beside that level, two 3x3x3 convolutions."""

    def __init__(self, coarse: int, fine: int, channels: int, *, resized: bool, norm: str) -> None:
        super().__init__()
        self.resized = resized
        # the nesting and the 1 are upstream's, whose 0 is its upsampling
        self.upsample = nn.ModuleDict({"interp_upsample": nn.ModuleDict({"1": unit(coarse, channels, 1, norm)})})
        pair = nn.Sequential(unit(fine + channels, channels, 3, norm), unit(channels, channels, 3, norm))
        self.conv_block = nn.ModuleDict({"convs": pair})

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = resize(x, skip, "trilinear") if self.resized else x
        x = self.get_submodule("upsample.interp_upsample.1")(x)
        return self.conv_block["convs"](torch.cat((skip, x), 1))


class Neck(nn.Module):
    """From the deepest level to the finest."""

    def __init__(self, levels: Sequence[Feature], channels: Sequence[int], norm: str) -> None:
        super().__init__()
        coarse = (*channels[1:], levels[-1].channels)
        self.decoder = nn.ModuleList(
            Up(coarse[k], levels[k].channels, channels[k], resized=levels[k].stride != levels[k + 1].stride, norm=norm)
            for k in range(len(levels) - 1)
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        *skips, x = maps
        for step, skip in zip(reversed(self.decoder), reversed(skips), strict=True):
            x = step(x, skip)
        return x


class Head(nn.Module):
    """Two 3x3x3 convolutions, dropout of whole channels, 1x1x1 to the classes (none: no dropout and no 1x1x1)."""

    def __init__(self, channels_in: int, channels: int, num_classes: int, *, dropout: float, norm: str) -> None:
        super().__init__()
        self.convs = nn.Sequential(unit(channels_in, channels, 3, norm), unit(channels, channels, 3, norm))
        if num_classes:
            self.dropout = nn.Dropout3d(dropout)
            self.conv_seg = final_convolution(channels, num_classes)


class UNet3D(BackboneUNet):
    """A U-Net on any backbone with a pyramid of two levels or more; the paper's with the defaults.

    ResNet3D has the paper's form of it: stem stride 1, max-pool, stage strides (1, 2, 2, 2), depth like H and W; its
    levels have strides 1, 2, 4, 8, 16. DenseNet3D has the same strides. Others are as they are.

    Args:
        encoder: the backbone, a name of `svd_hub.models.ARCHITECTURES`.
        encoder_options: its own options, laid over the form above: {"depth": 34, "width": 16}; not in_channels,
            num_classes or features_only.
        in_channels: channels of the input; 1 for CT and MR.
        num_classes: channels of the map of logits, the background's among them; 0 = no final convolution.
        decoder_channels: of each step of the decoder, the finest first, one less than there are levels; None = those of
            the level it meets, as the paper's, which is much behind bottlenecks or a DenseNet.
        head_channels: of the two convolutions behind the decoder.
        dropout: share of the channels before the final convolution that training leaves out.
        norm: of decoder and head: "batch" | "group" (gcd(32, C) groups) | "instance" | "sync".
        keep_decoder: without classes, keep the decoder: `forward` returns what the final convolution would read,
            (N, head_channels, ...) at the size of the finest level.
        features_only: no decoder; `forward` returns the backbone's pyramid.

    Raises:
        OptionError: a value that is not allowed, with what is.
    """

    weight_options = ("encoder", "encoder_options", "decoder_channels", "head_channels", "norm")
    head = "decode_head.conv_seg."
    decoder = ("neck.", "decode_head.convs.")
    forms = FORMS

    def __init__(
        self,
        *,
        encoder: str = "resnet3d",
        encoder_options: Mapping[str, Any] | None = None,
        in_channels: int = 1,
        num_classes: int = 2,
        decoder_channels: Sequence[int] | None = None,
        head_channels: int = 16,
        dropout: float = 0.1,
        norm: str = "batch",
        keep_decoder: bool = False,
        features_only: bool = False,
    ) -> None:
        super().__init__(
            encoder=encoder,
            encoder_options=encoder_options,
            in_channels=in_channels,
            num_classes=num_classes,
            keep_decoder=keep_decoder,
            features_only=features_only,
        )
        levels = self.feature_info
        if len(levels) < 2:
            raise OptionError(f"{encoder} has {len(levels)} level; allowed: a backbone of two levels or more")
        channels = tuple(level.channels for level in levels[:-1]) if decoder_channels is None else decoder_channels
        if not isinstance(channels, list | tuple) or len(channels) != len(levels) - 1:
            raise OptionError(
                f"decoder_channels={decoder_channels!r} are not allowed; allowed: {len(levels) - 1} positive integers, "
                f"the finest level's first, or None"
            )
        for value in channels:
            check_positive("decoder_channels", value)
        check_positive("head_channels", head_channels)
        if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
            raise OptionError(f"dropout={dropout!r} is not allowed; allowed: 0 or more, below 1")
        if self.has_decoder:
            self.neck = Neck(levels, channels, norm)
            self.decode_head = Head(channels[0], head_channels, num_classes, dropout=dropout, norm=norm)

    def decode(self, maps: dict[str, Tensor]) -> Tensor:
        """Return what the final convolution reads, (N, head_channels, ...) at the size of the finest level."""
        return self.decode_head.convs(self.neck([maps[level.name] for level in self.feature_info]))

    def classify(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes, ...) at the size of the finest level."""
        return self.decode_head.conv_seg(self.decode_head.dropout(x))
