"""What the paper prints, as typed data read from `paper.toml`."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from ...errors import SvdHubError, nearest

Start = tuple[str, str]  # a recipe, and what its network starts from


@dataclass(frozen=True, kw_only=True)
class PaperMetric:
    """A column. `log` is its name in a run's log, "" where runs have none; times `scale` it is in the paper's unit."""

    key: str
    label: str
    log: str = ""
    scale: float = 1.0


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """A row.

    Attributes:
        name: of the arm.
        values, sd: what the paper prints, by the key of the metric; what is absent was not recorded.
        starts: the runs that are this row.
        network: architecture and options that are counted; {} = nothing is.
        ours: the paper's own arm, that the others are tested against.
    """

    name: str
    values: Mapping[str, float] = field(default_factory=dict)
    sd: Mapping[str, float] = field(default_factory=dict)
    starts: tuple[Start, ...] = ()
    network: Mapping[str, Any] = field(default_factory=dict)
    ours: bool = False


@dataclass(frozen=True, kw_only=True)
class Known:
    """Something that does not fit together, and where that is seen."""

    text: str
    source: str


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """A table or figure of the paper.

    Attributes:
        here: how what is run here differs.
        seeds: how many runs the commands ask for.
        along: a setting of the recipes that the figure's axis is, "" where it has none; arms of one row differ in it.
        points: its values.
    """

    name: str
    place: str
    title: str
    here: str
    seeds: int = 5
    along: str = ""
    points: tuple[float, ...] = ()
    metrics: tuple[PaperMetric, ...] = ()
    rows: tuple[PaperRow, ...] = ()
    known: tuple[Known, ...] = ()

    @property
    def recipes(self) -> tuple[str, ...]:
        """The recipes whose runs belong here."""
        return tuple(dict.fromkeys(recipe for row in self.rows for recipe, _ in row.starts))


@functools.cache
def _tables() -> dict[str, PaperTable]:
    text = resources.files(__package__).joinpath("paper.toml").read_text(encoding="utf-8")
    return {name: _table(name, data) for name, data in tomllib.loads(text)["tables"].items()}


def _table(name: str, data: dict[str, Any]) -> PaperTable:
    rows = [{**row, "starts": tuple(tuple(pair) for pair in row.pop("starts", ()))} for row in data.pop("rows", ())]
    return PaperTable(
        name=name,
        metrics=tuple(PaperMetric(**metric) for metric in data.pop("metrics", ())),
        rows=tuple(PaperRow(**row) for row in rows),
        known=tuple(Known(**known) for known in data.pop("known", ())),
        points=tuple(data.pop("points", ())),
        **data,
    )


def read_paper(name: str) -> PaperTable:
    """Return a table of the paper: table2 ... table7, fig4.

    Raises:
        SvdHubError: no such table.
    """
    tables = _tables()
    if name not in tables:
        raise SvdHubError(
            f"no table {name!r} to reproduce; nearest: {nearest(name, tables)}; all: {', '.join(tables)}; "
            "of a recipe: --tier smoke, mini or full"
        )
    return tables[name]
