"""How a weight is run on a whole volume: windows, what is kept of a mask, slices of a detector. Data; no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

from .errors import OptionError, check_choice

Triple = tuple[int, int, int]
BLENDS = ("gaussian", "constant")
ACTIVATIONS = ("softmax", "sigmoid")


@dataclass(frozen=True, kw_only=True)
class Inference:
    """What belongs to a weight beside its preprocessing, where it is run on more than one input of its size.

    Attributes:
        window: (D, H, W) of the sliding windows of a segmenter; None = its preprocessing's `size`, or `minimum` where
            that is one, or 32 x 256 x 256 (SVD-Net paper, LiTS).
        stride: (D, H, W) from one window to the next; None = half a window.
        blend: how overlapping windows are weighted: "gaussian" | "constant".
        activation: "softmax": one class a voxel, class 0 is the background; "sigmoid": classes of their own, none of
            them the background; a voxel takes the likeliest of those above one half, and label 0 where there is none.
        largest: names of classes of which only the largest connected part is kept (6-connectivity).
        slices: planes that a detector reads around the key slice.
        slice_spacing: mm between them: they are cut anew, by linear interpolation between the nearest stored slices.
        side: pixels that the longer side of a slice is resized to, None = its own.
        merge_iou: IoU from which boxes of neighbouring slices are one finding.

    Raises:
        OptionError: a value that makes no sense, with what does.
    """

    window: Triple | None = None
    stride: Triple | None = None
    blend: str = "gaussian"
    activation: str = "softmax"
    largest: tuple[str, ...] = ()
    slices: int = 9
    slice_spacing: float = 2.5
    side: int | None = None
    merge_iou: float = 0.5

    def __post_init__(self) -> None:
        for key in ("window", "stride"):
            if (value := getattr(self, key)) is not None:
                object.__setattr__(self, key, _triple(key, value))
        if self.stride is not None:
            if self.window is None:
                raise OptionError(f"stride={self.stride} without a window is not allowed; allowed: both")
            if any(s > w for s, w in zip(self.stride, self.window, strict=True)):
                raise OptionError(f"stride={self.stride} is not allowed; allowed: at most the window, {self.window}")
        check_choice("blend", self.blend, BLENDS)
        check_choice("activation", self.activation, ACTIVATIONS)
        if not isinstance(self.largest, list | tuple) or not all(isinstance(name, str) for name in self.largest):
            raise OptionError(f"largest={self.largest!r} is not allowed; allowed: a list of class names")
        object.__setattr__(self, "largest", tuple(self.largest))
        for key in ("slices", "side"):
            value = getattr(self, key)
            if not _whole(value) and not (key == "side" and value is None):
                raise OptionError(f"{key}={value!r} is not allowed; allowed: a positive integer")
        if not _real(self.slice_spacing) or not 0 < self.slice_spacing < 100:
            raise OptionError(f"slice_spacing={self.slice_spacing!r} is not allowed; allowed: mm, above 0")
        if not _real(self.merge_iou) or not 0 < self.merge_iou <= 1:
            raise OptionError(f"merge_iou={self.merge_iou!r} is not allowed; allowed: above 0, up to 1")

    @classmethod
    def of(cls, data: Mapping[str, Any], owner: str) -> Inference:
        """Return the record of a table.

        Raises:
            OptionError: a key or value that is none; names the owner.
        """
        try:
            return cls(**data)
        except (TypeError, OptionError) as error:
            raise OptionError(f"inference of {owner!r}: {error}") from error

    def data(self) -> dict[str, Any]:
        """Return what differs from the default, as `of` takes it."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) != f.default}

    def windows(self, size: Triple | None, minimum: Triple) -> tuple[Triple, Triple]:
        """Return window and stride, given what the preprocessing says of sizes."""
        window = self.window or size or (minimum if max(minimum) > 1 else (32, 256, 256))
        d, h, w = (max(1, side // 2) for side in window)
        return window, self.stride or (d, h, w)


def _whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) > 0


def _real(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _triple(key: str, value: Any) -> Triple:
    if not isinstance(value, list | tuple) or len(value) != 3 or not all(_whole(n) for n in value):
        raise OptionError(f"{key}={value!r} is not allowed; allowed: three positive integers, (D, H, W)")
    return (int(value[0]), int(value[1]), int(value[2]))
