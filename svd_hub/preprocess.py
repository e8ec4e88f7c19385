"""The preprocessing that belongs to a weight: from an image on disk to the tensor the network was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import OptionError, VolumeError, check_choice

if TYPE_CHECKING:  # `svd-hub info` reads the record and needs neither
    import numpy as np
    from torch import Tensor

Triple = tuple[int, int, int]
_LENGTHS = {"spacing": 3, "window": 2, "scale": 2, "size": 3, "minimum": 3, "divisor": 3}
_POSITIVE = ("channels", "spacing", "short_side", "std", "size", "minimum", "divisor")


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """A frozen record that is also the function. Order: check, resample, window, scale, crop and pad, normalise.

    Attributes:
        modality: "RGB" (a 2D colour image becomes D = 3 planes), "CT" (HU), "MR", or "video".
        channels: channels of the tensor.
        spacing: mm as (z, y, x) the volume is resampled to (trilinear), None = its own.
        short_side: pixels the short side of an RGB image is resized to (bilinear, antialiased), None = its own.
        window: (low, high) the values are clipped to, in the image's units (HU), None = not clipped.
        scale: what `window` is mapped to, None = values stay.
        statistics: "fixed" uses `mean` and `std`; "volume" the volume's own, before it is cropped or padded.
        size: (D, H, W) of the centre crop, padded where the image is smaller; None = as it comes.
        pad: value of padding in the image's units; None = the window's low end, or 0.
        minimum, divisor: of D, H, W where `size` is None; padded up to them.
        note: what upstream does not document, in words.

    Raises:
        OptionError: a value that makes no sense, with what does.
    """

    modality: str = "CT"
    channels: int = 1
    spacing: tuple[float, float, float] | None = None
    short_side: int | None = None
    window: tuple[float, float] | None = None
    scale: tuple[float, float] | None = None
    statistics: str = "fixed"
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
        for key, length in _LENGTHS.items():
            if isinstance(value := getattr(self, key), list):  # as JSON and TOML have it
                object.__setattr__(self, key, value := tuple(value))
            if value is not None and (not isinstance(value, tuple) or len(value) != length):
                raise OptionError(f"{key}={value!r} is not allowed; allowed: {length} numbers")
        for key in _POSITIVE:
            value = getattr(self, key)
            if value is not None and not all(n > 0 for n in (value if isinstance(value, tuple) else (value,))):
                raise OptionError(f"{key}={value!r} is not allowed; allowed: above 0")
        if self.window is not None and not self.window[0] < self.window[1]:
            raise OptionError(f"window={self.window!r} is not allowed; allowed: (low, high) with low < high")
        if self.scale is not None and self.window is None:
            raise OptionError(
                f"scale={self.scale!r} without a window is not allowed; allowed: both, or the window alone"
            )

    def __call__(self, image: Any, *, spacing: Sequence[float] | None = None, axes: str = "DHW") -> Tensor:
        """Return the tensor (1, C, D, H, W), float32, of one image.

        Args:
            image: RGB: a picture or array, (H, W, 3) or (H, W), of 0..255. Else an array whose axes are `axes`, or a
                SimpleITK image, which brings its own spacing.
            spacing: mm for each axis of `axes`.
            axes: the order of the array's axes, a permutation of "DHW".

        Raises:
            VolumeError: not such an image; says what was found and what is allowed.
        """
        import numpy as np

        if self.modality == "RGB":
            if getattr(image, "mode", "RGB") not in ("RGB", "L"):  # a palette's numbers are no grey values
                raise VolumeError(f"picture of mode {image.mode!r} is not allowed. Next: picture.convert('RGB')")
            return self._planes(np.asarray(image))
        if hasattr(image, "GetSpacing"):
            if (found := (image.GetDimension(), image.GetNumberOfComponentsPerPixel())) != (3, 1):
                raise VolumeError(
                    f"image of {found[0]} dimensions and {found[1]} components is not allowed; allowed: 3D and scalar"
                )
            import SimpleITK

            spacing, axes = tuple(reversed(image.GetSpacing())), "DHW"
            image = SimpleITK.GetArrayViewFromImage(image)
        return self._volume(np.asarray(image), spacing, axes)

    def _planes(self, image: np.ndarray) -> Tensor:
        import numpy as np
        import torch
        import torch.nn.functional as F

        if image.ndim == 2:
            image = np.repeat(image[:, :, None], 3, axis=2)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype.kind not in "uif" or not image.size:
            raise VolumeError(f"image {image.shape} {image.dtype} is not allowed; allowed: (H, W, 3) or (H, W), 0..255")
        low, high = float(image.min()), float(image.max())
        if not (low >= 0 and high <= 255) or (image.dtype.kind == "f" and 0 < high <= 1):
            raise VolumeError(f"values {low:g}..{high:g} are not allowed; allowed: 0..255 (multiply 0..1 by 255)")
        x = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]
        if self.short_side is not None:
            factor = self.short_side / min(x.shape[2:])
            size = [max(self.short_side, round(n * factor)) for n in x.shape[2:]]
            x = F.interpolate(x, size=size, mode="bilinear", antialias=True).clamp(0, 255)
        return self._finish(x[:, None])

    def _volume(self, array: np.ndarray, spacing: Sequence[float] | None, axes: str) -> Tensor:
        import numpy as np
        import torch
        import torch.nn.functional as F

        if sorted(axes) != ["D", "H", "W"] or array.ndim != 3 or array.dtype.kind not in "buif" or not array.size:
            raise VolumeError(
                f"array {array.shape} {array.dtype} with axes={axes!r} is not allowed; "
                "allowed: three axes, a permutation of 'DHW', real numbers"
            )
        order = [axes.index(a) for a in "DHW"]
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is refused below
            x = torch.from_numpy(array.transpose(order).astype(np.float32, order="C"))[None, None]
        if not torch.isfinite(x).all():
            raise VolumeError(
                "the image holds NaN or infinite values; allowed: finite numbers. Next: clean it at the source"
            )
        if self.spacing is not None:
            given = np.asarray(() if spacing is None else spacing, dtype=float)
            if given.shape != (3,) or not (np.isfinite(given) & (given > 0)).all():
                raise VolumeError(
                    f"spacing={spacing!r} is not allowed: these weights are for {self.spacing} mm (z, y, x); "
                    "allowed: three positive numbers in mm, one per axis of the array"
                )
            now = given[order].tolist()
            size = [max(1, round(n * s / t)) for n, s, t in zip(x.shape[2:], now, self.spacing, strict=True)]
            if size != list(x.shape[2:]):
                x = F.interpolate(x, size=size, mode="trilinear", align_corners=False)
        return self._finish(x)

    def _finish(self, x: Tensor) -> Tensor:
        """Window, scale, crop and pad, normalise (1, 1, D, H, W); padding is treated like the image."""
        low = self.window[0] if self.window else 0.0
        pad = x.new_tensor(low if self.pad is None else self.pad)
        if self.window is not None:
            x, pad = self._windowed(x, self.window), self._windowed(pad, self.window)
        mean: Tensor | float = self.mean
        std: Tensor | float = self.std
        if self.statistics == "volume":
            mean, std = x.mean(), x.std(unbiased=False).clamp_min(1e-6)
        x = (self._fit(x, float(pad)) - mean) / std
        return x.expand(-1, self.channels, -1, -1, -1).contiguous()

    def _windowed(self, x: Tensor, window: tuple[float, float]) -> Tensor:
        low, high = window
        x = x.clamp(low, high)
        if self.scale is None:
            return x
        return (x - low) / (high - low) * (self.scale[1] - self.scale[0]) + self.scale[0]

    def _fit(self, x: Tensor, pad: float) -> Tensor:
        """Crop and pad (1, 1, D, H, W) about its centre; the three planes of a colour image stay."""
        import torch.nn.functional as F

        now = tuple(x.shape[2:])
        if self.size is not None:
            want = (now[0], *self.size[1:]) if self.modality == "RGB" else self.size
        else:
            need = [max(n, m) for n, m in zip(now, self.minimum, strict=True)]
            d, h, w = (-(-n // d) * d for n, d in zip(need, self.divisor, strict=True))
            want = (d, h, w)
        cut = [max(0, n - w) // 2 for n, w in zip(now, want, strict=True)]
        x = x[:, :, *(slice(c, c + w) for c, w in zip(cut, want, strict=True))]
        room = [w - n for n, w in zip(x.shape[2:], want, strict=True)]
        return F.pad(x, [part for r in reversed(room) for part in (r // 2, r - r // 2)], value=pad)

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
        own = self.statistics == "volume"
        lines.append("the volume's own mean and std" if own else f"mean {self.mean:g}, std {self.std:g}")
        if self.size is not None:
            lines.append(f"centre crop or pad to {self.size}")
        else:
            lines.append(f"at least {self.minimum}, a multiple of {self.divisor}")
        lines.append(
            f"padding {self.pad:g}" if self.pad is not None else f"padding {self.window[0] if self.window else 0:g}"
        )
        return "\n".join([*lines, self.note] if self.note else lines)
