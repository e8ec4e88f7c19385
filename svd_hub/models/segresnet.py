"""MONAI's three SegResNets as backbones: the encoder alone and the segmenter of CT-FM, and the segmenter of SuPreM.

Sources: project-lighter/CT-FM@f58c89a experiments/fm/backbones/segresenc.yaml and
evaluation/baselines/segresnetds_ctfm.yaml; MrGiovanni/SuPreM@76e1a64 supervised_pretraining/train.py. The layers are
MONAI's own (`pip install "svd-hub[volume]"`), imported when a network is built.
Names of parameters: CT-FM's nets have `encoder.conv_init`, `encoder.layers.{level}.blocks.{i}.norm1`, ...,
`up_layers.{i}.upsample`, `up_layers.{i}.blocks`, and `heads.{level}` (upstream's `up_layers.{i}.head`, counted from
the deep end; 0 is the full resolution). SuPreM's has MONAI's: `convInit`, `down_layers`, `up_samples`, `up_layers`,
`conv_final`.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import MissingExtraError, OptionError, check_choice
from .layers import NORMS, Backbone, Feature
from .unet import UNet


def monai_nets(module: str) -> Any:
    """Return a module of `monai.networks.nets`.

    Raises:
        MissingExtraError: MONAI is not installed.
    """
    try:
        with torch.device("cpu"):  # whatever MONAI creates on import must not become a meta tensor
            return importlib.import_module(f"monai.networks.nets.{module}")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "monai":
            raise
        raise MissingExtraError("monai", "volume") from error


def monai_norm(norm: str, init_filters: int) -> Any:
    """Return a norm as MONAI names it; groups are 8, as MONAI has them, or fewer where 8 do not divide the channels."""
    check_choice("norm", norm, NORMS)
    groups = math.gcd(8, init_filters)
    return {
        "batch": ("batch", {"affine": True}),
        "group": ("group", {"num_groups": groups}),
        "instance": ("instance", {"affine": True}),
        "sync": ("syncbatch", {"affine": True}),
    }[norm]


def check_blocks(blocks_down: Sequence[int], *, least: int) -> tuple[int, ...]:
    """Return the blocks per level as a tuple of `least` positive integers or more, or raise `OptionError`."""
    if not positive(blocks_down) or len(blocks_down) < least:
        raise OptionError(
            f"blocks_down={blocks_down!r} is not allowed; allowed: {least} positive integers or more, one per level"
        )
    return tuple(blocks_down)


def check_blocks_up(blocks_up: Sequence[int] | None, ups: int) -> tuple[int, ...]:
    """Return the blocks per level of the decoder as a tuple of `ups` positive integers, or raise `OptionError`."""
    if blocks_up is None:
        return (1,) * ups
    if not positive(blocks_up) or len(blocks_up) != ups:
        raise OptionError(
            f"blocks_up={blocks_up!r} is not allowed; allowed: {ups} positive integers, one less than blocks_down has"
        )
    return tuple(blocks_up)


def positive(numbers: Sequence[int]) -> bool:
    """Return whether these are positive integers."""
    return isinstance(numbers, list | tuple) and all(isinstance(n, int) and n >= 1 for n in numbers)


def check_filters(init_filters: int) -> None:
    """Raise `OptionError` unless `init_filters` is a positive integer."""
    if not isinstance(init_filters, int) or init_filters < 1:
        raise OptionError(f"init_filters={init_filters!r} is not allowed; allowed: a positive integer")


def pyramid(init_filters: int, levels: int) -> tuple[Feature, ...]:
    """Return level0, level1, ...: channels and strides double from level to level."""
    return tuple(Feature(f"level{i}", init_filters * 2**i, (2**i, 2**i, 2**i)) for i in range(levels))


class SegResEncoder(Backbone):
    """CT-FM's feature extractor: residual blocks with pre-activation, halved by strided convolutions.

    Args:
        in_channels: channels of the input; 1 for CT.
        num_classes: outputs of `fc` on the pooled deepest level (CT-FM: 512 channels); 0 = no head.
        init_filters: channels of `level0`; every further level has twice as many.
        blocks_down: residual blocks per level.
        norm: "batch" | "group" (8 groups) | "instance" | "sync".
        features_only: no head; `forward` returns the pyramid `level0`, `level1`, ..., strides 1, 2, 4, ...

    Raises:
        OptionError: a value that is not allowed, with what is.
        MissingExtraError: MONAI is not installed.
    """

    weight_options = ("init_filters", "blocks_down", "norm")

    def __init__(
        self,
        *,
        in_channels: int = 1,
        num_classes: int = 0,
        init_filters: int = 32,
        blocks_down: Sequence[int] = (1, 2, 2, 4, 4),
        norm: str = "batch",
        features_only: bool = False,
    ) -> None:
        super().__init__(in_channels=in_channels, num_classes=num_classes, features_only=features_only)
        check_filters(init_filters)
        self.encoder = monai_nets("segresnet_ds").SegResEncoder(
            in_channels=in_channels,
            init_filters=init_filters,
            blocks_down=check_blocks(blocks_down, least=1),
            norm=monai_norm(norm, init_filters),
        )
        self.feature_info = pyramid(init_filters, len(blocks_down))
        self.add_head(self.feature_info[-1].channels)

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """Return {"level0", "level1", ...} of x (N, C, D, H, W), of any size.

        Raises:
            OptionError: the shape does not fit.
        """
        self.check_input(x)
        return dict(zip((level.name for level in self.feature_info), self.encoder(x), strict=True))


class SegResNetDS(UNet):
    """CT-FM's segmenter: `SegResEncoder`, transposed convolutions, and a head at each of the finest `dsdepth` levels.

    Only the head of the full resolution is used unless `deep_supervision` is set and the network trains.

    Args:
        in_channels: channels of the input; 1 for CT.
        num_classes: channels of the map of logits; 0 = no heads.
        init_filters: channels of `level0`; every further level has twice as many.
        blocks_down: residual blocks per level.
        blocks_up: residual blocks per level of the decoder, deep to shallow; None = one each.
        dsdepth: how many levels have a head, level0 first (CT-FM: 4).
        deep_supervision: in training, `forward` returns the maps of all heads, {"level0": (N, num_classes, D, H, W),
            "level1": half that size, ...}.
        norm: "batch" | "group" (8 groups) | "instance" | "sync".
        keep_decoder: without classes, keep the decoder: `forward` returns its features (N, init_filters, D, H, W).
        features_only: no decoder; `forward` returns the pyramid `level0`, `level1`, ..., strides 1, 2, 4, ...

    Where there is a decoder, sides must be divisible by the deepest stride (CT-FM: 16).

    Raises:
        OptionError: a value that is not allowed, with what is.
        MissingExtraError: MONAI is not installed.
    """

    weight_options = ("init_filters", "blocks_down", "blocks_up", "dsdepth", "norm")
    head = "heads."
    decoder = ("up_layers.",)

    def __init__(
        self,
        *,
        in_channels: int = 1,
        num_classes: int = 2,
        init_filters: int = 32,
        blocks_down: Sequence[int] = (1, 2, 2, 4, 4),
        blocks_up: Sequence[int] | None = None,
        dsdepth: int = 1,
        deep_supervision: bool = False,
        norm: str = "batch",
        keep_decoder: bool = False,
        features_only: bool = False,
    ) -> None:
        super().__init__(
            in_channels=in_channels, num_classes=num_classes, keep_decoder=keep_decoder, features_only=features_only
        )
        check_filters(init_filters)
        down = check_blocks(blocks_down, least=2)
        check_choice("dsdepth", dsdepth, range(1, len(down)))
        net = monai_nets("segresnet_ds").SegResNetDS(
            in_channels=in_channels,
            out_channels=num_classes or 1,
            init_filters=init_filters,
            blocks_down=down,
            blocks_up=check_blocks_up(blocks_up, len(down) - 1),
            dsdepth=dsdepth,
            norm=monai_norm(norm, init_filters),
        )
        self.deep_supervision = deep_supervision
        self.feature_info = pyramid(init_filters, len(down))
        self.encoder: nn.Module = net.encoder
        if not self.has_decoder:
            return
        heads = [level.pop("head") for level in net.up_layers][::-1]  # MONAI has an Identity where there is none
        self.up_layers: nn.ModuleList = net.up_layers
        if num_classes:
            self.heads = nn.ModuleList(heads[:dsdepth])

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """Return {"level0", "level1", ...} of x (N, C, D, H, W).

        Raises:
            OptionError: the shape does not fit.
        """
        self.check_input(x)
        return dict(zip((level.name for level in self.feature_info), self.encoder(x), strict=True))

    def decode_levels(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the decoder's features at every level but the deepest, deep to shallow."""
        *skips, deepest = (level.name for level in self.feature_info)
        x, found = maps[deepest], {}
        for name, part in zip(reversed(skips), self.up_layers, strict=True):
            x = part.get_submodule("blocks")(part.get_submodule("upsample")(x) + maps[name])
            found[name] = x
        return found

    def decode(self, maps: dict[str, Tensor]) -> Tensor:
        """Return the decoder's features (N, init_filters, D, H, W)."""
        return self.decode_levels(maps)["level0"]

    def classify(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes, D, H, W)."""
        return self.heads[0](x)

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        """See the class, and `UNet`."""
        if not (self.deep_supervision and self.training and self.has_decoder and self.num_classes):
            return super().forward(x)
        levels = self.decode_levels(self.features(x))
        return {f"level{index}": head(levels[f"level{index}"]) for index, head in enumerate(self.heads)}


class SegResNet(UNet):
    """SuPreM's segmenter: as `SegResNetDS` with trilinear upsampling, GroupNorm and one head.

    Args:
        in_channels: channels of the input; 1 for CT.
        num_classes: channels of the map of logits; 0 = no final convolution.
        init_filters: channels of `level0`; every further level has twice as many.
        blocks_down: residual blocks per level.
        blocks_up: residual blocks per level of the decoder, deep to shallow; None = one each.
        norm: "group" (8 groups) | "batch" | "instance" | "sync".
        keep_decoder: without classes, keep the decoder: `forward` returns its features (N, init_filters, D, H, W).
        features_only: no decoder; `forward` returns the pyramid `level0`, `level1`, ..., strides 1, 2, 4, ...

    Where there is a decoder, sides must be divisible by the deepest stride (SuPreM: 8).

    Raises:
        OptionError: a value that is not allowed, with what is.
        MissingExtraError: MONAI is not installed.
    """

    weight_options = ("init_filters", "blocks_down", "blocks_up", "norm")
    head = "conv_final.2."
    decoder = ("up_layers.", "up_samples.", "conv_final.")

    def __init__(
        self,
        *,
        in_channels: int = 1,
        num_classes: int = 2,
        init_filters: int = 16,
        blocks_down: Sequence[int] = (1, 2, 2, 4),
        blocks_up: Sequence[int] | None = None,
        norm: str = "group",
        keep_decoder: bool = False,
        features_only: bool = False,
    ) -> None:
        super().__init__(
            in_channels=in_channels, num_classes=num_classes, keep_decoder=keep_decoder, features_only=features_only
        )
        check_filters(init_filters)
        down = check_blocks(blocks_down, least=2)
        net = monai_nets("segresnet").SegResNet(
            in_channels=in_channels,
            out_channels=num_classes or 1,
            init_filters=init_filters,
            blocks_down=down,
            blocks_up=check_blocks_up(blocks_up, len(down) - 1),
            norm=monai_norm(norm, init_filters),
        )
        self.feature_info = pyramid(init_filters, len(down))
        self.convInit: nn.Module = net.convInit
        self.down_layers: nn.ModuleList = net.down_layers
        if self.has_decoder:
            self.up_layers: nn.ModuleList = net.up_layers
            self.up_samples: nn.ModuleList = net.up_samples
            self.conv_final: nn.Sequential = net.conv_final if num_classes else net.conv_final[:2]

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """Return {"level0", "level1", ...} of x (N, C, D, H, W).

        Raises:
            OptionError: the shape does not fit.
        """
        self.check_input(x)
        x, maps = self.convInit(x), {}
        for level, part in zip(self.feature_info, self.down_layers, strict=True):
            x = part(x)
            maps[level.name] = x
        return maps

    def decode(self, maps: dict[str, Tensor]) -> Tensor:
        """Return the decoder's features (N, init_filters, D, H, W), normalised and rectified."""
        *skips, deepest = (maps[level.name] for level in self.feature_info)
        for sample, blocks, skip in zip(self.up_samples, self.up_layers, reversed(skips), strict=True):
            deepest = blocks(sample(deepest) + skip)
        return self.conv_final[1](self.conv_final[0](deepest))

    def classify(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes, D, H, W)."""
        return self.conv_final[2](x)
