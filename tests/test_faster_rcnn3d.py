"""Laws of FasterRCNN3D: its totals, its names, what reaches its neck, what it returns, that it learns."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers_detection import ENCODERS, generator, image, small, squares
from torch import Tensor, nn

import svd_hub
from svd_hub.errors import OptionError
from svd_hub.models import option_names, weight_options
from svd_hub.models.detection import Detections, FasterRCNN3D, Target, rpn
from svd_hub.models.detection.settings import Sampling
from svd_hub.models.layers import make_norm
from svd_hub.ops import roi_align
from svd_hub.skeleton import skeleton

torch.set_num_threads(1)


def meta(**options: Any) -> Any:
    return skeleton("faster_rcnn3d", options)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# ---- totals and names ------------------------------------------------------------------------------------------------

COCO = {"depth_stride": 1, "num_classes": 80}
TOTALS: tuple[tuple[dict[str, Any], int], ...] = (
    ({**COCO, "convention": "mmdet1"}, 45_530_852),  # of the V1 file, 81-way
    (COCO, 45_530_852 - 4 * 1025),  # no deltas of the background
    ({}, 45_121_877),  # P3D-63 for lesions
    ({"encoder": "resnet3d"}, 50_262_869),
    ({"encoder": "resnet3d", "encoder_options": {"norm": "group"}}, 50_262_869),
    ({"encoder": "resnet3d", "encoder_options": {"stem": "v1c"}}, 50_262_869 - 22_080 + 84_064),
    ({"encoder": "resnet3d", "encoder_options": {"depth": 50}}, 45_121_877 - 27_281_728 + 46_155_072),
    ({"encoder_options": {"variant": "18ba"}}, 15_257_536 + 2_607_104 + 593_935 + 13_895_680 + 6_150),
    ({"depth_stride": 1, "reduction": "group"}, 45_121_877 + 34_560),  # MP3D-63 with the group transform of 9
    ({"depth_stride": 1, "reduction": "group", "slices": 3}, 45_121_877 + 11_520),
    (
        {"encoder_options": {"variant": "18ba"}, "depth_stride": 1, "reduction": "group"},
        15_266_176 + 2_607_104 + 593_935 + 13_901_830,
    ),
)


@pytest.mark.parametrize(("options", "total"), TOTALS, ids=str)
def test_total_of_parameters(options: dict[str, Any], total: int) -> None:
    assert count(meta(**options)) == total


@pytest.mark.parametrize(
    ("options", "backbone", "neck"),
    [({}, 27_281_728, 3_344_384), ({"encoder": "resnet3d"}, 33_160_000, 2_607_104)],
    ids=str,
)
def test_totals_of_the_parts(options: dict[str, Any], backbone: int, neck: int) -> None:
    model = meta(**options)
    found = [count(part) for part in (model.backbone, model.neck, model.rpn_head, model.bbox_head)]
    assert found == [backbone, neck, 593_935, 13_895_680 + 6_150]


NETWORKS: dict[str, tuple[dict[str, Any], int]] = {  # of the paper, with their backbones' parameters
    "P3D-63": ({"encoder": "p3d", "encoder_options": {"variant": "63", "form": "p3d"}}, 27_281_728),
    "MP3D-63": ({"encoder": "p3d", "encoder_options": {"variant": "63", "form": "mp3d"}}, 27_281_728),
    "P3D-18ba": ({"encoder": "p3d", "encoder_options": {"variant": "18ba"}}, 15_257_536),
    "ResNet3D-18": ({"encoder": "resnet3d", "encoder_options": {"norm": "group"}}, 33_160_000),
    "ResNet3D-50": ({"encoder": "resnet3d", "encoder_options": {"depth": 50, "norm": "group"}}, 46_155_072),
    "V1c-18": ({"encoder": "resnet3d", "encoder_options": {"stem": "v1c", "norm": "group"}}, 33_221_984),
}
COCO_FORM = {"depth_stride": 1, "slices": 3, "num_classes": 80}
LESION_FORM = {"depth_stride": 2, "slices": 9, "num_classes": 1}


@pytest.mark.parametrize("reduction", ["centre", "group"])
@pytest.mark.parametrize("form", [COCO_FORM, LESION_FORM], ids=["COCO", "lesions"])
@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_of_the_paper_in_both_forms(network: str, form: dict[str, Any], reduction: str) -> None:
    options, backbone = NETWORKS[network]
    wide = {"P3D-63", "MP3D-63", "ResNet3D-50"}
    levels = (256, 512, 1024, 2048) if network in wide else (64, 128, 256, 512)
    model: Any = skeleton("faster_rcnn3d", {**options, **form, "reduction": reduction})
    slices, classes = form["slices"], form["num_classes"]
    depths = [slices] * 4
    if form is LESION_FORM:
        depths = [5, 3, 1, 1] if options["encoder"] == "p3d" else [9, 5, 3, 1]
    neck = sum(256 * c + 256 for c in levels) + 4 * (256 * 256 * 9 + 256)
    head = 12544 * 1024 + 1024 + 1024 * 1024 + 1024 + 1025 * (classes + 1) + 1025 * 4 * classes
    gtm = sum(c * d for c, d in zip(levels, depths, strict=True)) if reduction == "group" else 0
    assert count(model) == backbone + neck + 593_935 + head + gtm
    alone = skeleton(options["encoder"], options["encoder_options"]).state_dict()
    assert {n for n in model.state_dict() if n.startswith("backbone.")} == {f"backbone.{n}" for n in alone}
    x = torch.empty(2, 1, slices, 128, 160, device="meta")
    kept = [slices] * 5 if form is COCO_FORM else [9, 9, 5, 3, 1]
    assert [level.shape[2] for level in model.features(x).values()] == kept
    assert [tuple(x.shape) for x in model.pyramid(x)] == [
        (2, 256, 128 // stride, -(-160 // stride)) for stride in (4, 8, 16, 32, 64)
    ]


def test_names_and_shapes() -> None:
    shapes = {n: tuple(t.shape) for n, t in meta(**COCO, reduction="group", slices=3).state_dict().items()}
    backbone = {f"backbone.{n}": tuple(t.shape) for n, t in skeleton("p3d", {}).state_dict().items()}
    expected = dict(backbone)
    for i, width in enumerate((256, 512, 1024, 2048)):
        expected[f"gtm.{i}.weight"] = (width, 3, 1, 1)
        expected[f"neck.lateral_convs.{i}.weight"] = (256, width, 1, 1)
        expected[f"neck.fpn_convs.{i}.weight"] = (256, 256, 3, 3)
        expected[f"neck.lateral_convs.{i}.bias"] = expected[f"neck.fpn_convs.{i}.bias"] = (256,)
    for name, shape in {"conv": (256, 256, 3, 3), "cls": (3, 256, 1, 1), "reg": (12, 256, 1, 1)}.items():
        expected[f"rpn_head.rpn_{name}.weight"] = shape
        expected[f"rpn_head.rpn_{name}.bias"] = shape[:1]
    linear = {"shared_fcs.0": (1024, 12544), "shared_fcs.1": (1024, 1024), "fc_cls": (81, 1024), "fc_reg": (320, 1024)}
    for name, shape in linear.items():
        expected[f"bbox_head.{name}.weight"] = shape
        expected[f"bbox_head.{name}.bias"] = shape[:1]
    assert shapes == expected


OTHERS: dict[str, Any] = {
    "encoder": "resnet3d",
    "encoder_options": {"width": 16},
    "depth_stride": 1,
    "reduction": "group",
    "slices": 11,
    "convention": "mmdet1",
    "anchor_scale": 8.0,
    "channels": 64,
    "head_channels": 512,
    "score_threshold": 0.05,
    "nms_threshold": 0.4,
    "max_detections": 300,
    "features_only": True,
}


def test_weight_options_are_those_that_change_names_or_shapes() -> None:
    def shapes(**options: Any) -> dict[str, torch.Size]:
        return {n: t.shape for n, t in meta(**options).state_dict().items()}

    assert {*OTHERS, "in_channels", "num_classes"} == set(option_names("faster_rcnn3d"))
    plain, group = shapes(), shapes(reduction="group")
    changing = {name for name, value in OTHERS.items() if shapes(**{name: value}) != plain} - {"features_only"}
    assert changing == set(weight_options("faster_rcnn3d")) - {"slices"}
    changing = {name for name, value in OTHERS.items() if shapes(**{"reduction": "group", name: value}) != group}
    # the group transform has the depth of its level
    assert changing == {*weight_options("faster_rcnn3d"), "depth_stride", "features_only"} - {"reduction"}


# ---- from slices to maps ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [9, 12])
def test_the_neck_of_p3d_reads_middle_slices_behind_the_pools(depth: int) -> None:
    model = small()
    maps = model.features(image(1, 1, depth, 64, 96))
    assert [maps[f"layer{n}"].shape[2] for n in (1, 2, 3)] == [depth, -(-depth // 2), 3]
    pooled = [F.max_pool3d(maps[f"layer{n}"], (3, 1, 1), (2, 1, 1), (1, 0, 0)) for n in (1, 2)]
    pooled += [maps["layer3"].amax(2, keepdim=True), maps["layer4"]]
    stated = model.neck([x[:, :, x.shape[2] // 2] for x in pooled])
    got = model.pyramid(image(1, 1, depth, 64, 96))
    assert [tuple(x.shape) for x in got] == [(1, 32, 64 // s, 96 // s) for s in (4, 8, 16, 32)] + [(1, 32, 1, 2)]
    for a, b in zip(got, stated, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("stem", ["plain", "v1c"])
def test_the_strided_resnet_has_nine_five_three_and_one_slice(stem: str) -> None:
    model = small("resnet3d", encoder_options={**ENCODERS["resnet3d"], "stem": stem})
    x = image(1, 1, 9, 64, 64)
    maps = model.features(x)
    assert [maps[f"layer{n}"].shape[2] for n in (1, 2, 3, 4)] == [9, 5, 3, 1]
    y = maps["layer3"].amax(2, keepdim=True)
    for index in ("0", "1"):
        y = model.get_submodule(f"backbone.layer4.{index}")(y)
    torch.testing.assert_close(maps["layer4"], y)
    stated = model.neck([maps[f"layer{n}"][:, :, middle] for n, middle in ((1, 4), (2, 2), (3, 1), (4, 0))])
    for a, b in zip(model.pyramid(x), stated, strict=True):
        torch.testing.assert_close(a, b)
    strided = [c for c in model.backbone.modules() if isinstance(c, nn.Conv3d) and c.stride[0] == 2]
    assert len(strided) == 4  # the first convolution and the shortcut of layer2 and of layer3
    kept = small("resnet3d", depth_stride=1, encoder_options={**ENCODERS["resnet3d"], "stem": stem})
    kept.load_state_dict(model.state_dict())
    assert {level.shape[2] for level in kept.features(x).values()} == {9}


def test_the_middle_slice_of_every_level_sees_the_whole_stack_evenly() -> None:
    """Flipping the slices leaves nothing but rounding: no stride is off centre."""
    for encoder in ENCODERS:
        model = small(encoder).double()
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.Conv3d):
                    module.weight.copy_((module.weight + module.weight.flip(2)) / 2)
        x = image(1, 1, 9, 64, 64).double()
        for a, b in zip(model.pyramid(x), model.pyramid(x.flip(2)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("depth_stride", [1, 2])
def test_the_group_transform_starts_as_the_middle_slice_and_learns(encoder: str, depth_stride: int) -> None:
    group = small(encoder, reduction="group", depth_stride=depth_stride, slices=9)
    centre = small(encoder, depth_stride=depth_stride)
    state = {n: t for n, t in group.state_dict().items() if not n.startswith("gtm.")}
    centre.load_state_dict(state)
    x = image(1, 1, 9, 64, 64)
    for a, b in zip(group.pyramid(x), centre.pyramid(x), strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        group.get_parameter("gtm.0.weight")[:, 0] += 1
    assert not torch.allclose(group.pyramid(x)[0], centre.pyramid(x)[0])
    if depth_stride == 1:
        centre(image(1, 1, 5, 64, 64))  # any depth
        with pytest.raises(OptionError, match=r"8, 5, 16, 16.*allowed: \(N, 8, 9, H, W\)"):
            group(image(1, 1, 5, 64, 64))


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("depth", [3, 8, 13])
def test_a_depth_that_does_not_end_as_one_slice_is_refused(encoder: str, depth: int) -> None:
    allowed = r"depth_stride=2.*allowed: 9 \(as trained\) to 12.*Next: .*depth_stride=1"
    with pytest.raises(OptionError, match=allowed):
        small(encoder)(image(1, 1, depth, 64, 64))
    if depth != 3:  # three are allowed where they are asked for
        with pytest.raises(OptionError, match=allowed):
            small(encoder, reduction="group", slices=depth)
    small(encoder, depth_stride=1)(image(1, 1, depth, 32, 32))


@pytest.mark.parametrize("encoder", ENCODERS)
def test_three_slices_without_depth_preservation(encoder: str) -> None:
    """Table VII: the same network, whose deep layers see one slice, so that no gradient reaches their outer taps."""
    plain, deep = small(encoder, slices=3), small(encoder)
    assert {n: t.shape for n, t in plain.state_dict().items()} == {n: t.shape for n, t in deep.state_dict().items()}
    depths = [level.shape[2] for level in plain.features(image(1, 1, 3, 64, 64)).values()]
    assert depths == [3, 3, 2, 1, 1]
    kept = small(encoder, depth_stride=1)
    for network, learns in ((plain, False), (kept, True)):
        targets = [Target(torch.tensor([[10.0, 12, 40, 50]]), torch.tensor([1]))]
        sum(network(image(1, 1, 3, 64, 64), targets).values()).backward()
        deepest = [m for m in network.backbone.layer4.modules() if getattr(m, "kernel_size", ())[:1] == (3,)]
        assert deepest
        for convolution in deepest:
            gradient = convolution.weight.grad.abs().amax((0, 1, 3, 4))
            assert gradient[1] > 0
            assert bool((gradient[[0, 2]] > 0).all()) == learns
    assert [gtm.depth for gtm in small(encoder, reduction="group", slices=3).gtm] == (
        [2, 1, 1, 1] if encoder == "p3d" else [3, 2, 1, 1]
    )
    with pytest.raises(OptionError, match=r"9 slices.*depth_stride=2; allowed: 1 to 4 \(slices=3 was asked for\)"):
        plain(image(1, 1, 9, 64, 64))


@pytest.mark.parametrize("encoder", ENCODERS)
def test_preserved_depth_stays(encoder: str) -> None:
    kept, _ = svd_hub.preserve_depth(small(encoder))
    assert {level.shape[2] for level in kept.features(image(1, 1, 5, 64, 64)).values()} == {5}
    kept(image(1, 1, 5, 64, 64))


def test_any_height_and_width_is_padded_with_zeros() -> None:
    model = small()
    x = image(1, 1, 9, 70, 41)
    padded = torch.zeros(1, 1, 9, 96, 64)
    padded[..., :70, :41] = x
    for a, b in zip(model.pyramid(x), model.pyramid(padded), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(model.pyramid(padded)[0], model.pyramid(F.pad(padded, (0, 0)))[0])


# ---- what comes out --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", ENCODERS)
def test_detections_are_of_each_image_and_inside_it(encoder: str) -> None:
    model = small(encoder).double()
    with torch.no_grad():
        model.bbox_head.fc_reg.weight.mul_(300)
    x = image(3, 1, 9, 70, 90).double()
    sizes = [(70, 90), (33, 90), (70, 20)]
    found = model(x, sizes=sizes)
    assert [type(row) for row in found] == [Detections] * 3
    for (boxes, scores, labels), (height, width) in zip(found, sizes, strict=True):
        n = len(scores)
        assert boxes.shape == (n, 4)
        assert labels.shape == (n,)
        assert 20 < n <= 100
        assert set(labels.tolist()) <= {0, 1}
        assert labels.dtype == torch.int64
        assert (scores.diff() <= 0).all()
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 0] < boxes[:, 2]).all()
        assert (boxes[:, 1] < boxes[:, 3]).all()
        assert (boxes[:, 2] <= width).all()
        assert (boxes[:, 3] <= height).all()
        assert len(torch.unique(boxes, dim=0)) > n / 2
    alone = [model(x[i : i + 1], sizes=sizes[i : i + 1])[0] for i in range(3)]
    for together, single in zip(found, alone, strict=True):
        for a, b in zip(together, single, strict=True):
            torch.testing.assert_close(a, b)
    again = model(x, sizes=torch.tensor(sizes))
    assert all(torch.equal(a, b) for one, two in zip(found, again, strict=True) for a, b in zip(one, two, strict=True))


def test_options_of_the_detections() -> None:
    x = image(1, 1, 9, 64, 64)
    everything = small()(x)[0]
    assert len(everything.scores) == 100
    assert len(small(max_detections=7)(x)[0].scores) == 7
    bound = everything.scores[50].item()
    assert (small(score_threshold=bound)(x)[0].scores > bound).all()
    assert len(small(score_threshold=1.0)(x)[0].boxes) == 0
    assert len(small(nms_threshold=0.05)(x)[0].scores) < 100


def test_losses_of_a_batch() -> None:
    model = small().train()
    x, targets = squares(9)
    state = torch.get_rng_state()
    losses = model(x, targets, generator=generator(0))
    assert torch.equal(torch.get_rng_state(), state), "the generator given is the only one"
    assert list(losses) == ["loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox"]
    assert all(loss.shape == () and loss.isfinite() and loss > 0 for loss in losses.values())
    assert losses["loss_rpn_cls"].item() == pytest.approx(0.69, abs=0.05)  # the logits start near zero
    again = model(x, targets, generator=generator(0))
    assert all(torch.equal(losses[name], again[name]) for name in losses)
    assert losses["loss_rpn_cls"] != model(x, targets, generator=generator(1))["loss_rpn_cls"]
    moved = [Target(t.boxes.double(), t.labels.int()) for t in targets]
    close = model(x, moved, generator=generator(0))
    assert all(close[name].item() == pytest.approx(losses[name].item(), rel=1e-5) for name in losses)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("form", [{}, {"depth_stride": 1, "reduction": "group"}, {"convention": "mmdet1"}], ids=str)
def test_every_parameter_gets_a_gradient(encoder: str, form: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpn, "RPN_SAMPLING", Sampling(10**6, 0.5))  # the few anchors of the deepest level too
    model = small(encoder, **form).train()
    targets = [Target(torch.tensor([[10.0, 10, 40, 50], [20, 30, 170, 180]]), torch.tensor([0, 1]))]
    sum(model(image(1, 1, 9, 192, 192), targets, generator=generator(0)).values()).backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not silent
    gradient = model.get_parameter("bbox_head.fc_reg.weight").grad
    assert gradient is not None
    assert gradient[:8].any()
    assert not gradient[8:].any()  # the background's, where it has any


def test_images_without_boxes_train_and_boxes_that_are_none_do_not() -> None:
    model = small().train()
    x = image(2, 1, 9, 64, 64)
    none = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    losses = model(x, [none, none])
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert losses["loss_rpn_bbox"].item() == losses["loss_bbox"].item() == 0
    assert losses["loss_rpn_cls"] > 0.1
    assert losses["loss_cls"] > 0.1
    with pytest.raises(OptionError, match=r"target 0 has a box \[3.0, 3.0, 3.0, 9.0\]"):
        model(x, [Target(torch.tensor([[3.0, 3, 3, 9]]), torch.tensor([0])), none])
    thin = Target(torch.tensor([[3.0, 3, 3.01, 60], [0, 0, 64, 64], [-9, -9, 80, 80]]), torch.tensor([0, 1, 1]))
    assert all(loss.isfinite() for loss in model(x, [thin, none]).values())


def test_a_detector_of_nothing_finite_finds_nothing() -> None:
    model = small()
    with torch.no_grad():
        model.rpn_head.rpn_reg.bias.fill_(float("nan"))
    (found,) = model(image(1, 1, 9, 64, 64))
    assert [tuple(x.shape) for x in found] == [(0, 4), (0,), (0,)]


def test_without_classes_it_is_its_backbone() -> None:
    x = image(2, 1, 9, 64, 64)
    model = small()
    bare, pyramid = small(num_classes=0), small(features_only=True)
    names = {n for n in model.state_dict() if n.startswith("backbone.")}
    assert set(bare.state_dict()) == set(pyramid.state_dict()) == names
    for other in (bare, pyramid):
        other.load_state_dict({n: t for n, t in model.state_dict().items() if n in names})
    levels = pyramid(x)
    assert [(info.name, info.channels) for info in model.feature_info] == [(n, x.shape[1]) for n, x in levels.items()]
    torch.testing.assert_close(bare(x), levels["layer4"].mean((2, 3, 4)))


@pytest.mark.parametrize(("convention", "offset"), [("mmdet2", 0.5), ("mmdet1", 0.0)])
def test_how_each_convention_pools(convention: str, offset: float) -> None:
    """On a ramp the mean over a box is the ramp at its centre: pixel centres are at .5, or at whole numbers."""
    model = small(convention=convention)
    model.bbox_head = nn.Identity()  # type: ignore[assignment]
    ramp = [torch.arange(64.0 // n).expand(1, 32, 64 // n, 64 // n) for n in (1, 2, 4, 8, 16)]
    boxes = torch.tensor([[40.0, 40, 96, 96], [20, 20, 180, 180], [4, 8, 250, 252]])  # of P2, P3, P4
    pooled = model.classify(ramp, boxes, torch.zeros(3, dtype=torch.int64))
    expected = [68 / 4 - offset, 100 / 8 - offset, 127 / 16 - offset]
    assert pooled.mean((1, 2, 3)).tolist() == pytest.approx(expected, abs=0.02)  # type: ignore[attr-defined]
    aligned, samples = (True, 0) if convention == "mmdet2" else (False, 2)
    stated = roi_align(ramp[1], boxes[1:2], torch.tensor([0]), (7, 7), 1 / 8, samples, aligned)
    torch.testing.assert_close(pooled[1:2], stated)


BAD: tuple[tuple[dict[str, Any], str], ...] = (
    ({"reduction": "mean"}, r"reduction='mean' .*'centre', 'group'"),
    ({"convention": "mmdet3"}, r"convention='mmdet3' .*'mmdet2', 'mmdet1'"),
    ({"slices": 0}, r"slices=0 .*1 or more"),
    ({"channels": 0}, r"channels=0 .*1 or more"),
    ({"head_channels": 1.5}, r"head_channels=1.5 .*1 or more"),
    ({"max_detections": 0}, r"max_detections=0 .*1 or more"),
    ({"score_threshold": -0.1}, r"score_threshold=-0.1 .*0 to 1"),
    ({"nms_threshold": "0.5"}, r"nms_threshold='0.5' .*0 to 1"),
    ({"anchor_scale": 0}, r"anchor_scale=0 .*above 0"),
    ({"depth_stride": 3}, r"depth_stride.*=3 .*1, 2"),
    ({"num_classes": -1}, r"num_classes=-1.*>= 0"),
    ({"encoder": "resnet"}, r"encoder='resnet' .*allowed: .*resnet3d"),
)


@pytest.mark.parametrize(("options", "message"), BAD, ids=str)
def test_bad_options_say_what_is_allowed(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        meta(**options)


# ---- keeping, exporting ----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # by the shape checks of torch's own group norm
def test_a_trace_takes_other_sizes_and_batches() -> None:
    class Flat(nn.Module):
        def __init__(self, model: FasterRCNN3D) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Any:
            return self.model.detect(x)

    model = small()
    with torch.no_grad():
        traced = torch.jit.trace(Flat(model), image(1, 1, 9, 64, 64), check_trace=False)
        for shape in ((1, 1, 9, 64, 64), (2, 1, 9, 70, 96)):
            x = image(*shape)
            for a, b in zip(traced(x), model.detect(x), strict=True):
                torch.testing.assert_close(a, b)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_copies_and_sixteen_bits(encoder: str, dtype: torch.dtype) -> None:
    model = small(encoder)
    x = image(1, 1, 9, 64, 64)
    for a, b in zip(copy.deepcopy(model)(x)[0], model(x)[0], strict=True):
        assert torch.equal(a, b)
    half = copy.deepcopy(model).to(dtype)
    (found,) = half(x.to(dtype))
    assert (found.boxes.dtype, found.scores.dtype) == (torch.float32, torch.float32)
    assert len(found.scores) == 100
    targets = [Target(torch.tensor([[3.0, 4, 30, 40]]), torch.tensor([1]))]
    exact = model(x, targets, generator=generator(0))
    with torch.autocast("cpu", dtype=dtype):
        mixed = model(x, targets, generator=generator(0))
    sum(mixed.values()).backward()
    own = half(x.to(dtype), [Target(targets[0].boxes.to(dtype), targets[0].labels)], generator=generator(0))
    sum(own.values()).backward()
    for name, loss in exact.items():
        for other in (mixed[name], own[name]):
            assert other.dtype == torch.float32
            assert other.item() == pytest.approx(loss.item(), rel=0.1, abs=0.02)
    gradients = [p.grad for net in (model, half) for p in net.parameters()]
    assert all(g is not None and g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_batches_of_nothing_and_images_of_a_pixel(encoder: str) -> None:
    model = small(encoder)
    assert model(image(0, 1, 9, 64, 64)) == []
    (found,) = model(image(1, 1, 9, 1, 1))
    assert (found.boxes >= 0).all()
    assert (found.boxes <= 1).all()
    for shape in ((1, 1, 9, 0, 64), (1, 1, 9, 64, 0), (1, 1, 0, 64, 64)):
        with pytest.raises(OptionError, match=r"allowed: one slice and pixel or more|allowed: 9"):
            model(torch.zeros(shape))


def test_a_loaded_backbone_becomes_a_detector_that_is_saved_and_gets_another_head(tmp_path: Path) -> None:
    backbone = svd_hub.load("resnet3d18w16_tinyimagenet")
    names = ("bright", "dark")
    model = svd_hub.task_model(backbone, "faster_rcnn3d", num_classes=2, classes=names, channels=32, head_channels=64)
    assert model.task == model.entry.task == "detection"
    assert torch.equal(model.get_parameter("backbone.layer4.1.conv2.weight"), backbone.layer4[1].conv2.weight)
    assert isinstance(model.backbone.bn1, type(make_norm("batch", 16)))
    x = image(1, 1, 9, 64, 64)
    assert model.features(x)["layer4"].shape[2] == 1
    path = svd_hub.save(model, tmp_path / "detector.safetensors")
    again = svd_hub.load(path)
    assert again.entry.classes == names
    exact = x.double()  # where a tensor lies in memory decides how a kernel rounds
    for a, b in zip(again.double()(exact)[0], copy.deepcopy(model).double()(exact)[0], strict=True):
        torch.testing.assert_close(a, b)
    other, report = svd_hub.load(path, num_classes=5, return_report=True)
    new = {"bbox_head.fc_cls.weight", "bbox_head.fc_cls.bias", "bbox_head.fc_reg.weight", "bbox_head.fc_reg.bias"}
    assert set(report.missing) == new
    assert other.bbox_head.fc_cls.weight.shape == (6, 64)
    assert other.bbox_head.fc_reg.weight.shape == (20, 64)
    assert torch.equal(other.bbox_head.shared_fcs[0].weight, model.bbox_head.shared_fcs[0].weight)
    kept = svd_hub.load(path, depth_stride=1)
    assert kept.features(image(1, 1, 3, 64, 64))["layer4"].shape[2] == 3
    bare, report = svd_hub.load(path, num_classes=0, return_report=True)
    assert {change.name.split(".")[0] for change in report.adapted} == {"neck", "rpn_head", "bbox_head"}
    assert bare(x).shape == (1, 128)
