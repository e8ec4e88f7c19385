"""python benchmarks/loading.py DATA: does the loading of images keep up with what the training step consumes?

DATA holds `tiny_imagenet` and `detection_coco_mini` (whose pictures have 384 px; COCO's own have 640). For each recipe,
and for each size of its images, its own loader in this process and its own training step (forward, loss, backward,
optimiser; on a GPU where there is one) run in turn. `images_loaded_per_core_s` is by processor time, so that other
programs do not count; `images_trained_per_s` is by processor time on a CPU and by the clock on a GPU.
`cores_to_keep_up`: cores of loaders that give what the steps take. Aim: below 1 beside a CPU that trains.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from facts import alternate, keep

from svd_hub.training import recipe as recipes

# recipe, folder under DATA, settings, epochs whose image size is measured, batches a round, rounds
CASES: tuple[tuple[str, str, dict[str, Any], tuple[int, ...], int, int], ...] = (
    ("resnet3d18w16_tinyimagenet", "tiny_imagenet", {}, (0, 17), 1, 20),
    ("coco_resnet3d18", "detection_coco_mini", {}, (0,), 2, 5),
)
PRECISION = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def batches(data: Any, epoch: int) -> Iterator[Any]:
    """Yield the training batches of an epoch, again and again."""
    while True:
        data.place = (epoch, 0)
        yield from data.train_dataloader()


class Step:
    """A training step of a recipe's task on one batch."""

    def __init__(self, task: Any, batch: Any, precision: str) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.task, self.batch = task.to(self.device), moved(batch, self.device)
        self.optimiser = torch.optim.SGD([p for p in task.parameters() if p.requires_grad], lr=1e-6, momentum=0.9)
        half = PRECISION.get(precision)
        self.half = None if half is torch.float16 and self.device.type == "cpu" else half  # CPUs compute it in fp32

    def __call__(self) -> None:
        with torch.autocast(self.device.type, self.half, enabled=self.half is not None):
            loss = self.task.training_step(self.batch, 0)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def moved(batch: Any, device: torch.device) -> Any:
    """Return a batch on a device; its tuples stay what they are."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device)
    if isinstance(batch, tuple | list):
        parts = [moved(part, device) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return batch


def measure(name: str, folder: Path, settings: dict[str, Any], epoch: int, count: int, rounds: int) -> dict[str, Any]:
    """Return images a second of loader and step of a recipe in one epoch."""
    asked = {"data.init_args.folder": str(folder), "data.init_args.workers": 0, **settings}
    recipe = recipes.read(name, asked)
    task, data = recipe.make()
    data.setup("fit")
    loader = batches(data, epoch)
    first: Any = next(loader)
    step = Step(task.train(), first, recipe.settings.precision)
    cases = {"loading": lambda: [next(loader) for _ in range(count)], "step": step}
    times = alternate(cases, rounds)
    images = next(len(part) for part in first if isinstance(part, torch.Tensor))
    busy = "wall_s" if step.device.type == "cuda" else "process_s"
    loaded, consumed = count * images / times["loading"]["process_s"], images / times["step"][busy]
    return {
        "recipe": name,
        "image": list(first[0].shape[-2:]),
        "precision": "fp32" if step.half is None else recipe.settings.precision,
        "batch": images,
        "images_loaded_per_core_s": round(loaded, 1),
        "images_trained_per_s": round(consumed, 2),
        "cores_to_keep_up": round(consumed / loaded, 4),
        "times": times,
    }


def main() -> None:
    """Measure and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found = [
        measure(name, asked.data / folder, settings, epoch, count, rounds)
        for name, folder, settings, epochs, count, rounds in CASES
        for epoch in epochs
    ]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    keep("loading", {"cores": cores, "cases": found})


if __name__ == "__main__":
    main()
