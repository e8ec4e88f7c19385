"""Small 2D networks in the style of torchvision and timm, with their names: what `inflate` is tried on."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """torchvision's BasicBlock."""

    def __init__(self, channels_in: int, channels: int, stride: int, **how: Any) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False, **how)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False, **how)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels_in != channels:
            conv = nn.Conv2d(channels_in, channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + identity)


class ResNet(nn.Module):
    """torchvision's ResNet-18, but narrow; `how` reaches the padded convolutions (padding_mode)."""

    def __init__(self, width: int = 4, num_classes: int = 5, in_channels: int = 3, **how: Any) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 7, 2, 3, bias=False, **how)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = width
        for index in range(4):
            planes = width * 2**index
            first = Block(channels, planes, 2 if index else 1, **how)
            self.add_module(f"layer{index + 1}", nn.Sequential(first, Block(planes, planes, 1, **how)))
            channels = planes
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(channels, num_classes)

    def trunk(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for index in range(4):
            x = self.get_submodule(f"layer{index + 1}")(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.avgpool(self.trunk(x)), 1))


class DenseLayer(nn.Module):
    def __init__(self, channels_in: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels_in)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(channels_in, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, seen: list[Tensor]) -> Tensor:
        x = self.conv1(self.relu1(self.norm1(torch.cat(seen, 1))))
        return self.conv2(self.relu2(self.norm2(x)))


class DenseBlock(nn.ModuleDict):
    def __init__(self, count: int, channels_in: int, growth: int) -> None:
        super().__init__()
        for index in range(count):
            self[f"denselayer{index + 1}"] = DenseLayer(channels_in + index * growth, growth)

    def forward(self, x: Tensor) -> Tensor:
        seen = [x]
        for layer in self.values():
            seen.append(layer(seen))
        return torch.cat(seen, 1)


class DenseNet(nn.Module):
    """torchvision's DenseNet: its forward pools by a function."""

    def __init__(self, blocks: tuple[int, ...] = (6, 12, 24, 16), width: int = 64, num_classes: int = 1000) -> None:
        super().__init__()
        self.features = nn.Sequential()
        self.features.add_module("conv0", nn.Conv2d(3, width, 7, 2, 3, bias=False))
        self.features.add_module("norm0", nn.BatchNorm2d(width))
        self.features.add_module("relu0", nn.ReLU(inplace=True))
        self.features.add_module("pool0", nn.MaxPool2d(3, 2, 1))
        channels, growth = width, width // 2
        for index, count in enumerate(blocks, 1):
            self.features.add_module(f"denseblock{index}", DenseBlock(count, channels, growth))
            channels += count * growth
            if index < len(blocks):
                transition = nn.Sequential()
                transition.add_module("norm", nn.BatchNorm2d(channels))
                transition.add_module("relu", nn.ReLU(inplace=True))
                transition.add_module("conv", nn.Conv2d(channels, channels // 2, 1, bias=False))
                transition.add_module("pool", nn.AvgPool2d(2, 2))
                self.features.add_module(f"transition{index}", transition)
                channels //= 2
        self.features.add_module("norm5", nn.BatchNorm2d(channels))
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.features(x), inplace=True)
        out = F.adaptive_avg_pool2d(out, (1, 1))
        return self.classifier(torch.flatten(out, 1))


class SqueezeExcite(nn.Module):
    """torchvision's SqueezeExcitation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, 2, 1)
        self.activation = nn.ReLU()
        self.fc2 = nn.Conv2d(2, channels, 1)
        self.scale_activation = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        scale = self.fc2(self.activation(self.fc1(self.avgpool(x))))
        return self.scale_activation(scale) * x


class NormAct2d(nn.BatchNorm2d):
    """timm's BatchNormAct2d: checks its input, normalises by a function, drops, activates."""

    def __init__(self, channels: int, drop: float = 0.0) -> None:
        super().__init__(channels)
        self.drop = nn.Dropout(drop) if drop else nn.Identity()
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4:
            raise ValueError(f"expected 4D input (got {x.ndim}D input)")
        mean, var = (self.running_mean, self.running_var)
        if self.training:
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        x = F.batch_norm(x, mean, var, self.weight, self.bias, self.training, self.momentum or 0.0, self.eps)
        return self.act(self.drop(x))


class MobileNet(nn.Module):
    """An inverted residual of MobileNet and EfficientNet: depthwise, squeeze and excite, norms that activate."""

    def __init__(self, num_classes: int = 4, **how: Any) -> None:
        super().__init__()
        self.conv_stem = nn.Conv2d(3, 8, 3, 2, 1, bias=False, **how)
        self.bn1 = NormAct2d(8)
        self.expand = nn.Conv2d(8, 16, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.act = nn.ReLU6(inplace=True)
        self.conv_dw = nn.Conv2d(16, 16, 5, 1, 2, groups=16, bias=False, **how)
        self.se = SqueezeExcite(16)
        self.conv_pwl = nn.Conv2d(16, 8, 1, bias=False)
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout2d(0.1)
        self.classifier = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv_stem(x))
        y = self.se(self.conv_dw(self.act(self.bn2(self.expand(x)))))
        x = x + self.conv_pwl(y)
        return self.classifier(self.drop(self.global_pool(x)).flatten(1))


class Written(nn.Module):
    """Modules in the order in which they are declared; a subclass says which of them read the input."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


class HeadFirst(Written):
    """A head and an attention, which reads a mean and a maximum over channels, are declared before the stem."""

    def __init__(self) -> None:
        super().__init__(head=nn.Conv2d(4, 3, 1), attend=nn.Conv2d(2, 1, 3, padding=1), stem=nn.Conv2d(3, 4, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem((x - 0.5) / 0.25)
        both = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True).values], 1)
        return self.head(x * self.attend(both).sigmoid())


class TwoStems(Written):
    """RepVGG: two convolutions read the input, one through an average pool of stride 1."""

    def __init__(self) -> None:
        wide, thin = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)
        super().__init__(wide=wide, pool=nn.AvgPool2d(1), thin=thin, last=nn.Conv2d(4, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.wide(x) + self.thin(self.pool(x)))


class Twice(Written):
    """One convolution reads the input, then its own output."""

    def __init__(self) -> None:
        super().__init__(conv=nn.Conv2d(3, 3, 3, padding=1), last=nn.Conv2d(3, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.conv(self.conv(x).relu()))


class SharedWeight(Written):
    """Two convolutions with one weight; the second reads what the first made."""

    def __init__(self) -> None:
        super().__init__(one=nn.Conv2d(3, 3, 3), other=nn.Conv2d(3, 3, 3))
        self.other.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.one(x))


class Rearranged(Written):
    """Focus, the stem of YOLOv5: the four pixels of each square become channels."""

    def __init__(self) -> None:
        super().__init__(stem=nn.Conv2d(12, 4, 3), last=nn.Conv2d(4, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.stem(F.pixel_unshuffle(x, 2)))


class Functional(Written):
    """A convolution that is no module reads the input."""

    def __init__(self) -> None:
        super().__init__(last=nn.Conv2d(4, 3, 1))
        self.kernel = nn.Parameter(torch.ones(4, 3, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.conv2d(x, self.kernel))


class SkipToInput(Written):
    """A U-Net whose last convolution reads the image beside the features."""

    def __init__(self) -> None:
        super().__init__(stem=nn.Conv2d(3, 4, 3, padding=1), last=nn.Conv2d(7, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.cat([self.stem(x), x], 1))


def randomise(model: nn.Module, seed: int = 7) -> nn.Module:
    """Give every tensor a value that matters (a fresh network has all-zero and all-one norms)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                scale = 0.5 if tensor.ndim < 2 else tensor[0].numel() ** -0.5
                tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype) * scale)
            if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
                tensor.abs_().add_(0.5)
    return model
