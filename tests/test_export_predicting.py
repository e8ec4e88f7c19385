"""An artifact takes images and answers as the network does; what it cannot be asked is said before anything is run."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers_predict import command, detector, nifti, saved, segmenter

import svd_hub
from svd_hub import Predictor, Preprocess
from svd_hub.errors import CheckpointError, IntegrityError, OptionError, SvdHubError
from svd_hub.export import artifact, export, facts, predicting, predictor
from svd_hub.export.predicting import record_of

ARRAY = np.random.default_rng(0).integers(-300, 400, (19, 22, 25)).astype(np.int16)
SPACING = (2.0, 1.0, 1.5)


def classifier() -> Any:
    torch.manual_seed(0)
    model = svd_hub.load("resnet3d18w16_lidc", weights=None, width=4, depth=10, num_classes=3)
    model.preprocess = Preprocess(window=(-1000.0, 400.0), mean=10.0, std=300.0, size=(8, 16, 16))
    return model.eval()


def colours() -> Any:
    torch.manual_seed(0)
    return svd_hub.load("resnet3d18w16_tinyimagenet", weights=None, width=4, depth=10, num_classes=5).eval()


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuned segmenter's file."""
    model = segmenter(rule={"spacing": (2.5, 1.5, 1.5)}, largest=("liver",))
    return saved(model, tmp_path_factory.mktemp("own") / "anna_s_network.safetensors")


@pytest.fixture(scope="module")
def exports(own: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of its artifacts."""
    folder = tmp_path_factory.mktemp("exports")
    for to in ("torchscript", "onnx"):
        export(str(own), to, folder / to, shape=(16, 32, 32), smallest=(16, 16, 16))
    return folder


# ---- the same results ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["torchscript", "onnx"])
def test_a_mask_is_the_networks(to: str, own: Path, exports: Path) -> None:
    ask = {"spacing": SPACING}
    wanted, found = Predictor(own, device="cpu")(ARRAY, **ask), predictor(exports / to)(ARRAY, **ask)
    assert len(np.unique(wanted.labels)) > 1
    np.testing.assert_array_equal(found.labels, wanted.labels)
    assert (found.classes, found.millilitres, found.notes) == (wanted.classes, wanted.millilitres, wanted.notes)


def test_probabilities_boxes_and_pictures_are_the_networks(tmp_path: Path) -> None:
    slices = np.random.default_rng(0).integers(-1000, 400, (12, 64, 64)).astype(np.int16)
    picture = np.random.default_rng(0).integers(0, 256, (70, 90, 3)).astype(np.uint8)
    asked: list[tuple[Any, np.ndarray, dict[str, Any]]] = [
        (classifier(), ARRAY, {"spacing": SPACING}),
        (classifier(), ARRAY, {"spacing": SPACING, "point": (20.0, 12.0, 30.0)}),
        (colours(), picture, {}),
    ]
    for number, (model, image, options) in enumerate(asked):
        made = export(model, "torchscript", tmp_path / str(number))
        wanted, found = (ask(image, **options) for ask in (Predictor(model, device="cpu"), predictor(made.folder)))
        np.testing.assert_allclose(found.probabilities, wanted.probabilities, atol=1e-6)
        assert (found.classes, found.notes) == (wanted.classes, wanted.notes)
    model = detector()
    made = export(model, "torchscript", tmp_path / "boxes", shape=(9, 64, 64), keep_failing=True)  # its boxes are ties
    options = {"spacing": SPACING, "planes": [3, 6], "least_score": 0.3}
    wanted, found = (ask(slices, **options) for ask in (Predictor(model, device="cpu"), predictor(made.folder)))
    assert len(wanted.findings) == len(found.findings) > 0
    for one, other in zip(found.findings, wanted.findings, strict=True):
        assert one.label == other.label
        np.testing.assert_allclose(one.score, other.score, atol=1e-5)
        np.testing.assert_allclose(one.box, other.box, atol=1e-3)


def test_bf16_of_onnx_is_run_by_openvino_as_in_parity(tmp_path: Path) -> None:
    made = export(segmenter(), "onnx", tmp_path / "made", precision="bf16", shape=(16, 32, 32), keep_failing=True)
    found = predictor(made.folder, threads=1)
    assert found.runtime.startswith("OpenVINO")
    assert found.runtime.endswith("bf16")
    assert found(ARRAY, spacing=SPACING).labels.shape == ARRAY.shape


# ---- the command -----------------------------------------------------------------------------------------------------


def test_from_the_command_line_beside_the_network_itself(tmp_path: Path, own: Path, exports: Path) -> None:
    """One folder holds both results; reports say what ran and nothing of files' names; a second run finds its own."""
    file, out, made = nifti(tmp_path / "in" / "bert.nii.gz"), tmp_path / "out", artifact.read(exports / "onnx")
    for entry in (own, made.folder):
        assert command("predict", entry, file, "--out", out, "--no-picture")[0] == 0
    told = json.loads((out / "run.json").read_text())
    assert (told["artifact_sha256"], told["dtype"]) == (made.manifest["artifact_sha256"], "fp32")
    assert (told["status"], told["licence"]) == ("derived", svd_hub.load(own).entry.licence)
    assert told["device"].startswith("ONNX Runtime")
    mine, torchs = sorted((place for place in out.iterdir() if place.is_dir()), key=lambda place: -len(place.name))
    assert re.fullmatch(r"[0-9a-f]{12}-own-unet3d-[0-9a-f]{8}-onnx-fp32", mine.name)
    assert re.fullmatch(r"[0-9a-f]{12}-own-unet3d-[0-9a-f]{8}", torchs.name)
    masks = [sitk.GetArrayFromImage(sitk.ReadImage(str(place / "mask.nii.gz"))) for place in (mine, torchs)]
    np.testing.assert_array_equal(*masks)
    code, printed, _ = command("predict", made.folder, file, "--out", out, "--no-picture")
    assert (code, "there already" in printed) == (0, True)
    for written in (out / "run.json", out / "results.csv", mine / "result.json"):
        assert "anna" not in written.read_text()
        assert "bert" not in written.read_text()


def test_another_export_of_the_same_network_is_another_result(tmp_path: Path) -> None:
    """Its hash is in the key, so that a result is never taken for that of an artifact made with other settings."""
    file, out = nifti(tmp_path / "in" / "a.nii.gz"), tmp_path / "out"
    for name, largest in (("a", (16, 32, 32)), ("b", (16, 48, 48))):
        export(segmenter(), "torchscript", tmp_path / name, shape=(16, 32, 32), largest=largest)
    assert command("predict", tmp_path / "a", file, "--out", out, "--no-picture")[0] == 0
    code, _, errors = command("predict", tmp_path / "b", file, "--out", out, "--no-picture")
    assert (code, "--overwrite" in errors) == (1, True)


def test_what_a_command_cannot_ask(tmp_path: Path, exports: Path) -> None:
    file = nifti(tmp_path / "in" / "a.nii.gz")
    for option, value, said in (
        ("--dtype", "bfloat16", "--dtype bfloat16 is not allowed: .*torchscript is fp32. Next: leave it out"),
        ("--device", "cuda", "--device cuda is not allowed: .*torchscript is torchscript; allowed: auto, cpu"),
    ):
        code, _, errors = command("predict", exports / "torchscript", file, "--out", tmp_path / "out", option, value)
        assert code == 1
        assert re.search(said, errors), errors
    assert not (tmp_path / "out").exists()


# ---- what cannot be predicted with -----------------------------------------------------------------------------------


def test_the_record_of_an_artifact_is_that_of_its_network(own: Path, exports: Path) -> None:
    made = artifact.read(exports / "torchscript")
    assert record_of(made) == facts.record(svd_hub.load(own), weights_sha256=made.manifest["weights_sha256"])[0]


def test_a_network_without_a_task_says_why(tmp_path: Path) -> None:
    made = export("resnet3d18w16_lidc", "torchscript", tmp_path / "a", shape=(16, 32, 32), features_only=True)
    with pytest.raises(OptionError, match=r"a gives pyramid and no result; .* Next: .* without --features"):
        predictor(made.folder)
    bare = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3, padding=1)).eval()
    assert facts.record(bare) == (None, "the network carries no preprocessing. Next: export what load gives")


def test_windows_that_the_artifact_does_not_take(tmp_path: Path, exports: Path) -> None:
    model = segmenter(window=(16, 32, 32))
    small = export(model, "torchscript", tmp_path / "a", shape=(16, 16, 16), largest=(16, 24, 24))
    with pytest.raises(OptionError, match=r"pieces of 32 along height, .* would take \d+ to 24\. Next"):
        predictor(small.folder)
    one = export(model, "torchscript", tmp_path / "b", shape=(16, 32, 32), dynamic=("depth", "height", "width"))
    assert predictor(one.folder).at_once == 1
    assert predictor(one.folder)(ARRAY, spacing=SPACING).labels.shape == ARRAY.shape
    assert predictor(exports / "torchscript").at_once is None
    assert predictor(exports / "torchscript", at_once=2).at_once == 2


def test_damage_and_machines_that_cannot_run_it(tmp_path: Path, exports: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = artifact.read(shutil.copytree(exports / "onnx", tmp_path / "made"))
    with pytest.raises(CheckpointError, match=r"holds no manifest\.json"):
        predictor(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(predicting, "open_runner", lambda *_, **__: (None, "built and checked, not run: TensorRT"))
        with pytest.raises(SvdHubError, match=r"made is not run on this machine: built and checked, not run: TensorRT"):
            predictor(made.folder)
    rules = made.folder / artifact.PREPROCESS
    rules.write_text(rules.read_text().replace('"liver"', '"spleen"'))
    with pytest.raises(IntegrityError, match=r"preprocess\.json: expected sha256"):
        predictor(made.folder)
