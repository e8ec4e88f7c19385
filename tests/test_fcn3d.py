"""Laws of FCN3D: an independent statement of its head, counts, names, sizes, encoders, errors, a fit."""

from __future__ import annotations

import csv
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers_segmentation import State, close, convolve, fit, image, randomised, resnet_levels, three_balls
from plain_networks import norm
from real_data import need
from torch import Tensor

import svd_hub
from svd_hub.errors import OptionError
from svd_hub.metrics import dice
from svd_hub.models import Feature, build, default_options, option_names, weight_options
from svd_hub.models.fcn3d import FCN3D
from svd_hub.skeleton import shapes, skeleton

torch.set_num_threads(1)
NARROW: dict[str, Any] = {"depth": 10, "width": 4}
LEVELS = ("stem", "layer1", "layer2", "layer3", "layer4")
STRIDES = (1, 1, 2, 2, 4)


def make(**options: Any) -> Any:
    """A narrow network in evaluation mode, in double precision."""
    return randomised(FCN3D(**{"encoder_options": NARROW, **options}))


def headed(state: State, shallow: Tensor, middle: Tensor, deep: Tensor, mode: str = "nearest") -> Tensor:
    """What the final convolution reads."""

    def grown(x: Tensor, like: Tensor) -> Tensor:
        aligned = {} if mode == "nearest" else {"align_corners": False}
        return F.interpolate(x, size=like.shape[2:], mode=mode, **aligned)

    x = convolve(state, "decode_head.conv1", torch.cat([middle, grown(deep, middle)], 1))
    x = convolve(state, "decode_head.conv2", torch.cat([shallow, grown(x, shallow)], 1))
    x = F.conv3d(x, state["decode_head.seg_head.0.weight"], padding=1)
    return F.relu(norm(state, "decode_head.seg_head.1", x))


def classified(state: State, x: Tensor) -> Tensor:
    return F.conv3d(x, state["decode_head.seg_head.3.weight"], state["decode_head.seg_head.3.bias"])


# ---- what it computes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["nearest", "trilinear"])
@pytest.mark.parametrize("shape", [(2, 1, 8, 12, 16), (1, 3, 9, 11, 6)], ids=str)
def test_map_and_pyramid_agree_with_the_statement(shape: tuple[int, ...], mode: str) -> None:
    model = make(in_channels=shape[1], num_classes=3, upsampling=mode)
    state, x = model.state_dict(), image(*shape)
    levels = resnet_levels(state, x, pool=False, strides=(1, 2, 1, 2))
    expected = classified(state, headed(state, levels[0], levels[2], levels[4], mode))
    assert expected.shape == (shape[0], 3, *shape[2:])
    close(model(x), expected)
    got = model.features(x)
    assert tuple(got) == LEVELS
    for name, want in zip(LEVELS, levels, strict=True):
        close(got[name], want)


def test_at_even_sizes_nearest_repeats_each_voxel_as_upstream_s_does() -> None:
    model, x = make(), image(1, 1, 8, 12, 16)
    maps = model.features(x)
    twice = maps["layer4"]
    for axis in (2, 3, 4):
        twice = twice.repeat_interleave(2, axis)
    state = model.state_dict()
    middle = convolve(state, "decode_head.conv1", torch.cat([maps["layer2"], twice], 1))
    for axis in (2, 3, 4):
        middle = middle.repeat_interleave(2, axis)
    y = convolve(state, "decode_head.conv2", torch.cat([maps["stem"], middle], 1))
    y = F.relu(norm(state, "decode_head.seg_head.1", F.conv3d(y, state["decode_head.seg_head.0.weight"], padding=1)))
    close(model(x), classified(state, y))


def test_the_forms_without_a_map_share_the_values() -> None:
    whole, x = make(), image(2, 1, 8, 8, 12)
    state = whole.state_dict()

    def part(**options: Any) -> Any:
        model = make(**options)
        model.load_state_dict({name: state[name] for name in model.state_dict()}, strict=True)
        return model(x)

    levels = resnet_levels(state, x, pool=False, strides=(1, 2, 1, 2))
    close(part(num_classes=0), levels[-1].mean((2, 3, 4)))
    close(part(num_classes=0, keep_decoder=True), headed(state, levels[0], levels[2], levels[4]))
    pyramid = part(features_only=True)
    assert tuple(pyramid) == LEVELS
    close(pyramid["layer4"], levels[-1])


# ---- counts, names, sizes --------------------------------------------------------------------------------------------


def test_the_paper_s_network_has_the_paper_s_counts_and_names() -> None:
    whole = skeleton("fcn3d", {})
    numbers = dict.fromkeys(("backbone", "decode_head"), 0)
    for name, parameter in whole.named_parameters():
        numbers[name.split(".")[0]] += parameter.numel()
    assert numbers == {"backbone": 33_160_000, "decode_head": 2_394_626}
    norms = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = {f"backbone.{name}" for name in skeleton("resnet3d", {"depth": 18}).state_dict()}
    expected |= {f"decode_head.{c}.conv.weight" for c in ("conv1", "conv2")}
    expected |= {f"decode_head.{bn}.{n}" for bn in ("conv1.bn", "conv2.bn", "seg_head.1") for n in norms}
    expected |= {f"decode_head.seg_head.{n}" for n in ("0.weight", "3.weight", "3.bias")}
    assert set(whole.state_dict()) == expected
    shape = shapes(whole.state_dict())
    assert shape["decode_head.conv1.conv.weight"] == (512, 640, 1, 1, 1)
    assert shape["decode_head.conv2.conv.weight"] == (512, 576, 1, 1, 1)
    assert shape["decode_head.seg_head.0.weight"] == (128, 512, 3, 3, 3)
    assert shape["decode_head.seg_head.3.weight"] == (2, 128, 1, 1, 1)
    assert whole.feature_info == tuple(
        Feature(name, channels, (stride,) * 3)
        for name, channels, stride in zip(LEVELS, (64, 64, 128, 256, 512), STRIDES, strict=True)
    )


def test_every_parameter_is_used() -> None:
    model = make()
    model.train()(image(2, 1, 12, 12, 12)).square().sum().backward()
    unused = [n for n, p in model.named_parameters() if p.grad is None]
    assert unused == []
    weights = {n: p.grad for n, p in model.named_parameters() if n.endswith("weight") and p.grad is not None}
    assert [name for name, gradient in weights.items() if gradient.abs().max() < 1e-12] == []


def test_the_levels_of_a_nodule_of_48_voxels() -> None:
    with torch.device("meta"):
        model = build("fcn3d", {})
        maps = model.features(torch.empty(1, 1, 48, 48, 48))
        assert [m.shape[2] for m in maps.values()] == [48, 48, 24, 24, 12]
        assert model(torch.empty(2, 1, 48, 48, 48)).shape == (2, 2, 48, 48, 48)


def test_head_and_decoder_are_what_the_encoder_lacks() -> None:
    def names(**options: Any) -> set[str]:
        return set(skeleton("fcn3d", {"encoder_options": NARROW, **options}).state_dict())

    whole = names()
    for options in ({"num_classes": 0}, {"features_only": True}):
        assert whole - names(**options) == {n for n in whole if n.startswith((FCN3D.head, *FCN3D.decoder))}
    assert whole - names(num_classes=0, keep_decoder=True) == {n for n in whole if n.startswith(FCN3D.head)}
    two, five = (shapes(make(num_classes=n).state_dict()) for n in (2, 5))
    assert {n for n in two if two[n] != five[n]} == {n for n in two if n.startswith(FCN3D.head)}


OTHER_VALUES: dict[str, Any] = {
    "encoder": "segresencoder",
    "encoder_options": {"width": 32},
    "levels": ("stem", "layer1", "layer4"),
    "head_channels": 8,
    "last_channels": 8,
    "upsampling": "trilinear",
    "norm": "group",
    "keep_decoder": True,
    "features_only": True,
}


def test_weight_options_are_those_that_change_names_or_shapes() -> None:
    plain = shapes(skeleton("fcn3d", {}).state_dict())
    assert {*OTHER_VALUES, "in_channels", "num_classes"} == set(option_names("fcn3d"))
    assert all(value != default_options("fcn3d")[name] for name, value in OTHER_VALUES.items())
    changing = {n for n, v in OTHER_VALUES.items() if shapes(skeleton("fcn3d", {n: v}).state_dict()) != plain}
    assert changing - {"features_only"} == set(weight_options("fcn3d"))  # which is less, not other


ENCODERS: tuple[tuple[str, dict[str, Any], tuple[int, int, int]], ...] = (
    ("resnet3d", {"depth": 34, "width": 2}, (0, 2, 4)),
    ("resnet3d", {"depth": 50, "width": 2}, (0, 2, 4)),
    ("resnet3d", {"width": 2, "stem_stride": 2, "stem_pool": True}, (0, 2, 4)),
    ("p3d", {"variant": "18ba", "width": 4}, (0, 2, 4)),
    ("densenet3d", {"width": 4}, (0, 2, 4)),
    ("segresencoder", {"init_filters": 2}, (0, 2, 4)),
    ("unet3d_genesis", {"width": 2}, (0, 2, 3)),
)


@pytest.mark.parametrize(("encoder", "options", "chosen"), ENCODERS, ids=str)
def test_any_backbone_of_three_levels_fits(encoder: str, options: dict[str, Any], chosen: tuple[int, ...]) -> None:
    model = randomised(build("fcn3d", {"encoder": encoder, "encoder_options": options, "num_classes": 3}))
    x = image(1, 1, 17, 32, 33)
    levels = list(model.features(x).values())
    logits = classified(model.state_dict(), headed(model.state_dict(), *(levels[k] for k in chosen)))
    assert logits.shape[2:] == levels[0].shape[2:]
    close(model(x), F.interpolate(logits, size=(17, 32, 33), mode="trilinear", align_corners=False))
    assert model(x).shape == (1, 3, 17, 32, 33)


def test_levels_and_channels_may_be_chosen() -> None:
    model = make(levels=["layer2", "layer3", "layer4"], head_channels=6, last_channels=5)
    assert model.finest.name == "layer2"
    x = image(1, 1, 9, 10, 11)
    maps = model.features(x)
    logits = classified(model.state_dict(), headed(model.state_dict(), *(maps[name] for name in LEVELS[2:])))
    assert logits.shape[2:] == (5, 5, 6)
    close(model(x), F.interpolate(logits, size=(9, 10, 11), mode="trilinear", align_corners=False))
    shape = shapes(model.state_dict())
    assert shape["decode_head.conv2.conv.weight"] == (6, 8 + 6, 1, 1, 1)
    assert shape["decode_head.seg_head.0.weight"] == (5, 6, 3, 3, 3)


@pytest.mark.parametrize("mode", ["nearest", "trilinear"])
def test_a_trace_takes_other_sizes_and_gives_the_same(mode: str) -> None:
    model = make(upsampling=mode, levels=("layer2", "layer3", "layer4"))
    with pytest.warns(DeprecationWarning, match="jit"):
        traced = torch.jit.trace(model, image(1, 1, 8, 8, 8))
    for shape in ((2, 1, 8, 12, 16), (1, 1, 9, 7, 11)):
        close(traced(image(*shape)), model(image(*shape)))


def test_logits_start_with_a_variance_of_about_one() -> None:
    torch.manual_seed(0)
    final = FCN3D(encoder_options=NARROW, num_classes=40, last_channels=64).decode_head.seg_head[-1]
    assert 0.9 < float(final.weight.detach().std()) * 64**0.5 < 1.1
    assert not final.bias.any()


# ---- errors ----------------------------------------------------------------------------------------------------------

BAD: tuple[tuple[dict[str, Any], str], ...] = (
    ({"encoder": "fcn3d"}, r"encoder='fcn3d' is not allowed; allowed: resnet3d, p3d, "),
    ({"encoder_options": {"in_channels": 3}}, r"with in_channels are not allowed"),
    ({"levels": ("stem", "layer4")}, r"levels=\('stem', 'layer4'\).*three of stem, layer1"),
    ({"levels": ("layer4", "layer2", "stem")}, r"in this order"),
    ({"levels": ("stem", "stem", "layer4")}, r"levels="),
    ({"levels": "stem"}, r"levels='stem' "),
    (
        {"encoder": "segresencoder", "encoder_options": {"blocks_down": (1, 1), "init_filters": 2}},
        r"of level0, level1,",
    ),
    ({"head_channels": 0}, r"head_channels=0 .*1 or more"),
    ({"last_channels": -1}, r"last_channels=-1 .*1 or more"),
    ({"upsampling": "cubic"}, r"upsampling='cubic' .*nearest.*trilinear"),
    ({"norm": "layer"}, r"norm='layer' .*batch"),
)


@pytest.mark.parametrize(("options", "message"), BAD, ids=str)
def test_bad_options_say_what_is_allowed(options: dict[str, Any], message: str) -> None:
    given = {} if "encoder" in options or "encoder_options" in options else {"encoder_options": NARROW}
    with pytest.raises(OptionError, match=message):
        build("fcn3d", {**given, **options})


# ---- it learns -------------------------------------------------------------------------------------------------------


def test_it_learns_three_balls_by_heart() -> None:
    torch.manual_seed(0)
    model, (x, y) = FCN3D(encoder_options=NARROW, num_classes=4), three_balls((12, 16, 16))
    found = dice(fit(model, x, y, steps=80), y, 4)
    assert min(found) > 0.95, found


@pytest.mark.slow
def test_it_learns_four_nodules_by_heart() -> None:
    """Nodules of four patients, 8 to 28 mm, in cubes of 32 mm, padded with the window's low end: two minutes.

    Narrow (16 channels and a head of 32, for the paper's 64 and 512), from weights of ours: a step of the paper's width
    takes 18 s on one core, all of them 50 minutes.
    """
    nib: Any = pytest.importorskip("nibabel")
    folder = need("lidc_nodules")
    with (folder / "nodules.csv").open(newline="", encoding="utf-8") as handle:
        patients = {
            row["patient_id"]: row["name"] for row in reversed(list(csv.DictReader(handle))) if row["label"] == "1"
        }
    cube = {"spacing": (1.0, 1.0, 1.0), "size": (32, 32, 32)}
    scan = svd_hub.Preprocess(window=(-1000, 400), scale=(0, 255), mean=114.495, std=57.63, **cube)
    mask = svd_hub.Preprocess(**cube)
    images, masks = [], []
    for name in [patients[patient] for patient in sorted(patients)[:4]]:
        for kind, rule, found in (("images", scan, images), ("masks", mask, masks)):
            file: Any = nib.load(folder / kind / f"{name}.nii.gz")
            array, spacing = np.asarray(file.dataobj).transpose(2, 1, 0), file.header.get_zooms()[2::-1]
            found.append(rule(array, spacing=[float(s) for s in spacing]))
    x, y = torch.cat(images), (torch.cat(masks)[:, 0] >= 0.5).long()
    assert all(100 < int(one.sum()) < 20_000 for one in y)
    torch.manual_seed(0)
    backbone = svd_hub.load("resnet3d18w16_tinyimagenet")
    model = svd_hub.task_model(backbone, "fcn3d", num_classes=2, head_channels=32, preprocess=scan)
    maps = fit(model, x, y, steps=160, adam=0.01)
    assert dice(maps, y, 2)[1] > 0.97, "all voxels together, the paper's measure"
    alone = dice(maps, y, 2, per_case=True)[:, 1]
    assert min(alone) > 0.9, alone
