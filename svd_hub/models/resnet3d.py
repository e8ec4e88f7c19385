"""ResNet3D-10/18/34/50/101/152/200: SVD-Net's main network, and by its options MedicalNet's, Kinetics' and FMCIB's.

Sources: SVD-Net paper, sections III-B and IV-A; urmagicsmine/CSPR@390a413 mmcls/models/backbones/resnet3d.py (blocks,
stem, initialisation); Tencent/MedicalNet@20f76aa (shortcut A, dilated stages).
Names of parameters are torchvision's, whatever the norm: `conv1`, `bn1`, `layer1.0.conv1`, ..., `fc`.
No parameter depends on a dilation, a pool or a stride (but a stride in layer1 of 18 and 34, which adds a shortcut):
weights fit every spatial form of one network.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import OptionError, check_choice
from .acs import ACSConv
from .layers import Backbone, Feature, Triple, make_convolution, make_norm, multiply, triple

ONE: Triple = (1, 1, 1)
Stride = int | Sequence[int]
BLOCKS = {
    10: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}
STEMS = ("plain", "v1c")


class ShortcutA(nn.Module):
    """Parameter-free shortcut: subsample, then append zero channels.

    MedicalNet and the first Kinetics networks read their input through `.data`, so no gradient passes
    (`detach=True` repeats that; the output is the same).
    """

    def __init__(self, out_channels: int, stride: Triple, *, detach: bool) -> None:
        super().__init__()
        self.out_channels, self.stride, self.detach = out_channels, stride, detach

    def forward(self, x: Tensor) -> Tensor:
        d, h, w = self.stride
        x = x.detach() if self.detach else x
        return F.pad(x[:, :, ::d, ::h, ::w], (0, 0, 0, 0, 0, 0, 0, self.out_channels - x.shape[1]))


class Block(nn.Module):
    """What both residual blocks share: out = ReLU(residual(x) + shortcut(x))."""

    expansion = 1
    downsample: nn.Module | None
    relu: nn.ReLU

    def residual(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        return self.relu(self.residual(x) + identity)


class BasicBlock(Block):
    """3x3x3 (strided) and 3x3x3."""

    def __init__(
        self,
        channels_in: int,
        planes: int,
        *,
        stride: Triple,
        dilation: Triple,
        norm: str,
        convolution: str,
        downsample: nn.Module | None,
    ) -> None:
        super().__init__()
        self.conv1 = make_convolution(convolution, channels_in, planes, 3, stride=stride, dilation=dilation)
        self.bn1 = make_norm(norm, planes)
        self.conv2 = make_convolution(convolution, planes, planes, 3, stride=ONE, dilation=dilation)
        self.bn2 = make_norm(norm, planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    @property
    def last_norm(self) -> nn.Module:
        return self.bn2

    def residual(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))


class Bottleneck(Block):
    """1x1x1, 3x3x3 (strided), 1x1x1 to four times the planes."""

    expansion = 4

    def __init__(
        self,
        channels_in: int,
        planes: int,
        *,
        stride: Triple,
        dilation: Triple,
        norm: str,
        convolution: str,
        downsample: nn.Module | None,
    ) -> None:
        super().__init__()
        self.conv1 = make_convolution(convolution, channels_in, planes, 1, stride=ONE, dilation=ONE)
        self.bn1 = make_norm(norm, planes)
        self.conv2 = make_convolution(convolution, planes, planes, 3, stride=stride, dilation=dilation)
        self.bn2 = make_norm(norm, planes)
        self.conv3 = make_convolution(convolution, planes, planes * self.expansion, 1, stride=ONE, dilation=ONE)
        self.bn3 = make_norm(norm, planes * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    @property
    def last_norm(self) -> nn.Module:
        return self.bn3

    def residual(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.bn3(self.conv3(x))


class ResNet3D(Backbone):
    """A 3D residual network.

    Args:
        depth: 10, 18, 34 (basic blocks) or 50, 101, 152, 200 (bottlenecks).
        in_channels: channels of the input; 1 for CT, MR and pseudo-3D images.
        num_classes: outputs of `fc`; 0 = no head.
        width: stem channels; the stages have 1, 2, 4, 8 times as many (times 4 with bottlenecks).
        stem: "plain" (one 7x7 convolution, `stem_depth` deep) | "v1c" (three 3x3x3 convolutions, paper IV-C).
        stem_depth: depth of the plain stem's kernel, 7, or 3 as torchvision's r3d has it; "acs" needs 7.
        convolution: "3d" | "acs": 2D kernels, each of a third of the output channels in one of the three planes.
        stem_stride, pool_stride, strides: an integer or (D, H, W) each; `strides` has four of them.
        depth_stride: what an integer stride or dilation means in depth: 1 = depth is kept (pre-training,
            paper III-B), 2 = depth is treated like H and W (transfer to volumes, paper III-C).
        stem_pool: False leaves the max-pool out.
        dilations: an integer or (D, H, W) for each stage.
        output_stride: None, or 4, 8, 16, 32: stages beyond this stride (in H and W) get stride 1 and dilation instead.
        norm: "batch" | "group" (gcd(32, C) groups) | "instance" | "sync".
        shortcut: "B" (1x1x1 convolution and norm) | "A" (no parameters).
        detach_shortcut: no gradient through shortcut A, as MedicalNet was trained.
        downsample_bias: a bias in the convolution of shortcut B (FMCIB).
        init: "official" (PyTorch's default, last norm of each block zero) | "kaiming" (fan-out, last norm one).
        features_only: no head; `forward` returns the pyramid.

    Raises:
        OptionError: a value that is not allowed, with what is.
    """

    weight_options = ("depth", "width", "stem", "stem_depth", "convolution", "norm", "shortcut", "downsample_bias")

    def __init__(
        self,
        *,
        depth: int = 18,
        in_channels: int = 1,
        num_classes: int = 0,
        width: int = 64,
        stem: str = "plain",
        stem_depth: int = 7,
        stem_stride: Stride = 2,
        stem_pool: bool = True,
        pool_stride: Stride = 2,
        strides: Sequence[Stride] = (1, 2, 2, 2),
        dilations: Sequence[Stride] = (1, 1, 1, 1),
        depth_stride: int = 1,
        output_stride: int | None = None,
        convolution: str = "3d",
        norm: str = "batch",
        shortcut: str = "B",
        detach_shortcut: bool = False,
        downsample_bias: bool = False,
        init: str = "official",
        features_only: bool = False,
    ) -> None:
        super().__init__(in_channels=in_channels, num_classes=num_classes, features_only=features_only)
        check_choice("depth", depth, BLOCKS)
        check_choice("stem", stem, STEMS)
        check_choice("stem_depth", stem_depth, (7, 3) if convolution == "3d" else (7,))
        check_choice("shortcut", shortcut, ("A", "B"))
        check_choice("depth_stride", depth_stride, (1, 2))
        check_choice("init", init, ("official", "kaiming"))
        for option, value in (("strides", strides), ("dilations", dilations)):
            if not isinstance(value, Sequence) or len(value) != 4:
                raise OptionError(f"{option}={value!r} is not allowed; allowed: four of them, one per stage")
        if output_stride is not None and any(d != 1 for d in dilations):
            raise OptionError(
                f"output_stride={output_stride} and dilations={dilations!r} exclude each other; allowed: one"
            )
        if not isinstance(width, int) or width < 2 or width % 2:
            raise OptionError(f"width={width} is not allowed; allowed: an even number of stem channels, 2 or more")
        pool = triple(pool_stride, depth_stride, option="pool_stride")
        stem_step = triple(stem_stride, depth_stride, option="stem_stride")
        steps = [triple(s, depth_stride, option="strides") for s in strides]
        holes = [triple(d, depth_stride, option="dilations") for d in dilations]
        reached = multiply(stem_step, pool) if stem_pool else stem_step
        if output_stride is not None:
            steps, holes = dilate_instead(reached, steps, output_stride, depth_stride)

        self._norm, self._shortcut, self._convolution = norm, shortcut, convolution
        self._detach, self._downsample_bias = detach_shortcut, downsample_bias
        self._make_stem(stem, in_channels, width, stem_step, stem_depth)
        self.maxpool: nn.Module = nn.MaxPool3d(3, stride=pool, padding=1) if stem_pool else nn.Identity()
        info = [Feature("stem", width, stem_step)]
        block: type[BasicBlock | Bottleneck] = BasicBlock if depth < 50 else Bottleneck
        channels = width
        for index, count in enumerate(BLOCKS[depth]):
            planes = width * 2**index
            stage = self._make_stage(block, channels, planes, count, steps[index], holes[index])
            self.add_module(f"layer{index + 1}", stage)
            channels = planes * block.expansion
            reached = multiply(reached, steps[index])
            info.append(Feature(f"layer{index + 1}", channels, reached))
        self.feature_info = tuple(info)
        self.add_head(channels)
        self._initialise(init)

    def _make_stem(self, stem: str, channels_in: int, width: int, stride: Triple, stem_depth: int) -> None:
        if stem == "v1c":
            half = width // 2
            plan = ((channels_in, half, stride), (half, half, ONE), (half, width, ONE))
            self.stem = nn.Sequential()
            for index, (a, b, step) in enumerate(plan):
                part = nn.Sequential()
                part.add_module("conv", make_convolution(self._convolution, a, b, 3, stride=step, dilation=ONE))
                part.add_module("bn", make_norm(self._norm, b))
                part.add_module("relu", nn.ReLU(inplace=True))
                self.stem.add_module(str(index), part)
            return
        if stem_depth == 7:
            self.conv1: nn.Module = make_convolution(
                self._convolution, channels_in, width, 7, stride=stride, dilation=ONE
            )
        else:
            kernel, padding = (stem_depth, 7, 7), (stem_depth // 2, 3, 3)
            self.conv1 = nn.Conv3d(channels_in, width, kernel, stride=stride, padding=padding, bias=False)
        self.bn1 = make_norm(self._norm, width)
        self.relu = nn.ReLU(inplace=True)

    def _make_stage(
        self,
        block: type[BasicBlock | Bottleneck],
        channels_in: int,
        planes: int,
        count: int,
        stride: Triple,
        dilation: Triple,
    ) -> nn.Sequential:
        out = planes * block.expansion
        downsample: nn.Module | None = None
        if channels_in != out or stride != ONE:
            downsample = self._make_shortcut(channels_in, out, stride)
        make = functools.partial(block, dilation=dilation, norm=self._norm, convolution=self._convolution)
        blocks = [make(channels_in, planes, stride=stride, downsample=downsample)]
        blocks += [make(out, planes, stride=ONE, downsample=None) for _ in range(1, count)]
        return nn.Sequential(*blocks)

    def _make_shortcut(self, channels_in: int, out: int, stride: Triple) -> nn.Module:
        if self._shortcut == "A":
            return ShortcutA(out, stride, detach=self._detach)
        bias = self._downsample_bias
        conv = make_convolution(self._convolution, channels_in, out, 1, stride=stride, dilation=ONE, bias=bias)
        return nn.Sequential(conv, make_norm(self._norm, out))

    def _initialise(self, init: str) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv3d | ACSConv) and init == "kaiming":
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, BasicBlock | Bottleneck) and init == "official":
                nn.init.zeros_(module.last_norm.weight)  # type: ignore[arg-type]

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """Return {"stem", "layer1", ..., "layer4"} of x (N, C, D, H, W); `stem` is before the max-pool."""
        self.check_input(x)
        stem = self.stem(x) if hasattr(self, "stem") else self.relu(self.bn1(self.conv1(x)))
        maps = {"stem": stem}
        x = self.maxpool(stem)
        for name in ("layer1", "layer2", "layer3", "layer4"):
            x = self.get_submodule(name)(x)
            maps[name] = x
        return maps


def dilate_instead(
    reached: Triple, strides: Sequence[Triple], output_stride: int, depth_stride: int
) -> tuple[list[Triple], list[Triple]]:
    """Return strides and dilations that hold the in-plane stride at `output_stride`.

    A stage that would go beyond keeps stride 1 in H and W and multiplies the dilation of all its blocks (MedicalNet's
    layer3: 2, layer4: 4). Depth follows H and W with `depth_stride=2`; with 1 its strides stay and it is not dilated.
    """
    check_choice("output_stride", output_stride, (4, 8, 16, 32))
    if reached[1] > output_stride:
        raise OptionError(
            f"output_stride={output_stride} is below the stem's stride {reached[1]}; "
            f"allowed: {reached[1]} or more, or a smaller stem_stride, or stem_pool=False"
        )
    plane, hole = reached[1], 1
    steps: list[Triple] = []
    holes: list[Triple] = []
    for step in strides:
        if step[1] != step[2]:
            raise OptionError(f"output_stride with a stage stride of {step} is not allowed; allowed: H and W alike")
        if plane * step[1] <= output_stride:
            plane *= step[1]
            steps.append(step)
        else:
            hole *= step[1]
            steps.append((1 if depth_stride == 2 else step[0], 1, 1))
        holes.append(triple(hole, depth_stride))
    return steps, holes
