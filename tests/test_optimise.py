"""svd_hub.optimize_for_inference: the same numbers, without the slow convolution, and an original that is untouched."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_networks import KINDS, error, network, sides
from torch import nn
from torch.profiler import ProfilerActivity, profile

import svd_hub
from svd_hub.errors import OptionError
from svd_hub.export.network import WideBias
from svd_hub.optimise import FixedConv3d, optimize_for_inference
from svd_hub.sizes import run

CLIFF = (1, 1, 3, 64, 64)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_numbers(kind: str) -> None:
    model, fast = network(kind), optimize_for_inference(network(kind))
    for batch in (1, 3):
        x = torch.randn(batch, 1, *sides(kind))
        with torch.no_grad():
            # a group's statistics of few values make a difference of rounding ten times as large
            grouped = any(isinstance(module, nn.GroupNorm) for module in model.modules())
            assert error(run(fast, x), run(model, x)) < (1e-4 if grouped else 1e-5)
    assert not any(type(module) is nn.Conv3d for module in fast.modules())


@pytest.mark.parametrize("kind", KINDS)
def test_sixteen_bits(kind: str) -> None:
    model = network(kind)
    fast = optimize_for_inference(model, dtype=torch.bfloat16)
    x = torch.randn(2, 1, *sides(kind))
    with torch.no_grad():
        wanted, found = run(model, x), run(fast, x)
        assert 1e-6 < error(found, wanted) < 0.05
        if kind.startswith("detector"):
            found = [column for row in fast(x) for column in row[:2]]
    values = found.values() if isinstance(found, dict) else found if isinstance(found, list) else [found]
    assert all(tensor.dtype == torch.float32 for tensor in values) or kind.startswith("detector")


@pytest.mark.parametrize("make", [FixedConv3d, lambda conv, dtype: WideBias(conv, conv.bias, dtype)])
def test_biases_lose_nothing_in_sixteen_bits(make: Any) -> None:
    """Each channel has its mean, but for what its own rounding leaves of it."""
    torch.manual_seed(0)
    conv = nn.Conv3d(2, 8, 3, padding=1)
    nn.init.uniform_(conv.bias, 1, 2)
    conv.weight.data = conv.weight.data.bfloat16().float()
    x = torch.randn(2, 2, 9, 30, 30).bfloat16()
    with torch.no_grad():
        wanted = conv(x.float()).mean((0, 2, 3, 4))
        low = make(copy.deepcopy(conv), torch.bfloat16)
        found = low(x)
        assert found.dtype == torch.bfloat16
        off = (found.float().mean((0, 2, 3, 4)) - wanted).abs().max()
        assert off < 1e-3
        assert (conv.bias.bfloat16().float() - conv.bias).abs().max() > 3 * off, "what a rounded one is off by"


def functions(model: Any, x: torch.Tensor) -> set[str]:
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as seen:
        model(x)
    return {event.key for event in seen.key_averages()}


def test_the_slow_convolution_is_gone() -> None:
    model, x = network("resnet3d"), torch.randn(CLIFF)
    assert "aten::slow_conv3d_forward" in functions(model, x), "torch has changed: read svd_hub/optimise.py again"
    found = functions(optimize_for_inference(model), x)
    assert "aten::slow_conv3d_forward" not in found
    assert "mkldnn::_convolution_pointwise" in found


def test_the_original_is_as_it_was_and_trains() -> None:
    model = network("resnet3d")
    before, modules = copy.deepcopy(model.state_dict()), [type(m) for m in model.modules()]
    fast = optimize_for_inference(model)
    x = torch.randn(2, 1, 4, 32, 32)
    with torch.no_grad():
        was = fast(x)
    assert [type(m) for m in model.modules()] == modules
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    model.train()(x).sum().backward()
    assert model.conv1.weight.grad is not None
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
        assert torch.equal(fast(x), was), "the two share numbers"


def test_what_a_loaded_network_carries_is_kept() -> None:
    model = svd_hub.load("resnet3d18w16_lidc")
    fast = svd_hub.optimize_for_inference(model)
    assert (fast.entry, fast.preprocess, fast.options) == (model.entry, model.preprocess, model.options)
    volume = np.random.default_rng(0).integers(-1000, 400, (60, 60, 60)).astype(np.int16)
    results = [svd_hub.Predictor(net)(volume, spacing=(1, 1, 1)) for net in (model, fast, copy.deepcopy(fast))]
    for result in results[1:]:
        assert result.probabilities == pytest.approx(results[0].probabilities, rel=1e-4)


def test_what_it_cannot_do_it_says(tmp_path: Path) -> None:
    fast = optimize_for_inference(network("resnet3d"))
    x = torch.randn(CLIFF)
    refusals = {
        "cannot be trained. Next: train": lambda: fast.train(),
        "cannot be saved. Next: save": lambda: fast.state_dict(),
        "asked for gradients": lambda: fast(x.requires_grad_()),
        "given a tensor on meta": lambda: fast(x.detach().to("meta")),
        "traced, exported or compiled": lambda: torch.export.export(fast, (x.detach(),)),
        "optimised one already": lambda: optimize_for_inference(fast),
        "dtype='float16' is not allowed; allowed: 'float32', 'bfloat16'": lambda: optimize_for_inference(
            network("resnet3d"), dtype="float16"
        ),
        "is torch.float64 on cpu": lambda: optimize_for_inference(network("resnet3d").double()),
        "Linear is not a network of svd_hub": lambda: optimize_for_inference(nn.Linear(2, 2)),
    }
    for message, refused in refusals.items():
        with pytest.raises(OptionError, match=message):
            refused()
    loaded = svd_hub.optimize_for_inference(svd_hub.load("resnet3d18w16_lidc"))
    with pytest.raises(OptionError, match="cannot be saved"):
        svd_hub.save(loaded, tmp_path / "x.safetensors")
    assert fast.eval() is fast


@pytest.mark.parametrize("seed", range(20))
def test_any_convolution(seed: int) -> None:
    """Kernels, strides, dilations, groups and shapes at random, with and without oneDNN."""
    random = np.random.default_rng(seed)
    groups = int(random.choice([1, 2, 4]))
    kernel, stride = random.integers(1, 4, 3).tolist(), random.integers(1, 3, 3).tolist()
    padding, dilation = random.integers(0, 3, 3).tolist(), random.integers(1, 3, 3).tolist()
    torch.manual_seed(seed)
    conv = nn.Conv3d(
        4, 8, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups, bias=bool(random.integers(2))
    )
    fast = FixedConv3d(conv)
    slow = FixedConv3d(conv)
    slow._direct, slow._kernel = False, conv.weight.detach()
    for _ in range(3):
        x = torch.randn(int(random.integers(1, 3)), 4, *random.integers(5, 20, 3).tolist())
        with torch.no_grad():
            wanted = conv(x)
            torch.testing.assert_close(fast(x), wanted, rtol=1e-5, atol=1e-5)
            assert torch.equal(slow(x), wanted)
