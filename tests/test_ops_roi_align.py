"""RoIAlign against its definition in NumPy loops, against the reference evaluator of ONNX, and against closed forms."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from svd_hub import ops
from svd_hub.errors import OptionError

module: Any = importlib.import_module("svd_hub.ops.roi_align")  # the package has a function of that name
SIZES = ((7, 7), (1, 1), (2, 5), (3, 2))
SCALES = (1.0, 0.25, 0.125, 0.3)


def draw(generator: torch.Generator, count: int, side: float) -> Tensor:
    """Return boxes around an image of `side` pixels: inside, across the border, far outside, of zero or negative size,
    on whole cells, and larger than the image."""
    corners = torch.rand(count, 4, generator=generator) * side * 1.4 - side * 0.2
    sides = torch.rand(count, 2, generator=generator) * side
    boxes = torch.cat([corners[:, :2], corners[:, :2] + sides], 1)
    kind = torch.randint(8, (count,), generator=generator)
    boxes[kind == 0] = boxes[kind == 0].round()
    boxes[kind == 1] += 3 * side
    boxes[kind == 2, 3] = boxes[kind == 2, 1]
    boxes[kind == 3] = corners[kind == 3]
    boxes[kind == 4] = (boxes[kind == 4] - side / 2) * 3
    boxes[kind == 5, 2:] = boxes[kind == 5, :2]
    return boxes


def sample(plane: np.ndarray, y: np.float32, x: np.float32) -> np.ndarray:
    """Return the bilinear value (C,) of a plane (C, H, W); zero beyond one cell outside, the border's within."""
    _, height, width = plane.shape
    if y < -1 or y > height or x < -1 or x > width:
        return np.zeros(len(plane))
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = float(y) - top, float(x) - left
    upper = plane[:, top, left] * (1 - dx) + plane[:, top, right] * dx
    lower = plane[:, bottom, left] * (1 - dx) + plane[:, bottom, right] * dx
    return upper * (1 - dy) + lower * dy


def definition(
    features: Tensor, boxes: Tensor, images: Tensor, size: tuple[int, int], scale: float, ratio: int, aligned: bool
) -> np.ndarray:
    """Coordinates are computed in single precision, like the reference; values in double."""
    maps, out = features.double().numpy(), np.zeros((len(boxes), features.shape[1], *size))
    for k, (box, image) in enumerate(zip(boxes.numpy(), images.tolist(), strict=True)):
        x0, y0, x1, y1 = box * np.float32(scale) - np.float32(0.5 if aligned else 0)
        height, width = (y1 - y0, x1 - x0) if aligned else (max(y1 - y0, np.float32(1)), max(x1 - x0, np.float32(1)))
        bin_h, bin_w = height / np.float32(size[0]), width / np.float32(size[1])
        down, across = (ratio, ratio) if ratio else (max(0, math.ceil(bin_h)), max(0, math.ceil(bin_w)))
        for i in range(size[0]):
            for j in range(size[1]):
                total = np.zeros(features.shape[1])
                for v in range(down):
                    for u in range(across):
                        y = y0 + np.float32(i) * bin_h + np.float32(v + 0.5) * bin_h / np.float32(down)
                        x = x0 + np.float32(j) * bin_w + np.float32(u + 0.5) * bin_w / np.float32(across)
                        total += sample(maps[image], y, x)
                out[k, :, i, j] = total / max(1, down * across)
    return out


def cases() -> Any:
    generator = torch.Generator().manual_seed(0)
    for case in range(200):
        count, height, width, images = (int(torch.randint(1, top, (1,), generator=generator)) for top in (5, 10, 9, 4))
        scale = SCALES[case % 4]
        features = torch.randn(images, 2, height, width, generator=generator)
        boxes = draw(generator, count - 1 if case % 9 == 0 else count, max(height, width) / scale)
        owner = torch.randint(images, (len(boxes),), generator=generator)
        yield features, boxes, owner, SIZES[case // 4 % 4], scale, (0, 2, 0, 1, 3)[case % 5], bool(case // 2 % 2)


def test_equal_to_the_definition_in_200_random_cases() -> None:
    zeros = values = 0
    for case in cases():
        found = ops.roi_align(*case).numpy()
        expected = definition(*case)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
        zeros += int((expected == 0).all((1, 2, 3)).sum())
        values += int((expected != 0).all((1, 2, 3)).sum())
    assert zeros > 40
    assert values > 80


def test_equal_to_the_reference_evaluator_of_onnx_in_200_random_cases() -> None:
    onnx = pytest.importorskip("onnx")
    reference = pytest.importorskip("onnx.reference")
    names = ["features", "boxes", "images"]
    kinds = [onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT, onnx.TensorProto.INT64]
    values = [onnx.helper.make_tensor_value_info(n, k, None) for n, k in zip(names, kinds, strict=True)]
    out = onnx.helper.make_tensor_value_info("pooled", onnx.TensorProto.FLOAT, None)
    for features, boxes, images, size, scale, ratio, aligned in cases():
        node = onnx.helper.make_node(
            "RoiAlign",
            names,
            ["pooled"],
            coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
            output_height=size[0],
            output_width=size[1],
            sampling_ratio=ratio,
            spatial_scale=scale,
        )
        graph = onnx.helper.make_graph([node], "g", values, [out])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
        feeds = {"features": features.numpy(), "boxes": boxes.numpy(), "images": images.numpy()}
        (expected,) = reference.ReferenceEvaluator(model).run(None, feeds)
        found = ops.roi_align(features, boxes, images, size, scale, ratio, aligned).numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ratio", [0, 1, 2, 5])
@pytest.mark.parametrize("aligned", [True, False])
def test_a_slope_gives_the_centres_of_the_bins(ratio: int, aligned: bool) -> None:
    """On a plane that rises evenly, any average over a bin is the value at its centre. Cell (r, c) has the value of its
    own centre, in pixels: stride * (c + 0.5), or stride * c in the older form."""
    stride, offset = 4, 0.5 if aligned else 0.0
    y = (torch.arange(30.0)[:, None].expand(30, 40) + offset) * stride
    x = (torch.arange(40.0).expand(30, 40) + offset) * stride
    boxes = torch.tensor([[10.0, 20, 66, 76], [33.3, 15.2, 40.1, 99.9], [60.0, 60, 61, 140 / 2]])
    found = ops.roi_align(torch.stack([x, y])[None], boxes, torch.zeros(3).long(), (7, 5), 1 / stride, ratio, aligned)
    for box, (found_x, found_y) in zip(boxes.tolist(), found, strict=True):
        width, height = box[2] - box[0], box[3] - box[1]
        if not aligned:
            width, height = max(width, stride), max(height, stride)
        centre_x = box[0] + (torch.arange(5) + 0.5) * width / 5
        centre_y = box[1] + (torch.arange(7) + 0.5) * height / 7
        torch.testing.assert_close(found_x, centre_x.expand(7, 5), rtol=0, atol=1e-4)
        torch.testing.assert_close(found_y, centre_y[:, None].expand(7, 5), rtol=0, atol=1e-4)


def test_one_sample_on_a_cell_is_that_cell() -> None:
    features = torch.arange(12.0).view(1, 1, 3, 4)
    box = torch.tensor([[1.0, 1, 3, 3]])
    assert ops.roi_align(features, box, torch.tensor([0]), (2, 2), 1.0, 1, True).flatten().tolist() == [5, 6, 9, 10]
    assert ops.roi_align(features, box, torch.tensor([0]), (2, 2), 1.0, 0, True).flatten().tolist() == [5, 6, 9, 10]


def test_the_border_counts_to_one_cell_outside() -> None:
    features = torch.ones(1, 1, 4, 4)
    image = torch.tensor([0])

    def at(y: float) -> float:
        """The value of one sample at height y, in cells."""
        box = torch.tensor([[1.5, y, 2.5, y + 1]])
        return ops.roi_align(features, box, image, (1, 1), 1.0, 1, True).item()

    assert [at(y) for y in (-1.001, -1.0, -0.5, 0.0, 3.0, 3.9, 4.0, 4.001)] == [0, 1, 1, 1, 1, 1, 1, 0]


def test_images_do_not_mix() -> None:
    features = torch.tensor([1.0, 10, 100]).view(3, 1, 1, 1).expand(3, 2, 5, 6)
    images = torch.tensor([2, 0, 1, 2])
    boxes = torch.tensor([[1.0, 1, 4, 4]]).repeat(4, 1)
    found = ops.roi_align(features, boxes, images)
    assert found.shape == (4, 2, 7, 7)
    torch.testing.assert_close(found, torch.tensor([100.0, 1, 10, 100]).view(4, 1, 1, 1).expand_as(found))


def test_level_rule() -> None:
    sides = [0.0, 10, 111.9, 112, 223.9, 224, 447.9, 448, 895, 896, 9000]
    boxes = torch.tensor([[5.0, 5, 5 + side, 5 + side] for side in sides])
    assert ops.roi_levels(boxes, 4).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3, 3, 3]
    assert ops.roi_levels(boxes, 2).tolist() == [0, 0, 0] + [1] * 8
    almost = torch.tensor([[0.0, 0, 111.99998, 111.99998]])
    assert ops.roi_levels(almost, 4).tolist() == [1], "1e-6 is added to the ratio"
    oblong = torch.tensor([[0.0, 0, 56, 224], [3.0, 3, 1, 900], [math.nan, 0, 1, 1], [0.0, 0, math.inf, 1]])
    assert ops.roi_levels(oblong, 4).tolist() == [1, 0, 0, 3]


@pytest.mark.parametrize("ratio", [0, 2])
def test_pyramid_is_each_level_alone(ratio: int) -> None:
    generator = torch.Generator().manual_seed(1)
    strides = [4, 8, 16, 32]
    maps = [torch.randn(3, 5, math.ceil(200 / s), math.ceil(330 / s), generator=generator) for s in strides]
    low = torch.rand(60, 2, generator=generator) * 250 - 20
    sides = torch.exp(torch.rand(60, 1, generator=generator) * 5 + 1.5) * (torch.rand(60, 2, generator=generator) + 0.5)
    boxes, images = torch.cat([low, low + sides], 1), torch.randint(3, (60,), generator=generator)
    found = ops.multilevel_roi_align(maps, boxes, images, strides, (7, 7), ratio)
    seen = set()
    for k, (width, height) in enumerate((boxes[:, 2:] - boxes[:, :2]).tolist()):
        size = math.sqrt(width * height)
        level = 0 if size < 112 else 1 if size < 224 else 2 if size < 448 else 3
        seen.add(level)
        alone = ops.roi_align(maps[level], boxes[k : k + 1], images[k : k + 1], (7, 7), 1 / strides[level], ratio)
        torch.testing.assert_close(found[k : k + 1], alone, rtol=0, atol=1e-6)
    assert seen == {0, 1, 2, 3}


def test_parts_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(2)
    features, boxes = torch.randn(2, 3, 20, 20, generator=generator), draw(generator, 30, 20)
    images = torch.randint(2, (30,), generator=generator)
    whole = ops.roi_align(features, boxes, images)
    most: list[int] = []
    combine = module.combine

    def counted(*args: Any) -> Any:
        most.append(len((result := combine(*args))[0]))
        return result

    monkeypatch.setattr(module, "combine", counted)
    for bound in (1, 2000, 5000):
        most.clear()
        arguments = ([features], [1.0], boxes, images, torch.zeros_like(images), (7, 7), 0, True)
        assert torch.equal(module.pool(*arguments, most_taps=bound), whole)
        assert len(most) > 1
        assert max(most) <= bound or len(most) == 30


def test_memory_does_not_follow_the_samples_of_absurd_boxes() -> None:
    boxes = torch.tensor([[-1e9, -1e9, 1e9, 1e9], [0.0, 0, 1e30, 1e30], [2.0, 2, 6, 6]])
    features = torch.ones(1, 1, 8, 8)
    found = ops.roi_align(features, boxes, torch.zeros(3).long(), (7, 7))
    assert found.isfinite().all()
    assert torch.equal(found[2], torch.ones(1, 7, 7))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("column", range(4))
@pytest.mark.parametrize("ratio", [0, 2])
def test_boxes_that_are_not_finite_give_zeros(value: float, column: int, ratio: int) -> None:
    boxes = torch.tensor([[1.0, 1, 5, 5], [1.0, 1, 5, 5]])
    boxes[0, column] = value
    for aligned in (True, False):
        found = ops.roi_align(torch.ones(1, 1, 8, 8), boxes, torch.zeros(2).long(), (3, 3), 1.0, ratio, aligned)
        assert torch.equal(found[0], torch.zeros(1, 3, 3))
        assert torch.equal(found[1], torch.ones(1, 3, 3))


@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("aligned", [True, False])
def test_gradients_of_the_features(ratio: int, aligned: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(2, 2, 5, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    boxes, images = draw(generator, 6, 6).double(), torch.tensor([0, 1, 1, 0, 1, 0])

    def pooled(x: Tensor) -> Tensor:
        return ops.roi_align(x, boxes, images, (3, 2), 1.0, ratio, aligned)

    assert pooled(features).abs().sum() > 1
    assert torch.autograd.gradcheck(pooled, (features,))


def test_gradients_of_a_pyramid_reach_every_level_used() -> None:
    generator = torch.Generator().manual_seed(4)
    maps = [torch.randn(1, 2, n, n, generator=generator, dtype=torch.float64, requires_grad=True) for n in (8, 4, 2)]
    boxes = torch.tensor([[1.0, 1, 20, 20], [0.0, 0, 120, 130]], dtype=torch.float64, requires_grad=True)
    images = torch.zeros(2).long()

    def pooled(*levels: Tensor) -> Tensor:
        return ops.multilevel_roi_align(list(levels), boxes, images, [16, 32, 64], (2, 2), 2)

    assert torch.autograd.gradcheck(pooled, maps)
    pooled(*maps).sum().backward()
    grads = [level.grad for level in maps]
    assert [grad is not None and bool(grad.abs().sum() > 0) for grad in grads] == [True, True, False]
    assert boxes.grad is None


def test_no_boxes() -> None:
    features = torch.randn(2, 3, 5, 5, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    found = ops.roi_align(features, torch.zeros(0, 4), none, (7, 5))
    assert found.shape == (0, 3, 7, 5)
    found.sum().backward()
    assert torch.equal(features.grad, torch.zeros_like(features))
    assert ops.multilevel_roi_align([features, features], torch.zeros(0, 4), none, [4, 8]).shape == (0, 3, 7, 7)


def test_no_channels_no_cells_no_images() -> None:
    box, image = torch.tensor([[1.0, 1, 4, 4]]), torch.tensor([0])
    assert ops.roi_align(torch.zeros(1, 0, 5, 5), box, image).shape == (1, 0, 7, 7)
    assert not ops.roi_align(torch.ones(1, 2, 0, 5), box, image).any()
    assert ops.roi_align(torch.zeros(0, 3, 5, 5), box[:0], image[:0]).shape == (0, 3, 7, 7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types_of_features_are_kept_and_coordinates_are_not_rounded_to_them(dtype: torch.dtype) -> None:
    features = torch.arange(600.0).view(1, 1, 1, 600).expand(1, 1, 3, 600) / 600
    boxes = torch.tensor([[501.3, 0.5, 503.7, 2.5]])
    exact = ops.roi_align(features, boxes, torch.tensor([0]), (1, 3))
    found = ops.roi_align(features.to(dtype), boxes, torch.tensor([0]), (1, 3))
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), exact, rtol=0, atol=8e-3 if dtype == torch.bfloat16 else 1e-3)
    learned = features.to(dtype).contiguous().requires_grad_()
    ops.roi_align(learned, boxes.to(dtype), torch.tensor([0]), (1, 3)).sum().backward()
    assert learned.grad is not None
    assert learned.grad.dtype == dtype
    assert learned.grad.double().sum().item() == pytest.approx(3, rel=0.02)  # the weights of each bin add up to one


def test_any_memory_order() -> None:
    generator = torch.Generator().manual_seed(5)
    features = torch.randn(2, 3, 6, 7, generator=generator)
    boxes, images = draw(generator, 9, 7), torch.randint(2, (9,), generator=generator)
    turned = features.to(memory_format=torch.channels_last)
    assert torch.equal(ops.roi_align(turned, boxes, images), ops.roi_align(features, boxes, images))
    sliced = torch.randn(2, 3, 2, 6, 7, generator=generator)
    centre = sliced[:, :, 1]
    assert torch.equal(ops.roi_align(centre, boxes, images), ops.roi_align(centre.contiguous(), boxes, images))


@pytest.mark.parametrize(
    ("features", "boxes", "images", "options", "words"),
    [
        ((3, 5, 5), (2, 4), [0, 0], {}, r"features of shapes \[\[3, 5, 5\]\]"),
        ((2, 3, 5, 5), (2, 5), [0, 0], {}, r"boxes \[2, 5\]"),
        ((2, 3, 5, 5), (2, 4), [0], {}, r"images \[1\]"),
        ((2, 3, 5, 5), (2, 4), [0, 2], {}, "images 0 to 2 are not allowed; allowed: 0 to 1"),
        ((2, 3, 5, 5), (2, 4), [-1, 0], {}, "images -1 to 0"),
        ((2, 3, 5, 5), (2, 4), [0, 1], {"output_size": (0, 7)}, "one bin or more"),
        ((2, 3, 5, 5), (2, 4), [0, 1], {"sampling_ratio": -1}, "sampling_ratio=-1"),
    ],
)
def test_nonsense_is_refused(
    features: tuple[int, ...], boxes: tuple[int, ...], images: list[int], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(OptionError, match=words):
        ops.roi_align(torch.zeros(features), torch.zeros(boxes), torch.tensor(images), **options)
    with pytest.raises(OptionError, match=r"of torch.float32 are not allowed; .*\(K,\) integers"):
        ops.roi_align(torch.zeros(1, 3, 5, 5), torch.zeros(1, 4), torch.zeros(1))


def test_levels_must_fit_each_other() -> None:
    boxes, images = torch.zeros(1, 4), torch.tensor([0])
    with pytest.raises(OptionError, match="same N and C"):
        ops.multilevel_roi_align([torch.zeros(1, 3, 4, 4), torch.zeros(1, 2, 2, 2)], boxes, images, [4, 8])
    with pytest.raises(OptionError, match="1 maps with 2 strides"):
        ops.multilevel_roi_align([torch.zeros(1, 3, 4, 4)], boxes, images, [4, 8])
    with pytest.raises(OptionError, match="features"):
        ops.multilevel_roi_align([], boxes, images, [])
