"""The command `svd-hub`. It prints; the rooms behind it do not. `list` and `info` import no torch."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import sys
import warnings
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from . import __version__
from .catalog import Entry, all_entries, get_entry, list_entries
from .errors import OptionError, SvdHubError, nearest
from .spoken import in_options

if TYPE_CHECKING:
    from .survey import Finding

app = typer.Typer(
    name="svd-hub",
    help="Verified pretrained 3D networks for medical images, by name.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # the boxes of rich would say <bool> after every flag
    pretty_exceptions_enable=False,
)
# soft_wrap: a path or a message is never cut in two. 160: the width of a table in a pipe.
out = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 160)
err = Console(stderr=True, soft_wrap=True, highlight=False)
# Commands of other rooms, by entry point when installed and by name in a bare checkout; this file knows neither room.
COMMANDS = {
    "predict": "svd_hub.predict.commands",
    "training": "svd_hub.training.commands",
    "export": "svd_hub.export.commands",
}

OWN = "a .safetensors file of your own, or a run's folder"
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _table(title: str, *columns: str, caption: str = "") -> Table:
    table = Table(title=title or None, caption=caption or None, box=None, title_justify="left", caption_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _show(table: Table) -> None:
    out.print(table, soft_wrap=False)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"svd-hub {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version.")] = (
        False
    ),
) -> None:
    """Verified pretrained 3D networks for medical images, by name."""


# ---- choosing ------------------------------------------------------------------------------------------------------


def _fact(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "status": entry.status,
        "checked": entry.checked,
        "task": entry.task,
        "architecture": entry.architecture,
        "backbone": entry.backbone,
        "parameters": entry.parameters,
        "input": _input_words(entry),
        "preprocess": dict(entry.preprocess_data),
        "licence": entry.licence,
        "licence_url": entry.licence_url,
        "consent": entry.consent,
        "trained_on": entry.trained_on,
        "get": _get_words(entry),
        "summary": entry.summary,
    }


def _input_words(entry: Entry) -> str:
    """Return what the network wants to see, in a phrase; the card has all of it."""
    if not entry.preprocess_data:
        return ""
    rule = entry.preprocess
    words = [rule.modality, f"{rule.channels} channels" if rule.channels > 1 else ""]
    words.append("x".join(f"{side:g}" for side in rule.spacing) + " mm" if rule.spacing else "")
    words.append("{:g} to {:g}".format(*rule.window) + (" HU" if rule.modality == "CT" else "") if rule.window else "")
    words.append("" if rule.statistics == "fixed" else "own mean and std")
    words.append(("resized to " if rule.fit == "resize" else "") + "x".join(map(str, rule.size)) if rule.size else "")
    return ", ".join(filter(None, words))


def _get_words(entry: Entry) -> str:
    words = {"none": "none", "bundled": "bundled", "folder": "by hand", "mirror": "mirror"}
    return words.get(entry.source.kind, "link")


GET_WORDS = (
    "get it by: link = svd-hub fetch NAME brings it; by hand = svd-hub info NAME says where you get the file yourself; "
    "mirror = it is in a release folder, which SVD_HUB_MIRROR names; bundled = it is inside this package; none = no "
    "weights to be had"
)


@app.command("list")
def list_command(
    pattern: Annotated[str, typer.Argument(help="A part of a name, or a shell pattern.")] = "*",
    task: Annotated[str | None, typer.Option(help="backbone, classification, segmentation or detection.")] = None,
    status: Annotated[str | None, typer.Option(help="ours, official, converted, derived, recipe, unavailable.")] = None,
    licence: Annotated[str | None, typer.Option(help="SPDX name, or 'not stated'.")] = None,
    compatible: Annotated[
        str | None, typer.Option(help="A backbone such as resnet3d18, or an entry: what that network can start from.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the entries of the catalogue, or with --compatible the starting points of one network to choose from."""
    names = list_entries(pattern, task=task, status=status, licence=licence, compatible=compatible)
    entries = [get_entry(name) for name in names]
    if compatible:  # what one can start from now comes first
        entries.sort(key=lambda entry: not entry.loadable)
    if as_json:
        typer.echo(json.dumps([_fact(e) for e in entries], indent=1))
        return
    caption = f"{len(entries)} of {len(all_entries())} entries. Next: svd-hub info NAME"
    if not entries and not list_entries(pattern):
        caption = f"no name has {pattern!r} in it; nearest: {nearest(pattern, all_entries())}\n{caption}"
    _show(_choice(entries, f"{GET_WORDS}\n{caption}") if compatible else _overview(entries, caption))


def _opened(entry: Entry) -> str:
    return f"yes, {entry.checked_on}" if entry.checked == "file" else "no"


def _overview(entries: list[Entry], caption: str) -> Table:
    table = _table("", "name", "status", "real file opened", "task", "licence", caption=caption)
    for entry in entries:
        table.add_row(entry.name, entry.status, _opened(entry), entry.task, entry.licence)
    return table


def _choice(entries: list[Entry], caption: str) -> Table:
    columns = ("name", "licence", "input", "trained on", "M parameters", "status", "real file opened", "get it by")
    table = _table("", *columns, caption=caption)
    for entry in entries:
        table.add_row(
            entry.name,
            f"{entry.licence}, consent" if entry.consent else entry.licence,
            _input_words(entry) or "not stated",
            entry.trained_on or "not stated",
            f"{entry.parameters / 1e6:.1f}" if entry.parameters else "?",
            entry.status,
            _opened(entry),
            _get_words(entry),
        )
    return table


def _is_own(name: str) -> bool:
    """Return whether a name means a file or folder of the user's own."""
    return name not in all_entries() and (name.endswith(".safetensors") or Path(name).exists())


def _entry(name: str) -> Entry:
    """Return an entry, or what a file of the user's own says of itself, which takes torch."""
    if not _is_own(name):
        return get_entry(name)
    from .saved import entry_of_file, file_of

    return entry_of_file(file_of(Path(name)))


@app.command()
def info(
    name: Annotated[str, typer.Argument(help=f"An entry, {OWN}.")],
    as_json: Json = False,
) -> None:
    """Show the card of an entry: what it is, where it comes from, its licence and its preprocessing."""
    entry = _entry(name)
    if as_json:
        facts = dataclasses.asdict(entry)
        facts["preprocess"] = facts.pop("preprocess_data")
        typer.echo(json.dumps({**facts, "card": entry.card()}, indent=1))
    elif out.is_terminal:
        from rich.markdown import Markdown

        out.print(Markdown(entry.card()))
    else:
        typer.echo(entry.card())


# ---- bringing ------------------------------------------------------------------------------------------------------


@app.command()
def fetch(
    names: Annotated[list[str] | None, typer.Argument(help="Entries.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every entry that has weights somewhere.")] = False,
    report: Annotated[
        Path | None, typer.Option(help="Write here, after each entry, what was found: JSON, nothing of this machine.")
    ] = None,
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="Consent to every licence that asks for it.")
    ] = False,
) -> None:
    """Bring entries to this machine, verified and converted, so that later loads open no socket.

    A failure does not stop the rest, and a second run goes on where the first ended. Exit code 1 where something
    failed, or where an entry asked for by name is not here afterwards.
    """
    if bool(names) == every:
        raise OptionError("fetch needs entries, or --all, and not both. Next: svd-hub list")
    asked = names or [entry.name for entry in all_entries().values() if entry.loadable]
    found = _bring(asked, report, accept_licence=accept_licence)
    results = [finding.result for finding in found]
    if len(asked) > 1:
        counts = ", ".join(f"{results.count(result)} {result}" for result in dict.fromkeys(results))
        out.print(f"{len(found)} of {len(asked)} entries: {counts}", markup=False)
    if len(found) < len(asked):
        out.print("stopped. Next: the same command again; what is here is not fetched again")
        raise typer.Exit(130)
    if "failed" in results or (names and set(results) - {"ok", "bundled"}):
        raise typer.Exit(1)


def _bring(asked: list[str], report: Path | None, *, accept_licence: bool) -> list[Finding]:
    """Fetch and tell, entry by entry; Ctrl-C returns what was done until then."""
    from . import survey

    def progress(number: int, count: int, name: str) -> None:
        if count > 1:
            out.print(f"{number}/{count} {name} ...", markup=False)

    def keep() -> None:
        if report is not None:
            survey.write_report(report, found, asked=len(asked))

    found: list[Finding] = []
    keep()  # a folder that cannot be written is told at once
    try:
        for finding in survey.survey(asked, accept_licence=accept_licence, progress=progress):
            found.append(finding)
            keep()
            _tell_finding(finding)
    except KeyboardInterrupt:
        keep()
    return found


def _tell_finding(finding: Finding) -> None:
    if finding.cause is None:
        out.print(str(finding.report), markup=False)
        _tell_terms(finding.name)
    elif isinstance(finding.cause, SvdHubError):
        _complain(finding.cause, "error" if finding.result == "failed" else finding.result)
    else:
        _complain(finding.error)


def _tell_terms(name: str) -> None:
    from .consent import terms_line

    if line := terms_line(get_entry(name)):
        out.print(f"  licence: {line}", markup=False)


@app.command()
def verify(
    names: Annotated[list[str] | None, typer.Argument(help=f"Entries, {OWN}; none = all that are here.")] = None,
) -> None:
    """Hash the files on this machine again, and read your own. Exit code 1 where one is damaged."""
    from . import store

    bundled = [entry for entry in all_entries().values() if entry.source.kind == "bundled"]
    own = [name for name in names or () if _is_own(name)]
    results = store.verify([get_entry(n) for n in names if n not in own] if names else bundled)
    if own:
        from .saved import file_of, verify_file

        results += [verify_file(file_of(Path(name))) for name in own]
    results += [] if names else store.verify()
    for result in results:
        style = {"ok": "green", "absent": "dim"}.get(result.state, "red")
        line = f"{result.state:>10}  {result.entry}  {result.note or result.path or ''}"
        out.print(line, style=style, markup=False)
    if any(r.state == "damaged" for r in results) or (names and any(r.state != "ok" for r in results)):
        raise typer.Exit(1)


@app.command()
def convert(
    name: Annotated[str, typer.Argument(help="The entry that the checkpoint belongs to.")],
    file: Annotated[Path, typer.Argument(help="The checkpoint, as its authors published it.")],
    to: Annotated[Path | None, typer.Option(help="Write it here instead.")] = None,
) -> None:
    """Check and convert a checkpoint on disk as the one of NAME, and put it into the cache."""
    from .canonical import convert_file

    out.print(str(convert_file(name, file, to=to)), markup=False)
    _tell_terms(name)


@app.command()
def cache(
    clean: Annotated[
        bool, typer.Option("--clean", help="Remove what was downloaded; it can be fetched again.")
    ] = False,
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


@functools.cache
def _add_commands() -> None:
    found = {point.name: point.value for point in entry_points(group="svd_hub.commands")}
    for module in {**COMMANDS, **found}.values():
        try:
            importlib.import_module(module).register(app)
        except ModuleNotFoundError as error:
            if error.name is None or not module.startswith(error.name):
                raise


def _asked() -> Any:
    """Return the command that was typed, None where there is none of that name."""
    found: Any = typer.main.get_command(app)
    for word in sys.argv[1:]:
        commands = getattr(found, "commands", {})
        found = commands.get(word, commands.get(getattr(found, "default", ""), found))
    return found


def _complain(error: object, word: str = "error") -> None:
    err.print(f"{word}: {in_options(str(error), _asked())}", style="red" if word == "error" else "yellow", markup=False)


def main() -> None:
    """Run the command; an error of ours is one red paragraph and exit code 1, Ctrl-C is 130."""
    warnings.formatwarning = lambda message, *_, **__: f"note: {in_options(str(message), _asked())}\n"
    _add_commands()
    try:
        app()
    except (SvdHubError, OSError) as error:
        _complain(error)
        sys.exit(1)


if __name__ == "__main__":
    main()
