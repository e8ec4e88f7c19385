"""python benchmarks/predict_runtimes.py CT SCANS: a whole CT to its mask, by the network in torch and its artifacts.

The bundled segmenter, on one thread: reading, resampling, windows and blending are the same code for all, so what is
won is less than `inference.py` says of the network alone. All ways run in turn in one process; ratios are of medians of
process time. Each mask is compared with torch's by Dice, the mean over the labels that either has. Artifacts are
measured, and int8 is calibrated, on SCANS: other CTs than the one that is predicted.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from facts import alternate, keep

import svd_hub
from svd_hub.errors import SvdHubError
from svd_hub.export import export, predictor

NAME, EAGER = "unet3d18w16_ctorgans", "torch"
CELLS = (("onnx", "fp32"), ("openvino", "fp32"), ("openvino", "bf16"), ("openvino", "int8"))


def ways(scans: Path, folder: Path) -> dict[str, Any]:
    """Return name -> a predictor, or why there is none here."""
    model = svd_hub.load(NAME)
    found: dict[str, Any] = {
        EAGER: svd_hub.Predictor(model, device="cpu"),
        "torch, optimize_for_inference": svd_hub.Predictor(svd_hub.optimize_for_inference(model), device="cpu"),
    }
    for to, precision in CELLS:
        name = f"{to} {precision}"
        print(f"exporting {name}", flush=True)
        try:
            made = export(model, to, folder / name.replace(" ", "_"), precision=precision, images=scans)
            found[name] = predictor(made.folder, threads=1)
        except SvdHubError as error:
            found[name] = error
    return found


def dice(one: np.ndarray, other: np.ndarray) -> float:
    """Return the mean Dice of all labels above 0 that either mask has."""
    labels = sorted({*np.unique(one), *np.unique(other)} - {0})
    return float(
        np.mean([2 * ((one == k) & (other == k)).sum() / ((one == k).sum() + (other == k).sum()) for k in labels])
    )


def main() -> None:
    """Measure and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ct", type=Path, help="A NIfTI file of an abdomen.")
    parser.add_argument("scans", type=Path, help="A folder of others.")
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = ways(args.scans, Path(folder))
        calls = {
            name: (lambda one=one: one(args.ct)) for name, one in found.items() if not isinstance(one, SvdHubError)
        }
        masks = {name: call().labels for name, call in calls.items()}
        times = alternate(calls, args.rounds)
    told = {name: {"error": str(one).split("\n")[0]} for name, one in found.items() if isinstance(one, SvdHubError)}
    for name, time in times.items():
        ratio = time["process_s"] / times[EAGER]["process_s"]
        told[name] = {"ratio": round(ratio, 3), "dice": round(dice(masks[name], masks[EAGER]), 5), **time}
    keep("predict_runtimes", {"network": NAME, "voxels": list(masks[EAGER].shape), "ways": told})


if __name__ == "__main__":
    main()
