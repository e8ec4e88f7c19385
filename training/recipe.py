"""A recipe: one YAML file that says everything about a run. Parsed with types; unknown keys are refused.

Top level: `name`, `summary`, `run` (`RunSettings`), `task` and `data` (a class path with its arguments), `expected`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

import pytorch_lightning as pl
import yaml
from jsonargparse import ArgumentParser, Namespace

from ..errors import OptionError, SvdHubError
from .expected import Expected
from .keys import check_keys, readable
from .shelf import recipe_path

OPTIONS = "task.init_args.network.options."  # an architecture's own, of which the parser knows nothing


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How long, how precise and how often saved.

    Attributes:
        seed: of everything: initialisation, order, augmentation, dropout.
        accumulate: batches whose gradients make one step.
        clip: the gradient's largest norm, 0 = not clipped.
        validate_every: epochs between two validations; the last epoch is one of them.
        checkpoint_steps: a checkpoint every so many steps (besides epochs' ends): what a kill can cost.
        checkpoint_epochs: a checkpoint at the end of every so many epochs, and of the last.
        threads: of torch, 0 = as the machine says.
        devices: processes on each machine, each with a GPU of its own where there are GPUs. A step then takes `devices`
            times `nodes` times the data's batch size. It is the step of one process with that batch size where the loss
            is a mean over images: cross-entropy is; Dice over the batch, balanced classes and drawn anchors are each
            process's own, and so are batch norms without `sync_norms`.
        nodes: machines.
        strategy: "ddp", or "fsdp" (weights, gradients and optimiser shared out: for networks that fill a GPU); "auto" =
            ddp where there are several processes.
        sync_norms: batch norms take their statistics over all processes; GPUs only.
        ema: the decay of a running mean of the weights, 0.999 or so, which is then evaluated and published; 0 = none.
        compile: torch.compile of the network: faster steps after a minute, and other last bits.
    """

    epochs: int
    seed: int = 0
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    accumulate: int = 1
    clip: float = 0.0
    validate_every: int = 1
    checkpoint_steps: int = 200
    checkpoint_epochs: int = 1
    threads: int = 0
    devices: int = 1
    nodes: int = 1
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    sync_norms: bool = False
    ema: float = 0.0
    compile: bool = False

    def __post_init__(self) -> None:
        ones = ("epochs", "accumulate", "validate_every", "checkpoint_steps", "checkpoint_epochs", "devices", "nodes")
        for name, value in (dict.fromkeys(ones, 1) | dict.fromkeys(("seed", "clip", "threads", "ema"), 0)).items():
            if getattr(self, name) < value:
                raise OptionError(f"run.{name}={getattr(self, name)} is not allowed; allowed: {value} or more")
        if self.epochs % self.validate_every:
            told = f"run.validate_every={self.validate_every} with run.epochs={self.epochs}"
            raise OptionError(f"{told} is not allowed; allowed: a divisor of it")
        if self.ema >= 1:
            raise OptionError(f"run.ema={self.ema} is not allowed; allowed: 0 (none), or a decay below 1, as 0.999")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A parsed recipe: the made objects and the resolved text that goes into the run folder."""

    name: str
    summary: str
    settings: RunSettings
    expected: Expected
    config: Namespace
    text: str
    parser: ArgumentParser

    def make(self) -> tuple[pl.LightningModule, pl.LightningDataModule]:
        """Return the task, made after seeding, and the data.

        Data that say by `fills` what a task needs of them ({"network.options.num_classes": 3}) are asked for what the
        recipe leaves open.
        """
        data = self.make_data()
        config = self.config.clone()
        del config["data"]
        for key, value in data.fills().items() if hasattr(data, "fills") else ():
            _fill(config.task.init_args, key.split("."), value)
        pl.seed_everything(self.settings.seed, verbose=False)
        return self._instantiate(config).task, data

    def make_data(self) -> Any:
        """Return the data module alone."""
        config = self.config.clone()
        del config["task"]
        return self._instantiate(config).data

    def _instantiate(self, config: Namespace) -> Any:
        try:
            return self.parser.instantiate(config)
        except ValueError as error:
            raise SvdHubError(f"recipe {self.name}: {readable(error)}") from error


def _fill(place: Any, keys: list[str], value: Any) -> None:
    """Put a value into nested tables, unless there is one."""
    *path, last = keys
    for key in path:
        place = place[key]
    if place.get(last) is None:
        place[last] = value


def read(name: str, overrides: dict[str, Any] | None = None) -> Recipe:
    """Return the recipe `name` with `overrides` ("run.epochs": 1, "data.init_args.folder": ...) laid over.

    Raises:
        SvdHubError: an unknown recipe, key or value; the message is the parser's, without what it tried besides.
    """
    path = recipe_path(name)
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--name", type=str, required=True)
    parser.add_argument("--summary", type=str, default="")
    parser.add_argument("--expected", type=Expected, default=Expected())
    parser.add_class_arguments(RunSettings, "run")
    parser.add_subclass_arguments(pl.LightningModule, "task", required=True)
    parser.add_subclass_arguments(pl.LightningDataModule, "data", required=True)
    parser.link_arguments("run.seed", "data.init_args.seed")  # one seed for everything
    # data that are read as the starting point asks for have an `init`; for others this is nothing
    parser.link_arguments("task.init_args.network.init", "data.init_args.init")
    asked = dict(overrides or {})
    options = {key: asked.pop(key) for key in list(asked) if key.startswith(OPTIONS)}
    arguments = [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in asked.items()]
    try:
        config = parser.parse_path(str(path))
        check_keys(asked, config)
        if arguments:
            config = parser.parse_args(arguments, namespace=config)
        for key, value in options.items():
            _lay(config.task.init_args.network.options, key.removeprefix(OPTIONS).split("."), value)
        expected = _expected(parser, config)
    except Exception as error:
        step = f"Next: svd-hub train {name} --show prints its keys and values"
        raise SvdHubError(f"recipe {name}: {readable(error, asked)}. {step}") from error
    return Recipe(
        name=config.name,
        summary=config.summary,
        settings=RunSettings(**config.run.as_dict()),
        expected=expected,
        config=config,
        text=parser.dump(config, skip_unset=False),  # a null may stand for another default
        parser=parser,
    )


def _expected(parser: ArgumentParser, config: Namespace) -> Expected:
    """Return what the recipe expects, with no task and no data made."""
    config = config.clone()
    del config["task"], config["data"]
    found: Expected = parser.instantiate(config).expected
    return found


def _lay(table: Any, path: list[str], value: Any) -> None:
    """Set one value of nested tables, beside what is there; the parser would put a table of its own in their place.

    Raises:
        SvdHubError: something on the way is no table.
    """
    for name in path[:-1]:
        table = table.setdefault(name, {}) if isinstance(table, dict) else None
    if not isinstance(table, dict):
        raise SvdHubError(f"{OPTIONS}{'.'.join(path)} is not allowed: {path[-2]!r} is no table of options")
    table[path[-1]] = yaml.safe_load(value) if isinstance(value, str) else value
