"""A finished run as it is published: what it trained, its log, its recipe without the paths of one machine."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import yaml
from torch import Tensor

from ... import checkpoint, models
from ...errors import SvdHubError, nearest
from .. import recipe as recipes

INIT = ("task", "init_args", "network", "init")
FOLDER = ("data", "init_args", "folder")
MACHINE = ("processor", "cores", "threads", "device")
SPLITS = ("train", "val", "test")  # beginnings of the arguments of a data module that choose cases


@dataclass(frozen=True, kw_only=True)
class Finished:
    """One finished run.

    Attributes:
        folder: where it lies.
        recipe: as it was resolved.
        settings: the same as plain tables, without paths of this machine.
        record: what `model.safetensors` says of its network.
        tensors: the trained network's.
        log: all lines.
        row: the last of them.
        facts: `run.json`: versions, data, machine, state of the code.
    """

    folder: Path
    recipe: recipes.Recipe
    settings: Mapping[str, Any]
    record: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    log: str
    row: Mapping[str, Any]
    facts: Mapping[str, Any]

    @property
    def data_class(self) -> str:
        """The name of the data module."""
        return str(self.settings["data"]["class_path"]).rpartition(".")[2]

    @property
    def init(self) -> str:
        """What the network started from: "none", an entry, or the run whose network it was."""
        return str(self.settings["task"]["init_args"]["network"].get("init") or "none")

    @property
    def split(self) -> str:
        """What the metrics of the log are of, in words: "val", and the settings that choose its cases."""
        given = self.settings["data"].get("init_args") or {}
        chosen = [f"{k}={_short(v)}" for k, v in given.items() if k.startswith("val") and v not in ("val", None)]
        return ", ".join(["val", *chosen])

    @property
    def expected(self) -> dict[str, Any]:
        """What the recipe expects of a whole run; {} where it says nothing. A smoke test's says nothing of weights."""
        tiers = self.settings.get("expected") or {}
        return next((dict(tiers[name]) for name in ("full", "mini") if tiers.get(name)), {})

    @property
    def data(self) -> dict[str, Any]:
        """What identifies the data; cases that are listed by name are counted."""
        told = self.facts.get("data") or {}
        named = [key for key, value in told.items() if key.startswith(SPLITS) and _lists_names(value)]
        return {**told, **{key: f"{len(told[key])} cases" for key in named}}

    @property
    def machine(self) -> dict[str, Any]:
        """What it was trained on, as far as it says nothing of whose it is."""
        told = self.facts.get("machine") or {}
        return {key: told[key] for key in MACHINE if key in told}

    @property
    def recipe_text(self) -> str:
        """The recipe as YAML, with everything that was set and no path of this machine."""
        return as_yaml(self.settings)


def as_yaml(settings: Mapping[str, Any]) -> str:
    """Return settings as the text of a recipe."""
    return yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True, width=120)


def read_finished(run: Path) -> Finished:
    """Return a finished run.

    Raises:
        SvdHubError: it is not finished, its log is another run's, it is damaged, or its network is none of this hub.
    """
    trained = run / "model.safetensors"
    if not trained.is_file():
        raise SvdHubError(f"{trained} does not exist: the run is not finished. Next: svd-hub train --resume {run}")
    recipe = recipes.read(str(run / "recipe.yaml"))
    log, row = _log(run / "log.jsonl", run)
    if row["epoch"] + 1 != recipe.settings.epochs:
        raise SvdHubError(
            f"the log of {run} ends with epoch {row['epoch']} of 0 to {recipe.settings.epochs - 1}: it is not that of "
            f"model.safetensors. Next: svd-hub train --resume {run}"
        )
    read = checkpoint.read(trained)
    record = checkpoint.unpack_metadata(read.metadata)
    architecture = record.get("architecture")
    if architecture not in models.ARCHITECTURES:
        raise SvdHubError(
            f"{trained} holds a {architecture!r}, which svd_hub.load does not build; allowed: "
            f"{', '.join(models.ARCHITECTURES)}. Next: publish a run of one of these"
        )
    if record.get("stored"):
        raise SvdHubError(
            f"{trained} holds a 2D network, which loads as what it is inflated to. Next: save that network "
            f"(svd_hub.save(svd_hub.load({str(trained)!r}), FILE)), and train it further"
        )
    return Finished(
        folder=run,
        recipe=recipe,
        settings=public(recipe),
        record=record,
        tensors=read.tensors,
        log=log,
        row=row,
        facts=_facts(run / "run.json", run),
    )


def metrics_of(run: Finished, asked: Sequence[str] = ()) -> dict[str, float]:
    """Return the metrics of the log's last line that are published, by their names without "val/".

    Args:
        run: the run.
        asked: names, with or without "val/"; none = all of evaluation, among which the recipe's `expected` has to be.

    Raises:
        SvdHubError: a metric is not in the log, or is no finite number.
    """
    measured = {key: value for key, value in run.row.items() if key.startswith(("val/", "test/"))}
    telling = [key for key in measured if not key.endswith("/loss")]  # that says nothing to others
    wanted = [name if "/" in name else f"val/{name}" for name in asked]
    expected = run.expected.get("metric")
    who = "--metric" if asked else f"the recipe {run.recipe.name} expects"
    for name in wanted or ([expected] if expected else []):
        if name not in measured:
            raise SvdHubError(
                f"{who} {name!r}, which is not in the log of {run.folder}; it has: "
                f"{', '.join(measured) or 'no metric of evaluation'}; nearest: {nearest(name, measured)}. Next: "
                f"{'--metric with one of these' if measured else 'a recipe whose data have an evaluation split'}"
            )
    if not wanted and not telling:
        raise SvdHubError(
            f"the log of {run.folder} has no metric of evaluation: nothing says what these weights are worth. Next: a "
            "recipe whose data have an evaluation split"
        )
    found = {name: float(measured[name]) for name in wanted or telling}
    if wrong := [name for name, value in found.items() if not math.isfinite(value)]:
        raise SvdHubError(
            f"{', '.join(wrong)} of the last epoch of {run.folder} is no finite number. Next: --metric with others, or "
            "look into the run"
        )
    return {name.removeprefix("val/"): value for name, value in found.items()}


def _log(file: Path, run: Path) -> tuple[str, dict[str, Any]]:
    text = file.read_text() if file.is_file() else ""
    if not text.strip():
        raise SvdHubError(f"{file} has no finished epoch. Next: svd-hub train --resume {run}")
    try:
        row = json.loads(text.splitlines()[-1])
        return text, {**row, "epoch": int(row["epoch"])}
    except (ValueError, TypeError, KeyError) as error:
        raise SvdHubError(f"{file} is damaged: {error}. Next: take the file as the run wrote it") from error


def _facts(file: Path, run: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError) as error:
        why = getattr(error, "strerror", None) or error
        raise SvdHubError(
            f"{file} cannot be read ({why}), so nothing says what {run} was trained on. Next: take a whole run folder"
        ) from error


def public(recipe: recipes.Recipe) -> dict[str, Any]:
    """Return the settings of a recipe without the paths of one machine and the names of its cases.

    The data's folder is empty; of any other path the last part stays, and a network that another run made
    (`runs/NAME/model.safetensors`) is told as NAME. Cases that the shipped recipe does not name are counted.
    """
    made = yaml.safe_load(recipe.text)
    for *path, last in (FOLDER, INIT):
        table = made
        for key in path:
            table = table.get(key) or {}
        if table.get(last):
            table[last] = None if last == "folder" else _run_name(str(table[last]))
    given = made["data"].get("init_args") or {}
    naming = [key for key, value in given.items() if _names_cases(key, value)]
    shipped = _shipped_data(recipe.name) if naming else {}
    for key in naming:
        if given[key] != shipped.get(key):
            given[key] = f"{len(given[key])} cases"
    cleaned: dict[str, Any] = _cleaned(made)
    return cleaned


def _shipped_data(name: str) -> dict[str, Any]:
    """Return the arguments of the data of a shipped recipe, {} where there is none of this name."""
    try:
        shipped = recipes.read(str(recipes.recipe_path(name)))
        return dict(yaml.safe_load(shipped.text)["data"]["init_args"])
    except (SvdHubError, KeyError, TypeError):
        return {}


def _names_cases(key: str, value: Any) -> bool:
    """Tell whether a setting lists cases by name: in a user's own data, these may be patients."""
    return key.startswith(SPLITS) and (isinstance(value, dict) or _lists_names(value))


def _lists_names(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(one, str) for one in value)


def _run_name(init: str) -> str:
    path = PurePosixPath(init.replace("\\", "/"))
    if path.suffix != ".safetensors":
        return init
    return path.parent.name if path.name == "model.safetensors" else path.stem


def _cleaned(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _cleaned(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_cleaned(one) for one in value]
    if not isinstance(value, str):
        return value
    for path in (PurePosixPath(value), PureWindowsPath(value)):
        if path.is_absolute() or value.startswith("~"):
            return path.name
    return value


def _short(value: Any) -> str:
    """Return a setting in one line; of cases by name, how many."""
    if isinstance(value, str):
        return value
    return f"{len(value)} cases" if isinstance(value, dict) else json.dumps(value)
