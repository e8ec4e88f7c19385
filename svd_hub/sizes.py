"""Which inputs a network takes, found by asking it without data; the rules of an architecture are nowhere repeated."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .errors import OptionError
from .skeleton import shadow

Triple = tuple[int, int, int]
# Tried in this order until the network takes one. 9: the detectors' slices; 3: the pseudo-3D images.
_DEPTHS = (16, 9, 3, 32, 64)
_SIDES = (64, 32, 96, 128, 224, 256)
_STEPS = (1, 2, 4, 8, 16, 32, 64)
_FAR = 64  # a side that can grow by so many steps can grow on


@dataclass(frozen=True)
class Sizes:
    """What (D, H, W) of an input may be: `least + k * step`, at most `most` where that is a number.

    Attributes:
        least: the smallest that are allowed together.
        step: from one allowed side to the next; 0 where there is one only.
        most: None where there is no limit.
    """

    least: Triple
    step: Triple
    most: tuple[int | None, int | None, int | None]

    def fitted(self, sides: Sequence[int]) -> Triple:
        """Return the allowed (D, H, W) that is nearest to `sides`, of two the larger."""
        found = []
        for side, least, step, most in zip(sides, self.least, self.step, self.most, strict=True):
            side = least + (round((side - least) / step + 1e-9) * step if step else 0)
            found.append(max(least, side if most is None else min(most, side)))
        return (found[0], found[1], found[2])

    def fits(self, sides: Sequence[int]) -> bool:
        """Return whether `sides` are allowed."""
        return self.fitted(sides) == tuple(sides)


def run(network: Any, x: Tensor) -> Any:
    """Return what a network makes of x (N, C, D, H, W); of a detector its maps, since boxes depend on the values."""
    return network.pyramid(x) if getattr(network, "has_detector", False) else network(x)


def takes(twin: nn.Module, shape: Sequence[int]) -> bool:
    """Return whether a network takes (N, C, D, H, W); `twin` is its `skeleton.shadow`."""
    try:
        with torch.no_grad():
            run(twin, blank(twin, shape))
    except (RuntimeError, ValueError):  # an OptionError is a ValueError
        return False
    return True


def blank(twin: nn.Module, shape: Sequence[int]) -> Tensor:
    """Return an input without data, in the precision of the network."""
    dtype = next((p.dtype for p in twin.parameters() if p.is_floating_point()), torch.float32)
    return torch.empty(tuple(shape), dtype=dtype, device="meta")


def some_sides(model: Any) -> Triple:
    """Return one (D, H, W) that the network takes.

    Raises:
        OptionError: none was found.
    """
    twin = shadow(model).eval()
    for sides in _candidates(model):
        if takes(twin, (2, channels_of(model), *sides)):
            return sides
    raise OptionError(
        f"no (D, H, W) was found that {type(model).__name__} takes. Next: give the shape of an input that it takes"
    )


def channels_of(model: Any) -> int:
    """Return the channels of a network's input.

    Raises:
        OptionError: the network is none of this package.
    """
    channels = getattr(model, "in_channels", None)
    if not isinstance(channels, int):
        raise OptionError(f"{type(model).__name__} is not a network of svd_hub; allowed: what svd_hub.load returns")
    return channels


def sizes_of(model: Any) -> Sizes:
    """Return which (D, H, W) a network takes, from some dozens of runs of its shapes and none of its numbers.

    Raises:
        OptionError: no input was found that it takes.
    """
    base, twin, channels = some_sides(model), shadow(model).eval(), channels_of(model)

    def allowed(sides: Sequence[int]) -> bool:
        return takes(twin, (1, channels, *sides))

    def along(axis: int, side: int) -> bool:
        return allowed([*base[:axis], side, *base[axis + 1 :]])

    axes = [_axis(functools.partial(along, axis), side) for axis, side in enumerate(base)]
    least = [axis[0] for axis in axes]
    while not allowed(least) and least != list(base):  # each alone may be so small, and all together not
        least = [min(low + step, side) for low, (_, step, _), side in zip(least, axes, base, strict=True)]
    return Sizes(tuple(least), tuple(a[1] for a in axes), tuple(a[2] for a in axes))  # type: ignore[arg-type]


def _axis(allowed: Callable[[int], bool], side: int) -> tuple[int, int, int | None]:
    """Return least, step and most of one axis, of which `side` is allowed."""
    step = next((s for s in _STEPS if allowed(side + s)), 0)
    if not step:
        return side, 0, side
    least = side - step * _last(lambda k: allowed(side - step * k), (side - 1) // step)
    if allowed(side + step * _FAR):
        return least, step, None
    return least, step, side + step * _last(lambda k: allowed(side + step * k), _FAR)


def _last(holds: Callable[[int], bool], most: int) -> int:
    """Return the largest k in 0..most that holds: 0 does, and from some k on none."""
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _candidates(model: Any) -> Iterator[Triple]:
    """Yield (D, H, W) that some network may take, the likeliest first."""
    slices = getattr(model, "options", {}).get("slices")
    for depth in dict.fromkeys(filter(None, (slices, *_DEPTHS))):
        yield depth, _SIDES[0], _SIDES[0]
    for side in _SIDES[1:]:
        yield from ((depth, side, side) for depth in _DEPTHS)
