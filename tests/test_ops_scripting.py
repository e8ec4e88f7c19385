"""Every function of `ops` scripted, traced at one size and run at another, and loaded where svd_hub is not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from svd_hub import ops

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


def boxes(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=generator) * 40
    return torch.cat([low, low + torch.rand(count, 2, generator=generator) * 40], 1)


def scores(*shape: int) -> Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(7)) * 50).round() / 50


def arguments(count: int) -> dict[str, tuple[Any, ...]]:
    """Return the arguments of each public function for `count` boxes and maps of about that size."""
    generator = torch.Generator().manual_seed(count)
    maps = [torch.randn(2, 3, count // s + 1, count // s + 2, generator=generator) for s in (1, 2, 4)]
    images = torch.arange(count) % 2
    return {
        "area": (boxes(count),),
        "base_anchors": (8, [4.0, 2.0], [1.0]),
        "batched_nms": (boxes(count), scores(count), images, 0.3, 0.1, 4),
        "clip": (boxes(count), torch.tensor([20, 30])),
        "decode": (boxes(count), boxes(count, 1) / 40),
        "encode": (boxes(count), boxes(count, 1)),
        "first_of_each": (images, 3),
        "grid_anchors": (ops.base_anchors(4), (count, 5), 4),
        "inside_image": (boxes(count), (30, 40), 1),
        "iou": (boxes(count), boxes(count, 1)),
        "iou_matrix": (boxes(count), boxes(count + 2, 1)),
        "larger_than": (boxes(count), 10.0),
        "multiclass_nms": (boxes(count), scores(count, 3), images, 0.5, 0.1, 10),
        "multilevel_roi_align": (maps, boxes(count) * 4, images, [4, 8, 16]),
        "nms": (boxes(count), scores(count), 0.4),
        "pyramid_anchors": (maps, [4, 8, 16]),
        "roi_align": (maps[0], boxes(count), images, (3, 2), 0.25, 0, False),
        "roi_levels": (boxes(count) * 8, 4),
        "valid_flags": (maps, [4, 8, 16], (30, 20)),
    }


def test_no_function_is_forgotten() -> None:
    assert set(arguments(3)) == {name for name in ops.__all__ if callable(getattr(ops, name))}


@pytest.mark.parametrize("name", sorted(arguments(3)))
def test_scripted(name: str) -> None:
    function = getattr(ops, name)
    scripted = torch.jit.script(function)
    for count in (6, 300, 40):
        torch.testing.assert_close(scripted(*arguments(count)[name]), function(*arguments(count)[name]), rtol=0, atol=0)


def test_scripted_with_tensors_and_pairs_as_sizes() -> None:
    clip = torch.jit.script(ops.clip)
    assert torch.equal(clip(boxes(9), (20, 30)), clip(boxes(9), torch.tensor([20, 30])))


def test_scripted_functions_refuse_nonsense_too() -> None:
    with pytest.raises(torch.jit.Error, match=r"OptionError: iou_threshold=2"):
        torch.jit.script(ops.nms)(boxes(3), scores(3), 2.0)


class Detector(nn.Module):
    """The path of a small detector: anchors, decoding, clipping, suppression, pooling, classes."""

    def forward(self, image: Tensor, deep: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        maps = [image[:, :, ::4, ::4], deep]
        anchors = torch.cat(ops.pyramid_anchors(maps, [4, 8]))
        flags = torch.cat(ops.valid_flags(maps, [4, 8], (image.shape[2], image.shape[3])))
        deltas = torch.cat([level[:, :1].flatten(1).repeat_interleave(3, dim=1) for level in maps], 1)
        proposals = ops.decode(anchors, torch.stack([deltas, deltas, -deltas, deltas], -1))
        proposals = ops.clip(proposals, (image.shape[2], image.shape[3])).flatten(0, 1)
        images = torch.arange(image.shape[0]).repeat_interleave(anchors.shape[0])
        certainty = (deltas.sigmoid() * flags).flatten()
        kept = ops.batched_nms(proposals, certainty, images, 0.7, 0.1)
        kept = kept[ops.first_of_each(images[kept], 20)]
        pooled = ops.multilevel_roi_align(maps, proposals[kept], images[kept], [4, 8], (3, 3))
        return ops.multiclass_nms(proposals[kept], pooled.mean((2, 3)).softmax(1)[:, :2], images[kept])


def images(height: int, width: int, count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(height)
    image = torch.randn(count, 3, height, width, generator=generator)
    return image, torch.randn(count, 3, height // 8, width // 8, generator=generator)


def make(how: Callable[..., Any]) -> Any:
    return torch.jit.trace(Detector(), images(32, 40, 1)) if how is torch.jit.trace else how(Detector())


@pytest.mark.parametrize("how", [torch.jit.trace, torch.jit.script])
def test_a_detector_runs_at_other_sizes_than_it_was_made_with(how: Callable[..., Any]) -> None:
    other = make(how)
    for height, width, count in ((32, 40, 1), (64, 48, 3), (24, 96, 2)):
        expected = Detector()(*images(height, width, count))
        assert len(expected[0]) > 10 * count
        torch.testing.assert_close(other(*images(height, width, count)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("how", [torch.jit.trace, torch.jit.script])
def test_a_saved_file_loads_without_svd_hub(how: Callable[..., Any], tmp_path: Path) -> None:
    batch = images(64, 48, 2)
    torch.save({"batch": batch, "expected": Detector()(*batch)}, tmp_path / "case.pt")
    torch.jit.save(make(how), tmp_path / "detector.ts")
    code = """
import sys, warnings
sys.modules["svd_hub"] = None
warnings.simplefilter("ignore", DeprecationWarning)
import torch
case = torch.load("case.pt")
found = torch.jit.load("detector.ts")(*case["batch"])
torch.testing.assert_close(found, case["expected"], rtol=0, atol=1e-5)
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)


def test_a_trace_checks_shapes_when_it_runs() -> None:
    traced = torch.jit.trace(lambda b, s: ops.nms(b, s, 0.5), (boxes(5), scores(5)))
    assert torch.equal(traced(boxes(90), scores(90)), ops.nms(boxes(90), scores(90), 0.5))
    with pytest.raises(torch.jit.Error, match="boxes"):
        traced(boxes(5), scores(4))
