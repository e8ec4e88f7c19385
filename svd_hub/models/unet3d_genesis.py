"""The U-Net of Models Genesis, which Semantic Genesis, TransVW and SuPreM share.

Sources: MrGiovanni/ModelsGenesis@12f7feb pytorch/unet3d.py; fhaghighi/SemanticGenesis@bed8d90 and
fhaghighi/TransVW@bd4f3e3 pytorch/models/ynet3d.py (the same, and a classifier beside it); MrGiovanni/SuPreM@76e1a64
supervised_pretraining/backbone/unet.py (the same without its final convolution).
Names of parameters are upstream's: `down_tr64.ops.0.conv1`, `.bn1`, ..., `up_tr256.up_conv`, `up_tr256.ops.0.conv1`,
..., `out_tr.final_conv`; the numbers are channels at width 32.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import OptionError, check_choice
from .layers import Feature
from .unet import UNet

DOWN = ("down_tr64", "down_tr128", "down_tr256", "down_tr512")
UP = ("up_tr256", "up_tr128", "up_tr64")


class BatchStatistics3d(nn.BatchNorm3d):
    """A `BatchNorm3d` that in evaluation, too, normalises by the mean and variance of what it is given.

    Upstream does so and goes on changing its running statistics; here evaluation leaves them alone. The output is
    the same, because nothing reads them.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return super().forward(x)
        # not F.batch_norm, which asks for the size in Python: a trace would warn and remember it
        return torch.batch_norm(
            x, self.weight, self.bias, None, None, True, 0.0, self.eps, torch.backends.cudnn.enabled
        )


class Up(nn.Module):
    """Double the size, append the level of the same size, two convolutions."""

    def __init__(self, channels_in: int, channels_skip: int, *, batch_statistics: bool) -> None:
        super().__init__()
        self.up_conv = nn.ConvTranspose3d(channels_in, channels_in, 2, stride=2)
        self.ops = pair(channels_in + channels_skip, channels_skip, channels_skip, batch_statistics=batch_statistics)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.ops(torch.cat((self.up_conv(x), skip), 1))


def pair(channels_in: int, middle: int, channels: int, *, batch_statistics: bool) -> nn.Sequential:
    """Return two times 3x3x3 convolution with bias, norm and ReLU."""
    norm = BatchStatistics3d if batch_statistics else nn.BatchNorm3d
    units = []
    for first, last in ((channels_in, middle), (middle, channels)):
        parts = {"conv1": nn.Conv3d(first, last, 3, padding=1), "bn1": norm(last), "relu": nn.ReLU(inplace=True)}
        units.append(nn.Sequential(OrderedDict(parts)))
    return nn.Sequential(*units)


class GenesisUNet3D(UNet):
    """A U-Net of four levels: pairs of 3x3x3 convolutions, max-pools and transposed convolutions of 2, concatenation.

    With `batch_statistics`, as all of its weights were trained and published, results depend on the whole input: an
    image gives other values beside other images, and a crop gives others than the whole. The smaller the crop, the
    more. Running statistics are kept in training but may not describe the data.

    Args:
        in_channels: channels of the input; 1 for CT and MR.
        num_classes: channels of the map (1 as Models Genesis restores an image); 0 = no final convolution.
        width: channels of the first convolution; the levels have 2, 4, 8, 16 times as many.
        batch_statistics: True = norms use the statistics of their input, in evaluation too; False = running ones.
        final_activation: "sigmoid" (upstream's) | "none" (logits).
        image_classes: the classes are the whole image's: `fc` on the pooled deepest level, and no decoder.
        keep_decoder: without classes, keep the decoder: `forward` returns its features (N, 2 * width, D, H, W).
        features_only: no decoder; `forward` returns the pyramid `level0` ... `level3`, strides 1, 2, 4, 8.

    Sides must be divisible by 8 where there is a decoder, and 8 or more elsewhere.

    Raises:
        OptionError: a value that is not allowed, with what is.
    """

    weight_options = ("width",)
    head = ("out_tr.", "fc.")
    new_head_options: ClassVar[dict[str, Any]] = {"final_activation": "none"}  # losses want logits
    decoder = tuple(f"{name}." for name in UP)

    def __init__(
        self,
        *,
        in_channels: int = 1,
        num_classes: int = 1,
        width: int = 32,
        batch_statistics: bool = True,
        final_activation: str = "sigmoid",
        image_classes: bool = False,
        keep_decoder: bool = False,
        features_only: bool = False,
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            num_classes=num_classes,
            keep_decoder=keep_decoder,
            features_only=features_only,
            image_classes=image_classes,
        )
        check_choice("final_activation", final_activation, ("sigmoid", "none"))
        check_choice("batch_statistics", batch_statistics, (True, False))
        if not isinstance(width, int) or width < 1:
            raise OptionError(f"width={width} is not allowed; allowed: 1 or more channels (32 is upstream's)")
        self.batch_statistics = batch_statistics
        self.maxpool = nn.MaxPool3d(2)
        info: list[Feature] = []
        reads = in_channels
        for index, name in enumerate(DOWN):
            middle, channels, step = width * 2**index, width * 2 ** (index + 1), 2**index
            ops = pair(reads, middle, channels, batch_statistics=batch_statistics)
            self.add_module(name, nn.Sequential(OrderedDict(ops=ops)))
            info.append(Feature(f"level{index}", channels, (step, step, step)))
            reads = channels
        self.feature_info = tuple(info)
        if image_classes:
            self.add_head(reads)
        if not self.has_decoder:
            return
        for name, level in zip(UP, reversed(info[:-1]), strict=True):
            self.add_module(name, Up(2 * level.channels, level.channels, batch_statistics=batch_statistics))
        if num_classes:
            last = nn.Sigmoid() if final_activation == "sigmoid" else nn.Identity()
            final = nn.Conv3d(2 * width, num_classes, 1)
            self.out_tr = nn.Sequential(OrderedDict(final_conv=final, activation=last))

    def check_input(self, x: Tensor) -> None:
        """Raise `OptionError` unless every pool and every norm can work with x (N, in_channels, D, H, W)."""
        super().check_input(x)
        if torch.jit.is_tracing():
            return
        step, sides = self.feature_info[-1].stride, tuple(x.shape[2:])
        deepest = [side // s for side, s in zip(sides, step, strict=True)]
        if min(deepest) < 1:
            raise OptionError(f"input of size {sides} is not allowed; allowed: D, H, W of {step} or more. Next: pad it")
        if (self.batch_statistics or self.training) and x.shape[0] * math.prod(deepest) < 2:
            raise OptionError(
                f"input of shape {tuple(x.shape)} is not allowed: the deepest level would have one value per channel, "
                "which has no variance; allowed: two or more. Next: a larger crop, more images, or, in evaluation, "
                "batch_statistics=False"
            )

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """Return {"level0", ..., "level3"} of x (N, C, D, H, W), each before its pool; `feature_info` has the strides.

        Raises:
            OptionError: the shape does not fit.
        """
        self.check_input(x)
        maps: dict[str, Tensor] = {}
        for index, name in enumerate(DOWN):
            x = self.get_submodule(name)(self.maxpool(x) if index else x)
            maps[f"level{index}"] = x
        return maps

    def decode(self, maps: dict[str, Tensor]) -> Tensor:
        """Return the decoder's features (N, 2 * width, D, H, W)."""
        *skips, deepest = (maps[level.name] for level in self.feature_info)
        for name, skip in zip(UP, reversed(skips), strict=True):
            deepest = self.get_submodule(name)(deepest, skip)
        return deepest

    def classify(self, x: Tensor) -> Tensor:
        """Return the map (N, num_classes, D, H, W): probabilities, or logits with `final_activation="none"`."""
        return self.out_tr(x)
