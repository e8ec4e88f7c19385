"""Laws of the SegResNets: MONAI's own are the statement; forms, names, counts, sizes, errors, a missing MONAI."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets.segresnet import SegResNet as MonaiSegResNet
from monai.networks.nets.segresnet_ds import SegResEncoder as MonaiEncoder
from monai.networks.nets.segresnet_ds import SegResNetDS as MonaiSegResNetDS
from torch import Tensor, nn

from svd_hub.errors import OptionError
from svd_hub.models import Backbone, Feature
from svd_hub.models.segresnet import SegResEncoder, SegResNet, SegResNetDS
from svd_hub.skeleton import shapes, skeleton

torch.set_num_threads(1)
NARROW: dict[str, Any] = {"init_filters": 4, "blocks_down": (1, 2, 2)}
LEVELS = ("level0", "level1", "level2")
FAMILIES: dict[str, tuple[type[Backbone], str]] = {
    "segresencoder": (SegResEncoder, "fc."),
    "segresnet_ds": (SegResNetDS, "heads."),
    "segresnet": (SegResNet, "conv_final.2."),
}


def randomised(network: nn.Module, seed: int = 5) -> nn.Module:
    """The same network in double precision and evaluation mode, with values of which every one matters."""
    generator = torch.Generator().manual_seed(seed)
    network.double().eval()
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if not tensor.is_floating_point():
                tensor.fill_(7)
                continue
            drawn = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
            positive = name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight"))
            tensor.copy_(drawn.abs() + 0.5 if positive else drawn * (2 / max(1, tensor[0].numel())) ** 0.5)
    return network


def image(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def ours_ds(state: dict[str, Tensor], ups: int) -> dict[str, Tensor]:
    """MONAI's SegResNetDS under our names: the head of the finest level is heads.0."""

    def rename(name: str) -> str:
        found = re.fullmatch(r"up_layers\.(\d+)\.head\.(.+)", name)
        return f"heads.{ups - 1 - int(found[1])}.{found[2]}" if found else name

    return {rename(name): tensor for name, tensor in state.items()}


def load(network: nn.Module, state: dict[str, Tensor]) -> Any:
    """A network of ours in evaluation mode with the part of `state` that it has."""
    network.double().eval().load_state_dict({name: state[name] for name in network.state_dict()}, strict=True)
    return network


def close(a: Any, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


# ---- CT-FM's encoder -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["batch", "group", "instance"])
@pytest.mark.parametrize("size", [(16, 8, 12), (9, 11, 7)], ids=str)
def test_the_encoder_is_monai_s(norm: str, size: tuple[int, ...]) -> None:
    kind = {"group": ("group", {"num_groups": 4}), "instance": ("instance", {"affine": True})}.get(norm, norm)
    theirs = randomised(MonaiEncoder(in_channels=2, norm=kind, **NARROW))
    state = {f"encoder.{name}": tensor for name, tensor in theirs.state_dict().items()}
    x = image(2, 2, *size)
    expected = theirs(x)
    model = load(SegResEncoder(in_channels=2, norm=norm, features_only=True, **NARROW), state)
    got = model(x)
    assert tuple(got) == LEVELS
    for map_, want in zip(got.values(), expected, strict=True):
        close(map_, want)
    close(load(SegResEncoder(in_channels=2, norm=norm, **NARROW), state)(x), expected[-1].mean((2, 3, 4)))


def test_the_encoder_classifies_its_pooled_features() -> None:
    model = randomised(SegResEncoder(num_classes=3, **NARROW))
    x = image(2, 1, 8, 8, 8)
    pooled = model.features(x)["level2"].mean((2, 3, 4))
    close(model(x), pooled @ model.fc.weight.T + model.fc.bias)


# ---- CT-FM's segmenter -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dsdepth", [1, 2])
@pytest.mark.parametrize("blocks_up", [None, (2, 1)])
def test_the_segmenter_is_monai_s(dsdepth: int, blocks_up: tuple[int, ...] | None) -> None:
    kind = {"dsdepth": dsdepth, "blocks_up": blocks_up}
    theirs = randomised(MonaiSegResNetDS(out_channels=3, **NARROW, **kind))
    state = ours_ds(theirs.state_dict(), ups=2)
    model = load(SegResNetDS(num_classes=3, **NARROW, **kind), state)
    assert shapes(model.state_dict()) == shapes(state)
    x = image(2, 1, 8, 16, 12)
    close(model(x), theirs(x))
    for name, want in zip(LEVELS, theirs.encoder(x), strict=True):
        close(model.features(x)[name], want)
    pooled = load(SegResNetDS(num_classes=0, **NARROW, **kind), state)
    close(pooled(x), theirs.encoder(x)[-1].mean((2, 3, 4)))
    assert tuple(load(SegResNetDS(features_only=True, **NARROW, **kind), state)(x)) == LEVELS
    dense = load(SegResNetDS(num_classes=0, keep_decoder=True, **NARROW, **kind), state)(x)
    close(torch.einsum("nidhw,ci->ncdhw", dense, state["heads.0.weight"][..., 0, 0, 0]), less_bias(theirs(x), state))


def less_bias(map_: Tensor, state: dict[str, Tensor]) -> Tensor:
    return map_ - state["heads.0.bias"][:, None, None, None]


def test_deep_supervision_gives_every_head_s_map_in_training_alone() -> None:
    theirs = randomised(MonaiSegResNetDS(out_channels=3, dsdepth=2, **NARROW)).train()
    state = ours_ds(theirs.state_dict(), ups=2)
    model = load(SegResNetDS(num_classes=3, dsdepth=2, deep_supervision=True, **NARROW), state)
    x = image(2, 1, 8, 8, 8)
    assert isinstance(model(x), Tensor)
    plain = load(SegResNetDS(num_classes=3, dsdepth=2, **NARROW), state).train()
    got, expected = model.train()(x), theirs(x)
    assert tuple(got) == ("level0", "level1")
    for map_, want in zip(got.values(), expected, strict=True):
        close(map_, want)
    close(plain(x), expected[0])


# ---- SuPreM's segmenter ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "filters"), [("group", 8), ("group", 4), ("batch", 4)])
@pytest.mark.parametrize("blocks_up", [None, (2, 1)])
def test_suprem_s_segmenter_is_monai_s(norm: str, filters: int, blocks_up: tuple[int, ...] | None) -> None:
    kind = ("group", {"num_groups": filters}) if norm == "group" else norm
    options = {**NARROW, "init_filters": filters}
    theirs = randomised(MonaiSegResNet(out_channels=5, norm=kind, blocks_up=blocks_up or (1, 1), **options))
    state = theirs.state_dict()
    options |= {"blocks_up": blocks_up, "norm": norm}
    model = load(SegResNet(num_classes=5, **options), state)
    assert shapes(model.state_dict()) == shapes(state)
    x = image(1, 1, 12, 8, 16)
    close(model(x), theirs(x))
    deepest, levels = theirs.encode(x)
    for name, want in zip(LEVELS, levels, strict=True):
        close(model.features(x)[name], want)
    close(load(SegResNet(num_classes=0, **options), state)(x), deepest.mean((2, 3, 4)))
    assert tuple(load(SegResNet(features_only=True, **options), state)(x)) == LEVELS
    dense = load(SegResNet(num_classes=0, keep_decoder=True, **options), state)(x)
    close(theirs.conv_final[2](dense), theirs(x))


# ---- names, counts, sizes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "options", "parameters", "tensors"),
    [
        ("segresencoder", {}, 77_760_992, 161),
        ("segresnet_ds", {"num_classes": 2, "dsdepth": 4}, 87_164_200, 221),
        ("segresnet_ds", {"num_classes": 0}, 77_760_992, 161),
        ("segresnet", {"num_classes": 25}, 4_701_305, 83),
    ],
)
def test_counts_are_the_published_ones(architecture: str, options: Any, parameters: int, tensors: int) -> None:
    model = skeleton(architecture, options)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(model.state_dict()) == tensors
    assert all(t.is_meta for t in model.state_dict().values())


def test_encoder_and_segmenter_of_ct_fm_share_their_names() -> None:
    encoder, segmenter = (shapes(skeleton(n, {}).state_dict()) for n in ("segresencoder", "segresnet_ds"))
    assert encoder == {name: shape for name, shape in segmenter.items() if name.startswith("encoder.")}


@pytest.mark.parametrize("family", FAMILIES)
def test_head_and_decoder_are_what_is_not_there_without_classes(family: str) -> None:
    network, head = FAMILIES[family]
    assert network.head == head

    def made(**options: Any) -> dict[str, tuple[int, ...]]:
        return shapes(skeleton(family, {**NARROW, **options}).state_dict())

    whole, none, features = made(num_classes=2), made(num_classes=0), made(num_classes=2, features_only=True)
    assert none == features
    assert whole.keys() - none.keys() == {n for n in whole if n.startswith((network.head, *network.decoder))}
    assert {n for n, shape in made(num_classes=3).items() if whole[n] != shape} == {
        n for n in whole if n.startswith(head)
    }
    if network.decoder:
        kept = made(num_classes=0, keep_decoder=True)
        assert whole.keys() - kept.keys() == {n for n in whole if n.startswith(head)}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_pyramid_describes_itself(family: str) -> None:
    model = FAMILIES[family][0](features_only=True, **NARROW).eval()
    assert model.feature_info == tuple(Feature(f"level{i}", 4 * 2**i, (2**i,) * 3) for i in range(3))
    maps = model(torch.rand(1, 1, 8, 12, 4))
    for level in model.feature_info:
        sides = tuple(s // t for s, t in zip((8, 12, 4), level.stride, strict=True))
        assert maps[level.name].shape[1:] == (level.channels, *sides)


@pytest.mark.parametrize("family", FAMILIES)
def test_options_of_the_weights_change_names_or_shapes(family: str) -> None:
    network = FAMILIES[family][0]
    other = {"init_filters": 8, "blocks_down": (1, 2, 1), "blocks_up": (2, 2), "dsdepth": 2}
    norms = [n for n in ("batch", "group") if n != ("group" if family == "segresnet" else "batch")]

    def made(**options: Any) -> dict[str, tuple[int, ...]]:
        return shapes(skeleton(family, {**NARROW, "num_classes": 2, **options}).state_dict())

    for option in network.weight_options:
        assert made(**{option: norms[0] if option == "norm" else other[option]}) != made(), option
    for norm in ("batch", "group", "instance", "sync"):
        assert made(norm=norm)


BAD: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("segresencoder", {"init_filters": 0}, r"init_filters=0 .*positive"),
    ("segresencoder", {"blocks_down": ()}, r"blocks_down=\(\) .*1 positive integers or more"),
    ("segresencoder", {"blocks_down": (1, 0)}, r"blocks_down=\(1, 0\)"),
    ("segresencoder", {"norm": "layer"}, r"norm='layer' .*batch.*group"),
    ("segresnet_ds", {"blocks_down": (1,)}, r"blocks_down=\(1,\) .*2 positive integers or more"),
    ("segresnet_ds", {"blocks_up": (1,)}, r"blocks_up=\(1,\) .*2 positive integers"),
    ("segresnet_ds", {"dsdepth": 3}, r"dsdepth=3 .*1, 2"),
    ("segresnet_ds", {"num_classes": -1}, r"num_classes=-1"),
    ("segresnet", {"blocks_down": 3}, r"blocks_down=3 "),
    ("segresnet", {"blocks_up": (1, 1, 1)}, r"blocks_up=\(1, 1, 1\)"),
    ("segresnet", {"init_filters": "16"}, r"init_filters='16'"),
)


@pytest.mark.parametrize(("family", "options", "message"), BAD, ids=str)
def test_bad_options_say_what_is_allowed(family: str, options: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(OptionError, match=message):
        FAMILIES[family][0](**{**NARROW, **options})


@pytest.mark.parametrize("family", ["segresnet_ds", "segresnet"])
def test_sides_that_a_decoder_cannot_join_are_refused(family: str) -> None:
    network = FAMILIES[family][0]
    with pytest.raises(OptionError, match=r"\(8, 10, 8\).*divisible by \(4, 4, 4\).*\(8, 12, 8\)"):
        network(**NARROW)(torch.rand(1, 1, 8, 10, 8))
    with pytest.raises(OptionError, match=r"\(N, 1, D, H, W\)"):
        network(**NARROW)(torch.rand(1, 2, 8, 8, 8))
    assert network(num_classes=0, **NARROW).eval()(torch.rand(1, 1, 9, 10, 5)).shape == (1, 16)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trace_takes_other_sizes_and_gives_the_same(family: str) -> None:
    model = randomised(FAMILIES[family][0](num_classes=2, norm="batch", **NARROW))  # torch's GroupNorm asks for sizes
    with pytest.warns(DeprecationWarning, match="jit"):
        traced = torch.jit.trace(model, image(1, 1, 8, 8, 8))
    x = image(2, 1, 12, 8, 16)
    close(traced(x), model(x))


# ---- MONAI -----------------------------------------------------------------------------------------------------------

WITHOUT = """
import sys
sys.modules["monai"] = None
from svd_hub import models
from svd_hub.errors import MissingExtraError
for name in ("segresencoder", "segresnet_ds", "segresnet"):
    assert "norm" in models.default_options(name)
    try:
        models.build(name, {})
    except MissingExtraError as error:
        assert str(error) == 'monai is not installed. Next: pip install "svd-hub[volume]"', error
    else:
        raise SystemExit(name)
"""
# A stand-in for MONAI that makes a tensor on import, and its first import while a skeleton is built.
ON_META = """
import sys
sys.path.insert(0, {folder!r})
import torch
from svd_hub.models.segresnet import monai_nets
with torch.device("meta"):
    assert monai_nets("segresnet").TENSOR.device.type == "cpu"
"""


def in_a_process_of_its_own(code: str) -> None:
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_without_monai_the_error_names_the_extra() -> None:
    in_a_process_of_its_own(WITHOUT)


def test_what_monai_makes_on_import_is_no_meta_tensor(tmp_path: Path) -> None:
    nets = tmp_path / "monai" / "networks" / "nets"
    nets.mkdir(parents=True)
    for folder in (nets, nets.parent, nets.parent.parent):
        (folder / "__init__.py").touch()
    (nets / "segresnet.py").write_text("import torch\nTENSOR = torch.ones(1)\n", encoding="utf-8")
    in_a_process_of_its_own(ON_META.format(folder=str(tmp_path)))
