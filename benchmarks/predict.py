"""Sliding windows: ours, slab by slab, against MONAI's `sliding_window_inference`; and how many windows at once.

python benchmarks/predict.py

The same network, volume, windows, stride, blending and windows per batch; alternating, medians of process time. MONAI
holds the logits of the whole volume, ours those of one row of windows.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import median

import monai
import torch
from monai.inferers import sliding_window_inference

import svd_hub
from svd_hub.ops.blending import whole

RESULT = Path(__file__).parent / "results" / "predict.json"
ROUNDS = 20
SIDES, WINDOW, STRIDE = (64, 120, 120), (32, 80, 80), (16, 40, 40)


def alternate(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, float]]:
    """Return seconds of each call, process time and wall time, medians of alternating rounds."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for name in [*calls, *list(calls) * rounds]:
        process, wall = time.process_time(), time.perf_counter()
        calls[name]()
        taken[name].append((time.process_time() - process, time.perf_counter() - wall))
    return {
        name: {
            "process_s": round(median(t[0] for t in times[1:]), 4),
            "wall_s": round(median(t[1] for t in times[1:]), 4),
        }
        for name, times in taken.items()
    }


def compare(network: Callable, x: torch.Tensor, at_once: int, rounds: int) -> dict[str, object]:
    def ours() -> torch.Tensor:
        return whole(network, x, window=WINDOW, stride=STRIDE, at_once=at_once)

    def theirs() -> torch.Tensor:
        return sliding_window_inference(x, WINDOW, at_once, network, overlap=0.5, mode="gaussian")

    taken = alternate({"svd_hub": ours, "monai": theirs}, rounds)
    ratio = taken["svd_hub"]["process_s"] / taken["monai"]["process_s"]
    return {**taken, "ratio_process": round(ratio, 3), "largest_difference": float((ours() - theirs()).abs().max())}


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    x = torch.randn(1, 1, *SIDES)
    cheap = torch.nn.Conv3d(1, 4, 1)  # nearly all the time is windowing and blending
    unet = svd_hub.load("unet3d18w16_ctorgans")
    facts: dict[str, object] = {
        "date": date.today().isoformat(),
        "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "monai": monai.__version__,
        "sides": SIDES,
        "window": WINDOW,
        "stride": STRIDE,
        "rounds": ROUNDS,
    }
    with torch.inference_mode():
        facts["1x1x1 convolution, 4 windows at once"] = compare(cheap, x, 4, ROUNDS)
        facts["unet3d18w16_ctorgans, 4 windows at once"] = compare(unet, x, 4, ROUNDS)
        batches = {str(n): (lambda n=n: unet(x[:, :, :32, :80, :80].expand(n, -1, -1, -1, -1))) for n in (1, 2, 4, 8)}
        windows = alternate(batches, 5)
        facts["unet3d18w16_ctorgans, process seconds a window, by windows at once"] = {
            n: round(taken["process_s"] / int(n), 4) for n, taken in windows.items()
        }
    print(json.dumps(facts, indent=1))
    RESULT.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
