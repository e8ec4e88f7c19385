"""Laws of svd_hub.diagnosis: the known complaints are named, and only they."""

from __future__ import annotations

from typing import Any

import helpers_genesis
import pytest
import torch
from torch import Tensor

from svd_hub import diagnosis
from svd_hub.models.resnet3d import ResNet3D

torch.set_num_threads(1)


def state(**options: Any) -> dict[str, Tensor]:
    with torch.device("meta"):
        return dict(ResNet3D(**options).state_dict())


def shapes(**options: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state(**options).items()}


def renamed(pattern: str, **options: Any) -> dict[str, Tensor]:
    return {pattern.format(name): tensor for name, tensor in state(**options).items()}


def flat_2d() -> dict[str, Tensor]:
    return {name: t[:, :, 0] if t.ndim == 5 else t for name, t in state(in_channels=3).items()}


def r2plus1d() -> dict[str, Tensor]:
    new = {}
    for name, tensor in state(in_channels=3).items():
        for part in ("s", "t") if ".conv" in name else ("",):
            new[name.replace(".weight", f"_{part}.weight") if part else name] = tensor
    return new


def unet(*, inputs: int = 1, classes: int = 1) -> dict[str, Tensor]:
    shapes = helpers_genesis.documented_shapes(inputs=inputs, classes=classes)
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def encoder() -> dict[str, Tensor]:
    return {name: tensor for name, tensor in unet().items() if name.startswith("down_tr")}


WRONG: dict[str, tuple[dict[str, Tensor], dict[str, Any]]] = {
    "3-channel stem, not 1": (state(in_channels=3), {}),
    "3x7x7 stem, not 7x7x7": (state(stem_depth=3), {}),
    "shortcut A (no downsample tensors; 18 expected)": (state(shortcut="A"), {}),
    "shortcut B (18 downsample tensors; none expected)": (state(), {"shortcut": "A"}),
    "depth 34, not 18": (state(depth=34), {}),
    "depth 50, not 34": (state(depth=50), {"depth": 34}),
    "depth 18, not 50": (state(), {"depth": 50}),
    "r2plus1d": (r2plus1d(), {"in_channels": 3}),
    "the whole detector (backbone., neck., rpn_head.)": (
        renamed("backbone.{}") | {"neck.a": torch.ones(1), "rpn_head.b": torch.ones(1)},
        {},
    ),
    "keys start with 'backbone.'": (renamed("backbone.{}"), {}),
    "keys start with 'encoder.'": (renamed("encoder.{}"), {}),
    "a 2D network (4-D kernels)": (flat_2d(), {}),
    "half the width: width 32, not 64": (state(width=32), {}),
    "double width: width 128, not 64": (state(width=128), {}),
    "double width (FMCIB's): width 128, not 64": (state(depth=50, width=128), {"depth": 50}),
    "shortcut B with a bias in its convolution": (state(downsample_bias=True), {}),
    "shortcut B without a bias in its convolution": (state(), {"downsample_bias": True}),
    "a 3D network (5-D kernels), not the 2D one": (state(in_channels=3), {"in_channels": 3, "convolution": "acs"}),
    "a network with a segmentation head (conv_seg.) that is not expected": (
        state() | {"conv_seg.0.weight": torch.ones(512, 32, 2, 2, 2)},
        {},
    ),
    "a U-Net as Models Genesis has it, another network": (unet(), {}),
    "a DenseNet, another network": ({"denseblock1.denselayer1.norm1.weight": torch.ones(64)}, {}),
    "a SegResNet of MONAI, another network": ({"convInit.conv.weight": torch.ones(16, 1, 3, 3, 3)}, {}),
    "another stem: stem.0.conv.weight instead of conv1.weight": (state(stem="v1c"), {}),
    "GroupNorm (no running statistics), not BatchNorm": (state(norm="group"), {}),
    "BatchNorm, not GroupNorm": (state(), {"norm": "group"}),
    "400 classes, not 1000": (state(num_classes=400), {"num_classes": 1000}),
    "a shortcut convolution in layer1": (
        state() | {"layer1.0.downsample.0.weight": torch.ones(64, 64, 1, 1, 1)},
        {},
    ),
    "P3D under its upstream names": ({"conv1_custom.weight": torch.ones(64, 1, 1, 7, 7)}, {}),
}


@pytest.mark.parametrize("words", WRONG)
def test_the_known_complaints_are_named(words: str) -> None:
    tensors, options = WRONG[words]
    expected = shapes(**options)
    said = diagnosis.diagnose(tensors, expected)
    assert words in said
    # A diagnosis is made for this complaint, not for every file.
    others = [w for w in WRONG if w != words and w in said]
    assert all(w.split()[0] in ("3-channel", "keys") for w in others), others


SEGMENTERS: dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]] = {
    "an encoder only (48 tensors of the decoder are not there: up_tr128, up_tr256, up_tr64): num_classes=0": (
        encoder(),
        unet(),
    ),
    "a whole segmentation network (48 tensors of a decoder: up_tr128, up_tr256, up_tr64), not an encoder only": (
        unet(),
        encoder(),
    ),
    "a network with a segmentation head (out_tr.) that is not expected": (unet(), encoder()),
    "a segmentation head of 14 classes, not 1": (unet(classes=14), unet()),
    "3-channel stem, not 1": (unet(inputs=3), unet()),
    "a residual network, another network": (state(), unet()),
}


@pytest.mark.parametrize("words", SEGMENTERS)
def test_the_complaints_of_segmenters_are_named(words: str) -> None:
    tensors, wanted = SEGMENTERS[words]
    said = diagnosis.diagnose(tensors, {name: tuple(tensor.shape) for name, tensor in wanted.items()})
    assert words in said
    assert not [w for w in WRONG if w in said and w not in words]


@pytest.mark.parametrize("whole", [state(), unet(), encoder()], ids=["resnet", "unet", "encoder"])
def test_what_fits_gets_no_diagnosis(whole: dict[str, Tensor]) -> None:
    said = diagnosis.diagnose(whole, {name: tuple(tensor.shape) for name, tensor in whole.items()})
    assert said == f"found {len(whole)} tensors, expected {len(whole)}: {len(whole)} match"


def test_a_detector_under_a_prefix_is_also_diagnosed_inside() -> None:
    said = diagnosis.diagnose(renamed("backbone.{}", depth=34), shapes())
    assert "keys start with 'backbone.'" in said
    assert "depth 34, not 18" in said


def test_the_counts_add_up() -> None:
    expected = shapes()
    assert diagnosis.diagnose(state(), expected) == "found 120 tensors, expected 120: 120 match"
    tensors = state()
    del tensors["layer4.1.conv2.weight"], tensors["layer4.1.bn2.weight"]
    tensors["conv1.weight"] = torch.ones(64, 3, 7, 7, 7)
    tensors["other"] = torch.ones(1)
    said = diagnosis.diagnose(tensors, expected)
    assert said.startswith("found 119 tensors, expected 120: 117 match, 2 missing (layer4.1.conv2.weight, ")
    assert "1 unexpected (other)" in said
    assert "1 of another shape (conv1.weight (64, 3, 7, 7, 7), not (64, 1, 7, 7, 7))" in said
    assert diagnosis.diagnose({}, expected).startswith("found 0 tensors")
