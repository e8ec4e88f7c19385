"""The command `svd-hub`. It prints; the rooms behind it do not. `list` and `info` import no torch."""

from __future__ import annotations

import importlib
import json
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from . import __version__
from .catalog import Entry, all_entries, get_entry, list_entries
from .errors import SvdHubError, WeightsUnavailableError

app = typer.Typer(
    name="svd-hub",
    help="Verified pretrained 3D networks for medical images, by name.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out = Console()
err = Console(stderr=True)
# Commands of other rooms, by entry point when installed and by name in a bare checkout; this file knows neither room.
COMMANDS = {"training": "svd_hub.training.commands", "export": "svd_hub.export.commands"}

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _fact(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "status": entry.status,
        "checked": entry.checked,
        "task": entry.task,
        "architecture": entry.architecture,
        "licence": entry.licence,
        "trained_on": entry.trained_on,
        "summary": entry.summary,
    }


@app.command("list")
def list_command(
    pattern: Annotated[str, typer.Argument(help="A part of a name, or a shell pattern.")] = "*",
    task: Annotated[str | None, typer.Option(help="backbone, classification, segmentation or detection.")] = None,
    status: Annotated[str | None, typer.Option(help="ours, official, converted, derived, recipe, unavailable.")] = None,
    licence: Annotated[str | None, typer.Option(help="SPDX name, or 'not stated'.")] = None,
    as_json: Json = False,
) -> None:
    """List the entries of the catalogue."""
    names = list_entries(pattern, task=task, status=status, licence=licence)
    entries = [get_entry(name) for name in names]
    if as_json:
        typer.echo(json.dumps([_fact(e) for e in entries], indent=1))
        return
    table = Table(caption=f"{len(entries)} of {len(all_entries())} entries. Next: svd-hub info NAME", box=None)
    for column in ("name", "status", "real file opened", "task", "licence"):
        table.add_column(column, no_wrap=column == "name")
    for entry in entries:
        opened = f"yes, {entry.checked_on}" if entry.checked == "file" else "no"
        table.add_row(entry.name, entry.status, opened, entry.task, entry.licence)
    out.print(table)
    if not entries:
        raise typer.Exit(1)


@app.command()
def info(name: str, as_json: Json = False) -> None:
    """Show the card of an entry: what it is, where it comes from, its licence and its preprocessing."""
    entry = get_entry(name)
    if as_json:
        source = {k: v for k, v in vars(entry.source).items() if v not in ("", 0)}
        extra = {"options": dict(entry.options), "source": source, "preprocess": dict(entry.preprocess_data)}
        metrics = [vars(m) for m in entry.metrics]
        typer.echo(json.dumps({**_fact(entry), **extra, "metrics": metrics, "card": entry.card()}, indent=1))
    elif out.is_terminal:
        from rich.markdown import Markdown

        out.print(Markdown(entry.card()))
    else:
        typer.echo(entry.card())


@app.command()
def fetch(
    names: list[str],
    accept_licence: Annotated[bool, typer.Option(help="Consent to a licence that asks for it.")] = False,
) -> None:
    """Bring entries to this machine, verified and converted, so that later loads open no socket."""
    from .hub import load

    failed = 0
    for name in names:
        try:
            _, report = load(name, accept_licence=accept_licence, return_report=True)
            out.print(str(report), markup=False, highlight=False)
        except WeightsUnavailableError:
            raise
        except SvdHubError as error:
            failed += 1
            err.print(f"error: {error}", style="red", markup=False, highlight=False)
    if failed:
        raise typer.Exit(1)


@app.command()
def verify(
    names: Annotated[list[str] | None, typer.Argument(help="Entries; none = all that are here.")] = None,
) -> None:
    """Hash the files on this machine again. Exit code 1 where one is damaged."""
    from . import store

    results = store.verify([get_entry(n) for n in names] if names else None)
    for result in results:
        style = {"ok": "green", "absent": "dim"}.get(result.state, "red")
        out.print(f"{result.state:>10}  {result.entry}  {result.path or ''}  {result.note}", style=style, markup=False)
    if any(r.state == "damaged" for r in results) or (names and any(r.state == "absent" for r in results)):
        raise typer.Exit(1)


@app.command()
def convert(
    name: str, file: Path, to: Annotated[Path | None, typer.Option(help="Write it here instead.")] = None
) -> None:
    """Check and convert a checkpoint on disk as the one of NAME, and put it into the cache."""
    from .hub import convert_file

    out.print(str(convert_file(name, file, to=to)), markup=False, highlight=False)


@app.command()
def cache(
    clean: Annotated[bool, typer.Option(help="Remove what was downloaded; it can be fetched again.")] = False,
    name: Annotated[str | None, typer.Option(help="Only this entry.")] = None,
) -> None:
    """Show where the cache is and what it holds; with --clean, empty it."""
    from . import store

    used = store.clean(get_entry(name) if name else None) if clean else store.usage()
    for item in used:
        if name in (None, item.entry):
            out.print(f"{item.size:>14,}  {item.entry or '?'}  {item.path}", markup=False, highlight=False)
    word = "removed from" if clean else "in"
    out.print(f"{sum(i.size for i in used):>14,}  bytes {word} {store.cache_dir()}", markup=False, highlight=False)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say which versions are here, what is missing, and the exact command that installs it."""
    from .doctor import examine

    findings = examine()
    if as_json:
        typer.echo(json.dumps([vars(f) for f in findings], indent=1))
    else:
        table = Table(box=None, title=f"svd-hub {__version__}")
        for column in ("what", "found", "next"):
            table.add_column(column, overflow="fold")
        for finding in findings:
            table.add_row(
                escape(finding.what),
                escape(finding.found),
                escape(finding.next),
                style="red" if finding.broken else None,
            )
        out.print(table)
    if any(f.broken for f in findings):
        raise typer.Exit(1)


def _add_commands() -> None:
    found = {point.name: point.value for point in entry_points(group="svd_hub.commands")}
    for module in {**COMMANDS, **found}.values():
        try:
            importlib.import_module(module).register(app)
        except ModuleNotFoundError as error:
            if error.name is None or not module.startswith(error.name):
                raise


def main() -> None:
    """Run the command; errors of ours are one red paragraph and exit code 1, Ctrl-C is 130."""
    _add_commands()
    try:
        app()
    except SvdHubError as error:
        err.print(f"error: {error}", style="red", markup=False, highlight=False)
        sys.exit(1)
    except KeyboardInterrupt:
        err.print("stopped", style="yellow")
        sys.exit(130)


if __name__ == "__main__":
    main()
