"""RoIAlign: the average of bilinear samples in each bin of a box, for one map or for a pyramid.

The sampling is that of ONNX RoiAlign (mode avg) and of mmcv: samples more than one cell outside of the map are zero
and count, others are moved to the border; with `aligned` (ONNX half_pixel) pixels have their centres at .5, without it
boxes have at least one cell. Max pooling is left out: by it ONNX means the maximum of weighted corners, others that of
samples, and nothing here needs it.

Method: a sample's weight is a product of one for its row and one for its column, so the samples of an axis are merged
into few weights per bin first; then each bin is one weighted sum of rows of a table (cells, channels), which
`embedding_bag` makes without an intermediate. Levels of a pyramid stand in one table, so one call serves them all.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import OptionError
from .boxes import area, at_least_float32
from .tracing import script_when_tracing

# Weights made at once (some 50 bytes each); boxes beyond are treated in parts.
MOST_TAPS = 1 << 21
# Adaptive samples on a side of a bin: more than the cells of any map, and a bound for boxes that are out of all reason.
MOST_SAMPLES = 4096


@script_when_tracing
def roi_align(
    features: Tensor,
    boxes: Tensor,
    images: Tensor,
    output_size: tuple[int, int] = (7, 7),
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    aligned: bool = True,
) -> Tensor:
    """Return the pooled features (K, C, *output_size) of K boxes.

    Differentiable in the features, not in the boxes. Boxes with NaN or infinite coordinates give zeros.

    Args:
        features: (N, C, H, W).
        boxes: (K, 4), in pixels of the image.
        images: (K,) int64, index into N of each box.
        output_size: bins (vertical, horizontal).
        spatial_scale: cells of the map per pixel, 1 / stride.
        sampling_ratio: samples per bin on each side; 0: adaptive, the size of the bin in cells rounded up.
        aligned: half-pixel centres; False is the older form, whose boxes lie half a cell off.

    Raises:
        OptionError: other shapes, images that do not exist, a negative ratio.
    """
    check([features], boxes, images, output_size, sampling_ratio)
    levels = torch.zeros_like(images)
    return pool([features], [spatial_scale], boxes, images, levels, output_size, sampling_ratio, aligned)


@script_when_tracing
def multilevel_roi_align(
    maps: list[Tensor],
    boxes: Tensor,
    images: Tensor,
    strides: list[int],
    output_size: tuple[int, int] = (7, 7),
    sampling_ratio: int = 0,
    aligned: bool = True,
    finest_size: float = 56.0,
) -> Tensor:
    """Return the pooled features (K, C, *output_size) of K boxes, each from the level that `roi_levels` gives.

    Args:
        maps: levels (N, C, H, W), shallow to deep; the paper's detectors use P2 to P5 with strides 4, 8, 16, 32.
        boxes: (K, 4), in pixels of the image.
        images: (K,) int64, index into N of each box.
        strides: of the levels, in pixels per cell.
        output_size: as in `roi_align`, like the two below.
        sampling_ratio: see there.
        aligned: see there.
        finest_size: see `roi_levels`.

    Raises:
        OptionError: as `roi_align`; levels that differ in N or C; as many maps as strides are needed.
    """
    check(maps, boxes, images, output_size, sampling_ratio)
    if len(maps) != len(strides):
        raise OptionError(f"{len(maps)} maps with {len(strides)} strides are not allowed; allowed: one for each map")
    levels = roi_levels(boxes, len(maps), finest_size)
    return pool(maps, [1.0 / stride for stride in strides], boxes, images, levels, output_size, sampling_ratio, aligned)


def roi_levels(boxes: Tensor, levels: int, finest_size: float = 56.0) -> Tensor:
    """Return the level (K,) of each box (K, 4): floor(log2(sqrt(area) / finest_size)), within 0..levels - 1.

    1e-6 is added to the ratio before the logarithm, as upstream does (urmagicsmine/MP3D@08e5ace,
    single_level_roi_extractor.py), so a box of rounded coordinates at a bound belongs to the upper level.
    """
    ratio = area(boxes).sqrt() / finest_size + 1e-6
    return torch.nan_to_num(ratio.log2().floor()).clamp(0, levels - 1).to(torch.int64)


def pool(
    maps: list[Tensor],
    scales: list[float],
    boxes: Tensor,
    images: Tensor,
    levels: Tensor,
    output_size: tuple[int, int],
    sampling_ratio: int,
    aligned: bool,
    most_taps: int = MOST_TAPS,
) -> Tensor:
    """Return the pooled features (K, C, *output_size) of boxes (K, 4), from their images and levels (K,)."""
    # the table (N * cells of all levels, C): image by image, level by level, row by row
    flat = [level.flatten(2) for level in maps]
    table = (flat[0] if len(flat) == 1 else torch.cat(flat, 2)).transpose(1, 2).contiguous()
    shapes = torch.tensor([[level.shape[2], level.shape[3]] for level in maps], device=levels.device)
    cells = shapes.prod(1)
    origins = images * table.shape[1] + (cells.cumsum(0) - cells)[levels]
    heights, widths = shapes[levels].unbind(1)

    scaled = at_least_float32(boxes.detach())
    scaled = scaled * torch.tensor(scales, device=levels.device).to(scaled.dtype)[levels][:, None]
    scaled = scaled - 0.5 if aligned else scaled
    x0, y0, x1, y1 = scaled.unbind(1)
    rows = axis_taps(y0, y1, heights, output_size[0], sampling_ratio, aligned)
    columns = axis_taps(x0, x1, widths, output_size[1], sampling_ratio, aligned)
    owners = torch.repeat_interleave(rows[0].sum(1))
    rows = (rows[0], origins[owners] + rows[1] * widths[owners], rows[2])

    taps = rows[0].sum(1) * columns[0].sum(1)
    part = max(1, most_taps // max(1, int(taps.max()))) if taps.shape[0] > 0 else 1
    bins = [table.flatten(0, 1)[:0]]  # without boxes the result still hangs on the features
    for start in range(0, taps.shape[0], part):
        index, weight, first = combine(rows, columns, start, min(start + part, taps.shape[0]))
        weight = weight.to(table.dtype)
        bins.append(F.embedding_bag(index, table.flatten(0, 1), first, mode="sum", per_sample_weights=weight))
    pooled = torch.cat(bins).view(images.shape[0], output_size[0], output_size[1], table.shape[2])
    return pooled.permute(0, 3, 1, 2).contiguous()


def axis_taps(
    low: Tensor,
    high: Tensor,
    length: Tensor,
    bins: int,
    sampling_ratio: int,
    aligned: bool,
    most_samples: int = MOST_SAMPLES,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return which cells of one axis each bin averages, and with what weights.

    Args:
        low: (K,) edges of the boxes, in cells.
        high: (K,), their other edges.
        length: (K,) cells of the axis of each box's map.
        bins: P.
        sampling_ratio: as in `roi_align`, like the next.
        aligned: see there.
        most_samples: of a bin.

    Returns:
        The number of cells of each bin (K, P); then, bin by bin, the cells and their weights (T,).
    """
    extent = high - low
    step = (extent if aligned else extent.clamp(min=1)) / bins
    samples = torch.full_like(step, sampling_ratio) if sampling_ratio > 0 else step.ceil().clamp(0, most_samples)
    samples = torch.where(extent.isfinite(), samples, torch.zeros_like(samples))
    owner, place = spread(samples.to(torch.int64)[:, None].expand(-1, bins).reshape(-1))
    box = owner // bins  # owner: the bin of a sample, k * P + p
    step, samples, length = step[box], samples[box], length[box]
    # the operations of the definition in their order: a sample on the very edge falls where the reference has it
    position = low[box] + (owner % bins) * step + (place + 0.5) * step / samples
    inside = (position >= -1) & (position <= length)
    position = torch.minimum(position.clamp(min=0), (length - 1).to(position.dtype))
    cell = position.floor()
    share = (position - cell) / samples  # of the next cell; zero at the last one, which has no next
    weight = torch.cat([1 / samples - share, share]) * inside.repeat(2)
    cell = torch.cat([cell, cell + 1]).to(torch.int64)

    used = weight > 0
    pitch = 1 + (cell.max() if cell.shape[0] > 0 else cell.sum())
    keys, to_key = torch.unique((owner.repeat(2) * pitch + cell)[used], return_inverse=True)
    merged = torch.zeros(keys.shape[0], dtype=weight.dtype, device=weight.device).index_add(0, to_key, weight[used])
    number = torch.bincount(keys // pitch, minlength=low.shape[0] * bins)
    return number.view(-1, bins), keys % pitch, merged


def spread(number: Tensor) -> tuple[Tensor, Tensor]:
    """Return owners and places of members, when owner i of (O,) has number[i]: [2, 0, 1] -> [0, 0, 2], [0, 1, 0]."""
    owner = torch.repeat_interleave(number)
    return owner, torch.arange(owner.shape[0], device=owner.device) - (number.cumsum(0) - number)[owner]


def combine(
    rows: tuple[Tensor, Tensor, Tensor], columns: tuple[Tensor, Tensor, Tensor], start: int, stop: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the taps of the boxes start..stop - 1 as flat tensors: lines of the table, weights, first of each bin.

    Args:
        rows: what `axis_taps` gave for the vertical axis, the cells as lines of the table.
        columns: what it gave for the horizontal axis.
        start: the first box.
        stop: the box after the last one.
    """
    row_number, row_line, row_weight = rows
    column_number, column_cell, column_weight = columns
    first_row = (row_number.flatten().cumsum(0).view_as(row_number) - row_number)[start:stop, :, None]
    first_column = (column_number.flatten().cumsum(0).view_as(column_number) - column_number)[start:stop, None]
    down, across = torch.broadcast_tensors(row_number[start:stop, :, None], column_number[start:stop, None])
    bin_of_row, place = spread(down.flatten())  # each row of each bin ...
    row = first_row.expand_as(down).flatten()[bin_of_row] + place
    row_of_tap, place = spread(across.flatten()[bin_of_row])  # ... meets each column of the bin
    column = first_column.expand_as(down).flatten()[bin_of_row][row_of_tap] + place
    number = (down * across).flatten()
    line = row_line[row][row_of_tap] + column_cell[column]
    return line, row_weight[row][row_of_tap] * column_weight[column], number.cumsum(0) - number


def check(maps: list[Tensor], boxes: Tensor, images: Tensor, output_size: tuple[int, int], sampling_ratio: int) -> None:
    """Raise `OptionError` unless shapes, images and options are allowed."""
    shapes = [list(level.shape) for level in maps]
    alike = len(maps) > 0
    for shape in shapes:
        alike = alike and len(shape) == 4 and shape[:2] == shapes[0][:2]
    if not alike:
        raise OptionError(
            f"features of shapes {shapes} are not allowed; allowed: (N, C, H, W), with the same N and C on all levels"
        )
    whole = not images.is_floating_point()
    if boxes.dim() != 2 or boxes.shape[1] != 4 or images.dim() != 1 or images.shape[0] != boxes.shape[0] or not whole:
        raise OptionError(
            f"boxes {list(boxes.shape)} with images {list(images.shape)} of {images.dtype} are not allowed; "
            "allowed: (K, 4), (K,) integers"
        )
    if images.shape[0] > 0 and bool(((images < 0) | (images >= shapes[0][0])).any()):
        raise OptionError(
            f"images {int(images.min())} to {int(images.max())} are not allowed; allowed: 0 to {shapes[0][0] - 1}"
        )
    if min(output_size) < 1 or sampling_ratio < 0:
        raise OptionError(
            f"output_size={output_size}, sampling_ratio={sampling_ratio} are not allowed; "
            "allowed: one bin or more each way, a ratio of 0 (adaptive) or more"
        )
