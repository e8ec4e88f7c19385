"""Greedy non-maximum suppression, exactly that of ONNX NonMaxSuppression, without a Python loop over boxes.

The rule: boxes are taken by falling score, of equal scores the one of the lower index first; a box is dropped if its
IoU with a box kept before, of the same group, is above (not at) the threshold.

Method: "kept" is the only solution of keep[i] = no kept j < i overlaps i. Iterating that equation from "all kept"
settles at least one more box each turn, so it ends; on real boxes it takes a few turns. It is solved block by block of
the sorted boxes, each block first hearing what earlier ones dropped, so memory is bounded (`PAIRS`) and only boxes that
were kept are compared with later ones, and of these only the ones that are left.

Groups (classes, levels, images) are kept apart by sorting boxes by group and comparing indices. The common trick, to
move each group to coordinates of its own, rounds them: beyond 80 x 512 float32 knows 1/256 of a pixel, and boxes near
the threshold change sides.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import OptionError
from .boxes import at_least_float32
from .tracing import script_when_tracing

# Pairs of boxes compared at once: about 4 M, or 64 times the largest group if that is more; some 24 bytes each.
PAIRS = 1 << 22
LARGEST_BLOCK = 256
SMALLEST_BLOCK = 64


@script_when_tracing
def nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    score_threshold: float | None = None,
    max_output: int | None = None,
) -> Tensor:
    """Return the indices (K,) of the boxes that are kept, by falling score.

    Args:
        boxes: (N, 4), two opposite corners in any order, as ONNX has it. A box without area overlaps nothing.
        scores: (N,). Boxes whose score is NaN are never kept.
        iou_threshold: 0 to 1.
        score_threshold: only scores above it take part; None: all.
        max_output: the best so many are returned; None: all.

    Raises:
        OptionError: other shapes or thresholds.
    """
    groups = torch.zeros(scores.shape, dtype=torch.int64, device=scores.device)
    return batched_nms(boxes, scores, groups, iou_threshold, score_threshold, max_output)


@script_when_tracing
def batched_nms(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    iou_threshold: float,
    score_threshold: float | None = None,
    max_per_group: int | None = None,
) -> Tensor:
    """Return the indices (K,) of the boxes that are kept when each group is treated alone, by falling score over all.

    Args:
        boxes: (N, 4), as in `nms`.
        scores: (N,).
        groups: (N,) integers: boxes of different groups never meet. `image * levels + level` for the proposals of a
            batch; then `first_of_each` takes the best of each image.
        iou_threshold: 0 to 1.
        score_threshold: only scores above it take part; None: all.
        max_per_group: the best so many of each group are returned; None: all.

    Raises:
        OptionError: other shapes or thresholds.
    """
    check(boxes, scores, groups, iou_threshold)
    threshold = -float("inf") if score_threshold is None else score_threshold
    taking_part = ~scores.isnan() if score_threshold is None else scores > threshold
    chosen = taking_part.nonzero().flatten()
    chosen = chosen[scores[chosen].sort(dim=0, descending=True, stable=True)[1]]
    chosen = chosen[groups[chosen].sort(dim=0, stable=True)[1]]
    chosen = chosen[greedy(boxes[chosen], groups[chosen], iou_threshold)]
    if max_per_group is not None:
        chosen = chosen[first_of_each(groups[chosen], max_per_group)]
    chosen = chosen.sort()[0]
    return chosen[scores[chosen].sort(dim=0, descending=True, stable=True)[1]]


@script_when_tracing
def multiclass_nms(
    boxes: Tensor,
    scores: Tensor,
    images: Tensor,
    iou_threshold: float = 0.5,
    score_threshold: float = 0.0,
    max_per_image: int = 100,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the detections of a batch: each class of each image is suppressed alone, then the best of an image remain.

    Args:
        boxes: (N, 4), or (N, C, 4) of a class-specific head.
        scores: (N, C) without background.
        images: (N,) index of the image of each box, from 0.
        iou_threshold: 0 to 1.
        score_threshold: only scores above it take part. 0 and 100 boxes are what FROC needs (paper's configurations).
        max_per_image: over all classes.

    Returns:
        Boxes (K, 4), scores (K,), labels (K,), images (K,): image by image, by falling score; of equal scores the
        lower box first, then the lower class.

    Raises:
        OptionError: other shapes or thresholds.
    """
    per_class = boxes.dim() == 3
    ahead = scores.shape if per_class else scores.shape[:1]
    if scores.dim() != 2 or images.shape != scores.shape[:1] or boxes.shape[:-1] != ahead:
        raise OptionError(
            f"boxes {list(boxes.shape)}, scores {list(scores.shape)}, images {list(images.shape)} are not allowed; "
            "allowed: (N, 4) or (N, C, 4), (N, C), (N,)"
        )
    count, classes = scores.shape
    if not per_class:
        boxes = boxes[:, None].expand(boxes.shape[0], classes, boxes.shape[1])
    labels = torch.arange(classes, device=scores.device).repeat(count)
    owners = images[:, None].expand(images.shape[0], classes).reshape(-1)
    flat_boxes, flat_scores = boxes.reshape(-1, boxes.shape[-1]), scores.reshape(-1)
    kept = batched_nms(flat_boxes, flat_scores, owners * classes + labels, iou_threshold, score_threshold)
    kept = kept[owners[kept].sort(dim=0, stable=True)[1]]
    kept = kept[first_of_each(owners[kept], max_per_image)]
    return flat_boxes[kept], flat_scores[kept], labels[kept], owners[kept]


@script_when_tracing
def first_of_each(groups: Tensor, limit: int) -> Tensor:
    """Return a mask (N,) of the first `limit` members of each group, groups (N,) being integers in any order."""
    order = groups.sort(dim=0, stable=True)[1]
    members = groups[order]
    place = torch.arange(members.shape[0], device=groups.device)
    first = torch.empty_like(groups, dtype=torch.bool)
    first[order] = place - torch.searchsorted(members, members) < limit
    return first


def greedy(
    boxes: Tensor,
    groups: Tensor,
    iou_threshold: float,
    pairs: int = PAIRS,
    largest_block: int = LARGEST_BLOCK,
    smallest_block: int = SMALLEST_BLOCK,
) -> Tensor:
    """Return the mask (N,) of kept boxes; they come sorted by group, and by falling score within it."""
    count = groups.shape[0]
    keep = torch.ones(count, dtype=torch.bool, device=boxes.device)
    if count == 0:
        return keep
    sides = at_least_float32(boxes.detach()).t()
    low, high = torch.minimum(sides[:2], sides[2:]), torch.maximum(sides[:2], sides[2:])
    corners = torch.cat([low, high, (high - low).prod(0, keepdim=True)])  # (5, N): x0, y0, x1, y1, area
    ends = torch.searchsorted(groups, groups, right=True)  # of the group of each box
    largest = int((ends - torch.arange(count, device=ends.device)).max())
    block = min(largest_block, max(smallest_block, pairs // largest))
    heads = torch.arange(block - 1, count + block - 1, block, device=ends.device).clamp(max=count - 1)
    reach: list[int] = ends[heads].tolist()  # how far each block's last group goes
    for number in range(len(reach)):
        start, stop, end = number * block, min(number * block + block, count), reach[number]
        here, mine = corners[:, start:stop], groups[start:stop]
        overlap = overlaps(here, here, iou_threshold) & (mine[:, None] == mine)
        alive = settle(overlap, keep[start:stop])
        keep[start:stop] = alive
        if end > stop:
            kept, later = alive.nonzero().flatten(), stop + keep[stop:end].nonzero().flatten()
            overlap = overlaps(here[:, kept], corners[:, later], iou_threshold)
            keep[later] = ~(overlap & (mine[kept][:, None] == groups[later])).any(0)
    return keep


def overlaps(first: Tensor, second: Tensor, iou_threshold: float) -> Tensor:
    """Return whether IoU > threshold, (N, M), for corners and areas (5, N) and (5, M), in the operations of ONNX."""
    width = torch.minimum(first[2, :, None], second[2]).sub_(torch.maximum(first[0, :, None], second[0])).clamp_(min=0)
    height = torch.minimum(first[3, :, None], second[3]).sub_(torch.maximum(first[1, :, None], second[1])).clamp_(min=0)
    shared = width.mul_(height)
    union = (first[4, :, None] + second[4]).sub_(shared)
    return shared.div_(union) > iou_threshold  # 0 / 0 is NaN, which is above nothing


def settle(overlap: Tensor, alive: Tensor) -> Tensor:
    """Return the greedy choice (B,) among the boxes of a block that are alive (B,), from who overlaps whom (B, B)."""
    above = overlap.triu(1).to(torch.float32)
    kept, before = alive, ~alive
    while not torch.equal(kept, before):
        before = kept
        kept = alive & (torch.mv(above.t(), before.to(torch.float32)) == 0)
    return kept


def check(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> None:
    """Raise `OptionError` unless shapes and threshold are allowed."""
    count = scores.shape[0] if scores.dim() == 1 else -1
    if count < 0 or boxes.dim() != 2 or boxes.shape[0] != count or boxes.shape[1] != 4 or groups.shape != scores.shape:
        raise OptionError(
            f"boxes {list(boxes.shape)}, scores {list(scores.shape)}, groups {list(groups.shape)} are not allowed; "
            "allowed: (N, 4), (N,), (N,)"
        )
    if not 0 <= iou_threshold <= 1:
        raise OptionError(f"iou_threshold={iou_threshold} is not allowed; allowed: 0 to 1")
