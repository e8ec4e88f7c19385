"""The paper's point, on our networks: which depth taps of a kernel are trained."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from helpers_depth import resnet
from torch import Tensor, nn

from svd_hub.variable_dimension import (
    preserve_depth,
    restore_depth,
)

torch.set_num_threads(1)


def trained_taps(model: nn.Module, depth: int = 3) -> dict[str, list[bool]]:
    """For each convolution with a deep kernel: does each depth tap get any gradient?"""
    x = torch.rand(2, 1, depth, 64, 64, generator=torch.Generator().manual_seed(0))
    level = model.train()(x)["layer4"]
    (level * torch.rand(level.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    return {
        name: [bool(tap.any()) for tap in cast(Tensor, module.weight.grad).unbind(2)]
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv3d) and module.kernel_size[0] > 1
    }


@pytest.mark.parametrize("form", ["built", "preserved"])
@pytest.mark.parametrize("depth", [18, 50])
def test_every_tap_learns_where_depth_is_kept(form: str, depth: int) -> None:
    model = (
        resnet(depth=depth, depth_stride=1)
        if form == "built"
        else preserve_depth(resnet(depth=depth, depth_stride=2))[0]
    )
    taps = trained_taps(model)
    stem = taps.pop("conv1")
    assert len(taps) == 16
    assert all(tap == [True, True, True] for tap in taps.values())
    # three slices cannot reach further than two taps from the centre
    assert stem == [False, True, True, True, True, True, False]


@pytest.mark.parametrize("form", ["built", "restored"])
def test_only_the_centre_tap_learns_in_the_vanilla_form(form: str) -> None:
    model = resnet(depth_stride=2)
    taps = trained_taps(model if form == "built" else restore_depth(preserve_depth(model)[0]))
    taps.pop("conv1")
    assert len(taps) == 16
    assert all(tap == [False, True, False] for tap in taps.values())


def test_every_tap_of_the_v1c_stem_learns() -> None:
    taps = trained_taps(preserve_depth(resnet(depth_stride=2, stem="v1c"))[0])
    assert len(taps) == 19
    assert all(tap == [True, True, True] for tap in taps.values())


def test_a_real_volume_trains_every_tap_in_the_vanilla_form() -> None:
    """The law above is about depth 3, not about strides: the transfer form of a deep volume trains all taps."""
    taps = trained_taps(resnet(depth_stride=2), depth=64)
    assert all(all(tap) for tap in taps.values())
