"""What a run says of itself before it begins and when it is done, for a person; the log is for machines."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..models import ARCHITECTURES, default_options
from ..preprocess import Preprocess
from . import recipe as recipes

Tell = Callable[[str], None]
OPTIONS = recipes.OPTIONS
SIZES = ("encoder", "variant", "depth", "width", "init_filters")  # the options that say how large a network is
BEST = (
    "auc",
    "dice",
    "ap",
    "froc",
    "top1",
    "loss",
)  # by which of a task's metrics epochs are told apart, the first it has
MOST_NAMES = 12


def begin(tell: Tell, recipe: recipes.Recipe, task: Any, data: Any, run: Path, device: object) -> None:
    """Tell in three lines the data, the network, the run."""
    tell(f"data: {_images(data)}; {_classes(data)}; {_input(_rule(task, data))}")
    tell(f"network: {_network(task)} on {device}, {_origin(recipe, task)}")
    settings = recipe.settings
    tell(
        f"run: {recipe.name}, {_count(settings.epochs, 'epoch')}, {settings.precision}, "
        f"seed {settings.seed}, in {run}; the last epoch is kept, not the best"
    )


def end(tell: Tell, run: Path, task: Any, data: Any) -> None:
    """Tell which epoch is kept and which was the best, and the next command."""
    file = run / "log.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    if line := kept(rows):
        tell(line)
    result = shlex.quote(str(run / "model.safetensors"))
    whole = _rule(task, data).modality in ("CT", "MR")
    step = f"predict {result} SCAN --out results" if whole else f"train finetune-classify --data my.csv --init {result}"
    tell(f"Next: svd-hub {step}")


def kept(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return which epoch of a log is kept and which was the best; "" where nothing was evaluated.

    Epochs are numbered as in the log, from 0.
    """
    name = next((f"val/{metric}" for metric in BEST if any(f"val/{metric}" in row for row in rows)), "")
    if not name or name not in rows[-1]:
        return ""
    sign = -1 if name == "val/loss" else 1
    best = max((row for row in rows if name in row), key=lambda row: sign * row[name])
    last = f"kept: the last epoch, {rows[-1]['epoch']}, {name} {rows[-1][name]:.4f}"
    if best[name] == rows[-1][name]:
        return f"{last}; none was better"
    return f"{last}; the best was epoch {best['epoch']}, {best[name]:.4f}"


# ---- the lines -----------------------------------------------------------------------------------------------------


def _images(data: Any) -> str:
    """Return how many images there are in training and evaluation, and of how many patients where that is known."""
    if hasattr(data, "counts"):
        return ", ".join(
            f"{split} {_count(images, 'image')}" + (f" of {_count(patients, 'patient')}" if patients else "")
            for split, (images, patients) in data.counts().items()
        )
    train, val = (len(getattr(found, "cases", found)) for found in (data.train_set, data.val_set))
    return f"train {_count(train, 'image')}, val {_count(val, 'image')}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _classes(data: Any) -> str:
    names = list(data.class_names())
    return f"{len(names)} classes" + (f" ({', '.join(names)})" if 0 < len(names) <= MOST_NAMES else "")


def _rule(task: Any, data: Any) -> Preprocess:
    return Preprocess(**data.preprocess(mean=task.mean, std=task.std))


def _input(rule: Preprocess) -> str:
    """Return what one input is; networks that take any size say the least, which is a patch in segmentation."""
    sides = "x".join(map(str, rule.size or rule.minimum))
    size = f"input {sides} voxels" if rule.size else f"patches {sides} voxels" if max(rule.minimum) > 1 else "any size"
    spacing = f", {'x'.join(f'{mm:g}' for mm in rule.spacing)} mm" if rule.spacing else ""
    return f"{size}, {rule.modality}{spacing}"


def _network(task: Any) -> str:
    """Return the architecture, what says its size, and the number of its parameters."""
    name, options = made(task)
    options = {**(default_options(name) if name in ARCHITECTURES else {}), **options}
    inner = options.get("encoder")
    if inner in ARCHITECTURES:
        options |= {**default_options(inner), **(options.get("encoder_options") or {})} | {"encoder": inner}
    sizes = ", ".join(f"{key} {options[key]}" for key in SIZES if key in options)
    tensors = list(task.network.parameters())
    megabytes = sum(tensor.nbytes for tensor in tensors) / 1e6
    count = _count(sum(tensor.numel() for tensor in tensors), "parameter")
    return f"{name}{f' ({sizes})' if sizes else ''}, {count} ({megabytes:.1f} MB),"


def _origin(recipe: recipes.Recipe, task: Any) -> str:
    init = task.config.init
    if init == "none":
        usual = default_options(name) if (name := made(task)[0]) in ARCHITECTURES else {}
        key = next((key for key in ("encoder_options", "width") if key in usual), "")
        key += ".width" if key == "encoder_options" else ""
        return "random weights" + (f"; --set {OPTIONS}{key}=16 makes a smaller one" if key else "")
    return f"from {init}; the same network from random weights: {shlex.join(scratch(recipe, task))}"


def made(task: Any) -> tuple[str, dict[str, Any]]:
    """Return the architecture of a task's network and the options it was built with."""
    entry = getattr(task.network, "entry", None)
    options = getattr(task.network, "options", task.config.options)
    return entry.architecture if entry else task.config.architecture, dict(options)


def scratch(recipe: recipes.Recipe, task: Any) -> list[str]:
    """Return the arguments that, added to the command, train the same network from random weights."""
    name, options = made(task)
    given, filled = recipe.config.task.init_args.network, ("num_classes",)  # by the data
    if name != given.architecture:
        wanted = {key: value for key, value in options.items() if key not in filled}
        found = {"architecture": name, "options": wanted}
        return ["--init", "none", *(f"--set={OPTIONS.split('options')[0]}{k}={_text(v)}" for k, v in found.items())]
    usual = {**(default_options(name) if name in ARCHITECTURES else {}), **given.options}
    other = {k: v for k, v in options.items() if k not in filled and _text(v) != _text(usual.get(k))}
    return ["--init", "none", *(f"--set={OPTIONS}{key}={_text(value)}" for key, value in other.items())]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
