"""CT-FM's and SuPreM's documented layouts, written from MONAI's own networks, become ours with the same outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_genesis import State, documented_shapes, image, state_unet, values
from monai.networks.nets.segresnet import SegResNet as MonaiSegResNet
from monai.networks.nets.segresnet_ds import SegResEncoder as MonaiEncoder
from monai.networks.nets.segresnet_ds import SegResNetDS as MonaiSegResNetDS
from safetensors.torch import save_file
from synthetic import Shelf
from torch import Tensor, nn

import svd_hub
from svd_hub import checkpoint, models
from svd_hub.errors import CheckpointError
from svd_hub.models.unet3d_genesis import GenesisUNet3D
from svd_hub.origins import get_origin

torch.set_num_threads(1)
BLOCKS = (1, 2, 1)
NARROW: dict[str, Any] = {"init_filters": 8, "blocks_down": BLOCKS}


def randomised(network: nn.Module) -> Any:
    """Evaluation mode and seeded values of which every one matters."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, tensor in network.eval().state_dict().items():
            if tensor.is_floating_point():
                drawn = torch.randn(tensor.shape, generator=generator)
                positive = name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight"))
                tensor.copy_(drawn.abs() + 0.5 if positive else drawn * (2 / tensor[0].numel()) ** 0.5)
    return network


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: tensor.clone() for name, tensor in state.items()}


def noise(*names: str) -> State:
    return {name: torch.ones(2, 2) for name in names}


def close(a: Any, b: Tensor) -> None:
    torch.testing.assert_close(a.double(), b.double(), rtol=1e-5, atol=1e-5)


# ---- CT-FM -----------------------------------------------------------------------------------------------------------

ENCODER = randomised(MonaiEncoder(**NARROW))
SEGMENTER = randomised(MonaiSegResNetDS(out_channels=3, dsdepth=2, **NARROW))
SIMCLR = noise("projection_head.layers.0.weight", "projection_head.layers.2.weight")
CTFM_ENCODER: dict[str, State] = {
    "feature extractor": ENCODER.state_dict(),
    "pretrained_segresnet.torch": prefixed("encoder.", ENCODER.state_dict()),
    "the authors' checkpoint": prefixed("backbone.", ENCODER.state_dict()) | SIMCLR,
    "a system's checkpoint": prefixed("model.backbone.", ENCODER.state_dict()) | prefixed("model.", SIMCLR),
    "a compiled trunk": prefixed("trunk._orig_mod.", ENCODER.state_dict()) | noise("head.0.weight"),
}
CTFM_SEGMENTER: dict[str, State] = {
    "segmenter": SEGMENTER.state_dict(),
    "the authors' checkpoint": prefixed("trunk.", SEGMENTER.state_dict()),
    "a compiled system": prefixed("_orig_mod.trunk.", SEGMENTER.state_dict()),
}


def read(path: Path, state: State) -> State:
    """Write flat safetensors, as the published files are, and read them as the hub does."""
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    found = checkpoint.read(path)
    assert found.wrapper == "flat"
    return found.tensors


def build(architecture: str, tensors: State, options: dict[str, Any]) -> Any:
    model = models.build(architecture, options)
    model.load_state_dict(tensors, strict=True)
    return model.eval()


@pytest.mark.parametrize("layout", CTFM_ENCODER)
def test_ct_fm_s_encoder(layout: str, tmp_path: Path) -> None:
    tensors = read(tmp_path / "a.safetensors", CTFM_ENCODER[layout])
    origin: Any = get_origin("ctfm")
    done = origin.convert(tensors, {"num_classes": 0})
    assert origin.options_of(tensors, {"num_classes": 0}) == {}
    assert all(("head" in name) == (name in done.dropped) for name in tensors)
    model = build("segresencoder", done.tensors, {"num_classes": 0, **NARROW})
    x = image(2, 1, 8, 12, 8).float()
    for got, want in zip(model.features(x).values(), ENCODER(x), strict=True):
        close(got, want)
    close(model(x), ENCODER(x)[-1].mean((2, 3, 4)))


@pytest.mark.parametrize("layout", CTFM_SEGMENTER)
def test_ct_fm_s_segmenter(layout: str, tmp_path: Path) -> None:
    tensors = read(tmp_path / "a.safetensors", CTFM_SEGMENTER[layout])
    origin: Any = get_origin("ctfm")
    given = {"num_classes": 2, "dsdepth": 4}
    told = origin.options_of(tensors, given)
    assert told == {"num_classes": 3, "dsdepth": 2}
    done = origin.convert(tensors, given)
    assert not done.dropped
    model = build("segresnet_ds", done.tensors, NARROW | told)
    x = image(2, 1, 8, 12, 8).float()
    close(model(x), SEGMENTER(x))
    for got, want in zip(model.features(x).values(), SEGMENTER.encoder(x), strict=True):
        close(got, want)
    deep = build("segresnet_ds", done.tensors, NARROW | told | {"deep_supervision": True}).train()
    theirs = MonaiSegResNetDS(out_channels=3, dsdepth=2, **NARROW).train()
    theirs.load_state_dict(SEGMENTER.state_dict())
    for got, want in zip(deep(x).values(), theirs(x), strict=True):
        close(got, want)


def test_an_entry_of_the_encoder_takes_it_out_of_a_segmenter() -> None:
    origin: Any = get_origin("ctfm")
    done = origin.convert(SEGMENTER.state_dict(), {"num_classes": 0})
    assert origin.options_of(SEGMENTER.state_dict(), {"num_classes": 0}) == {}
    assert set(done.dropped.values()) == {"the decoder; this entry is the encoder alone"}
    model = build("segresencoder", done.tensors, {"num_classes": 0, **NARROW})
    x = image(1, 1, 8, 8, 8).float()
    close(model(x), SEGMENTER.encoder(x)[-1].mean((2, 3, 4)))


def test_a_segmenter_s_entry_learns_of_parts_that_are_not_there() -> None:
    origin: Any = get_origin("ctfm")
    given = {"num_classes": 2, "dsdepth": 4}
    assert origin.options_of(ENCODER.state_dict(), given) == {"num_classes": 0}
    state = {name: t for name, t in SEGMENTER.state_dict().items() if ".head." not in name}
    assert origin.options_of(state, given) == {"num_classes": 0, "keep_decoder": True}
    wide = MonaiEncoder(in_channels=2, **NARROW).state_dict()
    assert origin.options_of(wide, {"num_classes": 0}) == {"in_channels": 2}


# ---- SuPreM ----------------------------------------------------------------------------------------------------------

SEGRESNET = randomised(MonaiSegResNet(out_channels=7, dropout_prob=0.0, blocks_up=(1, 1), **NARROW))
UNET = {
    name: t.float() if t.is_floating_point() else t
    for name, t in values(documented_shapes(2)).items()
    if not name.startswith("out_tr")
}
TEXT = noise(
    *("precls_conv.0.weight", "precls_conv.2.bias", "GAP.0.weight", "GAP.3.weight", "controller.weight"),
    *("controller.bias", "organ_embedding", "text_to_vision.weight", "text_to_vision.bias"),
)
SUPREM_UNET: dict[str, State] = {
    "published": prefixed("module.", prefixed("backbone.", UNET) | TEXT),
    "unet_backbone.pth": UNET,
}


def suprem_file(path: Path, net: State) -> Path:
    """As upstream's training saves: the network, AdamW after a step, a scheduler, the epoch."""
    weight = nn.Parameter(torch.ones(2))
    adam = torch.optim.AdamW([weight])
    weight.sum().backward()
    adam.step()
    schedule = {"warmup_epochs": 20, "base_lrs": [1e-4], "last_epoch": 9}
    torch.save({"net": net, "optimizer": adam.state_dict(), "scheduler": schedule, "epoch": 9}, path)
    return path


def test_suprem_s_segresnet_has_as_many_classes_as_its_file(tmp_path: Path) -> None:
    path = suprem_file(tmp_path / "a.pth", prefixed("module.", SEGRESNET.state_dict()))
    found = checkpoint.read(path)
    assert (found.wrapper, found.prefix) == ("net", "module.")
    origin: Any = get_origin("suprem")
    told = origin.options_of(found.tensors, {"num_classes": 32})
    assert told == {"num_classes": 7}
    done = origin.convert(found.tensors, {"num_classes": 32})
    assert not done.dropped
    assert list(done.tensors) == list(SEGRESNET.state_dict())
    model = build("segresnet", done.tensors, NARROW | told)
    x = image(1, 1, 8, 12, 16).float()
    close(model(x), SEGRESNET(x))
    for got, want in zip(model.features(x).values(), SEGRESNET.encode(x)[1], strict=True):
        close(got, want)


def test_suprem_s_segresnet_in_parts() -> None:
    origin: Any = get_origin("suprem")
    state = SEGRESNET.state_dict()
    headless = {name: t for name, t in state.items() if not name.startswith("conv_final.2")}
    assert origin.options_of(headless, {"num_classes": 32}) == {"num_classes": 0, "keep_decoder": True}
    build("segresnet", origin.convert(headless, {}).tensors, NARROW | {"num_classes": 0, "keep_decoder": True})
    encoder = {name: t for name, t in state.items() if name.startswith(("convInit", "down_layers"))}
    assert origin.options_of(encoder, {"num_classes": 32}) == {"num_classes": 0}
    build("segresnet", origin.convert(encoder, {}).tensors, NARROW | {"num_classes": 0})


@pytest.mark.parametrize("layout", SUPREM_UNET)
def test_suprem_s_unet_has_no_final_convolution(layout: str, tmp_path: Path) -> None:
    found = checkpoint.read(suprem_file(tmp_path / "a.pth", SUPREM_UNET[layout]))
    origin: Any = get_origin("suprem")
    told = origin.options_of(found.tensors, {})
    assert told == {"num_classes": 0, "keep_decoder": True}
    done = origin.convert(found.tensors, {})
    assert len(done.tensors) == 104
    assert set(done.dropped) == (set(TEXT) if layout == "published" else set())
    assert all(reason.startswith("the head that makes a final convolution") for reason in done.dropped.values())
    model = GenesisUNet3D(width=2, **told)
    model.load_state_dict(done.tensors, strict=True)
    x = image(2, 1, 8, 8, 16)
    whole = values(documented_shapes(2)) | {name: t.double() for name, t in UNET.items()}
    expected = state_unet(whole, x)
    model.double().eval()
    close(model(x), expected["dense"])
    close(model.features(x)["level3"], expected["level3"])


@pytest.mark.parametrize("name", ["ctfm", "suprem"])
def test_another_network_is_returned_as_it_is_to_be_told_what_it_is(name: str) -> None:
    origin: Any = get_origin(name)
    other = {"conv1.weight": torch.ones(2, 1, 7, 7, 7), "layer1.0.conv1.weight": torch.ones(2, 2, 3, 3, 3)}
    assert origin.convert(other, {}).tensors.keys() == other.keys()
    assert origin.options_of(other, {}) == {}


def test_two_networks_in_one_file_are_refused() -> None:
    state = SEGRESNET.state_dict()
    with pytest.raises(CheckpointError, match=r"'convInit\.conv\.weight' and 'module\.convInit"):
        get_origin("suprem").convert(state | prefixed("module.", state), {})
    with pytest.raises(CheckpointError, match=r"'conv_init\.weight' and 'encoder\.conv_init\.weight'"):
        get_origin("ctfm").convert(ENCODER.state_dict() | prefixed("encoder.", ENCODER.state_dict()), {})


# ---- through the hub -------------------------------------------------------------------------------------------------

COMMON = {"summary": "a test", "status": "official", "licence": "CC0-1.0", "task": "segmentation"}


def put(shelf: Shelf, name: str, path: Path, **table: Any) -> None:
    shelf.put(name, path.read_bytes(), source={"file": path.name}, **COMMON, **table)


def test_load_of_a_segresnet_whose_classes_nobody_knew(tmp_path: Path, shelf: Shelf) -> None:
    path = suprem_file(tmp_path / "a.pth", prefixed("module.", SEGRESNET.state_dict()))
    options = {**NARROW, "blocks_down": list(BLOCKS), "num_classes": 32}
    put(shelf, "small_suprem", path, architecture="segresnet", origin="suprem", options=options, open=["num_classes"])
    x = image(1, 1, 8, 8, 16).float()
    for weights in (path, "default"):
        close(svd_hub.load("small_suprem", weights=weights, progress=False)(x), SEGRESNET(x))
    model, report = svd_hub.load("small_suprem", num_classes=3, return_report=True, progress=False)
    assert report.missing == ("conv_final.2.conv.bias", "conv_final.2.conv.weight")
    dense = model.decode(model.features(x))
    close(SEGRESNET.conv_final[2](dense), SEGRESNET(x))
    pooled = svd_hub.load("small_suprem", num_classes=0, progress=False)(x)
    close(pooled, SEGRESNET.encode(x)[0].mean((2, 3, 4)))


def test_load_of_ct_fm_s_two_files(tmp_path: Path, shelf: Shelf) -> None:
    options = {**NARROW, "blocks_down": list(BLOCKS)}
    x = image(1, 1, 8, 8, 16).float()
    for name, network in (("a", ENCODER), ("b", SEGMENTER)):
        read(tmp_path / f"{name}.safetensors", network.state_dict())
    encoder, segmenter = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    put(shelf, "small_ctfm", encoder, architecture="segresencoder", origin="ctfm", options=options | {"num_classes": 0})
    whole = options | {"num_classes": 2, "dsdepth": 2}
    put(
        shelf,
        "small_ctfm_ds",
        segmenter,
        architecture="segresnet_ds",
        origin="ctfm",
        options=whole,
        open=["num_classes"],
    )
    close(svd_hub.load("small_ctfm", progress=False)(x), ENCODER(x)[-1].mean((2, 3, 4)))
    close(svd_hub.load("small_ctfm", weights=segmenter)(x), SEGMENTER.encoder(x)[-1].mean((2, 3, 4)))
    close(svd_hub.load("small_ctfm_ds", progress=False)(x), SEGMENTER(x))
    close(svd_hub.load("small_ctfm_ds", weights=encoder)(x), ENCODER(x)[-1].mean((2, 3, 4)))
    model, report = svd_hub.load("small_ctfm_ds", num_classes=5, return_report=True, progress=False)
    assert report.missing == tuple(f"heads.{i}.{part}" for i in (0, 1) for part in ("bias", "weight"))
    assert model(x).shape == (1, 5, 8, 8, 16)


def test_load_of_suprem_s_unet(tmp_path: Path, shelf: Shelf) -> None:
    path = suprem_file(tmp_path / "a.pth", SUPREM_UNET["published"])
    options = {"width": 2, "num_classes": 0, "keep_decoder": True, "final_activation": "none"}
    put(shelf, "small_unet", path, architecture="unet3d_genesis", origin="suprem", options=options)
    x = image(2, 1, 8, 8, 16)
    whole = values(documented_shapes(2)) | {name: t.double() for name, t in UNET.items()}
    expected = state_unet(whole, x)

    def load(**asked: Any) -> Any:
        return svd_hub.load("small_unet", progress=False, **asked).double()

    close(load()(x), expected["dense"])
    close(load(keep_decoder=False)(x), expected["level3"].mean((2, 3, 4)))
    close(load(features_only=True)(x)["level2"], expected["level2"])
    model = load(num_classes=14)
    close(model.decode(model.features(x)), expected["dense"])
    assert model(x).shape == (2, 14, 8, 8, 16)
