"""Classification: loss and accuracy of logits, and what a threshold on the score of a positive makes of two classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ...errors import OptionError, check_choice
from ...metrics import Floats, auc, confusion, rates

GRIDS = ("official", "all")
RULES = ("youden",)
SOURCES = ("validation", "test (official)")
# urmagicsmine/CSPR@390a413 mmcls/datasets/base_dataset.py: the thresholds that are tried.
OFFICIAL_GRID = np.arange(10) / 10

Scored = tuple[ArrayLike, ArrayLike]  # scores (N,) and labels (N,)


def classification_metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Return loss and top-1 (and top-5 with more than 5 classes, AUC with 2) of (N, K) logits and (N,) labels."""
    loss = torch.nn.functional.cross_entropy(logits.float(), labels)
    order = logits.topk(min(5, logits.shape[1]), dim=1).indices
    hits = order == labels[:, None]
    metrics = {"loss": float(loss), "top1": float(hits[:, 0].float().mean())}
    if logits.shape[1] > 5:
        metrics["top5"] = float(hits.any(1).float().mean())
    if logits.shape[1] == 2 and 0 < int(labels.sum()) < len(labels):
        metrics["auc"] = auc((logits[:, 1] - logits[:, 0]).cpu().numpy(), labels.cpu().numpy())
    return metrics


@dataclass(frozen=True)
class ThresholdMetrics:
    """How two classes are told apart where a score above `threshold` means positive (1).

    Attributes:
        threshold: the score itself is still negative.
        sensitivity: share of the positives found, also called recall; nan where there is none.
        specificity: share of the negatives left alone; nan where there is none.
        precision: share of positives among what was called so; nan where nothing was.
        f1: harmonic mean of sensitivity and precision.
        accuracy: share of all that is right.
    """

    threshold: float
    sensitivity: float
    specificity: float
    precision: float
    f1: float
    accuracy: float


def threshold_metrics(scores: ArrayLike, labels: ArrayLike, threshold: float) -> ThresholdMetrics:
    """Return the metrics of (N,) scores against (N,) labels 0 and 1 at a threshold.

    Raises:
        OptionError: not one label of 0 or 1 per score, scores or a threshold that are no numbers, nothing at all.
    """
    score, label = _checked(scores, labels)
    if np.isnan(threshold):
        raise OptionError("threshold=nan is not allowed; allowed: a number")
    found = rates(confusion(score > threshold, label, 2))
    return ThresholdMetrics(
        threshold=float(threshold),
        sensitivity=float(found.sensitivity[1]),
        specificity=float(found.specificity[1]),
        precision=float(found.precision[1]),
        f1=float(found.f1[1]),
        accuracy=float(found.accuracy),
    )


def choose_threshold(scores: ArrayLike, labels: ArrayLike, *, rule: str = "youden", grid: str = "official") -> float:
    """Return the threshold with the largest sensitivity + specificity; the lowest, where several have it.

    Args:
        scores: (N,) of the positive class; probabilities for the official grid.
        labels: (N,) 0 or 1, both present.
        rule: "youden", the sum above.
        grid: "official" = 0.0, 0.1 ... 0.9, as the paper's code tries them; "all" = every score there is.

    Raises:
        OptionError: see `threshold_metrics`; one of the classes is missing; scores outside 0 ... 1 on that grid.
    """
    check_choice("rule", rule, RULES)
    check_choice("grid", grid, GRIDS)
    score, label = _checked(scores, labels)
    positives, negatives = np.sort(score[label]), np.sort(score[~label])
    if not len(positives) or not len(negatives):
        raise OptionError(
            f"a threshold needs both classes; found {len(positives)} positives and {len(negatives)} negatives"
        )
    if grid == "official" and (score.min() < 0 or score.max() > 1):
        raise OptionError(
            f"scores {score.min():g} to {score.max():g} are not allowed on grid='official'; allowed: probabilities, "
            "0 to 1. Next: softmax, or grid='all'"
        )
    tried = OFFICIAL_GRID if grid == "official" else np.unique(score)
    found = len(positives) - np.searchsorted(positives, tried, side="right")
    spared = np.searchsorted(negatives, tried, side="right")
    # sensitivity + specificity over one denominator: whole numbers, so that equal ones are equal
    return float(tried[np.argmax(found * len(negatives) + spared * len(positives))])


@dataclass(frozen=True)
class ClassificationResult:
    """What a test set says: AUC, which needs no threshold, and the metrics at one chosen on `threshold_from`."""

    auc: float
    at_threshold: ThresholdMetrics
    threshold_from: str


def evaluate_scores(
    test: Scored,
    *,
    validation: Scored | None = None,
    threshold_from: str = "validation",
    rule: str = "youden",
    grid: str = "official",
) -> ClassificationResult:
    """Return AUC and threshold metrics of the scores and labels of a test set.

    Args:
        test: scores (N,) of the positive class and labels (N,) of 0 and 1.
        validation: the same of other patients, on which the threshold is chosen.
        threshold_from: "validation"; or "test (official)" = chosen on the test set itself, as the paper's code does
            for its Table IV: everything but the AUC is then better than on new patients.
        rule, grid: see `choose_threshold`.

    Raises:
        OptionError: no validation set to choose on; see `choose_threshold` and `svd_hub.metrics.auc`.
    """
    check_choice("threshold_from", threshold_from, SOURCES)
    chosen_on = validation if threshold_from == "validation" else test
    if chosen_on is None:
        raise OptionError(
            "threshold_from='validation' needs validation=(scores, labels). Next: give them, or say "
            "threshold_from='test (official)' to choose on the test set as the paper's code does"
        )
    threshold = choose_threshold(*chosen_on, rule=rule, grid=grid)
    return ClassificationResult(
        auc=auc(*test), at_threshold=threshold_metrics(*test, threshold), threshold_from=threshold_from
    )


def _checked(scores: ArrayLike, labels: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    score, label = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if score.ndim != 1 or not len(score) or score.shape != label.shape or not np.isin(label, (0, 1)).all():
        raise OptionError(f"scores {score.shape}, labels {label.shape} are not allowed; allowed: (N,), labels 0 or 1")
    if not np.isfinite(score).all():
        raise OptionError(f"{int((~np.isfinite(score)).sum())} of {len(score)} scores are not finite")
    return score, label.astype(bool)
