"""Memory of a whole prediction, file to files, by the length of the volume: peak RSS beyond an idle Predictor.

python benchmarks/memory_predict.py        250, 500 and 1,000 slices of 512 x 512; about 4 GB in the temporary folder

Each length runs in a process of its own (narrow UNet3D, windows of 32 x 256 x 256); the volume is written by another.
What is counted beyond: the peak of the process, less what it had before it was given the input.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

LENGTHS = (250, 500, 1000)
RESULT = Path(__file__).parent / "results" / "memory_predict.json"


def make(path: Path, length: int) -> None:
    """Write a CT-like volume: a cylinder of tissue in air, with noise."""
    import numpy as np

    from svd_hub.volume import Volume, memory, write_image

    rng = np.random.default_rng(0)
    y, x = np.mgrid[:512, :512] - 255.5
    body = np.where(np.hypot(x, y) < 200, 40, -1000)
    array = memory.empty((length, 512, 512), np.int16)
    for (plane,) in memory.planes(array):
        plane[...] = body + rng.integers(-20, 20, body.shape)
    write_image(Volume.from_array(array, spacing=(1.0, 0.8, 0.8), modality="CT"), path)


def network(path: Path) -> None:
    """Write a narrow segmenter without training."""
    import torch

    import svd_hub

    torch.manual_seed(0)
    backbone = svd_hub.load("resnet3d18w16_tinyimagenet", weights=None, width=4)
    rule = svd_hub.Preprocess(modality="CT", window=(-200, 300), scale=(0, 255), mean=114.495, std=57.63)
    options = {"encoder_options": {"stem_pool": False, "stem_stride": 2}, "head_channels": 4}
    model = svd_hub.task_model(backbone, "unet3d", num_classes=3, preprocess=rule, **options)
    model.inference = svd_hub.Inference(window=(32, 256, 256), stride=(24, 256, 256), largest=("class1",))
    svd_hub.save(model, path)


def run(weights: Path, volume: Path, out: Path) -> None:
    """Predict in this process, and print how much memory that took."""
    import resource

    import torch

    from svd_hub.predict import Predictor, find_inputs, predict_files

    torch.set_num_threads(1)
    predictor = Predictor(str(weights))
    before = resident()
    started = time.process_time()
    (case,) = predict_files(predictor, find_inputs([volume]), out)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    facts = {"state": case.state, "error": case.error, "before_mb": round(before), "peak_mb": round(peak)}
    print(json.dumps({**facts, "beyond_mb": round(peak - before), "process_s": round(time.process_time() - started)}))


def resident() -> float:
    """Return the memory this process has now, MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ending", default="nii", help="nii, nii.gz, nrrd or mha")
    parser.add_argument("--step", nargs="+", help="used by the script itself")
    asked = parser.parse_args()
    if asked.step:
        name, *arguments = asked.step
        if name == "make":
            make(Path(arguments[0]), int(arguments[1]))
        elif name == "network":
            network(Path(arguments[0]))
        else:
            run(*map(Path, arguments))
        return
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "narrow.safetensors"
        step("network", weights)
        for length in LENGTHS:
            volume = Path(folder) / f"volume.{asked.ending}"
            step("make", volume, length)
            found[length] = json.loads(step("run", weights, volume, Path(folder) / f"out{length}").splitlines()[-1])
            print(length, found[length])
            volume.unlink()
    beyond = [facts["beyond_mb"] for facts in found.values()]
    facts = {
        "date": date.today().isoformat(),
        "machine": platform.machine(),
        "ending": asked.ending,
        "lengths": found,
        "largest_to_smallest": round(max(beyond) / min(beyond), 3),
    }
    print(json.dumps(facts, indent=1))
    RESULT.write_text(json.dumps(facts, indent=1) + "\n")


def step(name: str, *arguments: object) -> str:
    command = [sys.executable, __file__, "--step", name, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
