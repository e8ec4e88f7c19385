"""The one training engine: a recipe in, a run folder out. Lightning does the loop; this file makes it repeatable.

A run folder holds `recipe.yaml` (as resolved), `run.json` (versions, data fingerprint), `log.jsonl` (a line an epoch),
`last.ckpt` (to resume) and, when finished, `scores.csv` (the last evaluation, case by case) and `model.safetensors`.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint

from .. import checkpoint
from ..errors import SvdHubError
from . import console, folder, told
from . import recipe as recipes
from .saving import Saver, WholeFiles, stop_signals, write_text
from .scores import CaseScores
from .seeding import StepSeed
from .twins import record_of_twin

Report = Callable[[str], None]
FOLDER = "data.init_args.folder"


class EpochLog(Checkpoint):
    """Appends a JSON line an epoch to `log.jsonl`; after a resume, lines of epochs that are run again go first.

    A Checkpoint by its place: Lightning calls those behind the task's own end of the epoch, and then the saver.
    """

    def __init__(self, file: Path, report: Report) -> None:
        self.file, self.report, self.begun = file, report, 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock, also in the middle of an epoch."""
        self.begun = time.monotonic()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock of the epoch."""
        self.begun = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the line of this epoch."""
        if not trainer.is_global_zero:
            return
        lines = self.file.read_text().splitlines() if self.file.is_file() else []
        kept = [line for line in lines if json.loads(line)["epoch"] < trainer.current_epoch]
        every = trainer.check_val_every_n_epoch or 1
        seen = (trainer.current_epoch + 1) % every == 0  # else val/ is still that of an epoch before
        row: dict[str, Any] = {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "seconds": round(time.monotonic() - self.begun, 1),
            **{k: round(float(v), 6) for k, v in sorted(trainer.callback_metrics.items()) if seen or k[:4] != "val/"},
        }
        write_text(self.file, "\n".join([*kept, json.dumps(row)]) + "\n")
        self.report(json.dumps(row))


def versions() -> dict[str, str]:
    """Return the versions that a run depends on."""
    found = {"python": platform.python_version()}
    for name in ("torch", "pytorch-lightning", "numpy", "pillow", "monai", "safetensors"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _open(name: str, run: Path, overrides: dict[str, Any], *, resume: bool) -> recipes.Recipe:
    """Return the recipe of a new run, or of one that was stopped."""
    kept = run / "recipe.yaml"
    if resume:
        if not kept.is_file():
            raise SvdHubError(f"nothing to resume in {run}: no recipe.yaml there. Next: start the run without --resume")
        if changed := set(overrides) - {FOLDER}:
            raise SvdHubError(folder.cannot_change(run, changed))
        return recipes.read(str(kept), overrides)
    folder.check_free(run)
    return recipes.read(name, overrides)


def _record(recipe: recipes.Recipe, data: Any, file: Path) -> None:
    """Write `run.json`, or see that the data are still those it names."""
    fingerprint = json.loads(json.dumps(data.fingerprint()))
    if file.is_file():
        if json.loads(file.read_text())["data"] != fingerprint:
            raise SvdHubError(
                f"the data are not those that {file} names, so the run cannot go on as it began. "
                "Next: give the folder it began with (--data FOLDER), or start a new run"
            )
        return
    facts = {
        "recipe": recipe.name,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "data": fingerprint,
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads()},
    }
    write_text(file, json.dumps(facts, indent=1))


def train(
    name: str,
    *,
    run: Path,
    overrides: dict[str, Any] | None = None,
    resume: bool = False,
    progress: bool = True,
    report: Report = lambda line: None,
    tell: Report = lambda line: None,
    callbacks: Sequence[pl.Callback] = (),
) -> Path:
    """Run a recipe, or go on with a run that was stopped, to the bit as if it had not been.

    Ctrl-C and SIGTERM stop it behind the current step, with a checkpoint.

    Args:
        name: a shipped recipe's name or a YAML file; with `resume`, taken from the run folder instead.
        run: the run folder.
        overrides: recipe keys to change, e.g. {"run.seed": 1}; with `resume` only the data folder, where it moved.
        resume: go on with `run`.
        progress: show a bar on stderr, where that is a terminal.
        report: called with a JSON line after each epoch.
        tell: called with lines for a person: what is trained on what, and at the end what came out.
        callbacks: further ones of Lightning.

    Returns:
        `run / "model.safetensors"`.

    Raises:
        SvdHubError: the run folder is not free (`folder`) or has nothing to resume; the data changed; a loss is not
            finite.
        KeyboardInterrupt: the run was stopped; it can be resumed.
    """
    recipe = _open(name, run, overrides or {}, resume=resume)
    settings, last = recipe.settings, run / "last.ckpt"
    if settings.threads:
        torch.set_num_threads(settings.threads)
    task, data = recipe.make()
    data.setup("fit")  # before anything is written: a wrong folder leaves no run behind
    with folder.held(run, None if resume else recipe.text), console.quiet(), stop_signals() as stop:
        _record(recipe, data, run / "run.json")
        shown = [console.Bar()] if progress and console.watched() else []
        log, scores = EpochLog(run / "log.jsonl", report), CaseScores(run / "scores.csv")
        saver = Saver(last, steps=settings.checkpoint_steps, epochs=settings.checkpoint_epochs, stop=stop)
        trainer = pl.Trainer(
            max_epochs=settings.epochs,
            precision=settings.precision,
            accumulate_grad_batches=settings.accumulate,
            gradient_clip_val=settings.clip or None,
            check_val_every_n_epoch=settings.validate_every,
            accelerator="auto",
            devices=1,  # the run folder, the log and the evaluation are still those of one process
            callbacks=[StepSeed(settings.seed), *shown, *callbacks, log, scores, saver],
            plugins=[WholeFiles()],
            logger=False,
            default_root_dir=run,
            benchmark=torch.cuda.is_available(),  # cuDNN's choice of an algorithm: 3D convolutions differ by much
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
        if trainer.is_global_zero:
            told.begin(tell, recipe, task, data, run, trainer.strategy.root_device)
        try:
            trainer.fit(task, data, ckpt_path=last if last.is_file() else None, weights_only=True)
        except SystemExit:  # how the saver and Lightning stop a run
            raise KeyboardInterrupt from None
        result = finish(recipe, task, data, run)
        if trainer.is_global_zero:
            told.end(tell, run, task, data)
    return result


def finish(recipe: recipes.Recipe, task: Any, data: Any, run: Path) -> Path:
    """Write the trained network of a finished run in the form that `svd_hub.load(path)` rebuilds alone."""
    network, entry = task.config, getattr(task.network, "entry", None)
    options = getattr(task.network, "options", network.options)
    target = run / "model.safetensors"
    # what it was trained from has terms, which stay with it
    origin = {key: getattr(entry, key) for key in ("licence", "licence_url", "trained_on")} if entry else {}
    record = {
        "entry": recipe.name,
        "architecture": entry.architecture if entry else network.architecture,
        "options": dict(options),
        "task": getattr(task.network, "task", "classification"),
        "classes": list(data.class_names()),
        "preprocess": data.preprocess(mean=task.mean, std=task.std),
        "inference": {**data.inference(), **(task.inference() if hasattr(task, "inference") else {})},
        **origin,
        **(record_of_twin(network.options) if network.architecture == "resnet2d" else {}),
    }
    checkpoint.write(target, task.network.state_dict(), record)
    return target
