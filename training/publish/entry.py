"""The catalogue's table of a release, as TOML that can be appended to catalog.toml or used at once as an overlay."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ...adapt import plain
from ...catalog import NOT_STATED, Entry, all_entries
from ...errors import OptionError
from ...inference import Inference
from ...models import default_options
from ...preprocess import Preprocess
from ...skeleton import shapes, skeleton
from .finished import Finished
from .terms import Data, Terms, Told
from .toml import header, written

NAME = r"[a-z0-9][a-z0-9_-]{0,99}(@[1-9][0-9]*)?"


def check_name(name: str) -> None:
    """Raise where a release cannot have this name.

    Raises:
        OptionError: odd characters, or the catalogue has weights of this name already.
    """
    if not re.fullmatch(NAME, name):
        raise OptionError(
            f"the name {name!r} is not allowed; allowed: lower-case letters, digits, _ and -, up to 100 of them, and "
            "@2, @3, ... behind a later release. Next: another name"
        )
    entries = all_entries()
    if name in entries and entries[name].status != "recipe":  # a plan waits for its weights
        raise OptionError(
            f"{name!r} is in the catalogue (status {entries[name].status}), and what was released never changes. "
            f"Next: {_next_free(name)!r}, or another name"
        )


def _next_free(name: str) -> str:
    base, _, number = name.partition("@")
    count = int(number or 1) + 1
    while f"{base}@{count}" in all_entries():
        count += 1
    return f"{base}@{count}"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What an entry says beside its source."""

    name: str
    run: Finished
    metrics: Mapping[str, float]
    data: Data
    terms: Terms
    told: Told

    @property
    def trained_on(self) -> str:
        """All data that the weights have seen, in a sentence."""
        before = str(self.run.record.get("trained_on", ""))
        licence = f"licence {NOT_STATED}" if self.data.licence == NOT_STATED else self.data.licence
        return f"{self.data.name} ({licence}){f', from {before}' if before else ''}"


def table_of(facts: Facts, source: Mapping[str, Any], notes: Sequence[str]) -> dict[str, Any]:
    """Return the keys of the entry of a release; see `svd_hub.catalog.Entry`."""
    run, record = facts.run, facts.run.record
    made_by = {"dataset": facts.data.name, "split": run.split, "made_by": run.recipe.name}
    table = {
        "summary": facts.told.summary or run.recipe.summary or f"{record['architecture']}, {run.recipe.name}",
        "architecture": record["architecture"],
        "backbone": _backbone(run),
        "parameters": _parameters(run),
        "task": record["task"],
        "outputs": _outputs(record),
        "status": "ours",
        "licence": facts.terms.licence,
        "licence_url": facts.terms.url,
        "rehost": facts.terms.rehost,
        "trained_on": facts.trained_on,
        "recipe": run.recipe.name,
        "citation": facts.data.citation,
        "notes": list(notes),
        "checked": "file",
        "checked_on": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "classes": list(record.get("classes", ())),
        "options": dict(record["options"]),
        "source": dict(source),
        "preprocess": _beside_default(Preprocess(**record["preprocess"])),
        "inference": Inference.of(record.get("inference", {}), facts.name).data(),
        "metrics": [{"name": name, "value": value, **made_by} for name, value in facts.metrics.items()],
    }
    if (plan := all_entries().get(facts.name)) is None:
        return {key: value for key, value in table.items() if value not in ("", [], {})}
    return {**{key: "" for key in ("reason", "link", "paper", "inflation") if getattr(plan, key)}, **table}


def text_of(name: str, table: Mapping[str, Any]) -> str:
    """Return the table as TOML; the arrays of `metrics` and the tables inside it come last, as in catalog.toml."""
    nested = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    lines = [header("entry", name)]
    lines += [f"{key} = {written(value)}" for key, value in table.items() if key not in (*nested, "metrics")]
    for key, value in nested.items():
        lines += [header("entry", name, key), *(f"{one} = {written(held)}" for one, held in value.items())]
    for metric in table.get("metrics", ()):
        lines += [f"[{header('entry', name, 'metrics')}]", *(f"{key} = {written(one)}" for key, one in metric.items())]
    return "\n".join(lines) + "\n"


def read_back(file: Path, facts: Facts) -> Entry:
    """Return the entry as `load` will see it: the overlay over the catalogue.

    Raises:
        OptionError: the name waits in the catalogue for another network than this one.
    """
    entry, record = all_entries(file)[facts.name], facts.run.record
    found = {"options": plain(dict(entry.options)), "preprocess": entry.preprocess, "task": entry.task}
    wanted = {
        "options": without_none(plain(dict(record["options"]))),
        "preprocess": Preprocess(**record["preprocess"]),
        "task": record["task"],
    }
    other = [key for key in wanted if wanted[key] != found[key]]
    if (plan := all_entries().get(facts.name)) is not None and not _is_planned(plan, record):
        other = ["architecture or options", *other]
    if other:
        raise OptionError(
            f"the catalogue plans {facts.name!r} as another network: {', '.join(other)} differ from the run's. Next: "
            "another name"
        )
    return entry


def _is_planned(plan: Entry, record: Mapping[str, Any]) -> bool:
    """Tell whether a run trained the network that the catalogue has a name for."""
    if plan.architecture != record["architecture"] or plan.task != record["task"]:
        return False
    here = {**default_options(plan.architecture), **record["options"]}
    return all(plain(here.get(key)) == plain(value) for key, value in plan.options.items())


def without_none(value: Any) -> Any:
    """Return tables without their empty keys, which TOML does not have."""
    if isinstance(value, Mapping):
        return {key: without_none(one) for key, one in value.items() if one is not None}
    return value


def _beside_default(rule: Preprocess) -> dict[str, Any]:
    """Return what differs from the default, and what kind of image it is."""
    given = {f.name: getattr(rule, f.name) for f in fields(rule)}
    return {f.name: given[f.name] for f in fields(rule) if f.name == "modality" or given[f.name] != f.default}


def _outputs(record: Mapping[str, Any]) -> str:
    """Return in words what the network returns."""
    names, count = list(record.get("classes", ())), record["options"].get("num_classes", 0)
    told = f": {', '.join(names)}" if names and len(names) <= 12 else ""
    if record["task"] == "detection":
        return f"boxes, scores and labels (of {count}) for each image{told}"
    shape = f"(N, {count}, D, H, W)" if record["task"] == "segmentation" else f"(N, {count})"
    return f"{shape} logits{told}"


def _parameters(run: Finished) -> int:
    network = skeleton(run.record["architecture"], run.record["options"])
    return sum(parameter.numel() for parameter in network.parameters())


def _backbone(run: Finished) -> str:
    """Return the family of the network: that of an entry whose tensors have the same shapes, else a new one."""
    architecture, options = run.record["architecture"], run.record["options"]
    mine = {key: options[key] for key in ("num_classes", "in_channels") if key in options}
    here, seen = shapes(run.tensors), set[str]()
    for entry in all_entries().values():
        if entry.architecture != architecture or entry.backbone in ("", *seen):
            continue
        seen.add(entry.backbone)
        if shapes(skeleton(architecture, {**entry.options, **mine}).state_dict()) == here:
            return entry.backbone
    inner = options.get("encoder_options", options)
    width = inner.get("width", 64)
    encoder = f"_{options['encoder']}" if "encoder" in options else ""
    return f"{architecture}{encoder}{inner.get('depth') or inner.get('variant') or ''}" + (
        f"w{width}" if width != 64 else ""
    )
