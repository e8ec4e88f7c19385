"""What every result says about the machine it was measured on, and how results are kept."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Return the processor's features, threads and versions; no host name, no path."""
    flags: set[str] = set()
    if (info := Path("/proc/cpuinfo")).is_file():
        line = next((row for row in info.read_text().splitlines() if row.startswith("flags")), "")
        flags = {flag for flag in line.split() if flag.startswith(("avx", "amx", "sha_ni"))}
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "threads": torch.get_num_threads(),
        "flags": sorted(flags),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def alternate(cases: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
    """Run the cases in turn, `rounds` times after one warm-up; return medians of wall and process seconds."""
    wall: dict[str, list[float]] = {name: [] for name in cases}
    process: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(rounds + 1):
        for name, case in cases.items():
            begun, used = time.perf_counter(), time.process_time()
            case()
            if turn:
                wall[name].append(time.perf_counter() - begun)
                process[name].append(time.process_time() - used)
    return {
        name: {"wall_s": statistics.median(wall[name]), "process_s": statistics.median(process[name]), "rounds": rounds}
        for name in cases
    }


def keep(name: str, result: dict[str, Any]) -> None:
    """Print a result and write it to `results/NAME.json`."""
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"machine": machine(), **result}, indent=1)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    print(text)
