"""Every documented layout of a Genesis U-Net, saved by torch, becomes our network with upstream's outputs."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_genesis import State, documented_shapes, image, state_unet, values
from safetensors.torch import save_file
from synthetic import Shelf

import svd_hub
from svd_hub import checkpoint
from svd_hub.errors import CheckpointError
from svd_hub.models.unet3d_genesis import GenesisUNet3D
from svd_hub.origins import genesis, get_origin
from svd_hub.origins.conversion import Conversion

torch.set_num_threads(1)
WIDTH = 2
CLC = {
    "clc_out.conv1.weight": (8, 32, 3, 3, 3),
    "clc_out.conv1.bias": (8,),
    **{f"clc_out.bn1.{part}": (8,) for part in ("weight", "bias", "running_mean", "running_var")},
    "clc_out.bn1.num_batches_tracked": (),
    "clc_out.fc1.weight": (44, 8),
    "clc_out.fc1.bias": (44,),
}
SWAPPED = {"projection_head.0.weight": (4, 4), "projection_head.0.bias": (4,), "prototypes.weight": (3, 4)}
RUBIK = {
    f"{name}.{part}": shape
    for name in ("fc6", "order_fc", "hor_rot_fc", "ver_rot_fc", "mask_fc")
    for part, shape in (("weight", (4, 4)), ("bias", (4,)))
}
DENSE = {"dense_1.weight": (2, 32), "dense_1.bias": (2,)}


def single(state: State) -> State:
    return {name: t.float() if t.is_floating_point() else t for name, t in state.items()}


def network(*parts: str, classes: int = 1, inputs: int = 1) -> State:
    """The network's values as files have them, or those of some of its parts."""
    state = single(values(documented_shapes(WIDTH, inputs, classes)))
    return {name: tensor for name, tensor in state.items() if name.startswith(parts or ("",))}


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def others(wanted: dict[str, tuple[int, ...]]) -> State:
    return single(values(wanted, seed=9))


def optimizer() -> dict[str, Any]:
    """What torch.save makes of an optimiser that has taken a step."""
    weight = torch.nn.Parameter(torch.ones(2))
    sgd = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    weight.sum().backward()
    sgd.step()
    return sgd.state_dict()


ENCODER = network("down_tr")
# The tensors of a layout, and what is beside their table in the file.
LAYOUTS: dict[str, tuple[State, dict[str, Any], dict[str, Any]]] = {
    "Models Genesis": (prefixed("module.", network()), {"epoch": 3, "optimizer_state_dict": "sgd"}, {"num_classes": 1}),
    "Semantic Genesis": (
        prefixed("module.", network() | others(CLC)),
        {"best_loss": np.float64(0.25), "best_acc": np.float64(0.5), "num_epoch_no_improvement": 0},
        {"num_classes": 1},
    ),
    "TransVW": (
        prefixed("module.classficationNet.", network()) | prefixed("module.", others(SWAPPED)),
        {"best_loss": np.float64(0.25), "best_acc": 0},
        {"num_classes": 1},
    ),
    "without DataParallel": (network(), {}, {"num_classes": 1}),
    "a new final convolution": (network(classes=5), {}, {"num_classes": 5}),
    "two input channels": (network(inputs=2), {}, {"num_classes": 1, "in_channels": 2}),
    "no final convolution": (network("down_tr", "up_tr"), {}, {"num_classes": 0, "keep_decoder": True}),
    "the classification network": (prefixed("module.", ENCODER | others(CLC)), {}, {"num_classes": 0}),
    "Rubik's Cube": (
        prefixed("module.", prefixed("encoder.", ENCODER) | others(RUBIK)),
        {"epoch": 9, "optimizer": "sgd", "scheduler": {"last_epoch": 9}},
        {"num_classes": 0},
    ),
    "fine-tuned": (
        prefixed("module.", prefixed("base_model.", network()) | others(DENSE)),
        {"epoch": 1},
        {"num_classes": 1},
    ),
}


def written(path: Path, state: State, beside: dict[str, Any]) -> Path:
    beside = {key: optimizer() if value == "sgd" else value for key, value in beside.items()}
    torch.save({"state_dict": state, **beside}, path)
    return path


def converted(path: Path) -> tuple[Conversion, dict[str, Any]]:
    read = checkpoint.read(path)
    return genesis.convert(read.tensors, {}), genesis.options_of(read.tensors, {})


def check_outputs(done: Conversion, options: dict[str, Any], state: State) -> None:
    """Every level and the last output are those of the statement on the file's own values."""
    model = GenesisUNet3D(width=WIDTH, **options)
    model.load_state_dict(done.tensors, strict=True)
    model.double().eval()
    plain = {re.sub(r"^.*?(?=(down|up|out)_tr)", "", name): tensor.double() for name, tensor in state.items()}
    whole = values(documented_shapes(WIDTH, options.get("in_channels", 1), options["num_classes"] or 1))
    x = image(2, options.get("in_channels", 1), 8, 16, 8)
    expected = state_unet(whole | plain, x)
    for name, got in model.features(x).items():
        torch.testing.assert_close(got, expected[name], rtol=1e-5, atol=1e-5)
    kind = "map" if options["num_classes"] else "dense" if options.get("keep_decoder") else "pooled"
    expected["pooled"] = expected["level3"].mean((2, 3, 4))
    torch.testing.assert_close(model(x), expected[kind], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_becomes_the_network_it_is(layout: str, tmp_path: Path) -> None:
    state, beside, options = LAYOUTS[layout]
    done, told = converted(written(tmp_path / "a.pt", state, beside))
    assert told == options
    kept = {name: t for name, t in state.items() if re.search(r"(down|up|out)_tr", name)}
    assert done.dropped.keys() == {name.removeprefix("module.") for name in state.keys() - kept.keys()}
    assert len(done.tensors) == len(kept)
    check_outputs(done, options, kept)


REASONS = {
    "Semantic Genesis": "the classifier of anatomical patterns",
    "TransVW": "a head of the pre-training task",
    "Rubik's Cube": "Rubik's Cube: a head of the pre-training task",
    "fine-tuned": "no part of the U-Net",
}


@pytest.mark.parametrize("layout", REASONS)
def test_what_is_dropped_has_its_reason_and_a_note(layout: str, tmp_path: Path) -> None:
    done, _ = converted(written(tmp_path / "a.pt", *LAYOUTS[layout][:2]))
    assert done.dropped
    assert all(reason.startswith(REASONS[layout]) for reason in done.dropped.values())
    assert any(f"dropped: {REASONS[layout]}" in note for note in done.notes)


def test_notes_say_which_parts_are_missing(tmp_path: Path) -> None:
    encoder, _ = converted(written(tmp_path / "a.pt", *LAYOUTS["Rubik's Cube"][:2]))
    headless, _ = converted(written(tmp_path / "b.pt", *LAYOUTS["no final convolution"][:2]))
    assert "the file holds the encoder alone" in encoder.notes
    assert "the file holds a decoder without a final convolution" in headless.notes


@pytest.mark.parametrize("module", [b"numpy._core.multiarray", b"numpy.core.multiarray"])
def test_numpy_s_numbers_in_the_file_open_under_the_names_of_both_numpys(module: bytes, tmp_path: Path) -> None:
    path = written(tmp_path / "a.pt", *LAYOUTS["Semantic Genesis"][:2])
    stream = io.BytesIO()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(stream, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("data.pkl"):
                old = np.float64(0).__reduce__()[0].__module__.encode()
                content = content.replace(b"c" + old + b"\n", b"c" + module + b"\n")
                assert b"c" + module + b"\nscalar" in content
            target.writestr(name, content)
    path.write_bytes(stream.getvalue())
    read = checkpoint.read(path)
    assert (read.wrapper, read.prefix) == ("state_dict", "module.")
    assert read.metadata["best_loss"] == "0.25"
    done, told = converted(path)
    assert told == {"num_classes": 1}
    check_outputs(done, told, network())


def test_counters_that_old_torch_did_not_save_start_at_zero() -> None:
    state = {name: t for name, t in network().items() if not name.endswith("num_batches_tracked")}
    done = genesis.convert(state, {})
    assert done.tensors.keys() == network().keys()
    assert "14 counters of batches (num_batches_tracked) are not in the file and start at 0" in done.notes
    assert not genesis.convert(network(), {}).notes
    check_outputs(done, {"num_classes": 1}, network())


def test_an_entry_that_keeps_the_decoder_learns_of_a_file_without_one() -> None:
    assert genesis.options_of(ENCODER, {"keep_decoder": True}) == {"num_classes": 0, "keep_decoder": False}
    assert genesis.options_of(network("down_tr", "up_tr"), {"keep_decoder": True}) == {"num_classes": 0}
    assert genesis.options_of(network(), {"num_classes": 1, "in_channels": 1}) == {"num_classes": 1}


def test_an_undocumented_prefix_is_kept_and_two_networks_are_refused() -> None:
    teacher = prefixed("teacher.", ENCODER)
    done = genesis.convert(ENCODER | teacher, {})
    assert set(teacher) <= set(done.tensors)
    with pytest.raises(CheckpointError, match=r"'down_tr64\.ops\.0\.conv1\.weight' and 'encoder\.down_tr64"):
        genesis.convert(ENCODER | prefixed("encoder.", ENCODER), {})


def test_another_network_is_returned_as_it_is_to_be_told_what_it_is() -> None:
    other = {"conv1.weight": torch.ones(2, 1, 7, 7, 7), "fc.weight": torch.ones(2, 2)}
    done = genesis.convert(other, {})
    assert done.tensors.keys() == other.keys()
    assert not done.dropped
    assert genesis.options_of(other, {}) == {}


# ---- through the hub -------------------------------------------------------------------------------------------------

ENTRY = {
    "summary": "a test",
    "architecture": "unet3d_genesis",
    "options": {"width": WIDTH, "num_classes": 1},
    "status": "official",
    "task": "segmentation",
    "licence": "CC0-1.0",
    "origin": "genesis",
    "open": ["num_classes", "keep_decoder"],
}


@pytest.mark.parametrize(
    "layout", ["Models Genesis", "a new final convolution", "no final convolution", "Rubik's Cube"]
)
def test_load_builds_what_the_file_holds(layout: str, tmp_path: Path, shelf: Shelf) -> None:
    state, beside, options = LAYOUTS[layout]
    path = written(tmp_path / "a.pt", state, beside)
    shelf.put("small_genesis", path.read_bytes(), **ENTRY)
    plain = network(classes=options["num_classes"] or 1)
    x = image(2, 1, 8, 8, 8)
    expected = state_unet({name: t.double() for name, t in plain.items()}, x)
    expected["pooled"] = expected["level3"].mean((2, 3, 4))
    kind = "map" if options["num_classes"] else "dense" if options.get("keep_decoder") else "pooled"
    for weights in (path, "default"):
        model = svd_hub.load("small_genesis", weights=weights, progress=False)
        torch.testing.assert_close(model.double()(x), expected[kind], rtol=1e-5, atol=1e-5)


def test_load_changes_head_and_decoder(tmp_path: Path, shelf: Shelf) -> None:
    path = written(tmp_path / "a.pt", *LAYOUTS["Models Genesis"][:2])
    shelf.put("small_genesis", path.read_bytes(), **ENTRY)
    x = image(2, 1, 8, 8, 8)
    expected = state_unet({name: t.double() for name, t in network().items()}, x)

    def load(**options: Any) -> Any:
        return svd_hub.load("small_genesis", progress=False, **options).double()

    torch.testing.assert_close(load(num_classes=0)(x), expected["level3"].mean((2, 3, 4)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(load(num_classes=0, keep_decoder=True)(x), expected["dense"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(load(features_only=True)(x)["level3"], expected["level3"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(load(final_activation="none")(x), expected["logits"], rtol=1e-5, atol=1e-5)
    model, report = svd_hub.load("small_genesis", num_classes=4, return_report=True, progress=False)
    assert model(x.float()).shape == (2, 4, 8, 8, 8)
    assert report.missing == ("out_tr.final_conv.bias", "out_tr.final_conv.weight")
    kept = model.double().decode(model.features(x))
    torch.testing.assert_close(kept, expected["dense"], rtol=1e-5, atol=1e-5)


def test_the_origin_is_registered(tmp_path: Path) -> None:
    save_file(network(), tmp_path / "a.safetensors")
    done = get_origin("genesis").convert(checkpoint.read(tmp_path / "a.safetensors").tensors, {})
    assert done.tensors.keys() == network().keys()
