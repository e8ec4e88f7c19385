"""Two arms on the same cases: the paired bootstrap over patients of what their runs gave each case.

A run leaves `scores.csv`. The runs of one seed, each on another fold, are one arm's scores of all cases, each from the
network that did not see it; the seeds of an arm are averaged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import OptionError, SvdHubError
from ..evaluation import Estimate, bootstrap_mean, paired_bootstrap
from ..scores import read_scores

Case = tuple[str, int]  # its name, and which of several rows of that name: the official list of LIDC has some twice


@dataclass(frozen=True)
class Pooled:
    """The scores of one seed.

    Attributes:
        values: of each case: the score of a class; or the mean Dice of the organs that are annotated, nan of none.
        patients: whose case it is.
        labels: 0 or 1; empty where values are Dice.
    """

    values: Mapping[Case, float]
    patients: Mapping[Case, str]
    labels: Mapping[Case, int]


def pool(files: Sequence[Path]) -> Pooled | None:
    """Return the scores of the runs of one seed together; None where they share cases, so that they are no folds.

    Raises:
        SvdHubError: a file of another form.
    """
    values, patients, labels = dict[Case, float](), dict[Case, str](), dict[Case, int]()
    for file in files:
        own = _read(file)
        if own.values.keys() & values.keys():
            return None
        values |= own.values
        patients |= own.patients
        labels |= own.labels
    return Pooled(values, patients, labels)


def _read(file: Path) -> Pooled:
    columns = read_scores(file)
    try:
        cases = _numbered(columns.pop("case"))
        patients = dict(zip(cases, columns.pop("patient"), strict=True))
        if "score" in columns:
            labels = {case: int(float(label)) for case, label in zip(cases, columns["label"], strict=True)}
            return Pooled(dict(zip(cases, map(float, columns["score"]), strict=True)), patients, labels)
        dice = np.array([[float(value) for value in column] for column in columns.values()])
        return Pooled(dict(zip(cases, _means(dice), strict=True)), patients, {})
    except (KeyError, ValueError) as error:
        told = f"{type(error).__name__} {error}"
        raise SvdHubError(f"{file} has another form ({told}); needed: case, patient and scores") from error


def _numbered(names: Sequence[str]) -> list[Case]:
    seen, cases = Counter[str](), list[Case]()
    for name in names:
        seen[name] += 1
        cases.append((name, seen[name]))
    return cases


def _means(dice: NDArray[np.float64]) -> list[float]:
    """Return the mean over organs (K, N) of each case, without those that are nan."""
    there = ~np.isnan(dice)
    count = there.sum(0)
    found: list[float] = np.where(count > 0, np.where(there, dice, 0).sum(0) / np.maximum(count, 1), np.nan).tolist()
    return found


def difference(ours: Sequence[Pooled], other: Sequence[Pooled], *, resamples: int = 10_000) -> Estimate | None:
    """Return by how much `ours` exceeds `other`, seeds averaged, in AUC or mean Dice; with its interval over patients.

    Args:
        ours, other: one for each seed; the arms may have different ones.
        resamples: how many times patients are drawn.

    Returns:
        None where not all seeds of both are of the same cases and labels, or where the metric has no value.
    """
    first = ours[0]
    if any((one.labels, one.patients) != (first.labels, first.patients) for one in (*ours, *other)):
        return None
    cases = sorted(first.values)
    one, two = (np.array([[seed.values[case] for case in cases] for seed in arm]) for arm in (ours, other))
    patients = [first.patients[case] for case in cases]
    try:
        if first.labels:
            labels = [first.labels[case] for case in cases]
            return paired_bootstrap(one, two, labels, patients, resamples=resamples)
        return bootstrap_mean(one.mean(0) - two.mean(0), patients, resamples=resamples)
    except OptionError:
        return None
