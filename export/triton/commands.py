"""The command `svd-hub serve-check`. Everything heavy is imported inside it."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer


def serve_check(
    repository: Annotated[Path, typer.Argument(help="What svd-hub export --to triton wrote.")],
    volume: Annotated[
        list[Path] | None, typer.Option(help="A CT or MR to send whole, as predict reads them; repeat. Else made up.")
    ] = None,
    model: Annotated[str, typer.Option(help="Its network, a name or file; default by the name in the manifest.")] = "",
    server: Annotated[
        Path | None, typer.Option(help="The folder of a tritonserver; default what make tools brought, or NVIDIA's.")
    ] = None,
    requests: Annotated[int, typer.Option(help="Small requests sent at the same time.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Start a real Triton server on a repository, ask it over HTTP and gRPC, compare, measure, and stop it.

    It listens on this machine's own address alone. Exit code 1 where an answer is wrong, or a wrong request is taken.
    """
    signal.signal(signal.SIGTERM, _end)  # so that the server is stopped then too
    from .checking import serve_check as check

    try:
        found = check(repository, volumes=volume or (), model=model or None, server=server, requests=requests)
    except KeyboardInterrupt:
        typer.echo("stopped, and the server with it", err=True)
        raise typer.Exit(130) from None
    typer.echo(json.dumps(found.data(), indent=1) if as_json else "\n".join(found.lines()))
    if not found.passed:
        raise typer.Exit(1)


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def register(to: typer.Typer) -> None:
    """Add the command to the application."""
    to.command("serve-check")(serve_check)
