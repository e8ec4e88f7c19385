"""The command `svd-hub predict`. Everything heavy is imported inside it."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import OptionError
from ..spoken import in_options

if TYPE_CHECKING:
    from .files import Case

SILENCE = 30.0  # seconds without a line before one says how far it is
# What other rooms can predict with: each is given (entry, device, dtype) and returns a Predictor, or None where the
# entry is nothing of its own.
OPENERS: list[Callable[[str, str, str], Any]] = []


def predict(
    context: typer.Context,
    entry: Annotated[
        str,
        typer.Argument(
            help="A name of the catalogue, a .safetensors file of your own, a run's folder or an artifact's."
        ),
    ],
    inputs: Annotated[list[Path], typer.Argument(help="DICOM folders, NIfTI, NRRD, MetaImage files, or photographs.")],
    out: Annotated[Path, typer.Option(help="The folder of the results: one inside it for each input.")],
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 (GPUs).")] = "float32",
    each: Annotated[
        bool, typer.Option("--each", help="Each file, series and folder inside INPUT is an input of its own.")
    ] = False,
    names: Annotated[
        bool, typer.Option("--names", help="Name results after the inputs' files, not by their content.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Make again what is there from other weights or options.")
    ] = False,
    series: Annotated[str, typer.Option(help="Of a DICOM folder with several: UID or number.")] = "",
    fill_gaps: Annotated[bool, typer.Option("--fill-gaps", help="Fill missing DICOM slices by interpolation.")] = False,
    point: Annotated[str, typer.Option(help="Classifiers: X,Y,Z mm (Left, Posterior, Superior) to cut about.")] = "",
    key_slice: Annotated[
        list[int] | None, typer.Option(help="Detectors: a key slice, from 0 at the lowest; repeat.")
    ] = None,
    every_slice: Annotated[
        bool, typer.Option("--every-slice", help="Detectors: every slice is a key slice, however thin.")
    ] = False,
    least_score: Annotated[
        float | None, typer.Option(help="Detectors: leave out findings below, 0.1 unless given.")
    ] = None,
    most: Annotated[int | None, typer.Option(help="Detectors: findings at most, 100 unless given.")] = None,
    mask: Annotated[str, typer.Option(help="Format of masks: nii.gz, nii, nrrd, mha.")] = "nii.gz",
    dicom: Annotated[bool, typer.Option(help="DICOM SEG or SR where the input is DICOM.")] = True,
    picture: Annotated[bool, typer.Option(help="A PNG of each result.")] = True,
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="Consent to a licence that asks for it.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print each result as a line of JSON.")] = False,
) -> None:
    """Run an entry on images, with its own preprocessing: classify, segment or detect.

    Masks come back on the input's own grid; results.csv has a row for each input. Run it again after a stop: what is
    there is not made again. Exit code 1 where an input failed.
    """
    failed, notes = 0, Counter[str]()
    try:
        from .files import predict_files
        from .outputs import Outputs
        from .places import check_out, find_inputs

        want = Outputs(mask=mask, dicom=dicom, picture=picture)
        options: dict[str, Any] = {"series": _series(series), "missing": "fill" if fill_gaps else None}
        if every_slice and key_slice:
            raise OptionError("--every-slice and --key-slice exclude each other; allowed: one. Next: leave one out")
        planes = "all" if every_slice else key_slice or None
        options |= {"point": _point(point), "planes": planes, "least_score": least_score, "most": most}
        found = find_inputs(inputs, each=each)
        check_out(out, inputs)
        predictor = _predictor(entry, device, dtype, accept_licence=accept_licence)
        predictor.check_arguments(**{key: options[key] for key in ("point", "planes", "least_score", "most")})
        with _bar(len(found)) as (step, done):
            run = predict_files(
                predictor, found, out, outputs=want, names=names, overwrite=overwrite, done=done, **options
            )
            for case in run:
                step()
                failed += case.state == "failed"
                notes.update(case.facts.get("notes", ()))
                if as_json and case.state != "failed":
                    file = {"file": case.path.name} if names else {}
                    typer.echo(json.dumps({"position": case.number, **file, "result": case.name, **case.facts}))
                else:
                    _tell(case, len(found), out, context.command)
    except KeyboardInterrupt:
        typer.echo("stopped. Next: the same command again; what is done is not done again", err=True)
        raise typer.Exit(130) from None
    if not as_json:
        for text, count in notes.items():
            many = f" ({count} of {len(found)} inputs)" if len(found) > 1 else ""
            typer.echo(_shown(f"note: {in_options(text, context.command)}{many}"))
        typer.echo("Research use. Not a medical device.")
    if failed:
        raise typer.Exit(1)


def _predictor(entry: str, device: str, dtype: str, *, accept_licence: bool) -> Any:
    from .predictor import Predictor

    for opened in OPENERS:
        if (found := opened(entry, device, dtype)) is not None:
            return found
    return Predictor(entry, device=device, dtype=dtype, accept_licence=accept_licence)


def _shown(text: str) -> str:
    """Return a text that any terminal can print: a file's name can be bytes of any kind, and move the cursor."""
    seen = text.encode("utf-8", "backslashreplace").decode()
    return "".join(ch if ch.isprintable() or ch == "\n" else ascii(ch)[1:-1] for ch in seen)


def _series(text: str) -> str | int | None:
    return None if not text else int(text) if text.isdecimal() else text


def _point(text: str) -> tuple[float, float, float] | None:
    if not text:
        return None
    try:
        x, y, z = (float(part) for part in text.split(","))
    except ValueError:
        raise OptionError(f"--point {text!r} is not allowed; allowed: X,Y,Z in mm, such as -35,12.5,1180") from None
    return x, y, z


def _tell(case: Case, count: int, out: Path, command: Any) -> None:
    """Print what came of an input."""
    where = f"{case.number}/{count} {case.path}"
    if case.state == "failed":
        typer.secho(_shown(f"{where}: failed: {in_options(case.error, command)}"), fg="red", err=True)
        return
    note = "there already" if case.state == "there" else f"{sum(case.seconds.values()):.1f} s"
    typer.echo(_shown(f"{where} -> {out / case.name}  ({note})"))
    typer.echo(f"  {_summary(case.facts)}")


def _summary(facts: dict[str, Any]) -> str:
    """Return a result in a line."""
    if facts["task"] == "segmentation":
        return ", ".join(f"{row['name']} {row['ml']:.1f} ml" for row in facts["classes"] if "ml" in row)
    if facts["task"] == "classification":
        return ", ".join(f"{name} {share:.3f}" for name, share in list(facts["probabilities"].items())[:5])
    rows = facts["findings"]
    best = f", the surest {rows[0]['class']} {rows[0]['score']:.2f}" if rows else ""
    return f"{len(rows)} finding(s){best}"


@contextlib.contextmanager
def _bar(count: int) -> Iterator[tuple[Callable[[], None], Callable[[int, int], None]]]:
    """Yield what is called after each input and during one: a bar on stderr where someone watches, else rare lines."""
    if not sys.stderr.isatty():
        lines = _Lines(count)
        yield lines.step, lines.done
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, redirect_stdout=False) as progress:
        inputs, parts = progress.add_task("inputs", total=count), progress.add_task("this one", total=None)
        yield (
            lambda: progress.advance(inputs),
            lambda now, total: progress.update(parts, completed=now, total=total),
        )


class _Lines:
    """A line on stderr when nothing was heard for `SILENCE` seconds, for logs and pipes."""

    def __init__(self, count: int) -> None:
        self.count, self.number = count, 1
        self.heard = time.monotonic()

    def step(self) -> None:
        """Count an input that is done; its own line is printed by the command."""
        self.number, self.heard = self.number + 1, time.monotonic()

    def done(self, now: int, total: int) -> None:
        """Say how far the input at hand is, if it is time to."""
        if time.monotonic() - self.heard >= SILENCE:
            self.heard = time.monotonic()
            typer.echo(f"{self.number}/{self.count}: {now} of {total} parts done", err=True)


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(predict)
