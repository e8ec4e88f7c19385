"""What the U-Nets share: a pyramid on the way down, a decoder, and a final convolution as their head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import OptionError
from .layers import Backbone


class UNet(Backbone):
    """A backbone whose classes are voxels'.

    `forward` returns a map (N, num_classes, D, H, W); without classes the pooled deepest level (N, C) or, with
    `keep_decoder`, what the final convolution would read, (N, C, D, H, W); and the pyramid where `features_only` is
    set, which wins over the other two.

    Attributes:
        has_decoder: the tensors under the prefixes `decoder` are there.
    """

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
