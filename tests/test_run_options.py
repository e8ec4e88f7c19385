"""Laws of what a run can be asked for besides: a mean of the weights, frozen parts, a compiled network, a layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import miniature
import pytest
import pytorch_lightning as pl
import torch
from helpers_training import FOLDER, At, kill, killed, log, resume, run, same
from safetensors.torch import load_file
from test_segmentation_training import RECIPE as SEGMENTATION
from torch import Tensor, nn
from typer.testing import CliRunner

import svd_hub
from svd_hub.errors import OptionError, SvdHubError
from svd_hub.training import compiling, engine, freezing
from svd_hub.training.miniature import pictures
from svd_hub.training.miniature.organs import organ_set
from svd_hub.training.tasks import Classification
from svd_hub.training.tasks.base import Network
from svd_hub.training.tasks.optimiser import Optimiser

EMA = {"run.ema": 0.8}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("options")
    pictures.image_set(folder / "set")
    noisy = {"svd_hub.training.tasks.Classification": "helpers_training.Noisy"}
    miniature.recipe(folder / "plain.yaml")
    miniature.recipe(folder / "noisy.yaml", **noisy)
    return folder


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    monkeypatch.setenv("SVD_HUB_HOME", str(here / "cache"))


# ---- the mean of the weights ---------------------------------------------------------------------------------------


class Steps(pl.Callback):
    """Keeps the weights behind each step."""

    def __init__(self) -> None:
        self.kept: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Any, task: Any, *args: Any) -> None:
        self.kept.append({name: value.clone() for name, value in task.network.state_dict().items()})


@pytest.fixture(scope="module")
def averaged(here: Path) -> tuple[Path, list[dict[str, Tensor]]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SVD_HUB_HOME", str(here / "cache"))
        torch.set_num_threads(1)
        steps = Steps()
        run(here, "noisy", here / "averaged", overrides=EMA, callbacks=[steps])
    return here / "averaged", steps.kept


def test_what_is_published_is_the_running_mean_of_weights_and_statistics(averaged: Any) -> None:
    folder, steps = averaged
    mean = {name: value.double() for name, value in steps[0].items()}  # the mean begins with the first step
    for step in steps[1:]:
        mean = {name: 0.8 * mean[name] + 0.2 * value.double() for name, value in step.items()}
    found = load_file(folder / "model.safetensors")
    assert found.keys() == mean.keys()
    for name, value in found.items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), mean[name], rtol=1e-5, atol=1e-6)
    assert (found["layer1.0.conv1.weight"] - steps[-1]["layer1.0.conv1.weight"]).abs().max() > 1e-4
    svd_hub.load(folder / "model.safetensors")


def test_it_is_also_what_is_evaluated(averaged: Any, here: Path) -> None:
    folder, _ = averaged
    model = svd_hub.load(folder / "model.safetensors")
    data = engine.recipes.read(str(folder / "recipe.yaml")).make_data()
    data.setup("fit")
    data.place = (1, 0)
    images, labels = (torch.cat(parts) for parts in zip(*((x, y) for x, y in _batches(data)), strict=True))
    with torch.inference_mode():
        logits = model(((images.float() - model.preprocess.mean) / model.preprocess.std)[:, None])
    assert log(folder)[-1]["val/loss"] == pytest.approx(float(nn.functional.cross_entropy(logits, labels)), abs=1e-5)


def _batches(data: Any) -> Any:
    loader = data.val_dataloader()
    loader.sampler.set_epoch(1)
    return loader


@pytest.mark.parametrize(("hook", "call"), [("on_train_batch_start", 4), ("on_validation_batch_start", 4)])
def test_the_mean_goes_on_to_the_bit(averaged: Any, here: Path, tmp_path: Path, hook: str, call: int) -> None:
    """Killed in the middle of an epoch; and in validation, where the mean stands in the network's place."""
    recipe = here / "ema.yaml"
    recipe.write_text((here / "noisy.yaml").read_text().replace("seed: 3,", "seed: 3, ema: 0.8,"))
    killed(here, "ema", tmp_path / "run", At(hook, call, kill))
    resume(tmp_path / "run")
    assert same(tmp_path / "run", averaged[0])
    assert log(tmp_path / "run") == log(averaged[0])


# ---- frozen parts --------------------------------------------------------------------------------------------------


def test_frozen_parts_of_a_classifier_stay_as_they_were_and_the_rest_moves(here: Path, tmp_path: Path) -> None:
    source = run(here, "plain", here / "source")
    changes = {"task.init_args.network.init": str(source), "task.init_args.freeze": '["stem", "layer1"]'}
    after, before = load_file(run(here, "plain", tmp_path / "run", overrides=changes)), load_file(source)
    for name, value in before.items():
        frozen = name.startswith(("conv1", "bn1", "layer1"))
        if frozen or value.is_floating_point():
            assert torch.equal(after[name], value) == frozen, name


def test_frozen_parts_of_a_segmenter(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SEGMENTATION)
    changes: dict[str, Any] = {FOLDER: str(organ_set(tmp_path / "organs")), "run.epochs": 1}
    changes["task.init_args.freeze"] = '["stem", "layer2"]'
    fresh = engine.recipes.read(str(tmp_path / "s.yaml"), changes).make()[0].network.state_dict()
    file = engine.train(str(tmp_path / "s.yaml"), run=tmp_path / "run", overrides=changes, progress=False)
    for name, value in load_file(file).items():
        frozen = name.startswith(tuple(f"backbone.{part}." for part in ("conv1", "bn1", "layer2")))
        if frozen or name.endswith("conv1.weight"):
            assert torch.equal(value, fresh[name]) == frozen, name


def test_parts_are_named_by_the_network_they_are_of() -> None:
    resnet = svd_hub.models.build("resnet3d", {"depth": 10, "width": 2, "num_classes": 2})
    assert list(freezing.parts(resnet)) == ["stem", "layer1", "layer2", "layer3", "layer4"]
    found = freezing.parts(nn.Sequential(nn.Conv3d(1, 1, 1), nn.ReLU(), nn.BatchNorm3d(1)))
    assert list(found) == ["0", "2"]  # no stages: its own children that have parameters
    with pytest.raises(OptionError, match=r"'layer9'.*allowed: stem, layer1"):
        Classification(network=Network(options={"depth": 10, "width": 2}), optimiser=Optimiser(), freeze=("layer9",))


def test_what_is_held_is_held_also_where_norms_become_others() -> None:
    """Synchronised norms are new modules; those that were held are gone."""
    network = Network(options={"depth": 10, "width": 2, "num_classes": 2})
    task = Classification(network=network, optimiser=Optimiser(), freeze=("stem",))
    task.network = nn.SyncBatchNorm.convert_sync_batchnorm(task.network)
    task.train()
    assert isinstance(task.network.bn1, nn.SyncBatchNorm)
    assert not task.network.bn1.training
    assert task.network.get_submodule("layer1.0.bn1").training


def test_a_checkpoint_from_before_several_processes_goes_on() -> None:
    """Its sums of the epoch are those of one process, not a list for each."""
    task = Classification(network=Network(options={"depth": 10, "width": 2}), optimiser=Optimiser())
    task.on_load_checkpoint({"sums": [3.0, 2.0, 4.0]})
    assert task.sums.tolist() == [3.0, 2.0, 4.0]
    task.on_load_checkpoint({"sums": [[5.0, 1.0, 4.0], [9.0, 9.0, 9.0]]})
    assert task.sums.tolist() == [5.0, 1.0, 4.0]


# ---- layout and compilation ----------------------------------------------------------------------------------------


def test_a_layout_changes_no_number_that_matters(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SEGMENTATION)
    changes: dict[str, Any] = {FOLDER: str(organ_set(tmp_path / "organs")), "run.epochs": 1}
    rows = []
    for memory in ("contiguous", "channels_last"):
        asked = {**changes, "task.init_args.network.memory": memory}
        task = engine.recipes.read(str(tmp_path / "s.yaml"), asked).make()[0]
        kernel = task.network.get_submodule("backbone.layer2.0.conv1").weight
        assert kernel.is_contiguous(memory_format=torch.channels_last_3d) == (memory == "channels_last")
        engine.train(str(tmp_path / "s.yaml"), run=tmp_path / memory, overrides=asked, progress=False)
        rows += log(tmp_path / memory)
    assert rows[0]["train/loss"] == pytest.approx(rows[1]["train/loss"], rel=2e-3)
    assert rows[0]["val/dice"] == pytest.approx(rows[1]["val/dice"], abs=0.02)  # voxels on the edge between classes


def test_compilation_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SvdHubError, match=r"run\.compile=true needs a C\+\+ compiler.*Next"):
        compiling.compile_network(nn.Linear(1, 1))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of torch's own compiler
def test_a_compiled_network_trains_what_it_trains_uncompiled(here: Path, tmp_path: Path) -> None:
    """Within float error, with the same names. Two minutes on one core, nearly all of it compilation."""
    once = {"run.epochs": 1}
    run(here, "plain", tmp_path / "plain", overrides=once)
    run(here, "plain", tmp_path / "compiled", overrides={**once, "run.compile": "true"})
    plain, compiled = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "compiled"))
    assert plain.keys() == compiled.keys()
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-3, atol=1e-4)
    assert log(tmp_path / "compiled")[0] == pytest.approx(log(tmp_path / "plain")[0], abs=1e-3)


# ---- the command ---------------------------------------------------------------------------------------------------


def asked(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    """What the command asks of the engine, or its exit code."""
    from svd_hub.cli import app
    from svd_hub.training.commands import register

    if not any(c.callback and c.callback.__name__ == "train" for c in app.registered_commands):
        register(app)
    found: dict[str, Any] = {}

    def train(name: str, **options: Any) -> str:
        found.update(options["overrides"])
        return "done"

    monkeypatch.setattr(engine, "train", train)
    done = CliRunner().invoke(app, ["train", "resnet3d18w16_lidc", *arguments])
    return found if done.exit_code == 0 else (done.exit_code, done.output)


def test_options_of_the_command_stand_for_keys_of_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    line = "--freeze stem,layer1 --seed 5 --epochs 7 --devices 2 --compile --set run.clip=1"
    found = asked(monkeypatch, *line.split())
    assert json.loads(found.pop("task.init_args.freeze")) == ["stem", "layer1"]
    assert found == {"run.seed": 5, "run.epochs": 7, "run.devices": 2, "run.compile": "true", "run.clip": "1"}
    settings = engine.recipes.read("resnet3d18w16_lidc", {**found, "task.init_args.freeze": '["stem"]'}).settings
    assert (settings.seed, settings.epochs, settings.devices, settings.compile) == (5, 7, 2, True)
    assert asked(monkeypatch) == {}
    assert asked(monkeypatch, "--seed", "0") == {"run.seed": 0}


def test_a_key_is_given_once(monkeypatch: pytest.MonkeyPatch) -> None:
    code, output = asked(monkeypatch, "--seed", "1", "--set", "run.seed=2")
    assert code == 2
    assert "run.seed" in output
