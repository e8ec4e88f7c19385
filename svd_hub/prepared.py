"""A volume as its network sees it, some planes at a time: what `Preprocess` gives, never all of it at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from . import images
from .errors import OptionError
from .preprocess import Preprocess, Triple, nothing_positive

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

_PLANES = 16  # at a time, where all of them are gone through


class Prepared:
    """The tensor of a whole CT or MR volume, in slabs along its depth; no crop and no padding.

    Attributes:
        sides: (D, H, W) at the spacing and in the orientation of the rule.
        pad: what the rule's padding becomes, in the network's units.
        order: for each of D, H, W the axis of the array it runs along.
        orientation: where D, H, W run to.

    Args:
        rule: of modality "CT" or "MR", with fit "crop".
        array: three axes of finite numbers.
        spacing: mm for each axis of the array.
        orientation: where its axes run to, "SPL" for a `svd_hub.volume.Volume`.

    Raises:
        OptionError: another rule.
        VolumeError: statistics of voxels above 0, and there is none.
    """

    def __init__(self, rule: Preprocess, array: np.ndarray, spacing: Sequence[float], orientation: str = "SPL") -> None:
        if rule.modality not in ("CT", "MR") or rule.fit != "crop":
            raise OptionError(
                f"modality={rule.modality!r}, fit={rule.fit!r} are not read in slabs; allowed: 'CT' or 'MR', and 'crop'"
            )
        self.rule = rule
        self.orientation = rule.turned_to(orientation, own=False)
        self.view, self.order = images.turned(array, orientation, self.orientation)
        d, h, w = rule.sides_of(self.view.shape, [spacing[axis] for axis in self.order], self.orientation)
        self.sides: Triple = (d, h, w)
        self.mean, self.std = self._statistics()
        self.pad = float(self._values(_scalar(rule.padding)).flatten()[0])

    def slab(self, start: int, stop: int) -> Tensor:
        """Return the planes [start, stop) as (C, d, H, W), float32."""
        return self._values(self._sampled(start, stop)[None])

    def slabs(self) -> Iterator[Tensor]:
        """Yield the windowed planes (d, H, W), before mean and std, from the first to the last."""
        for start in range(0, self.sides[0], _PLANES):
            yield self.rule.windowed(self._sampled(start, min(self.sides[0], start + _PLANES)))

    def _sampled(self, start: int, stop: int) -> Tensor:
        return images.sample(self.view, self.sides, (slice(start, stop), *(slice(0, n) for n in self.sides[1:])))

    def _values(self, x: Tensor) -> Tensor:
        """Return (C, d, H, W) of (1, d, H, W) in the image's units."""
        normal = self.rule.normalised(self.rule.windowed(x), self.mean, self.std)
        return normal.expand(self.rule.channels, *normal.shape[1:]).contiguous()

    def _statistics(self) -> tuple[float, float]:
        if self.rule.statistics == "fixed":
            return tuple(sum(v) / 3 if isinstance(v, tuple) else v for v in (self.rule.mean, self.rule.std))  # type: ignore[return-value]
        count, total = 0, 0.0
        for x in self._counted():
            count, total = count + x.numel(), total + float(x.double().sum())
        if not count:
            raise nothing_positive()
        mean = total / count
        squares = sum(float(((x.double() - mean) ** 2).sum()) for x in self._counted())
        return mean, max(math.sqrt(squares / count), 1e-6)

    def _counted(self) -> Iterator[Tensor]:
        for x in self.slabs():
            yield x[x > 0] if self.rule.statistics == "positive" else x


def _scalar(value: float) -> Tensor:
    import torch

    return torch.full((1, 1, 1, 1), float(value))
