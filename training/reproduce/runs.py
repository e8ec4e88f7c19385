"""Finished runs, read from their folders: what was trained from what, with which seed, and how it ended."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import SvdHubError
from ..expected import leaves

SCORES = "scores.csv"
INIT = "task.init_args.network.init"
# What may differ between runs of one arm: its seeds and splits, and what changes no number.
FREE = (
    *("name", "summary", "run.seed", "run.threads", "run.checkpoint_steps", INIT),
    *("data.init_args.folder", "data.init_args.seed", "data.init_args.workers"),
)
SPLITS = ("train", "val", "test")  # beginnings of the arguments of a data module that choose cases


@dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
        folder: where it lies.
        recipe: its name.
        init: what the network started from: "none", an entry, or the name of the run whose network it was.
        seed: of the run.
        split: the settings that say which cases are evaluated, as text; "" = the recipe's data have one split.
        settings: all others, flat.
        metrics: of the last epoch, by their names in the log.
        scores: what its last evaluation gave each case; None = it did not say.
    """

    folder: Path
    recipe: str
    init: str
    seed: int
    split: str
    settings: Mapping[str, str]
    metrics: Mapping[str, float]
    scores: Path | None = None


def read_runs(folder: Path) -> tuple[list[Run], list[Path]]:
    """Return the finished runs at any depth under a folder, and the folders of runs that are not finished.

    A finished run has its network, or at least the scores of its last evaluation: a study may keep those alone.

    Raises:
        SvdHubError: there is no run at all, or one that is damaged.
    """
    if not folder.is_dir():
        raise SvdHubError(f"--runs {folder} is no folder. Next: the folder that holds run folders")
    places = sorted(file.parent for file in folder.rglob("run.json") if (file.parent / "recipe.yaml").is_file())
    if not places:
        raise SvdHubError(f"no run is in {folder}: no run.json with a recipe.yaml beside it, at any depth")
    finished = [place for place in places if any((place / name).is_file() for name in ("model.safetensors", SCORES))]
    return [_run(place) for place in finished], [place for place in places if place not in finished]


def _run(folder: Path) -> Run:
    import yaml

    try:
        recipe = json.loads((folder / "run.json").read_text())["recipe"]
        settings = _flat(yaml.safe_load((folder / "recipe.yaml").read_text()))
        row = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])
        seed = int(settings["run.seed"])
    except (OSError, ValueError, LookupError, yaml.YAMLError) as error:
        told = " ".join(str(error).split())  # the parser's is several lines
        raise SvdHubError(
            f"the run {folder} cannot be read: {type(error).__name__}: {told}. Next: take it out of the folder"
        ) from error
    return Run(
        folder=folder,
        recipe=recipe,
        init=plain_init(settings.get(INIT, "none")),
        seed=seed,
        split=", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in settings.items() if _evaluated(key)),
        settings={k: v for k, v in settings.items() if k not in FREE and not _chooses_cases(k)},
        metrics={key: float(value) for key, value in row.items() if key.startswith(("train/", "val/", "test/"))},
        scores=folder / SCORES if (folder / SCORES).is_file() else None,
    )


def _flat(table: dict[str, Any]) -> dict[str, str]:
    """Return the settings of a recipe by dotted names, each as one text."""
    found = {key: value for key, value in leaves(table).items() if not key.startswith("expected.")}
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in found.items()}


def _chooses_cases(key: str) -> bool:
    return key.startswith("data.init_args.") and key.split(".")[2].startswith(SPLITS)


def _evaluated(key: str) -> bool:
    return _chooses_cases(key) and not key.split(".")[2].startswith("train")


def plain_init(init: str) -> str:
    """Return what a network starts from in one word: for `runs/NAME/model.safetensors`, NAME.

    Of a run of several seeds, `runs/NAME/seed0/model.safetensors`, it is NAME, too.
    """
    path = Path(init)
    if path.suffix != ".safetensors":
        return init
    if path.name != "model.safetensors":
        return path.stem
    folder = path.parent
    return folder.parent.name if re.fullmatch(r"seed\d+", folder.name) else folder.name
