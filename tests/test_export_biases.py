"""Biases apart from their layers: the same network, plain or clipped, and nothing of bfloat16's rounding in them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from svd_hub.export.biases import apart
from svd_hub.export.precision import lowered

VOLUME = np.random.default_rng(0).normal(0, 1, (2, 1, 5, 6, 7)).astype(np.float32)


def model() -> onnx.ModelProto:
    """A layer that a Relu reads, two that a sum reads, one that a sum with a constant reads, a transposed output."""
    random = np.random.default_rng(1)
    arrays = {
        "k1": random.normal(0, 0.3, (4, 1, 3, 3, 3)),
        "k2": random.normal(0, 0.3, (4, 4, 3, 3, 3)),
        "k3": random.normal(0, 0.3, (4, 4, 1, 1, 1)),
        "k4": random.normal(0, 0.3, (4, 2, 2, 2, 2)),
        "k5": random.normal(0, 0.3, (4, 4, 1, 1, 1)),
        **{f"b{n}": random.normal(0, 2, 2 if n == 4 else 4) for n in range(1, 6)},
        "c": random.normal(0, 1, (1, 4, 1, 1, 1)),
    }
    nodes = [
        helper.make_node("Conv", ["volume", "k1", "b1"], ["a"], name="one", pads=[1] * 6),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "k2", "b2"], ["d"], name="two", pads=[1] * 6),
        helper.make_node("Conv", ["b", "k3", "b3"], ["e"], name="three"),
        helper.make_node("Add", ["d", "e"], ["f"], name="sum"),
        helper.make_node("Conv", ["f", "k5", "b5"], ["g"], name="five"),
        helper.make_node("Add", ["g", "c"], ["out"], name="more"),
        helper.make_node("ConvTranspose", ["f", "k4", "b4"], ["up"], name="four", strides=[2] * 3),
    ]
    read, *gives = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [None] * 5) for n in ("volume", "out", "up"))
    constants = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "net", [read], gives, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("clips", [False, True])
def test_the_same_network(clips: bool) -> None:
    plain = model()
    before = plain.SerializeToString(deterministic=True)
    made = apart(plain, clips=clips)
    assert plain.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(made, full_check=True)
    for wanted, found in zip(
        *(ReferenceEvaluator(m).run(None, {"volume": VOLUME}) for m in (plain, made)), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    assert all(len(node.input) == 2 for node in made.graph.node if node.op_type.startswith("Conv"))
    assert not {f"b{n}" for n in range(1, 6)} & {tensor.name for tensor in made.graph.initializer}
    # behind three layers, behind the sum for its two, and the two that were there
    assert Counter(node.op_type for node in made.graph.node)["Add"] == 3 + 1 + 2
    assert Counter(node.op_type for node in made.graph.node)["Clip"] == (3 if clips else 0)
    makers = {node.output[0]: node for node in made.graph.node}
    for node in made.graph.node:
        if node.op_type == "Add" and makers.get(node.input[0]) is not None and node.name.endswith("_biased"):
            assert makers[node.input[0]].op_type in (("Clip", "Add") if clips else ("Conv", "ConvTranspose", "Add"))


def test_sums_of_bfloat16_stay_float32() -> None:
    made = lowered(apart(model()), "bf16", sums=False)
    stored = {tensor.name: tensor.data_type for tensor in made.graph.initializer}
    read = {name for node in made.graph.node if node.op_type == "Add" for name in node.input if name in stored}
    assert len(read) == 5
    assert {stored[name] for name in read} == {TensorProto.FLOAT}
    layers = {name for node in made.graph.node if node.op_type.startswith("Conv") for name in node.input[1:]}
    assert {stored[name] for name in layers} == {TensorProto.BFLOAT16}
