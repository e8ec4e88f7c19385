"""A release in words for the terminal, and as data for programs."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...catalog import NOT_STATED, all_entries
from .folder import ENTRY
from .release import Release


def lines(made: Release, *, to: Path | None, repo: str | None, dry_run: bool) -> Iterator[str]:
    """Yield what was written where, what is to be said of it, and the next step."""
    entry, place = made.entry, f"{repo} on the Hugging Face Hub" if repo else str(to)
    yield f"{entry.name} {'would be' if dry_run else 'is'} in {place}:"
    width = max(len(file.name) for file in made.files)
    for file in made.files:
        yield f"  {file.name:<{width}}  {file.size:>12,} bytes  sha256 {file.sha256}"
    for metric in entry.metrics:
        yield f"  {metric.name} {metric.value:g} on {metric.dataset}, {metric.split}"
    for note in (*made.notes, *_unsaid(made)):
        yield f"  {note}"
    if dry_run:
        yield from ("", made.card.rstrip(), "")
    yield f"Next: {_next(made, to=to, repo=repo, dry_run=dry_run)}"


def _unsaid(made: Release) -> Iterator[str]:
    """Yield what the publisher alone can say, and did not."""
    if made.entry.licence == NOT_STATED:
        yield "no licence is stated, so nobody may pass it on: --licence NAME, where you may give one"
    if not made.data_known:
        yield "what it was trained on, and under which terms, is not stated: --dataset TEXT --data-licence TEXT"


def _next(made: Release, *, to: Path | None, repo: str | None, dry_run: bool) -> str:
    name, kind = made.entry.name, made.entry.source.kind
    if dry_run:
        return "the same command without --dry-run"
    if kind == "bundled":
        plan = f" in the place of [entry.{name}]" if name in all_entries() else ""
        return f"put what follows into svd_hub/catalog.toml{plan}"
    if kind == "mirror":
        catalog, mirror = (shlex.quote(str(path)) for path in (f"{to}/{ENTRY}", to))
        return f"SVD_HUB_CATALOG={catalog} SVD_HUB_MIRROR={mirror} svd-hub info {name}"
    return f"save what follows as {ENTRY} (it is in {repo}, too), then SVD_HUB_CATALOG={ENTRY} svd-hub info {name}"


def as_data(made: Release) -> dict[str, Any]:
    """Return a release as JSON values."""
    entry = dataclasses.asdict(made.entry)
    entry["preprocess"], entry["inference"] = entry.pop("preprocess_data"), entry.pop("inference_data")
    del entry["overlay"]  # a folder of this machine
    return {
        "name": made.entry.name,
        "files": [dataclasses.asdict(file) for file in made.files],
        "moved_by_half_precision": made.far,
        "notes": list(made.notes),
        "entry": entry,
        "toml": made.text,
        "card": made.card,
    }
