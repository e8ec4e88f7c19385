"""Suppression against a greedy loop in NumPy and against the reference evaluator of ONNX, index by index."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from svd_hub import ops
from svd_hub.errors import OptionError

module: Any = importlib.import_module("svd_hub.ops.nms")  # the package has a function of that name
THRESHOLDS = (0.0, 0.25, 0.3, 0.5, 0.7, 1.0)


def draw(generator: torch.Generator, count: int, kind: int) -> tuple[Tensor, Tensor]:
    """Return boxes and scores of one of five kinds: plain; on a coarse grid (IoU at a threshold, equal scores); turned
    round or without area; copies of few boxes; a chain in which each box overlaps the next."""
    low = torch.rand(count, 2, generator=generator) * 20
    boxes = torch.cat([low, low + torch.rand(count, 2, generator=generator) * 12], 1)
    scores = torch.rand(count, generator=generator)
    if kind == 1:
        boxes, scores = (boxes / 4).round(), (scores * 4).round() / 4
    elif kind == 2:
        mixed = torch.where(torch.rand(count, 1, generator=generator) < 0.5, boxes[:, [2, 3, 0, 1]], boxes)
        boxes = torch.where(torch.rand(count, 1, generator=generator) < 0.2, mixed[:, [0, 1, 0, 3]], mixed)
    elif kind == 3:
        boxes = boxes[torch.randint(max(1, count // 4), (count,), generator=generator)] if count else boxes
    elif kind == 4:
        steps = torch.arange(count)[:, None] * torch.tensor([1.0, 0, 1, 0])
        boxes, scores = torch.tensor([0.0, 0, 3, 3]) + steps, torch.linspace(1, 0, count)
    return boxes, scores


def overlap(a: np.ndarray, b: np.ndarray) -> np.float32:
    """Return the IoU of two boxes whose corners may come in any order; 0 where one has no area."""
    (ax0, ax1), (ay0, ay1) = sorted(a[[0, 2]]), sorted(a[[1, 3]])
    (bx0, bx1), (by0, by1) = sorted(b[[0, 2]]), sorted(b[[1, 3]])
    width, height = min(ax1, bx1) - max(ax0, bx0), min(ay1, by1) - max(ay0, by0)
    if width <= 0 or height <= 0:
        return np.float32(0)
    return width * height / ((ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - width * height)


def greedy(boxes: Tensor, scores: Tensor, threshold: float, lowest: float | None, most: int | None) -> list[int]:
    corners, values = boxes.numpy(), scores.tolist()
    kept: list[int] = []
    for i in sorted(range(len(values)), key=lambda i: (-values[i], i)):
        if lowest is not None and not np.float32(values[i]) > np.float32(lowest):
            continue
        if all(not overlap(corners[i], corners[j]) > np.float32(threshold) for j in kept):
            kept.append(i)
    return kept[:most]


def cases() -> Any:
    generator = torch.Generator().manual_seed(0)
    for case in range(200):
        count = int(torch.randint(0, 50, (1,), generator=generator))
        boxes, scores = draw(generator, count, case % 5)
        threshold = THRESHOLDS[case // 5 % 6]
        yield boxes, scores, threshold, (None, 0.0, 0.25, 0.5)[case // 2 % 4], (None, 0, 3, 100)[case // 3 % 4]


def test_nms_in_200_random_cases() -> None:
    dropped = 0
    for boxes, scores, threshold, lowest, most in cases():
        expected = greedy(boxes, scores, threshold, lowest, most)
        assert ops.nms(boxes, scores, threshold, lowest, most).tolist() == expected
        dropped += len(scores) - len(expected)
    assert dropped > 1500


def test_batched_nms_in_200_random_cases() -> None:
    """The groups are treated alone; the order is that of scores over all, of equal scores that of indices."""
    generator = torch.Generator().manual_seed(1)
    for boxes, scores, threshold, lowest, most in cases():
        groups = torch.randint(-2, 3, scores.shape, generator=generator) * 1_000_000_007
        expected = []
        for group in groups.unique():
            members = (groups == group).nonzero().flatten()
            expected += members[greedy(boxes[members], scores[members], threshold, lowest, most)].tolist()
        expected.sort(key=lambda i: (-scores[i].item(), i))
        assert ops.batched_nms(boxes, scores, groups, threshold, lowest, most).tolist() == expected


def test_equal_to_the_reference_evaluator_of_onnx_in_200_random_cases() -> None:
    onnx = pytest.importorskip("onnx")
    reference = pytest.importorskip("onnx.reference")
    names = ["boxes", "scores", "most", "iou", "lowest"]
    node = onnx.helper.make_node("NonMaxSuppression", names, ["kept"])
    kinds = [onnx.TensorProto.FLOAT] * 2 + [onnx.TensorProto.INT64] + [onnx.TensorProto.FLOAT] * 2
    values = [onnx.helper.make_tensor_value_info(n, k, None) for n, k in zip(names, kinds, strict=True)]
    out = onnx.helper.make_tensor_value_info("kept", onnx.TensorProto.INT64, None)
    evaluator = reference.ReferenceEvaluator(
        onnx.helper.make_model(
            onnx.helper.make_graph([node], "g", values, [out]), opset_imports=[onnx.helper.make_opsetid("", 17)]
        )
    )
    generator = torch.Generator().manual_seed(2)
    for boxes, scores, threshold, lowest, most in cases():
        classes, count = 2, len(scores)
        batch = torch.stack([boxes, boxes.flip(0)])  # (2, N, 4)
        table = torch.stack([scores, scores[torch.randperm(count, generator=generator)]]).expand(2, classes, count)
        least, limit = -1.0 if lowest is None else lowest, 100 if most is None else most
        feeds = [batch[..., [1, 0, 3, 2]], table, *map(torch.tensor, ([limit], [threshold], [least]))]
        (expected,) = evaluator.run(
            None, {n: np.ascontiguousarray(v.numpy()) for n, v in zip(names, feeds, strict=True)}
        )
        group = torch.arange(2 * classes).repeat_interleave(count)
        flat = batch[:, None].expand(2, classes, count, 4).reshape(-1, 4)
        kept = ops.batched_nms(flat, table.reshape(-1), group, threshold, least, limit)
        kept = kept[group[kept].sort(stable=True)[1]]
        found = torch.stack([group[kept] // classes, group[kept] % classes, kept % max(1, count)], 1)
        assert found.tolist() == expected.tolist()


def test_the_threshold_itself_does_not_drop() -> None:
    boxes = torch.tensor([[0.0, 0, 2, 1], [0.0, 0, 1, 1], [0.0, 0, 2, 1]])  # IoU 1/2 exactly
    scores = torch.tensor([0.5, 0.4, 0.3])
    assert ops.nms(boxes, scores, 0.5).tolist() == [0, 1]
    assert ops.nms(boxes, scores, 0.499).tolist() == [0]
    assert ops.nms(boxes, scores, 1.0).tolist() == [0, 1, 2], "equal boxes have an IoU of 1, which is not above 1"
    assert ops.nms(boxes, scores, 0.0, 0.4).tolist() == [0], "a score at the threshold takes no part"


def test_of_equal_scores_the_lower_index_comes_first() -> None:
    boxes = torch.tensor([[0.0, 0, 4, 4]]).repeat(300, 1)
    assert ops.nms(boxes, torch.ones(300), 0.5).tolist() == [0]
    apart = boxes + torch.arange(300)[:, None] * 10
    assert ops.nms(apart, torch.ones(300), 0.5).tolist() == list(range(300))


@pytest.mark.parametrize(("pairs", "largest", "smallest"), [(1, 1, 1), (1, 256, 3), (50, 7, 2), (10**9, 10**9, 1)])
def test_blocks_change_nothing(pairs: int, largest: int, smallest: int) -> None:
    generator = torch.Generator().manual_seed(3)
    for kind in range(5):
        boxes, scores = draw(generator, 90, kind)
        order = scores.sort(descending=True, stable=True)[1]
        groups = torch.tensor([3] * 20 + [4] + [7] * 60 + [9] * 9)
        for these in (torch.zeros(90, dtype=torch.int64), groups):
            found = module.greedy(boxes[order], these, 0.3, pairs, largest, smallest)
            expected = torch.zeros(90, dtype=torch.bool)
            for group in these.unique():
                members = (these == group).nonzero().flatten()
                falling = torch.linspace(1, 0, len(members))
                expected[members[greedy(boxes[order][members], falling, 0.3, None, None)]] = True
            assert torch.equal(found, expected)


def test_memory_is_bounded_and_there_is_no_turn_per_box(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []
    turns: list[int] = []
    overlaps, settle = module.overlaps, module.settle

    def counted(first: Tensor, second: Tensor, threshold: float) -> Tensor:
        compared.append(first.shape[1] * second.shape[1])
        return overlaps(first, second, threshold)

    monkeypatch.setattr(module, "overlaps", counted)
    monkeypatch.setattr(module, "settle", lambda *args: turns.append(1) or settle(*args))
    generator = torch.Generator().manual_seed(4)
    low = torch.rand(20_000, 2, generator=generator) * 4000
    kept = ops.nms(torch.cat([low, low + 60], 1), torch.rand(20_000, generator=generator), 0.3, None, None)
    assert 3000 < len(kept) < 10_000
    assert max(compared) <= module.PAIRS
    assert sum(compared) < 20_000**2 / 4, "dropped boxes are compared with all later ones"
    assert len(turns) <= 20_000 / module.SMALLEST_BLOCK + 1
    compared.clear()
    groups = torch.arange(20_000) % 200
    ops.batched_nms(torch.cat([low, low + 60], 1), torch.rand(20_000, generator=generator), groups, 0.3)
    assert sum(compared) < 20_000 * 2 * (module.LARGEST_BLOCK + 100), "groups are compared with each other"


def test_a_chain_is_settled_to_its_end() -> None:
    """Each box overlaps the next only, so every second one is kept: one turn of the iteration settles few."""
    steps = torch.arange(1000)[:, None] * torch.tensor([2.0, 0, 2, 0])
    boxes = torch.tensor([0.0, 0, 3, 3]) + steps
    assert ops.nms(boxes, torch.linspace(1, 0, 1000), 0.1).tolist() == list(range(0, 1000, 2))


def test_groups_far_apart_are_not_rounded() -> None:
    """Pairs whose IoU is a hair above or below the threshold; coordinates moved by 80 x 512 lose that hair."""
    nudge = torch.tensor([-0.001, 0.001]).repeat(40)
    high = torch.stack([torch.zeros(80), torch.zeros(80), 2 + nudge, torch.ones(80)], 1)
    boxes = torch.cat([torch.tensor([[0.0, 0, 1, 1]]).repeat(80, 1), high])  # IoU 1 / (2 + nudge)
    scores, groups = torch.cat([torch.ones(80), torch.zeros(80)]), torch.arange(80).repeat(2)
    kept = ops.batched_nms(boxes, scores, groups, 0.5)
    assert set(kept.tolist()) == {*range(80), *range(81, 160, 2)}
    shifted = boxes + groups[:, None] * 512
    assert set(ops.nms(shifted, scores, 0.5).tolist()) != set(kept.tolist()), "this test sees no rounding"


def test_strange_numbers() -> None:
    nan, inf = float("nan"), float("inf")
    boxes = torch.tensor([[0.0, 0, 4, 4], [0.0, 0, 4, 4], [0.0, 0, 4, 4], [nan, 0, 4, 4], [-inf, 0, inf, 4]])
    scores = torch.tensor([nan, 0.5, 0.9, 0.3, -inf])
    assert ops.nms(boxes, scores, 0.5).tolist() == [2, 3, 4], "a NaN score is never kept"
    assert ops.nms(boxes.half(), scores.half(), 0.5).tolist() == [2, 3, 4]
    assert ops.nms(boxes.double(), scores.double(), 0.5, 0.4).tolist() == [2]
    large = torch.tensor([[0.0, 0, 512, 512], [0.0, 0, 512, 500]], dtype=torch.float16)  # areas beyond float16
    assert ops.nms(large, torch.tensor([0.9, 0.8]), 0.5).tolist() == [0]


def test_empty() -> None:
    nothing, none = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    assert ops.nms(nothing, torch.zeros(0), 0.5).shape == (0,)
    assert ops.batched_nms(nothing, torch.zeros(0), none, 0.5, 0.1, 5).dtype == torch.int64
    assert ops.nms(torch.rand(5, 4), torch.zeros(5), 0.5, 0.5).shape == (0,)
    shapes = [part.shape for part in ops.multiclass_nms(nothing, torch.zeros(0, 3), none)]
    assert shapes == [(0, 4), (0,), (0,), (0,)]


def test_first_of_each() -> None:
    groups = torch.tensor([5, 3, 5, 5, 3, 9, 5])
    assert ops.first_of_each(groups, 2).tolist() == [True, True, True, False, True, True, False]
    assert ops.first_of_each(groups, 0).tolist() == [False] * 7
    assert ops.first_of_each(groups[:0], 2).shape == (0,)


@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("most", [2, 7, 100])
def test_multiclass_nms_is_a_loop_over_images_and_classes(per_class: bool, most: int) -> None:
    generator = torch.Generator().manual_seed(5)
    for kind in range(5):
        count, classes = 40, 3
        boxes, _ = draw(generator, count * classes, kind)
        boxes = boxes.view(count, classes, 4) if per_class else boxes[:count]
        scores = (torch.rand(count, classes, generator=generator) * 20).round() / 20
        images = torch.randint(0, 3, (count,), generator=generator) * 2  # image 1 has no boxes
        found = ops.multiclass_nms(boxes, scores, images, 0.4, 0.2, most)
        expected: list[tuple[Any, ...]] = []
        for image in range(5):
            rows = [i for i in range(count) if images[i] == image]
            taken = []
            for label in range(classes):
                these = boxes[rows, label] if per_class else boxes[rows]
                for i in greedy(these, scores[rows, label], 0.4, 0.2, None):
                    taken.append((-scores[rows[i], label].item(), rows[i], label, these[i].tolist()))
            expected += [(box, -score, label, image) for score, _, label, box in sorted(taken)[:most]]
        assert list(zip(*(part.tolist() for part in found), strict=True)) == expected


@pytest.mark.parametrize(
    ("boxes", "scores", "threshold", "words"),
    [
        ((3, 4), (2,), 0.5, r"boxes \[3, 4\], scores \[2\]"),
        ((3, 5), (3,), 0.5, r"allowed: \(N, 4\)"),
        ((2, 3, 4), (2, 3), 0.5, "boxes"),
        ((3, 4), (3,), 1.5, "iou_threshold=1.5"),
        ((3, 4), (3,), -0.1, "0 to 1"),
        ((3, 4), (3,), float("nan"), "0 to 1"),
    ],
)
def test_nonsense_is_refused(boxes: tuple[int, ...], scores: tuple[int, ...], threshold: float, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        ops.nms(torch.zeros(boxes), torch.zeros(scores), threshold)


@pytest.mark.parametrize("shapes", [((3, 4), (3, 2), (2,)), ((3, 3, 4), (3, 2), (3,)), ((3, 4), (3,), (3,))])
def test_nonsense_for_classes_is_refused(shapes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(OptionError, match=r"allowed: \(N, 4\) or \(N, C, 4\)"):
        ops.multiclass_nms(torch.zeros(shapes[0]), torch.zeros(shapes[1]), torch.zeros(shapes[2], dtype=torch.int64))
