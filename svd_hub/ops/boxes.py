"""Boxes (..., 4) as x0, y0, x1, y1: area, overlap, clipping, and the deltas that a detector regresses.

Coordinates are continuous: a width is x1 - x0, nowhere plus one. 16-bit boxes are computed in float32, because the area
of a box of 512 x 512 is beyond float16. Sources: urmagicsmine/MP3D@08e5ace, delta_xywh_bbox_coder.py and rpn_head.py.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# A box grows or shrinks by at most 1000/16 in one step: the clamp of dw and dh in `decode`.
MAX_LOG_RATIO = math.log(1000 / 16)
# Sides below this count as this in `encode`, so that a degenerate box gives finite deltas, not the logarithm of zero.
SMALLEST_SIDE = 1e-6

Four = tuple[float, float, float, float]


def at_least_float32(x: Tensor) -> Tensor:
    """Return x itself if it is float32 or float64, and x in float32 otherwise."""
    return x if x.dtype == torch.float32 or x.dtype == torch.float64 else x.to(torch.float32)


def area(boxes: Tensor) -> Tensor:
    """Return the areas (...) of boxes (..., 4); 0 where a side is zero or negative."""
    x0, y0, x1, y1 = at_least_float32(boxes).unbind(-1)
    return (x1 - x0).clamp(min=0) * (y1 - y0).clamp(min=0)


def iou(first: Tensor, second: Tensor) -> Tensor:
    """Return intersection over union (...) of pairs of boxes (..., 4) and (..., 4), which broadcast.

    0, never NaN, where either box has a side that is zero or negative; then the gradients are 0, too.
    """
    ax0, ay0, ax1, ay1 = at_least_float32(first).unbind(-1)
    bx0, by0, bx1, by1 = at_least_float32(second).unbind(-1)
    width = (torch.minimum(ax1, bx1) - torch.maximum(ax0, bx0)).clamp(min=0)
    height = (torch.minimum(ay1, by1) - torch.maximum(ay0, by0)).clamp(min=0)
    shared = width * height
    union = area(first) + area(second) - shared
    return shared / torch.where(union > 0, union, torch.ones_like(union))


def iou_matrix(first: Tensor, second: Tensor) -> Tensor:
    """Return `iou` of each of the first (..., N, 4) with each of the second (..., M, 4): (..., N, M)."""
    return iou(first.unsqueeze(-2), second.unsqueeze(-3))


def clip(boxes: Tensor, size: tuple[int, int] | Tensor) -> Tensor:
    """Return boxes (..., 4) moved into the image: x into 0..width, y into 0..height.

    Args:
        boxes: (..., 4).
        size: (height, width), or a tensor (..., 2) of them, one for each box: `sizes[images]` for a flat batch.
    """
    x0, y0, x1, y1 = boxes.unbind(-1)
    height, width = height_and_width(size, boxes)
    zero = torch.zeros_like(height)
    corners = [x0.clamp(zero, width), y0.clamp(zero, height), x1.clamp(zero, width), y1.clamp(zero, height)]
    return torch.stack(corners, dim=-1)


def height_and_width(size: tuple[int, int] | Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return a size as two tensors of the type and on the device of `like`: of shape (), or (...) for (..., 2)."""
    if isinstance(size, Tensor):
        height, width = size.to(like).unbind(-1)
        return height, width
    zero = torch.zeros((), dtype=like.dtype, device=like.device)
    return zero + size[0], zero + size[1]  # added, because a trace would burn a new tensor of a size in


def larger_than(boxes: Tensor, side: float = 0.0) -> Tensor:
    """Return a mask (...) of the boxes (..., 4) whose width and height are both above `side`; NaN is not."""
    x0, y0, x1, y1 = at_least_float32(boxes).unbind(-1)
    return (x1 - x0 > side) & (y1 - y0 > side)


def encode(
    boxes: Tensor,
    targets: Tensor,
    means: Four = (0.0, 0.0, 0.0, 0.0),
    stds: Four = (1.0, 1.0, 1.0, 1.0),
    smallest_side: float = SMALLEST_SIDE,
) -> Tensor:
    """Return the deltas (..., 4) as dx, dy, dw, dh that lead from boxes (..., 4) to targets (..., 4).

    dx and dy are shifts of the centre in sides of the box, dw and dh logarithms of ratios of sides; then means are
    subtracted, and it is divided by stds. Finite for finite boxes: a side counts as smallest_side at least.
    """
    x, y, width, height = centre_form(boxes)
    goal_x, goal_y, goal_width, goal_height = centre_form(targets)
    width, height = width.clamp(min=smallest_side), height.clamp(min=smallest_side)
    deltas = [
        ((goal_x - x) / width - means[0]) / stds[0],
        ((goal_y - y) / height - means[1]) / stds[1],
        ((goal_width.clamp(min=smallest_side) / width).log() - means[2]) / stds[2],
        ((goal_height.clamp(min=smallest_side) / height).log() - means[3]) / stds[3],
    ]
    return torch.stack(deltas, dim=-1)


def decode(
    boxes: Tensor,
    deltas: Tensor,
    means: Four = (0.0, 0.0, 0.0, 0.0),
    stds: Four = (1.0, 1.0, 1.0, 1.0),
    max_log_ratio: float = MAX_LOG_RATIO,
) -> Tensor:
    """Return the boxes (..., 4) to which deltas (..., 4) lead from boxes (..., 4): the inverse of `encode`.

    The two broadcast: the outputs (N, C * 4) of a class-specific head, class by class, become boxes (N, C, 4) by
    `decode(boxes[:, None], outputs.unflatten(1, (-1, 4)), ...)`. dw and dh are held within +-max_log_ratio.
    """
    x, y, width, height = centre_form(boxes)
    dx, dy, dw, dh = at_least_float32(deltas).unbind(-1)
    x = x + width * (dx * stds[0] + means[0])
    y = y + height * (dy * stds[1] + means[1])
    half_width = width * (dw * stds[2] + means[2]).clamp(-max_log_ratio, max_log_ratio).exp() * 0.5
    half_height = height * (dh * stds[3] + means[3]).clamp(-max_log_ratio, max_log_ratio).exp() * 0.5
    return torch.stack([x - half_width, y - half_height, x + half_width, y + half_height], dim=-1)


def centre_form(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return x and y of the centres, widths and heights (...) of boxes (..., 4)."""
    x0, y0, x1, y1 = at_least_float32(boxes).unbind(-1)
    return (x0 + x1) * 0.5, (y0 + y1) * 0.5, x1 - x0, y1 - y0
