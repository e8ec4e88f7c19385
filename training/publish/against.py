"""A run beside the shipped recipe whose name it has: what was set otherwise, and whether it came out as expected."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from ...errors import SvdHubError
from .. import recipe as recipes
from .finished import Finished, public

FREE = ("name", "summary", "expected", "run.seed", "run.threads", "run.checkpoint", "data.init_args.workers")


def remarks(run: Finished) -> tuple[str, ...]:
    """Return what a user should know of a run that is not quite the recipe it is named by, a sentence each."""
    return (*_settings(run), *_outcome(run))


def _settings(run: Finished) -> Iterator[str]:
    try:
        shipped = recipes.read(str(recipes.recipe_path(run.recipe.name)))
    except SvdHubError:
        yield f"the recipe {run.recipe.name!r} is the publisher's own: recipe.yaml is all there is of it"
        return
    here, there = _flat(run.settings), _flat(public(shipped))
    keys = [key for key in here | there if not key.startswith(FREE) and here.get(key) != there.get(key)]
    if keys:
        told = [f"{key}={here.get(key, 'not set')} (there {there.get(key, 'not set')})" for key in sorted(keys)]
        yield f"it differs from the shipped recipe {run.recipe.name!r} in {', '.join(told)}"


def _outcome(run: Finished) -> Iterator[str]:
    tier = run.expected
    found, centre, tolerance, least = (
        run.row.get(str(tier.get("metric"))),
        *(tier.get(key) for key in ("centre", "tolerance", "least")),
    )
    if found is None:
        return
    told = f"this run, with {float(found):g}, is outside"
    if centre is not None and tolerance is not None and abs(float(found) - centre) > tolerance:
        yield f"the recipe expects {tier['metric']} {centre:g} within {tolerance:g}: {told}"
    if least is not None and float(found) < least:
        yield f"the recipe expects {tier['metric']} of {least:g} or more: {told}"


def _flat(value: Any, name: str = "") -> dict[str, str]:
    if isinstance(value, Mapping) and value:
        leaves: dict[str, str] = {}
        for key, one in value.items():
            leaves |= _flat(one, f"{name}.{key}" if name else str(key))
        return leaves
    return {name: yaml.safe_dump(value, default_flow_style=True).partition("\n")[0].strip()}
