"""Anchors of a feature pyramid, as mmdet 2 makes them: centred on the corner of each cell, nothing rounded.

Source: urmagicsmine/MP3D@08e5ace, mmdet/core/anchor/anchor_generator.py and utils.py, with base size = stride and
center_offset = 0. Its detectors use scale 4 and ratios 0.5, 1, 2 on strides 4 to 64: sizes 16, 32, 64, 128, 256.
mmdet 1 rounds its anchors and moves them by half a pixel; that form is not here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import OptionError
from .boxes import height_and_width
from .tracing import script_when_tracing


@script_when_tracing
def base_anchors(stride: int, scales: list[float] | None = None, ratios: list[float] | None = None) -> Tensor:
    """Return the anchors (A, 4) of the cell at the origin, A = ratios x scales, float32.

    Args:
        stride: of the level; an anchor of scale s has the area (s * stride) ** 2.
        scales: default 4.
        ratios: of height to width; default 0.5, 1, 2. The order is ratio by ratio, all scales of a ratio together.
    """
    # The square roots are taken in float32: so upstream's anchors come out to the last bit.
    roots = torch.tensor([0.5, 1.0, 2.0] if ratios is None else ratios, dtype=torch.float32).sqrt()[:, None]
    sides = torch.tensor([4.0] if scales is None else scales, dtype=torch.float32)
    widths = (stride * (1 / roots) * sides).flatten()
    heights = (stride * roots * sides).flatten()
    return torch.stack([-0.5 * widths, -0.5 * heights, 0.5 * widths, 0.5 * heights], dim=-1)


def grid_anchors(base: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """Return the anchors (H * W * A, 4) of a map of size (H, W), from the base anchors (A, 4).

    The order is row by row, cell by cell, the anchors of a cell together: that of (N, A, H, W) scores after
    `permute(0, 2, 3, 1).flatten(1)`.
    """
    height, width = size
    y = torch.arange(height, device=base.device).to(base.dtype) * stride
    x = torch.arange(width, device=base.device).to(base.dtype) * stride
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    shifts = torch.stack([columns, rows, columns, rows], dim=-1)
    return (shifts[:, :, None] + base).reshape(-1, 4)


def pyramid_anchors(
    maps: list[Tensor], strides: list[int], scales: list[float] | None = None, ratios: list[float] | None = None
) -> list[Tensor]:
    """Return the anchors (H * W * A, 4) of each map (..., H, W) of a pyramid, float32, on the maps' device.

    Raises:
        OptionError: as many maps as strides are needed.
    """
    check_levels(len(maps), len(strides))
    anchors: list[Tensor] = []
    for level, stride in zip(maps, strides):  # noqa: B905  TorchScript knows no strict=
        base = base_anchors(stride, scales, ratios).to(level.device)
        anchors.append(grid_anchors(base, (level.shape[-2], level.shape[-1]), stride))
    return anchors


def valid_flags(
    maps: list[Tensor], strides: list[int], image_size: tuple[int, int] | Tensor, anchors_per_cell: int = 3
) -> list[Tensor]:
    """Return for each level which anchors belong to cells of the image, not of the padding that made a batch.

    Args:
        maps: levels (..., H, W), of which only shape and device are read.
        strides: of the levels.
        image_size: (height, width) of one image with its own padding, or a tensor (N, 2) for a batch.
        anchors_per_cell: A.

    Returns:
        Masks (H * W * A,), or (N, H * W * A) for a batch: a cell is valid if it begins inside the image.

    Raises:
        OptionError: as many maps as strides are needed.
    """
    check_levels(len(maps), len(strides))
    flags: list[Tensor] = []
    for level, stride in zip(maps, strides):  # noqa: B905
        y = torch.arange(level.shape[-2], device=level.device) * stride
        x = torch.arange(level.shape[-1], device=level.device) * stride
        height, width = height_and_width(image_size, y)
        cells = (y < height[..., None])[..., :, None] & (x < width[..., None])[..., None, :]
        flags.append(cells.flatten(-2).repeat_interleave(anchors_per_cell, dim=-1))
    return flags


def inside_image(anchors: Tensor, size: tuple[int, int] | Tensor, border: int = 0) -> Tensor:
    """Return which anchors (..., 4) lie within an image of `size` (height, width), or beyond it by at most `border`.

    Upstream's bounds: the low edges may touch, the high ones may not. A negative border allows every anchor.
    """
    x0, y0, x1, y1 = anchors.unbind(-1)
    height, width = height_and_width(size, anchors)
    inside = (x0 >= -border) & (y0 >= -border) & (x1 < width + border) & (y1 < height + border)
    return inside if border >= 0 else torch.ones_like(inside)


def check_levels(maps: int, strides: int) -> None:
    """Raise `OptionError` unless there are as many maps as strides."""
    if maps != strides:
        raise OptionError(f"{maps} maps with {strides} strides are not allowed; allowed: one stride for each map")
