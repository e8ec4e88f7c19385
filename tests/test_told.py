"""Laws of what a run says of itself, and of its folder: who may begin in it."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import svd_hub
from svd_hub.errors import SvdHubError
from svd_hub.training import engine, folder, told
from svd_hub.training import recipe as recipes
from svd_hub.training.miniature.own import labelled, masked

ROOT = Path(__file__).resolve().parents[1]
FOLDER, INIT = "data.init_args.folder", "task.init_args.network.init"
QUICK = {"run.epochs": 1, "run.threads": 1, "data.init_args.batch_size": 4}
CLASSIFY = {**QUICK, "data.init_args.reading.size": "[8, 12, 12]"}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def classified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labelled(tmp_path_factory.mktemp("classified"))


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = svd_hub.load("resnet3d18w16_tinyimagenet", weights=None, depth=10, width=4)
    return str(svd_hub.save(made, tmp_path_factory.mktemp("narrow") / "narrow.safetensors"))


def train(path: Path, run: Path, **more: Any) -> list[str]:
    """The lines for a person."""
    lines: list[str] = []
    settings = {FOLDER: str(path), **CLASSIFY, **more.pop("settings", {})}
    engine.train("finetune-classify", run=run, overrides=settings, progress=False, tell=lines.append, **more)
    return lines


# ---- what is told --------------------------------------------------------------------------------------------------


def test_a_run_says_what_it_understood_and_what_is_next(classified: Path, narrow: str, tmp_path: Path) -> None:
    data, network, run, kept, following = train(classified, tmp_path / "run", settings={INIT: narrow})
    assert "train 8 images of 4 patients, val 4 images of 2 patients; 2 classes (soft, solid)" in data
    assert "input 8x12x12 voxels, CT, 1x1x1 mm" in data
    count = sum(p.numel() for p in svd_hub.load(tmp_path / "run" / "model.safetensors").parameters())
    assert f"resnet3d (depth 10, width 4), {count:,} parameters ({count * 4 / 1e6:.1f} MB), on cpu, from " in network
    assert "1 epoch, 32-true, seed 0" in run
    assert "the last epoch is kept" in run
    assert kept.startswith("kept: the last epoch, 0, val/auc ")
    assert following == f"Next: svd-hub predict {tmp_path / 'run' / 'model.safetensors'} SCAN --out results"


@pytest.mark.parametrize("init", ["narrow", "unet3d_genesis", "p3d"])
def test_the_header_names_the_same_network_from_random_weights(
    classified: Path, narrow: str, tmp_path: Path, init: str
) -> None:
    """Of the recipe's own architecture, of another, and of a U-Net."""
    made = {
        "unet3d_genesis": lambda: svd_hub.load("unet3d_genesis", weights=None, width=2),
        "p3d": lambda: svd_hub.load("mp3d63_coco", weights=None, width=8, variant="18ba"),
    }
    file = str(svd_hub.save(made[init](), tmp_path / "net.safetensors")) if init in made else narrow
    settings = {FOLDER: str(classified), **CLASSIFY}
    recipe = recipes.read("finetune-classify", {**settings, INIT: file})
    task: Any = recipe.make()[0]
    asked = shlex.split(shlex.join(told.scratch(recipe, task)))
    assert asked[:2] == ["--init", "none"]
    pairs = dict(item.removeprefix("--set=").split("=", 1) for item in asked[2:])
    again: Any = recipes.read("finetune-classify", {**settings, INIT: "none", **pairs}).make()[0]
    sizes = [{k: v.shape for k, v in one.network.state_dict().items()} for one in (task, again)]
    assert sizes[0] == sizes[1]
    x = torch.zeros(1, 1, 16, 32, 32)
    assert again.network.eval()(x).shape == task.network.eval()(x).shape


def test_the_same_segmenter_from_random_weights(narrow: str, tmp_path: Path) -> None:
    settings = {FOLDER: str(masked(tmp_path)), "data.init_args.reading.size": "[16, 16, 16]"}
    recipe = recipes.read("finetune-segment", {**settings, INIT: narrow})
    task: Any = recipe.make()[0]
    pairs = dict(item.removeprefix("--set=").split("=", 1) for item in told.scratch(recipe, task)[2:])
    again: Any = recipes.read("finetune-segment", {**settings, INIT: "none", **pairs}).make()[0]
    assert {k: v.shape for k, v in task.network.state_dict().items()} == {
        k: v.shape for k, v in again.network.state_dict().items()
    }


def test_the_best_epoch_is_told_by_the_metric_of_the_task() -> None:
    rows = [{"epoch": k, "val/auc": v, "val/loss": 1 - v} for k, v in enumerate((0.5, 0.9, 0.7))]
    assert told.kept(rows) == "kept: the last epoch, 2, val/auc 0.7000; the best was epoch 1, 0.9000"
    assert told.kept(rows[:2]) == "kept: the last epoch, 1, val/auc 0.9000; none was better"
    losses = [{"epoch": k, "val/loss": v} for k, v in enumerate((0.5, 0.2, 0.3))]
    assert told.kept(losses).endswith("the best was epoch 1, 0.2000")
    assert told.kept([]) == told.kept([{"epoch": 0, "train/loss": 1.0}]) == ""


# ---- whose the folder is -------------------------------------------------------------------------------------------


def test_what_failed_before_its_first_checkpoint_does_not_block_the_corrected_command(
    classified: Path, narrow: str, tmp_path: Path
) -> None:
    from test_training import At

    def fail() -> None:
        raise RuntimeError("out of memory")

    run, settings = tmp_path / "run", {INIT: narrow}
    with pytest.raises(RuntimeError, match="out of memory"):
        train(classified, run, settings=settings, callbacks=[At("on_train_batch_start", 1, fail)])
    assert {file.name for file in run.iterdir()} == folder.BEGUN
    train(classified, run, settings={**settings, "run.seed": 7})
    assert recipes.read(str(run / "recipe.yaml")).settings.seed == 7
    with pytest.raises(SvdHubError, match=r"is not empty\. Next: --resume"):
        train(classified, run, settings=settings)
    with pytest.raises(SvdHubError, match=r"keeps its recipe.*run\.epochs.*Next: .*--init .*model\.safetensors"):
        engine.train("", run=run, resume=True, overrides={"run.epochs": 9})


def test_a_run_without_a_checkpoint_is_not_begun_over_while_it_is_trained(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from svd_hub.training import folder\n"
        "with folder.held(Path(sys.argv[1]), 'name: x'): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(SvdHubError, match="a run is being trained in"):
            folder.check_free(tmp_path / "run")
        other.kill()
    folder.check_free(tmp_path / "run")  # the system let go of it
