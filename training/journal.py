"""What a run tells of its epochs: `log.jsonl`, and of it made `log.csv`, TensorBoard's events and `curves.png`."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint

from . import curves, events
from .saving import appending, replacing, write_text

Report = Callable[[str], None]
Row = Mapping[str, Any]


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Return the rows of a `log.jsonl`, [] where there is none yet."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def as_csv(rows: Sequence[Row]) -> str:
    """Return a log as CSV; a cell is empty where an epoch has no such value."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


class Journal(Checkpoint):
    """Writes a row an epoch; after a resume, those of epochs that are run again go first, from all four files.

    A Checkpoint by its place: Lightning calls those behind the task's own end of the epoch, and then the saver.

    Args:
        run: the run folder; its `run.json` says when the run began.
        report: is given each row as JSON.
    """

    def __init__(self, run: Path, *, report: Report) -> None:
        self.file, self.report, self.clock = run / "log.jsonl", report, 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock, also in the middle of an epoch, and take out what will be written again."""
        self.clock = time.monotonic()
        if trainer.is_global_zero and (rows := read_rows(self.file)):
            self._write([row for row in rows if row["epoch"] < trainer.current_epoch])

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock of the epoch."""
        self.clock = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the row of this epoch."""
        every = trainer.check_val_every_n_epoch or 1
        seen = (trainer.current_epoch + 1) % every == 0  # else val/ is still that of an epoch before
        metrics = sorted(trainer.callback_metrics.items())  # asked for by all processes: their mean is taken here
        if not trainer.is_global_zero:
            return
        row = {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "seconds": round(time.monotonic() - self.clock, 1),
            **{k: round(float(v), 6) for k, v in metrics if seen or k[:4] != "val/"},
        }
        self._write([*read_rows(self.file), row])
        self.report(json.dumps(row))

    def _write(self, rows: Sequence[Row]) -> None:
        """Write all forms; the record itself comes last, so that it is never ahead of what is made of it."""
        write_text(self.file.with_name("log.csv"), as_csv(rows))
        with replacing(self.file.with_name("curves.png")) as file:
            file.write(curves.draw(rows))
        started = json.loads(self.file.with_name("run.json").read_text())["started"]
        begun = datetime.fromisoformat(started).timestamp()
        _extend(self.file.with_name(events.NAME), events.encode(rows, begun=begun))
        write_text(self.file, "".join(json.dumps(row) + "\n" for row in rows))


def _extend(path: Path, content: bytes) -> None:
    """Make `content` what a file holds: by appending, where it begins so, because TensorBoard keeps it open to follow.

    Half of a record at the end of it, as a kill leaves it, is no harm: readers wait for the rest, and this mends it.
    """
    before = path.read_bytes() if path.is_file() else b""
    if before and content.startswith(before):
        with appending(path) as file:
            file.write(content[len(before) :])
    else:
        with replacing(path) as file:
            file.write(content)
