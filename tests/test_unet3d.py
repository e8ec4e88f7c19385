"""Laws of UNet3D: an independent statement of decoder and head, counts, names, sizes, encoders, errors, a fit."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers_segmentation import (
    State,
    close,
    convolve,
    fit,
    image,
    randomised,
    resnet_levels,
    three_balls,
)
from real_data import need
from torch import Tensor

import svd_hub
from svd_hub.errors import OptionError
from svd_hub.metrics import dice
from svd_hub.models import Feature, build, default_options, option_names, weight_options
from svd_hub.models.unet3d import UNet3D
from svd_hub.skeleton import shapes, skeleton

torch.set_num_threads(1)
NARROW: dict[str, Any] = {"depth": 10, "width": 4}
LEVELS = ("stem", "layer1", "layer2", "layer3", "layer4")
STRIDES = (1, 2, 4, 8, 16)


def make(**options: Any) -> Any:
    """A narrow network in evaluation mode, in double precision."""
    return randomised(UNet3D(**{"encoder_options": NARROW, **options}))


def decoded(state: State, levels: list[Tensor]) -> Tensor:
    """What the final convolution reads: up by trilinear interpolation, beside the finer level, twice 3x3x3."""
    x = levels[-1]
    for k in reversed(range(len(levels) - 1)):
        name, skip = f"neck.decoder.{k}", levels[k]
        x = F.interpolate(x, size=skip.shape[2:], mode="trilinear", align_corners=False)
        x = convolve(state, f"{name}.upsample.interp_upsample.1", x)
        x = torch.cat([skip, x], 1)
        for c in (0, 1):
            x = convolve(state, f"{name}.conv_block.convs.{c}", x)
    for c in (0, 1):
        x = convolve(state, f"decode_head.convs.{c}", x)
    return x


def classified(state: State, x: Tensor) -> Tensor:
    return F.conv3d(x, state["decode_head.conv_seg.weight"], state["decode_head.conv_seg.bias"])


# ---- what it computes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 1, 16, 32, 16), (1, 3, 17, 21, 9)], ids=str)
def test_map_and_pyramid_agree_with_the_statement(shape: tuple[int, ...]) -> None:
    model = make(in_channels=shape[1], num_classes=3)
    state, x = model.state_dict(), image(*shape)
    levels = resnet_levels(state, x, pool=True, strides=(1, 2, 2, 2))
    expected = classified(state, decoded(state, levels))
    assert expected.shape == (shape[0], 3, *shape[2:])
    close(model(x), expected)
    got = model.features(x)
    assert tuple(got) == LEVELS
    for name, want in zip(LEVELS, levels, strict=True):
        close(got[name], want)


def test_at_even_sizes_a_step_doubles_as_upstream_s_does() -> None:
    model, x = make(), image(1, 4, 2, 4, 6)
    step = model.neck.decoder[0]
    doubled = F.interpolate(x, scale_factor=2, mode="trilinear", align_corners=False)
    skip = image(1, 4, 4, 8, 12)
    y = convolve(step.state_dict(), "upsample.interp_upsample.1", doubled)
    y = convolve(step.state_dict(), "conv_block.convs.0", torch.cat([skip, y], 1))
    close(step(x, skip), convolve(step.state_dict(), "conv_block.convs.1", y))


def test_the_forms_without_a_map_share_the_values() -> None:
    whole, x = make(), image(2, 1, 16, 16, 20)
    state = whole.state_dict()

    def part(**options: Any) -> Any:
        model = make(**options)
        model.load_state_dict({name: state[name] for name in model.state_dict()}, strict=True)
        return model(x)

    levels = resnet_levels(state, x, pool=True, strides=(1, 2, 2, 2))
    close(part(num_classes=0), levels[-1].mean((2, 3, 4)))
    close(part(num_classes=0, keep_decoder=True), decoded(state, levels))
    for options in ({}, {"num_classes": 0, "keep_decoder": True}):
        pyramid = part(features_only=True, **options)
        assert tuple(pyramid) == LEVELS
        close(pyramid["layer4"], levels[-1])


def test_dropout_is_of_whole_channels_and_in_training_alone() -> None:
    model = make(num_classes=0, keep_decoder=True)
    assert not hasattr(model.decode_head, "dropout")
    model = make(dropout=0.5).train()
    x = torch.ones(1, 16, 2, 2, 2, dtype=torch.float64)
    torch.manual_seed(0)
    kept = torch.cat([model.decode_head.dropout(x) for _ in range(200)]).flatten(2)
    assert (kept == kept[..., :1]).all()
    assert set(kept.unique().tolist()) == {0.0, 2.0}
    assert 0.4 < float((kept > 0).double().mean()) < 0.6
    assert torch.equal(model.eval().decode_head.dropout(x), x)


# ---- counts, names, sizes --------------------------------------------------------------------------------------------


def documented_names(levels: int = 5) -> set[str]:
    """The names of upstream's decoder and head."""
    units = [f"neck.decoder.{k}.{part}" for k in range(levels - 1) for part in ("upsample.interp_upsample.1",)]
    units += [f"neck.decoder.{k}.conv_block.convs.{c}" for k in range(levels - 1) for c in (0, 1)]
    units += [f"decode_head.convs.{c}" for c in (0, 1)]
    norms = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = {f"{unit}.conv.weight" for unit in units} | {f"{unit}.bn.{n}" for unit in units for n in norms}
    return names | {"decode_head.conv_seg.weight", "decode_head.conv_seg.bias"}


def test_the_paper_s_network_has_the_paper_s_counts_and_names() -> None:
    whole = skeleton("unet3d", {})
    numbers = dict.fromkeys(("backbone", "neck", "decode_head"), 0)
    for name, parameter in whole.named_parameters():
        numbers[name.split(".")[0]] += parameter.numel()
    assert numbers == {"backbone": 33_160_000, "neck": 7_478_272, "decode_head": 34_658}
    assert sum(numbers.values()) == 40_672_930
    encoder = skeleton("resnet3d", {"depth": 18})
    names = {f"backbone.{name}" for name in encoder.state_dict()}
    assert set(whole.state_dict()) == names | documented_names()
    shape = shapes(whole.state_dict())
    assert shape["neck.decoder.3.upsample.interp_upsample.1.conv.weight"] == (256, 512, 1, 1, 1)
    assert shape["neck.decoder.3.conv_block.convs.0.conv.weight"] == (256, 512, 3, 3, 3)
    assert shape["neck.decoder.0.conv_block.convs.1.conv.weight"] == (64, 64, 3, 3, 3)
    assert shape["decode_head.convs.0.conv.weight"] == (16, 64, 3, 3, 3)
    assert shape["decode_head.conv_seg.weight"] == (2, 16, 1, 1, 1)
    assert whole.feature_info == tuple(
        Feature(name, channels, (stride,) * 3)
        for name, channels, stride in zip(LEVELS, (64, 64, 128, 256, 512), STRIDES, strict=True)
    )
    assert svd_hub.count(whole, (1, 32, 64, 64)).parameters == 40_672_930


def test_the_window_of_the_paper() -> None:
    model, x = skeleton("unet3d", {}), torch.empty(1, 1, 32, 256, 256, device="meta")
    assert [m.shape[1:] for m in model.features(x).values()] == [
        (channels, 32 // s, 256 // s, 256 // s) for channels, s in zip((64, 64, 128, 256, 512), STRIDES, strict=True)
    ]
    assert model(x).shape == (1, 2, 32, 256, 256)


def test_head_and_decoder_are_what_the_encoder_lacks() -> None:
    def names(**options: Any) -> set[str]:
        return set(skeleton("unet3d", {"encoder_options": NARROW, **options}).state_dict())

    whole = names()
    for options in ({"num_classes": 0}, {"features_only": True}):
        assert whole - names(**options) == {n for n in whole if n.startswith((UNet3D.head, *UNet3D.decoder))}
    assert whole - names(num_classes=0, keep_decoder=True) == {n for n in whole if n.startswith(UNet3D.head)}
    two, five = (shapes(make(num_classes=n).state_dict()) for n in (2, 5))
    assert {n for n in two if two[n] != five[n]} == {n for n in two if n.startswith(UNet3D.head)}


OTHER_VALUES: dict[str, Any] = {
    "encoder": "segresencoder",
    "encoder_options": {"width": 32},
    "decoder_channels": (8, 8, 8, 8),
    "head_channels": 8,
    "dropout": 0.0,
    "norm": "group",
    "keep_decoder": True,
    "features_only": True,
}


def test_weight_options_are_those_that_change_names_or_shapes() -> None:
    plain = shapes(skeleton("unet3d", {}).state_dict())
    assert {*OTHER_VALUES, "in_channels", "num_classes"} == set(option_names("unet3d"))
    assert all(value != default_options("unet3d")[name] for name, value in OTHER_VALUES.items())
    changing = {n for n, v in OTHER_VALUES.items() if shapes(skeleton("unet3d", {n: v}).state_dict()) != plain}
    assert changing - {"features_only"} == set(weight_options("unet3d"))  # which is less, not other


ENCODERS: tuple[tuple[str, dict[str, Any], tuple[int, ...], tuple[int, ...]], ...] = (
    ("resnet3d", {"depth": 34, "width": 2}, STRIDES, STRIDES),
    ("resnet3d", {"depth": 50, "width": 2}, STRIDES, STRIDES),
    ("resnet3d", {"stem": "v1c", "width": 2, "norm": "group"}, STRIDES, STRIDES),
    ("resnet3d", {"width": 2, "stem_pool": False}, (1, 1, 2, 4, 8), (1, 1, 2, 4, 8)),
    ("resnet3d", {"width": 2, "stem_stride": 2}, (2, 4, 8, 16, 32), (2, 4, 8, 16, 32)),
    ("resnet3d", {"width": 2, "depth_stride": 1}, (1,) * 5, STRIDES),
    ("resnet3d", {"width": 2, "output_stride": 4}, (1, 2, 4, 4, 4), (1, 2, 4, 4, 4)),
    ("resnet3d", {"width": 2, "shortcut": "A", "convolution": "acs"}, STRIDES, STRIDES),
    ("p3d", {"variant": "18ba", "width": 2}, (1,) * 5, (2, 4, 8, 16, 32)),
    ("densenet3d", {"width": 4}, STRIDES, STRIDES),
    ("segresencoder", {"init_filters": 2}, STRIDES, STRIDES),
    ("unet3d_genesis", {"width": 2}, STRIDES[:4], STRIDES[:4]),
)


@pytest.mark.parametrize(("encoder", "options", "deep", "plane"), ENCODERS, ids=str)
def test_any_backbone_fits(encoder: str, options: dict[str, Any], deep: Any, plane: Any) -> None:
    model = randomised(build("unet3d", {"encoder": encoder, "encoder_options": options, "num_classes": 3}))
    assert [level.stride for level in model.feature_info] == [(d, p, p) for d, p in zip(deep, plane, strict=True)]
    x = image(1, 1, 19, 40, 33)
    levels = list(model.features(x).values())
    dense = decoded(model.state_dict(), levels)
    assert dense.shape[2:] == levels[0].shape[2:]
    expected = F.interpolate(classified(model.state_dict(), dense), size=(19, 40, 33), mode="trilinear")
    assert model(x).shape == (1, 3, 19, 40, 33)
    close(model(x), expected)
    alone = build(encoder, {**options, "num_classes": 0, "features_only": True})
    assert shapes(alone.state_dict()) == shapes(model.backbone.state_dict())


def test_a_slimmer_decoder() -> None:
    model = make(decoder_channels=(3, 5, 7, 9), head_channels=6)
    x = image(1, 1, 16, 16, 16)
    close(model(x), classified(model.state_dict(), decoded(model.state_dict(), list(model.features(x).values()))))
    shape = shapes(model.state_dict())
    assert shape["neck.decoder.1.upsample.interp_upsample.1.conv.weight"] == (5, 7, 1, 1, 1)
    assert shape["neck.decoder.1.conv_block.convs.0.conv.weight"] == (5, 4 + 5, 3, 3, 3)
    assert shape["decode_head.convs.0.conv.weight"] == (6, 3, 3, 3, 3)
    bottlenecks = {"encoder_options": {"depth": 50}}
    whole, slim = (skeleton("unet3d", {**bottlenecks, "decoder_channels": c}) for c in (None, [64, 64, 128, 256]))
    assert sum(p.numel() for p in slim.parameters()) < 0.5 * sum(p.numel() for p in whole.parameters())


@pytest.mark.parametrize("options", [{}, {"encoder": "p3d", "encoder_options": {"width": 2, "norm": "batch"}}], ids=str)
def test_a_trace_takes_other_sizes_and_gives_the_same(options: dict[str, Any]) -> None:
    model = make(**options)
    with pytest.warns(DeprecationWarning, match="jit"):
        traced = torch.jit.trace(model, image(1, 1, 16, 16, 16))
    for shape in ((2, 1, 16, 32, 16), (1, 1, 17, 23, 9)):
        close(traced(image(*shape)), model(image(*shape)))


def test_a_copy_is_deep() -> None:
    model, x = make(), image(1, 1, 16, 16, 16)
    other, before = copy.deepcopy(model), model(x)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    close(model(x), before)
    assert not other(x).any()


def test_preserved_depth_is_taken_up_by_the_decoder() -> None:
    model, _ = svd_hub.preserve_depth(make())
    x = image(1, 1, 3, 16, 16)
    assert [level.stride for level in model.feature_info] == [(1, s, s) for s in STRIDES]
    levels = list(model.features(x).values())
    assert [level.shape[2] for level in levels] == [3] * 5
    close(model(x), classified(model.state_dict(), decoded(model.state_dict(), levels)))


def test_gradients_reach_every_parameter() -> None:
    model = make()
    model.train()(image(2, 1, 16, 32, 32)).square().sum().backward()
    weights = {name: p.grad for name, p in model.named_parameters() if name.endswith("weight")}
    assert [name for name, gradient in weights.items() if gradient is None or gradient.abs().max() < 1e-12] == []


# ---- errors ----------------------------------------------------------------------------------------------------------

BAD: tuple[tuple[dict[str, Any], str], ...] = (
    ({"encoder": "unet3d"}, r"encoder='unet3d' is not allowed; allowed: resnet3d, p3d, "),
    ({"encoder": "vgg"}, r"encoder='vgg' is not allowed; allowed: resnet3d"),
    ({"encoder_options": 3}, r"encoder_options=3 .*a table"),
    ({"encoder_options": {"num_classes": 3}}, r"encoder_options with num_classes.*Next: .*to the network itself"),
    ({"encoder_options": {"in_channels": 3, "features_only": True}}, r"with in_channels, features_only"),
    ({"encoder_options": {"widht": 8}}, r"no option 'widht'; nearest to 'widht': width"),
    ({"encoder": "segresencoder", "encoder_options": {"blocks_down": (1,), "init_filters": 2}}, r"has 1 level.*two"),
    ({"decoder_channels": (4, 4)}, r"decoder_channels=\(4, 4\).*4 positive integers.*None"),
    ({"decoder_channels": 4}, r"decoder_channels=4 "),
    ({"decoder_channels": (4, 4, 0, 4)}, r"decoder_channels=0 .*1 or more"),
    ({"head_channels": 0}, r"head_channels=0 .*1 or more"),
    ({"dropout": 1.0}, r"dropout=1.0 .*below 1"),
    ({"norm": "layer"}, r"norm='layer' .*batch"),
    ({"num_classes": -1}, r"num_classes=-1"),
)


@pytest.mark.parametrize(("options", "message"), BAD, ids=str)
def test_bad_options_say_what_is_allowed(options: dict[str, Any], message: str) -> None:
    given = {} if "encoder" in options or "encoder_options" in options else {"encoder_options": NARROW}
    with pytest.raises(OptionError, match=message):
        build("unet3d", {**given, **options})


def test_an_input_of_another_shape_is_refused() -> None:
    with pytest.raises(OptionError, match=re.escape("allowed: (N, 1, D, H, W)")):
        make()(image(1, 3, 16, 16, 16))
    small = make(encoder="densenet3d", encoder_options={"width": 4})
    with pytest.raises(OptionError, match=r"volume of \(3, 16, 16\).*Next: pad"):
        small(image(1, 1, 3, 16, 16))


# ---- it learns -------------------------------------------------------------------------------------------------------


def test_it_learns_three_balls_by_heart() -> None:
    torch.manual_seed(0)
    model, (x, y) = UNet3D(encoder_options=NARROW, dropout=0.0, num_classes=4), three_balls((16, 16, 16))
    found = dice(fit(model, x, y, steps=80), y, 4)
    assert min(found) > 0.95, found


@pytest.mark.slow
def test_it_learns_four_crops_of_a_ct_by_heart() -> None:
    """Liver, spleen and kidneys of one patient at 3 mm: 70 seconds.

    Narrow (16 channels for the paper's 64), from weights of ours: the paper's width takes eight times as long.
    """
    nib: Any = pytest.importorskip("nibabel")
    folder = need("ct_organ_seg/ts_abdomen_3mm")
    ct, organs = (np.asarray(nib.load(folder / f"{n}.nii.gz").dataobj).transpose(2, 1, 0) for n in ("ct", "seg"))
    told = json.loads((folder.parent / "labels.json").read_text())[folder.name]
    value_of = {about["name"]: int(value) for value, about in told.items()}
    labels, crops, size = np.zeros(ct.shape, np.int64), [], (32, 40, 40)
    for name, label in {"liver": 1, "spleen": 2, "kidney_left": 3, "kidney_right": 3}.items():
        organ = organs == value_of[name]
        labels[organ] = label
        middle = np.argwhere(organ).mean(0).astype(int)
        corner = [int(np.clip(m - s // 2, 0, n - s)) for m, s, n in zip(middle, size, ct.shape, strict=True)]
        crops.append(tuple(slice(c, c + s) for c, s in zip(corner, size, strict=True)))
    hu = torch.from_numpy(np.stack([ct[crop] for crop in crops]).astype(np.float32))[:, None]
    x, y = (hu.clamp(-200, 250) - 25) / 225, torch.from_numpy(np.stack([labels[crop] for crop in crops]))
    torch.manual_seed(0)
    backbone = svd_hub.load("resnet3d18w16_tinyimagenet")
    model = svd_hub.task_model(backbone, "unet3d", num_classes=4, dropout=0.0)
    found = dice(fit(model, x, y, steps=120), y, 4)
    assert min(found) > 0.97, found
