"""Laws of P3D: an independent statement of its blocks and pools, its letters, depths, keys and errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from svd_hub.errors import OptionError
from svd_hub.models import ARCHITECTURES, Feature, build, default_options, option_names, weight_options
from svd_hub.models.p3d import P3D, BasicBlock, Bottleneck

torch.set_num_threads(1)
State = dict[str, Tensor]
LEVELS = ("stem", "layer1", "layer2", "layer3", "layer4")
LETTERS = {
    "63": ("ABC", "ABCA", "BCABCA", "BCA"),
    "18ba": ("AB", "CA", "BC", "AB"),
    "34ba": ("ABC", "ABCA", "BCABCA", "BCA"),
}
FORMS: tuple[dict[str, Any], ...] = (
    {},
    {"form": "p3d"},
    {"form": "p3d", "depth_stride": 2},
    {"form": "mp3d", "depth_stride": 2},
)


def make(**options: Any) -> tuple[P3D, State]:
    """A narrow network in double precision, evaluation mode, in which every value matters."""
    model = P3D(**{"width": 4, **options}).double().eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype) * 0.5)
            if tensor.ndim == 1 and name.endswith("weight"):
                tensor.abs_().add_(0.5)
    return model, dict(model.state_dict())


def image(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def meta(**options: Any) -> P3D:
    with torch.device("meta"):
        return P3D(**options)


# An independent statement: every letter and every kind of block written out.


def unit(p: State, name: str, number: int, x: Tensor, stride: int = 1, *, relu: bool = True) -> Tensor:
    """conv{number}, norm{number} and ReLU; `stride` is in the plane, padding keeps the size."""
    kernel = p[f"{name}conv{number}.weight"]
    x = F.conv3d(x, kernel, stride=(1, stride, stride), padding=[k // 2 for k in kernel.shape[2:]])
    x = F.group_norm(x, math.gcd(32, x.shape[1]), p[f"{name}norm{number}.weight"], p[f"{name}norm{number}.bias"])
    return F.relu(x) if relu else x


def state_block(p: State, name: str, x: Tensor, letter: str, stride: int) -> Tensor:
    basic = p[f"{name}conv1.weight"].shape[2:] == (1, 3, 3)
    y = x
    for s, t in [(1, 2), (3, 4)] if basic else [(2, 3)]:
        step = stride if basic and s == 1 else 1
        if not basic:
            y = unit(p, name, 1, x, stride)
        if letter == "A":
            y = unit(p, name, t, unit(p, name, s, y, step))
        elif letter == "B":
            y = unit(p, name, s, y, step) + unit(p, name, t, y, step)
        else:
            after = unit(p, name, s, y, step)
            y = after + unit(p, name, t, after)
    y = y if basic else unit(p, name, 4, y, relu=False)
    if f"{name}downsample.0.weight" in p:
        x = F.conv3d(x, p[f"{name}downsample.0.weight"], stride=(1, stride, stride))
        weight, bias = p[f"{name}downsample.1.weight"], p[f"{name}downsample.1.bias"]
        x = F.group_norm(x, math.gcd(32, x.shape[1]), weight, bias)
    return F.relu(x + y)


def state_forward(p: State, x: Tensor, variant: str, *, form: str = "mp3d", depth_stride: int = 1) -> dict[str, Tensor]:
    x = unit(p, "", 1, x, 2)
    maps = {"stem": x}
    if form == "mp3d":
        x = F.max_pool3d(x, 3, stride=(1, 2, 2), padding=1)
    else:
        x = F.max_pool3d(x, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1))
    for stage, letters in enumerate(LETTERS[variant], start=1):
        for index, letter in enumerate(letters):
            stride = 2 if stage > 1 and index == 0 else 1
            x = state_block(p, f"layer{stage}.{index}.", x, letter, stride)
        maps[f"layer{stage}"] = x
        if depth_stride == 2 and stage < 3:
            x = F.max_pool3d(x, (3, 1, 1), stride=(2, 1, 1), padding=(1, 0, 0))
        elif depth_stride == 2 and stage == 3:
            x = F.max_pool3d(x, (3, 1, 1), stride=1)
    return maps


@pytest.mark.parametrize("variant", LETTERS)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_every_level_equals_the_statement(variant: str, form: dict[str, Any]) -> None:
    model, state = make(variant=variant, **form)
    x = image(1, 1, 9, 36, 40)
    with torch.no_grad():
        got, stated = model.features(x), state_forward(state, x, variant, **form)
    assert tuple(got) == tuple(stated) == LEVELS
    for level in LEVELS:
        assert got[level].std() > 0
        torch.testing.assert_close(got[level], stated[level], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("letter", "ABC")
@pytest.mark.parametrize("kind", [BasicBlock, Bottleneck])
@pytest.mark.parametrize("stride", [1, 2])
def test_each_letter_of_each_block(letter: str, kind: type[BasicBlock | Bottleneck], stride: int) -> None:
    out = 6 * kind.expansion
    shortcut = torch.nn.Sequential(
        torch.nn.Conv3d(3, out, 1, stride=(1, stride, stride), bias=False),
        torch.nn.GroupNorm(math.gcd(32, out), out),
    )
    torch.manual_seed(0)
    block = kind(3, 6, letter=letter, stride=(1, stride, stride), norm="group", downsample=shortcut).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter)
    x = image(2, 3, 4, 7, 6)
    torch.testing.assert_close(block(x), state_block(dict(block.state_dict()), "", x, letter, stride))


def test_the_letters_are_three_different_networks() -> None:
    outputs = []
    for letter in "ABC":
        torch.manual_seed(0)
        block = Bottleneck(8, 2, letter=letter, stride=(1, 1, 1), norm="group", downsample=None).double()
        outputs.append(block(image(1, 8, 3, 5, 5)))
    assert not torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    assert not torch.equal(outputs[1], outputs[2])


@pytest.mark.parametrize("variant", LETTERS)
def test_letters_run_on_through_the_stages(variant: str) -> None:
    model = meta(variant=variant)
    stages = [model.get_submodule(name) for name in LEVELS[1:]]
    assert tuple("".join(block.letter for block in stage) for stage in stages) == LETTERS[variant]  # type: ignore


@pytest.mark.parametrize(("variant", "where"), [("63", (1, 2, 3, 4)), ("18ba", (2, 3, 4)), ("34ba", (2, 3, 4))])
def test_names(variant: str, where: tuple[int, ...]) -> None:
    expected = {"conv1.weight", "norm1.weight", "norm1.bias"}
    for stage, letters in enumerate(LETTERS[variant], start=1):
        for index in range(len(letters)):
            block = f"layer{stage}.{index}."
            expected |= {f"{block}conv{n}.weight" for n in (1, 2, 3, 4)}
            expected |= {f"{block}norm{n}.{part}" for n in (1, 2, 3, 4) for part in ("weight", "bias")}
        if stage in where:
            first = f"layer{stage}.0.downsample."
            expected |= {f"{first}0.weight", f"{first}1.weight", f"{first}1.bias"}
    assert set(meta(variant=variant).state_dict()) == expected


def test_kernels_of_a_real_training_log() -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in meta().state_dict().items()}
    assert shapes["conv1.weight"] == (64, 1, 1, 7, 7)
    assert shapes["layer2.0.conv1.weight"] == (128, 256, 1, 1, 1)
    assert shapes["layer2.0.conv2.weight"] == (128, 128, 1, 3, 3)
    assert shapes["layer2.0.conv3.weight"] == (128, 128, 3, 1, 1)
    assert shapes["layer2.0.conv4.weight"] == (512, 128, 1, 1, 1)


def test_t_of_a_basic_block_beside_s_reads_the_input() -> None:
    model = meta(variant="18ba")
    beside, after = model.get_submodule("layer3.0.conv2"), model.get_submodule("layer2.0.conv2")
    assert isinstance(beside, torch.nn.Conv3d)
    assert isinstance(after, torch.nn.Conv3d)
    assert (beside.in_channels, beside.stride) == (128, (1, 2, 2))
    assert (after.in_channels, after.stride) == (128, (1, 1, 1))
    assert (beside.out_channels, after.out_channels) == (256, 128)


@pytest.mark.parametrize("variant", LETTERS)
def test_no_parameter_depends_on_a_spatial_option(variant: str) -> None:
    shapes = [{n: t.shape for n, t in meta(variant=variant, **form).state_dict().items()} for form in FORMS]
    assert all(other == shapes[0] for other in shapes[1:])


@pytest.mark.parametrize("variant", LETTERS)
@pytest.mark.parametrize("form", ["p3d", "mp3d"])
def test_depths_of_the_nine_slice_detector(variant: str, form: str) -> None:
    model = meta(variant=variant, form=form, depth_stride=2)
    maps = model.features(torch.empty(1, 1, 9, 64, 64, device="meta"))
    assert [maps[name].shape[2] for name in LEVELS] == [9, 9, 5, 3, 1]
    # What the detector's neck gets: the levels behind their pools.
    pooled = [model.get_submodule(f"zpool{n}")(maps[f"layer{n}"]).shape[2] for n in (1, 2, 3)]
    assert pooled == [5, 3, 1]


@pytest.mark.parametrize("depth", [1, 2, 3, 9, 16])
@pytest.mark.parametrize("form", ["p3d", "mp3d"])
def test_without_z_pools_every_depth_is_kept(depth: int, form: str) -> None:
    model = meta(form=form)
    maps = model.features(torch.empty(1, 1, depth, 40, 33, device="meta"))
    assert {level.shape[2] for level in maps.values()} == {depth}
    assert isinstance(model.zpool1, torch.nn.Identity)
    assert isinstance(model.zpool3, torch.nn.Identity)


@pytest.mark.parametrize("variant", LETTERS)
@pytest.mark.parametrize("depth_stride", [1, 2])
def test_feature_info_is_the_shape(variant: str, depth_stride: int) -> None:
    model = meta(variant=variant, depth_stride=depth_stride)
    for size in ((9, 64, 96), (12, 33, 47)):
        maps = model.features(torch.empty(2, 1, *size, device="meta"))
        assert tuple(maps) == tuple(info.name for info in model.feature_info) == LEVELS
        for info in model.feature_info:
            expected = [math.ceil(n / s) for n, s in zip(size, info.stride, strict=True)]
            if info.name == "layer4" and depth_stride == 2:
                expected[0] -= 2  # zpool3 has no padding
            assert list(maps[info.name].shape) == [2, info.channels, *expected], info


def test_feature_info_of_the_detector() -> None:
    strides = [(1, 2, 2), (1, 4, 4), (2, 8, 8), (4, 16, 16), (4, 32, 32)]
    for variant, channels in (("63", (64, 256, 512, 1024, 2048)), ("18ba", (64, 64, 128, 256, 512))):
        expected = tuple(Feature(*row) for row in zip(LEVELS, channels, strides, strict=True))
        assert meta(variant=variant, depth_stride=2).feature_info == expected


@pytest.mark.parametrize("depth", [1, 2, 3, 5, 8, 13, 16])
@pytest.mark.parametrize("form", ["p3d", "mp3d"])
def test_a_depth_the_z_pools_cannot_treat_is_refused_first(depth: int, form: str) -> None:
    model = meta(variant="18ba", form=form, depth_stride=2)
    with pytest.raises(OptionError, match=rf"depth {depth} .*depth_stride=2.*9 .*12 .*depth_stride=1.*mp3d"):
        model(torch.empty(1, 1, depth, 64, 64, device="meta"))


@pytest.mark.parametrize("depth", range(1, 20))
def test_the_check_of_the_depth_is_the_pools_themselves(depth: int) -> None:
    model = meta(variant="18ba", depth_stride=2)
    x: Tensor | None = torch.zeros(1, 1, depth, 1, 1)
    for name in ("zpool1", "zpool2", "zpool3"):
        x = None if x is None or (name == "zpool3" and x.shape[2] < 3) else model.get_submodule(name)(x)
    runs = x is not None and x.shape[2] == 1
    if runs:
        model.check_depth(depth)
    else:
        with pytest.raises(OptionError):
            model.check_depth(depth)
    assert runs == (9 <= depth <= 12)


def test_z_pools_made_to_keep_the_depth_allow_every_depth() -> None:
    model = meta(variant="18ba", depth_stride=2)
    for name in ("zpool1", "zpool2", "zpool3"):
        setattr(model, name, torch.nn.MaxPool3d((3, 1, 1), stride=1, padding=(1, 0, 0)))
    assert model.features(torch.empty(1, 1, 3, 32, 32, device="meta"))["layer4"].shape[2] == 3


@pytest.mark.parametrize("variant", ["63", "18ba"])
@pytest.mark.parametrize(("depth_stride", "depth"), [(1, 3), (2, 9)])
def test_every_parameter_gets_a_gradient(variant: str, depth_stride: int, depth: int) -> None:
    torch.manual_seed(0)
    model = P3D(variant=variant, depth_stride=depth_stride, width=4, num_classes=42)
    F.cross_entropy(model(torch.randn(2, 1, depth, 64, 64)), torch.tensor([0, 41])).backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not silent


@pytest.mark.parametrize(("init", "spread"), [("official", lambda i, o: 2 / (i + o)), ("kaiming", lambda i, o: 2 / o)])
def test_initialisation(init: str, spread: Any) -> None:
    torch.manual_seed(0)
    model = P3D(variant="18ba", width=16, init=init)
    kernel = model.get_parameter("layer4.1.conv1.weight")
    out, into = kernel.shape[0] * 9, kernel.shape[1] * 9
    assert kernel.std().item() == pytest.approx(math.sqrt(spread(into, out)), rel=0.03)
    norms = {n: p for n, p in model.named_parameters() if "norm" in n}
    assert all((p == (1 if n.endswith("weight") else 0)).all() for n, p in norms.items())


def test_what_forward_returns() -> None:
    x = image(2, 1, 3, 32, 32)
    pyramid, state = make(variant="18ba", features_only=True)
    assert not any(hasattr(pyramid, name) for name in ("fc", "avgpool"))
    pooled, _ = make(variant="18ba")
    pooled.load_state_dict(state)
    torch.testing.assert_close(pooled(x), pyramid(x)["layer4"].mean((2, 3, 4)))
    logits, head = make(variant="18ba", num_classes=6, in_channels=1)
    logits.load_state_dict({**head, **state})
    torch.testing.assert_close(logits(x), pooled(x) @ logits.fc.weight.T + logits.fc.bias)


BAD: tuple[tuple[dict[str, Any], str], ...] = (
    ({"variant": 63}, r"variant=63 .*'63', '18ba', '34ba'"),
    ({"variant": "131"}, r"variant='131' .*'63', '18ba', '34ba'"),
    ({"form": "p3d-a"}, r"form='p3d-a' .*'mp3d', 'p3d'"),
    ({"depth_stride": 3}, r"depth_stride=3 .*1, 2"),
    ({"norm": "layer"}, r"norm='layer' .*group"),
    ({"init": "normal"}, r"init='normal' .*official.*kaiming"),
    ({"width": 0}, r"width=0 .*1 or more"),
    ({"in_channels": 0}, r"in_channels=0.*>= 1"),
    ({"num_classes": -1}, r"num_classes=-1.*>= 0"),
)


@pytest.mark.parametrize(("options", "message"), BAD, ids=str)
def test_bad_options_say_what_is_allowed(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        meta(**options)


def test_a_2d_image_is_told_how_to_become_a_volume() -> None:
    with pytest.raises(OptionError, match="rgb_to_depth"):
        meta(variant="18ba")(torch.empty(1, 3, 32, 32, device="meta"))


# The registry of architectures.


def test_every_architecture_builds_with_its_defaults() -> None:
    for name in ARCHITECTURES:
        with torch.device("meta"):
            model = build(name, {})
        names = [info.name for info in model.feature_info]
        assert names in (list(LEVELS), [f"level{n}" for n in range(len(names))], list(LEVELS[1:]))
        assert {"in_channels", "num_classes", "features_only"} <= set(option_names(name))


def test_build_passes_every_option_on() -> None:
    model = build("p3d", {"variant": "18ba", "width": 8, "num_classes": 3})
    assert isinstance(model, P3D)
    assert model.fc.in_features == 64
    assert model.fc.out_features == 3


OTHER_VALUES: dict[str, dict[str, Any]] = {
    "resnet3d": {
        "depth": 34,
        "width": 32,
        "stem": "v1c",
        "stem_depth": 3,
        "convolution": "acs",
        "stem_stride": 1,
        "stem_pool": False,
        "pool_stride": 1,
        "strides": (1, 2, 1, 2),
        "dilations": (1, 1, 2, 4),
        "depth_stride": 2,
        "output_stride": 8,
        "norm": "group",
        "shortcut": "A",
        "detach_shortcut": True,
        "downsample_bias": True,
        "init": "kaiming",
        "features_only": True,
    },
    "p3d": {
        "variant": "18ba",
        "form": "p3d",
        "width": 32,
        "depth_stride": 2,
        "norm": "batch",
        "init": "kaiming",
        "features_only": True,
    },
}


@pytest.mark.parametrize("name", OTHER_VALUES)
def test_weight_options_are_those_that_change_names_or_shapes(name: str) -> None:
    def shapes(**options: Any) -> dict[str, torch.Size]:
        with torch.device("meta"):
            return {key: tensor.shape for key, tensor in build(name, options).state_dict().items()}

    plain, others = shapes(), OTHER_VALUES[name]
    # in_channels and num_classes change shapes as well: what load adapts, by a rule.
    assert {*others, "in_channels", "num_classes"} == set(option_names(name))
    assert all(value != default_options(name)[option] for option, value in others.items())
    changing = {option for option, value in others.items() if shapes(**{option: value}) != plain}
    assert changing == set(weight_options(name))


def test_build_names_the_nearest() -> None:
    with pytest.raises(OptionError, match=r"'resnet3' .*nearest: resnet3d.*allowed: resnet3d, p3d"):
        build("resnet3", {})
    with pytest.raises(
        OptionError, match=r"'depthstride'; nearest to 'depthstride': depth_stride.*allowed: variant, form"
    ):
        build("p3d", {"depthstride": 2})
    with pytest.raises(OptionError, match="resnet3d"):
        option_names("vgg")
