"""svd_hub.count: the paper's numbers to the last digit, the rule layer by layer, and that nothing is touched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from svd_hub.counting import Count, count
from svd_hub.errors import OptionError
from svd_hub.models import Backbone, build
from svd_hub.variable_dimension import GroupTransform

torch.set_num_threads(1)
RGB = (1, 3, 224, 224)
NINE = (1, 9, 256, 256)


def meta(architecture: str, **options: Any) -> Backbone:
    with torch.device("meta"):
        return build(architecture, options)


@pytest.mark.parametrize(
    ("options", "parameters", "flops"),
    [
        ({"depth": 18}, 33_673_000, 15_994_728_960),
        ({"depth": 34}, 63_982_632, 32_653_211_136),
        ({"depth": 50}, 48_204_072, 23_929_812_480),
        ({"depth": 18, "stem": "v1c"}, 33_734_984, 18_329_719_296),
        ({"depth": 18, "norm": "sync"}, 33_673_000, 15_994_728_960),
    ],
    ids=str,
)
def test_table_2_to_the_last_digit(options: dict[str, Any], parameters: int, flops: int) -> None:
    got = count(meta("resnet3d", num_classes=1000, **options), RGB)
    assert (got.parameters, got.flops) == (parameters, flops)


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({"depth": 50}, 46_155_072),
        ({"depth": 18, "num_classes": 2, "depth_stride": 2}, 33_161_026),
        ({"depth": 18, "num_classes": 1000, "in_channels": 3}, 33_716_904),
    ],
    ids=str,
)
def test_parameters_of_other_forms(options: dict[str, Any], parameters: int) -> None:
    assert count(meta("resnet3d", **options), (options.get("in_channels", 1), 9, 64, 64)).parameters == parameters


class WithGroupTransform(nn.Module):
    """A backbone with the paper's GTM on its four levels, as the MP3D detector has it."""

    def __init__(self, backbone: Backbone, depth: int) -> None:
        super().__init__()
        self.backbone = backbone
        with torch.device("meta"):
            self.transforms = nn.ModuleDict(
                {info.name: GroupTransform(info.channels, depth) for info in backbone.feature_info[1:]}
            )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = self.backbone(x)
        return {name: transform(maps[name]) for name, transform in self.transforms.items()}


@pytest.mark.parametrize(
    ("variant", "form", "shape", "gflops", "parameters"),
    [
        # The printed numbers of MP3D hold with its GTM, those of P3D without (its detector crops the centre).
        ("63", "mp3d", RGB, 13.29, 27_281_728 + 11_520),
        ("18ba", "mp3d", RGB, 7.04, 15_257_536 + 2_880),
        ("63", "mp3d", NINE, 52.08, 27_316_288),
        ("18ba", "mp3d", NINE, 27.58, 15_266_176),
        ("63", "p3d", NINE, 24.64, 27_281_728),
        ("18ba", "p3d", NINE, 14.41, 15_257_536),
    ],
)
def test_p3d_and_mp3d(variant: str, form: str, shape: tuple[int, ...], gflops: float, parameters: int) -> None:
    depth_stride = 2 if form == "p3d" else 1
    model: nn.Module = meta("p3d", variant=variant, form=form, depth_stride=depth_stride, features_only=True)
    if form == "mp3d":
        model = WithGroupTransform(model, shape[1])  # type: ignore[arg-type]
    got = count(model, shape)
    assert got.parameters == parameters
    assert round(got.flops / 1e9, 2) == gflops


@pytest.mark.parametrize(
    ("layer", "shape", "flops", "macs"),
    [
        (nn.Conv3d(2, 6, (3, 5, 7), padding=(1, 2, 3), bias=False), (2, 4, 5, 6), 105 * 12 * 120, 105 * 12 * 120),
        (nn.Conv3d(2, 6, 3, stride=2, groups=2), (2, 5, 5, 5), 27 * 6 * 8 + 6 * 8, 27 * 6 * 8),
        (nn.Conv2d(3, 4, 3, padding=1), (3, 6, 6), 27 * 4 * 36 + 4 * 36, 27 * 4 * 36),
        (nn.ConvTranspose3d(4, 6, 2, stride=2), (4, 3, 3, 3), 8 * 24 * 27 + 6 * 216, 8 * 24 * 27),
        (nn.BatchNorm3d(3), (3, 2, 2, 2), 48, 0),
        (nn.BatchNorm3d(3, affine=False), (3, 2, 2, 2), 24, 0),
        (nn.SyncBatchNorm(3), (3, 2, 2, 2), 48, 0),
        (nn.GroupNorm(1, 3), (3, 2, 2, 2), 48, 0),
        (nn.InstanceNorm3d(3), (3, 2, 2, 2), 24, 0),
        (nn.LayerNorm(2), (3, 2, 2, 2), 48, 0),
        (nn.LayerNorm(2, elementwise_affine=False), (3, 2, 2, 2), 24, 0),
        (nn.ReLU(), (3, 2, 2, 2), 24, 0),
        (nn.Upsample(scale_factor=2), (3, 2, 2, 2), 192, 0),
        (nn.MaxPool3d(2), (3, 2, 2, 2), 24, 0),
        (nn.AvgPool3d(2), (3, 2, 2, 2), 24, 0),
        (nn.AdaptiveAvgPool3d(1), (3, 2, 2, 2), 24, 0),
        (nn.Linear(5, 7), (3, 2, 2, 5), 0, 12 * 35),
        (nn.Dropout(), (3, 2, 2, 2), 0, 0),
    ],
    ids=repr,
)
def test_the_rule_layer_by_layer(layer: nn.Module, shape: tuple[int, ...], flops: int, macs: int) -> None:
    assert count(layer, shape) == Count(sum(p.numel() for p in layer.parameters()), flops, macs)


def test_a_shared_layer_counts_at_each_call_and_its_parameters_once() -> None:
    conv, relu = nn.Conv3d(2, 2, 1, bias=False), nn.ReLU(inplace=True)
    got = count(nn.Sequential(conv, relu, conv, relu), (2, 3, 3, 3))
    assert got == Count(parameters=4, flops=2 * (4 * 27 + 2 * 27), macs=2 * 4 * 27)


def test_a_batch_counts_all_its_samples() -> None:
    model = meta("resnet3d", depth=10, width=8, num_classes=3)
    one, five = count(model, (1, 3, 32, 32)), count(model, (5, 1, 3, 32, 32))
    assert five == Count(one.parameters, 5 * one.flops, 5 * one.macs)
    assert count(model, torch.Size((1, 1, 3, 32, 32))) == count(model, [1, 3, 32, 32]) == one


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("resnet3d", {"depth": 50, "num_classes": 9, "shortcut": "A"}),
        ("resnet3d", {"output_stride": 8, "depth_stride": 2, "norm": "instance", "downsample_bias": True}),
        ("p3d", {"num_classes": 9}),
        ("p3d", {"variant": "18ba", "form": "p3d", "depth_stride": 2}),
    ],
    ids=str,
)
def test_macs_agree_with_pytorchs_own_counter(architecture: str, options: dict[str, Any]) -> None:
    model = meta(architecture, width=8, **options).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 1, 9, 96, 64, device="meta"))
    assert 2 * count(model, (1, 9, 96, 64)).macs == counter.get_total_flops()


def test_flops_ignore_the_classifier_and_macs_do_not() -> None:
    without, with_fc = (count(meta("resnet3d", num_classes=n), RGB) for n in (0, 1000))
    assert with_fc.flops == without.flops
    assert with_fc.macs - without.macs == 512 * 1000
    assert with_fc.parameters - without.parameters == 513 * 1000


def test_the_model_is_not_touched() -> None:
    model = build("resnet3d", {"depth": 10, "width": 4, "num_classes": 2})
    model.layer2.eval()  # type: ignore[union-attr]
    model.conv1.weight.requires_grad_(False)  # type: ignore[union-attr]
    before = {name: (id(tensor), tensor.clone()) for name, tensor in model.state_dict(keep_vars=True).items()}
    modes = [module.training for module in model.modules()]
    generator = torch.get_rng_state()
    count(model, (1, 3, 32, 32))
    after = model.state_dict(keep_vars=True)
    assert all(id(after[name]) == key and torch.equal(after[name], value) for name, (key, value) in before.items())
    assert [module.training for module in model.modules()] == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(tensor.device.type == "cpu" for tensor in after.values())
    assert not model.conv1.weight.requires_grad  # type: ignore[union-attr]
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), generator)


def test_nothing_is_computed() -> None:
    # 2 TB of input: possible only because neither input nor feature maps exist.
    model = build("resnet3d", {"depth": 10, "width": 2})
    assert count(model, (1, 8192, 8192, 8192)).macs > 10**14


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_number_format_does_not_matter(dtype: torch.dtype) -> None:
    model = build("resnet3d", {"depth": 10, "width": 4})
    expected = count(model, (1, 3, 32, 32))
    assert count(model.to(dtype), (1, 3, 32, 32)) == expected


class LooksAtNumbers(nn.Module):
    """User code that cannot run without numbers: a branch on a value, a tensor that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 2, 1)
        self.shift = torch.ones(2, 1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x) + self.shift
        return y if y.sum().item() > 0 else -y


def test_a_network_that_needs_numbers_is_run_for_real() -> None:
    assert count(LooksAtNumbers(), (1, 3, 4, 5)) == Count(4, 2 * 2 * 60, 2 * 60)


def test_an_error_of_the_network_is_the_networks_own() -> None:
    with pytest.raises(OptionError, match=r"\(N, 1, D, H, W\)"):
        count(meta("resnet3d"), (3, 3, 32, 32))
    with pytest.raises(RuntimeError, match="to have 2 channels"):
        count(nn.Conv3d(2, 2, 1), (1, 3, 4, 5))


@pytest.mark.parametrize("shape", [(), (224, 224), (1, 1, 1, 3, 8, 8), (1, 0, 8, 8), (1, -3, 8, 8)])
def test_bad_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(OptionError, match=r"allowed: positive \(C, D, H, W\)"):
        count(nn.ReLU(), shape)


def test_a_2d_network_counts_too() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.ReLU())
    assert count(net, (3, 8, 8)) == Count(108, 108 * 64 + 4 * 64, 108 * 64)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_refused_with_the_next_step() -> None:
    with pytest.raises(OptionError, match="before export"):
        count(torch.jit.script(nn.ReLU()), (1, 3, 4, 5))


def test_a_network_of_monai() -> None:
    monai = pytest.importorskip("monai.networks.nets", reason="MONAI comes with svd-hub[volume]")
    with torch.device("meta"):
        model = monai.DenseNet121(spatial_dims=3, in_channels=1, out_channels=2).eval()
    got = count(model, (1, 32, 32, 32))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 1, 32, 32, 32, device="meta"))
    assert 2 * got.macs == counter.get_total_flops()
    assert got.flops > got.macs
