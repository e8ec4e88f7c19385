"""One command for a machine with a GPU: what artifacts compute and how fast they are there, as one report.

>>> from svd_hub.export.gpu_report import gpu_report
>>> gpu_report("out", to="report.json")["passed"]  # or: svd-hub export gpu-report out --out report.json

For each ONNX artifact: parity by ONNX Runtime's CUDA provider with what the network gives in eager fp32 on the CPU,
which node ran where, and times beside eager on the same GPU. What could not be run says why, and the rest goes on.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import OptionError, SvdHubError
from . import artifact, inputs
from .artifact import Artifact
from .gpu import require_gpu
from .gpu_timing import Timed, alternate, bound, eager_ways, first_line
from .network import Network
from .run_onnx import Runner
from .verifying import held, original

SCHEMA = 1
ROUNDS = 30
# Operators that hold the arithmetic of a network: one of these on the CPU, and the GPU was not what was measured.
HEAVY = ("Conv", "FusedConv", "ConvTranspose", "Gemm", "MatMul", "FusedMatMul", "RoiAlign", "InstanceNormalization")
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What is timed: shapes, None = an artifact's typical and largest; rounds; and whether by torch.compile too."""

    shapes: Sequence[Sequence[int]] | None = None
    rounds: int = ROUNDS
    compiled: bool = False


@dataclass(frozen=True, kw_only=True)
class Device:
    """Where the report is made.

    Attributes:
        torch: the device of torch.
        provider: of ONNX Runtime, as `run_onnx.SHORT` has it.
        exact: settings of that provider with which fp32 is fp32 (on GPUs since Ampere it is TF32 else).
        facts: of the device, for the report.
    """

    torch: torch.device
    provider: str
    exact: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def wait(self) -> None:
        """Return when the device has done what it was given."""
        if self.torch.type == "cuda":
            torch.cuda.synchronize(self.torch)


def cuda_device() -> Device:
    """Return the first GPU.

    Raises:
        SvdHubError: there is none.
    """
    gpu = require_gpu("the report", instead="on CPUs, svd-hub export verify DIR")
    return Device(
        torch=gpu.device,
        provider="cuda",
        exact={"use_tf32": "0"},
        facts={
            "name": gpu.name,
            "compute_capability": gpu.compute_capability,
            "multiprocessors": gpu.multiprocessors,
            "memory_bytes": gpu.memory_bytes,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        },
    )


def gpu_report(
    folder: str | os.PathLike[str],
    *,
    to: str | os.PathLike[str] | None = None,
    model: Any = None,
    timing: Timing = Timing(),
    device: Device | None = None,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Return, and write, what the ONNX artifacts of a folder compute on this machine's GPU, and how fast.

    Args:
        folder: an artifact, or a folder of artifacts of one network in several precisions.
        to: the report's file; None = it is only returned.
        model: the network, its name or file; None = by the name in each manifest.
        timing: what is timed; torch.compile takes a minute for each shape.
        device: None = the first GPU.
        say: is called with each line of progress.

    Raises:
        SvdHubError: there is no CUDA device.
        OptionError: no ONNX artifact there.
    """
    place = device or cuda_device()
    found = artifacts_of(Path(folder))
    parts = []
    for one in found:
        say(f"{one.manifest['entry']} {one.precision}")
        parts.append(_part(one, model, place, timing, say))
    report = {
        "schema": SCHEMA,
        "date": datetime.now(UTC).date().isoformat(),
        "device": dict(place.facts),
        "versions": artifact.versions(),
        "rounds": timing.rounds,
        "artifacts": parts,
        "passed": bool(parts) and all(part["passed"] for part in parts),
    }
    if to is not None:
        artifact.write_json(Path(to), report)
    return report


def artifacts_of(folder: Path) -> list[Artifact]:
    """Return the ONNX artifacts of a folder: itself, or those in it.

    Raises:
        OptionError: there is none.
        CheckpointError: an artifact is damaged.
    """
    if (folder / artifact.MANIFEST).is_file():
        found = [artifact.read(folder)]
    else:
        inside = (
            sorted(path for path in folder.iterdir() if (path / artifact.MANIFEST).is_file()) if folder.is_dir() else []
        )
        found = [artifact.read(path) for path in inside]
    fit = [one for one in found if one.format.name == "onnx"]
    if not fit:
        others = ", ".join(sorted({one.format.name for one in found})) or "nothing that svd-hub export wrote"
        raise OptionError(
            f"{folder} holds {others}; allowed: ONNX artifacts. Next: svd-hub export ENTRY --to onnx --out DIR"
        )
    return fit


def _part(found: Artifact, model: Any, place: Device, timing: Timing, say: Say) -> dict[str, Any]:
    """Return what is to be said of one artifact."""
    told = found.manifest
    artifact.check(found)
    network, why = original(found, model, {})
    say("  parity by ONNX Runtime")
    try:
        runtime = by_onnxruntime(found, network, why, place)
    except Exception as error:  # a report of what failed is a report; ONNX Runtime's errors share no base
        runtime = {"error": first_line(error), "passed": False}
    times = {}
    for shape in _shapes(found, timing):
        name = "x".join(map(str, shape))
        say(f"  times at {name}")
        volume = inputs.probe(shape, getattr(network.source, "preprocess", None) if network else None, seed=0)
        times[name] = timed(found, network, place, volume, timing)
    named = {key: told[key] for key in ("entry", "kind", "precision", "weights_sha256", "artifact_sha256")}
    return {**named, "onnxruntime": runtime, "times": times, "passed": runtime["passed"]}


def _shapes(found: Artifact, timing: Timing) -> list[tuple[int, ...]]:
    """Return the shapes (N, C, D, H, W) to time at, each once."""
    told = found.manifest["profile"]
    asked = timing.shapes or [told[name] for name in ("typical", "largest")]
    channels = told["typical"][1]
    return list(dict.fromkeys((1, channels, *sides) if len(sides) == 3 else tuple(sides) for sides in asked))


# ---- ONNX Runtime ----------------------------------------------------------------------------------------------------


def by_onnxruntime(found: Artifact, network: Network | None, why: str, place: Device) -> dict[str, Any]:
    """Return parity by ONNX Runtime on the device, and where the nodes of the graph ran.

    Raises:
        SvdHubError: it cannot be run there.
    """
    run = Runner(found.folder, provider=place.provider, settings=place.exact, check=False)
    checked = held(found, run, network, why=why)
    reports = {"golden": checked.golden, "parity": checked.parity}
    volume, _ = artifact.golden(found)
    nodes = placed(found, place, volume)
    astray = strayed(nodes, run.wanted)
    return {
        "provider": run.provider,
        **{name: None if report is None else report.data() for name, report in reports.items()},
        "note": checked.note,
        "nodes": {provider: sum(counts.values()) for provider, counts in nodes.items()},
        "strayed": astray,
        "passed": checked.passed and not astray,
    }


def strayed(nodes: Mapping[str, Mapping[str, int]], wanted: str) -> dict[str, int]:
    """Return the operators with a network's arithmetic that ran on another provider than the wanted one."""
    others = (counts for provider, counts in nodes.items() if provider != wanted)
    return {operator: count for counts in others for operator, count in counts.items() if operator in HEAVY}


def placed(found: Artifact, place: Device, volume: np.ndarray) -> dict[str, dict[str, int]]:
    """Return provider -> operator -> how many nodes ran there, as ONNX Runtime's own profile of a run says."""
    with tempfile.TemporaryDirectory() as folder:
        run = Runner(
            found.folder, provider=place.provider, settings=place.exact, check=False, profile=Path(folder, "p")
        )
        run(volume)
        events = json.loads(Path(run.session.end_profiling()).read_text(encoding="utf-8"))
    nodes: dict[str, tuple[str, str]] = {}
    for event in events:
        told = event.get("args", {})
        if event.get("cat") == "Node" and told.get("provider") and event["name"].endswith("_kernel_time"):
            nodes[event["name"]] = (told["provider"], told["op_name"])
    counts: dict[str, dict[str, int]] = {}
    for provider, operator in nodes.values():
        row = counts.setdefault(provider, {})
        row[operator] = row.get(operator, 0) + 1
    return {provider: dict(sorted(row.items())) for provider, row in sorted(counts.items())}


# ---- times -----------------------------------------------------------------------------------------------------------


def timed(
    found: Artifact, network: Network | None, place: Device, volume: np.ndarray, timing: Timing
) -> dict[str, Any]:
    """Return the milliseconds of each way of running one volume, all taken in turn, and ratios to eager fp32."""
    there = torch.from_numpy(volume).to(place.torch)
    ways: dict[str, Timed] = {}
    if network is not None:
        ways |= eager_ways(network.source, network.kind, there, compiled=timing.compiled)  # type: ignore[arg-type]
    own = f"onnxruntime {found.precision}"
    settings = {own: place.exact}
    if place.exact and found.precision == "fp32":
        settings["onnxruntime tf32"] = {}
    for name, setting in settings.items():
        try:
            run = Runner(found.folder, provider=place.provider, settings=setting, check=False)
        except SvdHubError as error:
            ways[name] = Timed(error=str(error))
            continue
        ways[name] = Timed(bound(run.session, there, found.outputs))
        if name == own:
            ways[f"{name}, from and to the host"] = Timed(partial(run, volume))
    return alternate(ways, place.wait, timing.rounds, base="eager fp32")


def lines(report: Mapping[str, Any]) -> list[str]:
    """Return a report for people."""
    device = report["device"]
    found = [f"{report['date']}  {device.get('name', 'cpu')}  torch {report['versions']['torch']}"]
    for part in report["artifacts"]:
        runtime = part["onnxruntime"]
        found.append(f"{part['entry']} {part['precision']}: {'passed' if part['passed'] else 'FAILED'}")
        if "error" in runtime:
            found.append(f"  ONNX Runtime: {runtime['error']}")
        else:
            cases = [case for name in ("golden", "parity") if runtime[name] for case in runtime[name]["cases"]]
            worst = max(max(case["errors"].values()) for case in cases)
            found.append(
                f"  {runtime['provider']}: largest error {worst:.1e} at {len(cases)} shapes; {runtime['nodes']}"
            )
            if runtime["strayed"]:
                found.append(f"  not on the GPU: {runtime['strayed']}")
        for shape, ways in part["times"].items():
            found.append(f"  {shape}")
            for name, told in ways.items():
                ratio = f"  {told['ratio']:.3f}" if "ratio" in told else ""
                found.append(f"    {name:<40}" + (told.get("error") or f"{told['median_ms']:>10.3f} ms{ratio}"))
    return found
