"""Laws of several processes: they train what one trains, are measured as one is, and stop and go on as one does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import miniature
import numpy as np
import pytest
import torch
from helpers_ranks import together
from helpers_training import FOLDER, At, kill, log, run, same
from safetensors.torch import load_file
from test_detection_training import narrow
from test_segmentation_training import RECIPE as SEGMENTATION

import svd_hub
from svd_hub.errors import OptionError, SvdHubError
from svd_hub.training import engine, ranks
from svd_hub.training.miniature import pictures
from svd_hub.training.miniature.boxes import coco_set
from svd_hub.training.miniature.nodules import write_nodules
from svd_hub.training.miniature.organs import organ_set
from svd_hub.training.recipe import RunSettings
from svd_hub.training.scores import read_scores

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = "task.init_args.network.options"
TWO = {"run.devices": 2, "data.init_args.batch_size": 2}  # the recipe's batch is 4


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature set with a network of group norms, whose statistics are of an image, and one of batch norms."""
    folder = tmp_path_factory.mktemp("ranks")
    pictures.image_set(folder / "set")
    momentum = {"warmup: 0.2": "warmup: 0.2, momentum: 0.9"}
    miniature.recipe(folder / "batch.yaml", **momentum)
    group = {"stem_pool: false": "stem_pool: false, norm: group", "seed: 3": "seed: 3, clip: 0.5"}
    miniature.recipe(folder / "group.yaml", **momentum, **group)
    return folder


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    monkeypatch.setenv("SVD_HUB_HOME", str(here / "cache"))


def both(here: Path, name: str, folder: Path, *, callbacks: Any = (), **changes: Any) -> list[int]:
    """The run by two processes."""
    return together(lambda rank: run(here, name, folder, overrides={**TWO, **changes}, callbacks=callbacks))


def again(folder: Path) -> list[int]:
    return together(lambda rank: engine.train("", run=folder, resume=True, progress=False))


@pytest.fixture(scope="module")
def one(here: Path) -> Path:
    """What one process makes of the recipe with group norms."""
    torch.set_num_threads(1)
    os.environ["SVD_HUB_HOME"] = str(here / "cache")
    run(here, "group", here / "one")
    return here / "one"


@pytest.fixture(scope="module")
def two(here: Path, one: Path) -> Path:
    """What two make of it."""
    assert both(here, "group", here / "two") == [0, 0]
    return here / "two"


def difference(a: Path, b: Path) -> float:
    first, second = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    assert first.keys() == second.keys()
    return max(float((first[k].double() - second[k].double()).abs().max()) for k in first)


# ---- one and two ---------------------------------------------------------------------------------------------------


def test_two_processes_train_what_one_trains_with_the_same_global_batch(here: Path, one: Path, two: Path) -> None:
    """Within float error after 10 steps with momentum and a clipped gradient; the order of a sum is another."""
    assert difference(one, two) < 1e-4
    for first, second in zip(log(one), log(two), strict=True):
        assert first == pytest.approx(second, abs=1e-4)
    assert sorted(file.name for file in two.iterdir()) == sorted(file.name for file in one.iterdir())
    run(here, "group", here / "other", overrides={"run.seed": 4})
    assert difference(one, here / "other") > 1e-2  # so that the law says something
    svd_hub.load(two / "model.safetensors")


def test_batch_norms_have_each_process_s_own_statistics(here: Path, tmp_path: Path) -> None:
    """So the law does not hold for them; torch has no synchronised ones on a CPU."""
    run(here, "batch", tmp_path / "one")
    assert both(here, "batch", tmp_path / "two") == [0, 0]
    assert difference(tmp_path / "one", tmp_path / "two") > 1e-3
    assert both(here, "batch", tmp_path / "again") == [0, 0]
    assert same(tmp_path / "again", tmp_path / "two")


@pytest.mark.parametrize("changes", [{"run.accumulate": 2}, {"run.ema": 0.8}])
def test_accumulated_gradients_and_means_of_weights_of_two_are_those_of_one(
    here: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    changes = {**changes, "run.epochs": 1}
    run(here, "group", tmp_path / "one", overrides=changes)
    assert both(here, "group", tmp_path / "two", **changes) == [0, 0]
    assert difference(tmp_path / "one", tmp_path / "two") < 1e-5  # after fewer steps, less


# ---- evaluation ----------------------------------------------------------------------------------------------------


def measured(row: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name.startswith("val/")}


def classes(here: Path, folder: Path) -> tuple[str, dict[str, Any]]:
    return str(here / "group.yaml"), {FOLDER: str(here / "set")}


def masks(here: Path, folder: Path) -> tuple[str, dict[str, Any]]:
    (folder / "masks.yaml").write_text(SEGMENTATION.replace("width: 2}", "width: 2, norm: group}"))
    changes = {f"{OPTIONS}.norm": "group", "data.init_args.batch_size": 2}
    return str(folder / "masks.yaml"), {FOLDER: str(organ_set(folder / "organs")), **changes}


def boxes(here: Path, folder: Path) -> tuple[str, dict[str, Any]]:
    one = {"data.init_args.batch_size": 1}  # images side by side are padded to one size, which their edges see
    return "coco_resnet3d18", {**narrow(here, "coco_resnet3d18"), FOLDER: str(coco_set(folder / "coco")), **one}


def nodules(here: Path, folder: Path) -> tuple[str, dict[str, Any]]:
    random = np.random.default_rng(0)
    rows = [
        {"name": f"n{k}", "patient_id": f"p{k}", "Malignancy_value": 5, "fold": 3 * (k > 5), "label": k % 2}
        for k in range(13)
    ]
    volumes = {row["name"]: random.integers(-900, 300, (12, 12, 12)).astype(np.int16) for row in rows}
    changes = {"width": 2, "depth": 10, "norm": "group"}
    return "resnet3d18w16_lidc", {
        FOLDER: str(write_nodules(folder / "nodules", rows, volumes)),
        "task.init_args.network.init": "none",
        "data.init_args.size": 40,
        "data.init_args.margin": 0,
        **{f"{OPTIONS}.{key}": value for key, value in changes.items()},
    }


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("task", [classes, nodules, masks, boxes])
def test_an_evaluation_by_several_is_that_by_one(here: Path, tmp_path: Path, task: Any, world: int) -> None:
    """No sample twice, though equal shares are filled up; nothing is learnt, so that all have one network."""
    name, changes = task(here, tmp_path)
    still = {"run.threads": 1, "data.init_args.batch_size": 1, **changes}
    still |= {"run.epochs": 1, "task.init_args.optimiser.lr": 0}
    engine.train(name, run=tmp_path / "one", overrides=still, progress=False)
    several = {**still, "run.devices": world}
    codes = together(lambda rank: engine.train(name, run=tmp_path / "all", overrides=several, progress=False), world)
    assert codes == [0] * world
    (alone,), (shared,) = log(tmp_path / "one"), log(tmp_path / "all")
    assert measured(shared) == pytest.approx(measured(alone), abs=1e-6)
    if task is nodules:
        found = [read_scores(tmp_path / folder / "scores.csv") for folder in ("one", "all")]
        assert len(found[0]["score"]) == 7
        assert found[0] == found[1]


# ---- stopped and resumed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_kill_9_of_both_and_resume_gives_the_same_bits(here: Path, two: Path, tmp_path: Path, strategy: str) -> None:
    changes, folder = {"run.strategy": strategy}, tmp_path / "run"
    whole = two
    if strategy == "fsdp":
        whole = tmp_path / "whole"
        assert both(here, "group", whole, **changes) == [0, 0]
        assert difference(whole, two) < 1e-4  # sharing the network out changes nothing but rounding
        svd_hub.load(whole / "model.safetensors")
    killed = both(here, "group", folder, callbacks=[At("on_train_batch_start", 8, kill)], **changes)
    assert killed[0] == -signal.SIGKILL
    assert not (folder / "model.safetensors").exists()
    assert again(folder) == [0, 0]
    assert same(folder, whole)
    assert log(folder) == log(whole)


def test_a_signal_to_one_stops_both_behind_the_same_step(here: Path, two: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def work(rank: int) -> None:
        ask = At("on_train_batch_start", 7, lambda: os.kill(os.getpid(), signal.SIGTERM)) if rank == 1 else None
        try:
            run(here, "group", folder, overrides=TWO, callbacks=[ask] if ask else [])
        except KeyboardInterrupt:
            os._exit(7)

    assert together(work) == [7, 7]
    state = torch.load(folder / "last.ckpt", weights_only=True)
    assert state["ImageParquet"] == {"epoch": 1, "batches": 2}
    assert again(folder) == [0, 0]
    assert same(folder, two)


# ---- what is refused -----------------------------------------------------------------------------------------------


def test_processes_that_the_recipe_does_not_know_of_are_refused(here: Path, tmp_path: Path) -> None:
    """Each would take itself for the only one, and both would write into one run folder."""

    def work(rank: int) -> None:
        with pytest.raises(SvdHubError, match=r"2 processes were started.*run\.devices=1.*--devices"):
            run(here, "group", tmp_path / "run")

    assert together(work) == [0, 0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"sync_norms": True}, "run.sync_norms=true .* GPUs"),
        ({"strategy": "fsdp", "ema": 0.9}, r"run.ema=0\.9.*fsdp"),
        ({"strategy": "fsdp", "compile": True}, "run.compile=True.*fsdp"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(OptionError, match=told):
        ranks.options(RunSettings(epochs=1, **settings))


@pytest.mark.parametrize("settings", [{"devices": 0}, {"nodes": 0}, {"ema": 1.0}, {"ema": -0.1}])
def test_settings_out_of_range(settings: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=rf"run\.{next(iter(settings))}=.*allowed"):
        RunSettings(epochs=1, **settings)


def test_how_many_were_started(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "4")  # what Lightning's own launcher leaves behind
    assert ranks.started() == 1
    monkeypatch.setenv("SLURM_NTASKS", "8")  # of the job; this is its script, not a step of it
    assert ranks.started() == 1
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    assert ranks.started() == 8
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert ranks.started() == 4


# ---- as a person starts them ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_starts_its_processes_itself_and_torchrun_s_give_the_same_bits(here: Path, tmp_path: Path) -> None:
    """One process speaks: a row an epoch, and the result. Starting Python four times takes most of a minute."""
    rest = ["train", str(here / "group.yaml"), "--data", str(here / "set"), "--devices", "2"]
    rest += ["--set", "data.init_args.batch_size=2", "--run"]
    starter = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    # behind --, or torchrun takes --run for one of its own options
    ways = {"own": ["-m", "svd_hub"], "torchrun": [*starter, "-m", "--", "svd_hub"]}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for name, way in ways.items():
        done = subprocess.run(
            [sys.executable, *way, *rest, str(tmp_path / name)],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=200,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        *rows, last = done.stdout.splitlines()
        assert [json.loads(row)["epoch"] for row in rows] == [0, 1]
        assert last == str(tmp_path / name / "model.safetensors")
    assert same(tmp_path / "own", tmp_path / "torchrun")
    assert log(tmp_path / "own") == log(tmp_path / "torchrun")
