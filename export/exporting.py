"""export(): a network becomes an artifact in one folder that computes the same, or nothing is there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..catalog import all_entries
from ..errors import OptionError, check_choice
from ..hub import load
from . import artifact, inputs
from .artifact import Artifact
from .contract import Order, Runner, builder_of, runner_of
from .facts import described, plain, preprocessing
from .formats import AGREEMENT, AXES, TOLERANCES, Format, check_cell
from .network import Network
from .parity import ParityError, Report, measure
from .profile import Profile, Shape, make_profile

_EXACT = "the projections of shortcuts are float32: with them in 8 bits it differed by more than is allowed"
_IMAGES = {True: "more images like those that it will see", False: "images that it will see (images=FOLDER)"}


def export(
    model: Any,
    to: str,
    out: str | os.PathLike[str],
    *,
    precision: str = "fp32",
    shape: Sequence[int] | None = None,
    smallest: Sequence[int] | None = None,
    largest: Sequence[int] | None = None,
    dynamic: Iterable[str] = AXES,
    images: Any = None,
    opset: int | None = None,
    settings: Mapping[str, Any] | None = None,
    keep_failing: bool = False,
    overwrite: bool = False,
    **options: Any,
) -> Artifact:
    """Write a network as an artifact that computes what the network does, which is measured before it is there.

    Args:
        model: a name of the catalogue, a file that `svd_hub.save` wrote, or a loaded network.
        to: one of `formats.FORMATS`.
        out: the folder; it is made beside and moved into place.
        precision: one of those that the format has.
        shape, smallest, largest: (D, H, W) or (N, C, D, H, W); see `profile.make_profile`.
        dynamic: axes of the input that stay open, of `formats.AXES`.
        images: that it will see, a folder of them or arrays as the network takes them; see `inputs.pieces`. int8 is
            calibrated with them, and parity is measured on them; without any (not in int8) on made-up volumes. The
            artifact's golden input is a piece of one of them.
        opset: of ONNX; None = 20, and 22 for bf16.
        settings: of the format, of those that its row in `formats` has.
        keep_failing: write the artifact even if it is outside the tolerance; its manifest says so.
        overwrite: replace an artifact that is there.
        **options: of `svd_hub.load`, with a name or file: `features_only=True` exports the pyramid.

    Raises:
        OptionError: an argument that is not allowed, with what is.
        ParityError: the artifact differs by more than the format table allows; nothing is left behind.
        MissingExtraError: a library of the format is not installed.
    """
    network, told = _network(model, options)
    row = check_cell(to, precision, network.kind)
    profile = make_profile(network.source, shape=shape, smallest=smallest, largest=largest, dynamic=dynamic)
    if closed := [axis for axis in profile.dynamic if axis not in row.axes]:
        raise OptionError(f"{to} has no open {', '.join(closed)}; allowed: {', '.join(row.axes)}")
    for name in settings or ():
        if not row.settings:
            raise OptionError(f"{to} has no settings, and {name} was given. Next: leave it out")
        check_choice(f"setting of {to}", name, row.settings)
    if opset is not None and not row.extra:
        raise OptionError(f"opset is of ONNX graphs, and {to} holds none. Next: leave it out")
    data = inputs.pieces(images, network.source, profile.largest) if images is not None else ()
    facts = {**described(network), **({"load": plain(told)} if told else {})}
    order = Order(
        network=network,
        profile=profile,
        precision=precision,
        calibration=inputs.calibration(data, profile) if data and precision == "int8" else (),
        opset=opset,
        facts={f"svd_hub.{name}": str(facts[name]) for name in ("entry", "task", "weights_sha256")},
        settings=settings or {},
    )
    if precision == "int8":
        with contextlib.suppress(ParityError):
            return _write(order, row, Path(out), facts=facts, data=data, overwrite=overwrite)
        order = replace(order, exact=True)
    return _write(order, row, Path(out), facts=facts, data=data, overwrite=overwrite, keep_failing=keep_failing)


def _write(
    order: Order,
    row: Format,
    out: Path,
    *,
    facts: Mapping[str, Any],
    data: Sequence[np.ndarray],
    overwrite: bool,
    keep_failing: bool = False,
) -> Artifact:
    """Write and measure an artifact.

    Raises:
        ParityError: it differs by more than the format table allows, and nothing is left behind.
    """
    network, profile, precision = order.network, order.profile, order.precision
    with artifact.beside(out, overwrite=overwrite) as folder:
        built = builder_of(row)(order, folder) | ({"note": _EXACT} if order.exact else {})
        artifact.write_json(folder / artifact.PREPROCESS, preprocessing(network.source))
        manifest = {**facts, "format": row.name, "precision": precision, "profile": profile.data(), "built": built}
        manifest["images"] = len(data)
        artifact.seal(folder, manifest)
        volumes = inputs.samples(cases(row, precision, profile), getattr(network.source, "preprocess", None), data)
        report = checked(network, row, precision, folder, volumes)
        _write_golden(folder, network, volumes[0])
        artifact.seal(folder, {**manifest, "parity": report.data()})
        if not report.passed and not keep_failing:
            raise ParityError(
                "\n".join(
                    [
                        f"{row.name} {precision} of {facts['entry']} differs by more than the format table allows:",
                        *report.lines(),
                        f"Next: another precision, {_IMAGES[bool(data)]}, or keep_failing=True to look at it",
                    ]
                ),
                report,
            )
    return artifact.read(out)


def checked(network: Network, row: Format, precision: str, folder: Path, volumes: Sequence[np.ndarray]) -> Report:
    """Return parity by the format's own runner, or by another runtime where that one cannot run it on a CPU."""
    run, note = open_runner(row, precision, folder)
    if run is None:
        tolerance, agreement = TOLERANCES[network.norm, precision], AGREEMENT[precision]
        return Report(runner="", measure="", tolerance=tolerance, least_agreement=agreement, note=note)
    return measure(network, run, run.provider, precision, volumes, note)


def cases(row: Format, precision: str, profile: Profile) -> Sequence[Shape]:
    """Return the shapes of parity.

    Where OpenVINO stands in, whose bf16 is wrong where there is one slice (see its runner), those of more slices.
    """
    deeper = [shape for shape in profile.cases if shape[2] > 1]
    return deeper if precision in row.unrun and deeper else profile.cases


def open_runner(row: Format, precision: str, folder: Path, **options: Any) -> tuple[Runner | None, str]:
    """Return what runs an artifact on this machine, its CPU where `options` of the runner name nothing else.

    None where nothing does; and what is to be said of it.
    """
    if precision not in row.unrun or options.get("provider", "cpu") != "cpu":
        return runner_of(row)(folder, **options), ""
    if row.runner == "run_onnx:Runner" and find_spec("openvino") is not None:
        from .run_openvino import Runner as OpenVINO

        own = {name: value for name, value in options.items() if name != "provider"}
        return OpenVINO(folder, **own), f"run by OpenVINO: {row.precisions[precision]}"
    return None, f"built and checked, not run: {row.precisions[precision]}"


def _network(model: Any, options: Mapping[str, Any]) -> tuple[Network, dict[str, Any]]:
    """Return the network to export, and by which call it is loaded again, where it has a name."""
    if isinstance(model, nn.Module):
        if options:
            raise OptionError(f"{', '.join(options)} cannot be given with a loaded network. Next: give them to load")
        return Network(model), {}
    network = Network(load(model, **options))
    asked = {name: value for name, value in options.items() if name not in ("progress", "accept_licence")}
    # a file's path is nobody else's business: what it was made from is told as its entry
    return network, {"name": model, "options": asked} if model in all_entries() else {}


def _write_golden(folder: Path, network: Network, volume: np.ndarray) -> None:
    outputs = (tensor.numpy() for tensor in network.eager(torch.from_numpy(volume)))
    artifact.write_golden(folder, volume, dict(zip(network.outputs, outputs, strict=True)))
