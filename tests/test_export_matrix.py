"""The matrix: every kind of network in every format and precision of the table, made, and held against eager.

Narrow networks of each kind of output here, of every architecture and of full width in the slow suite. TensorRT and
Triton have suites of their own.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from helpers_by_heart import learn
from helpers_export import KINDS, exportable, follow_model_once, follow_once, shape_of, told_apart
from helpers_networks import network, sides
from real_data import need

import svd_hub
from svd_hub.errors import IntegrityError, OptionError
from svd_hub.export import artifact, export, verify
from svd_hub.export.formats import FORMATS, check_cell
from svd_hub.export.inputs import probe
from svd_hub.export.network import described
from svd_hub.export.profile import make_profile
from svd_hub.export.quantise import QUANTISED, heads, shortcuts
from svd_hub.export.run_openvino import Runner as OpenVINO

HERE = ("torchscript", "torch_export", "onnx", "openvino")
# Kinds of every output, and the cells of each that fit into the time of `make test`; all others are in the slow suite.
FP32 = ("torchscript fp32", "onnx fp32", "openvino fp32")
SIXTEEN, EIGHT = ("torchscript bf16", "onnx fp16", "openvino bf16"), ("onnx int8", "openvino int8")
QUICK = {
    "resnet3d": (*FP32, *SIXTEEN, *EIGHT, "torch_export fp32"),
    "pyramid": (*FP32, *SIXTEEN, *EIGHT),
    "unet3d": (*FP32, "onnx fp16", *EIGHT),
    "genesis": (*FP32, *SIXTEEN),
    "detector_small": (*FP32, "onnx fp16"),
}
# Detectors learn images first (see `helpers_by_heart`): kind -> the typical (D, H, W) of them.
BY_HEART = {"detector": (9, 96, 96), "detector_small": (4, 64, 64), "detector_group": (5, 64, 64)}
# A name of eight letters or more: of 130 MB of weights, some bytes are ".py".
PLACES = re.compile(rb"/(tmp|home|root|usr|var|opt|work|mnt)/|site-packages|pytest-of|[\w/]{8,}\.py\b")
# Full width: entry -> options of load, typical (D, H, W). Random weights where the real ones are not in the package.
FULL: dict[str, tuple[dict[str, Any], tuple[int, int, int]]] = {
    "resnet3d18_imagenet": ({"num_classes": 32}, (5, 64, 64)),
    "resnet3d50_imagenet": ({"features_only": True}, (5, 64, 64)),
    "resnet3d18_imagenet_acs": ({"num_classes": 32, "convolution": "acs"}, (16, 64, 64)),
    "densenet3d121_imagenet_i3d": ({"num_classes": 32}, (32, 64, 64)),
    "resnet3d18_med3d23": ({}, (16, 64, 64)),
    "segresnet_suprem": ({}, (32, 32, 32)),
    "unet3d_genesis": ({}, (32, 32, 32)),
    "mp3d63_coco_detector": ({"num_classes": 2}, (4, 64, 64)),  # a quarter of an hour to learn
    "resnet3d18w16_tinyimagenet": ({}, (5, 64, 64)),
    "unet3d18w16_ctorgans": ({}, (32, 96, 96)),
}
# What is compared (and int8 calibrated) on, where noise has no labels worth the name: a file beside the checkout.
REAL = {"unet3d18w16_ctorgans": ("ct_organ_seg/ts_abdomen_3mm", "ct.nii.gz")}


def cells(model: Any) -> list[tuple[str, str]]:
    """The cells of the table that can hold a network."""
    found = []
    for to in HERE:
        for precision in FORMATS[to].precisions:
            with contextlib.suppress(OptionError):
                check_cell(to, precision, described(model)[0])
                found.append((to, precision))
    return found


def made(
    model: Any, to: str, precision: str, folder: Path, shape: tuple[int, ...], images: Any = None
) -> artifact.Artifact:
    options: dict[str, Any] = {"images": images}
    name = getattr(getattr(model, "entry", None), "name", None)
    if name in REAL:
        place, file = REAL[name]
        data = folder.with_name(f"{folder.name}_data")
        data.mkdir()
        (data / file).symlink_to(need(place) / file)
        options = {"images": data}
    elif precision == "int8":  # what lies outside of what it was calibrated with is no fair question
        rule = getattr(model, "preprocess", None)
        channels = int(model.options.get("in_channels", 1))
        volumes = [probe((1, channels, *shape), rule, seed=seed)[0] for seed in range(4)]
        options = {"images": volumes, "largest": shape}
    return export(model, to, folder, precision=precision, shape=shape, **options)


def learnt(model: Any, shape: tuple[int, ...], **options: Any) -> list[np.ndarray]:
    """Let a detector learn images of every shape of parity."""
    return learn(model, list(dict.fromkeys(case[2:] for case in make_profile(model, shape=shape).cases)), **options)


def check(model: Any, to: str, precision: str, folder: Path, shape: tuple[int, ...], images: Any = None) -> None:
    """One cell, as a user would have it: made, within its tolerance at four shapes or more, and sound."""
    found = made(model, to, precision, folder, shape, images)
    told = found.manifest["parity"]
    assert told["passed"]
    assert told["runner"], told["note"]
    assert len(told["cases"]) >= 4
    assert {case["shape"][0] for case in told["cases"]} == {1, 3}
    assert all(case["finite"] for case in told["cases"])
    assert (found.format.name, found.precision) == (to, precision)
    for path in folder.iterdir():
        assert not PLACES.search(path.read_bytes()), path.name
    if to == "onnx":
        check_graph(found, precision)


def check_graph(found: artifact.Artifact, precision: str) -> None:
    """The file of a cell is plain ONNX, valid, and really in its precision."""
    model = onnx.load(found.model)
    onnx.checker.check_model(model, full_check=True)
    assert {imported.domain for imported in model.opset_import} == {""}
    assert not model.graph.value_info
    types = [tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) == 5]
    low = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}
    if precision == "int8":
        makers = {name: node.op_type for node in model.graph.node for name in node.output}
        left = {*heads(model), *(shortcuts(model) if "note" in found.manifest["built"] else ())}
        assert len(left) <= 3 + 4
        for node in model.graph.node:
            if node.op_type in QUANTISED and node.name not in left:
                assert [makers[name] for name in node.input[:2]] == ["DequantizeLinear"] * 2, node.name
        zeros = [t for t in model.graph.initializer if t.name.endswith("_zero")]
        assert {t.data_type for t in zeros} == {onnx.TensorProto.INT8}
        assert not any(onnx.numpy_helper.to_array(t).any() for t in zeros)
    else:
        assert set(types) == {low.get(precision, onnx.TensorProto.FLOAT)}


@pytest.mark.parametrize("kind", QUICK)
def test_narrow(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images, shape = subject(kind, monkeypatch, steps=120)
    shape = sides(kind) if kind not in ("genesis", *BY_HEART) else shape
    for to, precision in cells(model):
        if f"{to} {precision}" in QUICK[kind]:
            check(model, to, precision, tmp_path / f"{to}_{precision}", shape, images)


def subject(kind: str, patch: pytest.MonkeyPatch, *, steps: int) -> tuple[Any, Any, tuple[int, ...]]:
    """A network of a kind, followed once, the images it knows if it is a detector, and a typical (D, H, W)."""
    if kind not in BY_HEART:
        follow_once(patch, kind)
        return exportable(kind), None, shape_of(kind)
    model, shape = network(kind, channels=32, head_channels=64), BY_HEART[kind]
    images = learnt(model, shape, steps=steps)
    follow_model_once(patch, model, shape)
    return model, images, shape


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", KINDS)
def test_every_cell(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images, shape = subject(kind, monkeypatch, steps=320)
    for to, precision in cells(model):
        check(model, to, precision, tmp_path / f"{to}_{precision}", shape, images)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", FULL)
def test_every_cell_at_full_width(name: str, tmp_path: Path) -> None:
    options, shape = FULL[name]
    torch.manual_seed(0)
    bundled = svd_hub.get_entry(name).source.kind == "bundled"
    model = svd_hub.load(name, **options, **({} if bundled else {"weights": None})).eval()
    images = learnt(model, shape, steps=320) if described(model)[0] == "detections" else None
    model = told_apart(model, shape) if described(model)[0] == "map" and not bundled else model
    for to, precision in cells(model):
        check(model, to, precision, tmp_path / f"{to}_{precision}", shape, images)


def test_the_quick_ones_are_of_every_kind_of_output() -> None:
    every = {kind for row in FORMATS.values() for kind in row.kinds}
    assert {described(exportable(kind))[0] for kind in QUICK} == every - {"features"}  # `pooled`, below
    assert set(HERE) | {"tensorrt", "triton"} == set(FORMATS)


@pytest.mark.parametrize(("to", "precision"), [("torchscript", "bf16"), ("torch_export", "fp32"), ("onnx", "fp16")])
def test_the_same_bytes_on_a_second_run(to: str, precision: str, tmp_path: Path) -> None:
    """Followed anew, in another folder, and rewritten anew in lower precision. (OpenVINO numbers its nodes.)"""
    model = exportable("pooled")
    one, two = (made(model, to, precision, tmp_path / at, sides("pooled")).manifest["files"] for at in ("a", "b"))
    assert {name: told["sha256"] for name, told in one.items()} == {name: told["sha256"] for name, told in two.items()}


@pytest.mark.parametrize("to", HERE)
def test_verified_again_and_damage_is_found(to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    follow_once(monkeypatch, "pooled")
    model = exportable("pooled")
    found = made(model, to, "fp32", tmp_path / "a", sides("pooled"))
    checked = verify(found.folder, model=model)
    assert checked.passed
    assert checked.golden is not None
    assert checked.parity is not None
    weights = max(found.folder.iterdir(), key=lambda path: path.stat().st_size)
    weights.write_bytes(_flipped(weights.read_bytes()))
    with pytest.raises(IntegrityError, match=f"{weights.name}: expected sha256"):
        verify(found.folder, model=model)


def _flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def test_a_wrong_answer_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sealed anew with other numbers, every hash holds; parity and the golden pair do not."""
    follow_once(monkeypatch, "pooled")
    model = exportable("pooled")
    found = made(model, "onnx", "fp32", tmp_path / "a", sides("pooled"))
    graph = onnx.load(found.model)
    kernel = next(tensor for tensor in graph.graph.initializer if len(tensor.dims) == 5)
    kernel.CopyFrom(onnx.numpy_helper.from_array(1.01 * onnx.numpy_helper.to_array(kernel), kernel.name))
    onnx.save(graph, found.model)
    _sealed(found)
    checked = verify(found.folder, model=model)
    assert not checked.passed
    assert checked.golden is not None
    assert not checked.golden.passed
    assert checked.parity is not None
    assert not checked.parity.passed


def _sealed(found: artifact.Artifact, **changes: Any) -> artifact.Artifact:
    """The artifact with its manifest written anew, so that every hash holds."""
    told = {name: value for name, value in found.manifest.items() if name not in ("files", "artifact_sha256", "schema")}
    return artifact.seal(found.folder, {**told, **changes})


def test_openvino_is_not_given_what_it_would_round_wrongly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    follow_once(monkeypatch, "pooled")
    found = made(exportable("pooled"), "onnx", "int8", tmp_path / "a", sides("pooled"))
    assert OpenVINO(found.folder).provider.endswith("CPU f32")
    built = found.manifest["built"]
    assert built["wrong_in_openvino"] == []
    _sealed(found, built={**built, "wrong_in_openvino": ["a", "b"]})
    with pytest.raises(OptionError, match=r"has 2 layers that OpenVINO .* Next: svd-hub export --to openvino"):
        OpenVINO(found.folder)
