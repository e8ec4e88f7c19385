"""python benchmarks/start.py: from the start of a process to its first result, of a 134 MB network, by each runner.

ResNet3D-18 of full width is exported once into --artifacts. Then processes begin in turn, one for each way; each
imports what it needs, reads the artifact with its hashes checked, and runs one volume of 1x1x3x224x224, on all cores,
as a runner does by itself. Aim: below one second for the runners that import no torch. Wall time as the one who waits
sees it, so the machine should be quiet.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from facts import keep
from inference import NAME, artifact_of

import svd_hub

AIM = 1.0
_RUN = "import numpy; x = numpy.zeros((1, 1, 3, 224, 224), numpy.float32)\n"
WAYS = {
    "ONNX Runtime": ("onnx", "from svd_hub.export.run_onnx import Runner; Runner({!r})(x)"),
    "OpenVINO": ("openvino", "from svd_hub.export.run_openvino import Runner; Runner({!r})(x)"),
    "TorchScript": (
        "torchscript",
        "from pathlib import Path; from svd_hub.export.torchscript import Runner; Runner(Path({!r}))(x)",
    ),
}
_NO_TORCH = "\nimport sys; assert 'torch' not in sys.modules"


def seconds(code: str) -> float:
    """Return how long a fresh process takes for some code."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    return time.perf_counter() - begun


def main() -> None:
    """Measure and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--artifacts", type=Path, default=Path("runs/inference"))
    args = parser.parse_args()
    torch.manual_seed(0)
    model = svd_hub.load(NAME, weights=None)
    codes, size = {}, {}
    for name, (to, code) in WAYS.items():
        made = artifact_of(model, to, "fp32", args.artifacts)
        size[name] = made.manifest["built"]["bytes"]
        codes[name] = _RUN + code.format(str(made.folder.absolute())) + (_NO_TORCH if to != "torchscript" else "")
    times: dict[str, list[float]] = {name: [] for name in codes}
    for _ in range(args.rounds + 1):
        for name, code in codes.items():
            times[name].append(seconds(code))
    found = {
        name: {
            "bytes": size[name],
            "median_s": round(statistics.median(own[1:]), 3),
            "least_s": round(min(own[1:]), 3),
            "rounds": args.rounds,
        }
        for name, own in times.items()
    }
    met = {name: found[name]["median_s"] < AIM for name in ("ONNX Runtime", "OpenVINO")}
    keep(
        "start",
        {
            "network": NAME,
            "cores": os.cpu_count(),
            "shape": "1x1x3x224x224",
            "ways": found,
            f"median below {AIM} s": met,
        },
    )


if __name__ == "__main__":
    main()
