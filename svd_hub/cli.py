"""The command `svd-hub`. It prints; the rooms behind it do not. `list` and `info` import no torch."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
import warnings
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from . import __version__
from .catalog import Entry, all_entries, get_entry, list_entries
from .errors import SvdHubError

app = typer.Typer(
    name="svd-hub",
    help="Verified pretrained 3D networks for medical images, by name.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# soft_wrap: a path or a message is never cut in two. 160: the width of a table in a pipe.
out = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 160)
err = Console(stderr=True, soft_wrap=True, highlight=False)
# Commands of other rooms, by entry point when installed and by name in a bare checkout; this file knows neither room.
COMMANDS = {"training": "svd_hub.training.commands", "export": "svd_hub.export.commands"}

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _table(title: str, *columns: str, caption: str = "") -> Table:
    table = Table(title=title or None, caption=caption or None, box=None, title_justify="left", caption_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _show(table: Table) -> None:
    out.print(table, soft_wrap=False)


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
    caption = f"{len(entries)} of {len(all_entries())} entries. Next: svd-hub info NAME"
    table = _table("", "name", "status", "real file opened", "task", "licence", caption=caption)
    for entry in entries:
        opened = f"yes, {entry.checked_on}" if entry.checked == "file" else "no"
        table.add_row(entry.name, entry.status, opened, entry.task, entry.licence)
    _show(table)


@app.command()
def info(name: str, as_json: Json = False) -> None:
    """Show the card of an entry: what it is, where it comes from, its licence and its preprocessing."""
    entry = get_entry(name)
    if as_json:
        facts = dataclasses.asdict(entry)
        facts["preprocess"] = facts.pop("preprocess_data")
        typer.echo(json.dumps({**facts, "card": entry.card()}, indent=1))
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
            out.print(str(report), markup=False)
        except SvdHubError as error:
            failed += 1
            _complain(error)
    if failed:
        raise typer.Exit(1)


@app.command()
def verify(
    names: Annotated[list[str] | None, typer.Argument(help="Entries; none = all that are here.")] = None,
) -> None:
    """Hash the files on this machine again. Exit code 1 where one is damaged."""
    from . import store

    bundled = [entry for entry in all_entries().values() if entry.source.kind == "bundled"]
    results = store.verify([get_entry(n) for n in names] if names else bundled)
    results += [] if names else store.verify()
    for result in results:
        style = {"ok": "green", "absent": "dim"}.get(result.state, "red")
        line = f"{result.state:>10}  {result.entry}  {result.note or result.path or ''}"
        out.print(line, style=style, markup=False)
    if any(r.state == "damaged" for r in results) or (names and any(r.state != "ok" for r in results)):
        raise typer.Exit(1)


@app.command()
def convert(
    name: str, file: Path, to: Annotated[Path | None, typer.Option(help="Write it here instead.")] = None
) -> None:
    """Check and convert a checkpoint on disk as the one of NAME, and put it into the cache."""
    from .canonical import convert_file

    out.print(str(convert_file(name, file, to=to)), markup=False)


@app.command()
def cache(
    clean: Annotated[bool, typer.Option(help="Remove what was downloaded; it can be fetched again.")] = False,
    name: Annotated[str | None, typer.Option(help="Only this entry.")] = None,
) -> None:
    """Show where the cache is and what it holds; with --clean, empty it."""
    from . import store

    entry = get_entry(name) if name else None
    used = store.clean(entry) if clean else [item for item in store.usage() if name in (None, item.entry)]
    for item in used:
        out.print(f"{item.size:>14,}  {item.entry or '?'}  {item.path}", markup=False)
    word = "removed from" if clean else "in"
    out.print(f"{sum(i.size for i in used):>14,}  bytes {word} {store.cache_dir()}", markup=False)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say which versions are here, what is missing, and the exact command that installs it."""
    from .doctor import examine

    findings = examine()
    if as_json:
        typer.echo(json.dumps([vars(f) for f in findings], indent=1))
    else:
        table = _table(f"svd-hub {__version__}", "what", "found", "next")
        for finding in findings:
            cells = (escape(finding.what), escape(finding.found), escape(finding.next))
            table.add_row(*cells, style="red" if finding.broken else None)
        _show(table)
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


def _complain(error: Exception) -> None:
    err.print(f"error: {error}", style="red", markup=False)


def main() -> None:
    """Run the command; an error of ours is one red paragraph and exit code 1, Ctrl-C is 130."""
    warnings.formatwarning = lambda message, *_, **__: f"note: {message}\n"
    _add_commands()
    try:
        app()
    except (SvdHubError, OSError) as error:
        _complain(error)
        sys.exit(1)


if __name__ == "__main__":
    main()
