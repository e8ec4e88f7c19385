"""What runtimes make of an ONNX artifact on a device: parity, where the nodes ran, an engine."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import artifact
from .artifact import Artifact
from .network import Network
from .run_onnx import Runner
from .verifying import held

# Operators that hold the arithmetic of a network: one of these on the CPU, and the GPU was not what was measured.
HEAVY = ("Conv", "FusedConv", "ConvTranspose", "Gemm", "MatMul", "FusedMatMul", "RoiAlign", "InstanceNormalization")


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


def by_tensorrt(found: Artifact, network: Network | None, folder: Path) -> dict[str, Any]:
    """Build an engine of an artifact's graph into a folder and return its parity; only a note without TensorRT.

    Raises:
        SvdHubError: it is not built, or does not compute the same.
    """
    if find_spec("tensorrt") is None:
        return {"note": 'not installed: pip install "svd-hub[tensorrt]"', "passed": True}
    from .tensorrt.artifacts import engine

    begun = time.perf_counter()
    made = engine(found.folder, folder, model=network.source if network is not None else None)
    told = made.manifest["built"]
    return {
        "release": told["key"]["tensorrt"],
        "seconds_with_parity": round(time.perf_counter() - begun, 1),
        "bytes": told["bytes"],
        "parity": made.manifest["parity"],
        "passed": True,
    }
