"""The largest connected part of a label, found plane by plane: no map of all parts is ever in memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..volume import memory
from ..volume.libraries import simpleitk


def keep_largest(labels: np.ndarray, label: int) -> int:
    """Set to 0, in place, all of a label but its largest part (6-connectivity); of equal ones the first stays.

    Args:
        labels: (D, H, W).
        label: which one.

    Returns:
        How many voxels were taken away.
    """
    parts, sizes, counts = _Joined(), [], []
    before: tuple[np.ndarray, int] | None = None
    for found, count in _planes(labels, label):
        start = parts.add(count)
        counts.append(count)
        sizes.append(np.bincount(found.ravel(), minlength=count + 1)[1:])
        if before is not None and count:
            both = (found > 0) & (before[0] > 0)
            for one, other in np.unique(np.stack((found[both], before[0][both])), axis=1).T:
                parts.join(start + int(one) - 1, before[1] + int(other) - 1)
        before = (found, start)
    if not sum(counts):
        return 0
    roots = np.array([parts.root(k) for k in range(sum(counts))])
    total = np.bincount(roots, weights=np.concatenate(sizes))
    winner = int(total.argmax())
    keep, start = roots == winner, 0
    for (found, count), plane in zip(_planes(labels, label), labels, strict=True):
        if count:
            plane[np.concatenate(([False], ~keep[start : start + count]))[found]] = 0
        start += count
    return int(total.sum() - total[winner])


def _planes(labels: np.ndarray, label: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yield for each plane its parts, numbered from 1, and how many there are."""
    sitk = simpleitk()
    for (plane,) in memory.planes(labels):
        inside = plane == label
        if not inside.any():
            yield np.zeros(plane.shape, np.int64), 0
            continue
        found = sitk.GetArrayFromImage(sitk.ConnectedComponent(sitk.GetImageFromArray(inside.astype(np.uint8)), False))
        yield found, int(found.max())


class _Joined:
    """Numbers that are the same part (union-find)."""

    def __init__(self) -> None:
        self.above: list[int] = []

    def add(self, count: int) -> int:
        """Add `count` numbers; return the first."""
        start = len(self.above)
        self.above += range(start, start + count)
        return start

    def root(self, k: int) -> int:
        """Return the number that stands for the part of `k`, its lowest."""
        while self.above[k] != k:
            self.above[k] = self.above[self.above[k]]
            k = self.above[k]
        return k

    def join(self, one: int, other: int) -> None:
        """Make two parts one."""
        low, high = sorted((self.root(one), self.root(other)))
        self.above[high] = low
