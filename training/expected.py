"""What a run of a recipe is to give, in three tiers, and whether it did.

`smoke` is seconds on miniature data, `mini` minutes on real data and two cores, `full` the whole. A figure is here only
with who saw it: this project, or whoever published it. What nobody has run to its end has none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import OptionError, SvdHubError

TIERS = ("smoke", "mini", "full")
TierName = Literal["smoke", "mini", "full"]
Rows = Sequence[Mapping[str, Any]]  # of a log: a row an epoch


@dataclass(frozen=True, kw_only=True)
class Tier:
    """One tier of a recipe.

    Attributes:
        metric: its name in the log (train/loss, val/auc), or test/NAME for the test split, which is evaluated then.
        measured: who saw `centre`: "here", or "published" by the authors; "never" = nobody here, there is none.
        centre, tolerance: the mean over seeds lies in centre - tolerance ... centre + tolerance.
        least: or the mean is this or more.
        falls: or the last epoch has less than this share of the first one's.
        seeds: of the runs.
        hardware: on which it was seen.
        hours: of one run there; an estimate where it was not measured here.
        source: where a published centre is from.
        set: keys of the recipe that make this tier of it, nested as they are there, or dotted as in `--set`.
    """

    metric: str
    measured: Literal["here", "published", "never"] = "here"
    centre: float | None = None
    tolerance: float | None = None
    least: float | None = None
    falls: float | None = None
    seeds: tuple[int, ...] = (0,)
    hardware: str = ""
    hours: float | None = None
    source: str = ""
    set: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        bounds = sum(bound is not None for bound in (self.centre, self.least, self.falls))
        told = f"expected {self.metric}, measured={self.measured!r}"
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise OptionError(f"{told}: seeds={list(self.seeds)} are not allowed; allowed: one or more, each once")
        if self.measured == "here" and (bounds != 1 or (self.centre is None) != (self.tolerance is None)):
            raise OptionError(f"{told}: allowed: centre and tolerance, or least, or falls; and one of the three")
        if self.measured == "published" and (self.centre is None or bounds != 1 or not self.source):
            raise OptionError(f"{told}: needed: centre and source, and no other bound")
        if self.measured == "never" and bounds:
            raise OptionError(f"{told}: a figure that nobody has seen is not allowed; allowed: none")
        if self.measured != "here" and self.tolerance is not None:
            raise OptionError(f"{told}: tolerance={self.tolerance} is not allowed before it was run here")

    def overrides(self) -> dict[str, Any]:
        """Return `set` by dotted keys, as `recipe.read` takes them."""
        return leaves(self.set)

    @property
    def allowed(self) -> str:
        """The range in words; "" where there is none that decides."""
        if self.measured != "here":
            return ""
        if self.centre is not None and self.tolerance is not None:
            low, high = self.centre - self.tolerance, self.centre + self.tolerance
            return f"{low:g} to {high:g}"
        return f"{self.least:g} or more" if self.least is not None else f"below {self.falls:g}"

    def value(self, rows: Rows) -> float:
        """Return what is held against the range: the metric of the last row of a log, or its share of the first one's.

        Raises:
            SvdHubError: the log has no such metric.
        """
        if not rows or self.metric not in rows[-1]:
            found = ", ".join(sorted(key for key in rows[-1] if "/" in key)) if rows else "no epoch"
            raise SvdHubError(f"the log has no {self.metric}; found: {found}. Next: correct the recipe's `expected`")
        last = float(rows[-1][self.metric])
        if self.falls is None:
            return last
        first = float(rows[0][self.metric])
        return last / first if first > 0 else math.inf

    def passed(self, value: float) -> bool | None:
        """Return whether the mean over seeds is in the range; None where there is none that decides."""
        if self.measured != "here":
            return None
        if self.centre is not None and self.tolerance is not None:
            return abs(value - self.centre) <= self.tolerance
        return value >= self.least if self.least is not None else value < (self.falls or 0.0)


@dataclass(frozen=True, kw_only=True)
class Expected:
    """The tiers of a recipe; None = it does not state it."""

    smoke: Tier | None = None
    mini: Tier | None = None
    full: Tier | None = None

    def tier(self, name: TierName) -> Tier:
        """Return a tier.

        Raises:
            SvdHubError: the recipe does not state it.
        """
        if name not in TIERS:
            raise OptionError(f"tier={name!r} is not allowed; allowed: {', '.join(TIERS)}")
        tiers = {tier: getattr(self, tier) for tier in TIERS}
        found: Tier | None = tiers[name]
        if found is None:
            there = ", ".join(tier for tier, one in tiers.items() if one is not None) or "none"
            raise SvdHubError(f"the recipe states no tier {name!r}; it states: {there}")
        return found


def leaves(table: Mapping[str, Any], name: str = "") -> dict[str, Any]:
    """Return the leaves of nested tables by dotted names; lists and empty tables are leaves."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        place = f"{name}.{key}" if name else str(key)
        found |= leaves(value, place) if isinstance(value, Mapping) and value else {place: value}
    return found
