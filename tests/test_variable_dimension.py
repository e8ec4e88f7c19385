"""Laws of the variable dimension transform."""

from __future__ import annotations

import copy
import pickle
from itertools import permutations
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers_depth import helper, resnet, settings
from torch import Tensor, nn
from torch.nn.functional import max_pool3d as aliased_pool

from svd_hub.errors import OptionError
from svd_hub.models.p3d import P3D
from svd_hub.variable_dimension import (
    PRETRAIN_MEAN,
    PRETRAIN_STD,
    GroupTransform,
    centre_slice,
    is_preserved,
    preserve_depth,
    pretrain_input,
    restore_depth,
    rgb_to_depth,
)

torch.set_num_threads(1)


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


@pytest.mark.parametrize("depth", [1, 3, 5])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stem": "v1c"},
        {"stem_depth": 3, "stem_pool": False},
        {"output_stride": 8},
        {"shortcut": "A"},
        {"depth": 50},
        {"convolution": "acs"},
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


def test_is_preserved_tells_a_changed_network() -> None:
    vanilla, kept = resnet(depth_stride=2), resnet(depth_stride=1)
    changed = preserve_depth(vanilla)[0]
    assert is_preserved(changed)
    assert is_preserved(copy.deepcopy(changed))
    assert is_preserved(nn.Sequential(nn.Identity(), changed))
    assert not any(is_preserved(net) for net in (vanilla, kept, restore_depth(changed), preserve_depth(kept)[0]))


@pytest.mark.parametrize("depth", [1, 3, 5])
def test_torchvision_style(depth: int) -> None:
    new, report = preserve_depth(r3d().eval(), strict=True)
    assert report.global_pools == ("4",)
    assert new[:4](torch.rand(1, 1, depth, 16, 16)).shape == (1, 8, depth, 2, 2)
    assert new(torch.rand(1, 1, depth, 16, 16)).shape == (1, 2)


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


def test_a_report_names_the_levels_that_changed_and_not_the_whole_pyramid() -> None:
    _, report = preserve_depth(resnet(depth_stride=2))
    (line,) = [line for line in str(report).splitlines() if "feature_info" in line]
    assert "feature_info" in line
    assert "Feature(" not in line
    assert line.count(" -> ") == 5
    assert len(line) < 250
