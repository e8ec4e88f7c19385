"""What the tests of export share: networks to export, and one run of torch's exporter for each."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from helpers_networks import KINDS, network, sides
from torch import nn

from svd_hub.export import onnx as onnx_format
from svd_hub.export.contract import Order
from svd_hub.export.inputs import probe
from svd_hub.export.network import Network, described
from svd_hub.export.profile import make_profile
from svd_hub.models import densenet3d


@functools.cache
def exportable(kind: str) -> Any:
    """A network of a kind; its values are the same in every test.

    Sums of a few numbers of random signs may nearly be zero, and then their relative error says nothing: a classifier
    has many classes, and labels are told apart.
    """
    if kind.startswith("detector"):
        return spread_apart(network(kind))
    gives = described(network(kind))[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(densenet3d.BLOCKS, 121, (1, 2, 1, 1))  # a block of each, or following it takes a minute
        model = network(kind, **({"num_classes": 32} if gives == "logits" else {}))
    return told_apart(model, shape_of(kind)) if gives == "map" else model


def told_apart(model: Any, shape: Sequence[int]) -> Any:
    """A network of labels with another head: positive, and each label reads channels of its own.

    From the same channels all labels are nearly even everywhere, unlike a trained one's. None of them is rare: of a
    label of five voxels one is much.
    """
    last = [layer for layer in model.modules() if isinstance(layer, nn.Conv3d)][-1]
    assert last.out_channels == model.num_classes
    last.weight.data.abs_()
    for label, kernel in enumerate(last.weight.data):
        kernel[[channel for channel in range(len(kernel)) if channel % model.num_classes != label]] = 0
    with torch.no_grad():
        seen = model(torch.from_numpy(probe((1, 1, *shape), None, seed=0))).mean((0, 2, 3, 4))
    last.weight.data *= (seen.mean() / seen).reshape(-1, 1, 1, 1, 1)
    return model


def spread_apart(model: Any) -> Any:
    """A detector with other heads: a hundred boxes of one score each would change places at a breath."""
    head, box = model.rpn_head, model.bbox_head
    for layer, std in ((head.rpn_cls, 0.3), (head.rpn_reg, 0.1), (box.fc_cls, 0.3), (box.fc_reg, 0.1)):
        nn.init.normal_(layer.weight, std=std)
    return model


def shape_of(kind: str) -> tuple[int, ...]:
    """A typical (D, H, W) whose half the network takes, and whose deepest level has two voxels then."""
    return sides(kind, 64 if kind not in ("genesis", "genesis_batch", "segresnet", "segresnet_ds") else 32)


def order(kind: str, precision: str = "fp32", **options: Any) -> Order:
    model = exportable(kind)
    calibration = tuple(np.random.default_rng(0).standard_normal((4, 1, *shape_of(kind))).astype(np.float32))
    return Order(
        network=Network(model),
        profile=make_profile(model, shape=shape_of(kind), **options),
        precision=precision,
        calibration=calibration if precision == "int8" else (),
    )


@functools.cache
def followed(kind: str) -> Any:
    """The float32 graph of a kind as torch's exporter gives it; seconds each, so once."""
    asked = order(kind)
    return onnx_format.single_precision(asked.network, asked.profile, onnx_format.OPSET)


def copied(kind: str) -> Any:
    import onnx

    made = onnx.ModelProto()
    made.CopyFrom(followed(kind))
    return made


def follow_once(patch: pytest.MonkeyPatch, kind: str) -> None:
    """Let every export of a kind take the graph that was followed once."""
    followed(kind)
    patch.setattr(onnx_format, "single_precision", lambda network, profile, opset: copied(kind))


def follow_model_once(patch: pytest.MonkeyPatch, model: Any, shape: Sequence[int]) -> None:
    """The same for a network of the test's own."""
    made = onnx_format.single_precision(Network(model), make_profile(model, shape=shape), onnx_format.OPSET)
    patch.setattr(onnx_format, "single_precision", lambda network, profile, opset: copy.deepcopy(made))


__all__ = ["KINDS", "copied", "exportable", "follow_model_once", "follow_once", "followed", "order", "shape_of"]
