"""python benchmarks/inference.py: how fast one network runs in each format and precision, against eager fp32.

ResNet3D-18 of full width with random weights, on one thread, at the two shapes of the aims. All variants run in turn in
one process; ratios are of medians of process time, so that other work on the machine counts little.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from facts import alternate, keep

import svd_hub

SHAPES = ((1, 1, 3, 224, 224), (1, 1, 32, 128, 128))
NAME, EAGER = "resnet3d18_imagenet", "eager fp32"
# variant -> the ratio to eager it must not exceed, at each of the shapes
AIMS = {"optimised fp32": (0.45, 0.92), "optimised bf16": (0.22, 0.55)}


def variants(model: Any, shape: tuple[int, ...]) -> dict[str, Callable[[], Any]]:
    """Return a call for each variant of the network, all of the same input."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    single, half = (svd_hub.optimize_for_inference(model, dtype=dtype) for dtype in ("float32", "bfloat16"))
    return {EAGER: lambda: model(x), "optimised fp32": lambda: single(x), "optimised bf16": lambda: half(x)}


def differences(cases: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Return the relative difference of each variant's output to eager's, as norms."""
    found = {name: torch.as_tensor(case()) for name, case in cases.items()}
    wanted = found[EAGER]
    return {name: float((out - wanted).norm() / wanted.norm()) for name, out in found.items()}


def measure(model: Any, shape: tuple[int, ...], rounds: int) -> dict[str, Any]:
    """Return the ratios, differences and times of all variants at a shape."""
    cases = variants(model, shape)
    with torch.inference_mode():
        told = differences(cases)
        times = alternate(cases, rounds)
    base = times[EAGER]["process_s"]
    return {
        name: {"ratio": round(times[name]["process_s"] / base, 3), "difference": told[name], **times[name]}
        for name in cases
    }


def main() -> None:
    """Measure and keep."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=20)
    rounds = options.parse_args().rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = svd_hub.load(NAME, weights=None)
    shapes = {"x".join(map(str, shape)): measure(model, shape, rounds) for shape in SHAPES}
    met = {
        f"{name} <= {most} at {shape}": found[name]["ratio"] <= most
        for name, aims in AIMS.items()
        for most, (shape, found) in zip(aims, shapes.items(), strict=True)
    }
    keep("inference", {"network": NAME, "shapes": shapes, "aims met": met})


if __name__ == "__main__":
    main()
