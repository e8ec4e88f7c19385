"""Laws of the variable dimension transform."""

from __future__ import annotations

import copy
import functools
import pickle
from itertools import permutations
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import max_pool3d as aliased_pool

from svd_hub.errors import OptionError
from svd_hub.models.p3d import P3D
from svd_hub.models.resnet3d import ResNet3D
from svd_hub.variable_dimension import (
    PRETRAIN_MEAN,
    PRETRAIN_STD,
    GroupTransform,
    centre_slice,
    preserve_depth,
    pretrain_input,
    restore_depth,
    rgb_to_depth,
)

torch.set_num_threads(1)


def resnet(**options: Any) -> ResNet3D:
    torch.manual_seed(0)
    return ResNet3D(**{"depth": 18, "width": 4, "init": "kaiming", "features_only": True, **options}).eval()


class Residual(nn.Module):
    def __init__(self, a: int, b: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv3d(a, b, 3, stride, 1, bias=False), nn.BatchNorm3d(b), nn.ReLU())
        self.conv2 = nn.Sequential(nn.Conv3d(b, b, 3, 1, 1, bias=False), nn.BatchNorm3d(b))
        self.downsample = nn.Sequential(nn.Conv3d(a, b, 1, stride, bias=False), nn.BatchNorm3d(b))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(self.conv1(x)) + self.downsample(x))


def r3d() -> nn.Sequential:
    """A plain network like torchvision's r3d: strides in depth, 3x7x7 stem, no pool."""
    stem = nn.Conv3d(1, 4, (3, 7, 7), (1, 2, 2), (1, 3, 3))
    blocks = Residual(4, 4, 1), Residual(4, 8, 2), Residual(8, 8, 2)
    return nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool3d((1, 1, 1)), nn.Flatten(), nn.Linear(8, 2))


def helper(x: Tensor) -> Tensor:
    return F.avg_pool3d(x, 2)


class UserNet(nn.Module):
    """What users write: functional pools (direct, aliased, in a helper), a transposed and an even convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 2, 3, stride=2, padding=1)
        self.patch = nn.Conv3d(2, 2, 2, stride=2)
        self.up = nn.ConvTranspose3d(2, 2, 2, stride=2)
        self.wide = nn.Upsample(scale_factor=2.0)
        self.pad = 3  # a number called like a function
        self.interpolate = nn.Identity()  # a submodule called like a function

    def inner(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0) + self.pad

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(self.patch(F.max_pool3d(self.interpolate(self.conv(x)), 2)))
        return helper(aliased_pool(self.wide(self.up(x)), 2))


# ---- III-A: images as volumes ----


def test_rgb_planes_are_slices_and_a_view() -> None:
    x = torch.rand(2, 3, 4, 5)
    volume = rgb_to_depth(x)
    assert volume.shape == (2, 1, 3, 4, 5)
    assert volume.data_ptr() == x.data_ptr()
    for plane in range(3):
        assert torch.equal(volume[:, 0, plane], x[:, plane])


@pytest.mark.parametrize("shape", [(3, 4, 4), (2, 1, 4, 4), (2, 4, 4, 3), (1, 1, 3, 4, 4)])
def test_other_shapes_are_refused_with_the_allowed_one(shape: tuple[int, ...]) -> None:
    for function in (rgb_to_depth, pretrain_input):
        with pytest.raises(OptionError, match=r"allowed: \(N, 3, H, W\)"):
            function(torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float32, torch.float64])
def test_pretrain_input_is_one_mean_and_std(dtype: torch.dtype) -> None:
    x = torch.randint(0, 256, (2, 3, 4, 5)).to(dtype)
    kept = x.clone()
    got = pretrain_input(x)
    expected = (x.double() - PRETRAIN_MEAN) / PRETRAIN_STD
    assert got.dtype == (dtype if dtype.is_floating_point else torch.float32)
    torch.testing.assert_close(got, expected[:, None].to(got.dtype))
    assert torch.equal(x, kept)


def test_shuffle_is_uniform_over_six_orders_and_belongs_to_the_generator() -> None:
    n = 6000
    x = torch.tensor([0.0, 100.0, 200.0]).view(1, 3, 1, 1).expand(n, 3, 1, 1)

    def draw(seed: int) -> Tensor:
        return pretrain_input(x, shuffle=True, generator=torch.Generator().manual_seed(seed)).flatten(1)

    rows = ((draw(0) * PRETRAIN_STD + PRETRAIN_MEAN) / 100).round().long().tolist()
    counts = {order: sum(tuple(row) == order for row in rows) for order in permutations(range(3))}
    assert sum(counts.values()) == n  # nothing but permutations
    assert sum((c - n / 6) ** 2 / (n / 6) for c in counts.values()) < 20.5  # chi-square, 5 degrees, p = 0.001
    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_shuffle_moves_whole_planes() -> None:
    x = torch.rand(8, 3, 4, 4) * 255
    got = pretrain_input(x, shuffle=True, generator=torch.Generator().manual_seed(0))[:, 0]
    plain = pretrain_input(x)[:, 0]
    for image in range(8):
        assert any(torch.equal(got[image], plain[image, list(order)]) for order in permutations(range(3)))


# ---- III-B: depth is kept ----


@pytest.mark.parametrize("depth", [1, 3, 5])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stem": "v1c"},
        {"stem": "3x7x7", "stem_pool": False},
        {"output_stride": 8},
        {"shortcut": "A"},
        {"depth": 50},
    ],
    ids=str,
)
def test_every_level_keeps_depth_and_plane(options: dict[str, Any], depth: int) -> None:
    model = resnet(depth_stride=2, **options)
    new, report = preserve_depth(model, strict=True)
    x = torch.rand(1, 1, depth, 32, 40)
    before, after = model(x), new(x)
    assert list(after) == list(before)
    assert report.complete
    for name in after:
        assert after[name].shape[2] == depth
        assert after[name].shape[3:] == before[name].shape[3:]
    assert [f.stride for f in new.feature_info] == [(1, *f.stride[1:]) for f in model.feature_info]


def test_it_turns_the_transfer_form_into_the_pretraining_form() -> None:
    vanilla, kept = resnet(depth_stride=2), resnet(depth_stride=1)
    kept.load_state_dict(vanilla.state_dict())
    new, _ = preserve_depth(vanilla)
    x = torch.rand(1, 1, 3, 32, 32)
    assert settings(new) == settings(kept)
    for name, level in kept(x).items():
        assert torch.equal(new(x)[name], level)
    again, report = preserve_depth(kept, strict=True)
    assert not report.changed
    assert settings(again) == settings(kept)


def test_p3d_with_its_z_pools() -> None:
    torch.manual_seed(0)
    model = P3D(variant="18ba", form="p3d", width=4, depth_stride=2, features_only=True).eval()
    new, report = preserve_depth(model, strict=True)
    assert [change.name for change in report.changed] == ["zpool1", "zpool2", "zpool3", ""]
    assert [f.stride[0] for f in new.feature_info] == [1] * 5
    x = torch.rand(1, 1, 9, 64, 64)
    assert [level.shape[2] for level in model(x).values()] == [9, 9, 5, 3, 1]
    assert [level.shape[2] for level in new(x).values()] == [9] * 5


def settings(module: nn.Module) -> dict[str, Any]:
    """Everything of each submodule that is not a tensor, a submodule or a hook."""
    keys: tuple[str, ...] = (
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "count_include_pad",
        "_reversed_padding_repeated_twice",
    )
    keys += ("feature_info",)
    return {f"{name}.{key}": vars(m)[key] for name, m in module.named_modules() for key in keys if key in vars(m)}


def odd_corners() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(1, 2, 3, stride=2, padding="valid"),
        nn.Conv3d(2, 2, 3, padding="same"),
        nn.Conv3d(2, 2, (3, 1, 1), stride=2, padding_mode="replicate"),
        nn.AvgPool3d(3, 2),
        nn.MaxPool3d(2, ceil_mode=True),
    )


@pytest.mark.parametrize(
    "make", [lambda: resnet(depth_stride=2), lambda: resnet(depth_stride=2, shortcut="A"), r3d, odd_corners]
)
@pytest.mark.parametrize("carry", [lambda m: m, copy.deepcopy, lambda m: preserve_depth(m)[0]])
def test_never_in_place_and_restore_is_the_inverse(make: Any, carry: Any) -> None:
    torch.manual_seed(0)
    model = make().eval()
    before, state = settings(model), {k: v.clone() for k, v in model.state_dict().items()}
    x = torch.rand(1, 1, 32, 48, 48)
    kept, report = preserve_depth(model)
    assert report.changed
    assert settings(model) == before
    assert settings(kept) != before
    back = restore_depth(carry(kept))
    for other in (model, kept, back):
        assert list(other.state_dict()) == list(state)
        assert all(torch.equal(other.state_dict()[key], value) for key, value in state.items())
    assert settings(back) == before
    assert {type(v) for v in settings(back).values()} == {type(v) for v in before.values()}
    assert settings(kept) != before  # restore is not in place either
    assert str(flat(back(x))) == str(flat(model(x)))
    assert all(torch.equal(a, b) for a, b in zip(flat(back(x)), flat(model(x)), strict=True))
    shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in kept.parameters()}
    assert not shared
    with pytest.raises(OptionError, match="nothing to restore"):
        restore_depth(back)


def flat(out: Any) -> list[Tensor]:
    return list(out.values()) if isinstance(out, dict) else [out]


def test_pickle_and_foreign_state_keep_the_originals() -> None:
    model = resnet(depth_stride=2)
    kept = pickle.loads(pickle.dumps(preserve_depth(model)[0]))
    kept.load_state_dict(resnet(depth_stride=1).state_dict())
    assert settings(restore_depth(kept)) == settings(model)


def test_twice_is_once() -> None:
    model = resnet(depth_stride=2)
    once, first = preserve_depth(model)
    twice, second = preserve_depth(once)
    assert first.changed
    assert not second.changed
    assert settings(once) == settings(twice)
    assert settings(restore_depth(twice)) == settings(model)


def test_restore_knows_the_first_settings() -> None:
    once, _ = preserve_depth(nn.Sequential(nn.MaxPool3d(3, 2, 1)))
    vars(once[0])["stride"] = (3, 2, 2)  # someone's own idea in between
    twice, _ = preserve_depth(once)
    assert twice[0].stride == (1, 2, 2)
    assert restore_depth(twice)[0].stride == 2


def test_restore_after_nothing_had_to_change() -> None:
    model = resnet(depth_stride=1)
    assert settings(restore_depth(preserve_depth(model)[0])) == settings(model)
    with pytest.raises(OptionError, match="ResNet3D did not come out of preserve_depth"):
        restore_depth(model)


@pytest.mark.parametrize("depth", [1, 3, 5])
def test_torchvision_style(depth: int) -> None:
    new, report = preserve_depth(r3d().eval(), strict=True)
    assert report.global_pools == ("4",)
    assert new[:4](torch.rand(1, 1, depth, 16, 16)).shape == (1, 8, depth, 2, 2)
    assert new(torch.rand(1, 1, depth, 16, 16)).shape == (1, 2)


LAYERS = [
    nn.Conv3d(1, 1, 5, 2, 4, dilation=(2, 1, 1)),
    nn.Conv3d(1, 1, 3),
    nn.Conv3d(1, 1, (3, 4, 4), 2, "valid"),
    nn.Conv3d(1, 1, (3, 1, 1), (2, 1, 1), padding_mode="reflect"),
    nn.Conv3d(1, 1, (2, 1, 1), (2, 1, 1), dilation=(2, 1, 1)),  # span 2: a symmetric padding exists
    nn.Conv3d(1, 1, 1, 2, 1),
    nn.Conv3d(1, 1, 3, padding="same"),
    nn.MaxPool3d(3, 2),
    nn.MaxPool3d(5, (3, 2, 1), 2),
    nn.MaxPool3d(2),
    nn.MaxPool3d((4, 3, 3), 2, 1),
    nn.MaxPool3d(3, 2, ceil_mode=True),
    nn.MaxPool3d((1, 3, 3), 2, dilation=2),
    nn.AvgPool3d(2, 2),
    nn.AvgPool3d(3, 2, 1),
    nn.AvgPool3d((3, 2, 2)),
    nn.AvgPool3d(2, 2, ceil_mode=True),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("depth", [3, 4, 7])
def test_single_layers_keep_depth_and_plane(layer: nn.Module, depth: int) -> None:
    new, report = preserve_depth(layer, strict=True)
    deep = torch.rand(1, 1, 24, 13, 14)  # deep enough for the original
    got = new(torch.rand(1, 1, depth, 13, 14))
    assert got.shape[2] == depth
    assert got.shape[3:] == layer(deep).shape[3:]
    assert (settings(new) == settings(layer)) == (not report.changed)


@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (3, 2), (5, 3), (7, 1)])
def test_depth_padding_follows_the_dilation(kernel: int, dilation: int) -> None:
    conv = nn.Conv3d(1, 1, kernel, stride=2, padding=1, dilation=(dilation, 1, 2))
    new, _ = preserve_depth(conv)
    assert new.padding == (dilation * (kernel - 1) // 2, 1, 1)
    assert new.stride == (1, 2, 2)


def test_kept_depth_is_centred() -> None:
    """With a one at the centre tap, the new convolution is the identity along depth, whatever its padding_mode."""
    for mode in ("zeros", "replicate"):
        conv = nn.Conv3d(1, 1, (5, 1, 1), stride=(2, 1, 1), dilation=(2, 1, 1), padding_mode=mode, bias=False)
        nn.init.zeros_(conv.weight)
        with torch.no_grad():
            conv.weight[:, :, 2] = 1
        x = torch.rand(1, 1, 7, 3, 3)
        assert torch.equal(preserve_depth(conv)[0](x), x)


def test_average_of_a_constant_stays_the_constant() -> None:
    ones = torch.ones(1, 1, 3, 9, 9)
    for pool in (nn.AvgPool3d(3, 2), nn.AvgPool3d(2), nn.AvgPool3d((3, 1, 2), 1)):
        torch.testing.assert_close(preserve_depth(pool)[0](ones).unique(), torch.ones(1))
    # a pool that counted zeros before still counts them
    assert preserve_depth(nn.AvgPool3d(3, 2, 1))[0].count_include_pad


LEFTOVERS = [
    (nn.Conv3d(1, 1, 2, 2), "even depth kernel 2"),
    (nn.Conv3d(1, 1, 4, 1, 1), "even depth kernel 4"),
    (nn.ConvTranspose3d(1, 1, 2, 2), "transposed convolution with depth stride 2"),
    (nn.ConvTranspose3d(1, 1, 3), "transposed convolution that changes the depth by 2"),
    (nn.MaxPool3d(2, return_indices=True), "return_indices"),
    (nn.MaxPool3d(3, 1, 1, dilation=2), "dilated max pool"),
    (nn.AvgPool3d(2, divisor_override=3), "divisor_override"),
    (nn.LPPool3d(2, 2), "LPPool3d"),
    (nn.MaxUnpool3d(2), "MaxUnpool3d"),
    (nn.FractionalMaxPool3d(2, output_size=2), "FractionalMaxPool3d"),
    (nn.AdaptiveAvgPool3d(2), "adaptive pool to depth 2"),
    (nn.Upsample(scale_factor=2.0), "Upsample"),
    (nn.LazyConv3d(2, 3, 2), "lazy module"),
]


@pytest.mark.parametrize(("layer", "reason"), LEFTOVERS, ids=lambda v: str(v)[:30])
def test_leftovers_are_named_and_left_alone(layer: nn.Module, reason: str) -> None:
    model = nn.Sequential(nn.Identity(), nn.Sequential(layer))
    new, report = preserve_depth(model)
    assert [name for name, _ in report.untreated] == ["1.0"]
    assert reason in report.untreated[0][1]
    assert settings(new) == settings(model)
    assert not report.complete
    assert f"1.0: {report.untreated[0][1]}" in str(report)
    with pytest.raises(OptionError, match=r"1\.0: .*") as caught:
        preserve_depth(model, strict=True)
    assert reason in str(caught.value)


HARMLESS = [
    nn.ConvTranspose3d(1, 1, (1, 2, 2), (1, 2, 2)),
    nn.ConvTranspose3d(1, 1, 3, 1, 1),
    nn.Upsample(scale_factor=(1.0, 2.0, 2.0)),
    nn.AdaptiveAvgPool3d((None, 4, 4)),
    nn.MaxUnpool3d((1, 2, 2)),
    nn.MaxPool3d((1, 2, 2), return_indices=True),
    nn.Conv2d(1, 1, 2, 2),
    nn.MaxPool2d(2),
]


@pytest.mark.parametrize("layer", HARMLESS, ids=str)
def test_what_keeps_depth_by_itself_is_no_leftover(layer: nn.Module) -> None:
    _, report = preserve_depth(layer, strict=True)
    assert not report.changed


def test_global_pools_are_listed_and_no_leftover() -> None:
    model = nn.ModuleDict(
        {"a": nn.AdaptiveAvgPool3d(1), "b": nn.AdaptiveMaxPool3d((1, 2, 2)), "c": nn.AdaptiveAvgPool3d((None, 1, 1))}
    )
    _, report = preserve_depth(model, strict=True)
    assert report.global_pools == ("a", "b")


def test_user_network_reports_every_leftover_by_name() -> None:
    new, report = preserve_depth(nn.Sequential(UserNet()))
    reasons = dict[str, str]()
    for name, reason in report.untreated:
        reasons[name] = f"{reasons.get(name, '')} {reason}"
    assert set(reasons) == {"0", "0.patch", "0.up", "0.wide"}
    assert "possible functional pool in forward of 0 (UserNet): avg_pool3d, max_pool3d" in reasons["0"]
    assert "possible functional interpolation in forward of 0 (UserNet): interpolate" in reasons["0"]
    assert "padding" not in reasons["0"]  # self.pad is a number
    assert [change.name for change in report.changed] == ["0.conv"]
    assert new[0].conv.stride == (1, 2, 2)
    with pytest.raises(OptionError) as caught:
        preserve_depth(nn.Sequential(UserNet()), strict=True)
    for name in reasons:
        assert f"{name}: " in str(caught.value)


class Calls(nn.Module):
    """A forward that is told what to do; each subclass hides a pool elsewhere."""

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x)

    def act(self, x: Tensor) -> Tensor:
        return x.relu()


class InComprehension(Calls):
    def act(self, x: Tensor) -> Tensor:
        return torch.cat([F.max_pool3d(part, 2) for part in x.unbind()])


class InAttribute(Calls):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def act(self, x: Tensor) -> Tensor:
        out: Tensor = self.function(x, 2)
        return out


class InSuper(InComprehension):
    def act(self, x: Tensor) -> Tensor:
        return super().act(x)


class InSlice(Calls):
    def act(self, x: Tensor) -> Tensor:
        return x[:, :, ::2]


class LocalImport(Calls):
    def act(self, x: Tensor) -> Tensor:
        from torch.nn import functional

        return functional.max_pool3d(x, 2)


class Decorated(Calls):
    @torch.no_grad()
    def act(self, x: Tensor) -> Tensor:
        return F.max_pool3d(x, 2)


class MadeInForward(Calls):
    def act(self, x: Tensor) -> Tensor:
        out: Tensor = nn.MaxPool3d(2)(x)
        return out


class Replaced(InComprehension):
    def act(self, x: Tensor) -> Tensor:
        sizes = list(x.shape)[::-1]
        return x[:, :, : sizes[0]]


@pytest.mark.parametrize(
    ("module", "word"),
    [
        (InComprehension(), "max_pool3d"),
        (InAttribute(F.max_pool3d), "max_pool3d"),
        (InAttribute(F.avg_pool3d), "avg_pool3d"),
        (InAttribute(functools.partial(F.max_pool3d, stride=2)), "max_pool3d"),
        (InAttribute(functools.partial(helper)), "avg_pool3d"),
        (InSuper(), "max_pool3d"),
        (InSlice(), "strided slice"),
        (LocalImport(), "max_pool3d"),
        (Decorated(), "max_pool3d"),
        (torch.fx.symbolic_trace(InComprehension.__mro__[1]()), ""),
        (torch.fx.symbolic_trace(LocalImport()), "max_pool3d"),
        (Calls(), ""),
        (InAttribute(torch.relu), ""),
        (Replaced(), ""),
        (MadeInForward(), "MaxPool3d"),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else v,
)
def test_functional_calls_are_found_where_they_hide(module: nn.Module, word: str) -> None:
    _, report = preserve_depth(module)
    assert [name for name, _ in report.untreated] == ([""] if word else [])
    assert all(word in reason for _, reason in report.untreated)


def test_same_padding_by_hand_is_reported_not_doubled() -> None:
    """As the Inception-I3D ports do: the padding comes from F.pad, a second one would let the depth grow."""

    class SamePool(nn.MaxPool3d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(F.pad(x, (1, 1, 1, 1, 1, 1)))

    class Standardised(nn.Conv3d):
        def forward(self, x: Tensor) -> Tensor:
            weight = self.weight - self.weight.mean()
            return self._conv_forward(x, weight, self.bias)

    new, report = preserve_depth(nn.Sequential(SamePool(3, 2), Standardised(1, 1, 3, 2, 1)))
    assert report.untreated == (("0", "pads by itself in its forward"),)
    assert new[1](torch.rand(1, 1, 3, 8, 8)).shape == (1, 1, 3, 4, 4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_parts_are_reported() -> None:
    model = nn.Sequential(nn.Conv3d(1, 1, 3, 2, 1), torch.jit.script(nn.Sequential(nn.MaxPool3d(2))))
    _, report = preserve_depth(model)
    assert [name for name, _ in report.untreated] == ["1"]
    assert "before torch.jit.script" in report.untreated[0][1]
    _, report = preserve_depth(model[1])
    assert [name for name, _ in report.untreated] == [""]


def test_pyramid_description_is_not_claimed_with_leftovers() -> None:
    model = resnet(depth_stride=2)
    model.extra = UserNet()
    new, report = preserve_depth(model)
    assert new.feature_info == model.feature_info
    assert any("feature_info" in reason for name, reason in report.untreated if name == "")


def test_report_is_readable_and_frozen() -> None:
    _, report = preserve_depth(r3d())
    text = str(report)
    assert "2.conv1.0 (Conv3d): stride (2, 2, 2) -> (1, 2, 2)" in text
    assert "global     4" in text
    assert report.changed[0].before == {"stride": (2, 2, 2)}
    with pytest.raises(AttributeError):
        report.changed = ()  # type: ignore[misc]


def test_monai_shortcut_a_is_reported() -> None:
    """MONAI makes an average pool inside a partial of a method; nothing of it is a module."""
    nets = pytest.importorskip("monai.networks.nets")
    for kind, names in (("A", {"layer2.0", "layer3.0", "layer4.0"}), ("B", set())):
        model = nets.ResNet("basic", (1, 1, 1, 1), (2, 4, 8, 16), n_input_channels=1, shortcut_type=kind)
        _, report = preserve_depth(model)
        assert names <= {name for name, _ in report.untreated}
        assert report.complete == (kind == "B")


@pytest.mark.parametrize("full", [False, True])
def test_monai_densenet(full: bool) -> None:
    nets = pytest.importorskip("monai.networks.nets")
    torch.manual_seed(0)
    small = {} if full else {"init_features": 8, "growth_rate": 4, "block_config": (2, 2, 2)}
    kind = nets.DenseNet121 if full else nets.DenseNet
    model = kind(spatial_dims=3, in_channels=1, out_channels=2, **small).eval()
    new, report = preserve_depth(model, strict=True)
    assert report.global_pools == ("class_layers.pool",)
    depths: dict[str, int] = {}
    planes: dict[str, list[tuple[int, ...]]] = {}
    for which, net in (("old", model), ("new", new)):
        for name, module in net.named_modules():

            def hook(_m: nn.Module, _i: Any, out: Tensor, name: str = name, which: str = which) -> None:
                if out.ndim == 5 and not name.startswith("class_layers.pool"):
                    planes.setdefault(name, []).append(tuple(out.shape[3:]))
                    if which == "new":
                        depths[name] = out.shape[2]

            module.register_forward_hook(hook)
    with torch.no_grad():
        model(torch.rand(1, 1, 32, 32, 32))
        out = new(torch.rand(1, 1, 3, 32, 32))
    assert out.shape == (1, 2)
    assert {"features.pool0", "features.transition1.pool", "features.norm5"} <= set(depths)
    assert set(depths.values()) == {3}
    assert all(len(set(shapes)) == 1 for shapes in planes.values())
    assert list(new.state_dict()) == list(model.state_dict())
    assert settings(restore_depth(new)) == settings(model)


# ---- the paper's point: which depth taps of a kernel are trained ----


def trained_taps(model: nn.Module, depth: int = 3) -> dict[str, list[bool]]:
    """For each convolution with a deep kernel: does each depth tap get any gradient?"""
    x = torch.rand(2, 1, depth, 64, 64, generator=torch.Generator().manual_seed(0))
    level = model.train()(x)["layer4"]
    (level * torch.rand(level.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    return {
        name: [bool(tap.any()) for tap in cast(Tensor, module.weight.grad).unbind(2)]
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv3d) and module.kernel_size[0] > 1
    }


@pytest.mark.parametrize("form", ["built", "preserved"])
@pytest.mark.parametrize("depth", [18, 50])
def test_every_tap_learns_where_depth_is_kept(form: str, depth: int) -> None:
    model = (
        resnet(depth=depth, depth_stride=1)
        if form == "built"
        else preserve_depth(resnet(depth=depth, depth_stride=2))[0]
    )
    taps = trained_taps(model)
    stem = taps.pop("conv1")
    assert len(taps) == 16
    assert all(tap == [True, True, True] for tap in taps.values())
    # three slices cannot reach further than two taps from the centre
    assert stem == [False, True, True, True, True, True, False]


@pytest.mark.parametrize("form", ["built", "restored"])
def test_only_the_centre_tap_learns_in_the_vanilla_form(form: str) -> None:
    model = resnet(depth_stride=2)
    taps = trained_taps(model if form == "built" else restore_depth(preserve_depth(model)[0]))
    taps.pop("conv1")
    assert len(taps) == 16
    assert all(tap == [False, True, False] for tap in taps.values())


def test_every_tap_of_the_v1c_stem_learns() -> None:
    taps = trained_taps(preserve_depth(resnet(depth_stride=2, stem="v1c"))[0])
    assert len(taps) == 19
    assert all(tap == [True, True, True] for tap in taps.values())


def test_a_real_volume_trains_every_tap_in_the_vanilla_form() -> None:
    """The law above is about depth 3, not about strides: the transfer form of a deep volume trains all taps."""
    taps = trained_taps(resnet(depth_stride=2), depth=64)
    assert all(all(tap) for tap in taps.values())


# ---- III-C: the group transform ----


def random_transform(channels: int, depth: int) -> GroupTransform:
    torch.manual_seed(0)
    module = GroupTransform(channels, depth)
    nn.init.normal_(module.weight)
    return module


@pytest.mark.parametrize("depth", [1, 2, 3, 9])
def test_group_transform_starts_as_the_centre_slice(depth: int) -> None:
    x = torch.rand(2, 4, depth, 5, 6)
    torch.testing.assert_close(GroupTransform(4, depth)(x), centre_slice(x), rtol=0, atol=0)
    assert torch.equal(centre_slice(x), x[:, :, depth // 2])


def test_group_transform_is_a_weighted_sum_over_depth() -> None:
    module = random_transform(4, 3)
    x = torch.rand(2, 4, 3, 5, 6)
    torch.testing.assert_close(module(x), torch.einsum("ncdhw,cd->nchw", x, module.weight[:, :, 0, 0]))
    grouped = F.conv2d(x.view(2, 12, 5, 6), module.weight, groups=4)
    torch.testing.assert_close(module(x), grouped, rtol=0, atol=0)


def test_group_transform_has_one_key() -> None:
    assert {k: tuple(v.shape) for k, v in GroupTransform(8, 9).state_dict().items()} == {"weight": (8, 9, 1, 1)}
    # urmagicsmine/MP3D: 34,560 parameters for P3D-63 at nine slices
    assert sum(GroupTransform(c, 9).weight.numel() for c in (256, 512, 1024, 2048)) == 34_560


def test_group_transform_takes_any_memory_order() -> None:
    module = random_transform(4, 3)
    x = torch.rand(2, 4, 3, 5, 6)
    turned = x.permute(0, 2, 3, 4, 1).contiguous().permute(0, 4, 1, 2, 3)
    assert not turned.is_contiguous()
    torch.testing.assert_close(module(turned), module(x))


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_group_transform_can_be_exported() -> None:
    module, x = random_transform(4, 3), torch.rand(2, 4, 3, 5, 6)
    for other in (torch.jit.script(module), torch.jit.trace(module, x), torch.export.export(module, (x,)).module()):
        torch.testing.assert_close(other(x), module(x), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(1, 4, 2, 5, 5), (1, 3, 3, 5, 5), (1, 3, 4, 5, 5), (1, 12, 5, 5), (4, 3, 5, 5)])
def test_group_transform_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(OptionError, match=r"allowed: \(N, 4, 3, H, W\)"):
        GroupTransform(4, 3)(torch.zeros(shape))


def test_group_transform_and_centre_slice_refuse_nonsense() -> None:
    with pytest.raises(OptionError, match="channels=0"):
        GroupTransform(0, 3)
    with pytest.raises(OptionError, match=r"\(N, C, D, H, W\)"):
        centre_slice(torch.zeros(1, 2, 3, 4))
