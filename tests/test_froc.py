"""Laws of FROC: it equals a plain statement, box by box, and scipy reads the same off its curve."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from helpers_scenes import Boxes, overlap, scene
from scipy.interpolate import interp1d

from svd_hub.errors import OptionError
from svd_hub.metrics import box_iou
from svd_hub.training.evaluation import froc

RATES = (0.25, 0.5, 1.0, 2.0, 4.0)
BOX = np.array([[10.0, 10, 20, 20]])
NONE, NOTHING = np.zeros((0, 5)), np.zeros((0, 4))


def scored(boxes: Any, *scores: float) -> np.ndarray:
    return np.hstack([np.asarray(boxes, float), np.array(scores)[:, None]])


def moved(box: np.ndarray, *by: float) -> np.ndarray:
    """The box (1, 4) with its corners moved."""
    return box + np.array(by)


def curve(detections: Boxes, truth: Boxes, more: float = 0.0) -> list[tuple[float, float]]:
    """Box by box: (false boxes an image, share of true boxes hit) after each."""
    rows = [(image, row) for image, some in enumerate(detections) for row in some]
    hit: set[tuple[int, int]] = set()
    total, false, points = sum(map(len, truth)), 0, []
    for image, row in sorted(rows, key=lambda item: -item[1][4]):
        reached = [(image, k) for k, box in enumerate(truth[image]) if overlap(row, box, more) >= 0.5]
        false += not reached
        hit.update(reached)
        points.append((false / len(truth), len(hit) / total if total else math.nan))
    return points


def read(points: list[tuple[float, float]], rate: float) -> float:
    """The sensitivity where the rate is first reached, on lines between the points from (0, 0) on."""
    points = [(0.0, 0.0), *points]
    if rate == 0:
        return max(y for x, y in points if x == 0)
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 < rate <= x1:
            return y0 + (y1 - y0) * (rate - x0) / (x1 - x0)
    raise AssertionError("beyond the curve")


@pytest.mark.parametrize("plus_one", [False, True])
def test_the_curve_equals_box_by_box(plus_one: bool) -> None:
    differing = 0
    for seed in range(400):
        detections, truth = scene(seed)
        found = froc(detections, truth, plus_one=plus_one)
        points = curve(detections, truth, float(plus_one))
        assert found.curve_fp.tolist() == [x for x, _ in points]
        np.testing.assert_array_equal(found.curve_sensitivity, [y for _, y in points])
        assert found.scores.tolist() == sorted((s for some in detections for s in some[:, 4]), reverse=True)
        assert (found.images, found.boxes) == (len(truth), sum(map(len, truth)))
        differing += points != curve(detections, truth, float(not plus_one))
    assert differing > 20, "the two rules are not told apart"


def test_the_official_reading_is_that_of_scipy() -> None:
    """Rates beyond the curve's end are dropped for one at it; `interp1d` where it gives a finite number."""
    finite = shortened = 0
    for seed in range(600):
        detections, truth = scene(seed)
        found = froc(detections, truth, RATES)
        points = curve(detections, truth)
        end = points[-1][0] if points else 0.0
        rates = [rate for rate in RATES if rate <= end]
        asked = rates + [end] * (len(rates) < len(RATES))
        plain = [read(points, rate) if sum(map(len, truth)) else math.nan for rate in asked]
        assert [*found.sensitivity[: len(rates)], *(found.maximum or ())[1:]] == pytest.approx(plain, nan_ok=True)
        assert np.isnan(found.sensitivity[len(rates) :]).all()
        assert (found.maximum is None) == (len(rates) == len(RATES))
        assert found.maximum is None or found.maximum[0] == end
        assert found.mean == pytest.approx(np.mean(plain), nan_ok=True)
        shortened += 0 < len(rates) < len(RATES)
        if len(points) > 1:
            with np.errstate(all="ignore"):
                scipys = interp1d(*zip(*points, strict=True), fill_value="extrapolate")(asked)
            usable = np.isfinite(scipys)
            assert np.array(plain)[usable] == pytest.approx(scipys[usable], abs=1e-12)
            finite += int(usable.sum())
    assert finite > 800
    assert shortened > 100


def test_holding_has_a_value_for_every_rate() -> None:
    for seed in range(300):
        detections, truth = scene(seed)
        found = froc(detections, truth, RATES, tail="hold")
        points = curve(detections, truth)
        if not found.boxes:
            assert np.isnan([*found.sensitivity, found.mean]).all()
            continue
        end, last = points[-1] if points else (0.0, 0.0)
        plain = [last if rate >= end else read(points, rate) for rate in RATES]
        assert found.sensitivity == pytest.approx(plain)
        assert found.mean == pytest.approx(np.mean(plain))
        assert found.maximum is None
        assert (np.diff(found.sensitivity) >= 0).all()


def test_the_order_of_the_images_does_not_matter() -> None:
    for seed in (1, 5, 7, 11):  # scores of these have no ties
        detections, truth = scene(seed, images=5)
        turned = froc(detections[::-1], truth[::-1], tail="hold")
        assert turned.sensitivity.tolist() == froc(detections, truth, tail="hold").sensitivity.tolist()


# ---- the rule, case by case ------------------------------------------------------------------------------------------


def test_one_box_may_hit_several() -> None:
    truth = [np.vstack([BOX, moved(BOX, 0, 0, 2, 0)])]
    found = froc([scored(BOX, 0.9)], truth)
    assert found.curve_sensitivity.tolist() == [1.0]


def test_a_second_hit_is_neither_true_nor_false() -> None:
    found = froc([scored(np.vstack([BOX, BOX, BOX + 50]), 0.9, 0.8, 0.7)], [np.vstack([BOX, BOX + 100])])
    assert found.curve_sensitivity.tolist() == [0.5, 0.5, 0.5]
    assert found.curve_fp.tolist() == [0, 0, 1]


def test_every_image_counts() -> None:
    found = froc([scored(BOX + 50, 0.9), NONE, NONE, scored(BOX, 0.5)], [BOX, BOX, NOTHING, NOTHING])
    assert found.curve_fp.tolist() == [0.25, 0.5]
    assert found.curve_sensitivity.tolist() == [0, 0]


def test_exactly_one_half_is_a_hit() -> None:
    half = moved(BOX, 0, 0, 0, -5)
    assert froc([scored(half, 1)], [BOX], tail="hold").mean == 1
    assert froc([scored(half, 1)], [BOX], tail="hold", iou=0.51).mean == 0
    assert froc([scored(moved(half, 0, 0, 0, -0.01), 1)], [BOX], tail="hold").mean == 0


def test_a_pixel_more_makes_a_hit() -> None:
    """A box of 4.999 rows out of 10 overlaps by 0.4999, by 5.999 / 11 with a pixel more; one of 4 rows by 5 / 11."""
    almost = moved(BOX, 0, 0, 0, -5.001)
    assert froc([scored(almost, 1)], [BOX], tail="hold").mean == 0
    assert froc([scored(almost, 1)], [BOX], tail="hold", plus_one=True).mean == 1
    assert froc([scored(moved(BOX, 0, 0, 0, -6), 1)], [BOX], tail="hold", plus_one=True).mean == 0


def test_what_the_tail_makes_of_a_short_curve() -> None:
    """Two of four boxes hit, one false in two images: the curve ends at 0.5."""
    boxes = np.vstack([BOX, BOX + 40])
    detections = [scored(np.vstack([BOX, BOX + 200, BOX + 40]), 0.9, 0.8, 0.7), NONE]
    official, hold = (froc(detections, [boxes, boxes], (0.25, 0.5, 1, 2), tail=tail) for tail in ("official", "hold"))
    assert official.sensitivity[:2].tolist() == [0.25, 0.25]
    assert np.isnan(official.sensitivity[2:]).all()
    assert official.maximum == (0.5, 0.25)
    assert official.mean == 0.25
    assert hold.sensitivity.tolist() == [0.25, 0.5, 0.5, 0.5]
    assert hold.mean == pytest.approx(0.4375)


def test_without_a_false_box() -> None:
    """The official code answers nan here: it divides by the width of a curve that has none."""
    found = froc([scored(np.vstack([BOX, BOX + 40]), 0.9, 0.8)], [np.vstack([BOX, BOX + 40])])
    assert found.maximum == (0.0, 1.0)
    assert found.mean == 1.0
    some_false = [scored(np.vstack([BOX, BOX + 40]), 0.9, 0.8)]
    assert froc(some_false, [BOX], (0, 1), tail="hold").sensitivity.tolist() == [1, 1]


def test_nothing_found_and_nothing_to_find() -> None:
    found = froc([NONE, NONE], [BOX, NOTHING])
    assert found.maximum == (0.0, 0.0)
    assert found.mean == 0.0
    assert froc([NONE], [BOX], tail="hold").sensitivity.tolist() == [0, 0, 0, 0]
    for tail in ("official", "hold"):
        assert math.isnan(froc([scored(BOX, 0.5)], [NOTHING], tail=tail).mean)
        assert math.isnan(froc([NONE], [NOTHING], tail=tail).mean)


def test_the_papers_mean_is_that_of_four() -> None:
    """Table VI, P3D-63: 82.22, 87.42, 90.91 and 93.65 make 88.55."""
    detections, truth = scene(3, images=6)
    found = froc([*detections, scored(np.repeat(BOX + 900, 60, 0), *[0.0] * 60)], [*truth, NOTHING])
    assert found.fp_per_image.tolist() == [0.5, 1, 2, 4]
    assert found.maximum is None
    assert found.mean == pytest.approx(found.sensitivity.mean())
    assert np.mean([82.22, 87.42, 90.91, 93.65]) == pytest.approx(88.55)


def test_tensors_and_lists_will_do() -> None:
    torch = pytest.importorskip("torch")
    detections, truth = scene(5)
    wanted = froc(detections, truth).curve_sensitivity.tolist()
    tensors = [[torch.tensor(x) for x in some] for some in (detections, truth)]
    assert froc(*tensors).curve_sensitivity.tolist() == wanted
    lists = [[x.tolist() for x in some] for some in ([scored(BOX, 0.5)], [BOX])]
    assert froc(*lists).curve_sensitivity.tolist() == [1]


@pytest.mark.parametrize(
    ("arguments", "options", "told"),
    [
        (([], []), {}, r"0 arrays of detections and 0 of true boxes.*\(0, 5\) and \(0, 4\)"),
        (([NONE], [BOX, BOX]), {}, "1 arrays of detections and 2 of true boxes"),
        (([BOX], [BOX]), {}, r"detections\[0\] of shape \(1, 4\).*\(K, 5\) as x0, y0, x1, y1, score"),
        (([NONE, NONE], [BOX, np.zeros(0)]), {}, r"ground_truth\[1\] of shape \(0,\).*\(K, 4\) as x0, y0, x1, y1"),
        (([scored(BOX, np.nan)], [BOX]), {}, r"detections\[0\] has 1 values that are not finite"),
        (([NONE], [BOX]), {"tail": "flat"}, "tail='flat'.*'official', 'hold'"),
        (([NONE], [BOX], (1, 0.5)), {}, "rates of 0 or more that rise"),
        (([NONE], [BOX], ()), {}, "rates of 0 or more that rise"),
        (([NONE], [BOX], (-1, 1)), {}, "rates of 0 or more that rise"),
    ],
)
def test_errors_say_what_is_allowed(arguments: Any, options: Any, told: str) -> None:
    with pytest.raises(OptionError, match=told):
        froc(*arguments, **options)


# ---- the overlap -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plus_one", [False, True])
def test_overlap_equals_the_plain_one(plus_one: bool) -> None:
    random = np.random.default_rng(0)
    first, second = (np.sort(random.uniform(0, 30, (count, 2, 2)), axis=1).reshape(count, 4) for count in (40, 30))
    plain = [[overlap(a, b, float(plus_one)) for b in second] for a in first]
    assert box_iou(first, second, plus_one=plus_one) == pytest.approx(np.array(plain), abs=1e-12)


def test_overlap_equals_that_of_the_ops() -> None:
    import torch

    from svd_hub.ops import iou_matrix

    random = np.random.default_rng(1)
    first, second = random.uniform(0, 30, (50, 4)), random.uniform(0, 30, (20, 4))  # half of them inside out
    wanted = iou_matrix(torch.from_numpy(first), torch.from_numpy(second)).numpy()
    assert box_iou(first, second) == pytest.approx(wanted, abs=1e-12)
    assert 0 < (wanted > 0).sum() < wanted.size


def test_overlap_of_nothing() -> None:
    assert box_iou(np.zeros((0, 4)), BOX).shape == (0, 1)
    assert box_iou(BOX, np.zeros((0, 4))).shape == (1, 0)
    assert box_iou([[1, 1, 1, 1]], [[1, 1, 1, 1]]).tolist() == [[0.0]]
    assert box_iou([[1, 1, 1, 1]], [[1, 1, 1, 1]], plus_one=True).tolist() == [[1.0]]
    with pytest.raises(OptionError, match=r"\(1, 5\) and \(1, 4\).*\(K, 4\) and \(G, 4\)"):
        box_iou(scored(BOX, 1), BOX)
