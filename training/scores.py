"""What the last evaluation of a run gave each case: `scores.csv`, for intervals between patients and paired tests."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint

from .saving import write_text


class CaseScores(Checkpoint):
    """Writes columns case, patient and the task's own (label and score; Dice of each organ) behind the last epoch.

    Only where the data name their cases (`scored_cases()`) and the task keeps what it found (`scores`). A Checkpoint by
    its place: Lightning calls those behind the task's own end of the epoch.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the file, whole, where this was the last epoch."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if trainer.current_epoch + 1 != trainer.max_epochs or not trainer.is_global_zero:
            return
        cases = data.scored_cases() if hasattr(data, "scored_cases") else ()
        rows: list[Mapping[str, float]] = getattr(pl_module, "scores", [])
        if not cases or len(cases) != len(rows):
            return
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["case", "patient", *rows[0]])
        for case, row in zip(cases, rows, strict=True):
            table.writerow([*case, *(f"{value:.6g}" for value in row.values())])
        write_text(self.file, text.getvalue())


def read_scores(file: Path) -> dict[str, list[str]]:
    """Return the columns of a `scores.csv`."""
    with file.open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    return {name: [row[name] for row in rows] for name in (rows[0] if rows else {})}
