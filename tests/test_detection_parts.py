"""Laws of the detector's neck, anchors, matching, sampling, encoder and inputs, against statements of their own."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers_detection import RULES, generator, matches_of, random_boxes
from torch import Tensor

from svd_hub.errors import OptionError
from svd_hub.models import default_options
from svd_hub.models.detection import Target, settings, stack_images
from svd_hub.models.detection.assign import BACKGROUND, NEITHER, choose, match, sample
from svd_hub.models.detection.box_head import BoxHead
from svd_hub.models.detection.encoder import FORMS, choose_levels, full_options, level_depths, make_encoder
from svd_hub.models.detection.fpn import FPN
from svd_hub.models.detection.results import checked_sizes, checked_targets
from svd_hub.models.detection.rpn import RPNHead, level_anchors
from svd_hub.models.detection.settings import Matching, Proposing, Sampling
from svd_hub.models.layers import Feature

# ---- numbers ---------------------------------------------------------------------------------------------------------


def test_the_numbers_are_those_of_the_configurations() -> None:
    """configs/deeplesion of urmagicsmine/MP3D@08e5ace; for mmdet 1 Deeplesion_configs of urmagicsmine/CSPR@390a413."""
    assert (settings.STRIDES, settings.CHANNELS, settings.PAD_DIVISOR) == ((4, 8, 16, 32, 64), 256, 32)
    assert (settings.ANCHOR_SCALE, settings.ANCHOR_RATIOS) == (4.0, (0.5, 1.0, 2.0))
    assert Matching(positive=0.7, negative=0.3, minimum=0.3, low_quality=True) == settings.RPN_MATCHING
    assert Sampling(number=256, positive_share=0.5) == settings.RPN_SAMPLING
    assert (settings.RPN_BORDER, settings.RPN_BETA, settings.BOX_BETA) == (0, 1 / 9, 1.0)
    assert (settings.RPN_STDS, settings.BOX_STDS) == ((1.0,) * 4, (0.1, 0.1, 0.2, 0.2))
    assert Sampling(number=512, positive_share=0.25) == settings.BOX_SAMPLING
    assert Proposing(before=1000, kept=1000, iou=0.7) == settings.TEST_PROPOSING
    assert (settings.ROI_SIZE, settings.ROI_LEVELS, settings.FINEST_SIZE, settings.HEAD_CHANNELS) == (7, 4, 56.0, 1024)
    old, new = settings.CONVENTIONS["mmdet1"], settings.CONVENTIONS["mmdet2"]
    for convention, kept, low_quality in ((old, 2000, True), (new, 1000, False)):
        assert convention.train_proposing == Proposing(before=2000, kept=kept, iou=0.7)
        assert convention.box_matching == Matching(positive=0.5, negative=0.5, minimum=0.5, low_quality=low_quality)
    assert (old.centred, old.roi_aligned, old.roi_samples, old.background_deltas) == (True, False, 2, True)
    assert (new.centred, new.roi_aligned, new.roi_samples, new.background_deltas) == (False, True, 0, False)
    defaults = default_options("faster_rcnn3d")
    told = {name: defaults[name] for name in ("score_threshold", "nms_threshold", "max_detections", "num_classes")}
    assert told == {"score_threshold": 0.0, "nms_threshold": 0.5, "max_detections": 100, "num_classes": 1}


# ---- neck ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [((16, 24), (8, 12), (4, 6), (2, 3)), ((13, 9), (7, 5), (4, 3), (2, 1))], ids=str)
def test_the_neck_equals_its_statement(sizes: tuple[tuple[int, int], ...]) -> None:
    torch.manual_seed(0)
    neck = FPN([3, 5, 7, 4], 6).double()
    for parameter in neck.parameters():
        torch.nn.init.normal_(parameter)
    maps = [torch.randn(2, c, *size, dtype=torch.float64) for c, size in zip((3, 5, 7, 4), sizes, strict=True)]
    p = neck.state_dict()
    down: Tensor | None = None
    stated = []
    for i in (3, 2, 1, 0):
        kernel = p[f"lateral_convs.{i}.weight"][:, :, 0, 0]
        x = torch.einsum("oc,nchw->nohw", kernel, maps[i]) + p[f"lateral_convs.{i}.bias"][:, None, None]
        if down is not None:  # each cell takes the one it lies in
            rows = [y * down.shape[2] // x.shape[2] for y in range(x.shape[2])]
            columns = [c * down.shape[3] // x.shape[3] for c in range(x.shape[3])]
            x = x + down[:, :, rows][:, :, :, columns]
        down = x
        stated.insert(0, F.conv2d(F.pad(x, (1, 1, 1, 1)), p[f"fpn_convs.{i}.weight"], p[f"fpn_convs.{i}.bias"]))
    stated.append(stated[-1][:, :, ::2, ::2])
    got = neck(maps)
    assert len(got) == 5
    for a, b in zip(got, stated, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_initialisation_of_the_heads() -> None:
    torch.manual_seed(0)
    neck, first, second = FPN([64], 64), RPNHead(64), BoxHead(16, 256, 40, background_deltas=False)
    spreads = {
        neck.get_parameter("lateral_convs.0.weight"): math.sqrt(2 / 128),
        neck.get_parameter("fpn_convs.0.weight"): math.sqrt(2 / (128 * 9)),
        first.get_parameter("rpn_conv.weight"): 0.01,
        second.get_parameter("shared_fcs.0.weight"): math.sqrt(2 / (16 * 49 + 256)),
        second.get_parameter("fc_cls.weight"): 0.01,
        second.get_parameter("fc_reg.weight"): 0.001,
    }
    for weight, spread in spreads.items():
        assert weight.std().item() == pytest.approx(spread, rel=0.05)
    for module in (neck, first, second):
        assert all(not p.any() for n, p in module.named_parameters() if n.endswith("bias"))


# ---- anchors ---------------------------------------------------------------------------------------------------------


def test_anchors_of_mmdet_2_lie_around_the_corner_of_their_cell() -> None:
    maps = [torch.zeros(1, 1, 2, 3) for _ in range(5)]
    anchors = level_anchors(maps, 4.0, centred=False)
    for level, stride in enumerate((4, 8, 16, 32, 64)):
        assert anchors[level].shape == (2 * 3 * 3, 4)
        for index, ratio in enumerate((0.5, 1, 2)):  # the last cell: row 1, column 2
            x0, y0, x1, y1 = anchors[level][15 + index].tolist()
            assert ((x0 + x1) / 2, (y0 + y1) / 2) == pytest.approx((2 * stride, stride))
            assert (y1 - y0) / (x1 - x0) == pytest.approx(ratio)
            assert (y1 - y0) * (x1 - x0) == pytest.approx((4 * stride) ** 2)


@pytest.mark.parametrize("scale", [4.0, 8.0])
def test_anchors_of_mmdet_1_are_the_old_formula_with_one_pixel_more(scale: float) -> None:
    maps = [torch.zeros(1, 1, 2, 3) for _ in range(5)]
    anchors = level_anchors(maps, scale, centred=True)
    for level, stride in enumerate((4, 8, 16, 32, 64)):
        centre = 0.5 * (stride - 1)
        for index, ratio in enumerate((0.5, 1, 2)):
            w, h = stride * scale / math.sqrt(ratio), stride * scale * math.sqrt(ratio)
            old = [centre - (w - 1) / 2, centre - (h - 1) / 2, centre + (w - 1) / 2, centre + (h - 1) / 2]
            x0, y0, x1, y1 = (round(value) for value in old)
            for cell, (row, column) in {0: (0, 0), 5: (1, 2)}.items():
                dx, dy = column * stride, row * stride
                expected = [x0 + dx, y0 + dy, x1 + 1 + dx, y1 + 1 + dy]
                assert anchors[level][3 * cell + index].tolist() == expected


# ---- matching and sampling -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(40))
def test_matching_equals_its_statement(rule: str, seed: int) -> None:
    truth = random_boxes(seed % 5, seed)
    boxes = random_boxes(60, 100 + seed)
    if len(truth):  # hits of every quality, ties, an exact one
        near = truth.repeat(8, 1) + torch.randn(8 * len(truth), 4, generator=generator(seed), dtype=torch.float64) * 2
        boxes = torch.cat([boxes, near, near, truth, boxes[:3] * 0])
    got = match(boxes, truth, RULES[rule]).tolist()
    assert got == matches_of(boxes.tolist(), truth.tolist(), RULES[rule])
    if len(truth) and rule == "rpn":
        assert {BACKGROUND, NEITHER, *range(len(truth))} == set(got)


def test_low_quality_matches_go_to_the_last_object_and_only_above_the_minimum() -> None:
    rule = settings.RPN_MATCHING
    both = torch.tensor([[0.0, 0, 10, 10]])  # IoU 0.5 with each: the best of both
    truth = torch.tensor([[0.0, 0, 10, 20], [0.0, 0, 20, 10]])
    assert match(both, truth, rule).tolist() == [1]
    assert match(both, truth.flip(0), rule).tolist() == [1]
    weak = torch.tensor([[0.0, 0, 10, 40]])  # IoU 0.25
    assert match(both, weak, rule).tolist() == [BACKGROUND]
    stolen = torch.tensor([[0.0, 0, 10, 11], [0.0, 0, 10, 14]])  # 0.909 and 0.714: the better one loses it
    assert match(both, stolen, rule).tolist() == [1]
    assert match(both, stolen, RULES["mmdet2"]).tolist() == [0]


def test_matching_at_the_bounds() -> None:
    truth = torch.tensor([[0.0, 0, 10, 10]])
    boxes = torch.tensor([[0.0, 0, 10, height] for height in (10, 7, 3, 2.9, 5, 4.9)])  # IoU 1, 0.7, 0.3, ...
    assert match(boxes, truth, RULES["rpn"]).tolist() == [0, 0, NEITHER, BACKGROUND, NEITHER, NEITHER]
    assert match(boxes, truth, RULES["mmdet2"]).tolist() == [0, 0, BACKGROUND, BACKGROUND, 0, BACKGROUND]
    assert match(boxes[2:4], truth, RULES["rpn"]).tolist() == [0, BACKGROUND]  # the best there is
    assert match(boxes[3:4], truth, RULES["rpn"]).tolist() == [BACKGROUND]


def test_matching_without_objects_or_boxes_and_with_degenerate_boxes() -> None:
    none = torch.zeros(0, 4)
    boxes = torch.tensor([[0.0, 0, 10, 10], [5, 5, 5, 5], [9, 9, 3, 3]])
    for rule in RULES.values():
        assert match(boxes, none, rule).tolist() == [BACKGROUND] * 3
        assert match(none, boxes[:1], rule).shape == (0,)
        assert match(boxes, boxes[:1], rule).tolist() == [0, BACKGROUND, BACKGROUND]


def test_samples_are_few_enough_unbiased_and_fixed_by_the_generator() -> None:
    matched = torch.full((1000,), BACKGROUND)
    matched[100:400] = 3
    matched[400:500] = NEITHER
    rule = Sampling(number=256, positive_share=0.5)
    positive, negative = sample(matched, rule, generator(1))
    assert (len(positive), len(negative)) == (128, 128)
    assert set(matched[positive].tolist()) == {3}
    assert set(matched[negative].tolist()) == {BACKGROUND}
    assert positive.tolist() == sorted(set(positive.tolist()))
    again, other = sample(matched, rule, generator(1)), sample(matched, rule, generator(2))
    assert torch.equal(again[0], positive)
    assert torch.equal(again[1], negative)
    assert not torch.equal(other[0], positive)
    torch.manual_seed(4)
    once = sample(matched, rule, None)[0]
    torch.manual_seed(4)
    assert torch.equal(sample(matched, rule, None)[0], once)
    drawn = torch.stack([choose(torch.arange(10), 3, generator(seed)) for seed in range(2000)]).flatten().bincount()
    assert (drawn - 600).abs().max() < 100  # 4.9 standard deviations


def test_few_objects_leave_room_for_more_background() -> None:
    matched = torch.full((1000,), BACKGROUND)
    matched[7] = 0
    positive, negative = sample(matched, Sampling(512, 0.25), generator(0))
    assert positive.tolist() == [7]
    assert len(negative) == 511
    positive, negative = sample(matched[:20], Sampling(512, 0.25), generator(0))
    assert (len(positive), len(negative)) == (1, 19)


# ---- encoder ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoder", "depth_stride", "slices", "expected"),
    [
        ("p3d", 1, 3, [3, 3, 3, 3]),
        ("p3d", 1, 9, [9, 9, 9, 9]),
        ("p3d", 2, 9, [5, 3, 1, 1]),
        ("p3d", 2, 12, [6, 3, 1, 1]),
        ("resnet3d", 1, 9, [9, 9, 9, 9]),
        ("resnet3d", 2, 9, [9, 5, 3, 1]),
        ("resnet3d", 2, 11, [11, 6, 3, 1]),
    ],
)
def test_depths_that_reach_the_neck(encoder: str, depth_stride: int, slices: int, expected: list[int]) -> None:
    small: dict[str, Any] = {"variant": "18ba", "width": 4} if encoder == "p3d" else {"width": 4, "norm": "group"}
    options = full_options(encoder, small, depth_stride)
    backbone = make_encoder(encoder, options, in_channels=1, depth_stride=depth_stride)
    levels = choose_levels(backbone.feature_info)
    assert [level.name for level in levels] == ["layer1", "layer2", "layer3", "layer4"]
    assert level_depths(backbone, levels, slices, depth_stride) == expected
    maps = backbone.features(torch.zeros(1, 1, slices, 64, 64))
    for level, depth in zip(levels, expected, strict=True):
        x = maps[level.name]
        pool = getattr(backbone, f"zpool{level.name[-1]}", None)
        assert (x if pool is None else pool(x)).shape[2:] == (depth, 64 // level.stride[1], 64 // level.stride[2])


def test_what_the_detector_decides_of_its_encoder() -> None:
    assert full_options("p3d", None, 2) == {"form": "p3d", "depth_stride": 2}
    assert full_options("p3d", {"variant": "18ba"}, 1) == {"form": "mp3d", "variant": "18ba", "depth_stride": 1}
    assert full_options("p3d", {"form": "mp3d"}, 2)["form"] == "mp3d"  # proposed, not decided
    both = [full_options("resnet3d", {}, n) for n in (1, 2)]
    for n in (1, 2):  # a network saved in the one form can be asked for in the other
        assert full_options("resnet3d", both[0], n) == full_options("resnet3d", both[1], n) == both[n - 1]
        lists = {"strides": [list(s) for s in FORMS["resnet3d"][n]["strides"]]}  # as JSON has them
        assert full_options("resnet3d", lists, 1) == both[0]


@pytest.mark.parametrize(
    ("encoder", "options", "depth_stride", "message"),
    [
        (
            "resnet3d",
            {"strides": (1, 2, 1, 2)},
            1,
            r"strides=\(1, 2, 1, 2\).*allowed: .*\(2, 2, 2\).*Next: leave it out",
        ),
        ("resnet3d", {"stem_stride": 1}, 1, r"stem_stride=1 .*allowed: \(1, 2, 2\)"),
        ("p3d", {"depth_stride": 3}, 1, r"depth_stride=3 .*1 or 2"),
        ("p3d", {"num_classes": 3}, 1, r"num_classes.*the network sets them"),
        ("p3d", None, 3, r"depth_stride of a detector on p3d=3.*1, 2"),
        ("densenet3d", None, 2, r"densenet3d=2.*allowed: 1"),
        ("unet3d", None, 1, r"encoder='unet3d'.*allowed: .*resnet3d, p3d"),
    ],
)
def test_bad_encoders_say_what_is_allowed(encoder: str, options: Any, depth_stride: int, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        full_options(encoder, options, depth_stride)


def test_levels_need_strides_4_to_32() -> None:
    info = tuple(Feature(f"level{n}", 8, (1, s, s)) for n, s in enumerate((1, 2, 4, 4, 8, 16)))
    with pytest.raises(OptionError, match=r"level5 \(16, 16\).*4, 8, 16 and 32"):
        choose_levels(info)
    info = (*info, Feature("level6", 8, (1, 32, 32)))
    assert [level.name for level in choose_levels(info)] == ["level3", "level4", "level5", "level6"]


# ---- what goes in ----------------------------------------------------------------------------------------------------


def test_images_of_different_sizes_make_a_batch() -> None:
    images = [torch.full((1, 3, 5, 9), 1.0), torch.full((1, 3, 7, 4), 2.0)]
    batch, sizes = stack_images(images)
    assert batch.shape == (2, 1, 3, 7, 9)
    assert sizes.tolist() == [[5, 9], [7, 4]]
    for image, x in enumerate(images):
        height, width = x.shape[2:]
        assert torch.equal(batch[image, :, :, :height, :width], x)
        assert batch[image].sum() == x.sum()
    for bad in ([], [images[0], torch.zeros(1, 9, 5, 9)], [images[0], torch.zeros(3, 5, 9)]):
        with pytest.raises(OptionError, match=r"allowed: \(C, D, H, W\) each"):
            stack_images(bad)


def test_sizes_are_those_of_the_images() -> None:
    images = torch.zeros(2, 1, 3, 20, 30)
    assert checked_sizes(None, images).tolist() == [[20, 30], [20, 30]]
    assert checked_sizes([(20, 7), (1, 30)], images).tolist() == [[20, 7], [1, 30]]
    assert checked_sizes([torch.tensor([20, 7]), torch.Size([1, 30])], images).tolist() == [[20, 7], [1, 30]]
    ragged, flat = [(20, 30), (20,)], [20, 30]
    for bad in (
        [(20, 30)],
        [(20, 31), (1, 1)],
        [(0, 5), (1, 1)],
        torch.ones(2, 2),
        ragged,
        flat,
        [(9.5, 9), (9, 9)],
        [],
    ):
        with pytest.raises(OptionError, match=r"allowed: \(height, width\) of each of the 2"):
            checked_sizes(bad, images)


GOOD = torch.tensor([[1.0, 2, 5, 9]])


@pytest.mark.parametrize(
    ("boxes", "labels", "message"),
    [
        (
            torch.tensor([[1.0, 2, 5, 9], [4, 4, 4, 8]]),
            torch.tensor([0, 0]),
            r"target 1 has a box \[4.0, 4.0, 4.0, 8.0\]",
        ),
        (torch.tensor([[5.0, 2, 1, 9]]), torch.tensor([0]), "x0 < x1"),
        (torch.tensor([[1.0, 2, float("nan"), 9]]), torch.tensor([0]), "finite"),
        (torch.tensor([[1.0, 2, float("inf"), 9]]), torch.tensor([0]), "finite"),
        (GOOD, torch.tensor([2]), r"label 2; allowed: .*labels 0 to 1, the background is none.*Next: .*from 0"),
        (GOOD, torch.tensor([-1]), "label -1"),
        (GOOD, torch.tensor([0.0]), r"\(G,\) integers"),
        (GOOD, torch.tensor([0, 1]), r"boxes \(1, 4\) and labels \(2,\)"),
        (GOOD[0], torch.tensor([0]), r"boxes \(4,\)"),
    ],
)
def test_true_boxes_that_are_none_are_refused_by_number(boxes: Tensor, labels: Tensor, message: str) -> None:
    good = Target(GOOD, torch.tensor([1]))
    with pytest.raises(OptionError, match=message):
        checked_targets([good, Target(boxes, labels)], 2, torch.zeros(2, 1, 3, 20, 30))
    with pytest.raises(OptionError, match="1 targets for 2 images"):
        checked_targets([good], 2, torch.zeros(2, 1, 3, 20, 30))


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ({"boxes": GOOD, "labels": torch.tensor([0])}, "a dict of str, str"),  # torchvision's
        (([[1.0, 2, 5, 9]], [0]), "a tuple of list, list"),
        ((GOOD, torch.tensor([0]), torch.tensor([1])), "a tuple of Tensor, Tensor, Tensor"),
        (GOOD, "a Tensor"),
    ],
)
def test_a_target_of_another_form_is_told_how_it_should_be(target: Any, words: str) -> None:
    with pytest.raises(OptionError, match=rf"target 0 is {words}; allowed: .*Next: svd_hub.models.detection.Target\("):
        checked_targets([target], 2, torch.zeros(1, 1, 3, 20, 30))
    pair = Target(GOOD, torch.tensor([0]))
    (taken,) = checked_targets([(GOOD, torch.tensor([0]))], 2, torch.zeros(1, 1, 3, 20, 30))  # a plain pair will do
    assert all(torch.equal(a, b) for a, b in zip(taken, pair, strict=True))
    with pytest.raises(OptionError, match=r"0 targets for 0 images .*one or more"):
        checked_targets([], 2, torch.zeros(0, 1, 3, 20, 30))
