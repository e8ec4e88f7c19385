"""The detector's graph of fixed shapes says what the detector says, and its two operators are ONNX's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from helpers_export import copied, spread_apart
from helpers_networks import network, sides
from torch import Tensor

from svd_hub.errors import OptionError
from svd_hub.export import detection
from svd_hub.export.detection import LARGEST_TOP_K, NONE, GraphDetector, nms_mask
from svd_hub.export.network import padded
from svd_hub.export.run_onnx import import_runtime
from svd_hub.models.detection.settings import TEST_PROPOSING
from svd_hub.ops import nms


def spread(kind: str, **options: Any) -> Any:
    """A detector whose scores and boxes differ, as those of a trained one do."""
    return spread_apart(network(kind, **options))


def rows(detections: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Boxes and labels of each image, without those that are none."""
    boxes, _, labels = detections
    for own_boxes, own_labels in zip(boxes, labels, strict=True):
        yield own_boxes[own_labels >= 0], own_labels[own_labels >= 0]


CASES: list[tuple[str, dict[str, Any], tuple[int, ...]]] = [
    ("detector", {}, (1, 1, 9, 64, 96)),
    ("detector", {}, (2, 1, 9, 70, 131)),
    ("detector", {"num_classes": 5, "max_detections": 7}, (2, 1, 10, 64, 64)),
    ("detector", {"score_threshold": 0.6}, (3, 1, 9, 64, 64)),
    ("detector", {"score_threshold": 1.0}, (1, 1, 9, 64, 64)),
    ("detector", {"nms_threshold": 0.1, "max_detections": 900}, (1, 1, 9, 32, 40)),
    ("detector_group", {}, (2, 1, 5, 100, 64)),
    ("detector_group", {"num_classes": 1, "max_detections": 3000}, (1, 1, 5, 64, 33)),
]


@pytest.mark.parametrize(("kind", "options", "shape"), CASES, ids=str)
def test_the_graph_says_what_the_detector_says(kind: str, options: dict[str, Any], shape: tuple[int, ...]) -> None:
    model = spread(kind, **options)
    x = torch.randn(shape)
    with torch.no_grad():
        found = GraphDetector(model)(x)
        wanted = padded(model.detect(x), len(x), model.max_detections)
    # boxes whose scores differ in the last bit may change places, and the very last may be another one
    torch.testing.assert_close(found[1], wanted[1], rtol=1e-5, atol=1e-6)
    for (boxes, labels), (own_boxes, own_labels) in zip(rows(found), rows(wanted), strict=True):
        assert len(boxes) == len(own_boxes)
        if not len(boxes):
            continue
        near = (boxes[:, None] - own_boxes).abs().amax(2) + 1e6 * (labels[:, None] != own_labels)
        assert (near.amin(1) < 0.01).float().mean() > 0.98
    assert (wanted[2] >= 0).any() == (options.get("score_threshold") != 1.0)


def test_every_list_is_short_enough_for_tensorrt() -> None:
    assert max(TEST_PROPOSING.before, TEST_PROPOSING.kept) <= LARGEST_TOP_K < 3840
    with pytest.raises(OptionError, match="max_detections=4000 cannot be exported; allowed: 3839 or less"):
        GraphDetector(network("detector", max_detections=4000))


def test_the_mask_is_what_is_kept_row_by_row() -> None:
    for seed in range(30):
        random = np.random.default_rng(seed)
        rows, count, most = (int(random.integers(1, high)) for high in (4, 60, 20))
        low = torch.from_numpy(random.random((rows, count, 2)) * 50)
        boxes = torch.cat([low, low + torch.from_numpy(random.random((rows, count, 2)) * 30)], 2)
        scores = torch.from_numpy(random.random((rows, 1, count)).round(1))
        mask = nms_mask(boxes, scores, 0.5, 0.2, most)
        for k in range(rows):
            kept = nms(boxes[k], scores[k, 0], 0.5, 0.2, most)
            assert sorted(kept.tolist()) == mask[k, 0].nonzero().flatten().tolist()


def test_only_boxes_of_a_level_take_its_numbers() -> None:
    """What a runtime gives for the other boxes, NaN too, goes nowhere: a Where stands behind every RoiAlign."""
    graph = copied("detector_small").graph
    readers = {
        name: [node.op_type for node in graph.node if name in node.input] for n in graph.node for name in n.output
    }
    found = [readers[node.output[0]] for node in graph.node if node.op_type == "RoiAlign"]
    assert [set(those) - {"Shape"} for those in found] == [{"Where"}] * 4


@pytest.mark.parametrize("kind", ["detector_small"])
def test_nodes_of_the_exported_graph_against_the_reference_evaluator(kind: str) -> None:
    """Every NonMaxSuppression and RoiAlign with the very numbers that reach it in ONNX Runtime."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    model = copied(kind)
    nodes = [node for node in model.graph.node if node.op_type in ("NonMaxSuppression", "RoiAlign")]
    assert [node.op_type for node in nodes].count("RoiAlign") == 4
    assert [node.op_type for node in nodes].count("NonMaxSuppression") == 2
    wanted = {name for node in nodes for name in (*node.input, *node.output) if name}
    made = {name for node in model.graph.node for name in node.output}
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    opened = sorted(wanted & made - {value.name for value in model.graph.output})
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in opened)
    session = import_runtime().InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    depth = sides(kind)[0]
    x = np.random.default_rng(0).standard_normal((2, 1, depth, 64, 96)).astype(np.float32)
    found = dict(zip([value.name for value in session.get_outputs()], session.run(None, {"volume": x}), strict=True))
    found |= constants
    for node in nodes:
        kinds = {np.dtype("float32"): onnx.TensorProto.FLOAT, np.dtype("int64"): onnx.TensorProto.INT64}
        infos = {name: onnx.helper.make_tensor_value_info(name, kinds[found[name].dtype], found[name].shape)
                 for name in (*node.input, *node.output)}  # fmt: skip
        graph = onnx.helper.make_graph([node], "one", [infos[n] for n in node.input], [infos[n] for n in node.output])
        alone = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
        (got,) = ReferenceEvaluator(alone).run(None, {name: found[name] for name in node.input})
        assert got.shape == found[node.output[0]].shape
        np.testing.assert_allclose(got, found[node.output[0]], rtol=1e-4, atol=1e-4)


def test_a_score_that_is_none_is_finite_and_below_all() -> None:
    assert np.isfinite(np.float32(NONE))
    assert detection.NONE < -1e20
