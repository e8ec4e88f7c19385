"""P3D-63, P3D-18ba and P3D-34ba, each as P3D or MP3D: a 3x3x3 convolution taken apart into S = 1x3x3 and T = 3x1x1.

Sources: SVD-Net paper, section IV-B (lesion detection); urmagicsmine/MP3D@08e5ace mmdet/models/backbones/p3d.py and
modified_p3d.py (blocks, stem, pools, initialisation).
Names of parameters: `conv1`, `norm1` (stem), `layer1.0.conv1` ... `conv4`, `norm1` ... `norm4`, `downsample.0`, `fc`.
No parameter depends on `form` or `depth_stride`: weights fit every spatial form of one variant.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import OptionError, check_choice
from .layers import Backbone, Feature, Triple, make_norm, multiply

BLOCKS = {"63": (3, 4, 6, 3), "18ba": (2, 2, 2, 2), "34ba": (3, 4, 6, 3)}
LETTERS = "ABC"
UNIT: Triple = (1, 1, 1)


def conv_s(channels_in: int, channels: int, stride: Triple = UNIT) -> nn.Conv3d:
    """Return S, the convolution within slices."""
    return nn.Conv3d(channels_in, channels, (1, 3, 3), stride=stride, padding=(0, 1, 1), bias=False)


def conv_t(channels_in: int, channels: int, stride: Triple = UNIT) -> nn.Conv3d:
    """Return T, the convolution across slices."""
    return nn.Conv3d(channels_in, channels, (3, 1, 1), stride=stride, padding=(1, 0, 0), bias=False)


class Block(nn.Module):
    """What both residual blocks share: out = ReLU(residual(x) + shortcut(x)), and how S meets T.

    Attributes:
        letter: "A" T after S; "B" S and T side by side; "C" T after S, with S added to it.
    """

    expansion = 1

    def __init__(self, letter: str, downsample: nn.Module | None) -> None:
        super().__init__()
        self.letter = letter
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def pair(self, x: Tensor, s: nn.Module, s_norm: nn.Module, t: nn.Module, t_norm: nn.Module) -> Tensor:
        """Return S and T of x, each with norm and ReLU, combined by the letter."""
        y = self.relu(s_norm(s(x)))
        z = self.relu(t_norm(t(x if self.letter == "B" else y)))
        return z if self.letter == "A" else y + z

    def residual(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        return self.relu(self.residual(x) + identity)


class BasicBlock(Block):
    """Two pairs of S and T; the first has the stride. The sum of a pair is rectified before the shortcut is added."""

    def __init__(
        self, channels_in: int, planes: int, *, letter: str, stride: Triple, norm: str, downsample: nn.Module | None
    ) -> None:
        super().__init__(letter, downsample)
        beside = letter == "B"  # T then reads the block's input, as S does
        self.conv1 = conv_s(channels_in, planes, stride)
        self.norm1 = make_norm(norm, planes)
        self.conv2 = conv_t(channels_in if beside else planes, planes, stride if beside else UNIT)
        self.norm2 = make_norm(norm, planes)
        self.conv3 = conv_s(planes, planes)
        self.norm3 = make_norm(norm, planes)
        self.conv4 = conv_t(planes, planes)
        self.norm4 = make_norm(norm, planes)

    def residual(self, x: Tensor) -> Tensor:
        x = self.pair(x, self.conv1, self.norm1, self.conv2, self.norm2)
        return self.pair(x, self.conv3, self.norm3, self.conv4, self.norm4)


class Bottleneck(Block):
    """1x1x1 (strided, as in Caffe), one pair of S and T, 1x1x1 to four times the planes."""

    expansion = 4

    def __init__(
        self, channels_in: int, planes: int, *, letter: str, stride: Triple, norm: str, downsample: nn.Module | None
    ) -> None:
        super().__init__(letter, downsample)
        self.conv1 = nn.Conv3d(channels_in, planes, 1, stride=stride, bias=False)
        self.norm1 = make_norm(norm, planes)
        self.conv2 = conv_s(planes, planes)
        self.norm2 = make_norm(norm, planes)
        self.conv3 = conv_t(planes, planes)
        self.norm3 = make_norm(norm, planes)
        self.conv4 = nn.Conv3d(planes, planes * self.expansion, 1, bias=False)
        self.norm4 = make_norm(norm, planes * self.expansion)

    def residual(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm1(self.conv1(x)))
        x = self.pair(x, self.conv2, self.norm2, self.conv3, self.norm3)
        return self.norm4(self.conv4(x))


class P3D(Backbone):
    """A pseudo-3D residual network; the letters A, B, C of its blocks run on through all stages.

    The two forms that were trained: MP3D on images of depth 3 (`form="mp3d", depth_stride=1`, the default) and the
    detector of nine slices (`form="p3d", depth_stride=2`), whose stem, layer1 ... layer4 have depth 9, 9, 5, 3, 1.

    Args:
        variant: "63" (bottlenecks) | "18ba" | "34ba" (basic blocks).
        form: "mp3d" | "p3d": the stem's max-pool is 3x3x3 or 1x3x3. Neither strides in depth.
        in_channels: channels of the input; 1 for CT, MR and pseudo-3D images.
        num_classes: outputs of `fc`; 0 = no head.
        width: stem channels; the stages have 1, 2, 4, 8 times as many (times 4 with bottlenecks).
        depth_stride: 1 = depth is kept, any depth is allowed; 2 = max-pools over depth, `zpool1` ... `zpool3`, follow
            layer1, layer2 (stride 2) and layer3 (three slices become one); the depth must then end as 1 slice.
        norm: "group" (gcd(32, C) groups) | "batch" | "instance" | "sync".
        init: "official" (Xavier uniform) | "kaiming" (fan-out); norms start as 1 and 0.
        features_only: no head; `forward` returns the pyramid.

    Raises:
        OptionError: a value that is not allowed, with what is.
    """

    weight_options = ("variant", "width", "norm")

    def __init__(
        self,
        *,
        variant: str = "63",
        form: str = "mp3d",
        in_channels: int = 1,
        num_classes: int = 0,
        width: int = 64,
        depth_stride: int = 1,
        norm: str = "group",
        init: str = "official",
        features_only: bool = False,
    ) -> None:
        super().__init__(in_channels=in_channels, num_classes=num_classes, features_only=features_only)
        check_choice("variant", variant, BLOCKS)
        check_choice("form", form, ("mp3d", "p3d"))
        check_choice("depth_stride", depth_stride, (1, 2))
        check_choice("init", init, ("official", "kaiming"))
        if not isinstance(width, int) or width < 1:
            raise OptionError(f"width={width} is not allowed; allowed: 1 or more stem channels (64 is the paper's)")
        self._norm = norm
        self.conv1 = nn.Conv3d(in_channels, width, (1, 7, 7), stride=(1, 2, 2), padding=(0, 3, 3), bias=False)
        self.norm1 = make_norm(norm, width)
        self.relu = nn.ReLU(inplace=True)
        k = 3 if form == "mp3d" else 1
        self.maxpool = nn.MaxPool3d((k, 3, 3), stride=(1, 2, 2), padding=(k // 2, 1, 1))
        info = [Feature("stem", width, (1, 2, 2))]
        block: type[BasicBlock | Bottleneck] = Bottleneck if variant == "63" else BasicBlock
        channels, first, reached = width, 0, (1, 4, 4)
        for index, count in enumerate(BLOCKS[variant]):
            stride = (1, 2, 2) if index else UNIT
            planes = width * 2**index
            letters = [LETTERS[n % 3] for n in range(first, first + count)]
            self.add_module(f"layer{index + 1}", self._make_stage(block, channels, planes, letters, stride))
            channels, first, reached = planes * block.expansion, first + count, multiply(reached, stride)
            info.append(Feature(f"layer{index + 1}", channels, reached))
            if index < 2:
                reached = (reached[0] * depth_stride, *reached[1:])
        self.feature_info = tuple(info)
        self._make_zpools(depth_stride)
        self.add_head(channels)
        self._initialise(init)

    def _make_stage(
        self, block: type[BasicBlock | Bottleneck], channels_in: int, planes: int, letters: list[str], stride: Triple
    ) -> nn.Sequential:
        out, downsample = planes * block.expansion, None
        if channels_in != out:
            conv = nn.Conv3d(channels_in, out, 1, stride=stride, bias=False)
            downsample = nn.Sequential(conv, make_norm(self._norm, out))
        head, *rest = letters
        blocks = [block(channels_in, planes, letter=head, stride=stride, norm=self._norm, downsample=downsample)]
        for letter in rest:
            blocks.append(block(out, planes, letter=letter, stride=UNIT, norm=self._norm, downsample=None))
        return nn.Sequential(*blocks)

    def _make_zpools(self, depth_stride: int) -> None:
        """Create zpool1 ... zpool3, which a detector applies to its levels too (they do nothing without stride)."""
        self.zpool1: nn.Module = nn.Identity()
        self.zpool2: nn.Module = nn.Identity()
        self.zpool3: nn.Module = nn.Identity()
        if depth_stride == 2:
            self.zpool1 = nn.MaxPool3d((3, 1, 1), stride=(2, 1, 1), padding=(1, 0, 0))
            self.zpool2 = nn.MaxPool3d((3, 1, 1), stride=(2, 1, 1), padding=(1, 0, 0))
            self.zpool3 = nn.MaxPool3d((3, 1, 1), stride=1, padding=0)

    def _initialise(self, init: str) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv3d) and init == "official":
                nn.init.xavier_uniform_(module.weight)
            elif isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def check_depth(self, depth: int) -> None:
        """Raise `OptionError` unless the z-pools turn `depth` into one slice (or, undone, leave it as it is).

        The pools are read, not the option: `preserve_depth` may have changed them.
        """
        left = depth
        for pool in (self.zpool1, self.zpool2, self.zpool3):
            left = pooled_depth(pool, left)
        if left not in (1, depth):
            raise OptionError(
                f"depth {depth} is not allowed with depth_stride=2: the z-pools would leave {max(left, 0)} slices "
                "at layer4 instead of 1; allowed: 9 (as trained) to 12 slices. Next: resample or crop to 9 slices, or "
                'use depth_stride=1 (any depth; form="mp3d" is what was trained on depth 3)'
            )

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """Return {"stem", "layer1", ..., "layer4"} of x (N, C, D, H, W); all are before their pools.

        `feature_info` has the strides. With `depth_stride=2` the un-padded zpool3 takes two more slices off layer4.

        Raises:
            OptionError: the shape does not fit, or `depth_stride=2` does not fit the depth.
        """
        self.check_input(x)
        if not torch.jit.is_tracing():  # a traced size is a tensor, which cannot steer Python
            self.check_depth(x.shape[2])
        maps = {"stem": self.relu(self.norm1(self.conv1(x)))}
        x = self.maxpool(maps["stem"])
        for index in (1, 2, 3, 4):
            x = self.get_submodule(f"layer{index}")(x)
            maps[f"layer{index}"] = x
            if index < 4:
                x = self.get_submodule(f"zpool{index}")(x)
        return maps


def pooled_depth(pool: nn.Module, depth: int) -> int:
    """Return the depth behind a max-pool (below 1 where it cannot run); any other module keeps it."""
    if not isinstance(pool, nn.MaxPool3d):
        return depth
    kernel, stride, padding = (v if isinstance(v, int) else v[0] for v in (pool.kernel_size, pool.stride, pool.padding))
    return (depth + 2 * padding - kernel) // stride + 1
