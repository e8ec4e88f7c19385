"""From a volume to a label map on the same grid, slab by slab: neither logits nor labels of it all are in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import images
from ..inference import Inference
from ..ops.blending import Network, blended
from ..prepared import Prepared
from ..preprocess import Preprocess
from ..volume import Volume, memory

Done = Callable[[int, int], None]


def segment(
    network: Network,
    volume: Volume,
    rule: Preprocess,
    inference: Inference,
    *,
    labels: int,
    device: torch.device,
    at_once: int | None = None,
    done: Done | None = None,
) -> np.ndarray:
    """Return the label map (D, H, W) of a volume, on the volume's grid.

    The logits are blended on the network's grid, then interpolated linearly to the volume's, where each voxel takes
    the class of the highest: a border is as smooth as the volume's voxels allow, not as the network's.

    Args:
        network: from (n, C, *window) to (n, K, *window) logits.
        volume: what is segmented.
        rule: the weights' preprocessing.
        inference: the weights' windows.
        labels: how many there can be, the background included.
        device: where the network is.
        at_once: windows in a batch, None = by their size; see `blended`.
        done: called with (windows done, windows in all).
    """
    prepared = Prepared(rule, volume.array, volume.spacing)
    out = memory.empty(volume.shape, np.uint8 if labels <= 256 else np.uint16)
    view, _ = images.turned(out, "SPL", prepared.orientation)
    onto = _Onto(view, prepared.sides, inference.activation)
    window, stride = inference.windows(rule.size, rule.minimum)
    slabs = _Released(prepared, volume)
    options: dict[str, Any] = {"window": window, "stride": stride, "blend": inference.blend, "at_once": at_once}
    for planes in blended(network, slabs, device=device, done=done, **options):
        onto.take(planes)
        memory.release(out)
    return out


class _Released:
    """Slabs whose voxels are given back when they have been read."""

    def __init__(self, prepared: Prepared, volume: Volume) -> None:
        self.sides, self.pad = prepared.sides, prepared.pad
        self._prepared, self._volume = prepared, volume

    def slab(self, start: int, stop: int) -> Tensor:
        """Return the planes [start, stop) as (C, d, H, W)."""
        x = self._prepared.slab(start, stop)
        memory.release(self._volume.array)
        return x


class _Onto:
    """Takes logits plane by plane on the network's grid, and writes labels on the volume's."""

    def __init__(self, out: np.ndarray, sides: tuple[int, int, int], activation: str) -> None:
        self.out, self.activation = out, activation
        depth, self.size = len(out), tuple(out.shape[1:])
        places = ((np.arange(depth) + 0.5) * (sides[0] / depth) - 0.5).clip(0, sides[0] - 1)
        self.low = np.floor(places).astype(int)
        self.high = np.minimum(self.low + 1, sides[0] - 1)
        self.weight = places - self.low
        self.high = np.where(self.weight > 0, self.high, self.low)
        self.written, self.first = 0, 0  # planes of the volume written; the network's plane that `kept` begins with
        self.kept = torch.zeros(0)

    def take(self, planes: Tensor) -> None:
        """Take the next planes (K, d, h, w)."""
        self.kept = torch.cat((self.kept, planes), 1) if len(self.kept) else planes
        stop = self.first + self.kept.shape[1]
        while self.written < len(self.out) and self.high[self.written] < stop:
            k = self.written
            low, high = self.kept[:, self.low[k] - self.first], self.kept[:, self.high[k] - self.first]
            plane = torch.lerp(low, high, float(self.weight[k])) if self.weight[k] else low
            self.out[k] = self._labels(plane).cpu().numpy()
            self.written += 1
        if self.written < len(self.out):
            gone = max(0, min(int(self.low[self.written]), stop) - self.first)
            self.kept, self.first = self.kept[:, gone:].clone(), self.first + gone

    def _labels(self, logits: Tensor) -> Tensor:
        """Return labels (H, W) of logits (K, h, w)."""
        if tuple(logits.shape[1:]) != self.size:
            logits = F.interpolate(logits[None], size=self.size, mode="bilinear", align_corners=False)[0]
        if self.activation == "softmax":
            return logits.argmax(0)
        best, which = logits.max(0)
        return (which + 1).masked_fill(best <= 0, 0)
