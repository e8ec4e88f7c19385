"""DenseNet3D-121/169/201: torchvision's DenseNet with three axes, dense or as ACS.

Source: pytorch/vision torchvision/models/densenet.py (layers, names, initialisation); Huang et al., "Densely Connected
Convolutional Networks", CVPR 2017.
Names of parameters are torchvision's without their `features.`, which is a method here: `conv0`, `norm0`,
`denseblock1.denselayer1.norm1` ... `conv2`, `transition1.norm`, `transition1.conv`, `norm5`; `classifier` is `fc`.
No parameter depends on a pool or a stride: weights fit every spatial form of one network.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import OptionError, check_choice
from .acs import ACSConv
from .layers import Backbone, Feature, Triple, make_convolution, multiply, triple

ONE: Triple = (1, 1, 1)
BLOCKS = {121: (6, 12, 24, 16), 169: (6, 12, 32, 32), 201: (6, 12, 48, 32)}
BOTTLENECK = 4


class DenseLayer(nn.Module):
    """Norm, ReLU, 1x1x1 to four times the growth; norm, ReLU, 3x3x3 to the growth. Returns the new channels alone."""

    def __init__(self, channels_in: int, growth: int, convolution: str) -> None:
        super().__init__()
        wide = BOTTLENECK * growth
        self.norm1 = nn.BatchNorm3d(channels_in)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = make_convolution(convolution, channels_in, wide, 1, stride=ONE, dilation=ONE)
        self.norm2 = nn.BatchNorm3d(wide)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = make_convolution(convolution, wide, growth, 3, stride=ONE, dilation=ONE)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(self.relu1(self.norm1(x)))
        return self.conv2(self.relu2(self.norm2(x)))


class DenseBlock(nn.Module):
    """Layers each of which reads the block's input and the output of every layer before it."""

    def __init__(self, channels_in: int, growth: int, count: int, convolution: str) -> None:
        super().__init__()
        for index in range(count):
            layer = DenseLayer(channels_in + index * growth, growth, convolution)
            self.add_module(f"denselayer{index + 1}", layer)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = torch.cat([x, layer(x)], dim=1)
        return x


class Transition(nn.Module):
    """Norm, ReLU, 1x1x1 to half the channels, average pool; with pool (1, 2, 2) the depth is left alone."""

    def __init__(self, channels_in: int, pool: Triple, convolution: str) -> None:
        super().__init__()
        self.norm = nn.BatchNorm3d(channels_in)
        self.relu = nn.ReLU(inplace=True)
        self.conv = make_convolution(convolution, channels_in, channels_in // 2, 1, stride=ONE, dilation=ONE)
        self.pool = nn.AvgPool3d(pool, stride=pool)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.conv(self.relu(self.norm(x))))


class DenseNet3D(Backbone):
    """A 3D densely connected network.

    Its pyramid: `level0` is the stem after norm and ReLU, before the max-pool; `level1` ... `level3` are the outputs of
    the dense blocks, before their transitions; `level4` is the last block after the final norm and ReLU.

    Args:
        depth: 121, 169, 201.
        in_channels: channels of the input; 1 for CT and MR.
        num_classes: outputs of `fc`; 0 = no head.
        width: stem channels (64 is torchvision's); every dense layer adds half as many.
        stem_stride: an integer or (D, H, W).
        stem_pool: False leaves the max-pool out.
        depth_stride: what an integer stride means in depth: 1 = depth is kept (the transitions' average pools then have
            depth kernel 1), 2 = depth is treated like H and W.
        convolution: "3d" | "acs": 2D kernels, each of a third of the output channels in one of the three planes. The
            state dict of "acs" has the shapes of the 2D network.
        features_only: no head; `forward` returns the pyramid.

    Raises:
        OptionError: a value that is not allowed, with what is.
    """

    weight_options = ("depth", "width", "convolution")

    def __init__(
        self,
        *,
        depth: int = 121,
        in_channels: int = 1,
        num_classes: int = 0,
        width: int = 64,
        stem_stride: int | Sequence[int] = 2,
        stem_pool: bool = True,
        depth_stride: int = 1,
        convolution: str = "3d",
        features_only: bool = False,
    ) -> None:
        super().__init__(in_channels=in_channels, num_classes=num_classes, features_only=features_only)
        check_choice("depth", depth, BLOCKS)
        check_choice("depth_stride", depth_stride, (1, 2))
        if not isinstance(width, int) or width < 2 or width % 2:
            raise OptionError(f"width={width} is not allowed; allowed: an even number of stem channels, 2 or more")
        step = triple(stem_stride, depth_stride, option="stem_stride")
        halve = triple(2, depth_stride)
        self.conv0 = make_convolution(convolution, in_channels, width, 7, stride=step, dilation=ONE)
        self.norm0 = nn.BatchNorm3d(width)
        self.relu0 = nn.ReLU(inplace=True)
        self.pool0: nn.Module = nn.MaxPool3d(3, stride=halve, padding=1) if stem_pool else nn.Identity()
        info = [Feature("level0", width, step)]
        reached = multiply(step, halve) if stem_pool else step
        channels, growth = width, width // 2
        for level, count in enumerate(BLOCKS[depth], start=1):
            self.add_module(f"denseblock{level}", DenseBlock(channels, growth, count, convolution))
            channels += count * growth
            info.append(Feature(f"level{level}", channels, reached))
            if level < 4:
                self.add_module(f"transition{level}", Transition(channels, halve, convolution))
                channels, reached = channels // 2, multiply(reached, halve)
        self.norm5 = nn.BatchNorm3d(channels)
        self.relu5 = nn.ReLU(inplace=True)
        self.feature_info = tuple(info)
        self.add_head(channels)
        for module in self.modules():
            if isinstance(module, nn.Conv3d | ACSConv):
                nn.init.kaiming_normal_(module.weight)

    @property
    def least_size(self) -> Triple:
        """The smallest (D, H, W) that leaves a voxel to every average pool: (1, 29, 29) as it is built by default."""
        least = []
        for axis in range(3):
            # read from the modules, which preserve_depth changes; pool0 and conv0 are padded
            size = 1
            for name in ("transition3.pool", "transition2.pool", "transition1.pool", "pool0", "conv0"):
                stride: int = getattr(self.get_submodule(name), "stride", ONE)[axis]
                size = size * stride if name.startswith("transition") else (size - 1) * stride + 1
            least.append(size)
        return (least[0], least[1], least[2])

    def check_size(self, x: Tensor) -> None:
        """Raise `OptionError` if a transition would have nothing left to pool in x (N, C, D, H, W)."""
        if torch.jit.is_tracing():  # a traced size is a tensor, which cannot steer Python
            return
        if any(size < least for size, least in zip(x.shape[2:], self.least_size, strict=True)):
            raise OptionError(
                f"a volume of {tuple(x.shape[2:])} is not allowed; allowed: {self.least_size} (D, H, W) or more. Next: "
                "pad or resample it, or use depth_stride=1, stem_stride=1 or stem_pool=False"
            )

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """Return {"level0", ..., "level4"} of x (N, C, D, H, W).

        Raises:
            OptionError: the shape does not fit, or x is smaller than `least_size`.
        """
        self.check_input(x)
        self.check_size(x)
        maps = {"level0": self.relu0(self.norm0(self.conv0(x)))}
        x = self.pool0(maps["level0"])
        for level in (1, 2, 3):
            maps[f"level{level}"] = self.get_submodule(f"denseblock{level}")(x)
            x = self.get_submodule(f"transition{level}")(maps[f"level{level}"])
        maps["level4"] = self.relu5(self.norm5(self.get_submodule("denseblock4")(x)))
        return maps
