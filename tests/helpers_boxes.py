"""What is found in a detection set, in plain loops."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from helpers_detection import iou_of


def plain_froc(
    detections: Sequence[np.ndarray], ground_truth: Sequence[np.ndarray], fp_per_image: Sequence[float], **rule: Any
) -> SimpleNamespace:
    """DeepLesion's FROC in plain loops; where the curve ends before, its last value."""
    rows = [(float(row[4]), image, row[:4]) for image, found in enumerate(detections) for row in found]
    hit: set[tuple[int, int]] = set()
    false, curve = 0, []
    for _, image, box in sorted(rows, key=lambda row: -row[0]):
        over = [k for k, truth in enumerate(ground_truth[image]) if iou_of(box, truth) >= 0.5]
        false += not over
        hit |= {(image, k) for k in over}
        curve.append((false / len(detections), len(hit) / sum(map(len, ground_truth))))
    read = [at(curve, rate) for rate in fp_per_image]
    return SimpleNamespace(sensitivity=read, mean=float(np.mean(read)))


def at(curve: list[tuple[float, float]], rate: float) -> float:
    """Read a curve: a line to the first point that reaches `rate`, from the point before it."""
    reached = [k for k, (false, _) in enumerate(curve) if false >= rate]
    if not reached or len(curve) == 1:
        return curve[-1][1] if curve else 0.0
    (x0, y0), (x1, y1) = curve[max(1, reached[0]) - 1], curve[max(1, reached[0])]
    return y0 if x0 == x1 else y0 + (y1 - y0) * (rate - x0) / (x1 - x0)
