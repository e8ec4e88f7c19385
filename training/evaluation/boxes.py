"""What a run of a detector logs: COCO's average precision, or sensitivities at a number of false boxes an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from torch import Tensor

from ...models.detection import Detections
from .coco import average_precision
from .detection import PAPER_RATES, froc

Measure = Literal["ap", "froc"]
AP_NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


class Truth(NamedTuple):
    """What is true of one image: boxes (G, 4) in its stored pixels, labels (G,) from 0, crowd (G,), area (G,)."""

    boxes: Tensor
    labels: Tensor
    crowd: Tensor
    area: Tensor


def stored(found: Detections, scale: Tensor) -> Detections:
    """Return detections on the CPU with boxes in the pixels of the stored image; `scale` (2,) is that of x and y."""
    boxes, scores, labels = (column.detach().cpu().clone() for column in found)  # a view keeps all candidates alive
    return Detections(boxes / scale.cpu().repeat(2), scores, labels)


def detection_metrics(
    found: Sequence[Detections], truth: Sequence[Truth], measures: Sequence[Measure]
) -> dict[str, float]:
    """Return the measures of a data set, one element of `found` and `truth` for each image.

    "ap": COCO's, and that of small, medium and large objects where there are any. "froc": the mean sensitivity at
    `PAPER_RATES`, and each of them, of all classes as one; where the curve ends before a rate, its last value.
    """
    boxes = [np.concatenate([one.boxes.double().numpy(), one.scores.double().numpy()[:, None]], 1) for one in found]
    metrics: dict[str, float] = {}
    if "ap" in measures:
        precision = average_precision(
            boxes,
            [one.boxes.numpy() for one in truth],
            labels=[one.labels.numpy() for one in truth],
            detection_labels=[one.labels.numpy() for one in found],
            crowd=[one.crowd.numpy() for one in truth],
            area=[one.area.numpy() for one in truth],
        )
        values = {name: float(getattr(precision, name)) for name in AP_NAMES}
        metrics |= {name: value for name, value in values.items() if not np.isnan(value)}
    if "froc" in measures:
        curve = froc(boxes, [one.boxes[~one.crowd].numpy() for one in truth], tail="hold")
        metrics["froc"] = curve.mean
        metrics |= {f"froc_{r:g}": float(v) for r, v in zip(PAPER_RATES, curve.sensitivity, strict=True)}
    return {name: float(value) for name, value in metrics.items() if not np.isnan(value)}
