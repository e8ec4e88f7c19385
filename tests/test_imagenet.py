"""The ImageNet recipes: what they differ in, both forms of the download from end to end, the 2D twins."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_recipes import RECIPES, commands_of, table_of, text_of
from PIL import Image
from safetensors.torch import load_file
from test_training import log, same

import svd_hub
from svd_hub import cli, models
from svd_hub.errors import OptionError
from svd_hub.inflation import change_channels, inflate_kernel
from svd_hub.training import recipe as recipes
from svd_hub.training.data.images import random_plain_crop
from svd_hub.training.miniature import pictures
from svd_hub.training.reproduce.tiers import reproduce
from svd_hub.training.tasks.classification import Network, build_network
from svd_hub.training.twins import ResNet2D, record_of_twin

IMAGENET = [name for name in RECIPES if "_imagenet" in name]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


# ---- recipes ---------------------------------------------------------------------------------------------------------


def test_they_are_all_there() -> None:
    assert (
        sorted(
            ["resnet3dv1c18_imagenet", "resnet3d18gn_imagenet"]
            + [f"resnet2d{depth}_imagenet" for depth in (18, 34, 50)]
            + [f"resnet3d{depth}_imagenet{variant}" for depth in (18, 34, 50) for variant in ("", "_paper")]
        )
        == IMAGENET
    )
    for name in svd_hub.list_entries("resnet3d*_imagenet", status="recipe"):
        assert svd_hub.get_entry(name).recipe == name


@pytest.mark.parametrize("name", IMAGENET)
def test_the_commands_in_a_recipe_are_commands_of_it(name: str) -> None:
    first, *others = commands_of(name)
    assert first == ["svd-hub", "train", name, "--data", "imagenet"]
    for command in others:
        flags = list(zip(command[3::2], command[4::2], strict=True))
        assert {flag for flag, _ in flags} <= {"--data", "--run", "--set"}
        assert dict(flags)["--run"] != f"runs/{name}"
        changed = recipes.read(name, dict(value.split("=", 1) for flag, value in flags if flag == "--set"))
        assert changed.text != recipes.read(name).text
    assert "svd-hub prepare imagenet DOWNLOADED imagenet" in text_of(name)


def differing(one: str, other: str) -> set[str]:
    """The dotted keys in which two recipes differ, but for what they are called and expect."""
    from svd_hub.training.expected import leaves

    first, second = (leaves({k: table_of(name)[k] for k in ("run", "task", "data")}) for name in (one, other))
    return {
        key.rpartition("init_args.")[2] for key in first.keys() | second.keys() if first.get(key) != second.get(key)
    }


@pytest.mark.parametrize(
    ("one", "other", "keys"),
    [
        ("resnet2d18_imagenet", "resnet3d18_imagenet", {"network.architecture", "network.form"}),
        ("resnet2d34_imagenet", "resnet3d34_imagenet", {"network.architecture", "network.form"}),
        ("resnet2d50_imagenet", "resnet3d50_imagenet", {"network.architecture", "network.form"}),
        ("resnet3d34_imagenet", "resnet3d50_imagenet", {"network.options.depth"}),
        ("resnet3d34_imagenet_paper", "resnet3d18_imagenet_paper", {"network.options.depth"}),
        ("resnet3d50_imagenet_paper", "resnet3d18_imagenet_paper", {"network.options.depth"}),
        ("resnet3dv1c18_imagenet", "resnet3d18_imagenet", {"network.options.stem"}),
        ("resnet3d18gn_imagenet", "resnet3d34_imagenet", {"network.options.depth", "network.options.norm"}),
        ("resnet3d18_imagenet_paper", "resnet3d18_imagenet", {"optimiser.stepped", "crop", "shuffle_planes"}),
        (
            "resnet3d34_imagenet_paper",
            "resnet3d34_imagenet",
            {"optimiser.schedule", "optimiser.drops", "label_smoothing", "crop"},
        ),
    ],
)
def test_they_differ_in_what_their_headers_say(one: str, other: str, keys: set[str]) -> None:
    assert differing(one, other) == keys


@pytest.mark.parametrize("name", IMAGENET)
def test_the_networks_are_those_of_the_table(name: str) -> None:
    """Parameters of Table II, and of the deep stem (svd-net.md 1.1, 1.2); a GroupNorm has as many as a BatchNorm."""
    table = {"2d18": 11.69, "2d34": 21.80, "2d50": 25.56, "3d18": 33.67, "3d34": 63.98, "3d50": 48.20, "3dv1c18": 33.73}
    network = recipes.read(name).config.task.init_args.network
    with torch.device("meta"):
        made = build_network(Network(architecture=network.architecture, options=dict(network.options)))
    kind = name.removeprefix("resnet").split("_")[0].removesuffix("gn")
    assert round(sum(p.numel() for p in made.parameters()) / 1e6, 2) == table[kind]


# ---- data ------------------------------------------------------------------------------------------------------------


def prepared(source: Path, target: Path, monkeypatch: Any) -> Path:
    monkeypatch.setattr(sys, "argv", ["svd-hub", "prepare", "imagenet", str(source), str(target)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    return target


def as_shards(source: Path, folder: Path) -> Path:
    """The pictures of folders of classes as the Hub's imagenet-1k has them: shards in data/, the split "validation"."""
    (folder / "data").mkdir(parents=True)
    for split, name in (("train", "train"), ("val", "validation")):
        classes = sorted(place.name for place in (source / "train").iterdir())
        files = [(file, k) for k, one in enumerate(classes) for file in sorted((source / split / one).iterdir())]
        pictures.shard(
            folder / "data" / f"{name}-00000-of-00001.parquet", [(file.read_bytes(), k) for file, k in files]
        )
    return folder


def test_both_forms_of_the_download_give_the_same_run_to_the_bit(tmp_path: Path, monkeypatch: Any) -> None:
    """From files as they are downloaded, by the commands of the recipe, to a network that loads."""
    source = pictures.folder_set(tmp_path / "folders", size=(300, 280))  # larger than the short side that is kept
    runs = []
    for form, place in (("folders", source), ("parquet", as_shards(source, tmp_path / "parquet"))):
        data = prepared(place, tmp_path / f"{form}-prepared", monkeypatch)
        with Image.open(io.BytesIO((data / "train" / "images.bin").read_bytes())) as first:
            assert min(first.size) == 256
        runs.append(tmp_path / f"run-{form}")
        found = reproduce(str(three_classes(tmp_path)), "smoke", run=runs[-1], data=data)
        assert found.passed, found.line
        assert json.loads((runs[-1] / "run.json").read_text())["data"]["train"]["images"] == pictures.TRAIN
        assert svd_hub.load(runs[-1] / "model.safetensors").options["num_classes"] == pictures.CLASSES
    assert same(*runs)
    rows = [[{k: v for k, v in row.items() if k != "seconds"} for row in log(run)] for run in runs]
    assert rows[0] == rows[1]


def three_classes(folder: Path) -> Path:
    """The recipe for as many classes as the miniature has."""
    path = folder / "resnet3d18_imagenet.yaml"
    path.write_text(text_of("resnet3d18_imagenet").replace("num_classes: 1000", "num_classes: 3"))
    return path


def test_a_plain_crop_is_a_square_of_the_picture_at_its_scale() -> None:
    """Every pixel says where it is: steps of one original pixel an output pixel times short side over short."""
    ramp = np.stack([*np.meshgrid(np.arange(120), np.arange(80)), np.zeros((80, 120))], -1).astype(np.uint8)
    corners = set()
    for seed in range(40):
        made = random_plain_crop(Image.fromarray(ramp), 40, 35, np.random.default_rng(seed))
        pixels = np.asarray(made).astype(float)
        assert made.size == (35, 35)
        for axis in (0, 1):
            steps = np.diff(pixels[..., axis], axis=1 - axis)
            assert abs(steps.mean() - 2) < 0.05  # the short side of 80 became 40
        corners.add((round(pixels[0, 0, 0]), round(pixels[0, 0, 1])))
        assert pixels[0, 0, 0] >= 0
        assert pixels[-1, -1, 0] <= 119
    assert len({x for x, _ in corners}) > 15
    assert len({y for _, y in corners}) > 5


# ---- twins -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_a_twin_has_the_shapes_of_the_acs_form(depth: int) -> None:
    """So that its file can be inflated; stride on the 3x3 convolution, shortcuts where channels change."""
    twin = ResNet2D(depth=depth, width=4, num_classes=7)
    options = {"depth": depth, "width": 4, "num_classes": 7, "convolution": "acs", "in_channels": 3}
    acs = models.build("resnet3d", options)
    shapes = {name: tuple(value.shape) for name, value in acs.state_dict().items()}
    assert {name: tuple(value.shape) for name, value in twin.state_dict().items()} == shapes
    strided = {name for name, m in twin.named_modules() if getattr(m, "stride", 1) == (2, 2) and "layer" in name}
    first = "conv2" if depth == 50 else "conv1"
    assert strided == {f"layer{n}.0.{part}" for n in (2, 3, 4) for part in (first, "downsample.0")}
    assert not any(m.get_submodule("bn3" if depth == 50 else "bn2").weight.any() for m in blocks(twin))
    assert twin(torch.zeros(2, 3, 64, 64)).shape == (2, 7)


def blocks(twin: ResNet2D) -> list[torch.nn.Module]:
    return [block for n in (1, 2, 3, 4) for block in twin.get_submodule(f"layer{n}").children()]


def test_the_file_of_a_twin_loads_inflated(tmp_path: Path) -> None:
    """Each kernel is the 2D one, repeated in depth and divided; the stem's colours are summed."""
    reproduce("resnet2d50_imagenet", "smoke", run=tmp_path / "run")
    file = tmp_path / "run" / "model.safetensors"
    given, have = load_file(file), svd_hub.load(file).state_dict()
    assert given.keys() == have.keys()
    assert given["layer1.0.conv2.weight"].ndim == 4
    for name, value in given.items():
        want = change_channels(value, 1, "sum") if name == "conv1.weight" else value
        want = inflate_kernel(want, "i3d") if value.ndim == 4 else want
        assert torch.allclose(have[name], want), name
    assert record_of_twin({"depth": 18})["stored"] == {"convolution": "acs", "in_channels": 3}


def test_another_depth_is_told() -> None:
    with pytest.raises(OptionError, match=r"depth=101 is not allowed; allowed: 18, 34, 50"):
        ResNet2D(depth=101)
