"""Between seeds: mean and standard deviation, and the t-test that the paper prints.

Seeds of one split say how much a training run varies, not how well it does on other patients: see `resampling`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import OptionError
from ...metrics import Floats


@dataclass(frozen=True)
class MeanSd:
    """Mean and sample standard deviation (n - 1) of `count` values; the deviation of one is nan."""

    mean: float
    sd: float
    count: int


def over_seeds(values: Sequence[float]) -> MeanSd:
    """Return mean and standard deviation of one number for each seed.

    Raises:
        OptionError: no values, or one that is not finite.
    """
    found = _checked(values, 1)
    return MeanSd(float(found.mean()), float(found.std(ddof=1)) if len(found) > 1 else float("nan"), len(found))


@dataclass(frozen=True)
class TTest:
    """An independent two-sided t-test: t, its degrees of freedom and p; nan where neither side varies."""

    t: float
    degrees: float
    p: float


def t_test(first: Sequence[float], second: Sequence[float], *, equal_variances: bool = True) -> TTest:
    """Return the independent t-test of the paper: do two arms differ by more than their seeds do?

    Args:
        first, second: one number for each seed, two or more on both sides; the seeds are taken as unpaired.
        equal_variances: Student's test; False = Welch's. The paper says neither.

    Raises:
        OptionError: fewer values, or one that is not finite.
    """
    one, other = _checked(first, 2), _checked(second, 2)
    if np.ptp(one) == 0 and np.ptp(other) == 0:
        return TTest(float("nan"), float("nan"), float("nan"))
    from scipy import stats

    found = stats.ttest_ind(one, other, equal_var=equal_variances)
    return TTest(float(found.statistic), float(found.df), float(found.pvalue))


def _checked(values: Sequence[float], least: int) -> Floats:
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1 or len(found) < least or not np.isfinite(found).all():
        raise OptionError(f"values {found.tolist()} are not allowed; allowed: {least} or more finite numbers")
    return found
