"""The region proposal network: where something may be, in anchors of five levels.

Sources: urmagicsmine/MP3D@08e5ace mmdet/models/dense_heads/{rpn_head,anchor_head}.py; of mmdet 1's anchors
mmdet/core/anchor/anchor_generator.py (LegacyAnchorGenerator).
Names of parameters are upstream's: `rpn_conv`, `rpn_cls`, `rpn_reg`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops import (
    base_anchors,
    batched_nms,
    clip,
    decode,
    encode,
    first_of_each,
    grid_anchors,
    inside_image,
    larger_than,
)
from .assign import match, sample
from .results import Target
from .settings import (
    ANCHOR_RATIOS,
    RPN_BETA,
    RPN_BORDER,
    RPN_MATCHING,
    RPN_SAMPLING,
    RPN_STDS,
    STRIDES,
    Proposing,
)


class RPNHead(nn.Module):
    """3x3 convolution and ReLU, then for each anchor one logit and four deltas; the same for all levels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.rpn_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.rpn_cls = nn.Conv2d(channels, len(ANCHOR_RATIOS), 1)
        self.rpn_reg = nn.Conv2d(channels, len(ANCHOR_RATIOS) * 4, 1)
        for conv in (self.rpn_conv, self.rpn_cls, self.rpn_reg):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return logits (N, A) and deltas (N, A, 4) of each level (N, C, H, W), A = H * W * 3 as anchors are ordered.

        Float32 at least: a draw of 16-bit logits has too many ties to sort proposals by.
        """
        logits, deltas = [], []
        for x in maps:
            x = F.relu(self.rpn_conv(x))
            logits.append(widen(self.rpn_cls(x).permute(0, 2, 3, 1).flatten(1)))
            deltas.append(widen(self.rpn_reg(x).permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, 4))))
        return logits, deltas


def widen(x: Tensor) -> Tensor:
    """Return x in float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def level_anchors(maps: Sequence[Tensor], scale: float, *, centred: bool) -> list[Tensor]:
    """Return the anchors (H * W * 3, 4) of each level (N, C, H, W), float32; `centred`: see `Convention`."""
    anchors = []
    for x, stride in zip(maps, STRIDES, strict=True):
        base = base_anchors(stride, [scale], list(ANCHOR_RATIOS))
        if centred:
            base = (base + stride / 2).round()
        anchors.append(grid_anchors(base.to(x.device), (x.shape[2], x.shape[3]), stride))
    return anchors


def propose(
    logits: Sequence[Tensor], deltas: Sequence[Tensor], anchors: Sequence[Tensor], sizes: Tensor, rule: Proposing
) -> tuple[Tensor, Tensor]:
    """Return the proposals (R, 4) of a batch, within their images, and the images (R,) they belong to.

    Sorted by logits, where upstream takes their sigmoids: the same order, but for scores that round to 1.

    Args:
        logits: (N, A) of each level.
        deltas: (N, A, 4) of each level.
        anchors: (A, 4) of each level.
        sizes: (N, 2) of the images.
        rule: how many.
    """
    boxes, scores, levels = [], [], []
    for level, (score, delta, anchor) in enumerate(zip(logits, deltas, anchors, strict=True)):
        ranked, order = score.sort(dim=1, descending=True, stable=True)
        ranked, order = ranked[:, : rule.before], order[:, : rule.before]
        best = delta.gather(1, order[:, :, None].expand(-1, -1, 4))
        boxes.append(clip(decode(anchor[order], best, stds=RPN_STDS), sizes[:, None]))
        scores.append(ranked)
        levels.append(torch.full_like(order, level))
    images = torch.arange(sizes.shape[0], device=sizes.device)[:, None].expand_as(torch.cat(scores, 1))
    groups = (images * len(boxes) + torch.cat(levels, 1)).flatten()
    flat, score, owners = torch.cat(boxes, 1).flatten(0, 1), torch.cat(scores, 1).flatten(), images.flatten()
    sound = larger_than(flat).nonzero().flatten()
    kept = sound[batched_nms(flat[sound], score[sound], groups[sound], rule.iou)]
    kept = kept[first_of_each(owners[kept], rule.kept)]
    kept = kept[owners[kept].sort(stable=True)[1]]
    return flat[kept], owners[kept]


def rpn_losses(
    logits: Tensor,
    deltas: Tensor,
    anchors: Tensor,
    targets: Sequence[Target],
    sizes: Tensor,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Return `loss_rpn_cls` and `loss_rpn_bbox` of a batch.

    Binary cross-entropy of the sampled anchors and smooth L1 of the objects' ones, both summed and divided by the
    number sampled in the batch, where each image counts one object and one background anchor at least (as upstream).

    Args:
        logits: (N, A), all levels behind each other.
        deltas: (N, A, 4).
        anchors: (A, 4).
        targets: N of them.
        sizes: (N, 2) of the images: an anchor that leaves its image does not train.
        generator: draws the samples.
    """
    positives, negatives, goals = [], [], []
    total = 0
    for number, target in enumerate(targets):
        allowed = inside_image(anchors, sizes[number], RPN_BORDER).nonzero().flatten()
        matched = match(anchors[allowed], target.boxes, RPN_MATCHING)
        positive, negative = sample(matched, RPN_SAMPLING, generator)
        total += max(len(positive), 1) + max(len(negative), 1)
        goals.append(encode(anchors[allowed[positive]], target.boxes[matched[positive]], stds=RPN_STDS))
        positives.append(number * len(anchors) + allowed[positive])
        negatives.append(number * len(anchors) + allowed[negative])
    objects, others = torch.cat(positives), torch.cat(negatives)
    chosen = logits.flatten()[torch.cat([objects, others])]
    truth = (torch.arange(len(chosen), device=chosen.device) < len(objects)).to(chosen.dtype)
    cls = F.binary_cross_entropy_with_logits(chosen, truth, reduction="sum")
    found, goal = deltas.flatten(0, 1)[objects], torch.cat(goals).to(deltas.dtype)
    box = F.smooth_l1_loss(found, goal, reduction="sum", beta=RPN_BETA)
    return {"loss_rpn_cls": cls / total, "loss_rpn_bbox": box / total}
