"""Segmentation: whole volumes by windows, and Dice per organ, per case and pooled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from ...errors import OptionError
from ...metrics import Floats, dice_of
from ...ops.blending import whole

Triple = tuple[int, int, int]


def sliding_window(network: Any, x: Tensor, *, window: Triple, overlap: float = 0.5, pad: float = 0.0) -> Tensor:
    """Return the logits (N, K, D, H, W) of whole volumes, blended from windows with Gaussian weights.

    Args:
        network: from (n, C, *window) to logits of the same sides.
        x: (N, C, D, H, W); padded about its centre with `pad` where it is smaller than a window.
        window: (D, H, W).
        overlap: of neighbouring windows, a share of the window.
        pad: the value of padding.
    """
    return whole(network, x, pad=pad, window=window, stride=strides(window, overlap))


def strides(window: Triple, overlap: float) -> Triple:
    """Return the stride (D, H, W) of windows that overlap by a share of themselves."""
    d, h, w = (max(1, int(side * (1 - overlap))) for side in window)
    return d, h, w


def segmentation_metrics(counts: np.ndarray, known: np.ndarray, organs: Sequence[str]) -> dict[str, float]:
    """Return Dice of each organ, the mean over the patients that have it annotated, and "dice", the mean over organs.

    Args:
        counts: (N, K, K) confusion matrices, one a patient; class 0 is the background and has no Dice here.
        known: (N, K), True where that patient has that class annotated; elsewhere nothing is known of it.
        organs: names of the classes 1 to K - 1.
    """
    values = np.where(known, dice_of(counts), np.nan)[:, 1:]
    found = {
        f"dice_{organ}": float(np.nanmean(column))
        for organ, column in zip(organs, values.T, strict=True)
        if not np.isnan(column).all()
    }
    return {"dice": sum(found.values()) / len(found), **found} if found else {}


@dataclass(frozen=True)
class DiceSummary:
    """Dice of every class in the two ways in use; they differ, and neither is an estimate of the other.

    Attributes:
        pooled: (K,) all voxels of all cases together: the paper's for LIDC, where large nodules count more.
        per_case: (K,) mean of the cases' own: the paper's for LiTS.
        sd: (K,) their standard deviation between cases; nan with fewer than two.
        cases: (N, K) each case's own; nan where neither map has the class, unless empty="one".
    """

    pooled: Floats
    per_case: Floats
    sd: Floats
    cases: Floats


def dice_summary(counts: ArrayLike, *, empty: str = "nan") -> DiceSummary:
    """Return Dice pooled and per case of confusion matrices (N, K, K), one a case (`metrics.confusion`).

    Args:
        counts: the matrices, rows being the truth.
        empty: of a class that neither map of a case has: "nan" = that case does not count for it; "one" = 1.

    Raises:
        OptionError: no such matrices, or no case; another rule.
    """
    matrices = np.asarray(counts)
    if matrices.ndim != 3 or not len(matrices):
        raise OptionError(f"counts of shape {matrices.shape} are not allowed; allowed: (N, K, K), N of 1 or more")
    cases = dice_of(matrices, empty=empty)
    there = np.maximum((~np.isnan(cases)).sum(0), 1)
    none = np.isnan(cases).all(0)
    mean = np.where(none, np.nan, np.nansum(cases, 0) / there)
    squares = np.nansum((cases - mean) ** 2, 0)
    sd = np.where(there > 1, np.sqrt(squares / np.maximum(there - 1, 1)), np.nan)
    return DiceSummary(pooled=dice_of(matrices.sum(0), empty=empty), per_case=mean, sd=sd, cases=cases)
