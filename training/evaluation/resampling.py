"""Between patients: bootstrap intervals that draw whole patients; two nodules of one are not two witnesses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...errors import OptionError
from ...metrics import Floats, auc

Metric = Callable[[Floats, NDArray[np.int64]], float]  # of (n,) scores and (n,) labels
Statistic = Callable[[NDArray[np.int64]], Floats]  # of (B, N): how often each case was drawn in each resample; (B,)
_AT_ONCE = 1 << 19  # draws that are held at a time: 4 MB an array, which stays in the cache


@dataclass(frozen=True)
class Estimate:
    """A number with what resampling says about it.

    Attributes:
        value: on all cases as they are.
        low, high: the percentile interval of `level`.
        below_zero: the share of the resamples below zero, those at zero counting one half: of a difference, a
            one-sided p-value for "not larger".
        resamples: how many had a value; a metric may have none, as an AUC where only one class was drawn.
        clusters: how many patients were drawn from.
        level: of the interval.
    """

    value: float
    low: float
    high: float
    below_zero: float
    resamples: int
    clusters: int
    level: float


def paired_bootstrap(
    first: ArrayLike,
    second: ArrayLike,
    labels: ArrayLike,
    clusters: ArrayLike,
    *,
    metric: Metric | None = None,
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Return by how much the metric of `first` exceeds that of `second`, two arms on the same cases.

    Both arms are measured on the same drawn patients, so that what makes patients hard cancels. The scores are those
    of all folds together, each from the network that did not see the case.

    Args:
        first, second: (N,) scores; or (S, N), of S seeds, whose metrics are averaged. The arms may differ in S.
        labels: (N,) 0 or 1.
        clusters: (N,) whose case it is: patients, by any names.
        metric: of scores and labels; nan or an `OptionError` where it has no value. None = AUC, ten thousand of them
            in a second; any other is called once for each resample and seed.
        resamples: how many times as many patients as there are are drawn, with replacement.
        seed: of the drawing; the same one gives the same interval.
        level: of the interval.

    Raises:
        OptionError: shapes that do not fit, values that are not finite, a level outside 0 ... 1, no resample with a
            value.
    """
    label = np.asarray(labels)
    if label.ndim != 1 or not np.isin(label, (0, 1)).all():
        raise OptionError(f"labels of shape {label.shape} are not allowed; allowed: (N,) of 0 and 1")
    label = label.astype(np.int64)
    arms = [_rows(name, some, len(label)) for name, some in (("first", first), ("second", second))]
    plain = metric or auc
    one, other = ([(row, label) for row in rows] for rows in arms)
    value = _mean([plain(*some) for some in one]) - _mean([plain(*some) for some in other])
    measures = [[(_auc_of_draws if metric is None else _any_of_draws(metric))(*s) for s in arm] for arm in (one, other)]

    def difference(draws: NDArray[np.int64]) -> Floats:
        means = [np.mean([measure(draws) for measure in arm], axis=0) for arm in measures]
        result: Floats = means[0] - means[1]
        return result

    return _estimate(value, difference, clusters, len(label), resamples=resamples, seed=seed, level=level)


def bootstrap_mean(
    values: ArrayLike, clusters: ArrayLike, *, resamples: int = 10_000, seed: int = 0, level: float = 0.95
) -> Estimate:
    """Return the mean of one number for each case, such as its Dice, with its interval.

    For two arms on the same cases give the differences, case by case: that is the paired bootstrap.

    Args:
        values: (N,); nan where a case has no value, which leaves it out.
        clusters, resamples, seed, level: see `paired_bootstrap`.

    Raises:
        OptionError: see `paired_bootstrap`; no value at all.
    """
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1 or np.isnan(found).all() or np.isinf(found).any():
        raise OptionError(f"values of shape {found.shape} are not allowed; allowed: (N,) numbers, nan for none")
    there = ~np.isnan(found)
    filled = np.where(there, found, 0.0)

    def mean(draws: NDArray[np.int64]) -> Floats:
        sums, counts = draws @ filled, draws @ there.astype(np.float64)
        return np.divide(sums, counts, out=np.full(len(draws), np.nan), where=counts > 0)

    value = float(filled.sum() / there.sum())
    return _estimate(value, mean, clusters, len(found), resamples=resamples, seed=seed, level=level)


def _estimate(
    value: float, statistic: Statistic, clusters: ArrayLike, cases: int, *, resamples: int, seed: int, level: float
) -> Estimate:
    names = np.asarray(clusters)
    if names.shape != (cases,):
        raise OptionError(f"clusters of shape {names.shape} are not allowed; allowed: one for each case, ({cases},)")
    if resamples < 1 or not 0 < level < 1:
        raise OptionError(
            f"resamples={resamples}, level={level} are not allowed; allowed: 1 or more, and between 0 and 1"
        )
    _, members = np.unique(names, return_inverse=True)
    found = np.concatenate([statistic(draws) for draws in _draws(members, resamples, seed)])
    found = found[~np.isnan(found)]
    if not len(found):
        raise OptionError(f"none of {resamples} resamples of {members.max() + 1} patients has a value of this metric")
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    below = float((found < 0).mean() + (found == 0).mean() / 2)
    return Estimate(value, float(low), float(high), below, len(found), int(members.max()) + 1, level)


def _draws(members: NDArray[np.int64], resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Yield (B, N): how often each case is in each resample. What is drawn does not depend on how much at a time."""
    random, count = np.random.default_rng(seed), int(members.max()) + 1
    step = max(1, _AT_ONCE // max(len(members), count))
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = random.integers(0, count, (rows, count)) + count * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)[:, members]


def _auc_of_draws(scores: Floats, labels: NDArray[np.int64]) -> Statistic:
    """Return a function from (B, N) draws to (B,) AUCs; nan where a class was not drawn.

    A positive wins against every negative of a lower score and half against those of its own, each as often as drawn.
    """
    order = np.argsort(scores, kind="stable")
    falling, positive = scores[order], labels[order] == 1
    negatives, positives = order[~positive], order[positive]
    below = np.searchsorted(falling[~positive], falling[positive], side="left")
    up_to = np.searchsorted(falling[~positive], falling[positive], side="right")

    def measure(draws: NDArray[np.int64]) -> Floats:
        sums = np.zeros((len(draws), len(negatives) + 1), np.int64)
        np.cumsum(draws[:, negatives], axis=1, out=sums[:, 1:])
        won = draws[:, positives]
        twice = (won * (sums[:, below] + sums[:, up_to])).sum(1)
        pairs = won.sum(1) * sums[:, -1]
        return np.divide(twice, 2 * pairs, out=np.full(len(draws), np.nan), where=pairs > 0)

    return measure


def _any_of_draws(metric: Metric) -> Callable[[Floats, NDArray[np.int64]], Statistic]:
    """Return the maker of such a function for a metric of which nothing is known but its call."""

    def value(scores: Floats, labels: NDArray[np.int64]) -> float:
        try:
            return metric(scores, labels)
        except OptionError:
            return float("nan")

    def of(scores: Floats, labels: NDArray[np.int64]) -> Statistic:
        return lambda draws: np.array([value(np.repeat(scores, row), np.repeat(labels, row)) for row in draws])

    return of


def _rows(name: str, scores: ArrayLike, cases: int) -> Floats:
    rows = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    if rows.ndim != 2 or not len(rows) or rows.shape[1] != cases or not np.isfinite(rows).all():
        raise OptionError(
            f"{name} of shape {np.shape(scores)} is not allowed; allowed: finite ({cases},) or (seeds, {cases}), "
            "a score for each label"
        )
    return rows


def _mean(values: Sequence[Any]) -> float:
    return float(np.mean(values))
