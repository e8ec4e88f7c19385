"""A table of the paper beside what was counted and trained here. It decides; `show` prints."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from ...errors import OptionError
from ..evaluation import MeanSd, over_seeds, t_test
from .counts import counted
from .paper import PaperMetric, PaperRow, PaperTable, read_paper
from .runs import Run, plain_init, read_runs

SEEDS = 5  # what the paper's tables have, and a command here asks for


@dataclass(frozen=True)
class Cell:
    """One number: ours, over seeds or counted, and the paper's, both in the paper's unit; None = there is none."""

    here: MeanSd | None = None
    paper: float | None = None
    paper_sd: float | None = None

    @property
    def difference(self) -> float | None:
        """Ours less the paper's, both as printed: with two decimals."""
        return None if self.here is None or self.paper is None else round(round(self.here.mean, 2) - self.paper, 2)


@dataclass(frozen=True)
class Line:
    """An arm.

    Attributes:
        name: the paper's row, or what an arm without one starts from.
        detail: the recipe, and settings in which arms of one row differ.
        cells: by the key of the metric.
        seeds: of the runs; empty where nothing was run.
        runs: how many there are: seeds times folds.
        p: of the independent t-test over seeds against the paper's own arm of this recipe; None = not to be had.
        splits: what the runs of each seed were evaluated on.
    """

    name: str
    detail: str
    cells: Mapping[str, Cell]
    seeds: tuple[int, ...] = ()
    runs: int = 0
    p: float | None = None
    splits: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """A table, its lines, what must be said beside them, and the commands that make what is missing."""

    table: PaperTable
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()


@dataclass
class _Arm:
    """Runs of one row and recipe that differ in seed and split alone."""

    row: PaperRow
    recipe: str
    runs: list[Run] = field(default_factory=list)
    detail: str = ""

    def values(self, metric: PaperMetric) -> dict[int, float]:
        """One number for each seed: the mean over its splits."""
        found: dict[int, list[float]] = {}
        for run in self.runs:
            if metric.log in run.metrics:
                found.setdefault(run.seed, []).append(run.metrics[metric.log] * metric.scale)
        return {seed: sum(some) / len(some) for seed, some in sorted(found.items())}

    @property
    def splits(self) -> tuple[str, ...]:
        """What was evaluated, over all seeds."""
        return tuple(sorted({run.split for run in self.runs}))

    @property
    def whole(self) -> bool:
        """Has each seed one run on each split?"""
        seeds = {run.seed for run in self.runs}
        each = [sorted(run.split for run in self.runs if run.seed == seed) for seed in seeds]
        return all(splits == list(self.splits) for splits in each)


def compare(name: str, runs: Path | None = None) -> Comparison:
    """Return a table of the paper beside what is counted, and what the runs under a folder say.

    Args:
        name: table2 ... table7, fig4.
        runs: a folder with run folders at any depth.

    Raises:
        SvdHubError: no such table, no run there, a run that cannot be read.
    """
    table = read_paper(name)
    found, unfinished = read_runs(runs) if runs is not None else ([], [])
    here = [run for run in found if run.recipe in table.recipes]
    arms = _arms(table, here)
    lines = _lines(table, arms)
    notes = [*_complaints(arms), *_left_out(table, found, here, unfinished)]
    return Comparison(table, tuple(lines), tuple(notes), tuple(_commands(table, here)))


# ---- arms ----------------------------------------------------------------------------------------------------------


def _arms(table: PaperTable, runs: Iterable[Run]) -> list[_Arm]:
    """Return the arms in the order of the table; those without a row of the paper come last."""
    rows = {(recipe, plain_init(init)): row for row in table.rows for recipe, init in row.starts}
    grouped: dict[tuple[str, str], dict[tuple[tuple[str, str], ...], _Arm]] = {}
    for run in runs:
        row = rows.get((run.recipe, run.init)) or PaperRow(name=f"from {run.init}")
        variants = grouped.setdefault((row.name, run.recipe), {})
        settings = tuple(sorted(run.settings.items()))
        variants.setdefault(settings, _Arm(row, run.recipe)).runs.append(run)
    for variants in grouped.values():
        _tell_apart(variants)
    order = {row.name: number for number, row in enumerate(table.rows)}
    found = [arm for variants in grouped.values() for arm in variants.values()]
    return sorted(found, key=lambda arm: (order.get(arm.row.name, len(order)), arm.row.name, arm.recipe, arm.detail))


def _tell_apart(variants: Mapping[tuple[tuple[str, str], ...], _Arm]) -> None:
    """Name each variant of an arm by the settings in which they differ."""
    each = [dict(settings) for settings in variants]
    keys = sorted({key for one in each for key in one if any(one.get(key) != other.get(key) for other in each)})
    for arm, settings in zip(variants.values(), each, strict=True):
        arm.detail = ", ".join(f"{key.rpartition('.')[2]}={settings.get(key, 'none')}" for key in keys)


# ---- lines ---------------------------------------------------------------------------------------------------------


def _lines(table: PaperTable, arms: Sequence[_Arm]) -> list[Line]:
    lines = []
    for row in table.rows:
        own = [arm for arm in arms if arm.row is row]
        if not own:
            values = counted(row.network) if row.network else {}
            lines.append(Line(row.name, "", _cells(table, row, {key: [value] for key, value in values.items()})))
        lines += [_line(table, arm, arms) for arm in own]
    return lines + [_line(table, arm, arms) for arm in arms if arm.row not in table.rows]


def _line(table: PaperTable, arm: _Arm, arms: Sequence[_Arm]) -> Line:
    values = {metric.key: list(arm.values(metric).values()) for metric in table.metrics}
    return Line(
        arm.row.name,
        ", ".join(filter(None, (arm.recipe, arm.detail))),
        _cells(table, arm.row, values, scaled=True),
        seeds=tuple(sorted({run.seed for run in arm.runs})),
        runs=len(arm.runs),
        p=_p_value(table.metrics[0], arm, arms),
        splits=arm.splits,
    )


def _cells(
    table: PaperTable, row: PaperRow, values: Mapping[str, Sequence[float]], *, scaled: bool = False
) -> dict[str, Cell]:
    cells = {}
    for metric in table.metrics:
        some = [value * (1 if scaled else metric.scale) for value in values.get(metric.key, ())]
        finite = [value for value in some if math.isfinite(value)]
        here = over_seeds(finite) if finite else None
        cells[metric.key] = Cell(here, row.values.get(metric.key), row.sd.get(metric.key))
    return cells


def _p_value(metric: PaperMetric, arm: _Arm, arms: Sequence[_Arm]) -> float | None:
    """Return the t-test against the one arm of this recipe that is the paper's own, if both have two seeds."""
    own = [other for other in arms if other.row.ours and other.recipe == arm.recipe]
    if len(own) != 1 or own[0] is arm or own[0].splits != arm.splits:
        return None
    try:
        p = t_test(list(own[0].values(metric).values()), list(arm.values(metric).values())).p
    except OptionError:
        return None
    return p if math.isfinite(p) else None


# ---- what is to be said --------------------------------------------------------------------------------------------


def _complaints(arms: Sequence[_Arm]) -> list[str]:
    """Return what is wrong with the runs as evidence."""
    notes = []
    for recipe in dict.fromkeys(arm.recipe for arm in arms):
        if len({arm.splits for arm in arms if arm.recipe == recipe}) > 1:
            notes.append(f"arms of {recipe} were evaluated on different cases; between such there is no p")
    for arm in arms:
        if not arm.whole:
            notes.append(
                f"{arm.row.name}, {arm.recipe}: not every seed has one run on each split; means are of what is there"
            )
    return notes


def _left_out(table: PaperTable, found: Sequence[Run], here: Sequence[Run], unfinished: Sequence[Path]) -> list[str]:
    notes = []
    if others := sorted({run.recipe for run in found if run not in here}):
        notes.append(f"{len(found) - len(here)} runs are of recipes that are not in {table.place}: {', '.join(others)}")
    if unfinished:
        notes.append(f"{len(unfinished)} runs are not finished. Next: svd-hub train --resume {unfinished[0]}")
    return notes


def _commands(table: PaperTable, runs: Sequence[Run]) -> list[str]:
    """Return the commands that make the rows of which there is no run."""
    there = {(run.recipe, run.init) for run in runs}
    commands = []
    for recipe in table.recipes:
        starts = [start for row in table.rows for start in row.starts if start[0] == recipe]
        missing = [init for _, init in starts if (recipe, plain_init(init)) not in there]
        if not missing:
            continue
        if not _shipped(recipe):
            commands.append(f"# {recipe} is no recipe of this version: {', '.join(missing)}")
            continue
        run = f"runs/{table.name}/{recipe}-INIT-SEED"
        commands.append(
            f"svd-hub train {recipe} --data DIR --init INIT --set run.seed=SEED --run {run}"
            f"   # INIT: {', '.join(missing)}; SEED: 0 to {SEEDS - 1}"
        )
    return [*commands, f"svd-hub reproduce {table.name} --runs runs/{table.name}"] if commands else []


def _shipped(recipe: str) -> bool:
    folder = resources.files(__package__.rpartition(".")[0]).joinpath("recipes")
    return folder.joinpath(f"{recipe}.yaml").is_file()
