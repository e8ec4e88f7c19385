"""Laws of DenseNet3D: an independent statement of its forward, torchvision's keys and numbers, shapes, errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks_2d import DenseNet, randomise
from torch import Tensor, nn

from svd_hub.errors import OptionError
from svd_hub.inflation import inflate
from svd_hub.models.acs import dense_kernel
from svd_hub.models.densenet3d import BLOCKS, DenseNet3D
from svd_hub.models.layers import Feature
from svd_hub.variable_dimension import preserve_depth

torch.set_num_threads(1)
State = dict[str, Tensor]
LEVELS = ("level0", "level1", "level2", "level3", "level4")


def make(**options: Any) -> tuple[DenseNet3D, State]:
    """A narrow network in double precision, evaluation mode, with values that matter."""
    model = DenseNet3D(**{"width": 4, **options}).double().eval()
    randomise(model)
    return model, dict(model.state_dict())


def volume(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def canonical(state: State) -> State:
    """torchvision's names -> ours."""
    return {n.removeprefix("features.").replace("classifier.", "fc."): t for n, t in state.items()}


# An independent statement, in plain functions, of what a state dict means.


def state_norm(p: State, name: str, x: Tensor) -> Tensor:
    mean, var = p[f"{name}.running_mean"], p[f"{name}.running_var"]
    return F.relu(F.batch_norm(x, mean, var, p[f"{name}.weight"], p[f"{name}.bias"]))


def state_forward(p: State, x: Tensor, *, depth_stride: int) -> dict[str, Tensor]:
    halve = (depth_stride, 2, 2)
    kernels = {n: dense_kernel(t) if t.ndim == 4 else t for n, t in p.items() if n.endswith("weight")}
    x = state_norm(p, "norm0", F.conv3d(x, kernels["conv0.weight"], stride=halve, padding=3))
    maps = {"level0": x}
    x = F.max_pool3d(x, 3, stride=halve, padding=1)
    for level in (1, 2, 3, 4):
        index, block = 1, f"denseblock{level}.denselayer"
        while f"{block}{index}.conv1.weight" in p:
            y = F.conv3d(state_norm(p, f"{block}{index}.norm1", x), kernels[f"{block}{index}.conv1.weight"])
            y = F.conv3d(state_norm(p, f"{block}{index}.norm2", y), kernels[f"{block}{index}.conv2.weight"], padding=1)
            x, index = torch.cat([x, y], dim=1), index + 1
        maps[f"level{level}"] = x
        if level < 4:
            x = F.conv3d(state_norm(p, f"transition{level}.norm", x), kernels[f"transition{level}.conv.weight"])
            x = F.avg_pool3d(x, halve, stride=halve)
    maps["level4"] = state_norm(p, "norm5", x)
    return maps


@pytest.mark.parametrize("convolution", ["3d", "acs"])
@pytest.mark.parametrize("depth_stride", [1, 2])
def test_forward_is_the_statement(depth_stride: int, convolution: str) -> None:
    model, state = make(depth_stride=depth_stride, convolution=convolution)
    x = volume(2, 1, 30 if depth_stride == 2 else 3, 33, 40)
    expected = state_forward(state, x, depth_stride=depth_stride)
    found = model.features(x)
    assert tuple(found) == LEVELS
    for name in LEVELS:
        torch.testing.assert_close(found[name], expected[name])


@pytest.mark.parametrize("method", ["i3d", "acs"])
def test_it_is_torchvisions_network_inflated(method: str) -> None:
    """torchvision's 2D form, converted module by module, is another network with the same answers."""
    flat = DenseNet(BLOCKS[121], width=4, num_classes=3).double().eval()
    randomise(flat)
    inflated: Any = inflate(flat, method=method, strict=False)
    form = "acs" if method == "acs" else "3d"
    ours = DenseNet3D(width=4, num_classes=3, depth_stride=2, convolution=form).double().eval()
    ours.load_state_dict(canonical(inflated.state_dict()))
    x = volume(1, 1, 31, 33, 40)
    pooled = F.adaptive_avg_pool3d(F.relu(inflated.features(x)), 1)
    torch.testing.assert_close(ours(x), inflated.classifier(pooled.flatten(1)), rtol=0, atol=0)


def count(depth: int, channels: int, classes: int, kernel: int) -> int:
    """Parameters by arithmetic: `kernel` numbers per k x k x ... kernel of side 3 or 7 are k ** kernel."""
    total = channels * 64 * 7**kernel + 2 * 64
    now = 64
    for level, layers in enumerate(BLOCKS[depth]):
        for _ in range(layers):
            total += 2 * now + now * 128 + 2 * 128 + 128 * 32 * 3**kernel
            now += 32
        if level < 3:
            total += 2 * now + now * (now // 2)
            now //= 2
    return total + 2 * now + (now * classes + classes if classes else 0)


@pytest.mark.parametrize(("depth", "flat"), [(121, 7_978_856), (169, 14_149_480), (201, 20_013_928)])
def test_numbers_of_parameters(depth: int, flat: int) -> None:
    with torch.device("meta"):
        acs = DenseNet3D(depth=depth, in_channels=3, num_classes=1000, convolution="acs")
        dense = DenseNet3D(depth=depth)
    assert sum(p.numel() for p in acs.parameters()) == flat == count(depth, 3, 1000, 2)
    assert sum(p.numel() for p in dense.parameters()) == count(depth, 1, 0, 3)


def test_the_acs_form_has_the_state_of_the_2d_network() -> None:
    with torch.device("meta"):
        flat = canonical(DenseNet().state_dict())
        acs = DenseNet3D(in_channels=3, num_classes=1000, convolution="acs").state_dict()
        dense = DenseNet3D(in_channels=3, num_classes=1000).state_dict()
    assert {n: t.shape for n, t in acs.items()} == {n: t.shape for n, t in flat.items()}
    assert list(dense) == list(acs)
    assert all(dense[n].shape == (*t.shape[:3], *t.shape[2:]) if t.ndim == 4 else True for n, t in acs.items())
    assert {
        *("conv0.weight", "norm0.running_var", "denseblock1.denselayer1.norm1.weight", "fc.weight", "fc.bias"),
        *("denseblock4.denselayer16.conv2.weight", "transition3.norm.bias", "transition3.conv.weight", "norm5.weight"),
    } <= set(dense)


FORMS: tuple[dict[str, Any], ...] = (
    {},
    {"depth_stride": 2},
    {"stem_stride": 1},
    {"stem_stride": (1, 2, 2), "depth_stride": 2},
    {"stem_pool": False, "depth_stride": 2},
    {"depth": 169},
    {"depth": 201, "convolution": "acs"},
)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_feature_info_is_the_shape(form: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = DenseNet3D(width=16, **form)
        maps = model.features(torch.empty(2, 1, 64, 64, 96))
    assert tuple(maps) == tuple(info.name for info in model.feature_info) == LEVELS
    for info, level in zip(model.feature_info, maps.values(), strict=True):
        assert level.shape == (2, info.channels, *(n // s for n, s in zip((64, 64, 96), info.stride, strict=True)))


def test_feature_info_of_the_two_forms() -> None:
    with torch.device("meta"):
        kept, halved = DenseNet3D().feature_info, DenseNet3D(depth_stride=2).feature_info
    assert [info.channels for info in kept] == [64, 256, 512, 1024, 1024]
    assert [info.stride for info in kept] == [(1, n, n) for n in (2, 4, 8, 16, 32)]
    assert halved == tuple(Feature(i.name, i.channels, (i.stride[1],) * 3) for i in kept)


@pytest.mark.parametrize("depth", [1, 3, 5])
def test_depth_is_kept(depth: int) -> None:
    model, _ = make(features_only=True)
    assert [level.shape[2] for level in model(volume(1, 1, depth, 32, 32)).values()] == [depth] * 5


@pytest.mark.parametrize("depth_stride", [1, 2])
def test_no_parameter_depends_on_a_stride(depth_stride: int) -> None:
    _, state = make()
    other = DenseNet3D(width=4, depth_stride=depth_stride, stem_stride=1, stem_pool=False)
    other.double().load_state_dict(state)


def test_preserve_depth_treats_it_like_depth_stride_1_at_the_pools() -> None:
    strided, state = make(depth_stride=2, features_only=True)
    kept, _ = make(features_only=True)
    kept.load_state_dict(state)
    treated, report = preserve_depth(strided)
    assert report.complete
    x = volume(1, 1, 3, 40, 40)
    torch.testing.assert_close(treated(x), kept(x), rtol=0, atol=0)


def test_what_forward_returns() -> None:
    x = volume(2, 1, 3, 32, 32)
    pyramid, state = make(features_only=True)
    assert not any(hasattr(pyramid, name) for name in ("fc", "avgpool"))
    maps = pyramid(x)
    pooled, _ = make()
    pooled.load_state_dict(state)
    torch.testing.assert_close(pooled(x), maps["level4"].mean((2, 3, 4)))
    logits, head = make(num_classes=6)
    head.update(state)
    logits.load_state_dict(head)
    torch.testing.assert_close(logits(x), pooled(x) @ logits.fc.weight.T + logits.fc.bias)


def test_no_level_is_overwritten_behind_it() -> None:
    model, state = make(stem_pool=False)
    x = volume(1, 1, 3, 16, 16)
    expected = state_norm(state, "norm0", F.conv3d(x, state["conv0.weight"], stride=(1, 2, 2), padding=3))
    torch.testing.assert_close(model.features(x)["level0"], expected)


@pytest.mark.parametrize("convolution", ["3d", "acs"])
def test_every_parameter_gets_a_gradient(convolution: str) -> None:
    torch.manual_seed(0)
    model = DenseNet3D(width=4, num_classes=42, convolution=convolution)
    F.cross_entropy(model(torch.randn(3, 1, 3, 64, 64)), torch.tensor([0, 7, 41])).backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]


@pytest.mark.parametrize(("convolution", "taps"), [("3d", 27), ("acs", 9)])
def test_initialisation(convolution: str, taps: int) -> None:
    torch.manual_seed(0)
    model = DenseNet3D(num_classes=2, convolution=convolution)
    wide = model.get_parameter("denseblock4.denselayer1.conv2.weight")
    assert wide.std().item() == pytest.approx(math.sqrt(2 / (128 * taps)), rel=0.05)
    assert not model.fc.bias.any()
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm3d)):
        assert norm.weight.eq(1).all()
        assert not norm.bias.any()


@pytest.mark.parametrize("form", FORMS[:5], ids=str)
def test_least_size(form: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = DenseNet3D(width=4, **form).eval()
        least = model.least_size
        assert model.features(torch.empty(1, 1, *least))["level4"].shape[2:] == (1, 1, 1)
        for axis in range(3):
            size = [n - (index == axis) for index, n in enumerate(least)]
            if size[axis]:
                with pytest.raises(OptionError, match=r"allowed: .*\(D, H, W\) or more. Next: "):
                    model(torch.empty(1, 1, *size))
        assert preserve_depth(model)[0].least_size[0] == 1


BAD: tuple[tuple[dict[str, Any], str], ...] = (
    ({"depth": 161}, r"depth=161 .*121, 169, 201"),
    ({"convolution": "2d"}, r"convolution='2d' .*3d.*acs"),
    ({"depth_stride": 3}, r"depth_stride=3 .*1, 2"),
    ({"width": 7}, r"width=7 .*even"),
    ({"width": 64.0}, r"width=64.0 .*even"),
    ({"stem_stride": 0}, r"stem_stride=0 .*positive"),
    ({"stem_stride": (2, 2)}, r"stem_stride=\(2, 2\) .*\(D, H, W\)"),
    ({"in_channels": 0}, r"in_channels=0.*>= 1"),
    ({"num_classes": -1}, r"num_classes=-1.*>= 0"),
)


@pytest.mark.parametrize(("options", "message"), BAD, ids=str)
def test_bad_options_say_what_is_allowed(options: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(OptionError, match=message):
        DenseNet3D(**options)


@pytest.mark.parametrize(
    ("shape", "message"), [((1, 3, 8, 8), "rgb_to_depth"), ((1, 3, 4, 8, 8), r"\(N, 1, D, H, W\)")]
)
def test_bad_input_shapes(shape: tuple[int, ...], message: str) -> None:
    with torch.device("meta"), pytest.raises(OptionError, match=message):
        DenseNet3D()(torch.empty(shape))
