"""`svd-hub prepare DATASET SRC DST`: a public data set as it is downloaded becomes what the recipes read.

`job` is the way there, the same for all: in parallel, resumable after a kill, every file with its hash, and a report of
what was dropped and why. One file beside it for each data set.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ...errors import OptionError, check_choice
from .job import Job as Job
from .job import Report as Report
from .job import prepare as prepare

PLACES = {
    "imagenet": ("imagenet", "ImageNet"),
    "lidc": ("lidc", "Lidc"),
    "lits": ("nifti", "NiftiPairs"),
    "decathlon": ("nifti", "NiftiPairs"),
}


def job_of(dataset: str, source: Path, options: Mapping[str, str] | None = None) -> Job:
    """Return the job of a data set.

    Args:
        dataset: one of `PLACES`.
        source: the folder as it was downloaded.
        options: fields of the job, as text: {"short_side": "256"}.

    Raises:
        OptionError: no such data set or option, or a value of another type.
    """
    check_choice("dataset", dataset, PLACES)
    place, name = PLACES[dataset]
    kind: Any = getattr(importlib.import_module(f".{place}", __name__), name)
    given: dict[str, Any] = {"form": dataset} if place == "nifti" else {}
    allowed: dict[str, Any] = {
        item.name: type(item.default) for item in fields(kind) if item.name not in ("source", "form")
    }
    for name, text in (options or {}).items():
        if name not in allowed:
            raise OptionError(f"{dataset} has no option {name!r}; allowed: {', '.join(allowed) or 'none'}")
        try:
            given[name] = allowed[name](text)
        except ValueError as error:
            raise OptionError(f"{name}={text!r} is not allowed; allowed: {allowed[name].__name__}") from error
    made: Job = kind(source=source, **given)
    return made
