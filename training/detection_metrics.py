"""How good boxes are: COCO's average precision, and sensitivity at a number of false positives per image (FROC)."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..models.detection import Detections

Measure = Literal["ap", "froc"]
FP_PER_IMAGE = (0.5, 1.0, 2.0, 4.0)  # the paper's Table VI; their mean is its last column
# The first six numbers of COCOeval.stats.
AP_NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


class Truth(NamedTuple):
    """What is true of one image: boxes (G, 4) in its stored pixels, labels (G,) from 0, crowd (G,), area (G,)."""

    boxes: Tensor
    labels: Tensor
    crowd: Tensor
    area: Tensor


def stored(found: Detections, scale: Tensor) -> Detections:
    """Return detections on the CPU with boxes in the pixels of the stored image; `scale` (2,): see `Sample`."""
    boxes, scores, labels = (column.detach().cpu() for column in found)
    return Detections(boxes / scale.cpu().repeat(2), scores, labels)


def detection_metrics(
    found: Sequence[Detections], truth: Sequence[Truth], measures: Sequence[Measure]
) -> dict[str, float]:
    """Return the measures of a data set, one element of `found` and `truth` for each image."""
    metrics: dict[str, float] = {}
    if "ap" in measures:
        metrics |= average_precision(found, truth)
    if "froc" in measures:
        metrics |= sensitivities(found, truth)
    return metrics


def average_precision(found: Sequence[Detections], truth: Sequence[Truth]) -> dict[str, float]:
    """Return COCO's AP over IoU 0.5 to 0.95, at 0.5, at 0.75, and of small, medium and large objects.

    By pycocotools. A size of which there is no object is left out.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    categories = sorted({int(n) for rows in (found, truth) for row in rows for n in row.labels})
    shared: dict[str, Any] = {
        "images": [{"id": number} for number in range(len(truth))],
        "categories": [{"id": label} for label in categories],
    }
    with contextlib.redirect_stdout(io.StringIO()):  # it talks about each of its steps
        tables = []
        for annotations in (_true_rows(truth), _found_rows(found)):
            table = COCO()
            table.dataset = {**shared, "annotations": annotations}
            table.createIndex()
            tables.append(table)
        run = COCOeval(*tables, "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    values = zip(AP_NAMES, run.stats, strict=False)
    return {name: float(value) for name, value in values if value >= 0}


def _true_rows(truth: Sequence[Truth]) -> list[dict[str, Any]]:
    rows = []
    for image, one in enumerate(truth):
        for box, label, crowd, area in zip(*(column.tolist() for column in one), strict=True):
            rows.append({**_row(image, label, box), "area": area, "iscrowd": int(crowd)})
    return _numbered(rows)


def _found_rows(found: Sequence[Detections]) -> list[dict[str, Any]]:
    rows = []
    for image, one in enumerate(found):
        for box, score, label in zip(*(column.tolist() for column in one), strict=True):
            row = _row(image, label, box)
            rows.append({**row, "area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0, "score": score})
    return _numbered(rows)


def _row(image: int, label: int, box: list[float]) -> dict[str, Any]:
    x0, y0, x1, y1 = box
    return {"image_id": image, "category_id": label, "bbox": [x0, y0, x1 - x0, y1 - y0]}


def _numbered(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"id": number, **row} for number, row in enumerate(rows, start=1)]  # 0 is how pycocotools marks a miss


def sensitivities(found: Sequence[Detections], truth: Sequence[Truth]) -> dict[str, float]:
    """Return the share of the objects found at each of `FP_PER_IMAGE`, and "froc", their mean; labels do not count.

    By the official rule of DeepLesion (`evaluation.froc`); where the curve ends before, by its last value.
    """
    from .evaluation import froc

    boxes = [torch.cat([one.boxes, one.scores[:, None]], 1).double().numpy() for one in found]
    objects = [one.boxes[~one.crowd].double().numpy() for one in truth]
    curve = froc(boxes, objects, FP_PER_IMAGE, tail="hold")
    named = {f"froc_{rate:g}": float(value) for rate, value in zip(FP_PER_IMAGE, curve.sensitivity, strict=True)}
    return {"froc": float(curve.mean), **named}


def evaluate_detector(model: Any, module: Any) -> tuple[int, dict[str, float]]:
    """Return how many images the test split of a data module has, and the measures of a network on it.

    Through the network's own preprocessing; each image is resized as in the run.
    """
    from .console import bar
    from .data.boxes import resized

    module.setup("test")
    found, truth = [], []
    with torch.inference_mode():
        for example, true in bar(module.examples("test"), "evaluating", total=len(module.test_set)):
            x, scale = resized(model.preprocess(**example)[0], module.eval_size)
            found += [stored(one, scale) for one in model(x[None])]
            truth.append(true)
    one_class = len(module.class_names()) == 1
    return len(truth), detection_metrics(found, truth, ("ap", "froc") if one_class else ("ap",))
