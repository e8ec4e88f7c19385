"""Laws of a run: it repeats to the bit, it can be stopped anywhere and goes on as if it had not been."""

from __future__ import annotations

import json
import logging
import os
import pty
import random
import re
import secrets
import select
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import miniature
import pytest
import pytorch_lightning as pl
import torch
from helpers_training import FOLDER, At, forked, kill, killed, log, resume, run, same
from safetensors.torch import load_file

import svd_hub
from svd_hub.errors import OptionError, SvdHubError
from svd_hub.training import console, engine, saving
from svd_hub.training import recipe as recipes
from svd_hub.training.miniature import pictures
from svd_hub.training.tasks import Classification
from svd_hub.training.tasks.classification import Network, Optimiser, build_network

ROOT = Path(__file__).resolve().parents[1]
STEPS, EPOCHS = 5, 2


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature set, three recipes on it, and the cache all tests of this file share."""
    folder = tmp_path_factory.mktemp("training")
    pictures.image_set(folder / "set")
    miniature.recipe(folder / "plain.yaml")
    noisy = {"svd_hub.training.tasks.Classification": "helpers_training.Noisy"}
    miniature.recipe(folder / "noisy.yaml", **noisy)
    many = {"checkpoint_steps: 2": "checkpoint_steps: 1, accumulate: 2, clip: 1.0, precision: bf16-mixed"}
    miniature.recipe(folder / "accumulated.yaml", **noisy, **many)
    return folder


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    for name in list(os.environ):
        if name.startswith(("HF_", "SVD_HUB_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SVD_HUB_HOME", str(here / "cache"))


@pytest.fixture(scope="module")
def whole(here: Path) -> Callable[[str], Path]:
    """The uninterrupted run of a recipe, made once."""

    def get(name: str) -> Path:
        folder = here / f"whole-{name}"
        if not folder.exists():
            run(here, name, folder)
        return folder

    return get


# ---- the same again ------------------------------------------------------------------------------------------------


def test_a_run_repeats_to_the_bit_and_learns(here: Path, whole: Any, tmp_path: Path) -> None:
    target = run(here, "noisy", tmp_path / "again")
    assert target.read_bytes() == (whole("noisy") / "model.safetensors").read_bytes()
    assert log(tmp_path / "again") == log(whole("noisy"))
    fresh = build_network(Network(options={"depth": 10, "width": 2, "num_classes": 3, "stem_pool": False}))
    trained = load_file(target)
    assert trained.keys() == fresh.state_dict().keys()
    assert int(trained["bn1.num_batches_tracked"]) == STEPS * EPOCHS


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_changes_nothing(here: Path, whole: Any, tmp_path: Path, workers: int) -> None:
    run(here, "noisy", tmp_path / "run", overrides={"data.init_args.workers": workers})
    assert same(tmp_path / "run", whole("noisy"))


def test_the_one_seed_decides_everything(here: Path, whole: Any, tmp_path: Path) -> None:
    run(here, "noisy", tmp_path / "run", overrides={"run.seed": 4})
    assert not same(tmp_path / "run", whole("noisy"))
    made = recipes.read(str(here / "plain.yaml"), {"run.seed": 4, "data.init_args.seed": 5})
    assert made.make_data().seed == 4


def test_noise_is_really_drawn(here: Path, whole: Any) -> None:
    """Or the tests of resume would not see random numbers at all."""
    run(here, "plain", here / "whole-plain")
    assert not same(here / "whole-plain", whole("noisy"))


# ---- stopped and resumed -------------------------------------------------------------------------------------------

# where, and in which of its calls; STEPS steps an epoch, 2 validation batches, a checkpoint every 2 steps
MOMENTS = [
    ("on_train_batch_start", 1),  # before anything was saved
    ("on_train_batch_end", 2),  # before the first checkpoint is written
    ("on_train_batch_start", 3),  # right behind it
    ("on_train_batch_end", STEPS),  # the last batch of an epoch
    ("on_validation_batch_start", 2),  # in the middle of validation
    ("on_validation_end", 1),
    ("on_train_epoch_end", 1),  # before the line of the epoch
    ("on_train_epoch_start", 2),  # between two epochs
    ("on_train_batch_start", STEPS + 1),
    ("on_train_batch_end", STEPS + 3),  # in the second size
    ("on_validation_batch_start", 4),
    ("on_train_end", 1),  # trained, but nothing handed over
]


@pytest.mark.parametrize(("hook", "call"), MOMENTS)
def test_kill_9_anywhere_and_resume_gives_the_same_bits(
    here: Path, whole: Any, tmp_path: Path, hook: str, call: int
) -> None:
    killed(here, "noisy", tmp_path / "run", At(hook, call, kill))
    assert not (tmp_path / "run" / "model.safetensors").exists()
    lines: list[str] = []
    resume(tmp_path / "run", report=lines.append)
    assert same(tmp_path / "run", whole("noisy"))
    assert log(tmp_path / "run") == log(whole("noisy"))
    assert [row["epoch"] for row in log(tmp_path / "run")] == [0, 1]
    assert len(lines) <= EPOCHS


def test_kill_9_at_ten_random_steps(here: Path, tmp_path: Path) -> None:
    """Each kill ends a process that went on from the one before; the seed is shown where this fails."""
    seed = int(os.environ.get("KILL_SEED", secrets.randbits(32)))
    print(f"KILL_SEED={seed}")  # noqa: T201
    draw, long = random.Random(seed), {"run.epochs": 12}
    run(here, "noisy", tmp_path / "whole", overrides=long)
    folder, at = tmp_path / "run", At("on_train_batch_end", draw.randint(1, STEPS), kill)
    assert forked(lambda: run(here, "noisy", folder, overrides=long, callbacks=[at])) == -signal.SIGKILL
    for _ in range(9):
        hook = draw.choice(["on_train_batch_start", "on_before_optimizer_step", "on_train_batch_end"])
        at = At(hook, draw.randint(1, STEPS), kill)
        assert forked(lambda at=at: resume(folder, callbacks=[at])) == -signal.SIGKILL
    resume(folder)
    assert same(folder, tmp_path / "whole")
    assert log(folder) == log(tmp_path / "whole")


@pytest.mark.slow
def test_the_command_killed_ten_times_from_outside_ends_with_the_same_bits(here: Path, tmp_path: Path) -> None:
    """`svd-hub train` and `--resume`, each killed by another process at whatever it is doing. Two minutes."""
    seed = int(os.environ.get("KILL_SEED", secrets.randbits(32)))
    print(f"KILL_SEED={seed}")  # noqa: T201
    draw, changes = random.Random(seed), {"run.epochs": 60}
    run(here, "noisy", tmp_path / "whole", overrides=changes)
    folder = tmp_path / "run"
    begin = ["train", here / "noisy.yaml", "--data", here / "set", "--run", folder, "--epochs", "60"]
    for turn in range(10):
        arguments, environment = command(*(["train", "--resume", folder] if turn else begin))
        process = subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None
        for _ in range(draw.randint(1, 4)):  # rows of epochs
            assert process.stdout.readline()
        select.select([], [], [], draw.random() / 4)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    resume(folder)
    assert same(folder, tmp_path / "whole")
    assert log(folder) == log(tmp_path / "whole")


def test_kill_9_again_and_again_between_accumulated_gradients(here: Path, whole: Any, tmp_path: Path) -> None:
    name, draw = "accumulated", random.Random("accumulated")
    hooks = ["on_train_batch_start", "on_train_batch_end", "on_before_optimizer_step", "on_validation_batch_end"]
    killed(here, name, tmp_path / "run", At("on_train_batch_end", draw.randint(1, STEPS), kill))
    for _ in range(5):
        at = At(draw.choice(hooks), draw.randint(1, 4), kill)
        code = forked(lambda at=at: resume(tmp_path / "run", callbacks=[at]))
        assert code in (0, -signal.SIGKILL)
    resume(tmp_path / "run")
    assert same(tmp_path / "run", whole(name))
    assert log(tmp_path / "run") == log(whole(name))


def test_resume_with_workers_that_have_read_ahead(here: Path, whole: Any, tmp_path: Path) -> None:
    two = {"data.init_args.workers": 2}
    at = At("on_train_batch_start", 4, kill)
    folder = tmp_path / "run"
    code = forked(lambda: run(here, "noisy", folder, overrides=two, callbacks=[at]))
    assert code == -signal.SIGKILL
    resume(folder)
    assert same(folder, whole("noisy"))


def test_killed_between_the_line_of_an_epoch_and_its_checkpoint(here: Path, whole: Any, tmp_path: Path) -> None:
    """Saves: step 2, step 4, end of epoch 0. The line is there, its checkpoint is not: the epoch is run again."""
    folder = tmp_path / "run"
    killed(here, "noisy", folder, At("on_save_checkpoint", 3, kill))
    assert [row["epoch"] for row in log(folder)] == [0]
    place = torch.load(folder / "last.ckpt", weights_only=True)["ImageParquet"]
    assert place == {"epoch": 0, "batches": 4}
    resume(folder)
    assert same(folder, whole("noisy"))
    assert log(folder) == log(whole("noisy"))


def test_a_checkpoint_is_never_half_written(
    here: Path, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed when half of the second checkpoint's bytes are on the disk: the first one is still there, whole."""
    folder, count = tmp_path / "run", [0]
    before = os.fsync

    def fsync(handle: int) -> None:
        count[0] += Path(os.readlink(f"/proc/self/fd/{handle}")).name == ".last.ckpt.part"
        if count[0] == 2:
            os.ftruncate(handle, os.fstat(handle).st_size // 2)
            kill()
        before(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    killed(here, "noisy", folder)
    monkeypatch.undo()
    monkeypatch.setenv("SVD_HUB_HOME", str(here / "cache"))
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 2
    assert (folder / ".last.ckpt.part").stat().st_size < (folder / "last.ckpt").stat().st_size
    resume(folder)
    assert same(folder, whole("noisy"))
    assert not [file for file in folder.iterdir() if file.name.startswith(".")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("hook", "call", "place"),
    [
        ("on_train_batch_start", 1, (0, 1)),
        ("on_train_batch_start", STEPS, (0, 4)),  # the last batch is followed by validation
        ("on_validation_batch_start", 3, (1, 3)),
        ("on_train_epoch_end", 1, (1, 0)),
    ],
)
def test_ctrl_c_and_sigterm_stop_behind_the_step_with_a_checkpoint(
    here: Path, whole: Any, tmp_path: Path, number: int, hook: str, call: int, place: tuple[int, int]
) -> None:
    folder = tmp_path / "run"
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt):
        run(here, "noisy", folder, callbacks=[At(hook, call, lambda: os.kill(os.getpid(), number))])
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    state = torch.load(folder / "last.ckpt", weights_only=True)
    assert (state["ImageParquet"]["epoch"], state["ImageParquet"]["batches"]) == place
    assert not (folder / "model.safetensors").exists()
    resume(folder)
    assert same(folder, whole("noisy"))
    assert log(folder) == log(whole("noisy"))


def test_a_second_ctrl_c_does_not_wait_for_the_step(here: Path, whole: Any, tmp_path: Path) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(here, "noisy", tmp_path / "run", callbacks=[At("on_train_batch_start", 4, twice)])
    assert signal.getsignal(signal.SIGINT) is handler
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["ImageParquet"]["batches"] == 2
    resume(tmp_path / "run")
    assert same(tmp_path / "run", whole("noisy"))


def test_accumulated_gradients_are_never_cut_by_a_checkpoint(here: Path, whole: Any, tmp_path: Path) -> None:
    """Asked to stop at batch 1 of 2, it stops behind batch 2."""
    ask = At("on_train_batch_start", 1, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run(here, "accumulated", tmp_path / "run", callbacks=[ask])
    state = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert (state["ImageParquet"]["batches"], state["global_step"]) == (2, 1)
    resume(tmp_path / "run")
    assert same(tmp_path / "run", whole("accumulated"))


def test_a_finished_run_is_handed_over_again_without_training(here: Path, tmp_path: Path) -> None:
    target = run(here, "noisy", tmp_path / "run")
    before, row = target.read_bytes(), (tmp_path / "run" / "log.jsonl").read_bytes()
    target.unlink()
    steps: list[int] = []
    again = resume(tmp_path / "run", callbacks=[At("on_train_batch_start", 1, lambda: steps.append(1))])
    assert again.read_bytes() == before
    assert (tmp_path / "run" / "log.jsonl").read_bytes() == row
    assert not steps


def test_a_moved_data_folder_is_taken_other_data_are_not(here: Path, whole: Any, tmp_path: Path) -> None:
    stop = At("on_train_batch_start", 3, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run(here, "noisy", tmp_path / "run", callbacks=[stop])
    other = pictures.image_set(tmp_path / "other", seed=1)
    with pytest.raises(SvdHubError, match=r"data are not those.*run\.json.*Next"):
        resume(tmp_path / "run", overrides={FOLDER: str(other)})
    moved = pictures.image_set(tmp_path / "moved")
    resume(tmp_path / "run", overrides={FOLDER: str(moved)})
    assert same(tmp_path / "run", whole("noisy"))


def test_a_run_folder_is_neither_mixed_up_nor_resumed_with_other_settings(here: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(SvdHubError, match=r"nothing to resume in .*recipe\.yaml.*Next"):
        resume(folder)
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(SvdHubError, match=r"is not empty.*--resume"):
        run(here, "plain", folder)
    assert [file.name for file in folder.iterdir()] == ["notes.txt"]
    (folder / "notes.txt").unlink()
    with pytest.raises(KeyboardInterrupt):
        run(
            here, "plain", folder, callbacks=[At("on_train_batch_start", 1, lambda: signal.raise_signal(signal.SIGINT))]
        )
    with pytest.raises(SvdHubError, match=r"keeps its recipe.*run\.seed"):
        resume(folder, overrides={"run.seed": 1})


# ---- the run folder ------------------------------------------------------------------------------------------------


def test_the_trained_network_loads_alone(whole: Any) -> None:
    model = svd_hub.load(whole("noisy") / "model.safetensors")
    assert model.preprocess.size == (3, 24, 24)
    assert model.entry.classes == ("thing 0", "thing 1", "thing 2")
    picture = pictures.picture(5, size=(30, 40))
    assert model(model.preprocess(picture)).shape == (1, 3)


def test_a_loss_that_is_not_finite_stops_with_the_batch_named(here: Path, tmp_path: Path) -> None:
    class Spoil(pl.Callback):
        def on_train_batch_start(self, trainer: Any, task: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step == 3:
                with torch.no_grad():
                    task.network.fc.weight.fill_(float("nan"))

    with pytest.raises(SvdHubError, match=r"loss is nan at step 3 \(epoch 0, batch 3\).*Next"):
        run(here, "plain", tmp_path / "run", callbacks=[Spoil()])
    state = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 2
    assert all(torch.isfinite(tensor).all() for tensor in state["state_dict"].values())


def test_fine_tuning_starts_from_the_weights_and_moves_batch_statistics(here: Path, whole: Any, tmp_path: Path) -> None:
    """`load` gives networks for evaluation, and Lightning trains what it gets in the mode it gets it."""
    source = whole("noisy") / "model.safetensors"
    before = source.read_bytes()
    network = build_network(Network(init=str(source), options={"num_classes": 3}))
    assert all(module.training for module in network.modules())
    assert torch.equal(network.conv1.weight, load_file(source)["conv1.weight"])
    target = run(here, "plain", tmp_path / "run", overrides={"task.init_args.network.init": str(source)})
    trained, start = load_file(target), load_file(source)
    assert int(trained["bn1.num_batches_tracked"]) == int(start["bn1.num_batches_tracked"]) + STEPS * EPOCHS
    assert not torch.equal(trained["bn1.running_mean"], start["bn1.running_mean"])
    assert source.read_bytes() == before  # loaded tensors are backed by the file


def test_weight_decay_of_norms_can_be_left_out() -> None:
    class Steps:
        estimated_stepping_batches, max_epochs = 10, 2

    network = Network(options={"depth": 10, "width": 2, "num_classes": 3})
    for decay_norms, groups in ((True, 1), (False, 2)):
        task = Classification(network=network, optimiser=Optimiser(decay_norms=decay_norms, warmup=0.3))
        task._trainer = Steps()  # type: ignore[assignment]
        made = task.configure_optimizers()
        assert len(made["optimizer"].param_groups) == groups
        assert sum(p.numel() for g in made["optimizer"].param_groups for p in g["params"]) == sum(
            p.numel() for p in task.network.parameters()
        )
        factor = made["lr_scheduler"]["scheduler"].lr_lambdas[0]
        assert [factor(0), factor(2)] == pytest.approx([1 / 3, 1])
        assert factor(10) == pytest.approx(0)
        assert all(factor(i) >= factor(i + 1) for i in range(2, 10))


def test_epochs_without_validation_log_no_metric_of_another(here: Path, whole: Any, tmp_path: Path) -> None:
    """The last epoch is always validated; what is trained does not depend on it."""
    run(here, "noisy", tmp_path / "run", overrides={"run.validate_every": 2})
    first, last = log(tmp_path / "run")
    assert not [key for key in first if key.startswith("val/")]
    assert last == log(whole("noisy"))[-1]
    assert same(tmp_path / "run", whole("noisy"))
    with pytest.raises(
        SvdHubError, match=r"run\.validate_every=2 with run\.epochs=3 is not allowed; allowed: a divisor"
    ):
        recipes.read(str(here / "plain.yaml"), {"run.epochs": 3, "run.validate_every": 2})


# ---- recipes -------------------------------------------------------------------------------------------------------

SHIPPED = sorted(path.stem for path in (ROOT / "training" / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_is_whole(name: str, tmp_path: Path) -> None:
    path = recipes.recipe_path(name)
    assert path.read_text().splitlines()[0].startswith(f"# svd-hub train {name} --data ")
    recipe = recipes.read(name)
    assert recipe.name == name == path.stem
    assert recipe.settings.epochs > 0
    (tmp_path / "resolved.yaml").write_text(recipe.text)
    again = recipes.read(str(tmp_path / "resolved.yaml"))
    assert again.text == recipe.text
    assert again.settings == recipe.settings
    untrained = recipes.read(name, {"task.init_args.network.init": "none"})  # what it starts from may be a run to come
    data = untrained.make_data()
    if not hasattr(data, "fills"):  # else the task waits for the data
        untrained.make()
    if phases := getattr(data, "phases", None):
        assert sum(phase.epochs for phase in phases) == recipe.settings.epochs
    network = recipe.config.task.init_args.network
    with torch.device("meta"):
        built = build_network(Network(architecture=network.architecture, options=dict(network.options)))
    assert next(built.parameters()).is_meta


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"run.seed": "x"}, r"run\.seed=x is not allowed; allowed: a whole number"),
        ({"run.sed": 1}, r"run\.sed"),
        ({"run.epochs": 0}, r"run\.epochs=0.*1 or more"),
        ({"run.precision": "8-mixed"}, "8-mixed"),
        ({"data.init_args.nope": 1}, "nope"),
        (
            {"task.init_args.optimiser.name": "rmsprop"},
            "optimiser.name=rmsprop is not allowed; allowed: sgd, adam, adamw",
        ),
        ({"task.class_path": "svd_hub.training.tasks.Nothing"}, "Nothing"),
        ({"data.init_args.phases": "[{epochs: 1, size: big}]"}, "big"),
    ],
)
def test_a_typo_in_an_override_is_told_in_one_line(here: Path, change: dict[str, Any], told: str) -> None:
    with pytest.raises(SvdHubError, match=told) as caught:
        recipes.read(str(here / "plain.yaml"), change)
    assert "\n" not in str(caught.value)
    assert "NoneType" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("summary:", "sumary:", "sumary"),
        ("checkpoint_steps", "checkpoint_step", "checkpoint_step"),
        ("warmup: 0.2", "warm_up: 0.2", "warm_up"),
        ("run: {", "run: {{", "plain.yaml|bad.yaml"),
    ],
)
def test_a_typo_in_a_recipe_is_told(tmp_path: Path, old: str, new: str, told: str) -> None:
    path = miniature.recipe(tmp_path / "bad.yaml", **{old: new})
    with pytest.raises(SvdHubError, match=told):
        recipes.read(str(path))


def test_unknown_recipes_and_options() -> None:
    with pytest.raises(SvdHubError, match=r"no recipe 'resnet3d18w16_tinyimgnet'; nearest: resnet3d18w16_tinyimagenet"):
        recipes.read("resnet3d18w16_tinyimgnet")
    with pytest.raises(OptionError, match="nearest to 'dept'"):
        build_network(Network(options={"dept": 18}))


def test_overrides_are_typed(here: Path) -> None:
    change = {
        "run.seed": "7",
        "task.init_args.network.options.width": "4",
        "data.init_args.phases": "[{epochs: 2, size: 8}]",
    }
    recipe = recipes.read(str(here / "plain.yaml"), change)
    assert recipe.settings.seed == 7
    assert recipe.config.task.init_args.network.options["width"] == 4
    assert recipe.make_data().phases[0].size == 8


# ---- what a person sees --------------------------------------------------------------------------------------------


def command(*arguments: object, **variables: str) -> tuple[list[str], dict[str, str]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "tests"), **variables}
    return [sys.executable, "-m", "svd_hub", *map(str, arguments)], environment


def test_the_commands_help_without_torch() -> None:
    code = (
        "import sys; from svd_hub import cli; cli._add_commands()\n"
        "for name in ('train', 'evaluate', 'publish'):\n"
        "    try: cli.app([name, '--help'])\n"
        "    except SystemExit as done: assert not done.code\n"
        "assert not {'torch', 'pytorch_lightning', 'jsonargparse'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for word in ("--resume", "--set", "--init", "--data", "--to"):
        assert word in done.stdout


def test_the_command_trains_is_stopped_and_goes_on(here: Path, tmp_path: Path) -> None:
    """End to end: SIGTERM in the middle, exit code 130, the next step told, and then the rest of the log."""
    folder = tmp_path / "run"
    arguments, environment = command(
        "train", here / "plain.yaml", "--data", here / "set", "--run", folder, "--init", "none",
        "--set", "run.epochs=60", "--set", "data.init_args.batch_size=2",
    )  # fmt: skip
    process = subprocess.Popen(
        arguments, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert json.loads(first)["epoch"] == 0
    *header, stopped = err.splitlines()
    assert [line.split(":")[0] for line in header] == ["data", "network", "run"]
    assert stopped == f"stopped. Next: svd-hub train --resume {folder}"
    done = len(log(folder))
    assert len(out.splitlines()) + 1 == done < 60
    text = (folder / "recipe.yaml").read_text()
    assert "epochs: 60" in text
    (folder / "recipe.yaml").write_text(text.replace("epochs: 60", f"epochs: {done + 1}"))
    arguments, environment = command("train", "--resume", folder)
    ended = subprocess.run(
        arguments, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
    told = [line.split(":")[0] for line in ended.stderr.splitlines()]
    assert told == ["data", "network", "run", "kept", "Next"]  # no word of Lightning, no bar
    *rows, last = ended.stdout.splitlines()
    assert [json.loads(row)["epoch"] for row in rows] == [done]
    assert last == str(folder / "model.safetensors")


def test_wrong_arguments_of_the_command_are_told_without_a_traceback(here: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from svd_hub.cli import app
    from svd_hub.training.commands import register

    if not any(c.callback and c.callback.__name__ == "train" for c in app.registered_commands):
        register(app)
    asked = CliRunner().invoke
    assert asked(app, ["train", "--run", str(tmp_path / "run")]).exit_code == 2
    assert asked(app, ["train", "plain", "--resume", str(tmp_path)]).exit_code == 2
    assert asked(app, ["train", "plain", "--set", "nonsense"]).exit_code == 2
    wrong = asked(app, ["train", str(here / "plain.yaml"), "--set", "run.seed=x", "--run", str(tmp_path / "run")])
    assert isinstance(wrong.exception, SvdHubError)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(os.name == "nt", reason="pseudo-terminals")
def test_a_bar_is_shown_on_a_terminal_only(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def shown(name: str, terminal: bool) -> str:
        parent, child = pty.openpty()

        def work() -> None:
            os.environ.update(TERM="xterm-256color", COLUMNS="80")
            os.dup2(child if terminal else os.open(os.devnull, os.O_WRONLY), 2)
            sys.stderr = os.fdopen(2, "w")
            overrides = {FOLDER: str(here / "set")}
            engine.train(str(here / "plain.yaml"), run=tmp_path / name, overrides=overrides)

        assert forked(work) == 0
        os.close(child)
        seen = b""
        try:
            while piece := os.read(parent, 65536):
                seen += piece
        except OSError:  # how a pseudo-terminal ends
            pass
        os.close(parent)
        return seen.decode()

    assert "epoch 2/2" in shown("watched", True)
    assert shown("unwatched", False) == ""


def test_quiet_hides_what_is_named_and_nothing_else() -> None:
    logger = logging.getLogger("pytorch_lightning")
    before = logger.level
    with console.quiet():
        assert not logger.isEnabledFor(logging.INFO)
        assert logger.isEnabledFor(logging.WARNING)
        with pytest.warns(UserWarning, match="something else"):
            warnings.warn("something else", stacklevel=1)
    assert logger.level == before
    for message in console.EXPECTED:
        re.compile(message)


def test_text_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    saving.write_text(file, "one")
    with pytest.raises(TypeError), saving.replacing(file) as part:
        part.write(b"tw" + "o")  # type: ignore[operator]
    assert file.read_text() == "one"
    assert list(tmp_path.iterdir()) == [file]


def test_a_wrong_data_folder_leaves_no_run_behind(tmp_path: Path) -> None:
    with pytest.raises(SvdHubError, match="no"):
        engine.train(
            "resnet3d18w16_lidc", run=tmp_path / "run", overrides={"data.init_args.folder": str(tmp_path / "none")}
        )
    assert not (tmp_path / "run").exists()


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['pytorch_lightning'] = None; sys.argv = ['svd-hub', 'train', 'resnet3d18w16_lidc'];"
        "from svd_hub.cli import main; main()"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=env)
    assert done.returncode == 1
    assert 'pip install "svd-hub[train]"' in done.stderr
    assert "Traceback" not in done.stderr


def test_a_shortened_key_is_no_key() -> None:
    with pytest.raises(SvdHubError, match="epoch"):
        recipes.read("resnet3d18w16_lidc", {"run.epoch": 1})


def test_an_unknown_init_is_one_message() -> None:
    with pytest.raises(SvdHubError, match="nope"):
        recipes.read("resnet3d18w16_lidc", {"task.init_args.network.init": "nope"}).make()
