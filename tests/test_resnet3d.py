"""Laws of ResNet3D: an independent statement of its forward, its shapes, its keys, its shortcuts, its errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from svd_hub.errors import OptionError
from svd_hub.models import Feature
from svd_hub.models.resnet3d import ResNet3D, ShortcutA

torch.set_num_threads(1)
Triple = tuple[int, int, int]
State = dict[str, Tensor]
FLAT, PLANE, CUBE = (1, 1, 1), (1, 2, 2), (2, 2, 2)
STEM: dict[str, dict[str, Any]] = {"7x7x7": {}, "3x7x7": {"stem_depth": 3}, "v1c": {"stem": "v1c"}}
LEVELS = ("stem", "layer1", "layer2", "layer3", "layer4")


def randomise(model: torch.nn.Module) -> State:
    """Give every tensor a value that matters (a fresh network has all-zero and all-one norms); return the state."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                continue
            tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype) * 0.5)
            if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
                tensor.abs_().add_(0.5)
    return dict(model.state_dict())


def make(**options: Any) -> tuple[ResNet3D, State]:
    """A narrow network in double precision, evaluation mode, with values that matter."""
    model = ResNet3D(**{"width": 4, **options}).double().eval()
    return model, randomise(model)


def image(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


# An independent statement, in plain functions, of what a state dict means.


def state_norm(p: State, name: str, x: Tensor, kind: str) -> Tensor:
    weight, bias = p[f"{name}.weight"], p[f"{name}.bias"]
    if kind == "batch":
        return F.batch_norm(x, p[f"{name}.running_mean"], p[f"{name}.running_var"], weight, bias)
    if kind == "instance":
        return F.instance_norm(x, weight=weight, bias=bias)
    return F.group_norm(x, math.gcd(32, x.shape[1]), weight, bias)


def state_shortcut(p: State, name: str, x: Tensor, channels: int, stride: Triple, kind: str, norm: str) -> Tensor:
    if x.shape[1] == channels and stride == FLAT:
        return x
    if kind == "A":
        x = F.avg_pool3d(x, kernel_size=1, stride=stride)
        return torch.cat([x, x.new_zeros(x.shape[0], channels - x.shape[1], *x.shape[2:])], dim=1)
    x = F.conv3d(x, p[f"{name}.0.weight"], p.get(f"{name}.0.bias"), stride=stride)
    return state_norm(p, f"{name}.1", x, norm)


def state_block(p: State, name: str, x: Tensor, stride: Triple, dilation: Triple, kind: str, norm: str) -> Tensor:
    wide = {"stride": stride, "padding": dilation, "dilation": dilation}
    same = {"padding": dilation, "dilation": dilation}
    plan: list[dict[str, Any]] = [{}, wide, {}] if f"{name}.conv3.weight" in p else [wide, same]
    y = x
    for number, how in enumerate(plan, start=1):
        y = state_norm(p, f"{name}.bn{number}", F.conv3d(y, p[f"{name}.conv{number}.weight"], **how), norm)
        y = F.relu(y) if number < len(plan) else y
    return F.relu(y + state_shortcut(p, f"{name}.downsample", x, y.shape[1], stride, kind, norm))


def state_forward(
    p: State,
    x: Tensor,
    *,
    strides: tuple[Triple, ...],
    dilations: tuple[Triple, ...] = (FLAT,) * 4,
    stem: Triple = PLANE,
    pool: Triple | None = PLANE,
    shortcut: str = "B",
    norm: str = "batch",
) -> dict[str, Tensor]:
    if "stem.0.conv.weight" in p:
        for index, stride in enumerate((stem, FLAT, FLAT)):
            x = F.conv3d(x, p[f"stem.{index}.conv.weight"], stride=stride, padding=1)
            x = F.relu(state_norm(p, f"stem.{index}.bn", x, norm))
    else:
        kernel = p["conv1.weight"]
        x = F.conv3d(x, kernel, stride=stem, padding=[(k - 1) // 2 for k in kernel.shape[2:]])
        x = F.relu(state_norm(p, "bn1", x, norm))
    maps = {"stem": x}
    x = x if pool is None else F.max_pool3d(x, 3, stride=pool, padding=1)
    for stage in (1, 2, 3, 4):
        index = 0
        while f"layer{stage}.{index}.conv1.weight" in p:
            stride = FLAT if index else strides[stage - 1]
            x = state_block(p, f"layer{stage}.{index}", x, stride, dilations[stage - 1], shortcut, norm)
            index += 1
        maps[f"layer{stage}"] = x
    return maps


KEEP = (FLAT, PLANE, PLANE, PLANE)
HALVE = (FLAT, CUBE, CUBE, CUBE)
MEDICALNET = {
    "options": {"strides": (1, 2, 1, 1), "dilations": (1, 1, 2, 4), "depth_stride": 2, "shortcut": "A"},
    "stated": {
        "strides": (FLAT, CUBE, FLAT, FLAT),
        "dilations": (FLAT, FLAT, CUBE, (4, 4, 4)),
        "stem": CUBE,
        "pool": CUBE,
        "shortcut": "A",
    },
}
CASES: dict[str, dict[str, Any]] = {
    "default": {"options": {}, "stated": {"strides": KEEP}},
    "transfer": {"options": {"depth_stride": 2}, "stated": {"strides": HALVE, "stem": CUBE, "pool": CUBE}},
    "shortcut A": {"options": {"shortcut": "A"}, "stated": {"strides": KEEP, "shortcut": "A"}},
    "MedicalNet": MEDICALNET,
    "group norm": {"options": {"norm": "group"}, "stated": {"strides": KEEP, "norm": "group"}},
    "instance norm": {"options": {"norm": "instance"}, "stated": {"strides": KEEP, "norm": "instance"}},
    "sync norm": {"options": {"norm": "sync"}, "stated": {"strides": KEEP}},
    "v1c": {"options": {"stem": "v1c"}, "stated": {"strides": KEEP}},
    "torchvision": {
        "options": {"stem_depth": 3, "stem_stride": (1, 2, 2), "stem_pool": False, "depth_stride": 2},
        "stated": {"strides": HALVE, "pool": None},
    },
    "ACS": {
        "options": {"stem_stride": 1, "stem_pool": False, "strides": (1, 2, 1, 2), "depth_stride": 2},
        "stated": {"strides": (FLAT, CUBE, FLAT, CUBE), "stem": FLAT, "pool": None},
    },
    "mixed": {
        "options": {"strides": (1, (1, 2, 2), (2, 2, 2), (2, 1, 2)), "pool_stride": (2, 1, 2)},
        "stated": {"strides": (FLAT, PLANE, CUBE, (2, 1, 2)), "pool": (2, 1, 2)},
    },
    "downsample bias": {"options": {"downsample_bias": True}, "stated": {"strides": KEEP}},
    "bottleneck": {"options": {"depth": 50, "depth_stride": 2, "width": 2}, "stated": MEDICALNET["stated"]},
}
CASES["bottleneck"]["options"].update(MEDICALNET["options"])


@pytest.mark.parametrize("case", CASES)
def test_every_level_equals_the_statement(case: str) -> None:
    model, state = make(**CASES[case]["options"])
    x = image(1, 1, 9, 36, 68)
    with torch.no_grad():
        got, stated = model.features(x), state_forward(state, x, **CASES[case]["stated"])
    assert tuple(got) == tuple(stated) == LEVELS
    for level in LEVELS:
        assert got[level].std() > 0
        torch.testing.assert_close(got[level], stated[level], rtol=1e-9, atol=1e-9)


FORMS: tuple[dict[str, Any], ...] = (
    {},
    {"depth_stride": 2},
    {"stem_pool": False, "stem_stride": 1},
    {"strides": (1, 2, 1, 1), "dilations": (1, 1, 2, 4), "depth_stride": 2},
    {"output_stride": 8},
    {"output_stride": 16, "depth_stride": 2},
    {"strides": (1, (1, 2, 2), 2, (2, 2, 1)), "pool_stride": (2, 1, 1)},
    {"stem_stride": (2, 1, 2), "depth_stride": 2},
)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize(("stem", "depth"), [("7x7x7", 18), ("v1c", 10), ("3x7x7", 50)])
def test_feature_info_is_the_shape(form: dict[str, Any], stem: str, depth: int) -> None:
    with torch.device("meta"):
        model = ResNet3D(depth=depth, width=16, **STEM[stem], **form)
        for size in ((16, 64, 96), (3, 32, 32), (9, 33, 47)):
            maps = model.features(torch.empty(2, 1, *size))
            assert tuple(maps) == tuple(info.name for info in model.feature_info) == LEVELS
            for info in model.feature_info:
                expected = [math.ceil(n / s) for n, s in zip(size, info.stride, strict=True)]
                assert list(maps[info.name].shape) == [2, info.channels, *expected], info


@pytest.mark.parametrize(("depth", "expansion"), [(18, 1), (50, 4)])
@pytest.mark.parametrize("width", [4, 64, 128])
def test_width_scales_every_level(width: int, depth: int, expansion: int) -> None:
    with torch.device("meta"):
        model = ResNet3D(depth=depth, width=width, num_classes=5)
    stages = [width * n * expansion for n in (1, 2, 4, 8)]
    assert [info.channels for info in model.feature_info] == [width, *stages]
    assert model.fc.in_features == stages[-1]


def test_feature_info_of_the_paper() -> None:
    model = ResNet3D(width=64, depth=10, depth_stride=2)
    assert model.feature_info[0] == Feature("stem", 64, (2, 2, 2))
    assert model.feature_info[4] == Feature("layer4", 512, (32, 32, 32))


@pytest.mark.parametrize("fixed", [{}, {"depth": 50}, {"stem": "v1c", "norm": "group"}, {"shortcut": "A"}], ids=str)
def test_no_parameter_depends_on_a_spatial_option(fixed: dict[str, Any]) -> None:
    with torch.device("meta"):
        shapes = [
            {name: tensor.shape for name, tensor in ResNet3D(width=4, **fixed, **form).state_dict().items()}
            for form in FORMS
        ]
    assert all(other == shapes[0] for other in shapes[1:])


@pytest.mark.parametrize(("depth", "tensors"), [(18, 120), (34, 216), (50, 318)])
def test_number_of_tensors_without_head(depth: int, tensors: int) -> None:
    with torch.device("meta"):
        assert len(ResNet3D(depth=depth).state_dict()) == tensors
        assert len(ResNet3D(depth=depth, num_classes=3).state_dict()) == tensors + 2
        # Shortcut A takes the 18 tensors of three shortcuts with it (24 with bottlenecks).
        assert len(ResNet3D(depth=depth, shortcut="A").state_dict()) == tensors - (24 if depth == 50 else 18)


def test_only_bottlenecks_have_a_shortcut_in_layer1() -> None:
    with torch.device("meta"):
        found = {
            depth: [n for n in ResNet3D(depth=depth).state_dict() if n.startswith("layer1.0.down")]
            for depth in (18, 34, 50)
        }
    assert not found[18]
    assert not found[34]
    assert found[50]


@pytest.mark.parametrize("norm", ["batch", "group", "instance", "sync"])
def test_names_do_not_depend_on_the_norm(norm: str) -> None:
    with torch.device("meta"):
        names = {n for n, _ in ResNet3D(norm=norm).named_parameters()}
        assert names == {n for n, _ in ResNet3D().named_parameters()}


@pytest.mark.parametrize("stride", [FLAT, PLANE, CUBE, (2, 1, 3)])
def test_shortcut_a_is_subsampling_and_zero_channels(stride: Triple) -> None:
    x = image(2, 3, 5, 6, 7)
    pooled = F.avg_pool3d(x, 1, stride=stride)
    expected = torch.cat([pooled, torch.zeros_like(pooled), torch.zeros_like(pooled)[:, :1]], dim=1)
    torch.testing.assert_close(ShortcutA(7, stride, detach=False)(x), expected, rtol=0, atol=0)


def test_detached_shortcut_a_passes_no_gradient_and_the_same_value() -> None:
    # Freshly initialised residual branches are zero and pass no gradient back, so only shortcuts reach the stem.
    gradients, outputs = [], []
    for detach in (True, False):
        torch.manual_seed(0)
        model = ResNet3D(depth=10, width=4, shortcut="A", detach_shortcut=detach)
        outputs.append(model(torch.randn(2, 1, 3, 32, 32, generator=torch.Generator().manual_seed(1))))
        outputs[-1].square().sum().backward()
        assert model.conv1.weight.grad is not None
        gradients.append(model.conv1.weight.grad.abs().max().item())
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=0)
    assert gradients[0] == 0 < gradients[1]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"depth": 50},
        {"stem": "v1c", "norm": "group"},
        {"stem_depth": 3, "norm": "sync"},
        {"shortcut": "A"},
        {"depth_stride": 2, "norm": "group"},
    ],
    ids=str,
)
def test_every_parameter_gets_a_gradient(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = ResNet3D(width=4, num_classes=42, init="kaiming", **options)
    # 48 pixels: a layer4 of one voxel is constant behind one-channel groups.
    F.cross_entropy(model(torch.randn(3, 1, 3, 48, 48)), torch.tensor([0, 7, 41])).backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not silent


@pytest.mark.parametrize(("stem", "silent"), [("7x7x7", [0, 6]), ("3x7x7", []), ("v1c", [])])
def test_outer_taps_of_the_7x7x7_stem_never_learn_at_depth_3(stem: str, silent: list[int]) -> None:
    torch.manual_seed(0)
    model = ResNet3D(depth=10, width=4, init="kaiming", **STEM[stem])
    model(torch.randn(2, 1, 3, 32, 32)).square().sum().backward()
    kernel = model.get_parameter("stem.0.conv.weight" if stem == "v1c" else "conv1.weight")
    assert kernel.grad is not None
    taps = kernel.grad.abs().amax((0, 1, 3, 4))
    assert [n for n, tap in enumerate(taps) if tap == 0] == silent


def test_official_initialisation_is_an_identity_residual() -> None:
    model = ResNet3D(width=4, depth=50)
    zeros = [n for n, p in model.named_parameters() if n.endswith("weight") and not p.any()]
    assert zeros == [f"layer{s}.{i}.bn3.weight" for s, count in enumerate((3, 4, 6, 3), 1) for i in range(count)]
    kaiming = ResNet3D(width=4, depth=50, init="kaiming")
    assert all(p.any() for n, p in kaiming.named_parameters() if n.endswith("weight"))
    wide = kaiming.get_parameter("layer4.0.conv2.weight")
    assert wide.std().item() == pytest.approx(math.sqrt(2 / (wide.shape[0] * 27)), rel=0.05)


@pytest.mark.parametrize("depth_stride", [1, 2])
def test_output_stride_is_dilation_instead_of_stride(depth_stride: int) -> None:
    model, state = make(depth=10, output_stride=8, depth_stride=depth_stride)
    same, _ = make(depth=10, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), depth_stride=depth_stride)
    same.load_state_dict(state)
    x = image(1, 1, 8, 40, 40)
    torch.testing.assert_close(model(x), same(x), rtol=0, atol=0)
    assert model.feature_info == same.feature_info
    assert model.feature_info[-1].stride[1:] == (8, 8)


def test_output_stride_32_changes_nothing() -> None:
    model, state = make(depth=10, output_stride=32)
    plain, _ = make(depth=10)
    plain.load_state_dict(state)
    x = image(1, 1, 3, 40, 40)
    torch.testing.assert_close(model(x), plain(x), rtol=0, atol=0)


def test_what_forward_returns() -> None:
    x = image(2, 1, 3, 32, 32)
    pyramid, state = make(depth=10, features_only=True)
    assert not any(hasattr(pyramid, name) for name in ("fc", "avgpool"))
    maps = pyramid(x)
    pooled, _ = make(depth=10)
    pooled.load_state_dict(state)
    torch.testing.assert_close(pooled(x), maps["layer4"].mean((2, 3, 4)))
    logits, head = make(depth=10, num_classes=6)
    head.update(state)
    logits.load_state_dict(head)
    expected = pooled(x) @ logits.fc.weight.T + logits.fc.bias
    torch.testing.assert_close(logits(x), expected)


def test_the_stem_level_is_before_the_max_pool_and_is_not_overwritten() -> None:
    model, _ = make(depth=10, stem_pool=False)
    x = image(1, 1, 3, 16, 16)
    expected = F.relu(model.bn1(model.conv1(x)))
    torch.testing.assert_close(model.features(x)["stem"], expected, rtol=0, atol=0)


@pytest.mark.parametrize("stem", ["7x7x7", "3x7x7", "v1c"])
def test_in_channels_changes_only_the_first_kernel(stem: str) -> None:
    with torch.device("meta"):
        one, three = (ResNet3D(in_channels=n, **STEM[stem]).state_dict() for n in (1, 3))
        assert ResNet3D(in_channels=3, **STEM[stem]).features(torch.empty(1, 3, 3, 32, 32))
    different = {n for n in one if one[n].shape != three[n].shape}
    assert different == {"stem.0.conv.weight" if stem == "v1c" else "conv1.weight"}
    assert three[different.pop()].shape[1] == 3


BAD: tuple[tuple[dict[str, Any], str], ...] = (
    ({"depth": 20}, r"depth=20 .*10, 18, 34, 50"),
    ({"depth": "18"}, r"depth='18' .*10, 18, 34"),
    ({"stem": "5x5x5"}, r"stem='5x5x5' .*plain.*v1c"),
    ({"stem_depth": 5}, r"stem_depth=5 .*7, 3"),
    ({"stem_depth": 3, "convolution": "acs"}, r"stem_depth=3 .*allowed: 7"),
    ({"convolution": "2d"}, r"convolution='2d' .*3d.*acs"),
    ({"norm": "layer"}, r"norm='layer' .*batch.*group.*instance.*sync"),
    ({"shortcut": "C"}, r"shortcut='C' .*'A', 'B'"),
    ({"depth_stride": 3}, r"depth_stride=3 .*1, 2"),
    ({"init": "xavier"}, r"init='xavier' .*official.*kaiming"),
    ({"strides": (1, 2, 2)}, r"strides=\(1, 2, 2\).*four"),
    ({"dilations": (1, 1, 2, 4, 8)}, r"dilations=.*four"),
    ({"strides": (1, 2, 2, (2, 2))}, r"strides=\(2, 2\) .*\(D, H, W\)"),
    ({"stem_stride": 0}, r"stem_stride=0 .*positive"),
    ({"pool_stride": (1, -2, 2)}, r"pool_stride=\(1, -2, 2\) .*positive"),
    ({"width": 7}, r"width=7 .*even"),
    ({"width": 0}, r"width=0 .*even"),
    ({"in_channels": 0}, r"in_channels=0.*>= 1"),
    ({"num_classes": -1}, r"num_classes=-1.*>= 0"),
    ({"output_stride": 12}, r"output_stride=12 .*4, 8, 16, 32"),
    ({"output_stride": 4, "stem_stride": 4}, r"output_stride=4 .*stem's stride 8.*stem_stride"),
)


@pytest.mark.parametrize(("options", "message"), BAD, ids=str)
def test_bad_options_say_what_is_allowed(options: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(OptionError, match=message):
        ResNet3D(**options)


def test_options_are_keywords() -> None:
    with pytest.raises(TypeError):
        ResNet3D(18)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("shape", "message"),
    [((1, 3, 8, 8), "rgb_to_depth"), ((1, 3, 4, 8, 8), r"\(1, 3, 4, 8, 8\).*\(N, 1, D, H, W\)"), ((8, 8), r"\(8, 8\)")],
)
def test_bad_input_shapes(shape: tuple[int, ...], message: str) -> None:
    with torch.device("meta"), pytest.raises(OptionError, match=message):
        ResNet3D(depth=10)(torch.empty(shape))
