"""What a person sees of a run: bars on stderr where someone watches, and none of Lightning's talk."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytorch_lightning as pl
from rich.console import Console
from rich.progress import Progress, track

from .ranks import leads

T = TypeVar("T")

# Warnings of Lightning that a run of ours meets on purpose: the beginning of the message, and why it is not shown.
EXPECTED = {
    r".*treespec.*LeafSpec.*": "Lightning calls a part of torch that torch has renamed",
    r"The '\w+_dataloader' does not have many workers": "the recipe says how many; a data set in memory needs none",
    r"Your `val_dataloader`'s sampler has shuffling enabled": "it takes every sampler but its own for a shuffled one",
    r"Found \d+ module\(s\) in eval mode at the start of training": "what a recipe freezes is held there",
    r"You're using the WeightAveraging callback with a model that overrides": "it is shared out with fsdp alone",
    r"You're resuming from a checkpoint that ended before the epoch ended": "the data module keeps the place",
}
TALKERS = ("pytorch_lightning", "lightning_fabric")  # devices found, tips for services, where it resumes


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out Lightning's announcements and the warnings of `EXPECTED`; errors and all other warnings are shown."""
    loggers = [logging.getLogger(name) for name in TALKERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for message in EXPECTED:
            warnings.filterwarnings("ignore", message=message)
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def watched() -> bool:
    """Return True where stderr is a terminal, in the one process of a run that speaks."""
    return sys.stderr.isatty() and leads()


def bar(items: Iterable[T], what: str, *, total: int | None = None) -> Iterable[T]:
    """Yield the items with a bar on stderr where someone watches."""
    return track(
        items, description=what, total=total, transient=True, console=Console(stderr=True), disable=not watched()
    )


class Bar(pl.Callback):
    """A bar for each epoch and each validation, gone when the line of the epoch is written."""

    def __init__(self) -> None:
        self.progress: Progress | None = None

    def _begin(self, what: str, total: float) -> None:
        self._end()
        # Lines of the run go to stdout, wherever it leads: rich must not take them along to stderr.
        self.progress = Progress(console=Console(stderr=True), transient=True, redirect_stdout=False)
        self.progress.add_task(what, total=total)
        self.progress.start()

    def _advance(self) -> None:
        if self.progress is not None:
            self.progress.advance(self.progress.task_ids[0])

    def _end(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Open the epoch's bar, also in the middle of it."""
        if self.progress is None:
            self._begin(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}", trainer.num_training_batches)

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """A batch more."""
        if self.progress is not None:
            done = trainer.fit_loop.batch_idx + 1
            self.progress.update(self.progress.task_ids[0], completed=done)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the validation's bar."""
        self._begin("validating", sum(trainer.num_val_batches))

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """A batch more."""
        self._advance()

    def on_validation_end(self, *args: Any, **kwargs: Any) -> None:
        """Close it."""
        self._end()

    def on_train_epoch_end(self, *args: Any, **kwargs: Any) -> None:
        """Close it where nothing is validated."""
        self._end()

    def on_exception(self, *args: Any, **kwargs: Any) -> None:
        """Leave the terminal in order."""
        self._end()
