"""`run.json`: what a run was made with and of, so that it can be made again. No path, no host, no person."""

from __future__ import annotations

import functools
import json
import os
import platform
import warnings
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..errors import SvdHubError
from . import recipe as recipes
from . import tree
from .saving import write_text

# Whatever a number of a run can depend on: the loop, the maths, and what reads and resamples the data.
LIBRARIES = (
    "torch", "pytorch-lightning", "torchmetrics", "jsonargparse", "monai", "numpy", "scipy", "safetensors",
    "pillow", "pyarrow", "nibabel", "SimpleITK", "pydicom", "pycocotools",
)  # fmt: skip
CODE = ("git", "versions")  # of the facts: what another checkout or environment changes


def versions() -> dict[str, str]:
    """Return the versions that a run depends on, as pip sees them."""
    found = {"python": platform.python_version(), "svd-hub": __version__}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    if torch.version.cuda:
        found |= {"cuda": torch.version.cuda, "cudnn": str(torch.backends.cudnn.version())}
    return found


@functools.cache
def git_state() -> dict[str, Any] | None:
    """Return commit and dirty of the checkout that holds this code; None where it is no checkout."""
    found = tree.present()
    return None if found is None else {"commit": found.commit, "dirty": bool(found.changed)}


def machine() -> dict[str, Any]:
    """Return the hardware that trains."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "processor": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device,
    }


def seeds(recipe: recipes.Recipe) -> dict[str, int]:
    """Return every seed of the recipe by its key: `run.seed`, and those of splits."""
    names = {key: value for key, value in recipe.config.items() if key.rpartition(".")[2].endswith("seed")}
    return {key: value for key, value in sorted(names.items()) if isinstance(value, int)}


def record(recipe: recipes.Recipe, data: Any, file: Path) -> dict[str, Any]:
    """Write `run.json`, or see that the data are still those it names; return what stands in it.

    A run that goes on with other code or libraries than it began with says so there, under `resumed`: a warning tells
    which, because the bits of a library's next release may be others.

    Raises:
        SvdHubError: other data.
    """
    now: dict[str, Any] = {"git": git_state(), "versions": versions()}
    now = {key: value for key, value in now.items() if value is not None}
    fingerprint = json.loads(json.dumps(data.fingerprint()))
    stamp = datetime.now(UTC).isoformat(timespec="seconds")
    if not file.is_file():
        facts = {
            "recipe": recipe.name,
            "started": stamp,
            **now,
            "seeds": seeds(recipe),
            "data": fingerprint,
            "machine": machine(),
        }
        write_text(file, json.dumps(facts, indent=1))
        return facts
    facts = json.loads(file.read_text())
    if facts["data"] != fingerprint:
        raise SvdHubError(
            f"the data are not those that {file} names, so the run cannot go on as it began. "
            "Next: give the folder it began with (--data FOLDER), or start a new run"
        )
    last = {key: facts.get("resumed", [facts])[-1].get(key, facts.get(key)) for key in CODE}
    if changed := {key: now.get(key) for key in CODE if now.get(key) != last[key]}:
        _tell(last, changed)
        facts["resumed"] = [*facts.get("resumed", []), {"at": stamp, **changed}]
        write_text(file, json.dumps(facts, indent=1))
    return facts


def _tell(before: dict[str, Any], now: dict[str, Any]) -> None:
    had, have = before["versions"] or {}, now.get("versions") or {}
    others = [
        f"{name} {had[name]}, now {have.get(name, 'none')}" for name in had if have and have.get(name) != had[name]
    ]
    if now.get("git"):
        others.append(f"the code of commit {_named(before['git'])}, now {_named(now['git'])}")
    if others:
        warnings.warn(
            f"the run began with {'; '.join(others)}: it goes on, and its bits may be others than without the break",
            stacklevel=4,
        )


def _named(state: dict[str, Any] | None) -> str:
    return f"{state['commit'][:12]}{' with changes' if state['dirty'] else ''}" if state else "nobody knows"
