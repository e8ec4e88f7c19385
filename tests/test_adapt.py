"""Laws of the adaptations: grey volumes give equal outputs under any number of channels; every change is told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from synthetic import values
from torch import Tensor, nn

from svd_hub import models
from svd_hub.adapt import CHANNEL_RULES, adapt, change_channels, first_convolution
from svd_hub.errors import OptionError

BASE: dict[str, Any] = {"depth": 10, "width": 4, "num_classes": 3, "in_channels": 3}


def fit(options: dict[str, Any], *, base: dict[str, Any] = BASE, rule: str = "sum", new_head: bool = False) -> Any:
    """Return the network of `options` with the adapted weights of `base`, and the changes."""
    network = models.build("resnet3d", {**base, **options}).eval()
    tensors, changes = adapt(values(base), network, in_channels_rule=rule, new_head=new_head)
    network.load_state_dict(tensors)
    return network, changes


@torch.no_grad()
def run(network: nn.Module, x: Tensor) -> Tensor:
    return network(x)


STEM: dict[str, dict[str, Any]] = {"7x7x7": {}, "3x7x7": {"stem_depth": 3}, "v1c": {"stem": "v1c"}}
GREY = torch.randn(2, 1, 4, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("stem", ["7x7x7", "3x7x7", "v1c"])
@pytest.mark.parametrize("channels", [1, 2, 4])
def test_sum_is_the_grey_volume_repeated(stem: str, channels: int) -> None:
    base = {**BASE, **STEM[stem]}
    trained, none = fit({}, base=base)
    adapted, changes = fit({"in_channels": channels}, base=base)
    assert none == []
    want = run(trained, GREY.expand(-1, 3, -1, -1, -1))
    got = run(adapted, GREY.expand(-1, channels, -1, -1, -1))
    assert torch.allclose(got, want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))
    assert [c.name for c in changes] == [first_convolution(trained)]
    assert "input channels by sum" in str(changes[0])


def test_mean_is_the_mean_kernel() -> None:
    w = torch.randn(5, 3, 2, 3, 4)
    assert torch.equal(change_channels(w, 1, "mean"), w.mean(1, keepdim=True))
    assert torch.allclose(3 * change_channels(w, 1, "mean"), change_channels(w, 1, "sum"))
    for rule in CHANNEL_RULES:
        assert change_channels(w, 2, rule).shape == (5, 2, 2, 3, 4)
        assert torch.equal(*change_channels(w, 2, rule).unbind(1))
    with pytest.raises(OptionError, match=r"in_channels_rule='max'.*'sum', 'mean'"):
        change_channels(w, 1, "max")


def test_new_head_is_new_and_told() -> None:
    network, changes = fit({"num_classes": 7}, new_head=True)
    assert network.fc.weight.shape == (7, 32)
    assert 0.005 < network.fc.weight.std() < 0.02
    assert not network.fc.bias.any()
    told = [(c.name, c.before, c.after) for c in changes]
    assert told == [
        ("fc.weight", (3, 32), None),
        ("fc.bias", (3,), None),
        ("fc.weight", None, (7, 32)),
        ("fc.bias", None, (7,)),
    ]


@pytest.mark.parametrize("options", [{"num_classes": 0}, {"features_only": True}])
def test_dropped_head_is_told(options: dict[str, Any]) -> None:
    network, changes = fit(options, new_head="num_classes" in options)
    assert not hasattr(network, "fc")
    assert [(c.name, c.after) for c in changes] == [("fc.weight", None), ("fc.bias", None)]
    assert all("head dropped" in str(c) for c in changes)


def test_what_needs_no_change_is_the_same_tensor() -> None:
    tensors = values(BASE)
    network = models.build("resnet3d", BASE)
    adapted, changes = adapt(tensors, network, in_channels_rule="sum", new_head=False)
    assert changes == []
    assert all(adapted[name] is tensors[name] for name in tensors)
    adapt(tensors, models.build("resnet3d", {**BASE, "in_channels": 1}), in_channels_rule="sum", new_head=True)
    assert tensors.keys() == adapted.keys(), "the input is not changed"


def test_another_stem_is_left_to_the_strict_check() -> None:
    network = models.build("resnet3d", {**BASE, "width": 8, "in_channels": 1})
    _, changes = adapt(values(BASE), network, in_channels_rule="sum", new_head=False)
    assert changes == []


def test_first_convolution() -> None:
    for stem, name in (("7x7x7", "conv1.weight"), ("v1c", "stem.0.conv.weight")):
        assert first_convolution(models.build("resnet3d", {**BASE, **STEM[stem]})) == name
    with pytest.raises(TypeError, match="no Conv3d"):
        first_convolution(nn.Linear(1, 1))
