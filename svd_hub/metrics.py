"""Metrics that training, prediction and export share: pure functions of arrays and tensors.

A label map holds one class index per voxel. Everything about classes is read off a confusion matrix, so a large volume
is counted once and its parts may be added up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .errors import OptionError, check_choice

EMPTY = ("nan", "one")
_AT_ONCE = 1 << 22  # voxels that are counted at a time: it bounds the memory beyond the maps, to about 150 MB

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


def confusion(prediction: Any, target: Any, num_classes: int, *, per_case: bool = False) -> Counts:
    """Return how many voxels of each true class (row) were given each class (column).

    Args:
        prediction, target: label maps of one shape, tensors or arrays of integers or bools in 0 ... num_classes - 1.
        num_classes: K, the background among them.
        per_case: True = the first axis are cases, each with a matrix of its own; False = all voxels together.

    Returns:
        (K, K), or (N, K, K) with `per_case`.

    Raises:
        OptionError: shapes that differ, numbers that are no labels, a label out of range.
    """
    if not isinstance(num_classes, int) or num_classes < 1:
        raise OptionError(f"num_classes={num_classes!r} is not allowed; allowed: 1 or more")
    given, truth = _label_map("prediction", prediction), _label_map("target", target)
    if given.shape != truth.shape or (per_case and given.ndim < 1):
        raise OptionError(
            f"prediction {tuple(given.shape)} and target {tuple(truth.shape)} are not allowed; allowed: one shape"
        )
    if per_case:
        rows = [confusion(p, t, num_classes) for p, t in zip(given, truth, strict=True)]
        return np.stack(rows) if rows else np.zeros((0, num_classes, num_classes), np.int64)
    total = np.zeros((num_classes, num_classes), np.int64)
    for p, t in zip(_parts(given), _parts(truth), strict=True):
        _check_range("prediction", p, num_classes)
        _check_range("target", t, num_classes)
        cells = torch.bincount(t.to(p.device) * num_classes + p, minlength=num_classes**2)
        total += cells.reshape(num_classes, num_classes).cpu().numpy()
    return total


def counts_of(labels: Any, num_classes: int) -> tuple[int, ...]:
    """Return how many voxels have each of the labels 0 ... num_classes - 1, counted plane by plane.

    Args:
        labels: planes of integers, (D, ...) or one after another; labels beyond the last are not counted.
        num_classes: how many there are.
    """
    total = np.zeros(num_classes, np.int64)
    for plane in labels:
        total += np.bincount(np.asarray(plane).reshape(-1), minlength=num_classes)[:num_classes]
    return tuple(total.tolist())


def _label_map(name: str, values: Any) -> Tensor | NDArray[Any]:
    found = values if isinstance(values, Tensor) else np.asarray(values)
    whole = found.dtype.kind in "biu" if isinstance(found, np.ndarray) else not _fractional(found)
    if not whole:
        raise OptionError(
            f"{name} of type {found.dtype} holds no labels; allowed: integers or bools. Next: logits.argmax(1)"
        )
    return found


def _fractional(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _parts(values: Tensor | NDArray[Any]) -> Iterator[Tensor]:
    """Yield all labels as int64, some at a time."""
    flat = values.reshape(-1)
    for start in range(0, len(flat), _AT_ONCE):
        part = flat[start : start + _AT_ONCE]
        # an array may be read-only or of the other byte order, which torch does not take
        yield part.long() if isinstance(part, Tensor) else torch.from_numpy(part.astype(np.int64))


def _check_range(name: str, labels: Tensor, num_classes: int) -> None:
    low, high = (int(n) for n in torch.aminmax(labels))
    if low < 0 or high >= num_classes:
        raise OptionError(f"{name} has labels {low} to {high}; allowed: 0 to {num_classes - 1}")


def dice(prediction: Any, target: Any, num_classes: int, *, per_case: bool = False, empty: str = "nan") -> Floats:
    """Return the Dice coefficient 2 |P and T| / (|P| + |T|) of each class.

    All voxels together is the paper's measure for nodules, the mean over cases (`np.nanmean(..., axis=0)`) that for
    the liver.

    Args:
        prediction, target, num_classes, per_case: see `confusion`.
        empty: of a class that neither map has: "nan" = no value, left out of a mean by `np.nanmean`; "one" = 1, as
            the official code counts it. A class that only one of the maps has is 0 with both.

    Returns:
        (K,), or (N, K) with `per_case`: 0 ... 1, or nan.

    Raises:
        OptionError: see `confusion`; another rule.
    """
    return dice_of(confusion(prediction, target, num_classes, per_case=per_case), empty=empty)


def dice_of(matrix: ArrayLike, *, empty: str = "nan") -> Floats:
    """Return the Dice coefficients (..., K) of confusion matrices (..., K, K); see `dice`."""
    check_choice("empty", empty, EMPTY)
    counts = _matrix(matrix)
    both = np.diagonal(counts, axis1=-2, axis2=-1)
    sizes = counts.sum(-1) + counts.sum(-2)
    return _ratio(2 * both, sizes, missing=1.0 if empty == "one" else np.nan)


@dataclass(frozen=True)
class Rates:
    """How often each class was right, each a (..., K) array: that class against all others together.

    Attributes:
        sensitivity: TP / (TP + FN), also called recall. nan where the class does not occur.
        specificity: TN / (TN + FP). nan where nothing else occurs.
        precision: TP / (TP + FP). nan where the class was never given.
        f1: 2 TP / (2 TP + FP + FN), the same number as Dice. nan where there is nothing of it.
        accuracy: (...), the share of all that is right, over all classes.
    """

    sensitivity: Floats
    specificity: Floats
    precision: Floats
    f1: Floats
    accuracy: Floats


def rates(matrix: ArrayLike) -> Rates:
    """Return the rates of confusion matrices (..., K, K), rows being the truth.

    Raises:
        OptionError: no such matrix.
    """
    counts = _matrix(matrix)
    right = np.diagonal(counts, axis1=-2, axis2=-1)
    true, given = counts.sum(-1), counts.sum(-2)
    everything = counts.sum((-1, -2))
    others = everything[..., None] - true
    return Rates(
        sensitivity=_ratio(right, true),
        specificity=_ratio(others - (given - right), others),
        precision=_ratio(right, given),
        f1=dice_of(counts),
        accuracy=_ratio(right.sum(-1), everything),
    )


def _matrix(matrix: ArrayLike) -> Counts:
    counts = np.asarray(matrix)
    if counts.ndim < 2 or counts.shape[-1] != counts.shape[-2] or counts.dtype.kind not in "iu" or (counts < 0).any():
        raise OptionError(
            f"a matrix of shape {counts.shape} and type {counts.dtype} is not allowed; allowed: counts (..., K, K)"
        )
    return counts.astype(np.int64)


def _ratio(above: Any, below: Any, *, missing: float = float("nan")) -> Floats:
    above, below = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    return np.divide(above, below, out=np.full(below.shape, missing), where=below > 0)


def auc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Return the area under the ROC curve: P(score of a positive > score of a negative), ties count one half.

    Raises:
        OptionError: one of the two classes is missing, a score is not finite, or they are not one label per score.
    """
    score, label = np.asarray(scores, dtype=float), np.asarray(labels)
    if score.ndim != 1 or score.shape != label.shape or not np.isin(label, (0, 1)).all():
        raise OptionError(f"scores {score.shape}, labels {label.shape} are not allowed; allowed: (N,), labels 0 or 1")
    if not np.isfinite(score).all():
        raise OptionError(f"{int((~np.isfinite(score)).sum())} of {len(score)} scores are not finite")
    label = label.astype(bool)
    positives, negatives = int(label.sum()), int((~label).sum())
    if not positives or not negatives:
        raise OptionError(f"AUC needs both classes; found {positives} positives and {negatives} negatives")
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((ranks[label].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def box_iou(first: ArrayLike, second: ArrayLike, *, plus_one: bool = False) -> Floats:
    """Return intersection over union (K, G) of each of the first boxes (K, 4) with each of the second (G, 4).

    Boxes are x0, y0, x1, y1; 0 where the union is empty. `svd_hub.ops.iou_matrix` is the same on tensors.

    Args:
        first, second: boxes.
        plus_one: a width is x1 - x0 + 1: coordinates are whole pixels, the last one inside. Evaluators older than
            mmdet 2 count so.

    Raises:
        OptionError: arrays of another shape.
    """
    boxes = [np.asarray(some, dtype=np.float64) for some in (first, second)]
    if any(some.ndim != 2 or some.shape[1] != 4 for some in boxes):
        raise OptionError(f"boxes {boxes[0].shape} and {boxes[1].shape} are not allowed; allowed: (K, 4) and (G, 4)")
    one, other = boxes[0][:, None], boxes[1][None]
    more = 1.0 if plus_one else 0.0

    def area(low: Floats, high: Floats) -> Floats:
        return np.maximum(high - low + more, 0.0).prod(-1)

    shared = area(np.maximum(one[..., :2], other[..., :2]), np.minimum(one[..., 2:], other[..., 2:]))
    union = area(one[..., :2], one[..., 2:]) + area(other[..., :2], other[..., 2:]) - shared
    return _ratio(shared, union, missing=0.0)
