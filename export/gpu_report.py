"""One command for a machine with a GPU: what artifacts compute and how fast they are there, as one report.

>>> from svd_hub.export.gpu_report import gpu_report
>>> gpu_report("out", to="report.json")["passed"]  # or: svd-hub export gpu-report out --out report.json

For each ONNX artifact: parity by ONNX Runtime's CUDA provider with what the network gives in eager fp32 on the CPU,
and which node ran where; an engine of TensorRT, where that is installed, with its parity; and the times of all beside
eager on the same GPU. What could not be run says why, and the rest goes on.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from .gpu_runtimes import Device, by_onnxruntime, by_tensorrt
from .gpu_timing import Timed, alternate, bound, eager_ways, first_line
from .network import Network
from .run_onnx import Runner
from .verifying import original

SCHEMA = 1
ROUNDS = 30
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What is timed: shapes, None = an artifact's typical and largest; rounds; and whether by torch.compile too."""

    shapes: Sequence[Sequence[int]] | None = None
    rounds: int = ROUNDS
    compiled: bool = False


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
    with tempfile.TemporaryDirectory() as name:
        engine = Path(name) / "engine"
        say("  ONNX Runtime")
        runtime = _tried(lambda: by_onnxruntime(found, network, why, place))
        say("  TensorRT")
        built = _tried(lambda: by_tensorrt(found, network, engine))
        times = {}
        for shape in _shapes(found, timing):
            name = "x".join(map(str, shape))
            say(f"  times at {name}")
            volume = inputs.probe(shape, getattr(network.source, "preprocess", None) if network else None, seed=0)
            ways = ways_of(found, network, place, volume, timing) | engine_ways(engine, volume, place)
            times[name] = alternate(ways, place.wait, timing.rounds, base="eager fp32")
    named = {key: told[key] for key in ("entry", "kind", "precision", "weights_sha256", "artifact_sha256")}
    passed = runtime["passed"] and built["passed"]
    return {**named, "onnxruntime": runtime, "tensorrt": built, "times": times, "passed": passed}


def _tried(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what a runtime gave, or its error: a report of what failed is a report."""
    try:
        return work()
    except Exception as error:  # ONNX Runtime's errors share no base
        return {"error": first_line(error), "passed": False}


def _shapes(found: Artifact, timing: Timing) -> list[tuple[int, ...]]:
    """Return the shapes (N, C, D, H, W) to time at, each once."""
    told = found.manifest["profile"]
    asked = timing.shapes or [told[name] for name in ("typical", "largest")]
    channels = told["typical"][1]
    return list(dict.fromkeys((1, channels, *sides) if len(sides) == 3 else tuple(sides) for sides in asked))


def ways_of(
    found: Artifact, network: Network | None, place: Device, volume: np.ndarray, timing: Timing
) -> dict[str, Timed]:
    """Return torch's own ways of running a volume, and those of ONNX Runtime."""
    there = torch.from_numpy(volume).to(place.torch)
    ways: dict[str, Timed] = {}
    if network is not None:
        ways |= eager_ways(network.source, network.kind, there, compiled=timing.compiled)
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
    return ways


def engine_ways(folder: Path, volume: np.ndarray, place: Device) -> dict[str, Timed]:
    """Return the ways of running a volume by an engine, where one was built."""
    if not folder.exists():
        return {}
    from .tensorrt import TensorRTModule

    run = TensorRTModule(folder)
    there = torch.from_numpy(volume).to(place.torch)
    name = f"tensorrt {run.key.precision}"
    return {name: Timed(partial(run, there)), f"{name}, from the host": Timed(partial(run, torch.from_numpy(volume)))}


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
        found.append(f"  TensorRT: {_engine_line(part['tensorrt'])}")
        for shape, ways in part["times"].items():
            found.append(f"  {shape}")
            for name, told in ways.items():
                ratio = f"  {told['ratio']:.3f}" if "ratio" in told else ""
                found.append(f"    {name:<40}" + (told.get("error") or f"{told['median_ms']:>10.3f} ms{ratio}"))
    return found


def _engine_line(told: Mapping[str, Any]) -> str:
    if "release" not in told:
        return str(told.get("error") or told["note"])
    worst = max(max(case["errors"].values()) for case in told["parity"]["cases"])
    return f"{told['release']}, built and measured in {told['seconds_with_parity']} s, largest error {worst:.1e}"
