"""`results.csv`: a row for each input of a run, with what the network said of it."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any


def columns(task: str, classes: Sequence[str]) -> list[str]:
    """Return the names of a task's own columns; `ml_` of the background there is none."""
    if task == "classification":
        return ["best", *(f"p_{name}" for name in classes)]
    if task == "segmentation":
        return [f"ml_{name}" for name in classes[1:]]
    return ["findings", "best_class", "best_score"]


def values(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return column -> value of the facts of one result, as `result.json` has them."""
    if facts["task"] == "classification":
        return {"best": facts["best"], **{f"p_{name}": share for name, share in facts["probabilities"].items()}}
    if facts["task"] == "segmentation":
        return {f"ml_{row['name']}": row["ml"] for row in facts["classes"] if "ml" in row}
    rows = facts["findings"]
    best = {"best_class": rows[0]["class"], "best_score": rows[0]["score"]} if rows else {}
    return {"findings": len(rows), **best}


def as_csv(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Return rows as CSV; what a row lacks is empty."""
    file = io.StringIO()
    table = csv.DictWriter(file, names, restval="", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return file.getvalue().encode("utf-8", "backslashreplace")
