"""Rounding of kernels to eight bits: their sums stay, since most of a scan is one value."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from svd_hub.export import quantise
from svd_hub.export.quantise import quantised, rounded


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
    monkeypatch.setattr(quantise, "_keep_sums", lambda before, after: None)
    assert kept < 0.01
    assert error() > 3 * kept
