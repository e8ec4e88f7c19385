"""The preprocessing that belongs to a weight: from an image as it is on disk to the tensor the network was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .errors import VolumeError, check_choice

if TYPE_CHECKING:
    from torch import Tensor

Triple = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """A frozen record that is also the function. Order: check, resample, window, scale, normalise, crop and pad.

    Attributes:
        modality: "RGB" (a 2D colour image becomes D = 3 planes), "CT" (HU), "MR", or "video".
        channels: channels of the tensor.
        spacing: mm as (z, y, x) the volume is resampled to (trilinear), None = its own.
        short_side: pixels the short side of an RGB image is resized to (bilinear, antialiased), None = its own.
        window: (low, high) the values are clipped to, in the image's units (HU), None = not clipped.
        scale: what `window` is mapped to, None = values stay.
        statistics: "fixed" uses `mean` and `std`; "volume" the volume's own.
        size: (D, H, W) of the centre crop, padded where the image is smaller; None = as it comes.
        pad: value of padding in the image's units; None = the window's low end, or 0.
        minimum, divisor: of D, H, W where `size` is None; padded up to them.
        note: what upstream does not document, in words.
    """

    modality: str = "CT"
    channels: int = 1
    spacing: tuple[float, float, float] | None = None
    short_side: int | None = None
    window: tuple[float, float] | None = None
    scale: tuple[float, float] | None = None
    statistics: Literal["fixed", "volume"] = "fixed"
    mean: float = 0.0
    std: float = 1.0
    size: Triple | None = None
    pad: float | None = None
    minimum: Triple = (1, 1, 1)
    divisor: Triple = (1, 1, 1)
    note: str = ""

    def __post_init__(self) -> None:
        check_choice("modality", self.modality, ("RGB", "CT", "MR", "video"))
        check_choice("statistics", self.statistics, ("fixed", "volume"))
        for key in ("spacing", "window", "scale", "size", "minimum", "divisor"):
            if isinstance(value := getattr(self, key), list):
                object.__setattr__(self, key, tuple(value))

    def __call__(self, image: Any, *, spacing: Sequence[float] | None = None, axes: str = "DHW") -> Tensor:
        """Return the tensor (1, C, D, H, W), float32, of one image.

        Args:
            image: RGB: an array (H, W, 3) or (H, W) of 0..255. Else an array whose axes are `axes`, or a SimpleITK image,
                which brings its own spacing.
            spacing: mm for each axis of `axes`.
            axes: the order of the array's axes, a permutation of "DHW".

        Raises:
            VolumeError: not such an image; says what was found and what is allowed.
        """
        if self.modality == "RGB":
            return self._planes(np.asarray(image))
        if hasattr(image, "GetSpacing"):
            if image.GetNumberOfComponentsPerPixel() != 1 or image.GetDimension() != 3:
                raise VolumeError(
                    f"image with {image.GetDimension()} dimensions and {image.GetNumberOfComponentsPerPixel()} components "
                    "is not allowed; allowed: a 3D scalar image"
                )
            import SimpleITK

            spacing, axes = tuple(reversed(image.GetSpacing())), "DHW"
            image = SimpleITK.GetArrayViewFromImage(image)
        return self._volume(np.asarray(image), spacing, axes)

    def _planes(self, image: np.ndarray) -> Tensor:
        import torch
        import torch.nn.functional as F

        if image.ndim == 2:
            image = np.repeat(image[:, :, None], 3, axis=2)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype.kind not in "uif" or not image.size:
            raise VolumeError(f"image {image.shape} {image.dtype} is not allowed; allowed: (H, W, 3) or (H, W), 0..255")
        low, high = float(image.min()), float(image.max())
        if not (low >= 0 and high <= 255) or (image.dtype.kind == "f" and 0 < high <= 1):
            raise VolumeError(f"values {low:g}..{high:g} are not allowed; allowed: 0..255 (multiply 0..1 by 255)")
        x = torch.from_numpy(np.ascontiguousarray(image)).float().permute(2, 0, 1)[None]
        if self.short_side is not None:
            factor = self.short_side / min(x.shape[2:])
            size = [max(self.short_side, round(n * factor)) for n in x.shape[2:]]
            x = F.interpolate(x, size=size, mode="bilinear", antialias=True).clamp(0, 255)
        return self._fit(((x - self.mean) / self.std)[:, None], 0.0 if self.pad is None else self.pad)

    def _volume(self, array: np.ndarray, spacing: Sequence[float] | None, axes: str) -> Tensor:
        import torch
        import torch.nn.functional as F

        if sorted(axes) != ["D", "H", "W"] or array.ndim != 3 or array.dtype.kind not in "buif" or not array.size:
            raise VolumeError(
                f"array {array.shape} {array.dtype} with axes={axes!r} is not allowed; "
                "allowed: three axes, a permutation of 'DHW', real numbers"
            )
        order = [axes.index(a) for a in "DHW"]
        x = torch.from_numpy(np.ascontiguousarray(array.transpose(order)).astype(np.float32))[None, None]
        if not torch.isfinite(x).all():
            raise VolumeError(
                "the image holds NaN or infinite values; allowed: finite numbers. Next: clean it at the source"
            )
        if self.spacing is not None:
            if spacing is None or len(spacing) != 3 or min(spacing) <= 0:
                raise VolumeError(
                    f"spacing={spacing!r} is not allowed: these weights are for {self.spacing} mm (z, y, x); "
                    "allowed: three positive numbers in mm, one per axis of the array"
                )
            now = [float(spacing[i]) for i in order]
            size = [max(1, round(n * s / t)) for n, s, t in zip(x.shape[2:], now, self.spacing, strict=True)]
            if size != list(x.shape[2:]):
                x = F.interpolate(x, size=size, mode="trilinear", align_corners=False)
        low = self.window[0] if self.window else 0.0
        return self._fit(self._values(x), low if self.pad is None else self.pad)

    def _values(self, x: Tensor) -> Tensor:
        if self.window is not None:
            low, high = self.window
            x = x.clamp(low, high)
            if self.scale is not None:
                x = (x - low) / (high - low) * (self.scale[1] - self.scale[0]) + self.scale[0]
        if self.statistics == "volume":
            return (x - x.mean()) / x.std(unbiased=False).clamp_min(1e-6)
        return (x - self.mean) / self.std

    def _fit(self, x: Tensor, pad: float) -> Tensor:
        import torch
        import torch.nn.functional as F

        now = tuple(x.shape[2:])
        planes = self.modality == "RGB"
        if self.size is not None:
            want = (now[0], *self.size[1:]) if planes else self.size
        else:
            need = [max(n, m) for n, m in zip(now, self.minimum, strict=True)]
            want = tuple(-(-n // d) * d for n, d in zip(need, self.divisor, strict=True))
        cut = [max(0, n - w) // 2 for n, w in zip(now, want, strict=True)]
        x = x[:, :, *(slice(c, c + w) for c, w in zip(cut, want, strict=True))]
        room = [w - n for n, w in zip(x.shape[2:], want, strict=True)]
        if any(room):
            sides = [part for r in reversed(room) for part in (r // 2, r - r // 2)]
            filling = float(self._values(torch.full((1,), pad))) if self.statistics == "fixed" else float(x.min())
            x = F.pad(x, sides, value=filling)
        return x.expand(-1, self.channels, -1, -1, -1) if self.channels > 1 else x.contiguous()

    def describe(self) -> str:
        """Return the steps in words, one a line."""
        units = {"CT": "HU", "RGB": "of 255"}.get(self.modality, "in the image's units")
        lines = [f"{self.modality}, {self.channels} channel(s), axes D, H, W"]
        if self.modality == "RGB":
            lines.append("the colour planes R, G, B become depth 0, 1, 2")
        if self.short_side is not None:
            lines.append(f"short side {self.short_side} px (bilinear, antialiased)")
        lines.append(f"spacing {self.spacing} mm (z, y, x), trilinear" if self.spacing else "spacing as it is")
        if self.window is not None:
            lines.append(f"window {self.window} {units}" + (f" mapped to {self.scale}" if self.scale else ""))
        own = (
            "the volume's own mean and std" if self.statistics == "volume" else f"mean {self.mean:g}, std {self.std:g}"
        )
        lines.append(own)
        if self.size is not None:
            lines.append(f"centre crop or pad to {self.size}")
        else:
            lines.append(f"at least {self.minimum}, a multiple of {self.divisor}")
        return "\n".join([*lines, self.note] if self.note else lines)
