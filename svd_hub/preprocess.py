"""The preprocessing that belongs to a weight: from an image on disk to the tensor the network was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from . import images
from .errors import OptionError, VolumeError, check_choice

if TYPE_CHECKING:  # `svd-hub info` reads the record and needs neither
    import numpy as np
    from torch import Tensor

Triple = tuple[int, int, int]
Colours = float | tuple[float, float, float]
# How many numbers each key has (0 = one, bare), whether they are whole, and whether they are above 0.
_NUMBERS: dict[str, tuple[int, bool, bool]] = {
    "channels": (0, True, True),
    "spacing": (3, False, True),
    "short_side": (0, True, True),
    "window": (2, False, False),
    "scale": (2, False, False),
    "mean": (0, False, False),
    "std": (0, False, True),
    "size": (3, True, True),
    "pad": (0, False, False),
    "minimum": (3, True, True),
    "divisor": (3, True, True),
}
_LARGEST = 3.4e38  # what float32 holds
_OPTIONAL = ("spacing", "short_side", "window", "scale", "size", "pad")


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """A frozen record that is also the function.

    Order of the steps: check, orient, resample or resize, window, scale, statistics, crop and pad, normalise.

    Attributes:
        modality: "RGB" (a 2D colour picture becomes D = 3 planes), "CT" (HU), "MR", or "video" (colour clips: D are
            the frames, the colours are channels).
        channels: channels of the tensor; the image is repeated over them. A video has 3, its colours; with any other
            number it is the mean of the colours, repeated.
        orientation: where the tensor's axes D, H, W run to in the patient, a letter each: "SPL" is superior,
            posterior, left, what SimpleITK's array of a straight DICOM series is; "RAS" has depth from left to right.
            None = as the image comes (not documented upstream).
        spacing: mm as (z, y, x) of the patient, whatever the orientation (without one, of D, H, W), the volume is
            resampled to (trilinear; the image keeps its outer borders), None = its own.
        short_side: pixels the short side of a picture or clip is resized to (bilinear, antialiased), None = its own.
        window: (low, high) the values are clipped to, in the image's units (HU), None = not clipped.
        scale: what `window` is mapped to, None = values stay.
        statistics: "fixed" uses `mean` and `std`; "volume" the volume's own, after the window, before it is cropped or
            padded; "positive" those of its values above 0, and values equal 0 become 0, the mean (MedicalNet puts
            noise of mean 0 there).
        mean, std: a number, or one for each of three channels; their averages where `channels` is not 3.
        size: (D, H, W) of the tensor, None = as it comes.
        fit: how `size` is reached: "crop" about the centre, padded where the image is smaller; "resize" by the nearest
            voxel, the image's corners on the tensor's.
        pad: value of padding in the image's units; None = the window's low end, or 0.
        minimum, divisor: of D, H, W where `size` is None; padded up to them.
        note: what upstream does not document, in words.

    Raises:
        OptionError: a value that makes no sense, with what does.
    """

    modality: str = "CT"
    channels: int = 1
    orientation: str | None = None
    spacing: tuple[float, float, float] | None = None
    short_side: int | None = None
    window: tuple[float, float] | None = None
    scale: tuple[float, float] | None = None
    statistics: str = "fixed"
    mean: Colours = 0.0
    std: Colours = 1.0
    size: Triple | None = None
    fit: str = "crop"
    pad: float | None = None
    minimum: Triple = (1, 1, 1)
    divisor: Triple = (1, 1, 1)
    note: str = ""

    def __post_init__(self) -> None:
        check_choice("modality", self.modality, ("RGB", "CT", "MR", "video"))
        check_choice("statistics", self.statistics, ("fixed", "volume", "positive"))
        check_choice("fit", self.fit, ("crop", "resize"))
        for key, (length, whole, positive) in _NUMBERS.items():
            if (value := getattr(self, key)) is None and key in _OPTIONAL:
                continue
            if key in ("mean", "std") and isinstance(value, list | tuple):
                length = 3
            object.__setattr__(self, key, _checked(key, value, length, whole=whole, positive=positive))
        if self.orientation is not None and not images.patient_axes(self.orientation):
            raise OptionError(f"orientation={self.orientation!r} is not allowed; allowed: {images.ORIENTATIONS}")
        if not isinstance(self.note, str):
            raise OptionError(f"note={self.note!r} is not allowed; allowed: text")
        self._check_together()

    def _check_together(self) -> None:
        """Refuse what would be ignored, or contradicts another value."""
        if self.window is not None and not self.window[0] < self.window[1]:
            raise OptionError(f"window={self.window!r} is not allowed; allowed: (low, high) with low < high")
        if self.scale is not None and self.scale[0] == self.scale[1]:
            raise OptionError(f"scale={self.scale!r} is not allowed; allowed: two different numbers")
        if self.scale is not None and self.window is None:
            raise OptionError(
                f"scale={self.scale!r} without a window is not allowed; allowed: both, or the window alone"
            )
        if self.fit == "resize" and self.size is None:
            raise OptionError(f"fit={self.fit!r} without a size is not allowed; allowed: both")
        flat = self.modality in ("RGB", "video")
        for key in ("orientation", "spacing") if flat else ("short_side",):
            if (value := getattr(self, key)) is not None:
                raise OptionError(f"{key}={value!r} with modality {self.modality!r} is not allowed; allowed: None")
        if flat and self.fit != "crop":
            raise OptionError(
                f"fit={self.fit!r} with modality {self.modality!r} is not allowed; allowed: 'crop', and short_side"
            )
        for key in ("mean", "std") if self.modality == "RGB" else ():
            if isinstance(value := getattr(self, key), tuple):  # its colours are planes, which share a kernel
                raise OptionError(f"{key}={value!r} with modality 'RGB' is not allowed; allowed: one number")

    def __call__(
        self,
        image: Any,
        *,
        spacing: Sequence[float] | None = None,
        axes: str = "DHW",
        orientation: str | None = None,
    ) -> Tensor:
        """Return the tensor (1, C, D, H, W), float32, of one image.

        Args:
            image: "RGB": a picture or array, (H, W, 3) or (H, W), of 0..255. "video": an array (D, H, W, 3) or
                (D, H, W) of 0..255, D being the frames. Else an array with three axes, or a SimpleITK image, which
                brings its own spacing and direction (an oblique one counts as the patient's axes it is nearest to).
            spacing: mm for each axis of the array, in its own order.
            axes: the order of the array's axes, a permutation of "DHW". D is taken to run to the patient's superior
                side, H to posterior, W to left, as in SimpleITK's array of a straight DICOM series.
            orientation: instead of `axes`, where the array's axes run to: "RAS" for nibabel's array of a straight
                NIfTI. Without an orientation of its own, the record takes the axes in the order z, y, x and turns none.

        Raises:
            VolumeError: not such an image; says what was found and what is allowed.
        """
        images.refuse_unread(image)
        if self.modality in ("RGB", "video"):
            if hasattr(image, "GetSpacing"):
                raise VolumeError(
                    f"a SimpleITK image with modality {self.modality!r} is not allowed: this record is for photographs "
                    "or clips. Next: for volumes make a svd_hub.Preprocess(modality='CT', ...) of your own"
                )
            if spacing is not None or axes != "DHW" or orientation is not None:
                raise VolumeError(
                    f"spacing, axes and orientation are not allowed with modality {self.modality!r}. Next: leave them "
                    "out"
                )
            return self._finish(self._colours(images.read_colours(image, video=self.modality == "video")))
        array, lengths, now, own = images.read_volume(image, spacing, axes, orientation)
        return self._finish(self._volume(array, lengths, now, self.turned_to(now, own=own)))

    def turned_to(self, now: str, *, own: bool) -> str:
        """Return the orientation of the tensor for an image whose orientation is `now`.

        Args:
            now: of the image.
            own: it is the image's own, and not what was said of an array, whose axes are put in order.
        """
        if self.orientation is not None:
            return self.orientation
        return now if own else images.in_order(now)

    def _colours(self, clip: np.ndarray) -> Tensor:
        """Return (1, 1, 3, H, W) of a picture, (1, 3 or 1, D, H, W) of a clip, values 0..255."""
        import numpy as np
        import torch

        if self.modality == "video" and self.statistics == "fixed":  # frames that are cut off are never resized
            clip = clip[images.centre(clip.shape[:1], self._sides(clip.shape[:3])[:1])]
        x = torch.from_numpy(clip.astype(np.float32, order="C")).permute(0, 3, 1, 2)
        if self.short_side is not None:
            x = images.short_side(x, self.short_side)
        if self.modality == "RGB":
            return x[:, None]
        x = x.transpose(0, 1)[None]
        return x if self.channels == 3 else x.mean(1, keepdim=True)

    def _volume(self, array: np.ndarray, lengths: Sequence[float] | None, now: str, want: str) -> Tensor:
        """Return (1, 1, D, H, W) in orientation `want`, resampled or resized, and as far as may be, cropped."""
        view, order = images.turned(array, now, want)
        sides = self.sides_of(view.shape, None if lengths is None else [lengths[old] for old in order], want)
        whole = tuple(slice(0, n) for n in sides)
        if self.size is not None and self.fit == "resize":
            if sides != list(view.shape):
                view = images.sample(view, sides, whole).numpy()
            view, sides = images.nearest(view, self.size), list(self.size)
            return images.sample(view, sides, images.centre(sides, sides))[None, None]
        # Statistics of the volume need all of it; else nothing is computed that the crop would take away.
        cut = images.centre(sides, self._sides(sides)) if self.statistics == "fixed" else whole
        return images.sample(view, sides, cut)[None, None]

    def sides_of(self, sides: Sequence[int], lengths: Sequence[float] | None, want: str) -> list[int]:
        """Return the sides (D, H, W) an image in orientation `want` is resampled to, before crop and padding.

        Args:
            sides: of the image, in that orientation.
            lengths: mm of its voxels, in that orientation.
            want: the orientation.

        Raises:
            VolumeError: these weights have a spacing, and the image has none.
        """
        if self.spacing is None:
            return list(sides)
        if lengths is None:
            raise VolumeError(
                f"spacing=None is not allowed: these weights are for {self.spacing} mm (z, y, x); "
                "allowed: three positive numbers in mm, one per axis of the array"
            )
        axes = range(3) if self.orientation is None else images.patient_axes(want)
        target = [self.spacing[axis] for axis in axes]
        return [max(1, round(n * old / new)) for n, old, new in zip(sides, lengths, target, strict=True)]

    def _sides(self, now: Sequence[int]) -> tuple[int, ...]:
        """Return the sides that a tensor of sides `now` is cropped and padded to; the colours of a picture stay."""
        if self.size is not None:
            return (now[0], *self.size[1:]) if self.modality == "RGB" else self.size
        need = [max(n, m) for n, m in zip(now, self.minimum, strict=True)]
        return tuple(-(-n // d) * d for n, d in zip(need, self.divisor, strict=True))

    def _finish(self, x: Tensor) -> Tensor:
        """Window, scale, crop and pad, normalise (1, C, D, H, W); padding is treated like the image."""
        pad = float(self.windowed(x.new_tensor(self.padding)))
        x = self.windowed(x)
        mean, std = self._statistics(x)
        x = images.fitted(x, self._sides(x.shape[2:]), pad)
        return self.normalised(x, mean, std).expand(-1, self.channels, -1, -1, -1).contiguous()

    def normalised(self, x: Tensor, mean: Tensor | float, std: Tensor | float) -> Tensor:
        """Return windowed values with this mean and std taken off; see `statistics`."""
        normal = (x - mean) / std
        return normal.masked_fill(x == 0, 0.0) if self.statistics == "positive" else normal

    def _statistics(self, x: Tensor) -> tuple[Tensor | float, Tensor | float]:
        if self.statistics == "fixed":
            return self._of_channels(self.mean, x), self._of_channels(self.std, x)
        if self.statistics == "positive" and not len(x := x[x > 0]):
            raise nothing_positive()
        return x.mean(), x.std(unbiased=False).clamp_min(1e-6)

    def _of_channels(self, value: Colours, x: Tensor) -> Tensor | float:
        if not isinstance(value, tuple):
            return value
        return x.new_tensor(value).view(1, 3, 1, 1, 1) if self.channels == 3 else sum(value) / 3

    @property
    def padding(self) -> float:
        """The value of padding, in the image's units."""
        return self.pad if self.pad is not None else self.window[0] if self.window is not None else 0.0

    def windowed(self, x: Tensor) -> Tensor:
        """Return values in the image's units (HU) clipped to the window and scaled; as they are without a window."""
        if self.window is None:
            return x
        low, high = self.window
        x = x.clamp(low, high)
        if self.scale is None:
            return x
        return (x - low) / (high - low) * (self.scale[1] - self.scale[0]) + self.scale[0]

    def describe(self) -> str:
        """Return the steps in words, one a line."""
        lines = [*self._words_of_grid(), *self._words_of_values()]
        if self.fit == "crop":
            size = f"at least {self.minimum}, a multiple of {self.divisor}"
            lines.append(f"centre crop or pad to {self.size}" if self.size is not None else size)
            lines.append(f"padding {_said(self.padding)} {self._units}")
        return "\n".join([*lines, self.note] if self.note else lines)

    @property
    def _units(self) -> str:
        return {"CT": "HU", "RGB": "of 255", "video": "of 255"}.get(self.modality, "in the image's units")

    def _words_of_grid(self) -> list[str]:
        lines = [f"{self.modality}, {self.channels} channel(s), axes D, H, W"]
        if self.modality == "RGB":
            lines.append("the colour planes R, G, B become depth 0, 1, 2")
        elif self.modality == "video":
            colours = "R, G, B" if self.channels == 3 else "the mean of the colours"
            lines.append(f"the frames are depth, the channels are {colours}")
        else:
            to = [f"{axis} to {images.WORDS[way]}" for axis, way in zip("DHW", self.orientation or "", strict=False)]
            lines.append(f"{', '.join(to)} ({self.orientation})" if to else "directions as the image has them")
            lines.append(f"spacing {self.spacing} mm (z, y, x), trilinear" if self.spacing else "spacing as it is")
        if self.short_side is not None:
            lines.append(f"short side {self.short_side} px (bilinear, antialiased)")
        if self.fit == "resize":
            lines.append(f"resized to {self.size} by the nearest voxel, corners on corners")
        return lines

    def _words_of_values(self) -> list[str]:
        lines = []
        if self.window is not None:
            lines.append(f"window {self.window} {self._units}" + (f" mapped to {self.scale}" if self.scale else ""))
        if self.statistics == "volume":
            lines.append("the volume's own mean and std")
        elif self.statistics == "positive":
            lines.append("mean and std of the volume's voxels above 0; voxels equal 0 become 0, the mean")
        else:
            lines.append(f"mean {self._said_of_channels(self.mean)}, std {self._said_of_channels(self.std)}")
        return lines

    def _said_of_channels(self, value: Colours) -> str:
        if not isinstance(value, tuple):
            return _said(value)
        if self.channels == 3:
            return f"({', '.join(map(_said, value))}) of the channels"
        return f"{_said(sum(value) / 3)}, the average of {', '.join(map(_said, value))}"


def nothing_positive() -> VolumeError:
    """Return the error of an image without a voxel above 0, for weights that take the statistics of those."""
    return VolumeError(
        "no voxel of the image is above 0, and these weights take mean and std of those that are. Next: check that the "
        "image is not empty; values of a CT may need an offset"
    )


def _checked(key: str, value: Any, length: int, *, whole: bool, positive: bool) -> Any:
    """Return a number, or a tuple of `length` numbers, as Python's own: numpy's, and JSON's lists, are taken too."""
    kind: Any = Integral if whole else Real
    numbers: list[Any] = list(value) if length and isinstance(value, list | tuple) else [value]
    fits = len(numbers) == max(1, length) and all(isinstance(n, kind) and not isinstance(n, bool) for n in numbers)
    fits = fits and all(abs(n) <= _LARGEST and (n > 0 or not positive) for n in numbers)
    if not fits:
        what = f"{length or 'one'} {'whole' if whole else 'finite'} number{'s' if length else ''}"
        what += "; or three" if key in ("mean", "std") and not length else ""
        raise OptionError(f"{key}={value!r} is not allowed; allowed: {what}{', above 0' if positive else ''}")
    plain = tuple(n if type(n) in (int, float) else int(n) if whole else float(n) for n in numbers)
    return plain if length else plain[0]


def _said(value: float) -> str:
    short = f"{value:g}"
    return short if float(short) == value else repr(value)
