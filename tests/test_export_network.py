"""What is exported is what was loaded: the same numbers under names, and detections in one shape."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from helpers_networks import KINDS, error, network, sides
from torch import nn

from svd_hub.errors import OptionError
from svd_hub.export.network import InPrecision, Network, StatisticsOfBatch, padded
from svd_hub.models.unet3d_genesis import BatchStatistics3d
from svd_hub.optimise import optimize_for_inference

OUTPUTS = {
    "pooled": ("features", ("features",)),
    "pyramid": ("pyramid", ("stem", "layer1", "layer2", "layer3", "layer4")),
    "fcn3d": ("map", ("logits",)),
    "detector": ("detections", ("boxes", "scores", "labels")),
    "resnet3d": ("logits", ("logits",)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_numbers_from_fewer_operators(kind: str) -> None:
    model = network(kind)
    before = copy.deepcopy(model.state_dict())
    exported = Network(model)
    if kind in OUTPUTS:
        assert (exported.kind, exported.outputs) == OUTPUTS[kind]
    x = torch.randn(2, 1, *sides(kind))
    with torch.no_grad():
        found, wanted = exported(x), exported.eager(x)
    assert len(found) == len(exported.outputs)
    assert error(list(found), list(wanted)) < 1e-4
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    if kind not in ("densenet3d", "segresencoder", "segresnet_ds"):
        assert not any(isinstance(module, nn.BatchNorm3d) for module in exported.modules())
    assert exported.norm == ("group" if kind in ("mp3d", "p3d", "genesis_batch", "segresnet", "detector") else "batch")


def test_eager_is_the_network_itself() -> None:
    model = network("pyramid")
    x = torch.randn(1, 1, 8, 32, 32)
    with torch.no_grad():
        for a, b in zip(Network(model).eager(x), model(x).values(), strict=True):
            assert torch.equal(a, b)
    assert model not in list(Network(model).modules())


@pytest.mark.parametrize("shape", [(1, 3, 2, 4, 5), (3, 3, 4, 4, 4), (2, 3, 1, 7, 3)])
def test_statistics_of_a_batch_as_one_instance_norm(shape: tuple[int, ...]) -> None:
    norm = BatchStatistics3d(3).eval().double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(shape, dtype=torch.float64) * 3 + 2
    torch.testing.assert_close(StatisticsOfBatch(norm)(x), norm(x), rtol=1e-12, atol=1e-12)


def test_padded_detections() -> None:
    for seed in range(50):
        random = np.random.default_rng(seed)
        count, most = int(random.integers(1, 5)), int(random.integers(1, 7))
        numbers = random.integers(0, most + 1, count)
        images = torch.repeat_interleave(torch.arange(count), torch.from_numpy(numbers))
        boxes, scores = torch.rand(len(images), 4), torch.rand(len(images))
        labels = torch.randint(0, 9, (len(images),))
        all_boxes, all_scores, all_labels = padded((boxes, scores, labels, images), count, most)
        assert all_boxes.shape == (count, most, 4)
        for k in range(count):
            n, own = int(numbers[k]), images == k
            assert torch.equal(all_boxes[k, :n], boxes[own])
            assert torch.equal(all_scores[k, :n], scores[own])
            assert torch.equal(all_labels[k, :n], labels[own])
            assert not all_boxes[k, n:].any()
            assert (all_labels[k, n:] == -1).all()


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_sixteen_bits_between_float32(precision: str) -> None:
    exported = Network(network("genesis_batch"))
    low = InPrecision(exported, precision)
    x = torch.randn(1, 1, 16, 32, 32)
    with torch.no_grad():
        found = low(x)
        assert found.dtype == torch.float32
        assert 1e-6 < error(found, exported(x)) < 1e-2
    kinds = {type(m).__name__: p.dtype for m in low.modules() for p in m.parameters(recurse=False)}
    assert kinds["Conv3d"] == low.dtype
    assert exported.inner.out_tr.final_conv.weight.dtype == torch.float32, "the network itself was changed"
    assert InPrecision(exported, "fp32").network is exported


def test_what_is_refused() -> None:
    with pytest.raises(OptionError, match="Linear is not a network of svd_hub"):
        Network(nn.Linear(1, 1))
    with pytest.raises(OptionError, match="an optimised network cannot be exported"):
        Network(optimize_for_inference(network("resnet3d")))
