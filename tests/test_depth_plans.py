"""Laws of svd_hub.depth_plans: each kind of layer keeps the depth or is named."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers_depth import settings
from torch import Tensor, nn

from svd_hub.errors import OptionError
from svd_hub.variable_dimension import (
    preserve_depth,
)

torch.set_num_threads(1)


LAYERS = [
    nn.Conv3d(1, 1, 5, 2, 4, dilation=(2, 1, 1)),
    nn.Conv3d(1, 1, 3),
    nn.Conv3d(1, 1, (3, 4, 4), 2, "valid"),
    nn.Conv3d(1, 1, (3, 1, 1), (2, 1, 1), padding_mode="reflect"),
    nn.Conv3d(1, 1, (2, 1, 1), (2, 1, 1), dilation=(2, 1, 1)),  # span 2: a symmetric padding exists
    nn.Conv3d(1, 1, 1, 2, 1),
    nn.Conv3d(1, 1, 3, padding="same"),
    nn.MaxPool3d(3, 2),
    nn.MaxPool3d(5, (3, 2, 1), 2),
    nn.MaxPool3d(2),
    nn.MaxPool3d((4, 3, 3), 2, 1),
    nn.MaxPool3d(3, 2, ceil_mode=True),
    nn.MaxPool3d((1, 3, 3), 2, dilation=2),
    nn.AvgPool3d(2, 2),
    nn.AvgPool3d(3, 2, 1),
    nn.AvgPool3d((3, 2, 2)),
    nn.AvgPool3d(2, 2, ceil_mode=True),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("depth", [3, 4, 7])
def test_single_layers_keep_depth_and_plane(layer: nn.Module, depth: int) -> None:
    new, report = preserve_depth(layer, strict=True)
    deep = torch.rand(1, 1, 24, 13, 14)  # deep enough for the original
    got = new(torch.rand(1, 1, depth, 13, 14))
    assert got.shape[2] == depth
    assert got.shape[3:] == layer(deep).shape[3:]
    assert (settings(new) == settings(layer)) == (not report.changed)


@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (3, 2), (5, 3), (7, 1)])
def test_depth_padding_follows_the_dilation(kernel: int, dilation: int) -> None:
    conv = nn.Conv3d(1, 1, kernel, stride=2, padding=1, dilation=(dilation, 1, 2))
    new, _ = preserve_depth(conv)
    assert new.padding == (dilation * (kernel - 1) // 2, 1, 1)
    assert new.stride == (1, 2, 2)


def test_kept_depth_is_centred() -> None:
    """With a one at the centre tap, the new convolution is the identity along depth, whatever its padding_mode."""
    for mode in ("zeros", "replicate"):
        conv = nn.Conv3d(1, 1, (5, 1, 1), stride=(2, 1, 1), dilation=(2, 1, 1), padding_mode=mode, bias=False)
        nn.init.zeros_(conv.weight)
        with torch.no_grad():
            conv.weight[:, :, 2] = 1
        x = torch.rand(1, 1, 7, 3, 3)
        assert torch.equal(preserve_depth(conv)[0](x), x)


def test_average_of_a_constant_stays_the_constant() -> None:
    ones = torch.ones(1, 1, 3, 9, 9)
    for pool in (nn.AvgPool3d(3, 2), nn.AvgPool3d(2), nn.AvgPool3d((3, 1, 2), 1)):
        torch.testing.assert_close(preserve_depth(pool)[0](ones).unique(), torch.ones(1))
    # a pool that counted zeros before still counts them
    assert preserve_depth(nn.AvgPool3d(3, 2, 1))[0].count_include_pad


LEFTOVERS = [
    (nn.Conv3d(1, 1, 2, 2), "even depth kernel 2"),
    (nn.Conv3d(1, 1, 4, 1, 1), "even depth kernel 4"),
    (nn.ConvTranspose3d(1, 1, 2, 2), "transposed convolution with depth stride 2"),
    (nn.ConvTranspose3d(1, 1, 3), "transposed convolution that changes the depth by 2"),
    (nn.MaxPool3d(2, return_indices=True), "return_indices"),
    (nn.MaxPool3d(3, 1, 1, dilation=2), "dilated max pool"),
    (nn.AvgPool3d(2, divisor_override=3), "divisor_override"),
    (nn.LPPool3d(2, 2), "LPPool3d"),
    (nn.MaxUnpool3d(2), "MaxUnpool3d"),
    (nn.FractionalMaxPool3d(2, output_size=2), "FractionalMaxPool3d"),
    (nn.AdaptiveAvgPool3d(2), "adaptive pool to depth 2"),
    (nn.Upsample(scale_factor=2.0), "Upsample"),
    (nn.LazyConv3d(2, 3, 2), "lazy module"),
]


@pytest.mark.parametrize(("layer", "reason"), LEFTOVERS, ids=lambda v: str(v)[:30])
def test_leftovers_are_named_and_left_alone(layer: nn.Module, reason: str) -> None:
    model = nn.Sequential(nn.Identity(), nn.Sequential(layer))
    new, report = preserve_depth(model)
    assert [name for name, _ in report.untreated] == ["1.0"]
    assert reason in report.untreated[0][1]
    assert settings(new) == settings(model)
    assert not report.complete
    assert f"1.0: {report.untreated[0][1]}" in str(report)
    with pytest.raises(OptionError, match=r"1\.0: .*") as caught:
        preserve_depth(model, strict=True)
    assert reason in str(caught.value)


HARMLESS = [
    nn.ConvTranspose3d(1, 1, (1, 2, 2), (1, 2, 2)),
    nn.ConvTranspose3d(1, 1, 3, 1, 1),
    nn.Upsample(scale_factor=(1.0, 2.0, 2.0)),
    nn.AdaptiveAvgPool3d((None, 4, 4)),
    nn.MaxUnpool3d((1, 2, 2)),
    nn.MaxPool3d((1, 2, 2), return_indices=True),
    nn.Conv2d(1, 1, 2, 2),
    nn.MaxPool2d(2),
]


@pytest.mark.parametrize("layer", HARMLESS, ids=str)
def test_what_keeps_depth_by_itself_is_no_leftover(layer: nn.Module) -> None:
    _, report = preserve_depth(layer, strict=True)
    assert not report.changed


def test_global_pools_are_listed_and_no_leftover() -> None:
    model = nn.ModuleDict(
        {"a": nn.AdaptiveAvgPool3d(1), "b": nn.AdaptiveMaxPool3d((1, 2, 2)), "c": nn.AdaptiveAvgPool3d((None, 1, 1))}
    )
    _, report = preserve_depth(model, strict=True)
    assert report.global_pools == ("a", "b")


def test_same_padding_by_hand_is_reported_not_doubled() -> None:
    """As the Inception-I3D ports do: the padding comes from F.pad, a second one would let the depth grow."""

    class SamePool(nn.MaxPool3d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(F.pad(x, (1, 1, 1, 1, 1, 1)))

    class Standardised(nn.Conv3d):
        def forward(self, x: Tensor) -> Tensor:
            weight = self.weight - self.weight.mean()
            return self._conv_forward(x, weight, self.bias)

    new, report = preserve_depth(nn.Sequential(SamePool(3, 2), Standardised(1, 1, 3, 2, 1)))
    assert report.untreated == (("0", "pads by itself in its forward"),)
    assert new[1](torch.rand(1, 1, 3, 8, 8)).shape == (1, 1, 3, 4, 4)
