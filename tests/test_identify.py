"""Laws of svd_hub.identify: documented layouts are recognised, whatever the file is called, and nothing else is."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import helpers_genesis
import pytest
import torch
import upstream_layouts as layouts
from helpers_detection import theirs
from torch import Tensor

from svd_hub import checkpoint
from svd_hub.catalog import all_entries, get_entry
from svd_hub.entry import Entry
from svd_hub.errors import MissingExtraError
from svd_hub.identify import STEMS, Match, identify, matches
from svd_hub.models import ARCHITECTURES
from svd_hub.skeleton import skeleton

torch.set_num_threads(1)


def file_of(shapes: Any) -> dict[str, Tensor]:
    """A checkpoint of these shapes that takes no memory, without `module.`, as reading leaves it."""
    return {name.removeprefix("module."): torch.empty(shape, device="meta") for name, shape in shapes.items()}


def encoder() -> layouts.Shapes:
    return {name: s for name, s in helpers_genesis.documented_shapes().items() if name.startswith("down_tr")}


def detector() -> layouts.Shapes:
    """The released detector: mmdet 1's names, 81 classes."""
    options = {"depth_stride": 1, "num_classes": 80, "convention": "mmdet1"}
    ours = skeleton("faster_rcnn3d", options).state_dict()
    return {theirs(name, version=1): tuple(tensor.shape) for name, tensor in ours.items()}


ABOUT_TO_FIT: dict[str, tuple[layouts.Shapes, list[str]]] = {
    "MedicalNet 18": (layouts.medicalnet(18), ["resnet3d18_med3d", "resnet3d18_med3d23"]),
    "MedicalNet 50": (layouts.medicalnet(50), ["resnet3d50_med3d", "resnet3d50_med3d23"]),
    "MedicalNet 101": (layouts.medicalnet(101), ["resnet3d101_med3d"]),
    "Kinetics 34": (layouts.resnet(34, classes=700), ["resnet3d34_kinetics700"]),
    "Kinetics 200, moments": (layouts.resnet(200, classes=1039), ["resnet3d200_kinetics_moments"]),
    "Kinetics of 2018": (layouts.resnet(18, shortcut="A", classes=400), ["resnet3d18_kinetics400"]),
    "torchvision video": (layouts.torchvision_video(), ["r3d18_kinetics400"]),
    "torchvision 2D": (
        layouts.resnet(34, stem=(7, 7), classes=1000),
        ["resnet3d34_imagenet_acs", "resnet3d34_imagenet_i3d"],
    ),
    "DenseNet": (layouts.densenet(), ["densenet3d121_imagenet_acs", "densenet3d121_imagenet_i3d"]),
    "FMCIB": (layouts.resnet(50, width=128, channels=1, bias=True), ["resnet3d50x2_fmcib"]),
    "Merlin": (layouts.merlin_main(), ["resnet3d152_merlin"]),
    "SVD-Net's detector": (detector(), ["mp3d63_coco_detector"]),
    "SVD-Net's detector, the backbone alone": (
        {name: shape for name, shape in detector().items() if name.startswith("backbone.")},
        ["mp3d63_coco", "p3d63_coco"],
    ),
    "Genesis": (
        helpers_genesis.documented_shapes(),
        ["unet3d_genesis", "unet3d_semantic_genesis", "unet3d_transvw"],
    ),
}


@pytest.mark.parametrize("what", ABOUT_TO_FIT)
def test_a_documented_layout_is_recognised(what: str) -> None:
    shapes, expected = ABOUT_TO_FIT[what]
    assert identify(file_of(shapes)) == expected


@pytest.mark.parametrize(
    "shapes",
    [
        {"a.weight": (3, 4)},
        layouts.resnet(18, width=48, classes=700),
        layouts.medicalnet(18, width=16),
        layouts.resnet(34, shortcut="A", channels=5),
        layouts.medicalnet(18) | {"layer5.0.conv1.weight": (1, 1, 1, 1, 1)},
        {k: v for k, v in layouts.medicalnet(18).items() if k != "layer4.1.bn2.running_var"},
        layouts.resnet(50, width=128, channels=1),
        {},
    ],
    ids=["two axes", "width", "small", "five channels", "one more", "one less", "FMCIB without bias", "empty"],
)
def test_what_fits_nothing_is_nothing(shapes: layouts.Shapes) -> None:
    assert identify(file_of(shapes)) == []
    assert matches(file_of(shapes)) == []


def test_a_variant_is_named_with_what_is_different() -> None:
    own = matches(file_of(layouts.resnet(34, classes=2)))
    assert [str(match) for match in own] == [
        "resnet3d34_kinetics700 (num_classes=2)",
        "resnet3d34_kinetics_moments (num_classes=2)",
    ]
    assert own[0].options == {"num_classes": 2}
    assert {match.entry.name for match in matches(file_of(encoder()))} >= {"unet3d_genesis", "unet3d_transvw"}


def test_the_nearest_comes_first() -> None:
    """The authors' Kinetics copy of one channel: another stem is nearer than a file of which two tensors are left."""
    found = matches(file_of(layouts.resnet(18, channels=1, classes=700)))
    assert [str(match) for match in found] == [
        "resnet3d18_kinetics700 (in_channels=1)",
        "resnet3d18_imagenet (2 tensors left out)",
    ]
    assert identify(file_of(layouts.resnet(18, channels=1, classes=700))) == ["resnet3d18_kinetics700"]
    shapes = layouts.medicalnet(34) | layouts.medicalnet_head(512)
    assert {str(match) for match in matches(file_of(shapes))} == {
        "resnet3d34_med3d (14 tensors left out)",
        "resnet3d34_med3d23 (14 tensors left out)",
    }


def test_entries_with_weights_come_before_those_without() -> None:
    recipe = dataclasses.replace(get_entry("resnet3d18_med3d"), name="a_recipe", status="recipe")
    entries = [recipe, get_entry("resnet3d18_med3d")]
    assert [match.entry.name for match in matches(file_of(layouts.medicalnet(18)), entries=entries)] == [
        "resnet3d18_med3d",
        "a_recipe",
    ]


def test_only_the_entries_asked_for_are_looked_at() -> None:
    tensors = file_of(layouts.medicalnet(18))
    assert matches(tensors, entries=[]) == []
    assert matches(tensors, entries=[get_entry("resnet3d34_med3d")]) == []
    entry = get_entry("resnet3d18_med3d23")
    assert matches(tensors, entries=iter([entry])) == [Match(entry=entry)]


def small(**settings: Any) -> Entry:
    basis: dict[str, Any] = {
        "name": "small", "summary": "", "status": "derived", "architecture": "resnet3d", "origin": "imagenet_2d",
        "options": {"depth": 10, "width": 4, "num_classes": 3}, "stored": {"convolution": "acs", "in_channels": 3},
    }  # fmt: skip
    return Entry(**{**basis, **settings})


def test_the_stored_form_is_what_a_file_has() -> None:
    flat = file_of(layouts.resnet(10, width=4, stem=(7, 7), classes=3))
    solid = file_of(layouts.resnet(10, width=4, channels=1, classes=3))
    assert matches(flat, entries=[small()]) == [Match(entry=small())]
    assert matches(solid, entries=[small()]) == []
    assert matches(flat, entries=[small(stored={})]) == []
    assert matches(solid, entries=[small(stored={}, origin="svd_hub")]) == [
        Match(entry=small(stored={}, origin="svd_hub"))
    ]


def test_entries_that_cannot_be_tried_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = file_of(layouts.resnet(10, width=4, channels=1, classes=3))
    fits = small(stored={}, origin="svd_hub")
    odd = [
        small(name="no_origin", stored={}, origin="from_tomorrow"),
        small(name="no_network", stored={}, origin="svd_hub", architecture=""),
        small(name="no_such_network", stored={}, origin="svd_hub", architecture="resnet4d"),
        small(name="no_such_option", stored={"colour": 1}, origin="svd_hub"),
    ]
    assert matches(tensors, entries=[*odd, fits]) == [Match(entry=fits)]

    def without(architecture: str, options: Any) -> Any:
        raise MissingExtraError("monai", "volume")

    monkeypatch.setattr("svd_hub.identify.skeleton", without)
    sys.modules["svd_hub.identify"]._shapes_of.cache_clear()
    assert matches(tensors, entries=[fits]) == []


def test_no_network_is_built_that_the_file_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[tuple[str, Any]] = []

    def counted(architecture: str, options: Any) -> Any:
        built.append((architecture, options.get("depth")))
        return skeleton(architecture, options)

    monkeypatch.setattr("svd_hub.identify.skeleton", counted)
    tensors = file_of(layouts.medicalnet(101))
    sys.modules["svd_hub.identify"]._shapes_of.cache_clear()
    assert identify(tensors) == ["resnet3d101_med3d"]
    assert {architecture for architecture, _ in built} == {"resnet3d", "faster_rcnn3d"}  # or a detector's backbone
    assert len(built) < len(all_entries()) / 4
    count = len(built)
    assert identify(tensors) == ["resnet3d101_med3d"]
    assert len(built) == count, "the second look builds nothing"


def test_a_resnet_is_recognised_without_monai(tmp_path: Path) -> None:
    code = (
        "import sys, torch, upstream_layouts as u; from svd_hub.identify import identify\n"
        "sys.modules['monai'] = None\n"
        "assert identify({k: torch.empty(s, device='meta') for k, s in u.medicalnet(18).items()})[0] == "
        "'resnet3d18_med3d'"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_values_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of a billion values must not take longer than its names."""

    def looked(*_: Any) -> Any:
        raise AssertionError("a conversion looked at the values")

    monkeypatch.setattr(torch, "isfinite", looked)
    shapes = layouts.resnet(10, width=4, channels=1, classes=3)
    tensors = {name: torch.full(shape, float("nan"), dtype=torch.float16) for name, shape in shapes.items()}
    assert matches(tensors, entries=[small(stored={}, origin="svd_hub")])


def test_our_bundled_files_are_recognised() -> None:
    folder = Path(sys.modules["svd_hub"].__file__ or "").parent / "weights"
    for name in ("resnet3d18w16_tinyimagenet", "resnet3d18w16_lidc"):
        assert identify(checkpoint.read(folder / get_entry(name).source.file).tensors) == [name]


def test_every_architecture_has_the_stem_that_is_stated() -> None:
    assert STEMS.keys() == ARCHITECTURES.keys()
    seen = {}
    for entry in all_entries().values():
        if entry.architecture and not entry.architecture.startswith("segres"):  # those take MONAI
            seen[entry.architecture, str(entry.options.get("stem"))] = entry
    for entry in seen.values():
        first = next(iter(skeleton(entry.architecture, entry.stored_options).state_dict()))
        assert first.startswith(STEMS[entry.architecture])


@pytest.mark.parametrize("architecture", ["segresencoder", "segresnet_ds", "segresnet"])
def test_the_stems_of_monai_s_networks(architecture: str) -> None:
    pytest.importorskip("monai")
    options = {} if architecture == "segresencoder" else {"num_classes": 2}
    assert next(iter(skeleton(architecture, options).state_dict())).startswith(STEMS[architecture])
