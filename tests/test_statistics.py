"""Laws of the statistics: they equal loops and scipy, intervals cover, and patients are drawn, not nodules."""

from __future__ import annotations

import itertools
import math
import statistics
from typing import Any

import numpy as np
import pytest
from scipy import stats

from svd_hub.errors import OptionError
from svd_hub.training.evaluation import auc, bootstrap_mean, over_seeds, paired_bootstrap, resampling, t_test


def pairs(scores: np.ndarray, labels: np.ndarray) -> float:
    """The definition of AUC; nan where a class is missing."""
    wins = [np.sign(p - n) / 2 + 0.5 for p, n in itertools.product(scores[labels == 1], scores[labels == 0])]
    return float(np.mean(wins)) if wins else math.nan


def nodules(seed: int, *, patients: int = 20, effect: float = 0.8, coarse: bool = False) -> dict[str, np.ndarray]:
    """Two arms' scores of the nodules of some patients; a patient's nodules are alike, and the arms agree in part."""
    random = np.random.default_rng(seed)
    clusters = np.repeat(np.arange(patients), random.integers(1, 5, patients))
    labels = (random.random(len(clusters)) < 0.4).astype(int)
    labels[:2] = 0, 1
    shared = labels + random.normal(0, 1, patients)[clusters] + random.normal(0, 0.5, len(clusters))
    arms = [shared + random.normal(0, 0.5, len(clusters)) + lift * labels for lift in (effect, 0.0)]
    if coarse:
        arms = [arm.round() for arm in arms]
    return {"first": arms[0], "second": arms[1], "labels": labels, "clusters": clusters}


def quantiles(values: list[float], level: float) -> tuple[float, float]:
    """Linear between order statistics."""
    found = []
    for share in ((1 - level) / 2, (1 + level) / 2):
        place = share * (len(values) - 1)
        low = sorted(values)[math.floor(place)]
        found.append(low + (place - math.floor(place)) * (sorted(values)[math.ceil(place)] - low))
    return found[0], found[1]


# ---- the paired bootstrap --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_it_equals_drawing_patients_one_by_one(seed: int) -> None:
    case = nodules(seed, patients=4 if seed % 3 == 0 else 12, coarse=seed % 2 == 0)
    found = paired_bootstrap(**case, resamples=60, seed=seed, level=0.9)
    random = np.random.default_rng(seed)
    names = np.unique(case["clusters"])
    differences = []
    for _ in range(60):
        drawn = names[random.integers(0, len(names), len(names))]
        rows = np.concatenate([np.flatnonzero(case["clusters"] == name) for name in drawn])
        values = [pairs(case[arm][rows], case["labels"][rows]) for arm in ("first", "second")]
        differences.append(values[0] - values[1])
    there = [d for d in differences if not math.isnan(d)]
    assert found.value == pytest.approx(auc(case["first"], case["labels"]) - auc(case["second"], case["labels"]))
    assert (found.low, found.high) == pytest.approx(quantiles(there, 0.9))
    assert found.below_zero == pytest.approx(np.mean([0.5 * (abs(d) < 1e-12) + (d < -1e-12) for d in there]))
    assert (found.resamples, found.clusters, found.level) == (len(there), len(names), 0.9)


def test_any_metric_takes_the_same_draws() -> None:
    case = nodules(3, patients=3)
    fast, slow, nan = (paired_bootstrap(**case, resamples=200, metric=metric) for metric in (None, auc, pairs))
    assert fast == nan == slow
    assert fast.resamples < 200, "a class was never missing"
    hits = paired_bootstrap(**case, resamples=50, metric=lambda s, y: float(((s > 0.5) == y).mean()))
    assert hits.resamples == 50


def test_how_much_is_drawn_at_a_time_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    case = nodules(4)
    whole = paired_bootstrap(**case, resamples=137)
    for size in (1, 500, 10**7):
        monkeypatch.setattr(resampling, "_AT_ONCE", size)
        assert paired_bootstrap(**case, resamples=137) == whole
    assert paired_bootstrap(**case, resamples=137, seed=1) != whole


def test_seeds_of_an_arm_are_averaged() -> None:
    one, two, three = (nodules(seed, patients=15) for seed in (5, 5, 5))
    random = np.random.default_rng(0)
    firsts = one["first"] + random.normal(0, 0.3, (3, len(one["first"])))
    found = paired_bootstrap(firsts, two["second"], one["labels"], one["clusters"], resamples=300)
    each = [paired_bootstrap(row, two["second"], one["labels"], one["clusters"], resamples=300) for row in firsts]
    assert found.value == pytest.approx(np.mean([e.value for e in each]))
    assert min(e.low for e in each) <= found.low <= found.high <= max(e.high for e in each)
    same = paired_bootstrap(
        np.stack([three["first"]] * 4), three["second"], one["labels"], one["clusters"], resamples=9
    )
    assert same == paired_bootstrap(**three, resamples=9)


def test_an_arm_against_itself_is_undecided() -> None:
    case = nodules(6)
    found = paired_bootstrap(**{**case, "second": case["first"]}, resamples=100)
    assert (found.value, found.low, found.high, found.below_zero) == (0, 0, 0, 0.5)
    turned = paired_bootstrap(**{**case, "first": case["second"], "second": case["first"]}, resamples=100)
    there = paired_bootstrap(**case, resamples=100)
    assert (turned.low, turned.high) == pytest.approx((-there.high, -there.low))
    assert turned.below_zero == pytest.approx(1 - there.below_zero)


def test_more_nodules_of_the_same_patients_say_nothing_new() -> None:
    """Each nodule twice: the interval stays to the last digit. Taken for patients of their own, it shrinks."""
    case = nodules(7, patients=60)
    once = paired_bootstrap(**case, resamples=400)
    twice = {name: np.concatenate([values, values]) for name, values in case.items()}
    again = paired_bootstrap(**twice, resamples=400)
    assert (again.low, again.high, again.clusters) == pytest.approx((once.low, once.high, once.clusters))
    naive = paired_bootstrap(**{**twice, "clusters": np.arange(len(twice["labels"]))}, resamples=400)
    assert naive.high - naive.low < 0.8 * (once.high - once.low)
    dice = bootstrap_mean(case["first"], case["clusters"], resamples=400)
    more = bootstrap_mean(twice["first"], twice["clusters"], resamples=400)
    assert (more.low, more.high) == pytest.approx((dice.low, dice.high))


def test_names_of_patients_may_be_words() -> None:
    case = nodules(8)
    words = np.array([f"LIDC-IDRI-{number:04d}" for number in case["clusters"]])
    assert paired_bootstrap(**{**case, "clusters": words}, resamples=50) == paired_bootstrap(**case, resamples=50)


# ---- coverage --------------------------------------------------------------------------------------------------------


def test_95_percent_of_the_intervals_of_a_difference_cover_it() -> None:
    """Two arms that are equally good, on patients of one to four nodules that are alike."""
    covered, sets = 0, 300
    for seed in range(sets):
        found = paired_bootstrap(**nodules(1000 + seed, patients=60, effect=0.0), resamples=400)
        covered += found.low <= 0 <= found.high
    assert 0.91 <= covered / sets <= 0.985


def test_95_percent_of_the_intervals_of_a_mean_cover_it_only_by_patient() -> None:
    covered, naive, sets = 0, 0, 300
    for seed in range(sets):
        random = np.random.default_rng(seed)
        clusters = np.repeat(np.arange(50), 4)
        values = random.normal(0, 1, 50)[clusters] + random.normal(0, 0.5, 200)
        found = bootstrap_mean(values, clusters, resamples=400)
        covered += found.low <= 0 <= found.high
        found = bootstrap_mean(values, np.arange(200), resamples=400)
        naive += found.low <= 0 <= found.high
    assert 0.90 <= covered / sets <= 0.985
    assert naive / sets < 0.8


# ---- the mean --------------------------------------------------------------------------------------------------------


def test_the_mean_of_cases_equals_loops() -> None:
    random = np.random.default_rng(2)
    values, clusters = random.random(30), random.integers(0, 9, 30)
    values[[3, 4]] = math.nan
    found = bootstrap_mean(values, clusters, resamples=80, seed=4)
    drawn, names, means = np.random.default_rng(4), np.unique(clusters), []
    for _ in range(80):
        picks = names[drawn.integers(0, len(names), len(names))]
        means.append(float(np.nanmean(np.concatenate([values[clusters == name] for name in picks]))))
    assert found.value == pytest.approx(np.nanmean(values))
    assert (found.low, found.high) == pytest.approx(quantiles(means, 0.95))


def test_a_patient_without_a_value_leaves_some_resamples_empty() -> None:
    found = bootstrap_mean([0.5, math.nan], ["a", "b"], resamples=400)
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)
    assert 200 < found.resamples < 400


# ---- errors ----------------------------------------------------------------------------------------------------------

CASE = {"first": [0.1, 0.9, 0.4], "second": [0.2, 0.3, 0.4], "labels": [0, 1, 0], "clusters": [1, 2, 3]}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"labels": [0, 2, 0]}, r"labels of shape \(3,\).*0 and 1"),
        ({"first": [0.1, 0.9]}, r"first of shape \(2,\).*\(3,\) or \(seeds, 3\)"),
        ({"second": [0.1, 0.9, math.inf]}, r"second of shape \(3,\).*finite"),
        ({"clusters": [1, 2]}, r"clusters of shape \(2,\).*\(3,\)"),
        ({"level": 1.0}, "level=1.0"),
        ({"resamples": 0}, "resamples=0"),
        ({"clusters": [1, 1, 1], "metric": lambda s, y: math.nan}, "none of 10000 resamples of 1 patients has a value"),
    ],
)
def test_errors_say_what_is_allowed(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(OptionError, match=told):
        paired_bootstrap(**{**CASE, **changes})


def test_no_value_has_no_mean() -> None:
    for values in ([math.nan, math.nan], [[0.5, 0.5]], [math.inf, 0.5]):
        with pytest.raises(OptionError, match="nan for none"):
            bootstrap_mean(values, [1, 2])


# ---- between seeds ---------------------------------------------------------------------------------------------------


def test_mean_and_deviation_are_those_of_a_sample() -> None:
    values = [94.6, 95.1, 94.8, 94.7, 95.0]
    found = over_seeds(values)
    assert (found.mean, found.sd, found.count) == pytest.approx((statistics.mean(values), statistics.stdev(values), 5))
    one = over_seeds([0.5])
    assert (one.mean, one.count, math.isnan(one.sd)) == (0.5, 1, True)
    for wrong in ([], [math.nan], [[1.0]]):
        with pytest.raises(OptionError, match="1 or more finite numbers"):
            over_seeds(wrong)  # type: ignore[arg-type]


def test_the_t_test_is_the_textbooks() -> None:
    for seed in range(50):
        random = np.random.default_rng(seed)
        one, other = random.normal(1, 1, int(random.integers(2, 8))), random.normal(0, 2, int(random.integers(2, 8)))
        found = t_test(list(one), list(other))
        degrees = len(one) + len(other) - 2
        pooled = ((len(one) - 1) * one.var(ddof=1) + (len(other) - 1) * other.var(ddof=1)) / degrees
        t = (one.mean() - other.mean()) / math.sqrt(pooled * (1 / len(one) + 1 / len(other)))
        assert (found.t, found.degrees) == pytest.approx((t, degrees))
        assert found.p == pytest.approx(2 * stats.t.sf(abs(t), degrees))
        welch = t_test(list(one), list(other), equal_variances=False)
        assert welch.p == pytest.approx(stats.ttest_ind(one, other, equal_var=False).pvalue)


def test_where_nothing_varies_there_is_no_test() -> None:
    assert math.isnan(t_test([0.5, 0.5], [0.7, 0.7]).p)
    with pytest.raises(OptionError, match="2 or more"):
        t_test([0.5], [0.7, 0.8])
