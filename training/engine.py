"""The one training engine: a recipe in, a run folder out. Lightning does the loop; this file makes it repeatable.

A run folder holds `recipe.yaml` (as resolved), `run.json` (versions, data fingerprint), `log.jsonl` (a line an epoch),
`last.ckpt` (to resume) and, when finished, `model.safetensors`.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from .. import checkpoint
from ..errors import SvdHubError
from . import recipe as recipes
from .seeding import StepSeed


def write_text(path: Path, text: str) -> None:
    """Write a text file beside its place and move it there."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


class EpochLog(pl.Callback):
    """Appends a JSON line an epoch to `log.jsonl`; after a resume, lines of epochs that are run again go first."""

    def __init__(self, file: Path, report: Callable[[str], None]) -> None:
        self.file, self.report, self.begun = file, report, 0.0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self.begun = time.monotonic()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock of the epoch."""
        self.begun = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the line of this epoch."""
        if not trainer.is_global_zero:
            return
        kept = []
        if self.file.is_file():
            lines = self.file.read_text().splitlines()
            kept = [line for line in lines if json.loads(line)["epoch"] < trainer.current_epoch]
        row: dict[str, Any] = {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "seconds": round(time.monotonic() - self.begun, 1),
            **{k: round(float(v), 6) for k, v in sorted(trainer.callback_metrics.items())},
        }
        write_text(self.file, "\n".join([*kept, json.dumps(row)]) + "\n")
        self.report(json.dumps(row))


def versions() -> dict[str, str]:
    """Return the versions that a run depends on."""
    names = ("torch", "pytorch-lightning", "numpy", "pillow", "monai", "safetensors")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except ModuleNotFoundError:
            continue
    return found


def train(
    name: str,
    *,
    run: Path,
    overrides: dict[str, Any] | None = None,
    resume: bool = False,
    progress: bool = True,
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Run a recipe, or go on with a run that was stopped, to the bit as if it had not been.

    Args:
        name: a shipped recipe's name or a YAML file; with `resume`, taken from the run folder instead.
        run: the run folder.
        overrides: recipe keys to change, e.g. {"run.seed": 1}.
        resume: go on with `run`; nothing is overridden then.
        progress: show a bar.
        report: called with a JSON line after each epoch.

    Returns:
        `run / "model.safetensors"`.

    Raises:
        SvdHubError: the run folder is not empty, or has nothing to resume.
    """
    last = run / "last.ckpt"
    if resume:
        if not (run / "recipe.yaml").is_file():
            raise SvdHubError(f"nothing to resume in {run}: no recipe.yaml there. Next: start the run without --resume")
        recipe = recipes.read(str(run / "recipe.yaml"))
    else:
        if run.exists() and any(run.iterdir()):
            raise SvdHubError(f"run folder {run} is not empty. Next: --resume {run}, or choose another with --run")
        recipe = recipes.read(name, overrides)
        run.mkdir(parents=True, exist_ok=True)
        write_text(run / "recipe.yaml", recipe.text)
    settings = recipe.settings
    if settings.threads:
        torch.set_num_threads(settings.threads)
    task, data = recipe.make()
    place = {"dirpath": run, "filename": "last", "save_top_k": 1, "enable_version_counter": False}
    savers = [
        ModelCheckpoint(every_n_train_steps=settings.checkpoint_steps, **place),
        ModelCheckpoint(every_n_epochs=1, save_on_train_epoch_end=True, **place),
    ]
    trainer = pl.Trainer(
        max_epochs=settings.epochs,
        precision=settings.precision,
        accumulate_grad_batches=settings.accumulate,
        gradient_clip_val=settings.clip or None,
        accelerator="auto",
        callbacks=[StepSeed(settings.seed), EpochLog(run / "log.jsonl", report), *savers],
        logger=False,
        default_root_dir=run,
        enable_progress_bar=progress,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        log_every_n_steps=50,
    )
    data.setup("fit")
    facts = {
        "recipe": recipe.name,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "data": data.fingerprint(),
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads()},
    }
    if not resume:
        write_text(run / "run.json", json.dumps(facts, indent=1))
    trainer.fit(task, data, ckpt_path=last if resume and last.is_file() else None, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt
    return finish(recipe, task, data, run)


def finish(recipe: recipes.Recipe, task: Any, data: Any, run: Path) -> Path:
    """Write the trained network of a finished run in the form that `svd_hub.load(path)` rebuilds alone."""
    network = task.config
    options = getattr(task.network, "options", network.options)
    target = run / "model.safetensors"
    record = {
        "entry": recipe.name,
        "architecture": network.architecture,
        "options": dict(options),
        "task": "classification",
        "classes": list(data.class_names()),
        "preprocess": data.preprocess(mean=task.mean, std=task.std),
    }
    checkpoint.write(target, task.network.state_dict(), record)
    return target
