"""FROC: how many lesions are found, against how many false boxes an image costs.

Source: urmagicsmine/MP3D@08e5ace mmdet/datasets/lesion.py, the evaluator behind the paper's Tables VI and VII.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...errors import OptionError, check_choice
from ...metrics import Floats, box_iou

TAILS = ("official", "hold")
PAPER_RATES = (0.5, 1.0, 2.0, 4.0)  # false boxes an image of the paper's tables; their mean is mFROC


@dataclass(frozen=True)
class Froc:
    """An FROC curve and what is read off it.

    Attributes:
        fp_per_image: (R,) the rates asked for.
        sensitivity: (R,) at these rates; nan where tail="official" leaves a rate out, and without any true box.
        mean: over the sensitivities that are there, and that of `maximum` where rates were left out.
        maximum: the largest rate of the curve and the sensitivity where it is first reached, if the official tail
            puts it in the place of rates beyond; else None.
        curve_fp: (K,) false boxes an image after each detection, by falling score.
        curve_sensitivity: (K,) share of the true boxes hit by then.
        scores: (K,) of that detection.
        images, boxes: how many images and true boxes there are.
    """

    fp_per_image: Floats
    sensitivity: Floats
    mean: float
    maximum: tuple[float, float] | None
    curve_fp: Floats
    curve_sensitivity: Floats
    scores: Floats
    images: int
    boxes: int


def froc(
    detections: Sequence[ArrayLike],
    ground_truth: Sequence[ArrayLike],
    fp_per_image: Sequence[float] = PAPER_RATES,
    *,
    tail: str = "official",
    plus_one: bool = False,
    iou: float = 0.5,
) -> Froc:
    """Return the FROC curve of one class and its sensitivities at some rates of false boxes an image.

    All detections are taken by falling score over the whole set, equal ones in the order given. One hits every true
    box of its image with an IoU of at least `iou` that was not hit before, so one may hit several. One that reaches no
    true box is false. One that reaches only boxes that were hit before is neither. Images without detections and
    images without true boxes count in the rate.

    The curve begins at no box and no sensitivity, has a point after each detection and is linear in between. Where
    several points share a rate, it is read where that rate is first reached; at rate 0, in front of the first false
    box. (The official `interp1d` reads the same off its points wherever it gives a finite number.)

    Args:
        detections: (K, 5) for each image, x0, y0, x1, y1 in pixels and a score; (0, 5) where there are none.
        ground_truth: (G, 4) for each image; (0, 4) where there are none.
        fp_per_image: the rates, rising.
        tail: of rates beyond the curve's largest: "official" = they are left out and one point at the largest takes
            their place, so that the mean may be over fewer values; "hold" = they have the curve's last sensitivity,
            as NIH's older evaluators do.
        plus_one: a width is x1 - x0 + 1, as in 3DCE and ACS; the official evaluator of this paper has no + 1.
        iou: the least overlap of a hit.

    Raises:
        OptionError: arrays of another shape, values that are not finite, rates that do not rise, another tail.
    """
    check_choice("tail", tail, TAILS)
    rates = _checked_rates(fp_per_image)
    found, truth = checked_boxes(detections, ground_truth)
    total = sum(len(boxes) for boxes in truth)
    scores = np.concatenate([some[:, 4] for some in found])
    order = np.argsort(-scores, kind="stable")
    parts = [_outcome(some, boxes, iou, plus_one=plus_one) for some, boxes in zip(found, truth, strict=True)]
    false, hits = (np.concatenate(column)[order] for column in zip(*parts, strict=True))
    fp = np.concatenate([[0.0], np.cumsum(false) / len(found)])
    sensitivity = np.concatenate([[0], np.cumsum(hits)]) / total if total else np.full(len(fp), np.nan)
    largest = float(fp[-1])
    kept = rates <= largest
    values = np.full(len(rates), np.nan)
    values[kept] = [_at(fp, sensitivity, rate) for rate in rates[kept]]
    maximum = None
    if tail == "hold":
        values[rates >= largest] = sensitivity[-1]
    elif not kept.all():
        maximum = (largest, _at(fp, sensitivity, largest))
    return Froc(
        fp_per_image=rates,
        sensitivity=values,
        mean=float(np.mean([*values[kept], maximum[1]] if maximum else values)),
        maximum=maximum,
        curve_fp=fp[1:],
        curve_sensitivity=sensitivity[1:],
        scores=scores[order],
        images=len(found),
        boxes=total,
    )


def _outcome(
    detections: Floats, boxes: Floats, iou: float, *, plus_one: bool
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Return of each detection (K, 5) of an image: is it false (K,), and how many true boxes does it hit first (K,)."""
    falling = np.argsort(-detections[:, 4], kind="stable")
    reached = box_iou(detections[falling, :4], boxes, plus_one=plus_one) >= iou
    false = np.empty(len(detections), bool)
    false[falling] = ~reached.any(1)
    hits = np.zeros(len(detections), np.int64)
    if len(detections):
        hits[falling] = np.bincount(reached.argmax(0)[reached.any(0)], minlength=len(detections))
    return false, hits


def _at(fp: Floats, sensitivity: Floats, rate: float) -> float:
    """Return the sensitivity at a rate up to the largest of a curve that begins at rate 0; see `froc`."""
    if rate == 0:
        return float(sensitivity[np.searchsorted(fp, 0.0, side="right") - 1])
    after = int(np.searchsorted(fp, rate))  # the first point that reaches it; the one before has a smaller rate
    slope = (sensitivity[after] - sensitivity[after - 1]) / (fp[after] - fp[after - 1])
    return float(sensitivity[after - 1] + slope * (rate - fp[after - 1]))


def _checked_rates(fp_per_image: Sequence[float]) -> Floats:
    rates = np.asarray(fp_per_image, dtype=np.float64)
    sound = rates.ndim == 1 and len(rates) > 0 and bool(np.isfinite(rates).all()) and rates[0] >= 0
    if not sound or (np.diff(rates) <= 0).any():
        raise OptionError(f"fp_per_image={fp_per_image!r} is not allowed; allowed: rates of 0 or more that rise")
    return rates


def checked_boxes(
    detections: Sequence[ArrayLike], ground_truth: Sequence[ArrayLike]
) -> tuple[list[Floats], list[Floats]]:
    """Return detections (K, 5) and true boxes (G, 4), one array of each for an image, as float64.

    Raises:
        OptionError: no images, not as many of the one as of the other, another shape, a value that is not finite.
    """
    if not len(detections) or len(detections) != len(ground_truth):
        raise OptionError(
            f"{len(detections)} arrays of detections and {len(ground_truth)} of true boxes are not allowed; "
            "allowed: one of each for every image, of shape (0, 5) and (0, 4) where there is nothing"
        )
    return _checked("detections", detections, 5), _checked("ground_truth", ground_truth, 4)


def _checked(name: str, arrays: Sequence[ArrayLike], columns: int) -> list[Floats]:
    checked = []
    for number, array in enumerate(arrays):
        found = np.asarray(array, dtype=np.float64)
        if found.ndim != 2 or found.shape[1] != columns:
            meaning = "x0, y0, x1, y1" + (", score" if columns == 5 else "")
            raise OptionError(
                f"{name}[{number}] of shape {found.shape} is not allowed; allowed: (K, {columns}) as {meaning}, "
                f"(0, {columns}) where there is nothing"
            )
        if not np.isfinite(found).all():
            raise OptionError(f"{name}[{number}] has {int((~np.isfinite(found)).sum())} values that are not finite")
        checked.append(found)
    return checked
