"""A table of the paper beside what was counted and trained here. It decides; `show` prints."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path

from ...errors import OptionError
from ..evaluation import Estimate, MeanSd, over_seeds, t_test
from .counts import counted
from .paired import Pooled, difference, pool
from .paper import PaperMetric, PaperRow, PaperTable, read_paper
from .runs import Run, plain_init, read_runs


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
        lead: by how much the paper's own arm of this recipe exceeds it on the same cases, in AUC or in Dice by case
            and the table's unit, with the interval of the paired bootstrap over patients; None = not to be had.
        p: of the independent t-test over seeds between the two; None = not to be had.
        splits: what the runs of each seed were evaluated on.
    """

    name: str
    detail: str
    cells: Mapping[str, Cell]
    seeds: tuple[int, ...] = ()
    runs: int = 0
    lead: Estimate | None = None
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
    """Runs of one row and recipe that differ in seed and split alone; `at` is the value of the table's axis."""

    row: PaperRow
    recipe: str
    at: str = ""
    runs: list[Run] = field(default_factory=list)
    detail: str = ""

    def values(self, metric: PaperMetric) -> dict[int, float]:
        """One number for each seed: the mean over its splits."""
        found: dict[int, list[float]] = {}
        for run in self.runs:
            if metric.log in run.metrics:
                found.setdefault(run.seed, []).append(run.metrics[metric.log] * metric.scale)
        return {seed: sum(some) / len(some) for seed, some in sorted(found.items())}

    def pooled(self) -> list[Pooled]:
        """What was given to each case, one for each seed; [] where runs did not say, or where they are no folds."""
        seeds: dict[int, list[Run]] = {}
        for run in self.runs:
            seeds.setdefault(run.seed, []).append(run)
        found = [pool([run.scores for run in runs if run.scores is not None]) for runs in seeds.values()]
        whole = self.whole and all(run.scores is not None for run in self.runs)
        return [one for one in found if one is not None] if whole and None not in found else []

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
    grouped: dict[tuple[str, str, str], dict[tuple[tuple[str, str], ...], _Arm]] = {}
    for run in runs:
        row = rows.get((run.recipe, run.init)) or PaperRow(name=f"from {run.init}")
        at = run.settings.get(table.along, "")
        variants = grouped.setdefault((row.name, run.recipe, at), {})
        settings = tuple(sorted((key, value) for key, value in run.settings.items() if key != table.along))
        variants.setdefault(settings, _Arm(row, run.recipe, at)).runs.append(run)
    for variants in grouped.values():
        _tell_apart(variants)
    order = {row.name: number for number, row in enumerate(table.rows)}
    found = [arm for variants in grouped.values() for arm in variants.values()]
    return sorted(found, key=lambda arm: (order.get(arm.row.name, len(order)), arm.row.name, arm.recipe, *_place(arm)))


def _place(arm: _Arm) -> tuple[float, str]:
    """Return where an arm stands among those of its row and recipe."""
    return float(arm.at or 0), arm.detail


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
    if arm.row.network:
        counts = counted(arm.row.network)
        values |= {metric.key: [counts[metric.key] * metric.scale] for metric in table.metrics if metric.key in counts}
    own, first = _own(arm, arms), table.metrics[0]
    at = f"{table.along.rpartition('.')[2]}={arm.at}" if arm.at else ""
    return Line(
        arm.row.name,
        ", ".join(filter(None, (arm.recipe, at, arm.detail))),
        _cells(table, arm.row, values, scaled=True),
        seeds=tuple(sorted({run.seed for run in arm.runs})),
        runs=len(arm.runs),
        lead=_lead(first, own, arm) if own else None,
        p=_p_value(first, own, arm) if own else None,
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


def _own(arm: _Arm, arms: Sequence[_Arm]) -> _Arm | None:
    """Return the one arm of this recipe that is the paper's own, on the same cases; None where it is this, or none."""
    own = [other for other in arms if other.row.ours and (other.recipe, other.at) == (arm.recipe, arm.at)]
    return own[0] if len(own) == 1 and own[0] is not arm and own[0].splits == arm.splits else None


def _p_value(metric: PaperMetric, own: _Arm, arm: _Arm) -> float | None:
    """Return the t-test between two arms, if both have two seeds."""
    try:
        p = t_test(list(own.values(metric).values()), list(arm.values(metric).values())).p
    except OptionError:
        return None
    return p if math.isfinite(p) else None


def _lead(metric: PaperMetric, own: _Arm, arm: _Arm) -> Estimate | None:
    """Return the paired bootstrap of two arms in the unit of a metric, if all their runs say what each case got."""
    first, second = own.pooled(), arm.pooled()
    found = difference(first, second) if first and second else None
    if found is None:
        return None
    value, low, high = (number * metric.scale for number in (found.value, found.low, found.high))
    return replace(found, value=value, low=low, high=high)


# ---- what is to be said --------------------------------------------------------------------------------------------


def _complaints(arms: Sequence[_Arm]) -> list[str]:
    """Return what is wrong with the runs as evidence."""
    notes = []
    for recipe, at in dict.fromkeys((arm.recipe, arm.at) for arm in arms):
        if len({arm.splits for arm in arms if (arm.recipe, arm.at) == (recipe, at)}) > 1:
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
    there = {(run.recipe, run.init, run.settings.get(table.along, "")) for run in runs}
    points = [json.dumps(point) for point in table.points] or [""]
    commands = []
    for recipe in table.recipes:
        inits = [init for row in table.rows for name, init in row.starts if name == recipe]
        missing = [init for init in inits if any((recipe, plain_init(init), at) not in there for at in points)]
        if not missing:
            continue
        if not _shipped(recipe):
            commands.append(f"# {recipe} is no recipe of this version: {', '.join(missing)}")
            continue
        commands.append(_command(table, recipe, missing))
    return [*commands, f"svd-hub reproduce {table.name} --runs runs/{table.name}"] if commands else []


def _command(table: PaperTable, recipe: str, inits: Sequence[str]) -> str:
    """Return the command of a recipe with words in capitals for what changes, and their values behind it."""
    words = {"INIT": ", ".join(inits)}
    sets = f"svd-hub train {recipe} --data DIR --init INIT"
    if table.along:
        word = table.along.rpartition(".")[2].upper()
        sets += f" --set {table.along}={word}"
        words[word] = ", ".join(map(str, table.points))
    if table.seeds > 1:
        sets += " --set run.seed=SEED"
        words["SEED"] = f"0 to {table.seeds - 1}"
    run = f"runs/{table.name}/{'-'.join((recipe, *words))}"
    return f"{sets} --run {run}   # {'; '.join(f'{word}: {values}' for word, values in words.items())}"


def _shipped(recipe: str) -> bool:
    folder = resources.files(__package__.rpartition(".")[0]).joinpath("recipes")
    return folder.joinpath(f"{recipe}.yaml").is_file()
