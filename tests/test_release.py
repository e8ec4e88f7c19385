"""From a run to an entry: what is published loads, measures and computes what the run did."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import helpers_publish as helpers
import miniature
import pytest
import torch
from safetensors.torch import load_file
from test_detection_training import narrow

import svd_hub
from svd_hub import checkpoint
from svd_hub.catalog import all_entries
from svd_hub.errors import SvdHubError
from svd_hub.training import engine
from svd_hub.training.evaluation import evaluate_entry
from svd_hub.training.miniature import pictures
from svd_hub.training.miniature.boxes import coco_set, lesion_set
from svd_hub.training.publish import golden

NAME = "miniature_net"
FILES = [
    *("README.md", "SHA256SUMS", "entry.toml", f"{NAME}.golden.safetensors", f"{NAME}.log.jsonl"),
    *(f"{NAME}.safetensors", "recipe.yaml"),
]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run of the miniature recipe, its release in a mirror, and what publishing returned."""
    folder = tmp_path_factory.mktemp("release")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SVD_HUB_HOME", str(folder / "cache"))
        helpers.clean_tree(patch)
        torch.set_num_threads(1)
        pictures.image_set(folder / "set")
        miniature.recipe(folder / "miniature.yaml")
        data = {helpers.FOLDER: str(folder / "set")}
        engine.train(str(folder / "miniature.yaml"), run=folder / "run", overrides=data, progress=False)
        facts = json.loads((folder / "run" / "run.json").read_text())
        (folder / "run" / "run.json").write_text(json.dumps({**facts, "git": helpers.CLEAN}))
        made = helpers.release(folder / "run", NAME, to=folder / "mirror")
        (folder / "printed.toml").write_text(made.text)
        yield folder


@pytest.fixture(autouse=True)
def _published(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    helpers.clean_tree(monkeypatch)
    monkeypatch.setenv("SVD_HUB_CATALOG", str(here / "mirror" / "entry.toml"))
    monkeypatch.setenv("SVD_HUB_MIRROR", str(here / "mirror"))


def last(run: Path) -> dict[str, float]:
    row = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    return {key.removeprefix("val/"): value for key, value in row.items() if key.startswith("val/")}


def test_a_release_is_an_entry_and_measures_what_the_log_says(here: Path) -> None:
    found = evaluate_entry(NAME, data=here / "set", recipe=str(here / "miniature.yaml"), batch=3)
    log = last(here / "run")
    assert found["examples"] == 7
    assert found["card"] == {name: value for name, value in log.items() if name != "loss"}
    for name, value in log.items():
        assert found["metrics"][name] == pytest.approx(value, abs=2e-3), name


def test_the_golden_output_comes_out_of_the_released_file(here: Path) -> None:
    pair = load_file(here / "mirror" / NAME / f"{NAME}.golden.safetensors")
    model = svd_hub.load(NAME)
    with torch.inference_mode():
        output = model(pair["input"].float())
    assert float((output - pair["output"]).abs().max()) < 1e-3
    assert torch.equal(golden.golden_input(model.preprocess), pair["input"].float())
    assert float(pair["output"].std()) > 0  # it says something
    assert model.preprocess.size == (3, 24, 24)


def test_the_released_file_is_half_precision_and_rebuilds_alone(here: Path) -> None:
    file = here / "mirror" / NAME / f"{NAME}.safetensors"
    source = svd_hub.get_entry(NAME).source
    assert (source.kind, source.file, source.size) == ("mirror", file.name, file.stat().st_size)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == source.sha256
    assert {t.dtype for t in load_file(file).values() if t.is_floating_point()} == {torch.float16}
    trained = svd_hub.load(here / "run" / "model.safetensors")
    model = svd_hub.load(file)
    assert model.preprocess == trained.preprocess
    assert model.entry.classes == ("thing 0", "thing 1", "thing 2")
    assert model.entry.licence == "Apache-2.0"
    assert model.entry.trained_on.startswith("pictures (CC0-1.0)")
    x = golden.golden_input(model.preprocess)
    assert float((model(x) - trained(x)).detach().abs().max()) < 2e-2  # what half precision costs


def test_single_precision_keeps_every_bit(here: Path, tmp_path: Path) -> None:
    made = helpers.release(here / "run", "whole", to=tmp_path, dtype="fp32")
    trained, published = (
        load_file(file) for file in (here / "run" / "model.safetensors", tmp_path / "whole" / "whole.safetensors")
    )
    assert published.keys() == trained.keys()
    assert all(torch.equal(published[name], trained[name]) for name in trained)
    assert made.far == 0
    assert not any("precision" in note for note in made.notes)


def test_a_release_names_no_place_and_nobody(here: Path) -> None:
    files = sorted((here / "mirror" / NAME).iterdir())
    assert [f.name for f in files] == FILES
    private = [str(here), str(Path.home()), os.uname().nodename]
    for file in (*files, here / "mirror" / "entry.toml", here / "printed.toml"):
        assert not [word for word in private if word.encode() in file.read_bytes()]


def test_publishing_twice_gives_the_same_bytes(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SVD_HUB_CATALOG")
    made = helpers.release(here / "run", NAME, to=tmp_path)
    assert made.text == (here / "printed.toml").read_text()
    for file in (tmp_path / NAME).iterdir():
        assert file.read_bytes() == (here / "mirror" / NAME / file.name).read_bytes()


# ---- what half precision costs --------------------------------------------------------------------------------------


def changed(run: Path, folder: Path, change: object) -> Path:
    """A copy of a run whose network is another one."""
    copy = folder / "changed"
    copy.mkdir()
    for file in ("recipe.yaml", "run.json", "log.jsonl"):
        (copy / file).write_bytes((run / file).read_bytes())
    read = checkpoint.read(run / "model.safetensors")
    tensors = {name: tensor.clone() for name, tensor in read.tensors.items()}
    change(tensors)  # type: ignore[operator]
    checkpoint.write(copy / "model.safetensors", tensors, read.metadata)
    return copy


def test_half_precision_that_loses_more_than_rounding_is_told(here: Path, tmp_path: Path) -> None:
    def fine(tensors: dict[str, torch.Tensor]) -> None:  # below what half precision can tell from 0
        tensors["conv1.weight"] *= 1e-6
        tensors["bn1.running_mean"] *= 1e-6
        tensors["bn1.running_var"].zero_()
        tensors["bn1.weight"] *= 3e3

    made = helpers.release(changed(here / "run", tmp_path, fine), "fine", to=tmp_path / "mirror")
    assert made.far > golden.ROUNDING
    assert any("half precision loses more than rounding" in note and "--dtype fp32" in note for note in made.notes)
    assert "Half precision loses more than rounding" in made.card


def test_values_that_half_precision_cannot_hold_are_refused(here: Path, tmp_path: Path) -> None:
    def large(tensors: dict[str, torch.Tensor]) -> None:
        tensors["layer1.0.bn1.running_var"][0] = 1e6

    run = changed(here / "run", tmp_path, large)
    with pytest.raises(SvdHubError, match=r"beyond half precision's 65504 \(first: layer1.0.bn1.running_var, 1e\+06\)"):
        helpers.release(run, "large", to=tmp_path / "mirror")
    assert not (tmp_path / "mirror" / "large").exists()
    helpers.release(run, "large", to=tmp_path / "mirror", dtype="fp32")


# ---- detectors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["coco_resnet3d18", "deeplesion_p3d18ba"])
def test_a_detector_is_published_with_its_boxes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    coco_set(tmp_path / "coco")
    lesion_set(tmp_path / "deeplesion")
    run = helpers.untrained(tmp_path / "run", name, narrow(tmp_path, name, **{"run.epochs": 1}))
    made = helpers.release(run, "finder", to=tmp_path / "mirror", metrics=["auc"])
    assert made.entry.task == "detection"
    assert made.entry.outputs.startswith("boxes, scores and labels")
    assert "pipeline_tag: object-detection" in made.card
    monkeypatch.setenv("SVD_HUB_CATALOG", str(tmp_path / "mirror" / "entry.toml"))
    monkeypatch.setenv("SVD_HUB_MIRROR", str(tmp_path / "mirror"))
    pair = load_file(tmp_path / "mirror" / "finder" / "finder.golden.safetensors")
    assert pair["input"].shape == (1, 1, 3 if name.startswith("coco") else 9, 128, 128)
    assert {key: tuple(pair[key].shape[1:]) for key in ("boxes", "scores", "labels")} == {
        "boxes": (4,),
        "scores": (),
        "labels": (),
    }
    assert 0 < len(pair["boxes"]) <= golden.BOXES
    found = svd_hub.load("finder", score_threshold=0.0)(pair["input"].float())[0]
    torch.testing.assert_close(found.boxes[: len(pair["boxes"])], pair["boxes"], rtol=1e-4, atol=1e-3)
    assert golden.check(tmp_path / "mirror" / "finder", "finder") <= golden.SAME
    assert all_entries()["finder"].options == made.entry.options


def test_boxes_that_moved_are_noticed_and_their_order_is_not() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40], [0, 0, 50, 50]])
    pair = {"boxes": boxes, "scores": torch.tensor([0.9, 0.8, 0.7]), "labels": torch.tensor([0, 1, 1])}
    turned = {key: tensor.flip(0) for key, tensor in pair.items()}
    more = {key: torch.cat([tensor, tensor[:1] / 2]).to(tensor.dtype) for key, tensor in pair.items()}
    assert golden.moved(turned, pair) == golden.moved(more, pair) == 0
    assert golden.moved({**pair, "scores": torch.tensor([0.9, 0.8, 0.61])}, pair) == pytest.approx(0.1)
    assert golden.moved({**pair, "labels": torch.tensor([1, 1, 1])}, pair) > 0.5
    assert golden.moved({**pair, "boxes": boxes + torch.tensor([1.0, 0, 1, 0])}, pair) == pytest.approx(1 - 9 / 11)
    assert golden.moved({key: tensor[:2] for key, tensor in pair.items()}, pair) > 0.5
    assert golden.moved({key: tensor[:0] for key, tensor in pair.items()}, pair) == 1
    with pytest.raises(SvdHubError, match="cannot be compared"):
        golden.moved({"output": torch.zeros(1)}, pair)
