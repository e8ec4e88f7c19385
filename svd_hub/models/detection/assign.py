"""Which boxes are objects, and which of them train: matching by IoU, and a draw that a generator fixes.

Sources: urmagicsmine/MP3D@08e5ace mmdet/core/bbox/assigners/max_iou_assigner.py, samplers/random_sampler.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...ops import iou_matrix
from .settings import Matching, Sampling

BACKGROUND = -1
NEITHER = -2


def match(boxes: Tensor, truth: Tensor, rule: Matching) -> Tensor:
    """Return for each of the boxes (A, 4) the index of its object in truth (G, 4), `BACKGROUND`, or `NEITHER`: (A,)."""
    if len(truth) == 0 or len(boxes) == 0:
        return boxes.new_full((len(boxes),), BACKGROUND, dtype=torch.int64)
    overlap = iou_matrix(boxes, truth)
    best, nearest = overlap.max(1)
    matched = torch.full_like(nearest, NEITHER)
    matched[best < rule.negative] = BACKGROUND
    matched = torch.where(best >= rule.positive, nearest, matched)
    if rule.low_quality:
        highest = overlap.max(0)[0]
        own = (overlap == highest) & (highest >= rule.minimum)
        number = torch.arange(len(truth), device=boxes.device)
        last = torch.where(own, number, BACKGROUND).max(1)[0]
        matched = torch.where(own.any(1), last, matched)
    return matched


def sample(matched: Tensor, rule: Sampling, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Return the indices of objects' boxes and of background boxes that train, each rising, from `match` (A,)."""
    positive = choose((matched >= 0).nonzero().flatten(), int(rule.number * rule.positive_share), generator)
    negative = choose((matched == BACKGROUND).nonzero().flatten(), rule.number - len(positive), generator)
    return positive, negative


def choose(members: Tensor, limit: int, generator: torch.Generator | None) -> Tensor:
    """Return `limit` of the members (M,) in their order, drawn without preference; all where there are no more.

    Drawn on the generator's device, without one on the CPU: the choice does not depend on where the boxes are.
    """
    if len(members) <= limit:
        return members
    device = generator.device if generator is not None else torch.device("cpu")
    drawn = torch.randperm(len(members), generator=generator, device=device)[:limit]
    return members[drawn.sort()[0].to(members.device)]
