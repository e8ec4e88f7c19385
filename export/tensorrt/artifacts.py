"""Engines as artifacts: of a network, of an ONNX artifact from another machine, or again of the graph beside an engine.

Imports neither TensorRT nor its modules before `here.here()` has found a GPU.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import OptionError
from .. import artifact
from .. import onnx as onnx_format
from ..artifact import Artifact
from ..contract import Order
from ..parity import ParityError
from ..verifying import held, original
from .here import Here, here
from .key import GRAPH, PLAN, SHAPES, new_key, refuse_other
from .operators import refuse_operators
from .options import EngineOptions, options_of
from .progress import board

_NEW = (
    "files",
    "artifact_sha256",
    "parity",
    "format",
    "built",
)  # what a manifest says of an artifact, not of its graph


def build(order: Order, folder: Path) -> dict[str, Any]:
    """Write model.onnx and model.plan; see `contract.Builder`.

    Raises:
        SvdHubError: no CUDA device, no TensorRT that is new enough, or it does not build the graph.
        MissingExtraError: TensorRT or the exporter's libraries are not installed.
    """
    options = options_of(order.settings)
    machine = here()
    model = onnx_format.graph(order)
    content = model.SerializeToString(deterministic=True)
    (folder / GRAPH).write_bytes(content)
    facts = {
        "weights_sha256": order.facts["svd_hub.weights_sha256"],
        "precision": order.precision,
        "profile": order.profile.data(),
    }
    told = {"opset": onnx_format.opset_of(order), "operators": onnx_format.counted(model)}
    return {**told, **_planned(content, facts, options, machine, folder)}


def engine(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    settings: Mapping[str, Any] | None = None,
    refit_from: str | os.PathLike[str] | None = None,
    model: Any = None,
    keep_failing: bool = False,
    overwrite: bool = False,
    **options: Any,
) -> Artifact:
    """Build an engine for this machine's GPU from an artifact's ONNX graph, and measure that it computes the same.

    Args:
        folder: an artifact of the format "onnx", or of "tensorrt", whose engine may fit another machine.
        out: the engine's folder; it may be the same.
        settings: see the format's row; None = those of the engine in `folder`, if it has one.
        refit_from: an engine of the same graph with other weights, built here with refit=True: its weights are
            exchanged, which takes seconds.
        model: the network, its name or file; None = by the name in the manifest.
        keep_failing: write the engine even if it is outside the tolerance.
        overwrite: replace an artifact that is there.
        **options: of `svd_hub.load`, with a name or file.

    Raises:
        OptionError: an artifact of another format, or a setting that is not allowed.
        SvdHubError: no CUDA device, no TensorRT that is new enough, or it does not build the graph.
        IntegrityError: the graph is not what it was.
        ParityError: the engine differs by more than the format table allows; nothing is left behind.
    """
    found = artifact.read(folder)
    if found.format.name not in ("onnx", "tensorrt"):
        raise OptionError(f"{folder} is {found.format.name}; allowed: onnx, tensorrt. Next: export it --to onnx")
    told = found.manifest["built"]
    chosen = options_of(settings if settings is not None else told.get("settings", {}))
    machine = here()
    artifact.check(found, but=(PLAN,))
    content = (found.folder / GRAPH).read_bytes()
    network, why = original(found, model, options)
    kept = {name: value for name, value in found.manifest.items() if name not in _NEW}
    graph_facts = {name: told[name] for name in ("opset", "operators") if name in told}
    with artifact.beside(Path(out), overwrite=overwrite) as made:
        for name in (GRAPH, artifact.PREPROCESS, artifact.GOLDEN):
            shutil.copyfile(found.folder / name, made / name)
        if refit_from is not None:
            built = _refitted(content, found, artifact.read(refit_from), machine, made)
        else:
            built = _planned(content, found.manifest, chosen, machine, made)
        manifest = {**kept, "format": "tensorrt", "built": {**graph_facts, **built}}
        sealed = artifact.seal(made, manifest)
        checked = held(sealed, Runner(made, check=False), network, why=why)
        report = checked.parity or checked.golden
        if report is not None:
            artifact.seal(made, {**manifest, "parity": report.data()})
        if report is not None and not checked.passed and not keep_failing:
            lines = "\n".join(report.lines())
            raise ParityError(
                f"the engine of {kept['entry']} differs by more than the format table allows:\n{lines}\nNext: another "
                "precision, or keep_failing=True to look at it",
                report,
            )
    return artifact.read(out)


def _planned(
    content: bytes, facts: Mapping[str, Any], options: EngineOptions, machine: Here, folder: Path
) -> dict[str, Any]:
    """Build an engine into a folder and return what the manifest says of it."""
    from .building import plan

    refuse_operators(content, machine.tensorrt)
    profile = {name: facts["profile"][name] for name in SHAPES}
    with board() as told:
        built = plan(content, profile, options, machine, told)
    return _written(built, content, facts, options, machine, folder)


def _refitted(content: bytes, found: Artifact, donor: Artifact, machine: Here, folder: Path) -> dict[str, Any]:
    """Write an engine's plan with other weights into a folder and return what the manifest says of it.

    Raises:
        OptionError: the engine is not of the same graph, or was not built to be refitted.
    """
    from .refitting import refitted

    refuse_other(donor, machine)
    artifact.check(donor)
    options = options_of(donor.manifest["built"]["settings"])
    for name in ("precision", "profile", "operators"):
        wanted, has = (told.get(name, told["built"].get(name)) for told in (found.manifest, donor.manifest))
        if wanted != has:
            raise OptionError(
                f"{donor.folder} cannot be refitted: its {name} is {has}, wanted {wanted}. Next: build anew"
            )
    if not options.refit or donor.precision == "int8":
        raise OptionError(
            f"{donor.folder} cannot be refitted; allowed: engines built with --set refit, not in int8. Next: build anew"
        )
    built = refitted((donor.folder / PLAN).read_bytes(), content, host_code=options.version_compatible)
    return _written(built, content, found.manifest, options, machine, folder)


def _written(
    plan: bytes, content: bytes, facts: Mapping[str, Any], options: EngineOptions, machine: Here, folder: Path
) -> dict[str, Any]:
    (folder / PLAN).write_bytes(plan)
    key = new_key(facts, hashlib.sha256(content).hexdigest(), options, machine)
    return {"key": key.data(), "settings": options.data(), "bytes": len(plan)}


class Runner:
    """Runs model.plan with arrays; see `contract.Runner`, and `TensorRTModule` for tensors."""

    def __init__(self, folder: Path, *, index: int = 0, check: bool = True, **options: Any) -> None:
        here(index)
        from .module import TensorRTModule

        self.module = TensorRTModule(folder, index=index, check=check)
        self.provider = self.module.provider

    def __call__(self, volume: np.ndarray) -> dict[str, np.ndarray]:
        """Return the outputs by name for a volume (N, C, D, H, W), float32."""
        found = self.module(torch.from_numpy(volume))
        return {name: tensor.cpu().numpy() for name, tensor in found.items()}
