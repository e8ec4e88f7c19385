"""The operators of every exported graph against what TensorRT takes, in both releases."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from helpers_export import KINDS, copied
from helpers_tensorrt import RELEASES
from onnx import TensorProto, helper, numpy_helper

from svd_hub.errors import SvdHubError
from svd_hub.export.precision import lowered
from svd_hub.export.tensorrt.operators import load, refuse_operators, unsupported

QUICK = ("resnet3d", "unet3d", "genesis", "detector_small")  # the others take their time to be followed
F, I, B = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL  # noqa: E741


@pytest.mark.parametrize("kind", [pytest.param(k, marks=() if k in QUICK else pytest.mark.slow) for k in KINDS])
def test_every_graph_is_taken(kind: str) -> None:
    model = copied(kind)
    graphs = [model, lowered(model, "fp16"), lowered(model, "bf16")]
    graphs[2].opset_import[0].version = 22
    for graph in graphs:
        assert graph.opset_import[0].version in range(load()["opset"][0], load()["opset"][1] + 1)
        for release in RELEASES:
            assert unsupported(graph, release) == []


def test_a_planted_operator_fails() -> None:
    model = copied("resnet3d")
    node = next(node for node in model.graph.node if node.op_type == "Relu")
    node.op_type = "Det"
    assert unsupported(model, "11.4") == ["Det: not taken"]
    with pytest.raises(
        SvdHubError, match=r"TensorRT 10\.16\.1 does not take this graph: Det: not taken\. Next: --to onnx"
    ):
        refuse_operators(model.SerializeToString(), "10.16.1")


def one(
    node: Any, inputs: list[tuple[str, int, list[Any]]], constants: dict[str, Any] | None = None, opset: int = 20
) -> Any:
    """A graph of one node."""
    infos = [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs]
    outs = [helper.make_empty_tensor_value_info(name) for name in node.output if name]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()]
    graph = helper.make_graph([node], "g", infos, outs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


VOLUME = ("x", F, ["n", 4, "d", "h", "w"])
PICTURE = ("x", F, [1, 4, 32, 32])
CASES: list[tuple[str, Any, str]] = [
    ("pool of volumes", one(helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2, 2]), [VOLUME]), ""),
    ("pool with indices", one(helper.make_node("MaxPool", ["x"], ["y", "z"], kernel_shape=[2, 2, 2]), [VOLUME]),
     "MaxPool: gives 1 output"),
    ("dilated pool",
     one(helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2] * 3, dilations=[1, 2, 2]), [VOLUME]),
     "MaxPool: dilations must be ones"),
    ("pool of lines", one(helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2]), [("x", F, [1, 4, 9])]),
     "MaxPool: takes 2 or 3 spatial axes, not 1"),
    ("dilated convolution",
     one(helper.make_node("Conv", ["x", "k"], ["y"], dilations=[2, 2, 2]), [VOLUME],
         {"k": np.zeros((4, 4, 3, 3, 3), np.float32)}), ""),
    ("top-k", one(helper.make_node("TopK", ["x", "k"], ["y", "z"]), [("x", F, [1, 9000])], {"k": [3839]}), ""),
    ("large top-k", one(helper.make_node("TopK", ["x", "k"], ["y", "z"]), [("x", F, [1, 9000])], {"k": [3840]}),
     "TopK: its input 1 must be a constant below 3840, not 3840"),
    ("top-k that is computed",
     one(helper.make_node("TopK", ["x", "k"], ["y", "z"]), [("x", F, [1, 9000]), ("k", I, [1])]),
     "TopK: its input 1 must be a constant below 3840"),
    ("unsorted top-k",
     one(helper.make_node("TopK", ["x", "k"], ["y", "z"], sorted=0), [("x", F, [1, 9000])], {"k": [9]}),
     "TopK: sorted=0 is not taken"),
    ("trilinear", one(helper.make_node("Resize", ["x", "", "s"], ["y"], mode="linear"), [VOLUME],
                      {"s": np.float32([1, 1, 2, 2, 2])}), ""),
    ("tricubic", one(helper.make_node("Resize", ["x", "", "s"], ["y"], mode="cubic"), [VOLUME],
                     {"s": np.float32([1, 1, 2, 2, 2])}), "Resize: mode='cubic' is not taken"),
    ("antialiased", one(helper.make_node("Resize", ["x", "", "s"], ["y"], mode="linear", antialias=1), [VOLUME],
                        {"s": np.float32([1, 1, 2, 2, 2])}), "Resize: antialias=1 is not taken"),
    ("boxes of 16-bit brain floats",
     one(helper.make_node("RoiAlign", ["x", "b", "i"], ["y"]),
         [("x", TensorProto.BFLOAT16, [1, 4, 9, 9]), ("b", TensorProto.BFLOAT16, [3, 4]), ("i", I, [3])], opset=22),
     "RoiAlign: not taken of type bfloat16; allowed: float, float16"),
    ("boxes of a volume",
     one(helper.make_node("RoiAlign", ["x", "b", "i"], ["y"]), [VOLUME, ("b", F, [3, 4]), ("i", I, [3])]),
     "RoiAlign: takes inputs of rank 4, not 5"),
    ("squeeze of a fixed shape", one(helper.make_node("Squeeze", ["x"], ["y"]), [("x", I, [1])]), ""),
    ("squeeze of an open shape", one(helper.make_node("Squeeze", ["x"], ["y"]), [("x", F, ["n", 1, 4])]),
     "Squeeze: without axes it takes a fixed shape only, before TensorRT 11.5"),
    ("mean over axes that are computed",
     one(helper.make_node("ReduceMean", ["x", "a"], ["y"]), [VOLUME, ("a", I, [3])]),
     "ReduceMean: its input 1 must be a constant"),
    ("asymmetric quantisation",
     one(helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"]), [VOLUME],
         {"s": np.float32(0.1), "z": np.int8(3)}), "QuantizeLinear: its input 2 must be zero"),
    ("symmetric quantisation",
     one(helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"]), [VOLUME],
         {"s": np.float32(0.1), "z": np.int8(0)}), ""),
    ("scatter that adds",
     one(helper.make_node("ScatterND", ["x", "i", "u"], ["y"], reduction="add"),
         [("x", F, [4, 4]), ("i", I, [2, 1]), ("u", F, [2, 4])]), "ScatterND: reduction='add' is not taken"),
    ("numbers of 64 bits", one(helper.make_node("Sigmoid", ["x"], ["y"]), [("x", TensorProto.DOUBLE, [1])]),
     "Sigmoid: not taken of type double"),
    ("another domain", one(helper.make_node("FusedConv", ["x"], ["y"], domain="com.microsoft"), [VOLUME]),
     "FusedConv: an operator of com.microsoft"),
    ("a later opset", one(helper.make_node("Relu", ["x"], ["y"]), [VOLUME], opset=25), "opset 25, allowed 9 to 24"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "model", "wanted"), CASES, ids=[case[0] for case in CASES])
def test_one_node(name: str, model: Any, wanted: str) -> None:
    found = unsupported(model, "11.4")
    assert len(found) == bool(wanted)
    assert not wanted or found[0].startswith(wanted)


def test_what_later_releases_take() -> None:
    grid = one(helper.make_node("GridSample", ["x", "g"], ["y"], mode="linear"), [VOLUME, ("g", F, ["n", 2, 2, 2, 3])])
    assert unsupported(grid, "11.1") == ["GridSample: takes inputs of rank 4, not 5"]
    assert unsupported(grid, "11.2.1") == []
    squeeze = one(helper.make_node("Squeeze", ["x"], ["y"]), [("x", F, ["n", 1, 4])])
    assert unsupported(squeeze, "11.5") == []
    dft = one(helper.make_node("DFT", ["x", ""], ["y"]), [("x", F, [1, 8, 1])])
    assert unsupported(dft, "11.1") == ["DFT: taken from TensorRT 11.2 on"]
    assert unsupported(dft, "11.2.1") == []


def test_the_table_names_operators_of_onnx() -> None:
    table = load()
    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    legacy = {"Scatter", "Upsample"}  # of opsets before 11
    assert set(table["types"]) - legacy <= known
    assert {*table["rule"], *table["data"], *table["since"]} <= {*table["types"], *table["since"]}
    words = {name.lower() for name in TensorProto.DataType.keys()}  # noqa: SIM118
    assert {kind for kinds in table["types"].values() for kind in kinds} <= words
    allowed = {"spatial", "rank", "rank_since", "constant", "ones", "one_of", "outputs", "below", "zeros", "static"}
    assert {word for rule in table["rule"].values() for word in rule} <= allowed | {"static_until"}
