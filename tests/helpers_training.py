"""Runs of miniature recipes that are stopped, killed and gone on with."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from safetensors.torch import load_file

from svd_hub.training import engine
from svd_hub.training.tasks import Classification

FOLDER = "data.init_args.folder"


class Noisy(Classification):
    """Random numbers in every step, as dropout has them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 0.1 * torch.randn(()) if self.training else super().forward(x)


class At(pl.Callback):
    """Does something at the nth call of a hook."""

    def __init__(self, hook: str, call: int, action: Callable[[], None]) -> None:
        self.left = call

        def act(*args: Any, **kwargs: Any) -> None:
            self.left -= 1
            if self.left == 0:
                action()

        setattr(self, hook, act)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run(here: Path, name: str, folder: Path, **options: Any) -> Path:
    overrides = {FOLDER: str(here / "set"), **options.pop("overrides", {})}
    return engine.train(str(here / f"{name}.yaml"), run=folder, overrides=overrides, progress=False, **options)


def resume(folder: Path, **options: Any) -> Path:
    return engine.train("", run=folder, resume=True, progress=False, **options)


def forked(action: Callable[[], object]) -> int:
    """Do it in a process of its own; its exit code, negative for the signal that ended it."""
    with warnings.catch_warnings():
        # From Python 3.12 on: forking is safe here, every pool has one thread.
        warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork.*", category=DeprecationWarning)
        process = multiprocessing.get_context("fork").Process(target=action)
        process.start()
    process.join(60)
    assert process.exitcode is not None
    return process.exitcode


def killed(here: Path, name: str, folder: Path, *callbacks: pl.Callback) -> None:
    assert forked(lambda: run(here, name, folder, callbacks=callbacks)) == -signal.SIGKILL


def log(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def same(a: Path, b: Path) -> bool:
    first, second = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
