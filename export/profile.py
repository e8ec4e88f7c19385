"""The shapes an artifact must take: smallest, typical, largest, and those that parity is measured at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import OptionError
from ..sizes import Sizes, channels_of, sizes_of
from .formats import AXES

Triple = tuple[int, int, int]
Shape = tuple[int, int, int, int, int]
# Of the typical shape of a network whose record says nothing: SVD-Net's lesion detection; else a middling volume.
SLICE_SIDE, DEFAULT = 512, (32, 96, 96)
LARGEST_BATCH = 8
# Parts of the typical sides that make the odd shape; H and W differ, or a swap of them would not be seen.
ODD = (0.9, 0.8, 0.7)
_NAMES = ("batch", "", "depth", "height", "width")


@dataclass(frozen=True)
class Profile:
    """What an input (N, C, D, H, W) may be.

    Attributes:
        smallest, typical, largest: shapes; along an axis that is not open they agree.
        dynamic: the open axes, of `formats.AXES`.
        sizes: what the network itself takes.
    """

    smallest: Shape
    typical: Shape
    largest: Shape
    dynamic: tuple[str, ...]
    sizes: Sizes

    @property
    def dims(self) -> tuple[str | int, ...]:
        """The input's axes: a name where one is open, else its length."""
        return tuple(name if name in self.dynamic else n for name, n in zip(_NAMES, self.typical, strict=True))

    @property
    def cases(self) -> tuple[Shape, ...]:
        """Shapes of parity, each once: smallest, odd, typical, largest; batches of 1 and of 3, where it is open."""
        few = self.smallest[0]
        more = min(few + 2, self.largest[0])
        shapes = [self.smallest, (more, *self.odd[1:]), self.typical, self.largest, (more, *self.smallest[1:])]
        shapes[3] = (few, *self.largest[1:])
        return tuple(dict.fromkeys(shapes))

    @property
    def odd(self) -> Shape:
        """A shape between the smallest and the largest whose sides are odd multiples of the step, H and W not equal."""
        sides = []
        for axis in range(3):
            low, middle, high = (shape[axis + 2] for shape in (self.smallest, self.typical, self.largest))
            step = self.sizes.step[axis]
            if low == high or not step:
                sides.append(middle)
                continue
            side = low + round((middle * ODD[axis] - low) / step) * step
            side += 0 if (side // step) % 2 else step
            sides.append(min(max(side, low), high))
        apart = 2 * self.sizes.step[2]
        if sides[1] == sides[2]:
            sides[2] += -apart if sides[2] - apart >= self.smallest[4] else apart
            sides[2] = min(sides[2], self.largest[4])
        return (self.typical[0], self.typical[1], sides[0], sides[1], sides[2])

    def sample(self, stride: Sequence[int]) -> Shape:
        """Return a shape to follow a network with, none of whose open sides is special.

        Twice the deepest stride and more, so that no level has a side of 1, which torch.export takes for a constant;
        all different, so that none is taken for another; and a batch of 2.
        """
        wanted = [2 * max(stride) + more for more in (3, 11, 19)]
        room = self.sizes.fitted(wanted)
        open_sides = [
            room[axis] if name in self.dynamic else self.typical[axis + 2] for axis, name in enumerate(AXES[1:])
        ]
        batch = 2 if "batch" in self.dynamic else self.typical[0]
        return (batch, self.typical[1], open_sides[0], open_sides[1], open_sides[2])

    def data(self) -> dict[str, Any]:
        """Return what a manifest says of it."""
        return {
            "dims": list(self.dims),
            "dynamic": list(self.dynamic),
            "smallest": list(self.smallest),
            "typical": list(self.typical),
            "largest": list(self.largest),
            "step": list(self.sizes.step),
        }


def make_profile(
    model: Any,
    *,
    shape: Sequence[int] | None = None,
    smallest: Sequence[int] | None = None,
    largest: Sequence[int] | None = None,
    dynamic: Iterable[str] = AXES,
) -> Profile:
    """Return the profile of a loaded network.

    Args:
        model: it carries `.preprocess` and `.inference`.
        shape: typical (D, H, W), or (N, C, D, H, W); None = what its record says.
        smallest, largest: the same; None = a half of it, and one and a half times it, as far as the network takes
            them, and batches of 1 to 8.
        dynamic: axes that stay open; the others have the typical length.

    Raises:
        OptionError: an axis that is none, a shape the network does not take, or shapes that are not in order.
    """
    axes = tuple(axis for axis in AXES if axis in set(dynamic))
    if unknown := [axis for axis in dynamic if axis not in AXES]:
        raise OptionError(
            f"dynamic={', '.join(map(repr, unknown))} is not allowed; allowed: {', '.join(AXES)}, or none"
        )
    sizes, channels = sizes_of(model), channels_of(model)
    axes = tuple(axis for axis in axes if axis == "batch" or sizes.step[AXES.index(axis) - 1])
    middle = _full("shape", shape if shape is not None else typical_sides(model, sizes), channels, sizes)
    bounds = []
    for option, given, part, batch in (("smallest", smallest, 0.5, 1), ("largest", largest, 1.5, LARGEST_BATCH)):
        wide = (batch, channels, *sizes.fitted([max(1, int(part * n)) for n in middle[2:]]))
        full = _full(option, given, channels, sizes) if given is not None else wide
        if given is not None and len(given) == 3:
            full = (batch, *full[1:])
        asked = full if given is not None and len(given) == 5 else (middle[0], *full[1:])
        if given is not None and (
            closed := [name for name, n, m in zip(_NAMES, asked, middle, strict=True) if name not in axes and n != m]
        ):
            raise OptionError(
                f"{option}={tuple(given)} is not allowed where {', '.join(closed)} is closed at that of {middle}. "
                f"Next: open it (dynamic), or leave {option} out"
            )
        bounds.append([n if name in axes else m for name, n, m in zip(_NAMES, full, middle, strict=True)])
    low, high = bounds
    low = [min(n, m) for n, m in zip(low, middle, strict=True)] if smallest is None else low
    high = [max(n, m) for n, m in zip(high, middle, strict=True)] if largest is None else high
    if any(not a <= b <= c for a, b, c in zip(low, middle, high, strict=True)):
        raise OptionError(
            f"smallest={tuple(low)}, shape={tuple(middle)}, largest={tuple(high)} are not in order; allowed: on each "
            "axis smallest <= shape <= largest (what was not given is a default)"
        )
    return Profile(tuple(low), tuple(middle), tuple(high), axes, sizes)  # type: ignore[arg-type]


def typical_sides(model: Any, sizes: Sizes) -> Triple:
    """Return the (D, H, W) that a network is usually run at, by its record."""
    rule, inference = getattr(model, "preprocess", None), getattr(model, "inference", None)
    task = getattr(model, "task", "")
    if rule is not None and rule.size is not None:
        return sizes.fitted(rule.size)
    if task == "detection" and inference is not None:
        side = inference.side or SLICE_SIDE
        return sizes.fitted((inference.slices, side, side))
    if inference is not None and inference.window is not None:
        return sizes.fitted(inference.window)
    if rule is not None and max(rule.minimum) > 1:
        return sizes.fitted(rule.minimum)
    return sizes.fitted((3, 224, 224) if rule is not None and rule.modality == "RGB" else DEFAULT)


def _full(option: str, given: Sequence[int], channels: int, sizes: Sizes) -> Shape:
    """Return (N, C, D, H, W) of what a user gave.

    Raises:
        OptionError: the network does not take it.
    """
    shape = (1, channels, *given) if len(given) == 3 else tuple(given)
    whole = all(isinstance(n, int) and n > 0 for n in shape)
    if len(shape) != 5 or not whole or shape[1] != channels:
        raise OptionError(
            f"{option}={tuple(given)} is not allowed; allowed: (D, H, W) or (N, {channels}, D, H, W), of 1 and more"
        )
    if not sizes.fits(shape[2:]):
        raise OptionError(
            f"{option}={tuple(given)} is not allowed: the network takes (D, H, W) from {sizes.least} on, in steps of "
            f"{sizes.step}, at most {sizes.most}. Next: {sizes.fitted(shape[2:])}"
        )
    return shape
