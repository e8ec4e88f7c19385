"""Boxes, pooling and detectors give on a GPU what they give on a CPU: `pytest -m gpu`. The CPU tries the tests."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers_detection import ENCODERS, generator, image, random_boxes, small, squares
from torch import Tensor

from svd_hub import ops
from svd_hub.models.detection import Target

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def moved(value: Any, device: str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    return [moved(item, device) for item in value] if isinstance(value, list) else value


def results(device: str) -> dict[str, Any]:
    """What the functions give on a device, brought back."""
    boxes = random_boxes(400, 1, side=300)
    scores = (torch.rand(400, generator=generator(2), dtype=torch.float64) * 50).round() / 50  # many are equal
    images = torch.arange(400) % 2
    classes = torch.rand(400, 3, generator=generator(3), dtype=torch.float64)
    maps = [torch.randn(2, 4, n, n, generator=generator(n), dtype=torch.float64) for n in (80, 40, 20, 10)]
    boxes, scores, images, classes, maps = (moved(x, device) for x in (boxes, scores, images, classes, maps))
    found = {
        "nms": ops.nms(boxes, scores, 0.5, 0.1, 50),
        "batched_nms": ops.batched_nms(boxes, scores, images, 0.5),
        "multiclass_nms": ops.multiclass_nms(boxes, classes, images),
        "first_of_each": ops.first_of_each(images, 3),
        "multilevel_roi_align": ops.multilevel_roi_align(maps, boxes, images, [4, 8, 16, 32]),
        "roi_align": ops.roi_align(maps[0], boxes, images, (7, 7), 0.25, 2, False),
        "pyramid_anchors": ops.pyramid_anchors(maps, [4, 8, 16, 32]),
        "valid_flags": ops.valid_flags(maps, [4, 8, 16, 32], (200, 250)),
        "decode": ops.decode(boxes, ops.encode(boxes, boxes.flip(0))),
        "iou_matrix": ops.iou_matrix(boxes, boxes),
        "clip": ops.clip(boxes, torch.tensor([[90, 80], [70, 200]], device=device)[images]),
        "inside_image": ops.inside_image(boxes, (200, 250)),
    }
    parts = {name: list(value) if isinstance(value, tuple | list) else [value] for name, value in found.items()}
    assert all(part.device.type == device for value in parts.values() for part in value)
    return {name: moved(value, "cpu") for name, value in parts.items()}


@pytest.mark.parametrize("device", DEVICES)
def test_functions(device: str) -> None:
    expected = results("cpu")
    for name, value in results(device).items():
        for a, b in zip(value, expected[name], strict=True):
            torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_detectors(encoder: str, device: str) -> None:
    """Losses from targets on the CPU, with the same draws; then detections."""
    x, targets = squares(9)
    targets[1] = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    model = small(encoder).double()
    there = copy.deepcopy(model).to(device)
    exact = model(x.double(), targets, generator=generator(0))
    losses = there(x.double().to(device), targets, generator=generator(0))
    for name, loss in losses.items():
        assert loss.device.type == device
        assert loss.item() == pytest.approx(exact[name].item(), rel=1e-6)
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in there.parameters())
    x = image(2, 1, 9, 70, 90).double()
    sizes = [(70, 90), (33, 60)]
    for a, b in zip(there(x.to(device), sizes=sizes), model(x, sizes=sizes), strict=True):
        assert {part.device.type for part in a} == {device}
        for one, two in zip(a, b, strict=True):
            torch.testing.assert_close(one.cpu(), two)
