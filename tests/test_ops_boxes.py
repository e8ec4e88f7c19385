"""Boxes: areas, overlaps, clipping and the coder, against statements in plain Python."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from svd_hub import ops


def draw(generator: torch.Generator, *shape: int) -> Tensor:
    """Return boxes of which some are degenerate: on integers, without area, turned round, equal to others."""
    corners = torch.rand(*shape, 4, generator=generator) * 10 - 2
    kind = torch.randint(5, shape, generator=generator)[..., None]
    ordered = torch.cat([corners[..., :2], corners[..., :2] + corners[..., 2:].abs()], -1)
    flat = torch.cat([ordered[..., :3], ordered[..., 1:2]], -1)
    return torch.where(
        kind == 0, corners.round(), torch.where(kind == 1, flat, torch.where(kind == 2, corners, ordered))
    )


def area_of(box: list[float]) -> float:
    x0, y0, x1, y1 = box
    return (x1 - x0) * (y1 - y0) if x1 > x0 and y1 > y0 else 0.0


def iou_of(a: list[float], b: list[float]) -> float:
    if area_of(a) == 0 or area_of(b) == 0:
        return 0.0
    shared = area_of([max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])])
    return shared / (area_of(a) + area_of(b) - shared)


def test_area_iou_and_matrix_in_200_random_cases() -> None:
    generator = torch.Generator().manual_seed(0)
    overlapping = 0
    for case in range(200):
        n, m = case % 9, (case // 9) % 7
        a, b = draw(generator, n), draw(generator, m)
        expected = np.array([[iou_of(p, q) for q in b.tolist()] for p in a.tolist()]).reshape(n, m)
        found = ops.iou_matrix(a, b)
        np.testing.assert_allclose(found.numpy(), expected, atol=2e-6)
        np.testing.assert_allclose(ops.area(a).numpy(), [area_of(box) for box in a.tolist()], rtol=1e-5, atol=1e-5)
        size = min(n, m)
        torch.testing.assert_close(ops.iou(a[:size], b[:size]), found.diagonal()[:size])
        overlapping += int((found > 0).sum())
    assert overlapping > 150


def test_there_is_no_plus_one() -> None:
    a, b = torch.tensor([0.0, 0, 2, 2]), torch.tensor([1.0, 1, 3, 3])
    assert ops.area(a) == 4
    assert ops.iou(a, b) == torch.tensor(1 / 7)
    assert ops.iou(a, torch.tensor([2.0, 0, 4, 2])) == 0, "boxes that touch share nothing"


@pytest.mark.parametrize("box", [[3.0, 3, 3, 3], [3.0, 3, 5, 3], [5.0, 5, 3, 3], [5.0, 3, 3, 5], [1e30, 0, -1e30, 1]])
def test_degenerate_boxes_overlap_nothing_not_even_themselves(box: list[float]) -> None:
    bad = torch.tensor(box, requires_grad=True)
    whole = torch.tensor([0.0, 0, 10, 10])
    overlaps = torch.stack([ops.iou(bad, bad), ops.iou(bad, whole), ops.iou(whole, bad), ops.area(bad)])
    assert torch.equal(overlaps, torch.zeros(4))
    overlaps.sum().backward()
    assert bad.grad is not None
    assert bad.grad.isfinite().all()


def test_iou_is_batched_and_computed_in_float32_at_least() -> None:
    generator = torch.Generator().manual_seed(1)
    a, b = draw(generator, 3, 5), draw(generator, 3, 4)
    stacked = torch.stack([ops.iou_matrix(x, y) for x, y in zip(a, b, strict=True)])
    assert torch.equal(ops.iou_matrix(a, b), stacked)
    large = torch.tensor([[0.0, 0, 512, 512]], dtype=torch.float16)
    assert ops.area(large).item() == 512 * 512  # infinite in float16
    assert ops.iou_matrix(large, large).item() == 1
    assert ops.iou_matrix(large.double(), large.double()).dtype == torch.float64
    assert ops.area(torch.tensor([0, 0, 3, 4])).item() == 12


def test_iou_has_right_gradients() -> None:
    generator = torch.Generator().manual_seed(2)
    low = torch.rand(2, 4, 2, generator=generator, dtype=torch.float64)
    boxes = torch.cat([low, low + 0.5 + torch.rand(2, 4, 2, generator=generator, dtype=torch.float64)], -1)
    assert (ops.iou_matrix(boxes[0], boxes[1]) > 0).any()
    assert torch.autograd.gradcheck(ops.iou_matrix, (boxes[0].requires_grad_(), boxes[1].requires_grad_()))


def test_clip() -> None:
    boxes = torch.tensor([[-3.0, -2, 5, 6], [4.0, 5, 90, 91], [-9.0, -9, -1, -1], [20.0, 30, 40, 50]])
    expected = torch.tensor([[0.0, 0, 5, 6], [4.0, 5, 20, 10], [0.0, 0, 0, 0], [20.0, 10, 20, 10]])
    assert torch.equal(ops.clip(boxes, (10, 20)), expected)  # height 10, width 20
    assert torch.equal(ops.clip(boxes, torch.tensor([10, 20])), expected)
    sizes = torch.tensor([[10, 20], [100, 200]])
    images = torch.tensor([0, 1, 1, 0])
    expected[1] = boxes[1]
    assert torch.equal(ops.clip(boxes, sizes[images]), expected)
    assert ops.clip(boxes[:0], (10, 20)).shape == (0, 4)
    assert ops.clip(boxes.half(), (10, 20)).dtype == torch.float16


def test_larger_than() -> None:
    boxes = torch.tensor([[0.0, 0, 2, 2], [0.0, 0, 2, 0], [2.0, 2, 0, 0], [0.0, 0, 2, 3], [0.0, 0, math.nan, 3]])
    assert ops.larger_than(boxes).tolist() == [True, False, False, True, False]
    assert ops.larger_than(boxes, 2).tolist() == [False] * 5, "larger, not as large"
    assert ops.larger_than(boxes, 1.5).tolist() == [True, False, False, True, False]


def encode_one(box: list[float], goal: list[float], means: list[float], stds: list[float]) -> list[float]:
    """A side that is zero or negative counts as a millionth of a pixel."""
    width, height, goal_width, goal_height = (max(b[i + 2] - b[i], 1e-6) for b in (box, goal) for i in (0, 1))
    raw = [
        ((goal[0] + goal[2]) - (box[0] + box[2])) / 2 / width,
        ((goal[1] + goal[3]) - (box[1] + box[3])) / 2 / height,
        math.log(goal_width / width),
        math.log(goal_height / height),
    ]
    return [(value - mean) / std for value, mean, std in zip(raw, means, stds, strict=True)]


def decode_one(box: list[float], delta: list[float], means: list[float], stds: list[float]) -> list[float]:
    dx, dy, dw, dh = (d * s + m for d, s, m in zip(delta, stds, means, strict=True))
    limit = math.log(1000 / 16)
    width = (box[2] - box[0]) * math.exp(max(-limit, min(limit, dw)))
    height = (box[3] - box[1]) * math.exp(max(-limit, min(limit, dh)))
    x = (box[0] + box[2]) / 2 + dx * (box[2] - box[0])
    y = (box[1] + box[3]) / 2 + dy * (box[3] - box[1])
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


def test_coder_in_200_random_cases() -> None:
    generator = torch.Generator().manual_seed(3)
    clamped = degenerate = 0
    for case in range(200):
        boxes, goals = draw(generator, 2, 3).double() * 5
        means = [(0.0, 0.0, 0.0, 0.0), (0.1, -0.2, 0.3, 0.05)][case % 2]
        stds = [(1.0, 1.0, 1.0, 1.0), (0.1, 0.1, 0.2, 0.2)][case // 2 % 2]
        deltas = ops.encode(boxes, goals, means, stds)
        expected = [encode_one(*pair, means, stds) for pair in zip(boxes.tolist(), goals.tolist(), strict=True)]
        np.testing.assert_allclose(deltas.numpy(), expected, rtol=1e-9, atol=1e-9)
        whole = ops.larger_than(boxes) & ops.larger_than(goals)
        degenerate += int((~whole).sum())
        within = ((deltas * torch.tensor(stds) + torch.tensor(means))[:, 2:].abs() < ops.MAX_LOG_RATIO).all(1)
        back = ops.decode(boxes, deltas, means, stds)
        torch.testing.assert_close(back[whole & within], goals[whole & within])
        wild = torch.randn(3, 4, generator=generator, dtype=torch.float64) * 8
        expected = [decode_one(*pair, means, stds) for pair in zip(boxes.tolist(), wild.tolist(), strict=True)]
        np.testing.assert_allclose(ops.decode(boxes, wild, means, stds).numpy(), expected, rtol=1e-9, atol=1e-9)
        clamped += int(((wild * torch.tensor(stds) + torch.tensor(means))[:, 2:].abs() > ops.MAX_LOG_RATIO).sum())
    assert clamped > 100
    assert 150 < degenerate < 450


def test_decode_as_the_documentation_of_upstream_shows_it() -> None:
    """The example of mmdet's delta2bbox; there with a clip to 32 x 32."""
    boxes = torch.tensor([[0.0, 0, 1, 1], [0.0, 0, 1, 1], [0.0, 0, 1, 1], [5.0, 5, 5, 5]])
    deltas = torch.tensor([[0.0, 0, 0, 0], [1.0, 1, 1, 1], [0.0, 0, 2, -1], [0.7, -1.9, -0.5, 0.3]])
    expected = [[0, 0, 1, 1], [0.1409, 0.1409, 2.8591, 2.8591], [0, 0.3161, 4.1945, 0.6839], [5, 5, 5, 5]]
    found = ops.clip(ops.decode(boxes, deltas), (32, 32))
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=5e-5)


def test_decode_of_each_class_takes_the_layout_of_a_fully_connected_head() -> None:
    generator = torch.Generator().manual_seed(4)
    boxes = draw(generator, 6)
    outputs = torch.randn(6, 3 * 4, generator=generator)
    stds = (0.1, 0.1, 0.2, 0.2)
    found = ops.decode(boxes[:, None], outputs.unflatten(1, (-1, 4)), stds=stds)
    for label in range(3):
        assert torch.equal(found[:, label], ops.decode(boxes, outputs[:, 4 * label : 4 * label + 4], stds=stds))


def test_no_box_makes_deltas_that_are_not_finite() -> None:
    boxes = torch.tensor([[3.0, 3, 3, 3], [0.0, 0, 4, 4], [5.0, 5, 3, 3], [0.0, 0, 4, 0]])
    assert ops.encode(boxes[:, None], boxes).isfinite().all()
    assert ops.decode(boxes, torch.full((4, 4), 1e4)).isfinite().all()
    assert ops.encode(boxes[:0], boxes[:0]).shape == (0, 4)
    assert ops.decode(boxes[:0], boxes[:0]).shape == (0, 4)


def test_deltas_of_half_precision_become_boxes_of_single() -> None:
    boxes = torch.tensor([[100.0, 200, 611, 713]])
    found = ops.decode(boxes, torch.zeros(1, 4, dtype=torch.float16))
    assert found.dtype == torch.float32
    assert torch.equal(found, boxes)
    assert ops.encode(boxes.bfloat16(), boxes).dtype == torch.float32


def test_decode_has_right_gradients() -> None:
    boxes = torch.tensor([[1.0, 2, 7, 9], [0.0, 0, 3, 3]], dtype=torch.float64)
    deltas = torch.tensor([[0.1, 0.2, 0.3, -0.4], [1.0, -1, 0.5, 0.5]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ops.decode, (boxes, deltas))
