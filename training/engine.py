"""The one training engine: a recipe in, a run folder out. Lightning does the loop; this file makes it repeatable.

A run folder holds `recipe.yaml` (as resolved), `run.json` (`facts`: versions, commit, seeds, data, machine), the log
(`journal`: `log.jsonl`, `log.csv`, TensorBoard's events, `curves.png`), `last.ckpt` (to resume) and, when finished,
`scores.csv` (the last evaluation, case by case) and `model.safetensors`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging

from .. import checkpoint
from ..errors import SvdHubError
from . import console, facts, folder, ranks, told
from . import recipe as recipes
from .compiling import compile_network
from .journal import Journal, Report
from .precision import warn_of_slow_cudnn
from .saving import Saver, Stop, WholeFiles, telling_what_cannot_be_written
from .scores import CaseScores
from .seeding import ResumableData, StepSeed
from .twins import record_of_twin

FOLDER = "data.init_args.folder"


def _read(name: str, run: Path, overrides: dict[str, Any], *, resume: bool) -> recipes.Recipe:
    """Return the recipe of a new run, or of one that was stopped."""
    if not resume:
        return recipes.read(name, overrides)
    kept = run / "recipe.yaml"
    if not kept.is_file():
        raise SvdHubError(f"nothing to resume in {run}: no recipe.yaml there. Next: start the run without --resume")
    if changed := set(overrides) - {FOLDER}:
        raise SvdHubError(folder.cannot_change(run, changed))
    return recipes.read(str(kept), overrides)


def _trainer(settings: recipes.RunSettings, run: Path, callbacks: Sequence[pl.Callback]) -> pl.Trainer:
    """Return Lightning's Trainer as the recipe asks for it."""
    return pl.Trainer(
        max_epochs=settings.epochs,
        precision=settings.precision,
        accumulate_grad_batches=settings.accumulate,
        gradient_clip_val=settings.clip or None,
        check_val_every_n_epoch=settings.validate_every,
        accelerator="auto",
        **ranks.options(settings),
        callbacks=list(callbacks),
        plugins=[WholeFiles(), *ranks.environment()],
        logger=False,
        default_root_dir=run,
        benchmark=torch.cuda.is_available(),  # cuDNN's choice of an algorithm: 3D convolutions differ by much
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


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
            finite; a file of the run cannot be written.
        KeyboardInterrupt: the run was stopped; it can be resumed.
    """
    recipe = _read(name, run, overrides or {}, resume=resume)
    settings, last = recipe.settings, run / "last.ckpt"
    if settings.threads:
        torch.set_num_threads(settings.threads)
    stop, shown = Stop(), [console.Bar()] if progress and console.watched() else []
    means = [EMAWeightAveraging(decay=settings.ema)] if settings.ema else []
    own = [Journal(run, report=report), CaseScores(run / "scores.csv")]
    saver = Saver(last, steps=settings.checkpoint_steps, epochs=settings.checkpoint_epochs, stop=stop)
    with telling_what_cannot_be_written(run), console.quiet():
        trainer = _trainer(settings, run, [StepSeed(settings.seed), *means, *shown, *callbacks, *own, saver])
        leads = trainer.is_global_zero  # of several processes, one writes and speaks
        if leads and not resume:
            folder.check_free(run)
        task, data = _made(recipe)
        with folder.held(run, None if resume else recipe.text) if leads else nullcontext(), stop.listening():
            if leads:
                facts.record(recipe, data, run / "run.json")
                told.begin(tell, recipe, task, data, run, trainer.strategy.root_device)
            _place(data, last)
            try:
                trainer.fit(task, data, ckpt_path=last if last.is_file() else None, weights_only=True)
            except SystemExit:  # how the saver and Lightning stop a run
                raise KeyboardInterrupt from None
            if leads:
                finish(recipe, task, data, run)
                told.end(tell, run, task, data)
    return run / "model.safetensors"


def _made(recipe: recipes.Recipe) -> tuple[Any, Any]:
    """Return the task, ready to train, and the data, which are looked at before anything is written."""
    task: Any
    task, data = recipe.make()
    data.setup("fit")
    warn_of_slow_cudnn(task.network, recipe.settings.precision)
    if recipe.settings.compile:
        compile_network(task.network)
    return task, data


def _place(data: Any, last: Path) -> None:
    """Tell the data where the run goes on: with fsdp, Lightning would say so when their loader is made already."""
    if last.is_file() and isinstance(data, ResumableData):
        kept = torch.load(last, map_location="cpu", weights_only=True, mmap=True)
        data.load_state_dict(kept[type(data).__qualname__])


def finish(recipe: recipes.Recipe, task: Any, data: Any, run: Path) -> Path:
    """Write the trained network of a finished run in the form that `svd_hub.load(path)` rebuilds alone.

    Its tensors are those of the last checkpoint: there they are whole, whoever of the processes had which part of them,
    and the running means where the recipe asks for `run.ema`.
    """
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
    saved = torch.load(run / "last.ckpt", map_location="cpu", weights_only=True)["state_dict"]
    mine = {name.removeprefix("network."): value for name, value in saved.items() if name.startswith("network.")}
    checkpoint.write(target, mine, record)
    return target
