"""What may be done with a release: the terms of its data, and the licence that it cannot shake off."""

from __future__ import annotations

import fnmatch
import tomllib
from dataclasses import dataclass, replace
from importlib import resources

from ...catalog import NOT_STATED, all_entries, all_licences
from ...errors import OptionError
from .finished import Finished


@dataclass(frozen=True, kw_only=True)
class Told:
    """What the publisher says of a release and no file knows; None = what the recipe, its data or its start say.

    Attributes:
        summary: in one line, what these weights are.
        dataset: what they were trained on.
        data_licence: its terms.
        citation: of the data or the work.
        licence: of the weights, an SPDX name.
        notes: what a user should know, a sentence each: limits above all.
    """

    summary: str | None = None
    dataset: str | None = None
    data_licence: str | None = None
    citation: str | None = None
    licence: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Data:
    """What a run was trained on; `licence` "not stated" where nobody said, `stated`: did anybody say what it is?"""

    name: str
    licence: str = NOT_STATED
    url: str = ""
    citation: str = ""
    stated: bool = True


def data_of(run: Finished, told: Told) -> Data:
    """Return what a run was trained on: what the publisher says, over what is known of the shipped recipes' data."""
    found = next((data for match, data in _known() if any(_fits(run, pattern) for pattern in match)), None)
    if found is None or told.dataset is not None:  # other data have other terms
        name = told.dataset or f"data of the publisher's own, read by {run.data_class}"
        found = Data(name=name, stated=told.dataset is not None and told.data_licence is not None)
    if told.data_licence is not None:
        found = replace(found, licence=told.data_licence)
    return found if told.citation is None else replace(found, citation=told.citation)


def data_before(run: Finished) -> Data | None:
    """Return what the weights that a run began with were trained on, None where no shipped recipe says it."""
    entry = all_entries().get(run.init)
    recipe = entry.recipe if entry else ""
    for match, data in _known() if recipe else ():
        patterns = [pattern.partition(":")[2] for pattern in match]
        if any(pattern != "*" and fnmatch.fnmatchcase(recipe, pattern) for pattern in patterns):
            return data
    return None


def _known() -> list[tuple[list[str], Data]]:
    text = resources.files(__package__).joinpath("data.toml").read_text(encoding="utf-8")
    return [(row.pop("match"), Data(**row)) for row in tomllib.loads(text)["data"]]


def _fits(run: Finished, pattern: str) -> bool:
    return fnmatch.fnmatchcase(f"{run.data_class}:{run.recipe.name}", pattern)


@dataclass(frozen=True, kw_only=True)
class Terms:
    """The licence of a release. `rehost`: may others pass it on, and may it lie where everybody gets it?"""

    licence: str
    url: str
    rehost: bool


def terms_of(run: Finished, told: Told) -> Terms:
    """Return under which terms a run's weights may be published: those of the weights that it began with, if any.

    Raises:
        OptionError: a licence was asked for that these do not allow.
    """
    start = run.record.get("licence")  # there only where the run began with weights
    asked, known = told.licence, all_licences().get(str(start))
    # a publisher's earlier run from scratch is his own: nobody said what it is trained on, and he did not yet
    others = run.init in all_entries() or bool(run.record.get("trained_on"))
    bound = (start == NOT_STATED and others) or (known is not None and known.consent)
    if bound and asked not in (None, start):
        why = "have no licence that was stated" if start == NOT_STATED else f"are under {start}"
        raise OptionError(
            f"--licence {asked} is not allowed: the run began with weights of {run.init}, which {why}; allowed: "
            f"{start!r}. Next: leave it out, or train from other weights (--init)"
        )
    licence = asked or start or NOT_STATED
    url = str(run.record.get("licence_url", "")) if licence == start else ""
    terms = all_licences().get(licence)
    return Terms(
        licence=licence,
        url=url or (terms.url if terms else ""),
        rehost=licence != NOT_STATED and not (terms is not None and terms.consent),
    )
