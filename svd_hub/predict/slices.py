"""Slices around a key slice, cut anew at the spacing a detector was trained with.

The paper (section IV-B): nine slices, 2.5 mm apart. Each is linearly interpolated between the two nearest stored ones,
exactly; the official code takes the weights of the first neighbour for all of them, which is wrong on 133 of the 4,831
test images of DeepLesion (urmagicsmine/MP3D@08e5ace mmdet/datasets/pipelines/image_io_3DCE.py). Beyond the volume the
last slice there is repeated, as there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import OptionError
from ..preprocess import Preprocess
from ..volume import Volume


def key_planes(volume: Volume, spacing: float) -> list[int]:
    """Return the stored slices nearest to places `spacing` mm apart, from the first to the last, each once."""
    depth, mm = volume.shape[0], volume.spacing[0]
    places = np.arange(0, (depth - 1) * mm + 1e-6, max(spacing, mm)) / mm
    return sorted({int(k) for k in np.rint(places)})


def chosen_planes(volume: Volume, planes: Sequence[int] | str) -> list[int]:
    """Return the key slices that a user chose, in their order, each once; "all" = every one.

    Raises:
        OptionError: not whole numbers within the volume.
    """
    depth = volume.shape[0]
    if isinstance(planes, str) and planes == "all":
        return list(range(depth))
    given: list[Any] = list(planes) if isinstance(planes, Iterable) else [planes]
    whole = all(isinstance(k, Integral) and not isinstance(k, bool) and 0 <= int(k) < depth for k in given)
    if not given or not whole:
        raise OptionError(
            f"planes={given} are not allowed; allowed: 'all', or whole numbers, 0 (the lowest) to {depth - 1}"
        )
    return sorted({int(k) for k in given})


def around(volume: Volume, plane: int, *, slices: int, spacing: float) -> np.ndarray:
    """Return `slices` planes (slices, H, W), float32 in the volume's units, about `plane`, from below to above."""
    offsets = (np.arange(slices) - slices // 2) * (spacing / volume.spacing[0])
    places = (plane + offsets).clip(0, volume.shape[0] - 1)
    low = np.floor(places + 1e-9).astype(int)
    weight = (places - low).clip(0).astype(np.float32)
    out = np.empty((slices, *volume.shape[1:]), np.float32)
    for k, (below, share) in enumerate(zip(low, weight, strict=True)):
        out[k] = volume.array[below]
        if share > 1e-6:
            out[k] += share * (volume.array[below + 1].astype(np.float32) - out[k])
    return out


def detector_input(planes: np.ndarray, rule: Preprocess, side: int | None) -> tuple[Tensor, tuple[float, float]]:
    """Return the network's input (1, C, D, H', W') of planes (D, H, W), and by what H and W were multiplied.

    Args:
        planes: in the image's units.
        rule: window, scale, mean and std; a detector's has no spacing and no size.
        side: pixels of the longer side afterwards (bilinear, not antialiased, as upstream's), None = as it is.
    """
    x = rule.windowed(torch.from_numpy(planes)[None])
    height, width = x.shape[2:]
    if side is not None and side != max(height, width):
        size = [max(1, round(n * side / max(height, width))) for n in (height, width)]
        x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
    x = rule.normalised(x, rule.of_channels(rule.mean), rule.of_channels(rule.std))
    x = x.expand(rule.channels, -1, -1, -1)[None].contiguous()
    return x, (x.shape[3] / height, x.shape[4] / width)
