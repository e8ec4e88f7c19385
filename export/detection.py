"""A detector as one graph without shapes that depend on values: for ONNX.

It says what `FasterRCNN3D.detect` says. Every list of boxes has a fixed length (1000 of a level, 1000 of an image, 100
detections; TensorRT's TopK takes 3,839 at most) and a mark for those that are none. Two operators, which torch knows by
`svd_hub.ops`, become plain ONNX: NonMaxSuppression (its indices scattered into a mask) and RoiAlign.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import OptionError
from ..models.detection.rpn import level_anchors
from ..models.detection.settings import (
    BOX_STDS,
    FINEST_SIZE,
    ROI_LEVELS,
    ROI_SIZE,
    RPN_STDS,
    STRIDES,
    TEST_PROPOSING,
)
from ..ops import batched_nms, clip, decode, larger_than
from ..ops import roi_align as pooled_by_boxes
from ..ops.boxes import area

LARGEST_TOP_K = 3839  # TensorRT: K < 3840
NONE = -1e30  # the score of a box that is none; finite, because not every runtime sorts infinity well


class GraphDetector(nn.Module):
    """Boxes (N, M, 4), scores (N, M), labels (N, M) of a volume, as `network.padded` gives them.

    Args:
        detector: a `FasterRCNN3D`.

    Raises:
        OptionError: more detections than a TopK gives.
    """

    def __init__(self, detector: Any) -> None:
        super().__init__()
        if detector.max_detections > LARGEST_TOP_K:
            raise OptionError(
                f"max_detections={detector.max_detections} cannot be exported; allowed: {LARGEST_TOP_K} or less. Next: "
                "load(..., max_detections=100)"
            )
        self.detector = detector

    def forward(self, volume: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See the class."""
        detector = self.detector
        maps = detector.pyramid(volume)
        logits, deltas = detector.rpn_head(maps)
        anchors = level_anchors(maps, detector.anchor_scale, centred=detector.convention.centred)
        size = (volume.shape[3], volume.shape[4])
        boxes, sound = proposals(logits, deltas, anchors, size)
        flat, count = boxes.flatten(0, 1), boxes.shape[1]
        images = torch.arange(boxes.shape[0], device=boxes.device)[:, None].expand(-1, count).flatten()
        pooled = self.pooled(maps[:ROI_LEVELS], flat, images, sound.flatten())
        seen, moves = detector.bbox_head(pooled)
        scores = seen.softmax(1)[:, :-1].unflatten(0, (-1, count))
        moved = clip(decode(boxes[:, :, None], moves.unflatten(0, (-1, count)), stds=BOX_STDS), size)
        scores = torch.where(larger_than(moved) & sound[:, :, None], scores, torch.full_like(scores, NONE))
        return best(moved, scores, detector.nms_threshold, max(0.0, detector.score_threshold), detector.max_detections)

    def pooled(self, maps: Sequence[Tensor], boxes: Tensor, images: Tensor, sound: Tensor) -> Tensor:
        """Return what `multilevel_roi_align` does: every level pools all boxes, of which its own are taken.

        In place of the others it pools a box of one cell a bin. A box far outside would do by the rule of ONNX, but
        OpenVINO gives NaN for such on some processors.
        """
        rule = self.detector.convention
        ratio = area(boxes).sqrt() / FINEST_SIZE + 1e-6  # as svd_hub.ops.roi_levels; 2 ** level <= ratio
        level = sum((ratio >= 2.0**k).to(torch.int64) for k in range(1, len(maps)))
        total = torch.zeros((), device=boxes.device)
        for number, (features, stride) in enumerate(zip(maps, STRIDES, strict=False)):
            own = (level == number) & sound
            other = torch.tensor([0.0, 0.0, ROI_SIZE * stride, ROI_SIZE * stride], device=boxes.device)
            found = torch.ops.svd_hub_export.roi_align(
                features.float(),
                torch.where(own[:, None], boxes, other),
                images,
                ROI_SIZE,
                1.0 / stride,
                rule.roi_samples,
                rule.roi_aligned,
            )
            total = total + torch.where(own[:, None, None, None], found, torch.zeros_like(found))
        return total


def proposals(
    logits: Sequence[Tensor], deltas: Sequence[Tensor], anchors: Sequence[Tensor], size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return proposals (N, 1000, 4) by falling score, and which of them (N, 1000) are any; see `rpn.propose`."""
    rule = TEST_PROPOSING
    starts, moves, ranks = [], [], []
    for score, delta, anchor in zip(logits, deltas, anchors, strict=True):
        # a level may have fewer anchors than are taken: boxes without a size stand in
        ranked, order = F.pad(score, (0, rule.before), value=NONE).topk(rule.before, dim=1)
        starts.append(F.pad(anchor, (0, 0, 0, rule.before))[order])
        moves.append(F.pad(delta, (0, 0, 0, rule.before)).gather(1, order[:, :, None].expand(-1, -1, 4)))
        ranks.append(ranked)
    boxes, scores = torch.stack(starts, 1), torch.stack(ranks, 1)  # (N, levels, 1000, ...)
    boxes = clip(decode(boxes, torch.stack(moves, 1), stds=RPN_STDS), size)
    scores = torch.where(larger_than(boxes), scores, torch.full_like(scores, NONE))
    kept = torch.ops.svd_hub_export.nms_mask(
        boxes.flatten(0, 1), scores.flatten(0, 1)[:, None], rule.iou, NONE / 2, rule.before
    )
    scores = torch.where(kept.view(scores.shape), scores, torch.full_like(scores, NONE)).flatten(1)
    ranked, order = scores.topk(rule.kept, dim=1)
    return boxes.flatten(1, 2).gather(1, order[:, :, None].expand(-1, -1, 4)), ranked > NONE / 2


def best(
    boxes: Tensor, scores: Tensor, nms_threshold: float, score_threshold: float, most: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the detections of each image; see `box_head.select`.

    Args:
        boxes: (N, R, K, 4), of each class its own.
        scores: (N, R, K); `NONE` where there is none.
        nms_threshold: of the suppression within a class.
        score_threshold: scores must be above it.
        most: of an image.
    """
    count, classes = scores.shape[1], scores.shape[2]
    kept = torch.ops.svd_hub_export.nms_mask(
        boxes.transpose(1, 2).flatten(0, 1),
        scores.transpose(1, 2).flatten(0, 1)[:, None],
        nms_threshold,
        score_threshold,
        min(count, most),
    )
    kept = kept.view(-1, classes, count).transpose(1, 2)
    flat = torch.where(kept, scores, torch.full_like(scores, NONE)).flatten(1)
    ranked, order = flat.topk(min(most, count * classes), dim=1)
    found = ranked > NONE / 2
    chosen = boxes.flatten(1, 2).gather(1, order[:, :, None].expand(-1, -1, 4))
    room = most - ranked.shape[1]
    return (
        F.pad(torch.where(found[:, :, None], chosen, torch.zeros_like(chosen)), (0, 0, 0, room)),
        F.pad(torch.where(found, ranked, torch.zeros_like(ranked)), (0, room)),
        F.pad(torch.where(found, order % classes, torch.full_like(order, -1)), (0, room), value=-1),
    )


# ---- the two operators -----------------------------------------------------------------------------------------------


@torch.library.custom_op("svd_hub_export::nms_mask", mutates_args=())
def nms_mask(boxes: Tensor, scores: Tensor, iou: float, threshold: float, most: int) -> Tensor:
    """Return which boxes (B, 1, N) ONNX's NonMaxSuppression keeps, for boxes (B, N, 4) and scores (B, 1, N)."""
    rows = torch.arange(boxes.shape[0])[:, None].expand(-1, boxes.shape[1]).flatten()
    kept = batched_nms(boxes.flatten(0, 1), scores.flatten(), rows, iou, threshold, most)
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    mask[kept] = True
    return mask.view(scores.shape)


@nms_mask.register_fake
def _(boxes: Tensor, scores: Tensor, iou: float, threshold: float, most: int) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)


@torch.library.custom_op("svd_hub_export::roi_align", mutates_args=())
def roi_align(
    features: Tensor, boxes: Tensor, images: Tensor, size: int, scale: float, samples: int, aligned: bool
) -> Tensor:
    """Return the pooled features (K, C, size, size) of boxes (K, 4) by ONNX's RoiAlign."""
    return pooled_by_boxes(features, boxes, images, (size, size), scale, samples, aligned)


@roi_align.register_fake
def _(features: Tensor, boxes: Tensor, images: Tensor, size: int, scale: float, samples: int, aligned: bool) -> Tensor:
    return features.new_empty((boxes.shape[0], features.shape[1], size, size))


def translations() -> Mapping[Any, Callable[..., Any]]:
    """Return how the two are said in ONNX, for `torch.onnx.export(custom_translation_table=...)`."""
    from onnxscript import opset20 as op

    def said_nms_mask(boxes: Any, scores: Any, iou: float, threshold: float, most: int) -> Any:
        limit = op.Constant(value_ints=[most])
        iou_limit, score_limit = op.Constant(value_floats=[iou]), op.Constant(value_floats=[threshold])
        kept = op.NonMaxSuppression(boxes, scores, limit, iou_limit, score_limit)  # type: ignore[arg-type]
        none = op.Expand(op.Constant(value_float=0.0), op.Shape(scores))  # type: ignore[type-var]
        ones = op.Expand(op.Constant(value_float=1.0), op.Shape(kept, start=0, end=1))  # type: ignore[type-var]
        return op.Greater(op.ScatterND(none, kept, ones), op.Constant(value_float=0.5))  # type: ignore[type-var]

    def said_roi_align(
        features: Any, boxes: Any, images: Any, size: int, scale: float, samples: int, aligned: bool
    ) -> Any:
        return op.RoiAlign(
            features,
            boxes,
            images,
            coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
            mode="avg",
            output_height=size,
            output_width=size,
            sampling_ratio=samples,
            spatial_scale=scale,
        )

    ops = torch.ops.svd_hub_export
    return {ops.nms_mask.default: said_nms_mask, ops.roi_align.default: said_roi_align}
