"""From slices to findings: a detector on every key slice, and boxes of neighbouring slices that are one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..inference import Inference
from ..ops import iou_matrix
from ..preprocess import Preprocess
from ..volume import Volume, memory
from .results import Box, Finding
from .slices import around, detector_input

Done = Callable[[int, int], None]
Detector = Callable[[Tensor], Any]


def detect(
    network: Detector,
    volume: Volume,
    planes: Sequence[int],
    rule: Preprocess,
    inference: Inference,
    *,
    classes: Sequence[str],
    device: torch.device,
    least: float,
    most: int,
    done: Done | None = None,
) -> tuple[Finding, ...]:
    """Return what a detector finds on the key slices of a volume.

    Args:
        network: from (1, C, D, H, W) to a list of `Detections`.
        volume: what is searched.
        planes: its key slices.
        rule: the weights' preprocessing.
        inference: the weights' slices, and when two boxes are one.
        classes: names of the labels.
        device: where the network is.
        least: scores below it are left out.
        most: findings at most.
        done: called with (slices done, slices in all).
    """
    boxes: dict[int, np.ndarray] = {}
    for number, plane in enumerate(planes, start=1):
        read = around(volume, plane, slices=inference.slices, spacing=inference.slice_spacing)
        memory.release(volume.array)
        x, (down, right) = detector_input(read, rule, inference.side)
        boxes[plane] = table(network(x.to(device))[0], (right, down), least)
        if done is not None:
            done(number, len(planes))
    return merged(boxes, planes, classes, iou=inference.merge_iou)[:most]


def table(found: Any, scales: tuple[float, float], least: float) -> np.ndarray:
    """Return (K, 6): box in pixels of the slice, score, label, of the `Detections` on a resized one."""
    columns = [found.boxes, found.scores[:, None], found.labels[:, None]]
    rows = torch.cat([column.detach().double().cpu() for column in columns], 1).numpy()
    rows[:, :4] /= np.array([*scales, *scales])
    return rows[rows[:, 4] >= least]


def merged(
    boxes: dict[int, np.ndarray], planes: Sequence[int], classes: Sequence[str], *, iou: float
) -> tuple[Finding, ...]:
    """Return findings in falling order of their scores: chains of boxes of one label on neighbouring key slices.

    From the surest box on, the chain goes up and down as long as the next key slice has a box of the same label whose
    IoU with the last one is `iou` or more; of several the one with the largest IoU. Each box is in one chain.

    Args:
        boxes: key slice -> (K, 6) box, score, label.
        planes: the key slices in their order: neighbours are next to each other.
        classes: names of the labels.
        iou: see above.
    """
    rows = [(row, place, k) for place, plane in enumerate(planes) for k, row in enumerate(boxes[plane])]
    rows.sort(key=lambda item: -item[0][4])
    free = [np.ones(len(boxes[plane]), bool) for plane in planes]
    found = []
    for row, place, k in rows:
        if not free[place][k]:
            continue
        free[place][k] = False
        chain = {place: row}
        for step in (-1, 1):
            last, at = row, place + step
            while 0 <= at < len(planes) and (best := _next(boxes[planes[at]], free[at], last, iou)) is not None:
                free[at][best] = False
                last = chain[at] = boxes[planes[at]][best]
                at += step
        found.append(_finding(chain, place, planes, classes))
    return tuple(found)


def _next(rows: np.ndarray, free: np.ndarray, last: np.ndarray, least: float) -> int | None:
    there = np.flatnonzero(free & (rows[:, 5] == last[5]))
    if not len(there):
        return None
    shares = iou_matrix(torch.from_numpy(last[None, :4].copy()), torch.from_numpy(rows[there, :4].copy()))[0]
    best = int(shares.argmax())
    return int(there[best]) if float(shares[best]) >= least else None


def _finding(chain: dict[int, np.ndarray], place: int, planes: Sequence[int], classes: Sequence[str]) -> Finding:
    sides = np.stack([row[:4] for row in chain.values()])
    return Finding(
        label=classes[int(chain[place][5])],
        score=float(chain[place][4]),
        box=_box(chain[place]),
        plane=planes[place],
        planes=(planes[min(chain)], planes[max(chain)]),
        extent=_box(np.concatenate([sides[:, :2].min(0), sides[:, 2:].max(0)])),
        boxes={planes[k]: _box(chain[k]) for k in sorted(chain)},
    )


def _box(row: np.ndarray) -> Box:
    x0, y0, x1, y1 = (float(n) for n in row[:4])
    return x0, y0, x1, y1
