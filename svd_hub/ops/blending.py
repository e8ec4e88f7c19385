"""Overlapping windows over a volume, blended by weights: where they lie, what each voxel of one counts, and the sum.

The sum goes through the volume slab by slab, so that memory holds one row of windows, however long the volume is. Where
the windows lie and what they weigh is MONAI's `sliding_window_inference` (1.6), to which tests hold it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import OptionError, check_choice

Triple = tuple[int, int, int]
Network = Callable[[Tensor], Tensor]
BLENDS = ("gaussian", "constant")
_SIGMA = 0.125  # of the window's side, as MONAI's
_BATCH = 1 << 20
_LEAST = 1e-3  # a weight is never less, as MONAI's


class Slabs(Protocol):
    """A volume that is asked for some of its planes at a time.

    Attributes:
        sides: (D, H, W).
        pad: the value beyond its borders, or one for each channel (C, 1, 1, 1).
    """

    sides: Triple
    pad: float | Tensor

    def slab(self, start: int, stop: int) -> Tensor:
        """Return the planes [start, stop) as (C, d, H, W)."""
        ...


class InMemory:
    """A tensor (C, D, H, W) as `Slabs`."""

    def __init__(self, x: Tensor, pad: float | Tensor = 0.0) -> None:
        self.x, self.pad = x, pad
        self.sides: Triple = (x.shape[1], x.shape[2], x.shape[3])

    def slab(self, start: int, stop: int) -> Tensor:
        """Return the planes [start, stop) as (C, d, H, W)."""
        return self.x[:, start:stop]


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Return where windows begin along an axis: every `stride`, the last one moved back to end with the axis."""
    last = max(0, length - window)
    return [*range(0, last, stride), last]


def importance(window: Sequence[int], blend: str = "gaussian") -> Tensor:
    """Return the weights (d, h, w) of a window's voxels: a Gaussian of 1/8 of each side about its middle, or ones."""
    check_choice("blend", blend, BLENDS)
    weights = torch.ones(())
    for side in window:
        away = torch.arange(side, dtype=torch.float32) - (side - 1) / 2
        bell = torch.exp(-(away**2) / (2 * (_SIGMA * side) ** 2)) if blend == "gaussian" else torch.ones(side)
        weights = weights[..., None] * bell
    return weights.clamp_min(max(float(weights.min()), _LEAST))


def blended(
    network: Network,
    volume: Slabs,
    *,
    window: Sequence[int],
    stride: Sequence[int],
    blend: str = "gaussian",
    at_once: int | None = None,
    device: torch.device | str | None = None,
    done: Callable[[int, int], None] | None = None,
) -> Iterator[Tensor]:
    """Yield what a network says of a volume, (K, d, H, W) float32 each, from the first plane to the last.

    A volume smaller than a window is padded about its centre with `volume.pad`.

    Args:
        network: from (n, C, *window) to (n, K, *window).
        volume: what it reads.
        window: (D, H, W).
        stride: (D, H, W) from one window to the next.
        blend: "gaussian" | "constant".
        at_once: windows in a batch, None = as many as `_BATCH` voxels allow, 4 at most: of small windows, several at
            once escape torch's slow Conv3d on a CPU; of large ones they cost memory and bring no speed.
        device: where the network is; None = where the volume is.
        done: called with (windows done, windows in all) after each batch.

    Raises:
        OptionError: a window, stride or at_once that is not allowed, or a network whose output is of another size.
    """
    window, stride = _checked(window, stride)
    at_once = max(1, min(4, _BATCH // math.prod(window))) if at_once is None else at_once
    if at_once < 1:
        raise OptionError(f"at_once={at_once} is not allowed; allowed: 1 or more")
    padded = _Padded(volume, window)
    weights = importance(window, blend).to(device)
    starts = [window_starts(n, w, s) for n, w, s in zip(padded.sides, window, stride, strict=True)]
    corners = [(y, x) for y in starts[1] for x in starts[2]]
    share = torch.zeros(window[0], *padded.sides[1:], device=device)  # of one row of windows
    for y, x in corners:
        share[:, y : y + window[1], x : x + window[2]] += weights
    rows, total = _Rows(padded, window[0], device), len(corners) * len(starts[0])
    sums, counts, count = torch.zeros(0), torch.zeros(0), 0
    for number, z in enumerate(starts[0]):
        slab = rows.at(z)
        for first in range(0, len(corners), at_once):
            some = corners[first : first + at_once]
            logits = network(torch.stack([slab[:, :, y : y + window[1], x : x + window[2]] for y, x in some]))
            _check_output(logits, len(some), window)
            if not len(sums):
                sums = torch.zeros(logits.shape[1], *share.shape, device=share.device)
                counts = torch.zeros_like(share)
            for (y, x), part in zip(some, logits, strict=True):
                place = sums[:, :, y : y + window[1], x : x + window[2]]
                place.addcmul_(part.to(place), weights)
            if done is not None:
                done(count := count + len(some), total)
        counts += share
        ready = (starts[0][number + 1] if number + 1 < len(starts[0]) else z + window[0]) - z
        yield from padded.inner(sums[:, :ready] / counts[:ready], z)
        _move_on(sums, ready)
        _move_on(counts[None], ready)


def whole(network: Network, x: Tensor, *, pad: float | Tensor = 0.0, **options: object) -> Tensor:
    """Return what a network says of volumes (N, C, D, H, W), blended from windows: (N, K, D, H, W); see `blended`."""
    volumes = [torch.cat(list(blended(network, InMemory(one, pad), **options)), 1) for one in x]  # type: ignore[arg-type]
    return torch.stack(volumes)


def _checked(window: Sequence[int], stride: Sequence[int]) -> tuple[Triple, Triple]:
    fits = len(window) == len(stride) == 3 and all(1 <= s <= w for s, w in zip(stride, window, strict=True))
    if not fits:
        raise OptionError(
            f"window={tuple(window)}, stride={tuple(stride)} are not allowed; allowed: (D, H, W) each, with a stride "
            "from 1 to the window's side"
        )
    return (window[0], window[1], window[2]), (stride[0], stride[1], stride[2])


def _check_output(logits: object, count: int, window: Triple) -> None:
    if isinstance(logits, Tensor):
        if logits.ndim == 5 and len(logits) == count and tuple(logits.shape[2:]) == window:
            return
        found = str(tuple(logits.shape))
    else:
        found = f"a {type(logits).__name__}"
    raise OptionError(
        f"the network made {found} of {count} windows {window}; allowed: ({count}, K, {', '.join(map(str, window))}), "
        "a map of each window's size"
    )


def _move_on(planes: Tensor, count: int) -> None:
    """Move planes (K, d, H, W) forward by `count`, in place, with zeros behind them."""
    kept = planes.shape[1] - count
    if kept:
        planes[:, :kept] = planes[:, count:].clone()
    planes[:, kept:] = 0


class _Padded:
    """A volume that is at least as large as a window."""

    def __init__(self, volume: Slabs, window: Triple) -> None:
        self.volume = volume
        self.room = [max(0, w - n) for n, w in zip(volume.sides, window, strict=True)]
        self.before = [r // 2 for r in self.room]
        d, h, w = (n + r for n, r in zip(volume.sides, self.room, strict=True))
        self.sides: Triple = (d, h, w)

    def slab(self, start: int, stop: int) -> Tensor:
        """Return (C, d, H, W) of the padded volume."""
        begin, end = (min(max(0, n - self.before[0]), self.volume.sides[0]) for n in (start, stop))
        inside = self.volume.slab(begin, end)
        room = [(b, r - b) for b, r in zip(self.before, self.room, strict=True)]
        room[0] = (begin + self.before[0] - start, stop - end - self.before[0])
        pads = [part for pair in reversed(room) for part in pair]
        if not any(pads):
            return inside
        if not isinstance(self.volume.pad, Tensor):
            return F.pad(inside, pads, value=self.volume.pad)
        return torch.where(F.pad(torch.ones_like(inside[:1]), pads) > 0, F.pad(inside, pads), self.volume.pad)

    def inner(self, planes: Tensor, start: int) -> Iterator[Tensor]:
        """Yield the part of (K, d, H, W), which begins at plane `start`, that is no padding, where there is any."""
        first = max(0, self.before[0] - start)
        last = min(planes.shape[1], self.before[0] + self.volume.sides[0] - start)
        if first < last:
            (_, h, w), (_, y, x) = self.volume.sides, self.before
            yield planes[:, first:last, y : y + h, x : x + w]


class _Rows:
    """The planes that one row of windows reads; of those that the next one shares, none is read twice."""

    def __init__(self, volume: _Padded, depth: int, device: torch.device | str | None) -> None:
        self.volume, self.depth, self.device = volume, depth, device
        self.start, self.planes = 0, torch.zeros(0)

    def at(self, start: int) -> Tensor:
        """Return the planes [start, start + depth) as (C, depth, H, W)."""
        kept = self.start + self.depth - start if len(self.planes) else 0
        if kept <= 0:
            self.planes = self.volume.slab(start, start + self.depth).to(self.device, copy=True)
        else:
            self.planes[:, :kept] = self.planes[:, self.depth - kept :].clone()
            self.planes[:, kept:] = self.volume.slab(start + kept, start + self.depth).to(self.device)
        self.start = start
        return self.planes
