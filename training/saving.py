"""What a run writes, so that it can be stopped at any moment: whole files, and checkpoints that say their place."""

from __future__ import annotations

import io
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins import TorchCheckpointIO

from ..errors import SvdHubError
from .seeding import ResumableData


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file beside `path` that takes its place when it is whole and on the disk; after an error, it is gone.

    Raises:
        OSError: the disk is full, or what else keeps from writing; its `filename` is the file's, which a write's own
            error does not say.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def appending(path: Path) -> Iterator[IO[bytes]]:
    """Yield the end of a file; what is written there is on the disk behind this. Raises as `replacing` does."""
    try:
        with path.open("ab") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with replacing(path) as file:
        file.write(text.encode())


@contextmanager
def telling_what_cannot_be_written(run: Path) -> Iterator[None]:
    """Turn what a full or read-only disk answers to a file of the run into one line with the next step.

    Raises:
        SvdHubError: a file of the run folder could not be written.
    """
    try:
        yield
    except OSError as error:
        file = error.filename
        if not isinstance(file, str) or not Path(file).absolute().is_relative_to(run.absolute()):
            raise  # another file: of the data
        begun = (run / "recipe.yaml").is_file()
        raise SvdHubError(
            f"{file} cannot be written: {error.strerror}. What the run wrote before is whole. Next: repair that, then "
            + (f"svd-hub train --resume {run}" if begun else "the same command")
        ) from error


class WholeFiles(TorchCheckpointIO):
    """Writes checkpoints beside their place.

    Lightning's own writing goes through the system's folder for temporary files; from there to another file system
    a move is a copy, and a kill leaves the half of it under the name of the last good checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        buffer = io.BytesIO()  # torch.save hides what a full disk answers
        torch.save(checkpoint, buffer)
        with replacing(Path(path)) as file:
            file.write(buffer.getbuffer())


class Stop:
    """Whether Ctrl-C or SIGTERM asked the run to stop; the second of them interrupts at once."""

    def __init__(self) -> None:
        self.asked = threading.Event()

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.asked.is_set():
            raise KeyboardInterrupt
        self.asked.set()

    def listen(self) -> dict[int, Any]:
        """Take the signals from here on; return the handlers that were there. Only a main thread can."""
        if threading.current_thread() is not threading.main_thread():
            return {}
        return {number: signal.signal(number, self._take) for number in (signal.SIGINT, signal.SIGTERM)}

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals, and put the handlers before back."""
        before = self.listen()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Saver(Checkpoint):
    """Keeps one checkpoint: every `steps` steps, at the end of every `epochs` epochs, and when a stop is asked for.

    Never at an epoch's last batch, whose validation is still to come: Lightning would take that epoch for done and
    leave its metrics out. Never between two steps of accumulated gradients, which no checkpoint holds.
    """

    def __init__(self, file: Path, *, steps: int, epochs: int, stop: Stop) -> None:
        self.file, self.steps, self.epochs, self.stop = file, steps, epochs, stop

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen alone: Lightning's handler of SIGTERM would talk to the other processes in the middle of a step."""
        self.stop.listen()

    def _save(self, trainer: pl.Trainer, epoch: int, batches: int) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, ResumableData):
            data.place = (epoch, batches)
        trainer.save_checkpoint(self.file)

    def _stopping(self, trainer: pl.Trainer) -> bool:
        return bool(trainer.strategy.reduce_boolean_decision(self.stop.asked.is_set(), all=False))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where it is due, and stop where that is asked for."""
        if trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        stopping = self._stopping(trainer)
        if stopping or trainer.global_step % self.steps == 0:
            self._save(trainer, trainer.current_epoch, batch_idx + 1)
        if stopping:
            raise SystemExit

    def on_validation_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Stop at once where that is asked for: the last checkpoint is at most `steps` steps old."""
        if self._stopping(trainer):
            raise SystemExit

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the finished epoch."""
        done, stopping = trainer.current_epoch + 1, self._stopping(trainer)
        if stopping or done % self.epochs == 0 or done == trainer.max_epochs:
            self._save(trainer, done, 0)
        if stopping:
            raise SystemExit
