"""Anchors against loops in plain Python, and against numbers written down by hand."""

from __future__ import annotations

import math

import pytest
import torch

from svd_hub import ops
from svd_hub.errors import OptionError

STRIDES = [4, 8, 16, 32, 64]


def maps_of(height: int, width: int) -> list[torch.Tensor]:
    return [torch.zeros(1, 1, math.ceil(height / s), math.ceil(width / s)) for s in STRIDES]


def anchors_of(height: int, width: int, stride: int, scales: list[float], ratios: list[float]) -> list[list[float]]:
    found = []
    for row in range(height):
        for column in range(width):
            for ratio in ratios:
                for scale in scales:
                    w, h = stride * scale / math.sqrt(ratio), stride * scale * math.sqrt(ratio)
                    x, y = column * stride, row * stride
                    found.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    return found


def test_the_anchor_of_a_cell_is_centred_on_its_corner() -> None:
    base = ops.base_anchors(16)
    assert base[1].tolist() == [-32, -32, 32, 32]
    wide = [-45.2548, -22.6274, 45.2548, 22.6274]
    torch.testing.assert_close(base[0], torch.tensor(wide), rtol=0, atol=1e-4)  # ratio 0.5: half as high as wide
    torch.testing.assert_close(base[2], torch.tensor([-22.6274, -45.2548, 22.6274, 45.2548]), rtol=0, atol=1e-4)


def test_sizes_are_16_to_256() -> None:
    for stride, size in zip(STRIDES, (16, 32, 64, 128, 256), strict=True):
        base = ops.base_anchors(stride)
        torch.testing.assert_close(ops.area(base).sqrt(), torch.full((3,), float(size)))
        width, height = base[:, 2] - base[:, 0], base[:, 3] - base[:, 1]
        torch.testing.assert_close(height / width, torch.tensor([0.5, 1, 2]))


def test_pyramid_in_200_random_cases() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        height, width, count = torch.randint(0, 9, (3,), generator=generator).tolist()
        strides = [2**n for n in torch.randint(0, 7, (1 + count % 3,), generator=generator).tolist()]
        scales = (torch.rand(1 + count % 2, generator=generator) * 8 + 0.5).tolist()
        ratios = (torch.rand(1 + count % 4, generator=generator) * 3 + 0.2).tolist()
        maps = [
            torch.zeros(2, 3, height // (i + 1), width // (i + 1)) for i in range(len(strides))
        ]  # some without a cell
        found = ops.pyramid_anchors(maps, strides, scales, ratios)
        for level, stride, anchors in zip(maps, strides, found, strict=True):
            expected = torch.tensor(anchors_of(*level.shape[2:], stride, scales, ratios)).reshape(-1, 4)
            torch.testing.assert_close(anchors, expected, rtol=1e-5, atol=1e-4)


def test_the_default_is_the_paper_s() -> None:
    maps = maps_of(64, 48)
    for anchors, level, stride in zip(ops.pyramid_anchors(maps, STRIDES), maps, STRIDES, strict=True):
        expected = anchors_of(*level.shape[2:], stride, [4], [0.5, 1, 2])
        torch.testing.assert_close(anchors, torch.tensor(expected), rtol=1e-6, atol=1e-4)


def test_anchors_stand_in_the_order_of_scores() -> None:
    """Scores (N, A, H, W) that hold each anchor's centre and shape, flattened as a head flattens them."""
    stride, height, width = 8, 3, 5
    centre_x = torch.arange(width)[None, None].expand(3, height, width) * stride
    centre_y = torch.arange(height)[None, :, None].expand(3, height, width) * stride
    ratio = torch.tensor([0.5, 1, 2])[:, None, None].expand(3, height, width)
    x, y, r = (score[None].permute(0, 2, 3, 1).flatten(1)[0] for score in (centre_x, centre_y, ratio))
    (anchors,) = ops.pyramid_anchors([torch.zeros(1, 1, height, width)], [stride])
    torch.testing.assert_close((anchors[:, 0] + anchors[:, 2]) / 2, x.float(), rtol=0, atol=1e-5)
    torch.testing.assert_close((anchors[:, 1] + anchors[:, 3]) / 2, y.float(), rtol=0, atol=1e-5)
    torch.testing.assert_close((anchors[:, 3] - anchors[:, 1]) / (anchors[:, 2] - anchors[:, 0]), r)


@pytest.mark.parametrize("size", [(64, 64), (50, 33), (1, 1), (64, 40), (32, 64), (500, 500)])
def test_valid_flags(size: tuple[int, int]) -> None:
    """A batch is 64 x 64; of one image of it only the cells within its own padding are valid."""
    maps = maps_of(64, 64)
    found = ops.valid_flags(maps, STRIDES, size)
    for flags, level, stride in zip(found, maps, STRIDES, strict=True):
        rows, columns = (min(math.ceil(n / stride), level.shape[2]) for n in size)
        expected = [r < rows and c < columns for r in range(level.shape[2]) for c in range(level.shape[3])]
        assert flags.tolist() == [flag for flag in expected for _ in range(3)]
    other = (20, 64)
    batch = ops.valid_flags(maps, STRIDES, torch.tensor([size, other]))
    for flags, first, second in zip(batch, found, ops.valid_flags(maps, STRIDES, other), strict=True):
        assert torch.equal(flags, torch.stack([first, second]))


def test_inside_image() -> None:
    anchors = torch.tensor([[0.0, 0, 9, 19], [0.0, 0, 10, 19], [-1.0, 0, 5, 5], [0.0, -0.5, 5, 5], [1.0, 1, 9, 20]])
    assert ops.inside_image(anchors, (20, 10)).tolist() == [True, False, False, False, False]
    assert ops.inside_image(anchors, torch.tensor([20, 10]), 1).tolist() == [True] * 5
    assert ops.inside_image(anchors * 100, (20, 10), -1).all()


def test_a_level_without_cells_has_no_anchors() -> None:
    (anchors,) = ops.pyramid_anchors([torch.zeros(1, 1, 0, 4)], [8])
    assert anchors.shape == (0, 4)


def test_each_map_needs_a_stride() -> None:
    with pytest.raises(OptionError, match="5 maps with 2 strides"):
        ops.pyramid_anchors(maps_of(64, 64), [4, 8])
    with pytest.raises(OptionError, match="5 maps with 2 strides"):
        ops.valid_flags(maps_of(64, 64), [4, 8], (64, 64))
