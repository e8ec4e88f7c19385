"""Average precision by COCO's own evaluator, from arrays: the numbers that papers print."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...errors import OptionError
from ...metrics import Floats
from .detection import checked_boxes

Labels = Sequence[ArrayLike]
# The order of COCOeval.stats; ap, ap_* and ar100* are at up to 100 detections an image.
STATS = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"),
)


@dataclass(frozen=True)
class AveragePrecision:
    """COCO's twelve numbers, 0 ... 1, means over the classes that occur; nan where no true box is of that size.

    Attributes:
        ap: mean over IoU 0.50, 0.55 ... 0.95, at most 100 detections of a class an image; ap50 and ap75 at one IoU.
        ap_small, ap_medium, ap_large: of true boxes of an area up to 32^2, up to 96^2, and above, in pixels.
        ar1, ar10, ar100: average recall over the same IoUs, with at most so many detections; ar_small ... of ar100.
        per_class: (K,) `ap` of each class, in the order of `classes`.
        classes: (K,) the labels that occur in the ground truth or the detections.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar1: float
    ar10: float
    ar100: float
    ar_small: float
    ar_medium: float
    ar_large: float
    per_class: Floats
    classes: NDArray[np.int64]


def average_precision(
    detections: Sequence[ArrayLike],
    ground_truth: Sequence[ArrayLike],
    *,
    labels: Labels | None = None,
    detection_labels: Labels | None = None,
    crowd: Labels | None = None,
    area: Labels | None = None,
) -> AveragePrecision:
    """Return COCO's average precision and recall (pycocotools).

    Args:
        detections: (K, 5) for each image: x0, y0, x1, y1 in pixels, score; (0, 5) where there are none.
        ground_truth: (G, 4) for each image; (0, 4) where there are none.
        labels, detection_labels: the class of each true box (G,) and detection (K,), integers; None = one class.
        crowd: (G,) True where a box is a crowd, that a detection may lie in without harm; None = none is.
        area: (G,) in pixels, for the sizes only; None = the box's own. COCO has the area of the mask here. DeepLesion's
            JSON has an `area` that is no area of anything: leave it out.

    Raises:
        OptionError: see `froc`; labels that do not fit.
    """
    found, truth = checked_boxes(detections, ground_truth)
    if (labels is None) != (detection_labels is None):
        raise OptionError("labels and detection_labels belong together: give both, or neither for one class")
    sizes = [box[:, 2:].prod(1) for box in map(_as_xywh, truth)]
    true_labels = _column("labels", labels, truth, 1)
    areas = sizes if area is None else _column("area", area, truth, 0.0)
    truth_rows = _rows(truth, category_id=true_labels, area=areas, iscrowd=_column("crowd", crowd, truth, 0))
    given_labels = _column("detection_labels", detection_labels, found, 1)
    given_rows = _rows(
        [some[:, :4] for some in found],
        category_id=given_labels,
        area=[box[:, 2:].prod(1) for box in map(_as_xywh, found)],
        score=[some[:, 4] for some in found],
    )
    classes = np.unique(np.concatenate([*true_labels, *given_labels])).astype(np.int64)
    if not len(classes):
        return AveragePrecision(**_named([np.nan] * len(STATS)), per_class=np.zeros(0), classes=classes)
    evaluated = _evaluated(len(truth), classes, truth_rows, given_rows)
    stats = np.where(evaluated.stats < 0, np.nan, evaluated.stats).tolist()
    precision = evaluated.eval["precision"][:, :, :, 0, -1]  # IoU, recall, class
    per_class = [float(some.mean()) if (some := precision[..., k]).min() >= 0 else np.nan for k in range(len(classes))]
    return AveragePrecision(**_named(stats), per_class=np.array(per_class), classes=classes)


def _named(stats: Sequence[float]) -> dict[str, Any]:
    return dict(zip(STATS, stats, strict=True))


def _as_xywh(boxes: Floats) -> Floats:
    return np.concatenate([boxes[:, :2], boxes[:, 2:4] - boxes[:, :2]], axis=1)


def _column(name: str, given: Labels | None, boxes: Sequence[Floats], default: float) -> list[NDArray[Any]]:
    """Return one array for each image with a value for each of its boxes."""
    if given is None:
        return [np.full(len(some), default) for some in boxes]
    values = [np.asarray(some) for some in given]
    if [some.shape for some in values] != [(len(some),) for some in boxes]:
        raise OptionError(
            f"{name} of shapes {[some.shape for some in values][:5]} ... do not fit; allowed: one value for each box, "
            f"{[(len(some),) for some in boxes][:5]} ..."
        )
    whole = all(not len(some) or some.dtype.kind in "biu" for some in values)
    if name.endswith("labels") and not whole:
        raise OptionError(f"{name} of type {values[0].dtype} are not allowed; allowed: integers")
    return values


def _rows(boxes: Sequence[Floats], **columns: Sequence[NDArray[Any]]) -> list[dict[str, Any]]:
    """Return the annotations of all images as COCO has them; ids count from 1, because 0 means unmatched there."""
    rows: list[dict[str, Any]] = []
    for image, some in enumerate(boxes):
        for index, box in enumerate(_as_xywh(some).tolist()):
            more = {name: column[image][index].item() for name, column in columns.items()}
            row = {"id": len(rows) + 1, "image_id": image, "bbox": box, "iscrowd": 0, **more}
            rows.append({**row, "iscrowd": int(row["iscrowd"]), "category_id": int(row["category_id"])})
    return rows


def _evaluated(
    images: int, classes: NDArray[np.int64], truth: list[dict[str, Any]], found: list[dict[str, Any]]
) -> Any:
    """Return pycocotools' evaluation; what it prints on the way is left out."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        sets = []
        for rows in (truth, found):
            made = COCO()
            made.dataset = {
                "images": [{"id": image} for image in range(images)],
                "categories": [{"id": int(label), "name": str(label)} for label in classes],
                "annotations": rows,
            }
            made.createIndex()
            sets.append(made)
        evaluation = COCOeval(*sets, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation
