"""What the U-Nets share: a pyramid on the way down, a decoder, and a final convolution as their head.

`UNet` is any of them, `BackboneUNet` one whose way down is a backbone of this package.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import OptionError
from . import ARCHITECTURES, build, option_names
from .layers import Backbone, Feature, Triple, make_norm

ONE: Triple = (1, 1, 1)
# Options of a backbone that belong to the network it is the encoder of.
SET_OUTSIDE = ("in_channels", "num_classes", "features_only", "keep_decoder")


class UNet(Backbone):
    """A backbone whose classes are voxels'.

    `forward` returns a map (N, num_classes, D, H, W); with `image_classes` logits (N, num_classes) of the whole image,
    from a linear layer `fc` on the pooled deepest level, without a decoder; without classes the pooled deepest level
    (N, C) or, with `keep_decoder`, what the final convolution would read, (N, C, D, H, W); and the pyramid where
    `features_only` is set, which wins over the other two.

    Attributes:
        has_decoder: the tensors under the prefixes `decoder` are there.
    """

    # What the outputs are, one of svd_hub.entry.TASKS; it goes into the record of a saved network.
    task: ClassVar[str] = "segmentation"

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        keep_decoder: bool,
        features_only: bool,
        image_classes: bool = False,
    ) -> None:
        super().__init__(in_channels=in_channels, num_classes=num_classes, features_only=features_only)
        self.image_classes = image_classes
        self.has_decoder = not features_only and not image_classes and (num_classes > 0 or keep_decoder)
        if image_classes:
            self.task = "classification"  # type: ignore[misc]
        if not features_only and not self.has_decoder:
            self.avgpool = nn.AdaptiveAvgPool3d(1)

    def decode(self, maps: dict[str, Tensor]) -> Tensor:
        """Return what the final convolution reads, (N, C, D, H, W)."""
        raise NotImplementedError

    def classify(self, x: Tensor) -> Tensor:
        """Return the map (N, num_classes, D, H, W) of what `decode` returned."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        """See the class."""
        maps = self.features(x)
        if self.features_only:
            return maps
        if not self.has_decoder:
            pooled = torch.flatten(self.avgpool(maps[self.feature_info[-1].name]), 1)
            return self.fc(pooled) if self.image_classes and self.num_classes else pooled
        dense = self.decode(maps)
        return self.classify(dense) if self.num_classes else dense

    def check_input(self, x: Tensor) -> None:
        """Raise `OptionError` unless x is (N, in_channels, D, H, W) and the decoder can join its levels."""
        super().check_input(x)
        if torch.jit.is_tracing() or not self.has_decoder:
            return
        step = self.feature_info[-1].stride
        sides = tuple(x.shape[2:])
        if any(side % s for side, s in zip(sides, step, strict=True)):
            padded = tuple(-(-side // s) * s for side, s in zip(sides, step, strict=True))
            raise OptionError(
                f"input of size {sides} is not allowed: a decoder joins levels of one size; allowed: D, H, W divisible "
                f"by {step}. Next: pad or crop, for example to {padded}; features_only=True takes any size"
            )


class BackboneUNet(UNet):
    """A U-Net on a backbone of this package, which is its way down, under `backbone.`.

    Coarser maps are resized to the size of the finer ones they meet, whatever the strides: sides of any length are
    allowed that the backbone takes. The map of classes has the size of the input; where the finest level in use has a
    stride (P3D: 2 in H and W), it is the logits that are resized, trilinearly.

    Attributes:
        encoder_options: what the backbone was built with: its entry in `forms`, and over it what was given.
    """

    # By encoder: the spatial form that this network gives it; no option here changes a parameter.
    forms: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def __init__(
        self,
        *,
        encoder: str,
        encoder_options: Mapping[str, Any] | None,
        in_channels: int,
        num_classes: int,
        keep_decoder: bool,
        features_only: bool,
    ) -> None:
        super().__init__(
            in_channels=in_channels, num_classes=num_classes, keep_decoder=keep_decoder, features_only=features_only
        )
        check_encoder(encoder, encoder_options)
        self.encoder_options = {**self.forms.get(encoder, {}), **(encoder_options or {})}
        given = {"in_channels": in_channels, "num_classes": 0, "features_only": True}
        self.backbone = build(encoder, {**self.encoder_options, **given})

    @property
    def feature_info(self) -> tuple[Feature, ...]:  # type: ignore[override]
        """The backbone's levels, shallow to deep."""
        return self.backbone.feature_info

    @property
    def finest(self) -> Feature:
        """The level whose size the decoder's output has."""
        return self.feature_info[0]

    def check_input(self, x: Tensor) -> None:
        """Raise `OptionError` unless the backbone takes x (N, in_channels, D, H, W)."""
        self.backbone.check_input(x)

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """Return the backbone's pyramid of x (N, C, D, H, W).

        Raises:
            OptionError: the shape does not fit the backbone.
        """
        return self.backbone.features(x)

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        """See the class, and `UNet`."""
        out = super().forward(x)
        if isinstance(out, dict) or not self.num_classes or self.finest.stride == ONE:
            return out
        return resize(out, x, "trilinear")


# ---- parts of such decoders ------------------------------------------------------------------------------------------


def unit(channels_in: int, channels: int, kernel: int, norm: str) -> nn.Sequential:
    """Return a convolution that keeps the size, without bias, a norm and a ReLU: `conv`, `bn`, `relu`."""
    conv = nn.Conv3d(channels_in, channels, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(OrderedDict(conv=conv, bn=make_norm(norm, channels), relu=nn.ReLU(inplace=True)))


def final_convolution(channels_in: int, num_classes: int) -> nn.Conv3d:
    """Return the 1x1x1 convolution to the logits, which start with a variance of about 1.

    Upstream starts it with a std of 0.01: then all that is before it learns the largest class first, and in our short
    runs the smaller ones never came (four classes, three balls: Dice 0.7, 0, 0 instead of 0.99 after 120 steps).
    """
    conv = nn.Conv3d(channels_in, num_classes, 1)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="linear")
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv


def resize(x: Tensor, like: Tensor, mode: str) -> Tensor:
    """Return x (N, C, d, h, w) at the size of `like` (N, C', D, H, W), "nearest" or "trilinear" (borders aligned)."""
    return F.interpolate(x, size=like.shape[2:], mode=mode, align_corners=False if mode == "trilinear" else None)


def check_encoder(encoder: str, options: Mapping[str, Any] | None) -> None:
    """Raise `OptionError` unless `encoder` is a backbone's name and `options` are its own."""
    if encoder not in ARCHITECTURES or "encoder" in option_names(encoder):
        backbones = [name for name in ARCHITECTURES if "encoder" not in option_names(name)]
        raise OptionError(f"encoder={encoder!r} is not allowed; allowed: {', '.join(backbones)}")
    if options is not None and not isinstance(options, Mapping):
        raise OptionError(f"encoder_options={options!r} is not allowed; allowed: a table, option -> value")
    if outer := [name for name in SET_OUTSIDE if name in (options or {})]:
        raise OptionError(
            f"encoder_options with {', '.join(outer)} are not allowed: the network sets them; allowed: the other "
            f"options of {encoder}. Next: give in_channels and num_classes to the network itself"
        )


def check_positive(option: str, value: object) -> None:
    """Raise `OptionError` unless `value` is an integer of 1 or more."""
    if not isinstance(value, int) or value < 1:
        raise OptionError(f"{option}={value!r} is not allowed; allowed: 1 or more")
