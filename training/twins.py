"""The 2D twins of the paper's Table II: the same ResNet with Conv2d, for a comparison under one recipe.

A twin is a yardstick and a source for inflation (I3D, ACS), not an entry of the hub's 3D networks. Names are
torchvision's; source of the layout: the ResNet paper's plain form, stride on the 3x3 convolution.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import check_choice


class BasicBlock2D(nn.Module):
    """3x3 (strided) and 3x3, shortcut B."""

    expansion = 1

    def __init__(self, channels_in: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, planes, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(channels_in, planes, stride)
        nn.init.zeros_(self.bn2.weight)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) + identity)


class Bottleneck2D(nn.Module):
    """1x1, 3x3 (strided), 1x1 to four times the planes, shortcut B."""

    expansion = 4

    def __init__(self, channels_in: int, planes: int, stride: int) -> None:
        super().__init__()
        channels = planes * self.expansion
        self.conv1 = nn.Conv2d(channels_in, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(channels_in, channels, stride)
        nn.init.zeros_(self.bn3.weight)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.bn3(self.conv3(x)) + identity)


def shortcut(channels_in: int, channels: int, stride: int) -> nn.Module | None:
    """Return the projection of shortcut B, None where the identity fits."""
    if stride == 1 and channels_in == channels:
        return None
    return nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels))


BLOCKS: dict[int, tuple[type[BasicBlock2D | Bottleneck2D], tuple[int, int, int, int]]] = {
    18: (BasicBlock2D, (2, 2, 2, 2)),
    34: (BasicBlock2D, (3, 4, 6, 3)),
    50: (Bottleneck2D, (3, 4, 6, 3)),
}


class ResNet2D(nn.Module):
    """ResNet-18, -34 or -50 on (N, 3, H, W), initialised as its 3D twin is."""

    def __init__(
        self, *, depth: int = 18, width: int = 64, num_classes: int = 1000, stem_pool: bool = True, in_channels: int = 3
    ) -> None:
        super().__init__()
        check_choice("depth", depth, BLOCKS)
        block, blocks = BLOCKS[depth]
        self.conv1 = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool: nn.Module = nn.MaxPool2d(3, 2, 1) if stem_pool else nn.Identity()
        channels = width
        for index, count in enumerate(blocks):
            planes = width * 2**index
            stage = [block(channels, planes, 1 if index == 0 else 2)]
            channels = planes * block.expansion
            stage += [block(channels, planes, 1) for _ in range(1, count)]
            self.add_module(f"layer{index + 1}", nn.Sequential(*stage))
        self.fc = nn.Linear(channels, num_classes)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, num_classes) logits."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for name in ("layer1", "layer2", "layer3", "layer4"):
            x = self.get_submodule(name)(x)
        return self.fc(torch.mean(x, dim=(2, 3)))


def record_of_twin(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the file of a trained twin says of itself: `svd_hub.load(path)` inflates it, by I3D, to its 3D twin.

    Args:
        options: of `ResNet2D`.
    """
    own = {key: value for key, value in options.items() if key != "in_channels"}
    stored = {
        "convolution": "acs",
        "in_channels": options.get("in_channels", 3),
    }  # 2D kernels are those of the ACS form
    return {"architecture": "resnet3d", "options": own, "stored": stored, "inflation": "i3d"}
