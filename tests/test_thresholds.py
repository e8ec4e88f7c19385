"""Laws of two classes at a threshold and of Dice summaries: they equal plain counts."""

from __future__ import annotations

import math
import statistics
from typing import Any

import numpy as np
import pytest

from svd_hub.errors import OptionError
from svd_hub.metrics import confusion, dice
from svd_hub.training.evaluation import auc, choose_threshold, dice_summary, evaluate_scores, threshold_metrics


def scores_and_labels(seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    count = int(random.integers(2, 60))
    labels = random.integers(0, 2, count)
    labels[:2] = 0, 1
    levels = 20 if seed % 2 else 10**6  # scores that are thresholds of the official grid, and hardly any
    return random.integers(0, levels + 1, count) / levels, labels


def rate(hits: list[bool]) -> float:
    return sum(hits) / len(hits) if hits else math.nan


def test_metrics_at_a_threshold_are_counts() -> None:
    for seed in range(200):
        scores, labels = scores_and_labels(seed)
        threshold = [0.0, 0.3, 0.5, 1.0][seed % 4]
        found = threshold_metrics(scores, labels, threshold)
        called = [bool(score > threshold) for score in scores]
        rows = list(zip(called, labels == 1, strict=True))
        assert found.threshold == threshold
        assert found.sensitivity == pytest.approx(rate([c for c, y in rows if y]))
        assert found.specificity == pytest.approx(rate([not c for c, y in rows if not y]))
        assert found.precision == pytest.approx(rate([bool(y) for c, y in rows if c]), nan_ok=True)
        assert found.accuracy == pytest.approx(rate([c == y for c, y in rows]))
        positives = 2 * sum(c and y for c, y in rows) / (sum(called) + int(labels.sum()))
        assert found.f1 == pytest.approx(positives)


def test_the_score_at_the_threshold_is_negative() -> None:
    assert threshold_metrics([0.5, 0.6], [1, 1], 0.5).sensitivity == 0.5
    assert math.isnan(threshold_metrics([0.5, 0.6], [1, 1], 0.5).specificity)


@pytest.mark.parametrize("grid", ["official", "all"])
def test_the_threshold_is_the_first_of_the_best(grid: str) -> None:
    for seed in range(200):
        scores, labels = scores_and_labels(seed)
        tried = [k / 10 for k in range(10)] if grid == "official" else sorted(set(scores))
        best, chosen = -1.0, math.nan
        for threshold in tried:
            sensitivity = rate([bool(s > threshold) for s in scores[labels == 1]])
            specificity = rate([bool(s <= threshold) for s in scores[labels == 0]])
            if sensitivity + specificity > best + 1e-12:
                best, chosen = sensitivity + specificity, threshold
        assert choose_threshold(scores, labels, grid=grid) == pytest.approx(chosen)


def test_all_scores_are_at_least_as_good_as_the_grid_and_need_no_probabilities() -> None:
    for seed in range(50):
        scores, labels = scores_and_labels(seed)
        fine, coarse = (
            threshold_metrics(scores, labels, choose_threshold(scores, labels, grid=grid))
            for grid in ("all", "official")
        )
        assert fine.sensitivity + fine.specificity >= coarse.sensitivity + coarse.specificity - 1e-12
        logits = 40 * scores - 20
        assert choose_threshold(logits, labels, grid="all") == pytest.approx(
            40 * choose_threshold(scores, labels, grid="all") - 20
        )
    with pytest.raises(OptionError, match=r"scores -2 to 3 .*0 to 1. Next: softmax, or grid='all'"):
        choose_threshold([-2.0, 3.0], [0, 1])


def test_a_threshold_of_other_patients_unless_the_official_one_is_asked_for() -> None:
    validation, test = scores_and_labels(2), scores_and_labels(4)
    honest = evaluate_scores(test, validation=validation)
    official = evaluate_scores(test, threshold_from="test (official)")
    assert honest.at_threshold == threshold_metrics(*test, choose_threshold(*validation))
    assert official.at_threshold == threshold_metrics(*test, choose_threshold(*test))
    assert official == evaluate_scores(test, validation=validation, threshold_from="test (official)")
    assert (honest.threshold_from, official.threshold_from) == ("validation", "test (official)")
    assert honest.auc == official.auc == auc(*test)
    with pytest.raises(OptionError, match=r"needs validation=\(scores, labels\).*'test \(official\)'"):
        evaluate_scores(test)
    with pytest.raises(OptionError, match=r"threshold_from='test' .*'validation', 'test \(official\)'"):
        evaluate_scores(test, threshold_from="test")


def test_choosing_on_the_test_set_flatters() -> None:
    gains = []
    for seed in range(100):
        random = np.random.default_rng(seed)
        (validation, test) = ((random.random(30), np.arange(30) % 2) for _ in range(2))
        two = evaluate_scores(test, validation=validation), evaluate_scores(test, threshold_from="test (official)")
        honest, official = (found.at_threshold.sensitivity + found.at_threshold.specificity for found in two)
        assert official >= honest - 1e-12
        gains.append(official - honest)
    assert statistics.mean(gains) > 0.1, "scores that say nothing look useful"


@pytest.mark.parametrize(
    ("scores", "labels", "told"),
    [
        ([0.1, 0.2], [1, 1], "2 positives and 0 negatives"),
        ([0.1, math.nan], [0, 1], "1 of 2 scores are not finite"),
        ([0.1], [0, 1], r"\(1,\), labels \(2,\)"),
        ([], [], r"\(0,\)"),
        ([0.1, 0.2], [0, 2], "labels 0 or 1"),
    ],
)
def test_errors_say_what_is_allowed(scores: Any, labels: Any, told: str) -> None:
    with pytest.raises(OptionError, match=told):
        choose_threshold(scores, labels)


def test_more_errors() -> None:
    for options, told in (({"grid": "fine"}, "'official', 'all'"), ({"rule": "f1"}, "'youden'")):
        with pytest.raises(OptionError, match=told):
            choose_threshold([0.1, 0.9], [0, 1], **options)
    with pytest.raises(OptionError, match="threshold=nan"):
        threshold_metrics([0.1, 0.9], [0, 1], math.nan)


# ---- Dice ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("empty", ["nan", "one"])
def test_a_dice_summary_has_both_means(empty: str) -> None:
    for seed in range(30):
        random = np.random.default_rng(seed)
        cases = int(random.integers(1, 6))
        prediction, target = random.integers(0, 3, (2, cases, 4, 4, 4))
        for one in range(cases):  # some cases lack the last class in both maps, in scene 5 all do
            if random.random() < 0.3 or seed == 5:
                prediction[one][prediction[one] == 2] = target[one][target[one] == 2] = 0
        found = dice_summary(confusion(prediction, target, 3, per_case=True), empty=empty)
        assert found.pooled == pytest.approx(dice(prediction, target, 3, empty=empty), nan_ok=True)
        for k in range(3):
            values = [dice(p, t, 3, empty=empty)[k] for p, t in zip(prediction, target, strict=True)]
            there = [value for value in values if not math.isnan(value)]
            assert found.cases[:, k] == pytest.approx(values, nan_ok=True)
            assert found.per_case[k] == pytest.approx(statistics.mean(there) if there else math.nan, nan_ok=True)
            sd = statistics.stdev(there) if len(there) > 1 else math.nan
            assert found.sd[k] == pytest.approx(sd, nan_ok=True, abs=1e-12)


def test_large_cases_count_more_where_voxels_are_pooled() -> None:
    counts = [[[100, 0], [0, 90]], [[100, 0], [10, 0]]]
    found = dice_summary(counts)
    assert found.pooled[1] == pytest.approx(180 / 190)
    assert found.per_case[1] == 0.5
    for wrong in (counts[0], np.zeros((0, 2, 2), int)):
        with pytest.raises(OptionError, match=r"\(N, K, K\)"):
            dice_summary(wrong)
