"""The commands that training adds to `svd-hub`. Everything heavy is imported inside them."""

from __future__ import annotations

import dataclasses
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
from .shelf import recipe_path, summaries

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
    init: Annotated[str | None, typer.Option(help="Start from this entry or .safetensors file, or 'none'.")] = None,
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
    show: Annotated[bool, typer.Option("--show", help="Print the recipe with every key and train nothing.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="List the shipped recipes.")] = False,
) -> None:
    """Train by a recipe; Ctrl-C stops it, --resume goes on.

    What is kept is the last epoch, in RUN/model.safetensors; which epoch was the best is told at the end. stdout has a
    JSON line an epoch and then the result's path, stderr what is for a person. On several GPUs: --devices N, or
    torchrun and srun with as many processes. The options stand for keys of the recipe; --set changes any other.
    """
    if list_ or not (recipe or resume or run):
        _list_recipes()
        return
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
    if resume is None:  # what needs no library is told without one
        recipe_path(recipe)
        if data is not None and not data.exists():
            raise SvdHubError(f"--data {data} does not exist. Next: check the path")
    if show:
        from .recipe import read

        typer.echo(read(recipe or str(Path(resume or "") / "recipe.yaml"), overrides).text, nl=False)
        return
    from . import engine
    from .ranks import leads

    folder = resume or run or Path("runs") / Path(recipe).stem
    try:
        made = engine.train(
            recipe,
            run=folder,
            overrides=overrides,
            resume=resume is not None,
            report=typer.echo,
            tell=functools.partial(typer.echo, err=True),
        )
    except KeyboardInterrupt:
        if not leads():  # of several processes, one speaks
            raise typer.Exit(0) from None
        typer.echo(f"stopped. Next: svd-hub train --resume {folder}", err=True)
        raise typer.Exit(130) from None
    if leads():
        typer.echo(made)


def _list_recipes() -> None:
    found = summaries()
    width = max(map(len, found))
    for name, summary in found.items():
        typer.echo(f"{name:<{width}}  {summary}")
    typer.echo(f"{len(found)} recipes. Next: svd-hub train RECIPE --data DATA; its keys: svd-hub train RECIPE --show")


def evaluate(
    name: Annotated[str, typer.Argument(help="An entry, a run folder, or a .safetensors file with --recipe.")],
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
    many = "" if result["examples"] == 1 else "s"
    typer.echo(f"{result['name']} on {result['examples']} image{many}, split {result['split']} of {result['recipe']}")
    for metric, value in result["metrics"].items():
        card = result["card"].get(metric)
        typer.echo(
            f"{metric:>8} {value:.4f}"
            + (f"   card {card:.4f}, difference {round(value - card, 4) + 0.0:+.4f}" if card is not None else "")
        )


def publish(
    run: Annotated[Path, typer.Argument(help="A finished run folder.")],
    name: Annotated[str, typer.Argument(help="The entry's name.")],
    to: Annotated[Path | None, typer.Option(help="A folder: a mirror that SVD_HUB_MIRROR serves.")] = None,
    repo: Annotated[str | None, typer.Option(help="Or a repository of the Hugging Face Hub, ORG/NAME.")] = None,
    private: Annotated[bool, typer.Option(help="A new repository is seen by its owners alone.")] = False,
    dtype: Annotated[str, typer.Option(help="fp16 or fp32, of the weights on the disk.")] = "fp16",
    metric: Annotated[list[str] | None, typer.Option(help="Of the log; repeat. Default all of evaluation.")] = None,
    summary: Annotated[str | None, typer.Option(help="What these weights are, in one line.")] = None,
    dataset: Annotated[str | None, typer.Option(help="What they were trained on.")] = None,
    data_licence: Annotated[str | None, typer.Option(help="The terms of the data.")] = None,
    citation: Annotated[str | None, typer.Option(help="Whom to cite for the data.")] = None,
    licence: Annotated[str | None, typer.Option(help="Of the weights, an SPDX name.")] = None,
    note: Annotated[list[str] | None, typer.Option(help="A limit that a user should know; repeat.")] = None,
    allow_dirty: Annotated[bool, typer.Option(help="Publish what no commit holds; the card says so.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Show what would be written, card and all; keep nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Turn a finished run into a release: weights, golden output, log, recipe, card, hashes.

    What is printed is the catalogue's table (svd-hub publish ... >> svd_hub/catalog.toml); the rest goes to stderr.
    """
    from . import publish as publishing

    told = publishing.Told(
        summary=summary,
        dataset=dataset,
        data_licence=data_licence,
        citation=citation,
        licence=licence,
        notes=tuple(note or ()),
    )
    made = publishing.publish_run(
        run,
        name,
        to=to,
        repo=repo,
        private=private,
        dtype=dtype,
        metrics=metric or (),
        told=told,
        allow_dirty=allow_dirty,
        dry_run=dry_run,
    )
    if as_json:
        typer.echo(json.dumps(publishing.as_data(made), indent=1))
        return
    for line in publishing.lines(made, to=to, repo=repo, dry_run=dry_run):
        typer.echo(line, err=True)
    typer.echo(made.text, nl=False)


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
    what: Annotated[str, typer.Argument(help="table2 ... table7 or fig4 of the paper; or a recipe, with --tier.")],
    runs: Annotated[
        Path | None, typer.Option(help="Of a table: a folder of finished runs; each is taken to its row.")
    ] = None,
    tier: Annotated[str | None, typer.Option(help="Of a recipe: smoke (seconds), mini (minutes) or full.")] = None,
    data: Data = None,
    run: Annotated[
        Path | None, typer.Option(help="Of a recipe: the run folder; default runs/RECIPE-TIER, of full runs/RECIPE.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show a table of the paper beside what is counted and trained here; or train a recipe, and judge what comes out.

    A recipe that ends outside of the range it states ends with exit code 1.
    """
    if tier is not None:
        if runs is not None:
            raise typer.BadParameter("--runs is of a table, --tier of a recipe")
        _reproduce_recipe(what, tier, data, run, as_json=as_json)
        return
    if data is not None or run is not None:
        raise typer.BadParameter("--data and --run are of a recipe: give --tier smoke, mini or full")
    from .reproduce import compare
    from .reproduce.show import as_data, render

    found = compare(what, runs)
    if as_json:
        typer.echo(json.dumps(as_data(found), indent=1))
        return
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    for part in render(found):
        console.print(part, soft_wrap=isinstance(part, Text))  # a command is never cut in two


def _reproduce_recipe(name: str, tier: Any, data: Path | None, run: Path | None, *, as_json: bool) -> None:
    from .reproduce.tiers import reproduce as do

    stem = Path(name).stem
    folder = run or Path("runs") / (stem if tier == "full" else f"{stem}-{tier}")
    try:
        found = do(name, tier, run=folder, data=data, report=functools.partial(typer.echo, err=True))
    except KeyboardInterrupt:
        typer.echo("stopped. Next: the same command goes on", err=True)
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(json.dumps({**dataclasses.asdict(found), "line": found.line}, indent=1))
    if found.passed is False:
        raise SvdHubError(found.line)
    if not as_json:
        typer.echo(found.line)


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
