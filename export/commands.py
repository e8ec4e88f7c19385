"""The command `svd-hub export`. Everything heavy is imported inside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ..errors import OptionError, SvdHubError
from ..predict import commands as predict_commands
from . import artifact
from .formats import AXES, FORMATS, PRECISIONS, matrix
from .triton.commands import register as register_triton

RUN = "run"


class _RunsByDefault(TyperGroup):
    """`svd-hub export ENTRY ...` is `svd-hub export run ENTRY ...`."""

    default = RUN  # whose options a message means

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = [RUN, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="export",
    cls=_RunsByDefault,
    no_args_is_help=True,
    help="Write an entry or a network of your own as what an inference server runs: svd-hub export ENTRY --to ...",
    epilog="The options of svd-hub export ENTRY: svd-hub export run --help",
)
_TO = "; ".join(f"{row.name}: {row.summary}" for row in FORMATS.values())
_PRECISION = "; ".join(f"{row.name}: {', '.join(row.precisions)}" for row in FORMATS.values())
_SHAPE = "DxHxW or NxCxDxHxW"
_IMAGES = "A folder of what it will see, as predict reads it, or .npy arrays: parity is measured on them."
_SET = "NAME=VALUE of the format; " + "; ".join(
    f"{row.name}: {', '.join(f'{name} ({text})' for name, text in row.settings.items())}"
    for row in FORMATS.values()
    if row.settings
)


@app.command(RUN)
def run(
    entry: Annotated[str, typer.Argument(help="A name of the catalogue, or a .safetensors file of your own.")],
    to: Annotated[str, typer.Option(help=_TO)],
    out: Annotated[Path, typer.Option(help="The artifact's folder.")],
    precision: Annotated[str, typer.Option(help=f"One of {', '.join(PRECISIONS)}. {_PRECISION}")] = "fp32",
    shape: Annotated[str, typer.Option(help=f"The typical input, {_SHAPE}; default by the entry's record.")] = "",
    smallest: Annotated[str, typer.Option(help=f"The smallest, {_SHAPE}; default half of it.")] = "",
    largest: Annotated[str, typer.Option(help=f"The largest, {_SHAPE}; default one and a half times it.")] = "",
    dynamic: Annotated[str, typer.Option(help="Axes that stay open, or 'none'.")] = ",".join(AXES),
    images: Annotated[Path | None, typer.Option(help=f"{_IMAGES} int8 is calibrated with them.")] = None,
    features: Annotated[bool, typer.Option("--features", help="The pyramid, without a head.")] = False,
    opset: Annotated[int | None, typer.Option(help="Of ONNX; default 20, for bf16 22.")] = None,
    setting: Annotated[list[str], typer.Option("--set", help=_SET)] = [],  # noqa: B006
    keep_failing: Annotated[
        bool, typer.Option("--keep-failing", help="Write it even if it differs by more than is allowed.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an artifact that is there.")] = False,
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="Consent to a licence that asks for it.")
    ] = False,
) -> None:
    """Export, and measure that the artifact computes what the network does; where it does not, nothing is written."""
    from .exporting import export

    options: dict[str, Any] = {"features_only": True} if features else {}
    made = export(
        entry,
        to,
        out,
        precision=precision,
        shape=_sides("shape", shape),
        smallest=_sides("smallest", smallest),
        largest=_sides("largest", largest),
        dynamic=() if dynamic == "none" else tuple(dynamic.split(",")),
        images=images,
        opset=opset,
        settings=_settings(setting),
        keep_failing=keep_failing,
        overwrite=overwrite,
        accept_licence=accept_licence,
        **options,
    )
    _echo_made(made.folder, made.manifest)


@app.command("engine")
def engine_command(
    folder: Annotated[Path, typer.Argument(help="An ONNX artifact, or one whose engine was built elsewhere.")],
    out: Annotated[Path, typer.Option(help="The engine's folder; it may be the same.")],
    setting: Annotated[list[str], typer.Option("--set", help=_SET)] = [],  # noqa: B006
    refit_from: Annotated[
        Path | None,
        typer.Option(help="An engine of the same graph, built with --set refit: only weights are exchanged."),
    ] = None,
    model: Annotated[str, typer.Option(help="Its network, a name or file; default by the name in the manifest.")] = "",
    keep_failing: Annotated[
        bool, typer.Option("--keep-failing", help="Write it even if it differs by more than is allowed.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an artifact that is there.")] = False,
) -> None:
    """Build a TensorRT engine for this machine's GPU from the ONNX graph of an artifact, and measure it."""
    from .tensorrt.artifacts import engine

    made = engine(
        folder,
        out,
        settings=_settings(setting) if setting else None,
        refit_from=refit_from,
        model=model or None,
        keep_failing=keep_failing,
        overwrite=overwrite,
    )
    _echo_made(made.folder, made.manifest)


@app.command("verify")
def verify_command(
    folder: Annotated[Path, typer.Argument(help="What svd-hub export wrote.")],
    model: Annotated[str, typer.Option(help="Its network, a name or file; default by the name in the manifest.")] = "",
    images: Annotated[Path | None, typer.Option(help=_IMAGES)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check an artifact again here: bytes, golden pair, and parity where its network is at hand. Exit code 1 if not."""
    from .verifying import verify

    try:
        found = verify(folder, model=model or None, images=images)
    except SvdHubError as error:
        if not as_json:
            raise
        typer.echo(json.dumps({"golden": None, "parity": None, "note": str(error), "passed": False}, indent=1))
        raise typer.Exit(1) from error
    reports = {"golden": found.golden, "parity": found.parity}
    if as_json:
        data = {name: report.data() if report is not None else None for name, report in reports.items()}
        typer.echo(json.dumps({**data, "note": found.note, "passed": found.passed}, indent=1))
    else:
        typer.echo(f"{folder}: every file is what it was")
        for name, report in reports.items():
            for line in report.lines() if report is not None else [f"{name}: not run"]:
                typer.echo(line.replace("parity by", f"{name} by", 1))
        if found.note:
            typer.echo(f"note: {found.note}")
    if not found.passed:
        raise typer.Exit(1)


@app.command("gpu-report")
def gpu_report_command(
    folder: Annotated[Path, typer.Argument(help="An ONNX artifact, or a folder of them.")],
    out: Annotated[Path, typer.Option(help="The report's file, JSON.")],
    model: Annotated[str, typer.Option(help="Their network, a name or file; default by the name in a manifest.")] = "",
    shape: Annotated[list[str], typer.Option(help=f"To time at, {_SHAPE}; default typical and largest.")] = [],  # noqa: B006
    rounds: Annotated[int, typer.Option(help="Of timing.", min=1)] = 30,
    compiled: Annotated[bool, typer.Option("--compile", help="Time torch.compile too; takes minutes.")] = False,
) -> None:
    """On a machine with a GPU: parity and times of artifacts there, as one report. Exit code 1 if parity fails."""
    from .gpu_report import Timing, gpu_report, lines

    shapes = [sides for text in shape if (sides := _sides("shape", text))]
    found = gpu_report(
        folder,
        to=out,
        model=model or None,
        timing=Timing(shapes=shapes or None, rounds=rounds, compiled=compiled),
        say=lambda line: typer.echo(line, err=True),
    )
    for line in lines(found):
        typer.echo(line)
    if not found["passed"]:
        raise typer.Exit(1)


@app.command("formats")
def formats_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List what can be exported to what, and what runs it."""
    if as_json:
        typer.echo(json.dumps([dict(zip(("format", "precision", "runs"), row, strict=True)) for row in matrix()]))
        return
    for name, precision, runs in matrix():
        typer.echo(f"{name:>13}  {precision}  {runs}")


def _settings(given: list[str]) -> dict[str, str]:
    """Return NAME=VALUE as a mapping; NAME alone is NAME=true."""
    return {name: value or "true" for name, _, value in (text.partition("=") for text in given)}


def _echo_made(folder: Path, told: Mapping[str, Any]) -> None:
    size = sum(file["bytes"] for file in told["files"].values())
    typer.echo(f"{folder}: {told['entry']} as {told['format']} {told['precision']}, {size:,} bytes")
    for line in _parity_lines(told["parity"]):
        typer.echo(line)
    if told["images"]:
        typer.echo(f"  measured on pieces of images given ({told['images']}); golden.safetensors holds one of them")
    if note := told["built"].get("note"):
        typer.echo(f"note: {note}")


def _sides(option: str, text: str) -> tuple[int, ...] | None:
    """Return the numbers of "3x224x224", None of an empty text.

    Raises:
        OptionError: it is something else.
    """
    parts = text.lower().replace(",", "x").split("x") if text else []
    if not all(part.strip().isdigit() for part in parts):
        raise OptionError(f"--{option} {text} is not allowed; allowed: {_SHAPE}, e.g. 3x224x224")
    return tuple(int(part) for part in parts) or None


def _parity_lines(told: dict[str, Any]) -> list[str]:
    """Return the manifest's report of parity in the words of `Report.lines`, without importing torch for it."""
    measured = f", {told['measure']} >= {told['least_agreement']:g}" if told["measure"] else ""
    lines = [f"parity by {told['runner'] or 'nothing here'}, error <= {told['tolerance']:g}{measured}"]
    for case in told["cases"]:
        share = "" if case["agreement"] is None else f"  {told['measure']} {case['agreement']:.4f}"
        shape = "x".join(map(str, case["shape"]))
        error = max(case["errors"].values())
        agrees = case["agreement"] is None or case["agreement"] >= told["least_agreement"]
        mark = "ok" if case["finite"] and error <= told["tolerance"] and agrees else "FAILED"
        lines.append(f"  {shape:>18}  error {error:.1e}{share}  {mark}")
    return [*lines, *([f"  {told['note']}"] if told["note"] else [])]


def _predictor(entry: str, device: str, dtype: str) -> Any:
    """Return a predictor that runs an artifact, None where `entry` is none; see `predict.commands.OPENERS`."""
    if not (Path(entry) / artifact.MANIFEST).is_file():
        return None
    found = artifact.read(entry)
    if dtype != "float32":
        raise OptionError(f"dtype={dtype!r} is not allowed: {entry} is {found.precision}. Next: leave it out")
    places = found.format.devices
    chosen = next(iter(places)) if device == "auto" else device
    if chosen not in places:
        raise OptionError(
            f"device={device!r} is not allowed: {entry} is {found.format.name}; allowed: auto, {', '.join(places)}"
        )
    from .predicting import predictor

    return predictor(entry, **places[chosen])


def register(to: typer.Typer) -> None:
    """Add the commands to the application, and artifacts to what svd-hub predict takes."""
    to.add_typer(app)
    if _predictor not in predict_commands.OPENERS:
        predict_commands.OPENERS.append(_predictor)
    register_triton(to)
