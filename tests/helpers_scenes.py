"""Random detections and true boxes for the tests of detection metrics, and the overlap of two boxes, plainly."""

from __future__ import annotations

import numpy as np

Boxes = list[np.ndarray]


def overlap(a: np.ndarray, b: np.ndarray, more: float = 0.0) -> float:
    """Intersection over union of two boxes; `more` = 1 counts whole pixels."""
    width = min(a[2], b[2]) - max(a[0], b[0]) + more
    height = min(a[3], b[3]) - max(a[1], b[1]) + more
    shared = max(width, 0.0) * max(height, 0.0)
    areas = [(box[2] - box[0] + more) * (box[3] - box[1] + more) for box in (a, b)]
    return float(shared / (sum(areas) - shared))


def scene(seed: int, *, images: int = 0) -> tuple[Boxes, Boxes]:
    """Detections (K, 5) and true boxes (G, 4) of 1 to 6 images: near hits, doubles, misses, ties, empty images.

    Every second scene has whole-number corners, so that overlaps of exactly one half occur; every third one has few
    levels of score; some have no true box at all, or no detection.
    """
    random = np.random.default_rng(seed)
    whole, levels = seed % 2 == 0, 4 if seed % 3 == 0 else 10**6
    detections, truth = [], []
    for _ in range(images or int(random.integers(1, 7))):
        corners = random.uniform(0, 60, (int(random.integers(0, 4)) * (seed % 17 != 0), 2))
        boxes = np.hstack([corners, corners + random.uniform(4, 24, corners.shape)])
        near = boxes[random.integers(0, len(boxes), 3 * len(boxes))] if len(boxes) else boxes
        far = random.uniform(0, 60, (int(random.integers(0, 4)), 2))
        given = np.vstack([near + random.normal(0, 2, near.shape), np.hstack([far, far + random.uniform(4, 24)])])
        given = given[random.permutation(len(given))[: 0 if seed % 19 == 0 else int(random.integers(0, 9))]]
        if whole:
            boxes, given = boxes.round(), given.round()
        given[:, 2:] = np.maximum(given[:, 2:], given[:, :2] + 1)
        scores = random.integers(0, levels, (len(given), 1)) / levels
        detections.append(np.hstack([given, scores]))
        truth.append(boxes)
    return detections, truth
