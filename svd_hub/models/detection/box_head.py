"""The second stage: what a proposal shows and where its edges are.

Sources: urmagicsmine/MP3D@08e5ace mmdet/models/roi_heads/standard_roi_head.py and bbox_heads/.
Names of parameters are upstream's: `shared_fcs.{0,1}`, `fc_cls`, `fc_reg`.
Classes count as in mmdet 2: objects 0 ... K - 1, the background is K, the last. mmdet 1 has it first (label 0): a file
of it must have its rows moved (`svd_hub.origins.svdnet_detector`), or every object is taken for its neighbour.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops import clip, decode, encode, larger_than, multiclass_nms
from .assign import match, sample
from .results import Target
from .rpn import widen
from .settings import BOX_BETA, BOX_SAMPLING, BOX_STDS, ROI_SIZE, Matching


class Samples(NamedTuple):
    """Boxes that train the head: (R, 4), their images (R,), labels (R,), and the deltas (R, 4) of objects, else 0."""

    boxes: Tensor
    images: Tensor
    labels: Tensor
    deltas: Tensor


class BoxHead(nn.Module):
    """Two shared linear layers with ReLU, then logits of K classes and the background, and four deltas per class.

    Args:
        channels: of the pooled maps.
        hidden: width of the shared layers.
        num_classes: K, without the background.
        background_deltas: `fc_reg` has four more rows, its last, that are not read: see `Convention`.
    """

    def __init__(self, channels: int, hidden: int, num_classes: int, *, background_deltas: bool) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.shared_fcs = nn.ModuleList([nn.Linear(channels * ROI_SIZE**2, hidden), nn.Linear(hidden, hidden)])
        self.fc_cls = nn.Linear(hidden, num_classes + 1)
        self.fc_reg = nn.Linear(hidden, 4 * (num_classes + background_deltas))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.fc_cls.weight, std=0.01)
        nn.init.normal_(self.fc_reg.weight, std=0.001)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (R, K + 1) and deltas (R, K, 4) of pooled maps (R, C, 7, 7), in float32 at least."""
        x = pooled.flatten(1)
        for linear in self.shared_fcs:
            x = F.relu(linear(x))
        deltas = self.fc_reg(x).unflatten(1, (-1, 4))[:, : self.num_classes]
        return widen(self.fc_cls(x)), widen(deltas)


def sample_boxes(
    boxes: Tensor,
    images: Tensor,
    targets: Sequence[Target],
    num_classes: int,
    *,
    rule: Matching,
    generator: torch.Generator | None = None,
) -> Samples:
    """Return what trains the head: samples of each image's proposals (R, 4), to which its true boxes are added."""
    rows: list[Samples] = []
    for number, (truth, labels) in enumerate(targets):
        own = boxes[images == number]
        matched = match(own, truth, rule)
        own = torch.cat([truth.to(own.dtype), own])  # a true box is its own object, whatever overlaps it
        matched = torch.cat([torch.arange(len(truth), device=own.device), matched])
        positive, negative = sample(matched, BOX_SAMPLING, generator)
        chosen = own[torch.cat([positive, negative])]
        label = labels.new_full((len(chosen),), num_classes)
        label[: len(positive)] = labels[matched[positive]]
        deltas = torch.zeros_like(chosen)
        deltas[: len(positive)] = encode(own[positive], truth[matched[positive]], stds=BOX_STDS).to(deltas.dtype)
        rows.append(Samples(chosen, torch.full_like(label, number), label, deltas))
    return Samples(*(torch.cat(column) for column in zip(*rows, strict=True)))


def box_losses(logits: Tensor, deltas: Tensor, samples: Samples) -> dict[str, Tensor]:
    """Return `loss_cls` and `loss_bbox`: sums over the samples, divided by how many there are (1 where there are none).

    Cross-entropy of all; smooth L1 of the objects' deltas, those of their own class.

    Args:
        logits: (R, K + 1).
        deltas: (R, K, 4).
        samples: R of them.
    """
    total = max(len(logits), 1)
    cls = F.cross_entropy(logits, samples.labels, reduction="sum")
    objects = (samples.labels < deltas.shape[1]).nonzero().flatten()
    found, goal = deltas[objects, samples.labels[objects]], samples.deltas[objects].to(deltas.dtype)
    box = F.smooth_l1_loss(found, goal, reduction="sum", beta=BOX_BETA)
    return {"loss_cls": cls / total, "loss_bbox": box / total}


def select(
    logits: Tensor,
    deltas: Tensor,
    boxes: Tensor,
    images: Tensor,
    sizes: Tensor,
    *,
    score_threshold: float,
    nms_threshold: float,
    max_detections: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the detections of a batch: boxes (K, 4), scores (K,), labels (K,), images (K,), image by image.

    A box that lies outside of its image has no area once it is clipped, and is left out; upstream lists it.

    Args:
        logits: (R, K + 1).
        deltas: (R, K, 4).
        boxes: (R, 4) proposals.
        images: (R,), their images.
        sizes: (N, 2) of the images.
        score_threshold: scores must be above it.
        nms_threshold: of the suppression within a class.
        max_detections: of an image, over all classes.
    """
    scores = logits.softmax(1)[:, :-1]
    moved = clip(decode(boxes[:, None], deltas, stds=BOX_STDS), sizes[images][:, None])
    scores = torch.where(larger_than(moved), scores, torch.zeros_like(scores))
    return multiclass_nms(moved, scores, images, nms_threshold, score_threshold, max_detections)
