"""Laws of average precision: the adapter hands COCO's evaluator what it should, and says what it says."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from helpers_scenes import Boxes, overlap, scene

from svd_hub.errors import OptionError
from svd_hub.training.evaluation import average_precision

THRESHOLDS = np.linspace(0.5, 0.95, 10)
BOX = np.array([[10.0, 10, 20, 20]])
NONE, NOTHING = np.zeros((0, 5)), np.zeros((0, 4))
Labels = list[np.ndarray]


def matched(given: np.ndarray, boxes: np.ndarray, least: float) -> list[bool]:
    """Of each detection by falling score: does it take a true box of its own, the one it overlaps most?"""
    free, taken = list(range(len(boxes))), []
    for row in given[np.argsort(-given[:, 4], kind="stable")][:100]:
        overlaps = [(overlap(row, boxes[k]), k) for k in free if overlap(row, boxes[k]) >= least]
        taken.append(bool(overlaps))
        if overlaps:
            free.remove(max(overlaps)[1])
    return taken


def plain(detections: Boxes, truth: Boxes, least: float) -> tuple[float, float]:
    """Average precision over 101 recalls and the recall reached, of one class at one IoU."""
    rows: list[tuple[float, bool]] = []
    for given, boxes in zip(detections, truth, strict=True):
        scores = sorted(given[:, 4], reverse=True)
        rows += zip(scores, matched(given, boxes, least), strict=True)
    total = sum(map(len, truth))
    if not total:
        return math.nan, math.nan
    points, hits = [], 0
    for number, (_, hit) in enumerate(sorted(rows, key=lambda row: -row[0]), 1):
        hits += hit
        points.append((hits / total, hits / number))
    precisions = [max((p for r, p in points if r >= asked), default=0.0) for asked in np.linspace(0, 1, 101)]
    return float(np.mean(precisions)), hits / total


def test_one_class_equals_plain_loops() -> None:
    compared = 0
    for seed in range(250):
        detections, truth = scene(seed)
        found = average_precision(detections, truth)
        values = np.array([plain(detections, truth, least) for least in THRESHOLDS])
        assert found.ap50 == pytest.approx(values[0, 0], abs=1e-9, nan_ok=True)
        assert found.ap75 == pytest.approx(values[5, 0], abs=1e-9, nan_ok=True)
        assert found.ap == pytest.approx(values[:, 0].mean(), abs=1e-9, nan_ok=True)
        assert found.ar100 == pytest.approx(values[:, 1].mean(), abs=1e-9, nan_ok=True)
        compared += 0 < values[0, 0] < 1
    assert compared > 80


def labelled(seed: int) -> tuple[Boxes, Boxes, Labels, Labels]:
    """A scene of five images in which each box and detection has one of the classes 3, 7 and 8; no true box is an 8."""
    random = np.random.default_rng(seed)
    detections, truth = scene(seed, images=5)
    return (
        detections,
        truth,
        [random.choice([3, 7], len(some)) for some in truth],
        [random.choice([3, 7, 7, 8], len(some)) for some in detections],
    )


def test_classes_are_apart_and_their_mean_is_over_those_that_occur() -> None:
    for seed in range(1, 41):
        detections, truth, labels, given = labelled(seed)
        if len(np.unique(np.concatenate(labels))) < 2 or 8 not in np.concatenate(given):
            continue
        found = average_precision(detections, truth, labels=labels, detection_labels=given)
        assert found.classes.tolist() == [3, 7, 8]
        wanted = []
        for label in (3, 7):
            some = [x[mine == label] for x, mine in zip(detections, given, strict=True)]
            boxes = [x[mine == label] for x, mine in zip(truth, labels, strict=True)]
            wanted.append(np.mean([plain(some, boxes, least)[0] for least in THRESHOLDS]))
        assert found.per_class == pytest.approx([*wanted, math.nan], abs=1e-9, nan_ok=True)
        assert found.ap == pytest.approx(np.mean(wanted), abs=1e-9)


def test_a_double_is_false_here() -> None:
    """Unlike in FROC: a second detection of a box that was found lowers the precision."""
    twice = np.hstack([np.vstack([BOX, BOX, BOX + 40]), [[0.9], [0.8], [0.7]]])
    found = average_precision([twice], [np.vstack([BOX, BOX + 40])])
    assert found.ap50 == pytest.approx((51 * 1 + 50 * 2 / 3) / 101)
    assert (found.ar1, found.ar10) == (0.5, 1.0)


def test_sizes_are_of_the_boxes_unless_told() -> None:
    """DeepLesion's JSON has an area of its own kind; only the columns by size look at it."""
    truth = [np.array([[0.0, 0, 20, 20], [100, 100, 150, 150], [200, 200, 400, 400]])]
    detections = [np.hstack([truth[0][:2], [[0.9], [0.8]]])]
    found = average_precision(detections, truth)
    assert (found.ap_small, found.ap_medium, found.ap_large) == pytest.approx((1, 1, 0))
    assert (found.ar_small, found.ar_medium, found.ar_large) == (1, 1, 0)
    told = average_precision(detections, truth, area=[[5000.0, 5000, 5000]])
    assert (told.ap, told.ap50) == (found.ap, found.ap50)
    assert math.isnan(told.ap_small)
    assert told.ap_medium == pytest.approx(found.ap)


def test_a_crowd_forgives() -> None:
    crowd = np.array([[40.0, 40, 90, 90]])
    detections = [np.hstack([np.vstack([[41.0, 41, 50, 50], BOX]), [[0.9], [0.8]]])]
    truth = [np.vstack([BOX, crowd])]
    assert average_precision(detections, truth, crowd=[[False, True]]).ap50 == pytest.approx(1)
    assert average_precision(detections, truth).ap50 == pytest.approx(51 / 101 / 2)


def test_the_first_box_and_the_first_image_count(capsys: pytest.CaptureFixture[str]) -> None:
    """Ids of 0 are unmatched to COCO's evaluator; and it says nothing on the way."""
    found = average_precision([np.hstack([BOX, [[0.5]]])], [BOX])
    assert (found.ap, found.ar1) == pytest.approx((1, 1))
    assert average_precision([np.hstack([BOX, [[0.5]]])], [BOX], labels=[[0]], detection_labels=[[0]]).ap > 0.999
    assert capsys.readouterr() == ("", "")


def test_nothing_found_and_nothing_to_find() -> None:
    found = average_precision([NONE], [BOX])
    assert (found.ap, found.ar100) == (0, 0)
    assert math.isnan(average_precision([np.hstack([BOX, [[0.5]]])], [NOTHING]).ap)
    nothing = average_precision([NONE], [NOTHING])
    assert math.isnan(nothing.ap)
    assert nothing.per_class.shape == nothing.classes.shape == (0,)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"labels": [[1]]}, "labels and detection_labels belong together"),
        ({"labels": [[1, 2]], "detection_labels": [[1]]}, r"labels of shapes \[\(2,\)\].*\[\(1,\)\]"),
        ({"labels": [[1.0]], "detection_labels": [[1]]}, "labels of type float64.*integers"),
        ({"area": [[1.0], [2.0]]}, "area of shapes"),
        ({"crowd": [True]}, "crowd of shapes"),
    ],
)
def test_errors_say_what_is_allowed(options: Any, told: str) -> None:
    with pytest.raises(OptionError, match=told):
        average_precision([np.hstack([BOX, [[0.5]]])], [BOX], **options)
