"""The feature pyramid network: four maps of a backbone become five of one width.

Source: urmagicsmine/MP3D@08e5ace mmdet/models/necks/fpn.py as configs/deeplesion use it: no norm, no activation.
Names of parameters: `lateral_convs.{i}`, `fpn_convs.{i}`, i = 0 for the finest; upstream has `.conv` behind them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class FPN(nn.Module):
    """1x1 laterals, a nearest-neighbour way down from the coarsest, 3x3 outputs, and the last output subsampled.

    Args:
        channels_in: of the maps, fine to coarse.
        channels: of every output.
    """

    def __init__(self, channels_in: Sequence[int], channels: int) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in channels_in)
        self.fpn_convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in channels_in)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return P2 to P6 (N, channels, H, W) of maps (N, C, H, W), fine to coarse."""
        joined: list[Tensor] = []
        for lateral, x in reversed(list(zip(self.lateral_convs, maps, strict=True))):
            y = lateral(x)
            joined.append(y + F.interpolate(joined[-1], size=y.shape[2:]) if joined else y)
        outputs = [conv(x) for conv, x in zip(self.fpn_convs, reversed(joined), strict=True)]
        return [*outputs, F.max_pool2d(outputs[-1], 1, stride=2)]
