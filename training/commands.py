"""The commands that training adds to `svd-hub`. Everything heavy is imported inside them."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from ..errors import MissingExtraError, SvdHubError

Data = Annotated[Path | None, typer.Option(help="The data set's folder, or your own CSV (finetune-...).")]


def _pairs(items: list[str]) -> dict[str, Any]:
    wrong = [item for item in items if "=" not in item]
    if wrong:
        raise typer.BadParameter(f"{wrong[0]!r} is not KEY=VALUE, e.g. run.seed=1")
    return dict(item.split("=", 1) for item in items)


def train(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name or a YAML file.")] = "",
    data: Data = None,
    run: Annotated[Path | None, typer.Option(help="The run folder; default runs/RECIPE.")] = None,
    init: Annotated[str | None, typer.Option(help="Start from this entry, or 'none'.")] = None,
    freeze: Annotated[str | None, typer.Option(help="Keep these parts as they are: stem,layer1.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything that is drawn (run.seed).")] = None,
    epochs: Annotated[int | None, typer.Option(help="How long (run.epochs).")] = None,
    devices: Annotated[
        int | None, typer.Option(help="Processes on this machine, one a GPU where there are any (run.devices).")
    ] = None,
    compile_: Annotated[
        bool, typer.Option("--compile", help="torch.compile: faster steps after a minute (run.compile).")
    ] = False,
    override: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE of the recipe; repeat.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this run folder, to the bit.")] = None,
) -> None:
    """Train by a recipe; Ctrl-C stops it, --resume goes on.

    On several GPUs: --devices N, or torchrun and srun with as many processes. The options stand for keys of the recipe;
    --set changes any other.
    """
    short: dict[str, Any] = {
        "data.init_args.folder": data and str(data.absolute()),
        "task.init_args.network.init": init,
        "task.init_args.freeze": freeze and json.dumps([part.strip() for part in freeze.split(",")]),
        "run.seed": seed,
        "run.epochs": epochs,
        "run.devices": devices,
        "run.compile": "true" if compile_ else None,
    }
    overrides = {key: value for key, value in short.items() if value is not None}
    asked = _pairs(override or [])
    if both := sorted(set(overrides) & set(asked)):
        raise typer.BadParameter(f"{both[0]} is given twice, by its option and by --set")
    overrides |= asked
    if resume is None and not recipe:
        raise typer.BadParameter("a recipe, or --resume RUN")
    if resume is not None and (recipe or run):
        raise typer.BadParameter("--resume takes recipe and folder from the run: leave RECIPE and --run out")
    from . import engine
    from .ranks import leads

    folder = resume or run or Path("runs") / Path(recipe).stem
    try:
        made = engine.train(recipe, run=folder, overrides=overrides, resume=resume is not None, report=typer.echo)
    except KeyboardInterrupt:
        if not leads():  # of several processes, one speaks
            raise typer.Exit(0) from None
        typer.echo(f"stopped. Next: svd-hub train --resume {folder}", err=True)
        raise typer.Exit(130) from None
    if leads():
        typer.echo(made)


def evaluate(
    name: Annotated[str, typer.Argument(help="An entry, or a .safetensors file with --recipe.")],
    data: Data = None,
    recipe: Annotated[str | None, typer.Option(help="Whose data set; default the entry's own recipe.")] = None,
    override: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE of the recipe; repeat.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure an entry again on the evaluation split of its recipe, and hold it against its card."""
    from .evaluation import evaluate_entry

    result = evaluate_entry(name, data=data, recipe=recipe, settings=_pairs(override or []))
    if as_json:
        typer.echo(json.dumps(result, indent=1))
        return
    for metric, value in result["metrics"].items():
        card = result["card"].get(metric)
        typer.echo(
            f"{metric:>8} {value:.4f}"
            + (f"   card {card:.4f}, difference {value - card:+.4f}" if card is not None else "")
        )


def publish(
    run: Annotated[Path, typer.Argument(help="A finished run folder.")],
    name: Annotated[str, typer.Argument(help="The entry's name.")],
    to: Annotated[Path, typer.Option(help="The folder the release is written to.")],
) -> None:
    """Turn a finished run into a release: fp16 safetensors, golden input and output, hash and size."""
    from .release import publish_run

    typer.echo(json.dumps(publish_run(run, name, to), indent=1))


def prepare(
    dataset: Annotated[str, typer.Argument(help="imagenet, lidc, lits or decathlon.")],
    source: Annotated[Path, typer.Argument(help="The folder as it was downloaded.")],
    target: Annotated[Path, typer.Argument(help="The folder that comes out.")],
    workers: Annotated[int, typer.Option(help="Threads; 0 = as many as there are cores.")] = 0,
    override: Annotated[list[str] | None, typer.Option("--set", help="OPTION=VALUE of the data set; repeat.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make of a public data set what the recipes read; what is stopped goes on, what is finished is checked."""
    from .prepare import job_of
    from .prepare import prepare as do

    try:
        report = do(job_of(dataset, source, _pairs(override or [])), target, workers=workers)
    except KeyboardInterrupt:
        typer.echo("stopped. Next: the same command goes on", err=True)
        raise typer.Exit(130) from None
    found = {"folder": str(report.folder), "files": report.files, **report.facts, "dropped": report.dropped}
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    typer.echo(f"{report.folder} {'is whole' if report.before else 'is ready'}: {report.files} files")
    for what, fact in report.facts.items():
        typer.echo(f"  {what}: {json.dumps(fact)}")
    for why, count in report.dropped.items():
        typer.echo(f"  left out: {count}, {why}")
    if report.dropped:
        typer.echo(f"  which: {report.folder / 'dropped.csv'}")


def reproduce(
    table: Annotated[str, typer.Argument(help="table2 ... table7 or fig4 of the paper.")],
    runs: Annotated[
        Path | None, typer.Option(help="A folder of finished runs; each is taken to the row it belongs to.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show a table of the SVD-Net paper beside what is counted and trained here, and what does not fit in it."""
    from .reproduce import compare
    from .reproduce.show import as_data, render

    found = compare(table, runs)
    if as_json:
        typer.echo(json.dumps(as_data(found), indent=1))
        return
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    for part in render(found):
        console.print(part, soft_wrap=isinstance(part, Text))  # a command is never cut in two


def _needs_extra(command: Callable[..., None]) -> Callable[..., None]:
    """Name what to install where a library is missing, and what to take out where one breaks the others."""

    @functools.wraps(command)
    def wrapped(**arguments: Any) -> None:
        try:
            command(**arguments)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.startswith("svd_hub"):
                raise
            raise MissingExtraError(error.name, "train") from error
        except RuntimeError as error:  # of Lightning's import, which imports torchvision where it is installed
            if "torchvision::" not in str(error):
                raise
            raise SvdHubError(
                "torchvision is installed and has no kernels for this torch, which keeps pytorch-lightning from being "
                "imported. Next: pip uninstall torchvision (nothing of svd-hub needs it)"
            ) from error

    return wrapped


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    for command in (train, evaluate, prepare, publish, reproduce):
        app.command()(_needs_extra(command))
