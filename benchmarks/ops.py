"""python benchmarks/ops.py: how fast boxes are suppressed and pooled, on one thread.

Aims: 1,000 boxes suppressed in under 0.1 s; RoIAlign of 512 boxes x 256 channels x 7 x 7 in about half a second. Beside
them, in turn: suppression by a loop over boxes and by one whole matrix, and the two usual pure-torch forms of RoIAlign
(gathered corners, grid_sample), which must give the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from facts import alternate, keep
from torch import Tensor

from svd_hub import ops

ROUNDS = 20
BOXES, CHANNELS, STRIDES = 512, 256, [4, 8, 16, 32]


def random_boxes(count: int, size: float, low: float, high: float) -> Tensor:
    """Return boxes in an image of `size` pixels, sides evenly spread on a logarithmic scale."""
    generator = torch.Generator().manual_seed(count)
    sides = torch.exp(torch.rand(count, 2, generator=generator) * math.log(high / low)) * low
    corners = torch.rand(count, 2, generator=generator) * (size - sides)
    return torch.cat([corners, corners + sides], 1)


def loop_nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Suppress by a loop over the boxes that are kept."""
    left, kept = scores.sort(descending=True, stable=True)[1], []
    while len(left):
        kept.append(left[0])
        left = left[1:][~(ops.iou_matrix(boxes[left[:1]], boxes[left[1:]])[0] > threshold)]
    return torch.stack(kept)


def matrix_nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Suppress by the same equation as `ops.nms`, on the matrix of all pairs."""
    order = scores.sort(descending=True, stable=True)[1]
    above = (ops.iou_matrix(boxes[order], boxes[order]) > threshold).triu(1).float()
    kept, before = torch.ones(len(order)), torch.zeros(len(order))
    while not torch.equal(kept, before):
        before, kept = kept, (kept @ above == 0).float()
    return order[kept.bool()]


def samples(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Return y and x (K, 14) of two samples per bin, in cells of stride 4, half-pixel."""
    x0, y0, x1, y1 = (boxes / 4 - 0.5)[..., None].unbind(1)
    place = (torch.arange(14) + 0.5) / 14
    return y0 + (y1 - y0) * place, x0 + (x1 - x0) * place


def gather_align(features: Tensor, boxes: Tensor) -> Tensor:
    """RoIAlign of one image, two samples per bin: four gathered corners for each sample."""
    _, channels, height, width = features.shape
    table = features[0].flatten(1).t().contiguous()
    y, x = samples(boxes)
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    top, left = y.floor().long(), x.floor().long()
    out = torch.zeros(())
    for row, row_weight in ((top, top + 1 - y), ((top + 1).clamp(max=height - 1), y - top)):
        for column, column_weight in ((left, left + 1 - x), ((left + 1).clamp(max=width - 1), x - left)):
            index = row[:, :, None] * width + column[:, None]
            weight = row_weight[:, :, None] * column_weight[:, None]
            out = out + table.index_select(0, index.flatten()) * weight.flatten()[:, None]
    return out.view(-1, 7, 2, 7, 2, channels).mean((2, 4)).permute(0, 3, 1, 2).contiguous()


def grid_align(features: Tensor, boxes: Tensor) -> Tensor:
    """RoIAlign of one image, two samples per bin, by grid_sample."""
    _, channels, height, width = features.shape
    y, x = samples(boxes)
    grid = torch.stack(
        [
            ((x + 0.5) / width * 2 - 1)[:, None].expand(-1, 14, 14),
            ((y + 0.5) / height * 2 - 1)[:, :, None].expand(-1, 14, 14),
        ],
        -1,
    )
    sampled = F.grid_sample(features, grid.reshape(1, -1, 14, 2), padding_mode="border", align_corners=False)
    return F.avg_pool2d(sampled.view(channels, -1, 14, 14).transpose(0, 1), 2)


def suppression() -> dict[str, Any]:
    """Measure `ops.nms` and its groups."""
    generator = torch.Generator().manual_seed(0)
    few, many = random_boxes(1000, 512, 8, 200), random_boxes(10_000, 512, 8, 200)
    score, scores = torch.rand(1000, generator=generator), torch.rand(10_000, generator=generator)
    chain = torch.tensor([0.0, 0, 3, 3]) + torch.arange(1000)[:, None] * torch.tensor([2.0, 0, 2, 0])
    levels, images = torch.arange(10_000) // 1000, torch.zeros(1000, dtype=torch.int64)
    classes = torch.rand(1000, 80, generator=generator).pow(8)
    for form in (loop_nms, matrix_nms):
        if not torch.equal(form(few, score, 0.7), ops.nms(few, score, 0.7)):
            raise SystemExit(f"{form.__name__} keeps other boxes")
    cases: dict[str, Callable[[], Any]] = {
        "1000 boxes, IoU 0.7": lambda: ops.nms(few, score, 0.7),
        "1000 boxes, IoU 0.7, loop over boxes": lambda: loop_nms(few, score, 0.7),
        "1000 boxes, IoU 0.7, one matrix": lambda: matrix_nms(few, score, 0.7),
        "1000 boxes in a chain (worst case)": lambda: ops.nms(chain, torch.linspace(1, 0, 1000), 0.1),
        "1000 boxes in a chain, one matrix": lambda: matrix_nms(chain, torch.linspace(1, 0, 1000), 0.1),
        "10000 boxes, IoU 0.7": lambda: ops.nms(many, scores, 0.7),
        "10 groups of 1000 boxes, IoU 0.7": lambda: ops.batched_nms(many, scores, levels, 0.7),
        "1000 boxes x 80 classes, all scores, 100 kept": lambda: ops.multiclass_nms(few, classes, images),
    }
    return alternate(cases, ROUNDS)


def pooling() -> dict[str, Any]:
    """Measure `ops.roi_align` on one map of an image of 512 x 512, and on its pyramid."""
    generator = torch.Generator().manual_seed(1)
    maps = [torch.randn(1, CHANNELS, 512 // s, 512 // s, generator=generator) for s in STRIDES]
    boxes, images = random_boxes(BOXES, 512, 16, 250), torch.zeros(BOXES, dtype=torch.int64)
    features, learned = maps[0], maps[0].clone().requires_grad_()

    def align(x: Tensor, ratio: int) -> Tensor:
        return ops.roi_align(x, boxes, images, (7, 7), 0.25, ratio)

    def gradient(pooled: Tensor) -> None:
        learned.grad = None
        pooled.sum().backward()

    for form in (gather_align, grid_align):
        if not torch.allclose(form(features, boxes), align(features, 2), rtol=0, atol=1e-4):
            raise SystemExit(f"{form.__name__} gives other numbers")
    cases: dict[str, Callable[[], Any]] = {
        "one map, 2 x 2 samples": lambda: align(features, 2),
        "one map, 2 x 2 samples, gathered corners": lambda: gather_align(features, boxes),
        "one map, 2 x 2 samples, grid_sample": lambda: grid_align(features, boxes),
        "one map, adaptive": lambda: align(features, 0),
        "pyramid, 2 x 2 samples": lambda: ops.multilevel_roi_align(maps, boxes, images, STRIDES, (7, 7), 2),
        "pyramid, adaptive": lambda: ops.multilevel_roi_align(maps, boxes, images, STRIDES, (7, 7), 0),
        "one map, 2 x 2 samples, with gradient": lambda: gradient(align(learned, 2)),
        "one map, 2 x 2 samples, with gradient, gathered corners": lambda: gradient(gather_align(learned, boxes)),
        "one map, 2 x 2 samples, with gradient, grid_sample": lambda: gradient(grid_align(learned, boxes)),
    }
    return alternate(cases, ROUNDS)


def main() -> None:
    """Measure and keep."""
    torch.set_num_threads(1)
    title = f"RoIAlign of {BOXES} boxes x {CHANNELS} channels x 7 x 7"
    result = {"suppression": suppression(), title: pooling()}
    aims = {
        "1000 boxes suppressed in under 0.1 s": result["suppression"]["1000 boxes, IoU 0.7"]["process_s"] < 0.1,
        "RoIAlign in about half a second": result[title]["one map, adaptive"]["process_s"] < 0.5,
    }
    keep("ops", {**result, "aims met": aims})


if __name__ == "__main__":
    main()
