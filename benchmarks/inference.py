"""python benchmarks/inference.py: how fast one network runs in each format and precision on a CPU, against eager fp32.

ResNet3D-18 of full width with random weights, on one thread, at three shapes. Everything that a format needs is
exported first, with its parity measured (`svd_hub.export`), into --artifacts, where a second run finds it. All ways run
in turn in one process, and ratios are of medians of process time, so that other work on the machine counts little. A
way that this machine cannot go is named with the reason. On a GPU it is `svd-hub export gpu-report`.
`inference_report.py` makes the table and the picture.
"""

from __future__ import annotations

import argparse
import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import torch._inductor.config
from facts import alternate, keep

import svd_hub
from svd_hub.errors import SvdHubError
from svd_hub.export import artifact, export
from svd_hub.export.gpu_timing import channels_last, first_line
from svd_hub.export.inputs import probe

SHAPES = ((1, 1, 3, 224, 224), (1, 1, 32, 128, 128), (8, 1, 48, 48, 48))
NAME, EAGER = "resnet3d18_imagenet", "eager fp32"
# way -> the ratio to eager it must not exceed, at the first two of the shapes
AIMS = {
    "optimised fp32": (0.45, 0.92),
    "optimised bf16": (0.22, 0.55),
    "OpenVINO fp32": (0.38, 0.88),
    "OpenVINO bf16": (0.20, 0.48),
    "OpenVINO int8": (0.11, 0.27),
}
Call = Callable[[], Any]


def in_torch(model: Any, x: torch.Tensor) -> dict[str, Callable[[], Call]]:
    """Return the ways of torch itself: name -> what prepares one and returns its call."""
    last = x.contiguous(memory_format=torch.channels_last_3d)

    def eager_last() -> Call:
        network = channels_last(copy.deepcopy(model))
        return lambda: network(last)

    def autocast() -> Call:
        network = channels_last(copy.deepcopy(model))

        def call() -> Any:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return network(last)

        return call

    def optimised(dtype: str) -> Call:
        network = svd_hub.optimize_for_inference(model, dtype=dtype)
        return lambda: network(x)

    def compiled() -> Call:
        network = torch.compile(copy.deepcopy(model), dynamic=False)
        with torch._inductor.config.patch(freezing=True):  # as an option of torch.compile it does nothing
            network(x)
        return lambda: network(x)

    return {
        EAGER: lambda: lambda: model(x),
        "eager fp32, channels_last_3d": eager_last,
        "eager bf16 autocast, channels_last_3d": autocast,
        "optimised fp32": lambda: optimised("float32"),
        "optimised bf16": lambda: optimised("bfloat16"),
        "torch.compile fp32, frozen": compiled,
    }


def exported(x: np.ndarray, made: dict[str, artifact.Artifact | Exception]) -> dict[str, Callable[[], Call]]:
    """Return the ways of the export formats: name -> what prepares one and returns its call."""

    def there(name: str) -> artifact.Artifact:
        if isinstance(found := made[name], Exception):
            raise found
        return found

    def torchscript() -> Call:
        module = torch.jit.load(str(there("torchscript fp32").model)).eval()
        fast, volume = torch.jit.optimize_for_inference(torch.jit.freeze(module)), torch.from_numpy(x)
        return lambda: fast(volume)

    def onnx(precision: str) -> Call:
        from svd_hub.export.run_onnx import Runner

        run = Runner(there(f"onnx {precision}").folder, threads=1)
        return lambda: next(iter(run(x).values()))

    def openvino(precision: str) -> Call:
        from svd_hub.export.run_openvino import Runner

        run = Runner(there(f"openvino {precision}").folder, threads=1)
        return lambda: next(iter(run(x).values()))

    return {
        "TorchScript fp32, optimised at load": torchscript,
        "ONNX Runtime fp32": lambda: onnx("fp32"),
        "ONNX Runtime int8": lambda: onnx("int8"),
        "OpenVINO fp32": lambda: openvino("fp32"),
        "OpenVINO bf16": lambda: openvino("bf16"),
        "OpenVINO int8": lambda: openvino("int8"),
    }


def artifact_of(model: Any, to: str, precision: str, folder: Path) -> artifact.Artifact:
    """Return an artifact in `folder`, exported where it is not there yet; int8 is calibrated with smooth noise."""
    place = folder / f"{to}_{precision}"
    if not place.is_dir():
        data = [probe((1, *SHAPES[1][1:]), model.preprocess, seed=n)[0] for n in range(4)]
        options = {"images": data} if precision == "int8" else {}
        print(f"exporting {to} {precision}", flush=True)
        return export(model, to, place, precision=precision, shape=(32, 128, 128), **options)
    return artifact.read(place)


def artifacts(model: Any, folder: Path) -> dict[str, artifact.Artifact | Exception]:
    """Return "format precision" -> its artifact, or why it cannot be made here."""
    found: dict[str, artifact.Artifact | Exception] = {}
    for cell in ("torchscript fp32", "onnx fp32", "onnx int8", "openvino fp32", "openvino bf16", "openvino int8"):
        to, precision = cell.split()
        try:
            found[cell] = artifact_of(model, to, precision, folder)
        except SvdHubError as error:
            found[cell] = error
    return found


def measure(
    model: Any, shape: tuple[int, ...], made: dict[str, artifact.Artifact | Exception], rounds: int
) -> dict[str, Any]:
    """Return the ratios, differences and times of all ways at a shape; of one that cannot be gone, why."""
    x = probe(shape, model.preprocess, seed=1)
    calls: dict[str, Call] = {}
    told: dict[str, Any] = {}
    found: dict[str, torch.Tensor] = {}
    for name, prepare in (in_torch(model, torch.from_numpy(x)) | exported(x, made)).items():
        try:
            calls[name] = prepare()
            found[name] = torch.as_tensor(calls[name]()).clone()
        except (SvdHubError, RuntimeError) as error:  # no such library, compiler or arithmetic here
            calls.pop(name, None)
            told[name] = {"error": first_line(error)}
    times, wanted = alternate(calls, rounds), found[EAGER]
    for name, time in times.items():
        told[name] = {
            "ratio": round(time["process_s"] / times[EAGER]["process_s"], 3),
            "difference": float(f"{float((found[name] - wanted).norm() / wanted.norm()):.1e}"),
            **time,
        }
    return told


def aims_met(shapes: dict[str, dict[str, Any]]) -> dict[str, bool | None]:
    """Return which aims hold; None where the way could not be gone."""
    met: dict[str, bool | None] = {}
    for name, aims in AIMS.items():
        for most, (shape, found) in zip(aims, shapes.items(), strict=False):
            ratio = found[name].get("ratio")
            met[f"{name} <= {most} at {shape}"] = None if ratio is None else ratio <= most
    return met


def main() -> None:
    """Measure and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--artifacts", type=Path, default=Path("runs/inference"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = svd_hub.load(NAME, weights=None)
    made, shapes = artifacts(model, args.artifacts), {}
    with torch.inference_mode():
        for shape in SHAPES:
            shapes["x".join(map(str, shape))] = measure(model, shape, made, args.rounds)
    keep("inference", {"network": NAME, "shapes": shapes, "aims met": aims_met(shapes)})


if __name__ == "__main__":
    main()
