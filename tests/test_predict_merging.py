"""Boxes of neighbouring slices become findings by one rule, stated here in plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers_detection import iou_of

from svd_hub.models.detection import Detections
from svd_hub.predict.detect import merged, table


def rows_on(planes: list[int], count: int, labels: int, seed: int) -> dict[int, np.ndarray]:
    """Random boxes, many of which overlap those of the next slice."""
    g = np.random.default_rng(seed)
    found = {}
    for plane in planes:
        low = g.integers(0, 6, (g.integers(0, count), 2)) * 4 + g.random((1, 2)) * 3
        boxes = np.concatenate([low, low + 8], 1)
        rest = np.stack([g.permutation(1000)[: len(low)] / 1000 + plane * 1e-6, g.integers(0, labels, len(low))], 1)
        found[plane] = np.concatenate([boxes, rest], 1)
    return found


def chains(boxes: dict[int, np.ndarray], planes: list[int], iou: float) -> list[list[tuple[int, int]]]:
    """The rule of `merged` in plain loops: lists of (plane, number of the box)."""
    free = {(p, k) for p in planes for k in range(len(boxes[p]))}
    found = []
    for p, k in sorted(free, key=lambda at: -boxes[at[0]][at[1]][4]):
        if (p, k) not in free:
            continue
        free.remove((p, k))
        chain = [(p, k)]
        for step in (-1, 1):
            here, at = (p, k), planes.index(p) + step
            while 0 <= at < len(planes):
                last = boxes[here[0]][here[1]]
                there = [
                    (iou_of(last[:4], boxes[q][j][:4]), -j)
                    for q, j in free
                    if q == planes[at] and boxes[q][j][5] == last[5]
                ]
                if not there or max(there)[0] < iou:
                    break
                here = (planes[at], -max(there)[1])
                free.remove(here)
                chain.append(here)
                at += step
        found.append(sorted(chain))
    return found


@pytest.mark.parametrize("seed", range(25))
def test_merging_is_its_plain_statement(seed: int) -> None:
    planes = [0, 2, 5, 7, 9, 12]
    boxes, iou = rows_on(planes, 9, 1 + seed % 3, seed), (0.2, 0.5, 0.9, 1.0)[seed % 4]
    classes = ["a", "b", "c"]
    found = merged(boxes, planes, classes, iou=iou)
    expected = chains(boxes, planes, iou)
    assert len(found) == len(expected)
    for one, chain in zip(found, expected, strict=True):
        members = {p: boxes[p][k] for p, k in chain}
        best = max(members, key=lambda p: members[p][4])
        assert (one.plane, one.score) == (best, members[best][4])
        assert one.label == classes[int(members[best][5])]
        assert one.planes == (min(members), max(members))
        assert one.boxes == {p: tuple(row[:4]) for p, row in members.items()}
        sides = np.array([row[:4] for row in members.values()])
        assert one.extent == (*sides[:, :2].min(0), *sides[:, 2:].max(0))
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert sum(len(one.boxes) for one in found) == sum(map(len, boxes.values())), "each box is in one chain"


def test_a_chain_ends_where_a_slice_has_no_such_box() -> None:
    box = [10.0, 10.0, 30.0, 30.0]
    boxes = {k: np.array([[*box, 0.5 + k / 100, 0.0]]) for k in range(6)}
    boxes[2] = np.array([[*box, 0.9, 1.0]])
    boxes[4] = np.zeros((0, 6))
    found = merged(boxes, list(range(6)), ["a", "b"], iou=0.5)
    assert [(one.label, one.planes) for one in found] == [("b", (2, 2)), ("a", (5, 5)), ("a", (3, 3)), ("a", (0, 1))]


def test_boxes_are_scaled_back_and_weak_ones_left_out() -> None:
    boxes = torch.tensor([[2.0, 3.0, 8.0, 12.0], [0.0, 0.0, 1.0, 1.0], [4.0, 4.0, 6.0, 9.0]])
    found = table(Detections(boxes, torch.tensor([0.9, 0.1, 0.0999]), torch.tensor([1, 0, 1])), (2.0, 3.0), 0.1)
    assert found[0].tolist() == [1.0, 1.0, 4.0, 4.0, pytest.approx(0.9), 1.0]
    assert len(found) == 2
    assert found.dtype == np.float64
