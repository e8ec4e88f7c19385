"""Eight bits: each number is rounded once and before a layer, by the step that is nearest to what was seen."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from svd_hub.export import quantise
from svd_hub.export.quantise import heads, quantised, rounded, shortcuts, step_of, wrong_in_openvino


@pytest.mark.parametrize("count", [1, 2, 27, 343])
def test_sums_stay_and_no_element_goes_far(count: int) -> None:
    steps = np.random.default_rng(count).uniform(-126, 126, (50, 3, count))
    whole = rounded(steps)
    assert (whole == np.rint(whole)).all()
    assert np.abs(whole - steps).max() < 1.5
    assert np.abs((whole - steps).sum(-1)).max() <= 0.5 + 1e-9
    assert (np.rint(steps) - steps).sum(-1).std() > np.abs((whole - steps).sum(-1)).std() or count < 3


def test_what_is_whole_stays_and_the_ends_hold() -> None:
    whole = np.arange(-127.0, 128.0)[None]
    assert (rounded(whole) == whole).all()
    assert np.abs(rounded(np.full((1, 9), 127.4))).max() == 127
    assert (rounded(np.zeros((2, 0, 4))) == np.zeros((2, 0, 4))).all()


def convolution(kernel: np.ndarray) -> onnx.ModelProto:
    weights = [numpy_helper.from_array(kernel, "w"), numpy_helper.from_array(np.zeros(len(kernel), np.float32), "b")]
    node = helper.make_node("Conv", ["volume", "w", "b"], ["out"], name="conv", pads=[0] * 6)
    shapes = [(["N", 1, "D", "H", "W"], "volume"), (["N", len(kernel), "d", "h", "w"], "out")]
    read, gives = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for shape, name in shapes)
    graph = helper.make_graph([node], "net", [read], [gives], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_air_does_not_shift_a_map(monkeypatch: pytest.MonkeyPatch) -> None:
    """A volume of one value: nearest rounding is off by many times what is left with the sums kept."""
    random = np.random.default_rng(0)
    model = convolution(random.normal(0, 0.05, (16, 1, 7, 7, 7)).astype(np.float32))
    air = np.full((1, 9, 9, 9), -1.987, np.float32)
    wanted = ReferenceEvaluator(model).run(None, {"volume": air[None]})[0]

    def error() -> float:
        found = ReferenceEvaluator(quantised(model, [air])).run(None, {"volume": air[None]})[0]
        return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))

    kept = error()
    monkeypatch.setattr(quantise, "rounded", np.rint)
    assert kept < 0.01
    assert error() > 3 * kept


def test_steps_are_those_of_the_least_squared_error() -> None:
    random = np.random.default_rng(0)
    usual = np.abs(random.normal(0, 1, 100_000))
    assert step_of(usual) < usual.max() / 127, "few numbers are that large"
    assert step_of(np.linspace(0, 3, 1000)) == pytest.approx(3 / 127, rel=0.02), "as many as of any other size"
    assert step_of(np.append(usual, 1000.0)) > 4 * step_of(usual), "one that is far out counts, by its square"
    assert step_of(np.zeros(9)) == pytest.approx(1 / 127)

    def error(step: float) -> float:
        return float(((np.minimum(np.rint(usual / step), 127) * step - usual) ** 2).sum())

    assert error(step_of(usual)) <= min(error(part * usual.max() / 127) for part in np.linspace(0.3, 1, 50)) * 1.001


def network(*nodes: onnx.NodeProto, outputs: tuple[str, ...] = ("out",), **kernels: np.ndarray) -> onnx.ModelProto:
    arrays = [numpy_helper.from_array(kernel.astype(np.float32), name) for name, kernel in kernels.items()]
    read, *gives = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 5) for name in ("volume", *outputs))
    graph = helper.make_graph(nodes, "net", [read], gives, arrays)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def layer(reads: str, kernel: str, gives: str, size: int = 3) -> onnx.NodeProto:
    return helper.make_node("Conv", [reads, kernel], [gives], name=gives, pads=[size // 2] * 6)


def block() -> onnx.ModelProto:
    """Two layers that read one map, a sum, a Relu, a head."""
    kernels = np.random.default_rng(1).normal(0, 0.2, (3, 4, 4, 3, 3, 3))
    return network(
        layer("volume", "k1", "a"),
        helper.make_node("Relu", ["a"], ["b"]),
        layer("b", "k2", "c"),
        layer("b", "k3", "d"),
        helper.make_node("Add", ["c", "d"], ["e"]),
        helper.make_node("Relu", ["e"], ["f"]),
        layer("f", "k4", "out", size=1),
        k1=kernels[0, :, :1],
        k2=kernels[1],
        k3=kernels[2],
        k4=kernels[0, :3, :, :1, :1, :1],
    )


VOLUMES = list(np.random.default_rng(2).normal(0, 1, (4, 1, 6, 7, 8)).astype(np.float32))


def outputs(model: onnx.ModelProto) -> np.ndarray:
    return np.concatenate([ReferenceEvaluator(model).run(None, {"volume": v[None]})[0] for v in VOLUMES])


def test_each_map_is_rounded_once_before_layers_alone() -> None:
    model = block()
    made = quantised(model, VOLUMES)
    onnx.checker.check_model(made, full_check=True)
    assert [node.input[0] for node in made.graph.node if node.op_type == "QuantizeLinear"] == ["volume", "b"]
    reads = {node.name: list(node.input) for node in made.graph.node}
    assert reads["c"][0] == reads["d"][0] == "b_rounded"
    assert reads["out"] == ["f", "k4"], "a head stays"
    assert heads(model) == ["out"]
    stored = {tensor.name: tensor.data_type for tensor in made.graph.initializer}
    assert {name for name, kind in stored.items() if kind == TensorProto.INT8 and name.endswith("_int8")} == {
        *("k1_int8", "k2_int8", "k3_int8")
    }
    assert not {"k1", "k2", "k3"} & set(stored), "what nothing reads any more is gone"
    wanted, found = outputs(model), outputs(made)
    assert 0 < np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < 0.02


def test_the_same_data_give_the_same_bytes_and_the_model_stays() -> None:
    model = block()
    before = model.SerializeToString(deterministic=True)
    one, two = (quantised(model, VOLUMES, centred=True).SerializeToString(deterministic=True) for _ in range(2))
    assert one == two
    assert model.SerializeToString(deterministic=True) == before


def test_centred_channels_have_their_means() -> None:
    kernels = np.random.default_rng(1).normal(0, 0.2, (2, 4, 4, 3, 3, 3))
    nodes = [layer("volume", "k1", "a"), helper.make_node("Relu", ["a"], ["b"]), layer("b", "k2", "out")]
    model = network(*nodes, k1=kernels[0, :, :1], k2=kernels[1])
    wanted = outputs(model).mean((0, 2, 3, 4))

    def off(*, centred: bool) -> float:
        return float(np.abs(outputs(quantised(model, VOLUMES, centred=centred)).mean((0, 2, 3, 4)) - wanted).max())

    assert off(centred=True) < 5e-5
    assert off(centred=False) > 5e-4


def test_projections_of_shortcuts() -> None:
    assert shortcuts(block()) == [], "3x3x3"
    kernels = np.random.default_rng(1).normal(0, 0.2, (3, 4, 4, 3, 3, 3))
    model = network(
        layer("volume", "k1", "a"),
        layer("a", "k2", "b"),
        layer("b", "k3", "c", size=1),  # the last of a bottleneck: what it reads nothing else reads
        layer("a", "k4", "d", size=1),
        helper.make_node("Add", ["c", "d"], ["e"]),
        layer("e", "k5", "out"),
        k1=kernels[0, :, :1],
        k2=kernels[1],
        k3=kernels[2, ..., :1, :1, :1],
        k4=kernels[0, ..., :1, :1, :1],
        k5=kernels[2],
    )
    assert shortcuts(model) == ["d"]
    made = quantised(model, VOLUMES, leave=["d"])
    assert shortcuts(made) == ["d"], "it is found in what was made, too"
    assert {node.name: list(node.input) for node in made.graph.node}["d"] == ["a", "k4"]


def test_layers_that_openvino_is_wrong_in() -> None:
    assert wrong_in_openvino(block()) == []
    assert wrong_in_openvino(quantised(block(), VOLUMES)) == []
    kernels = np.random.default_rng(1).normal(0, 0.2, (2, 4, 4, 3, 3, 3))
    model = network(
        layer("volume", "k1", "a"),  # read by a Relu and a sum
        helper.make_node("Relu", ["a"], ["b"]),
        layer("b", "k2", "c"),
        helper.make_node("Add", ["a", "c"], ["d"]),
        helper.make_node("Concat", ["b", "d"], ["e"], axis=1),
        layer("e", "k3", "out"),
        k1=kernels[0, :, :1],
        k2=kernels[1],
        k3=np.concatenate([kernels[0], kernels[1]], 1),
    )
    assert wrong_in_openvino(model) == ["a", "out"]
    made = quantised(model, VOLUMES)
    assert wrong_in_openvino(made) == ["a", "out"]
    left = quantised(model, VOLUMES, leave=["a", "out"])
    assert [node.input[0] for node in left.graph.node if node.op_type == "QuantizeLinear"] == ["b"]
