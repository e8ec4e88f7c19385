"""FCN3D: the paper's network for lung nodules (LIDC), a light head on three levels of ResNet3D-18 or another backbone.

Sources: SVD-Net paper, section IV-B; urmagicsmine/CSPR@390a413 medseg/configs/lidc/res18_3d_BN_fcn.py and
medseg/mmseg/models/decode_heads/lidc_fcn_head.py (form of the encoder, head), which follow M3DV/ACSConv@95dc860
experiments/lidc (the same without norms and ReLU behind its 1x1x1 convolutions).
Names of parameters are upstream's: `backbone.*`, `decode_head.conv1.conv`, `.bn`, `decode_head.conv2.conv`, `.bn`,
`decode_head.seg_head.{0,1,3}`. Upstream has two convolutions more (`decode_head.conv3`, `decode_head.conv_seg`), which
it never calls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import OptionError, check_choice
from .layers import Feature
from .unet import BackboneUNet, check_positive, final_convolution, resize, unit

UPSAMPLINGS = ("nearest", "trilinear")
FORMS: dict[str, dict[str, Any]] = {
    "resnet3d": {
        "stem_stride": 1,
        "stem_pool": False,
        "strides": (1, 2, 1, 2),
        "dilations": (1, 1, 1, 1),
        "depth_stride": 2,
    },
    "densenet3d": {"stem_stride": 1, "stem_pool": False, "depth_stride": 2},
}


class LightHead(nn.Module):
    """Join deep with middle, and that with shallow, by 1x1x1 convolutions; then one 3x3x3 convolution."""

    def __init__(
        self, levels: Sequence[Feature], channels: int, last_channels: int, num_classes: int, *, norm: str
    ) -> None:
        super().__init__()
        shallow, middle, deep = (level.channels for level in levels)
        self.conv1 = unit(middle + deep, channels, 1, norm)
        self.conv2 = unit(shallow + channels, channels, 1, norm)
        final = final_convolution(last_channels, num_classes) if num_classes else nn.Identity()
        self.seg_head = nn.Sequential(*unit(channels, last_channels, 3, norm), final)

    def forward(self, shallow: Tensor, middle: Tensor, deep: Tensor, upsampling: str) -> Tensor:
        """Return what the last of `seg_head` reads."""
        x = self.conv1(torch.cat((middle, resize(deep, middle, upsampling)), 1))
        x = self.conv2(torch.cat((shallow, resize(x, shallow, upsampling)), 1))
        return self.seg_head[:-1](x)


class FCN3D(BackboneUNet):
    """A backbone and a light head that reads three of its levels; the paper's with the defaults.

    ResNet3D has the paper's form of it: stem stride 1, no max-pool, stage strides (1, 2, 1, 2), depth like H and W; its
    levels have strides 1, 1, 2, 2, 4. DenseNet3D has stem stride 1 and no pool. Others are as they are.

    Args:
        encoder: the backbone, a name of `svd_hub.models.ARCHITECTURES`.
        encoder_options: its own options, laid over the form above: {"depth": 34, "width": 16}; not in_channels,
            num_classes or features_only.
        in_channels: channels of the input; 1 for CT.
        num_classes: channels of the map of logits, the background's among them; 0 = no final convolution.
        levels: names of the three levels, shallow to deep; None = the first, the middle and the last (ResNet3D: stem,
            layer2, layer4).
        head_channels: of the two 1x1x1 convolutions; None = those of the deep level (512).
        last_channels: of the 3x3x3 convolution; None = a quarter of them (128).
        upsampling: "nearest" (upstream's) | "trilinear".
        norm: of the head: "batch" | "group" (gcd(32, C) groups) | "instance" | "sync".
        keep_decoder: without classes, keep the head: `forward` returns what the final convolution would read,
            (N, last_channels, ...) at the size of the shallow level.
        features_only: no head; `forward` returns the backbone's pyramid.

    Raises:
        OptionError: a value that is not allowed, with what is.
    """

    weight_options = ("encoder", "encoder_options", "levels", "head_channels", "last_channels", "norm")
    head = "decode_head.seg_head.3."
    decoder = ("decode_head.",)
    forms = FORMS

    def __init__(
        self,
        *,
        encoder: str = "resnet3d",
        encoder_options: Mapping[str, Any] | None = None,
        in_channels: int = 1,
        num_classes: int = 2,
        levels: Sequence[str] | None = None,
        head_channels: int | None = None,
        last_channels: int | None = None,
        upsampling: str = "nearest",
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
        check_choice("upsampling", upsampling, UPSAMPLINGS)
        self.upsampling = upsampling
        self.levels = choose_levels(self.feature_info, levels)
        wide = self._feature(self.levels[-1]).channels if head_channels is None else head_channels
        check_positive("head_channels", wide)
        last = max(1, wide // 4) if last_channels is None else last_channels
        check_positive("last_channels", last)
        if self.has_decoder:
            chosen = [self._feature(name) for name in self.levels]
            self.decode_head = LightHead(chosen, wide, last, num_classes, norm=norm)

    def _feature(self, name: str) -> Feature:
        return next(level for level in self.feature_info if level.name == name)

    @property
    def finest(self) -> Feature:
        """The level whose size the head's output has."""
        return self._feature(self.levels[0])

    def decode(self, maps: dict[str, Tensor]) -> Tensor:
        """Return what the final convolution reads, (N, last_channels, ...) at the size of the shallow level."""
        shallow, middle, deep = (maps[name] for name in self.levels)
        return self.decode_head(shallow, middle, deep, self.upsampling)

    def classify(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes, ...) at the size of the shallow level."""
        return self.decode_head.seg_head[-1](x)


def choose_levels(info: Sequence[Feature], levels: Sequence[str] | None) -> tuple[str, str, str]:
    """Return the names of three levels, shallow to deep.

    Raises:
        OptionError: not three different ones of `info`, in its order.
    """
    names = [level.name for level in info]
    if levels is None and len(names) >= 3:
        return (names[0], names[len(names) // 2], names[-1])
    if isinstance(levels, list | tuple) and len(levels) == 3 and [n for n in names if n in levels] == list(levels):
        return (levels[0], levels[1], levels[2])
    raise OptionError(f"levels={levels!r} are not allowed; allowed: three of {', '.join(names)}, in this order")
