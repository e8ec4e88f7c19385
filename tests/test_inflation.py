"""Laws of inflate: equal slices give the 2D response, both forms of ACS agree, every kind of module, every report."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks_2d import (
    DenseNet,
    Functional,
    HeadFirst,
    MobileNet,
    NormAct2d,
    Rearranged,
    ResNet,
    SharedWeight,
    SkipToInput,
    SqueezeExcite,
    Twice,
    TwoStems,
    randomise,
)
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

from svd_hub.errors import OptionError
from svd_hub.inflation import INFLATIONS, InflationReport, inflate, inflate_kernel
from svd_hub.inflation_plans import LPPool
from svd_hub.models.acs import ACSConv, dense_kernel
from svd_hub.models.resnet3d import ResNet3D
from svd_hub.variable_dimension import preserve_depth

torch.set_num_threads(1)


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def slices(image: Tensor, depth: int) -> Tensor:
    """(N, C, H, W) -> a volume of equal slices."""
    return image.unsqueeze(2).expand(-1, -1, depth, -1, -1)


def double(model: nn.Module) -> nn.Module:
    return randomise(model.double()).eval()


def untreated(model: nn.Module, **options: Any) -> dict[str, str]:
    _, report = inflate(model, strict=False, return_report=True, **options)
    assert not report.complete
    return dict(report.untreated)


# Kernels


@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (6, 4, 7, 7), (6, 4, 2, 2), (6, 1, 5, 5)], ids=str)
@pytest.mark.parametrize("rule", INFLATIONS)
def test_a_kernel_sums_to_the_2d_kernel(rule: str, shape: tuple[int, ...]) -> None:
    weight = noise(*shape)
    kernel = inflate_kernel(weight, rule)
    assert kernel.shape == (*shape[:2], shape[2], *shape[2:])
    third = shape[0] // 3
    axes = [2, 2, 2, 2, 2, 2] if rule != "acs" else [2] * third + [3] * third + [4] * third
    sums = torch.stack([kernel[n].sum(axis - 1) for n, axis in enumerate(axes)])
    torch.testing.assert_close(sums, weight)


def test_the_rules_by_hand() -> None:
    weight = torch.tensor([[[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]]])
    flat, zero = weight[0, 0], torch.zeros(3, 3)
    assert torch.equal(inflate_kernel(weight, "i3d")[0, 0], torch.stack([flat / 3] * 3))
    assert torch.equal(inflate_kernel(weight, "mean_centre")[0, 0], torch.stack([zero, flat, zero]))
    assert torch.equal(inflate_kernel(weight, "acs"), dense_kernel(weight))
    tall = noise(2, 3, 5, 1)
    torch.testing.assert_close(inflate_kernel(tall, "i3d"), torch.stack([tall / 5] * 5, dim=2))
    even = inflate_kernel(noise(1, 1, 4, 4), "mean_centre")[0, 0]
    assert [bool(plane.any()) for plane in even] == [False, False, True, False]


@pytest.mark.parametrize("rule", INFLATIONS)
def test_a_1x1_kernel_is_the_same_numbers(rule: str) -> None:
    weight = noise(7, 3, 1, 1)
    assert torch.equal(inflate_kernel(weight, rule), weight[:, :, None])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_kernel_keeps_its_type(dtype: torch.dtype) -> None:
    assert {inflate_kernel(noise(3, 2, 3, 3).to(dtype), rule).dtype for rule in INFLATIONS} == {dtype}


def test_bad_kernels() -> None:
    with pytest.raises(OptionError, match=r"rule='i2d' .*'i3d', 'acs', 'mean_centre'"):
        inflate_kernel(noise(1, 1, 3, 3), "i2d")
    with pytest.raises(OptionError, match=r"\(1, 1, 3, 5\)"):
        inflate_kernel(noise(1, 1, 3, 5), "acs")
    for rule in INFLATIONS:
        with pytest.raises(OptionError, match=r"\(1, 3, 3\)"):
            inflate_kernel(noise(1, 3, 3), rule)


# Whole networks


def test_i3d_of_equal_slices_is_the_2d_network() -> None:
    """With replicated borders nothing but equal slices is ever seen: every logit is that of the image."""
    model = double(ResNet(padding_mode="replicate"))
    image = noise(2, 3, 40, 48)
    for depth in (1, 5, 33):
        volume = inflate(model, in_channels=None)(slices(image, depth))
        torch.testing.assert_close(volume, model(image))


def test_i3d_of_equal_slices_is_the_2d_network_away_from_zero_borders() -> None:
    model = double(ResNet())
    image = noise(1, 3, 32, 32)
    deep: Any = inflate(model, in_channels=None)
    flat: Any = model
    x, y = slices(image, 128), image
    stem = deep.conv1(x)
    expected = flat.conv1(y)
    torch.testing.assert_close(stem[:, :, 2:-2], slices(expected, 60))
    assert not torch.allclose(stem[:, :, 0], expected)
    torch.testing.assert_close(deep.trunk(x)[:, :, 2], flat.trunk(y), rtol=0.5, atol=1.0)  # its border is everywhere
    for part in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2"):
        x, y = getattr(deep, part)(x), getattr(flat, part)(y)
    assert x.shape[2] == 16
    torch.testing.assert_close(x[:, :, 7:9], slices(y, 2))


@pytest.mark.parametrize("method", INFLATIONS)
def test_a_grey_volume_gives_what_it_gave_three_times_over(method: str) -> None:
    model = double(ResNet())
    grey = noise(2, 1, 16, 24, 24)
    one, report = inflate(model, method=method, in_channels_rule="sum", return_report=True)
    three = inflate(model, method=method, in_channels=None)
    torch.testing.assert_close(one(grey), three(grey.expand(-1, 3, -1, -1, -1)))
    assert report.notes == ("conv1 reads 1 channels instead of 3, by sum",)


@pytest.mark.parametrize(
    ("method", "rule", "share"), [("i3d", "sum", 1), ("acs", "sum", 1), ("mean_centre", "mean", 3)]
)
def test_the_rule_of_the_input_channels_follows_the_method(method: str, rule: str, share: int) -> None:
    model: Any = double(ResNet())
    kernel = model.conv1.weight.sum(1, keepdim=True) / share
    usual: Any = inflate(model, method=method)
    said: Any = inflate(model, method=method, in_channels_rule=rule)
    found = usual.conv1.weight if method == "acs" else usual.conv1.weight.sum(2)
    torch.testing.assert_close(found, kernel)
    assert torch.equal(said.conv1.weight, usual.conv1.weight)


def test_other_input_channels() -> None:
    model: Any = double(ResNet(in_channels=1))
    four: Any = inflate(model, in_channels=4, in_channels_rule="sum")
    grey = noise(1, 1, 8, 24, 24)
    assert four.conv1.in_channels == 4
    torch.testing.assert_close(four(grey.expand(-1, 4, -1, -1, -1)), inflate(model)(grey))
    assert inflate(model, return_report=True)[1].notes == ()


@pytest.mark.parametrize("method", INFLATIONS)
def test_the_architecture_of_this_hub_is_the_same_network(method: str) -> None:
    """ResNet3D is another file: it takes the inflated state dict and says the same."""
    model = double(ResNet())
    inflated = inflate(model, method=method)
    form = "acs" if method == "acs" else "3d"
    ours = ResNet3D(width=4, num_classes=5, depth_stride=2, convolution=form).double().eval()
    ours.load_state_dict(inflated.state_dict())
    volume = noise(1, 1, 20, 33, 40)
    torch.testing.assert_close(inflated(volume), ours(volume), rtol=0, atol=0)


def test_both_forms_of_acs_are_one_network_exactly() -> None:
    model = randomise(ResNet()).eval()
    acs = inflate(model, method="acs")
    dense: Any = ResNet3D(width=4, num_classes=5, depth_stride=2).eval()
    state = acs.state_dict()
    dense.load_state_dict({n: dense_kernel(t) if t.ndim == 4 else t for n, t in state.items()})
    volume = noise(1, 1, 19, 33, 40).float()
    assert (acs(volume) - dense(volume)).abs().max().item() == 0.0
    assert not any(isinstance(m, ACSConv) for m in dense.modules())


def test_acs_keeps_2d_weights_in_training() -> None:
    model = randomise(ResNet())
    acs, report = inflate(model, method="acs", in_channels=None, return_report=True)
    flat = model.state_dict()
    assert {n: t.shape for n, t in acs.state_dict().items()} == {n: t.shape for n, t in flat.items()}
    assert report.complete
    optimiser = torch.optim.SGD(acs.parameters(), lr=0.01)
    acs.train()(noise(2, 3, 16, 32, 32).float()).square().mean().backward()
    optimiser.step()
    moved = [n for n, p in acs.named_parameters() if not torch.equal(p, flat[n])]
    assert moved == [n for n, _ in model.named_parameters()]
    model.load_state_dict(acs.state_dict())  # back into the 2D network


def test_a_mobile_network_with_squeeze_and_excite_and_norms_that_activate() -> None:
    model = double(MobileNet(padding_mode="replicate"))
    inflated, report = inflate(model, in_channels=None, return_report=True)
    assert report.complete
    assert list(inflated.state_dict()) == list(model.state_dict())
    image = noise(2, 3, 24, 24)
    torch.testing.assert_close(inflated(slices(image, 9)), model(image))
    acs = inflate(double(MobileNet()), method="acs")
    assert acs.get_parameter("conv_dw.weight").shape == (16, 1, 5, 5)
    acs.train()(noise(2, 1, 9, 24, 24)).sum().backward()


def test_the_norm_that_activates_still_does_in_training() -> None:
    norm = NormAct2d(5)
    randomise(norm)
    deep = inflate(norm)
    image = noise(4, 5, 6, 7).float()
    for training in (True, False, True):
        norm.train(training)
        deep.train(training)
        # more than one slice would be more numbers, which the unbiased running variance counts
        torch.testing.assert_close(deep(slices(image, 1)), slices(norm(image), 1))
    torch.testing.assert_close(dict(deep.state_dict()), dict(norm.state_dict()))


class Frozen(nn.BatchNorm2d):
    """Stays in evaluation mode: as a BatchNorm3d it would begin to learn its statistics."""

    def train(self, mode: bool = True) -> Frozen:
        return super().train(False)


class Scaled(NormAct2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize("kind", [Frozen, Scaled])
def test_a_norm_that_is_something_else_is_not_converted(kind: type[nn.BatchNorm2d]) -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), kind(3))
    reasons = untreated(model)
    assert f"{kind.__name__} is a BatchNorm2d" in reasons["1"]
    assert type(inflate(model, strict=False).get_submodule("1")) is kind


def test_the_trial_of_a_norm_is_not_noticed() -> None:
    """Random numbers that a dropout draws in it are those of nobody else; hooks and statistics stay untouched."""
    norm, calls = NormAct2d(3, drop=0.5), []
    norm.register_forward_hook(lambda *_: calls.append("norm"))
    norm.act.register_forward_pre_hook(lambda *_: calls.append("act"))
    torch.manual_seed(11)
    state = torch.random.get_rng_state()
    deep, report = inflate(norm, in_channels=None, return_report=True)
    assert report.complete
    assert calls == []
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.testing.assert_close(dict(deep.state_dict()), dict(NormAct2d(3).state_dict()))
    deep(noise(2, 3, 1, 4, 5).float())
    assert calls == ["act", "norm"]


# What is passed in, and what stays


def test_the_model_passed_in_is_not_changed() -> None:
    model = double(MobileNet())
    image = noise(1, 3, 24, 24)
    before, text, state = model(image), repr(model), copy.deepcopy(model.state_dict())
    for method in INFLATIONS:
        inflated = inflate(model, method=method)
        with torch.no_grad():
            for tensor in inflated.parameters():
                tensor.add_(1)
    assert torch.equal(model(image), before)
    assert repr(model) == text
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())


class Shared(nn.Module):
    """One module in two places, and one tensor in two modules."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(2, 2, 3, padding=1)
        self.again = self.one
        self.other = nn.Conv2d(2, 2, 3, padding=1)
        self.other.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.again(self.one(x)))


@pytest.mark.parametrize("method", INFLATIONS)
def test_what_is_shared_stays_shared(method: str) -> None:
    model: Any = inflate(Shared(), method=method, in_channels=None)
    assert model.one is model.again
    assert model.other.weight is model.one.weight
    assert len(list(model.parameters())) == 3
    model(noise(1, 2, 5, 5, 5).float()).sum().backward()


def test_flags_types_and_hooks_stay() -> None:
    model: Any = ResNet().to(torch.bfloat16)
    model.layer1.requires_grad_(False)
    model.layer2.eval()
    seen: list[tuple[int, ...]] = []
    model.layer1[0].conv1.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape)))
    inflated: Any = inflate(model)
    assert {p.dtype for p in inflated.parameters()} == {torch.bfloat16}
    assert [n for n, p in inflated.named_parameters() if not p.requires_grad] == [
        n for n, _ in model.named_parameters() if n.startswith("layer1.")
    ]
    assert [m.training for m in inflated.modules()] == [m.training for m in model.modules()]
    inflated.eval()(noise(1, 1, 8, 32, 32).to(torch.bfloat16))
    assert seen == [(1, 4, 2, 8, 8)]
    with torch.device("meta"):
        assert {p.device.type for p in inflate(ResNet()).parameters()} == {"meta"}


def test_the_network_is_an_ordinary_one() -> None:
    model = double(ResNet())
    for method in INFLATIONS:
        inflated = inflate(model, method=method)
        volume = noise(1, 1, 9, 32, 32)
        again = pickle.loads(pickle.dumps(inflated))
        assert torch.equal(again(volume), inflated(volume))
        assert torch.equal(torch.export.export(inflated, (volume,)).module()(volume), inflated(volume))
    kept, report = preserve_depth(inflate(model))
    assert report.complete
    assert kept.get_submodule("layer4")(kept.get_submodule("conv1")(volume).new_zeros(1, 16, 9, 8, 8)).shape[2] == 9


# Kinds of module

PLAIN: dict[str, tuple[nn.Module, type[nn.Module]]] = {
    "conv": (nn.Conv2d(3, 6, 3, stride=2), nn.Conv3d),
    "conv, two numbers": (nn.Conv2d(3, 6, (3, 5), stride=(1, 2), dilation=(2, 1)), nn.Conv3d),
    "conv, groups": (nn.Conv2d(3, 6, 3, groups=3), nn.Conv3d),
    "conv, reflected": (nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect"), nn.Conv3d),
    "conv, circular": (nn.Conv2d(3, 6, (3, 5), padding=(1, 2), padding_mode="circular"), nn.Conv3d),
    "transposed 2": (nn.ConvTranspose2d(3, 6, 2, stride=2), nn.ConvTranspose3d),
    "transposed 4": (nn.ConvTranspose2d(3, 6, 4, stride=2, padding=1), nn.ConvTranspose3d),
    "transposed 3": (nn.ConvTranspose2d(3, 6, 3, stride=2, padding=1, output_padding=1), nn.ConvTranspose3d),
    "transposed, groups": (nn.ConvTranspose2d(3, 6, 3, groups=3), nn.ConvTranspose3d),
    "transposed, dilated": (nn.ConvTranspose2d(3, 6, 3, stride=3, dilation=2), nn.ConvTranspose3d),
    "batch norm": (nn.BatchNorm2d(3), nn.BatchNorm3d),
    "batch norm, bare": (nn.BatchNorm2d(3, affine=False, track_running_stats=False), nn.BatchNorm3d),
    "instance norm": (nn.InstanceNorm2d(3, affine=True), nn.InstanceNorm3d),
    "group norm": (nn.GroupNorm(3, 3), nn.GroupNorm),
    "max pool": (nn.MaxPool2d(3, stride=2, padding=1, dilation=2, ceil_mode=True), nn.MaxPool3d),
    "max pool, two numbers": (nn.MaxPool2d((3, 2), stride=(2, 1)), nn.MaxPool3d),
    "average pool": (nn.AvgPool2d(2), nn.AvgPool3d),
    "average pool, divisor": (nn.AvgPool2d((3, 2), divisor_override=1), nn.AvgPool3d),
    "lp pool": (nn.LPPool2d(2, 3, stride=2), LPPool),
    "lp pool, two numbers": (nn.LPPool2d(1, (3, 2)), LPPool),
    "adaptive average": (nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool3d),
    "adaptive average, size": (nn.AdaptiveAvgPool2d((5, None)), nn.AdaptiveAvgPool3d),
    "adaptive max": (nn.AdaptiveMaxPool2d((3, 4)), nn.AdaptiveMaxPool3d),
    "dropout": (nn.Dropout2d(), nn.Dropout3d),
    "nearest": (nn.Upsample(scale_factor=2), nn.Upsample),
    "nearest, old name": (nn.UpsamplingNearest2d(scale_factor=2), nn.Upsample),
    "bilinear": (nn.Upsample(scale_factor=(2, 3), mode="bilinear"), nn.Upsample),
    "bilinear, size": (nn.Upsample(size=(11, 13), mode="bilinear", align_corners=True), nn.Upsample),
    "bilinear, old name": (nn.UpsamplingBilinear2d(scale_factor=2), nn.Upsample),
    "reflected": (nn.ReflectionPad2d((1, 2, 3, 0)), nn.ReflectionPad3d),
    "replicated": (nn.ReplicationPad2d(2), nn.ReplicationPad3d),
    "circular": (nn.CircularPad2d((1, 0, 2, 1)), nn.CircularPad3d),
    "linear": (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)), nn.Sequential),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_equal_slices_through_every_kind_of_module(kind: str) -> None:
    module, expected = PLAIN[kind]
    flat = double(copy.deepcopy(module))
    deep = inflate(flat, in_channels=None)
    assert type(deep) is expected
    image = noise(2, 3, 12, 14)
    want, got = flat(image), deep(slices(image, 12))
    if want.ndim == 4:
        edge = 0 if got.shape[2] < 4 or "transposed" not in kind else 3  # the ends of a transposed one have fewer taps
        got = got[:, :, edge : got.shape[2] - edge]
        want = slices(want, got.shape[2])
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("kind", PLAIN)
def test_depth_is_treated_as_the_height(kind: str) -> None:
    deep = double(inflate(PLAIN[kind][0], in_channels=None))
    for size in (12, 15):
        shape = deep(noise(1, 3, size, size, 14)).shape
        assert len(shape) == 2 or shape[2] == shape[3]


@pytest.mark.parametrize("size", [7, (7, 7), (3, 7)])
def test_an_adaptive_pool_that_a_linear_reads_is_flat(size: Any) -> None:
    """VGG: a 7x7 pool, flattened into a Linear of 49 C inputs."""
    h, w = (size, size) if isinstance(size, int) else size
    conv = nn.Conv2d(3, 4, 3, padding=1, padding_mode="replicate")
    model = double(nn.Sequential(conv, nn.AdaptiveAvgPool2d(size), nn.Flatten(), nn.Linear(4 * h * w, 5)))
    deep, report = inflate(model, in_channels=None, return_report=True)
    image = noise(2, 3, 20, 24)
    torch.testing.assert_close(deep(slices(image, 8)), model(image))
    assert report.notes == (f"1: pools to {(1, h, w)} and not {(h, h, w)}, for a Linear of {4 * h * w} inputs",)
    cut, report = inflate(model[:2], in_channels=None, return_report=True)
    assert cut(slices(image, 8)).shape == (2, 4, h, h, w)
    assert report.notes == ()


def test_zero_and_constant_padding() -> None:
    x = noise(1, 2, 3, 4, 5)
    for flat, value in ((nn.ZeroPad2d((1, 2, 3, 4)), 0.0), (nn.ConstantPad2d((1, 2, 3, 4), 7.5), 7.5)):
        assert torch.equal(inflate(flat)(x), F.pad(x, (1, 2, 3, 4, 3, 4), value=value))


def test_settings_that_are_words() -> None:
    conv = nn.Conv2d(2, 3, (3, 5), padding="same")
    x = noise(1, 2, 6, 7, 8).float()
    assert inflate(conv, in_channels=None)(x).shape == (1, 3, 6, 7, 8)
    assert inflate(nn.Conv2d(2, 3, 3, padding="valid"), in_channels=None, method="acs")(x).shape == (1, 3, 4, 5, 6)


def test_transposed_taps_share_by_the_slices_they_meet_in() -> None:
    conv = nn.ConvTranspose2d(1, 1, 3, stride=2, bias=False)
    for method in INFLATIONS:
        deep, report = inflate(conv, method=method, in_channels=None, return_report=True)
        shares = deep.weight[0, 0] / conv.weight[0, 0]
        torch.testing.assert_close(shares.amax((1, 2)), torch.tensor([0.5, 1.0, 0.5]))
        assert "rule of i3d" in report.notes[0]


UNKNOWN: dict[str, tuple[nn.Module, str]] = {
    "shuffle": (
        nn.PixelShuffle(2),
        r"PixelShuffle has no 3D form here \(put nn.Upsample and an nn.Conv2d",
    ),
    "3D": (nn.Conv3d(1, 3, 3), "Conv3d is 3D already"),
    "softmax": (nn.Softmax(dim=2), "Softmax over axis 2"),
    "softmax 2d": (nn.Softmax2d(), r"put nn.Softmax\(1\) in its place"),
    "unfold": (nn.Unfold(2), "Unfold has no 3D form"),
    "fractional": (nn.FractionalMaxPool2d(2, 3), "FractionalMaxPool2d has no 3D form"),
    "unpool": (nn.MaxUnpool2d(2), "MaxUnpool2d has no 3D form"),
    "bicubic": (nn.Upsample(scale_factor=2, mode="bicubic"), "bicubic"),
    "flatten": (nn.Flatten(2, 3), "axes 2 to 3"),
    "layer norm": (nn.LayerNorm((3, 8, 8)), r"\(3, 8, 8\)"),
    "transposed": (nn.ConvTranspose2d(3, 3, 2, stride=3), "leave slices empty"),
    "lazy": (nn.LazyConv2d(3, 3), "lazy module"),
    "spectral norm": (spectral_norm(nn.Conv2d(3, 3, 3)), "its weight is computed"),
    "weight norm": (parametrizations.weight_norm(nn.Conv2d(3, 3, 3)), "parametrize"),
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_kinds_without_a_3d_form_are_named(kind: str) -> None:
    module, reason = UNKNOWN[kind]
    with pytest.raises(OptionError, match=rf"cannot treat 1: part: .*{reason}.*Next: "):
        inflate(nn.ModuleDict({"part": module}), in_channels=None)
    assert list(untreated(module, in_channels=None)) == [""]


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_a_network_that_cannot_be_copied() -> None:
    with pytest.raises(OptionError, match=r"ModuleList cannot be copied.*Next: .*remove_weight_norm"):
        inflate(nn.ModuleList([weight_norm(nn.Conv2d(3, 3, 3))]))


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_scripted_part_is_named_once() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 3), torch.jit.script(nn.Sequential(nn.MaxPool2d(2))))
    assert untreated(model) == {"1": "scripted module: call inflate before torch.jit.script or torch.jit.trace"}


@pytest.mark.parametrize(
    ("conv", "reason"),
    [
        (nn.Conv2d(4, 4, (1, 3)), "one size on all sides"),
        (nn.Conv2d(4, 4, 3, groups=2), "groups=1"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "padding_mode='reflect'"),
    ],
)
def test_convolutions_without_an_acs_form(conv: nn.Conv2d, reason: str) -> None:
    found = untreated(conv, method="acs", in_channels=None)[""]
    assert reason in found
    assert 'method="i3d" takes it' in found
    assert inflate(conv, method="i3d", in_channels=None)


# Leftovers


def test_functional_calls_are_named() -> None:
    model = DenseNet((2, 2), width=4)
    with pytest.raises(
        OptionError, match=r"DenseNet cannot treat 1: <root>: .*adaptive_avg_pool2d.*Next: .*strict=False"
    ):
        inflate(model)
    found = untreated(model)
    assert found == {"": "possibly in the forward of DenseNet: adaptive_avg_pool2d"}
    inflated: Any = inflate(model, strict=False)
    assert inflated.features(noise(1, 1, 16, 32, 32).float()).shape == (1, 8, 2, 4, 4)


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class FrozenBatchNorm2d(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight.reshape(1, -1, 1, 1)


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


class LayerScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class FastPool(nn.Module):
    """timm's: the axes are an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.dim = (2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self.dim, keepdim=True)


FOREIGN: tuple[tuple[nn.Module, str], ...] = (
    (LayerNorm2d(3), "LayerNorm2d is 2D by its name"),
    (LayerNorm2d(3), "permute of four sizes"),
    (FrozenBatchNorm2d(3), "FrozenBatchNorm2d is 2D by its name"),
    (Standardised(3, 3, 3), "Standardised is a Conv2d with a forward"),
    (LayerScale(), r"gamma of shape (3, 1, 1)"),
    (FastPool(), "mean over rows or columns"),
)


@pytest.mark.parametrize(("module", "reason"), FOREIGN)
def test_foreign_modules_that_are_2d_are_named(module: nn.Module, reason: str) -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), module)
    _, report = inflate(model, strict=False, return_report=True)
    assert {name for name, _ in report.untreated} == {"1"}
    assert any(reason in why for _, why in report.untreated)


class BasicConv2d(nn.Module):
    """torchvision's name for a convolution with its norm: nothing about it is 2D."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Renamed(nn.Conv2d):
    """A subclass that only sets up its parent."""

    def __init__(self) -> None:
        super().__init__(3, 4, 3)


@pytest.mark.parametrize("model", [BasicConv2d(), Renamed(), SqueezeExcite(3), MobileNet(), ResNet()])
def test_nothing_is_called_2d_that_is_not(model: nn.Module) -> None:
    assert inflate(model, return_report=True, in_channels=None)[1].complete


def test_the_report_is_readable() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=(1, 2)), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(7), nn.Unfold(2))
    _, report = inflate(model, strict=False, return_report=True)
    assert isinstance(report, InflationReport)
    assert str(report).splitlines() == [
        "inflated by i3d: 3 converted, 1 untreated",
        "  converted  0: Conv2d(1, 4, kernel_size=(3, 3), stride=(1, 2)) -> "
        "Conv3d(1, 4, kernel_size=(3, 3, 3), stride=(1, 1, 2))",
        f"  converted  1: {nn.BatchNorm2d(4)} -> {nn.BatchNorm3d(4)}",
        "  converted  2: AdaptiveAvgPool2d(output_size=7) -> AdaptiveAvgPool3d(output_size=7)",
        "  note       0 reads 1 channels instead of 3, by sum",
        "  untreated  3: Unfold has no 3D form here (put an nn.Conv2d in its place)",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "i2d"}, r"method='i2d' .*'i3d', 'acs', 'mean_centre'"),
        ({"in_channels": 0}, r"in_channels=0 .*None = as they are"),
        ({"in_channels": "1"}, r"in_channels='1' "),
        ({"in_channels_rule": "green"}, r"in_channels_rule='green' .*'sum', 'mean'"),
    ],
)
def test_bad_options_say_what_is_allowed(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        inflate(ResNet(), **options)


# The convolutions that read the input


READERS: dict[str, tuple[nn.Module, tuple[str, ...]]] = {
    "head and attention first": (HeadFirst(), ("stem",)),
    "two stems": (TwoStems(), ("wide", "thin")),
    "transposed": (nn.Sequential(nn.ConvTranspose2d(3, 4, 2, stride=2), nn.Conv2d(4, 3, 1)), ("0",)),
    "224 pixels": (nn.Sequential(nn.Conv2d(3, 1, 32, 32), nn.Flatten(), nn.Linear(49, 2)), ("0",)),
}


@pytest.mark.parametrize("kind", READERS)
def test_all_that_reads_the_input_reads_the_volume(kind: str) -> None:
    model, names = READERS[kind]
    model = double(model)
    one, report = inflate(model, strict=False, return_report=True)
    assert report.notes[: len(names)] == tuple(f"{name} reads 1 channels instead of 3, by sum" for name in names)
    assert not any("its input stays" in reason for _, reason in report.untreated)
    if kind != "224 pixels":  # its Linear counts on 49 places
        grey = noise(2, 1, 6, 8, 8)
        three = inflate(model, in_channels=None, strict=False)
        torch.testing.assert_close(one(grey), three(grey.expand(-1, 3, -1, -1, -1)))
    four: Any = inflate(model, in_channels=4, strict=False)
    assert {four.get_submodule(name).in_channels for name in names} == {4}


def grouped() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 12, 3, groups=3), nn.ReLU(), nn.Conv2d(12, 4, 1))


KEPT: tuple[tuple[nn.Module, str, str], ...] = (
    (grouped(), "0", "Conv2d reads it in 3 groups"),
    (nn.Sequential(nn.Conv2d(4, 4, 3, groups=4)), "0", "Conv2d reads it in 4 groups"),
    (Twice(), "conv", "it reads other features too"),
    (SharedWeight(), "one", "shared with a module that reads other features"),
    (Rearranged(), "", "no convolution reads the 3 channels of the input as they are"),
    (Functional(), "", "a forward convolves the input without a module"),
    (SkipToInput(), "stem", r"a trial of the network on 1 channels went wrong \(RuntimeError: .* 7"),
    (nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)), "1", "a trial of the network on 1 channels went wrong"),
    (nn.Sequential(spectral_norm(nn.Conv2d(3, 4, 3))), "0", "the weight that reads it is computed"),
)


@pytest.mark.parametrize(("model", "name", "reason"), KEPT, ids=[f"{n}: {why}" for n, (_, _, why) in enumerate(KEPT)])
def test_an_input_that_cannot_be_changed_is_untreated(model: nn.Module, name: str, reason: str) -> None:
    with pytest.raises(OptionError, match=rf"{name or '<root>'}: its input stays .*in_channels=None.*{reason}"):
        inflate(model)
    state = {n: t.numel() for n, t in inflate(model, strict=False).state_dict().items()}
    assert state == {n: t.numel() for n, t in inflate(model, strict=False, in_channels=None).state_dict().items()}


def test_a_convolution_that_is_3d_already() -> None:
    model = nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv3d(1, 2, 1), nn.Flatten(1, 2), nn.Conv2d(6, 4, 1))
    assert "Conv3d is 3D already" in untreated(model)["1"]
    assert inflate(model, strict=False).get_parameter("3.weight").shape == (4, 6, 1, 1, 1)


def test_stems_that_share_a_weight_still_do() -> None:
    model: Any = TwoStems()
    model.thin = nn.Conv2d(3, 4, 3, padding=1)
    model.thin.weight = model.wide.weight
    deep: Any = inflate(model)
    assert deep.thin.weight is deep.wide.weight
    assert deep.wide.weight.shape == (4, 1, 3, 3, 3)


class Noticing(nn.Module):
    """Counts its runs, draws, warns."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("runs", torch.zeros(()))
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        warnings.warn("noticed", UserWarning, stacklevel=1)
        self.runs += 1  # type: ignore[operator]
        return F.dropout(self.conv(x + torch.rand_like(x)), training=True)


def test_the_trial_is_not_noticed() -> None:
    """Neither by the networks nor by hooks, nor by who draws random numbers after it."""
    calls: list[str] = []
    model: Any = Noticing()
    model.conv.register_forward_hook(lambda *_: calls.append("conv"))
    state = torch.random.get_rng_state()
    deep: Any = inflate(model)
    assert deep.conv.in_channels == 1
    assert (model.runs.item(), deep.runs.item(), calls) == (0, 0, [])
    assert deep.training
    assert len(deep.conv._forward_hooks) == 1
    assert not deep.conv._forward_pre_hooks
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_network_that_repeats_a_grey_image_is_left_as_it_is() -> None:
    class Repeats(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(torch.cat([x, x, x], 1) if x.size(1) == 1 else x)

    deep, report = inflate(Repeats(nn.Conv2d(3, 4, 3, padding=1)), return_report=True)
    assert report.notes == ("0 reads 3 channels, which the network makes of the 1 of the input",)
    assert deep(noise(1, 1, 4, 5, 6).float()).shape == (1, 4, 4, 5, 6)


def test_without_a_trial_the_first_declared_is_taken_if_it_fits() -> None:
    """A ModuleDict has no forward."""
    parts = {"wide": nn.Conv2d(3, 4, 3), "thin": nn.Conv2d(3, 4, 1), "last": nn.Conv2d(4, 3, 1)}
    deep, report = inflate(nn.ModuleDict(parts), return_report=True)
    assert deep.get_parameter("wide.weight").shape == (4, 1, 3, 3, 3)
    assert report.notes[0] == "wide reads 1 channels instead of 3, by sum"
    assert "wide is taken to read the input, as the first declared: no trial went through (" in report.notes[1]
    assert report.notes[2:] == ("thin has 3 input channels too: if it also reads the input, use in_channels=None",)
    for first, reason in (
        (nn.Conv2d(8, 4, 1), "no trial told which convolution reads the input"),
        (nn.Conv2d(3, 12, 1, groups=3), "in 3 groups"),
        (nn.Conv1d(3, 4, 1), "Conv1d reads it"),
    ):
        with pytest.raises(OptionError, match=rf"head: its input stays .*in_channels=None.*{reason}"):
            inflate(nn.ModuleDict({"head": first, **parts}))
    assert inflate(nn.ModuleDict({"head": nn.Conv2d(1, 4, 1), **parts}), return_report=True)[1].notes == ()


def test_no_convolution_to_read_the_input() -> None:
    _, report = inflate(nn.Sequential(nn.BatchNorm2d(4)), return_report=True)
    assert report.notes == ("no convolution was found to read 1 channels",)
