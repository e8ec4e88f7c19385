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

from ..errors import OptionError, check_choice
from . import ARCHITECTURES, build, option_names
from .layers import Backbone, Feature, Triple, make_norm

ONE: Triple = (1, 1, 1)


class UNet(Backbone):
    """A backbone whose classes are voxels'.

    `forward` returns a map (N, num_classes, D, H, W); without classes the pooled deepest level (N, C) or, with
    `keep_decoder`, what the final convolution would read, (N, C, D, H, W); and the pyramid where `features_only` is
    set, which wins over the other two.

    Attributes:
        has_decoder: the tensors under the prefixes `decoder` are there.
    """

    # What the outputs are, one of svd_hub.entry.TASKS; it goes into the record of a saved network.
    task: ClassVar[str] = "segmentation"

    def __init__(self, *, in_channels: int, num_classes: int, keep_decoder: bool, features_only: bool) -> None:
        super().__init__(in_channels=in_channels, num_classes=num_classes, features_only=features_only)
        self.has_decoder = not features_only and (num_classes > 0 or keep_decoder)
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
            return torch.flatten(self.avgpool(maps[self.feature_info[-1].name]), 1)
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
        encoder_options: all options the backbone was built with that are its own: `forms`, and over it what was given.
    """

    # By encoder: the strides that the paper's network has, where they are not that backbone's own defaults.
    forms: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    backbone: Backbone

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
        # one that has an encoder itself is a task's network
        check_choice("encoder", encoder, [n for n in ARCHITECTURES if n == encoder or n not in TASK_NETWORKS])
        if "encoder" in option_names(encoder):
            raise OptionError(f"encoder={encoder!r} has an encoder itself; allowed: a backbone. Next: name its own")
        self.encoder_options = {**self.forms.get(encoder, {}), **checked_options(encoder_options)}
        own = {"in_channels": in_channels, "num_classes": 0, "features_only": True}
        self.backbone = build(encoder, {**self.encoder_options, **own})

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
