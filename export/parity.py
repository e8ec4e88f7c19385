"""An artifact against the network it was made from: at several shapes, by numbers and by what they are for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from ..errors import SvdHubError
from ..ops import iou_matrix
from .formats import AGREEMENT, TOLERANCES
from .network import Network

Run = Callable[[np.ndarray], Mapping[str, np.ndarray]]
SAME_BOX = 0.7  # IoU from which two boxes of a class are one
WORTH = 0.5  # scores below this part of an image's best are left out: a hundred boxes are always listed


class ParityError(SvdHubError):
    """An artifact does not compute what its network does; `report` has the numbers."""

    def __init__(self, message: str, report: Report) -> None:
        super().__init__(message)
        self.report = report


@dataclass(frozen=True, kw_only=True)
class Case:
    """One shape.

    Attributes:
        shape: (N, C, D, H, W).
        errors: output -> norm of the difference by the norm of eager's.
        finite: no NaN and no infinity.
        agreement: share of the task's own measure, None where there is none.
    """

    shape: tuple[int, ...]
    errors: Mapping[str, float]
    finite: bool
    agreement: float | None = None

    @property
    def error(self) -> float:
        """The largest of the errors."""
        return max(self.errors.values())


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was found.

    Attributes:
        runner: what computed, in its own words; "" where nothing here can.
        measure: the task's own measure: "class", "dice", "boxes", or "".
        tolerance, least_agreement: what a case may differ by.
        note: why nothing was run, or which other runtime ran it.
    """

    runner: str
    measure: str
    tolerance: float
    least_agreement: float
    cases: tuple[Case, ...] = field(default=())
    note: str = ""

    @property
    def passed(self) -> bool:
        """Every case is finite and within both bounds; true where nothing could be run."""
        return all(self.fine(case) for case in self.cases)

    def fine(self, case: Case) -> bool:
        """Return whether a case is within the bounds."""
        agrees = case.agreement is None or case.agreement >= self.least_agreement
        return case.finite and case.error <= self.tolerance and agrees

    def data(self) -> dict[str, Any]:
        """Return it for a manifest; numbers in three digits, so that the same machine writes the same bytes."""
        cases = [
            {
                **asdict(case),
                "errors": {name: float(f"{error:.2e}") for name, error in case.errors.items()},
                "agreement": None if case.agreement is None else round(case.agreement, 4),
            }
            for case in self.cases
        ]
        told = {"runner": self.runner, "measure": self.measure, "tolerance": self.tolerance, "note": self.note}
        return {**told, "least_agreement": self.least_agreement, "cases": cases, "passed": self.passed}

    def lines(self) -> list[str]:
        """Return it for people, a line for each case."""
        found = [f"parity by {self.runner or 'nothing here'}, error <= {self.tolerance:g}" + self._measured()]
        for case in self.cases:
            share = "" if case.agreement is None else f"  {self.measure} {case.agreement:.4f}"
            mark = "ok" if self.fine(case) else "FAILED" if case.finite else "FAILED, not finite"
            found.append(f"  {'x'.join(map(str, case.shape)):>18}  error {case.error:.1e}{share}  {mark}")
        return [*found, *([f"  {self.note}"] if self.note else [])]

    def _measured(self) -> str:
        return f", {self.measure} >= {self.least_agreement:g}" if self.measure else ""


def measure(
    network: Network, run: Run, runner: str, precision: str, inputs: Sequence[np.ndarray], note: str = ""
) -> Report:
    """Return how an artifact differs from its network, in eager fp32.

    Args:
        network: that was exported.
        run: from a volume to outputs by name.
        runner: what computes.
        precision: of the artifact.
        inputs: volumes (N, C, D, H, W).
        note: of the report.
    """
    cases = []
    for volume in inputs:
        wanted = dict(zip(network.outputs, (t.numpy() for t in network.eager(torch.from_numpy(volume))), strict=True))
        cases.append(compare(run(volume), wanted, kind=network.kind, precision=precision, volume=volume))
    return Report(
        runner=runner,
        measure=measure_of(network.kind, cases),
        tolerance=TOLERANCES[network.norm, precision],
        least_agreement=AGREEMENT[precision],
        cases=tuple(cases),
        note=note,
    )


def compare(
    found: Mapping[str, np.ndarray],
    wanted: Mapping[str, np.ndarray],
    *,
    kind: str,
    precision: str,
    volume: np.ndarray,
) -> Case:
    """Return one case.

    Raises:
        SvdHubError: the outputs have other names or shapes.
    """
    told = {name: array.shape for name, array in found.items()}
    asked = {name: array.shape for name, array in wanted.items()}
    if told != asked:
        raise SvdHubError(f"for a volume of {volume.shape} the artifact returned {told}, the network {asked}")
    finite = all(np.isfinite(array).all() for array in found.values())
    agreement: float | None
    if kind == "detections":
        agreement, errors = matched(found, wanted)
    else:
        errors = {name: relative(found[name], wanted[name]) for name in wanted}
        agreement = _agreement(found, wanted, kind, TOLERANCES["group", precision]) if finite else None
    return Case(shape=volume.shape, errors=errors, finite=bool(finite), agreement=agreement)


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    """Return the norm of the difference by the norm of what is wanted; infinity where it is not a number."""
    a, b = found.astype(np.float64), wanted.astype(np.float64)
    error = float(np.linalg.norm(a - b) / max(float(np.linalg.norm(b)), 1e-30))
    return error if np.isfinite(error) else float("inf")


def measure_of(kind: str, cases: Sequence[Case]) -> str:
    """Return the word for the task's own measure, "" where no case has one."""
    if all(case.agreement is None for case in cases):
        return ""
    return {"logits": "class", "map": "dice", "detections": "boxes"}.get(kind, "")


def _agreement(
    found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray], kind: str, slack: float
) -> float | None:
    """Return the share of images of one class, or the mean Dice of the labels, None where an output has no classes."""
    a, b = found.get("logits"), wanted.get("logits")
    if a is None or b is None or b.shape[1] < 2:
        return None
    if kind == "logits":
        best = np.take_along_axis(b, a.argmax(1)[:, None], 1)[:, 0]
        # another class counts as the same where eager's two best are nearer to each other than rounding
        return float((b.max(1) - best <= slack * np.abs(b).max(1)).mean())
    return dice(a.argmax(1), b.argmax(1), b.shape[1])


def dice(a: np.ndarray, b: np.ndarray, classes: int) -> float:
    """Return the mean Dice of the labels that one of two label maps has."""
    one, two, both = (np.bincount(labels, minlength=classes) for labels in (a.ravel(), b.ravel(), a[a == b]))
    there = one + two > 0
    return float((2 * both[there] / (one + two)[there]).mean())


def matched(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> tuple[float, dict[str, float]]:
    """Return the share of detections that have a partner on the other side, and how partners differ."""
    hits, total = 0, 0
    rows: list[tuple[np.ndarray, np.ndarray]] = []
    for number in range(len(wanted["labels"])):
        one, two = (_worthy(side, number) for side in (found, wanted))
        for left, right in ((one, two), (two, one)):
            partners = _partners(left, right)
            hits, total = hits + int((partners >= 0).sum()), total + len(left)
            if left is two:
                rows.append((right[partners[partners >= 0]], left[partners >= 0]))
    if not total:
        return 1.0, {"boxes": 0.0, "scores": 0.0}
    a, b = (np.concatenate(column) for column in zip(*rows, strict=True))
    if not len(b):
        return hits / total, {"boxes": float("inf"), "scores": float("inf")}
    return hits / total, {"boxes": relative(a[:, :4], b[:, :4]), "scores": relative(a[:, 4], b[:, 4])}


def _worthy(side: Mapping[str, np.ndarray], number: int) -> np.ndarray:
    """Return the detections of an image as rows x0, y0, x1, y1, score, label; none of those that are far weaker."""
    boxes, scores, labels = (side[name][number] for name in ("boxes", "scores", "labels"))
    rows = np.concatenate([boxes, scores[:, None], labels[:, None]], 1, dtype=np.float64)[labels >= 0]
    return rows[rows[:, 4] >= WORTH * rows[:, 4].max()] if len(rows) else rows


def _partners(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return for each row of `left` the row of `right` of its class that overlaps it most; -1: none does enough."""
    if not len(left) or not len(right):
        return np.full(len(left), -1)
    overlap = iou_matrix(torch.from_numpy(left[:, :4]), torch.from_numpy(right[:, :4])).numpy()
    overlap = np.where(left[:, None, 5] == right[None, :, 5], overlap, 0)
    return np.where(overlap.max(1) >= SAME_BOX, overlap.argmax(1), -1)
