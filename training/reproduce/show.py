"""A comparison for people: a table with its notes, by rich; and for programs: plain data."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.table import Table
from rich.text import Text

from .comparison import Cell, Comparison, Line
from .paper import PaperMetric

ABSENT = "-"
WIDE = 3  # up to so many metrics with a number of ours, each shows its difference; beyond, the first alone


def render(comparison: Comparison) -> list[Table | Text]:
    """Return what `svd-hub reproduce` prints, one below the other; a text is a line, however long."""
    table = comparison.table
    parts: list[Table | Text] = [Text(f"{table.place}: {table.title}", style="bold")]
    if comparison.lines:
        parts += [_table(comparison), Text(_legend(comparison), style="dim")]
    parts += [Text(), Text(f"here: {table.here}")]
    parts += [Text(f"note: {note}", style="yellow") for note in comparison.notes]
    if table.known:
        parts += [Text(), Text("what does not fit together in the paper and its code:", style="bold")]
        parts += [Text(f"- {known.text} [{known.source}]") for known in table.known]
    if comparison.commands:
        parts += [Text(), Text("the runs that are missing:", style="bold")]
        parts += map(Text, comparison.commands)
    return parts


def as_data(comparison: Comparison) -> dict[str, Any]:
    """Return the same as dictionaries and lists, for JSON: no nan, which JSON does not have."""
    table = comparison.table
    return {
        "table": table.name,
        "place": table.place,
        "title": table.title,
        "here": table.here,
        "lines": [
            {**asdict(line), "cells": {key: _cell_data(cell) for key, cell in line.cells.items()}}
            for line in comparison.lines
        ],
        "notes": list(comparison.notes),
        "known": [asdict(known) for known in table.known],
        "commands": list(comparison.commands),
    }


def _cell_data(cell: Cell) -> dict[str, Any]:
    here = None if cell.here is None else asdict(cell.here)
    if here is not None and cell.here is not None and cell.here.count == 1:
        here["sd"] = None
    return {**asdict(cell), "here": here, "difference": cell.difference}


def _with_ours(comparison: Comparison) -> list[PaperMetric]:
    return [m for m in comparison.table.metrics if any(line.cells[m.key].here for line in comparison.lines)]


def _table(comparison: Comparison) -> Table:
    ours = _with_ours(comparison)
    differing = ours if len(ours) <= WIDE else ours[:1]
    trained = any(line.runs for line in comparison.lines)
    table = Table(box=None, pad_edge=False)
    table.add_column("", overflow="fold")
    if trained:
        table.add_column("recipe", overflow="fold")
        table.add_column("seeds", justify="right")
    for metric in comparison.table.metrics:
        columns = (["here"] if metric in ours else []) + ["paper"] + (["difference"] if metric in differing else [])
        for number, word in enumerate(columns):
            table.add_column(f"{metric.label}\n{word}" if number == 0 else f"\n{word}", justify="right", no_wrap=True)
    led = any(line.lead for line in comparison.lines)
    if led:
        table.add_column("lead\n[95 %]", justify="right", no_wrap=True)
    if trained:
        table.add_column("p", justify="right")
    for line in comparison.lines:
        cells = [line.name, *([line.detail, _seeds(line)] if trained else [])]
        for metric in comparison.table.metrics:
            cell = line.cells[metric.key]
            cells += [_ours(cell)] if metric in ours else []
            cells.append(_number(cell.paper, cell.paper_sd))
            if metric in differing:
                cells.append(ABSENT if cell.difference is None else f"{cell.difference:+.2f}")
        cells += [_interval(line)] if led else []
        cells += [ABSENT if line.p is None else f"{line.p:.3g}"] if trained else []
        table.add_row(*map(Text, cells))
    return table


def _ours(cell: Cell) -> str:
    if cell.here is None:
        return ABSENT
    return _number(cell.here.mean, cell.here.sd if cell.here.count > 1 else None)


def _number(value: float | None, sd: float | None) -> str:
    if value is None:
        return ABSENT
    return f"{value:.2f}" if sd is None else f"{value:.2f} +- {sd:.2f}"


def _interval(line: Line) -> str:
    found = line.lead
    return ABSENT if found is None else f"{found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"


def _seeds(line: Line) -> str:
    if not line.runs:
        return ABSENT
    folds = line.runs / len(line.seeds)
    return str(len(line.seeds)) + (f" x {folds:g} splits" if folds > 1 else "")


def _legend(comparison: Comparison) -> str:
    words = [f"{ABSENT} = not recorded, or not run"]
    trained = any(line.runs for line in comparison.lines)
    if trained:
        words.append("here = last epoch, mean +- standard deviation between seeds")
    if leads := [line.lead for line in comparison.lines if line.lead]:
        words.append(
            "lead = by how much the paper's own arm of that recipe is above this one on the same cases, in AUC or in "
            "Dice by case, seeds averaged, with the interval of "
            f"{leads[0].resamples:,} draws of patients: the primary test"
        )
    if trained:
        words.append(
            "p = independent t-test over seeds between the two, as the paper does: it says nothing of other patients"
        )
    return "; ".join(words)
