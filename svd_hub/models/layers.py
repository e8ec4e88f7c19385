"""Small parts that several networks share: triples of (D, H, W), norms, the named pyramid."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import OptionError, check_choice
from .acs import ACSConv

Triple = tuple[int, int, int]
NORMS = ("batch", "group", "instance", "sync")


def triple(value: int | Sequence[int], depth_stride: int = 2, *, option: str = "stride") -> Triple:
    """Return (D, H, W) for an integer or a triple.

    An integer `s` means (s, s, s) with `depth_stride=2` and (1, s, s) with `depth_stride=1`: the depth is
    then left alone (paper III-B). A triple is taken as it is.
    """
    try:
        given = (value if depth_stride == 2 else 1, value, value) if isinstance(value, int) else tuple(value)
        numbers = tuple(int(n) for n in given)
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != 3 or min(numbers) < 1:
        raise OptionError(f"{option}={value!r} is not allowed; allowed: one positive integer or three, (D, H, W)")
    return (numbers[0], numbers[1], numbers[2])


def make_norm(kind: str, channels: int) -> nn.Module:
    """Return the norm layer `kind` for `channels`; GroupNorm has gcd(32, channels) groups."""
    check_choice("norm", kind, NORMS)
    if kind == "batch":
        return nn.BatchNorm3d(channels)
    if kind == "sync":
        return nn.SyncBatchNorm(channels)
    if kind == "instance":
        return nn.InstanceNorm3d(channels, affine=True)
    return nn.GroupNorm(math.gcd(32, channels), channels)


@dataclass(frozen=True)
class Feature:
    """One level of a pyramid: its name, its channels, and its stride (D, H, W) against the input."""

    name: str
    channels: int
    stride: Triple


CONVOLUTIONS = ("3d", "acs")


def make_convolution(
    kind: str, channels_in: int, channels_out: int, kernel: int, *, stride: Triple, dilation: Triple, bias: bool = False
) -> nn.Conv3d | ACSConv:
    """Return a cubic convolution that keeps the size but for its stride: "3d", or "acs" with a 2D kernel."""
    check_choice("convolution", kind, CONVOLUTIONS)
    padding = (dilation[0] * (kernel // 2), dilation[1] * (kernel // 2), dilation[2] * (kernel // 2))
    make = nn.Conv3d if kind == "3d" else ACSConv
    return make(channels_in, channels_out, kernel, stride=stride, padding=padding, dilation=dilation, bias=bias)


def multiply(a: Triple, b: Triple) -> Triple:
    """Return the elementwise product of two triples."""
    return (a[0] * b[0], a[1] * b[1], a[2] * b[2])


class Backbone(nn.Module):
    """A network with a named pyramid and, if `num_classes` > 0, a linear head on its pooled deepest level.

    `forward` returns (N, num_classes) logits; (N, C) pooled features where `num_classes` is 0; and the whole
    pyramid, a dict of (N, C, D, H, W) tensors ordered shallow to deep, where `features_only` is set.
    """

    # Options that decide names or shapes of parameters, and so belong to a weight.
    weight_options: ClassVar[tuple[str, ...]] = ()
    # Prefixes of the tensors that another number of classes replaces, and of what is not there without classes beside.
    head: ClassVar[str | tuple[str, ...]] = "fc."
    # Options that a new head gets unless the user says otherwise: what belonged to the old one.
    new_head_options: ClassVar[Mapping[str, Any]] = {}
    decoder: ClassVar[tuple[str, ...]] = ()
    feature_info: tuple[Feature, ...]

    def __init__(self, *, in_channels: int, num_classes: int, features_only: bool) -> None:
        super().__init__()
        if not isinstance(in_channels, int) or not isinstance(num_classes, int) or in_channels < 1 or num_classes < 0:
            raise OptionError(
                f"in_channels={in_channels!r}, num_classes={num_classes!r} are not allowed; "
                "allowed: whole numbers, in_channels >= 1, num_classes >= 0 (0 = no head)"
            )
        self.in_channels, self.num_classes = in_channels, num_classes
        self.features_only = features_only

    def add_head(self, channels: int) -> None:
        """Create `avgpool` and `fc`; without classes, or for `features_only`, there is no `fc`."""
        if self.features_only:
            return
        self.avgpool = nn.AdaptiveAvgPool3d(1)
        if self.num_classes:
            self.fc = nn.Linear(channels, self.num_classes)
            nn.init.normal_(self.fc.weight, std=0.01)
            nn.init.zeros_(self.fc.bias)

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """Return the pyramid of x (N, C, D, H, W)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        """See the class."""
        maps = self.features(x)
        if self.features_only:
            return maps
        pooled = torch.flatten(self.avgpool(maps[self.feature_info[-1].name]), 1)
        return self.fc(pooled) if self.num_classes else pooled

    def check_input(self, x: Tensor) -> None:
        """Raise `OptionError` unless x is (N, in_channels, D, H, W)."""
        if torch.jit.is_tracing():  # a comparison would be burnt into the trace, with a warning
            return
        if x.ndim != 5 or x.shape[1] != self.in_channels:
            hint = " (a 2D RGB image becomes a volume by svd_hub.rgb_to_depth)" if x.ndim == 4 else ""
            raise OptionError(
                f"input of shape {tuple(x.shape)} is not allowed; allowed: (N, {self.in_channels}, D, H, W){hint}"
            )
