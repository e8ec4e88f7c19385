"""python benchmarks/transfer.py STUDY DATA --weights DIR: does pre-training help? Every arm under the same budget.

STUDY is `nodules` (LIDC malignancy), `masks` (LIDC segmentation) or `hippocampus` (label fractions). Arms differ in `init`
alone: scratch, I3D and ACS of the 2D twin, ours with depth strides in pre-training, ours, ours shuffled inside every
convolution. LIDC is cross-validated over folds 0-3 by patient; an arm's learning rate is chosen of two for each fold, on one of the
three folds that are trained on, with seed 0; then each seed is trained on all three and measured on the fold left out.

Every run is `svd-hub train RECIPE` with other settings, in a folder of its own under --runs; finished ones are read
again. --workers runs go side by side; behind --minutes no further run begins, and the same command goes on. The result is written by
`transfer_report.py`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starts import ARMS, make

FOLDS = (0, 1, 2, 3)
FRACTIONS = (0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True)
class Study:
    """A recipe, what every run of the study changes in it, and what is chosen and measured."""

    recipe: str
    settings: dict[str, Any]
    rates: tuple[float, float]
    metric: str
    arms: tuple[str, ...] = ARMS


STUDIES = {
    "nodules": Study(
        "resnet3d18w16_lidc",
        {"run.epochs": 20, "data.init_args.batch_size": 32},
        (5e-4, 1.5e-3),
        "val/auc",
    ),
    "masks": Study(
        "fcn3d18w16_lidc",
        {"run.epochs": 8, "data.init_args.batch_size": 16},
        (1e-3, 3e-3),
        "val/dice_pooled",
    ),
    "hippocampus": Study("hippocampus_unet3d", {}, (1e-3, 3e-3), "val/dice", ("scratch", "ours", "shuffled")),
}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run. `part` is the fold it is measured on, or the share of the labels; a choice is one of seed 0."""

    study: str
    arm: str
    part: float
    rate: float
    seed: int
    choice: bool = False

    @property
    def name(self) -> str:
        kind = "choice" if self.choice else f"seed{self.seed}"
        return f"{self.study}-{self.arm}-{self.part:g}-{kind}-lr{self.rate:g}"

    def split(self) -> dict[str, Any]:
        """Return the settings that say what is trained on and what is measured."""
        if self.study == "hippocampus":  # its choice is on a part of the training cases
            return {"data.init_args.fraction": self.part} | ({"data.init_args.split_seed": 1} if self.choice else {})
        fold = int(self.part)
        left = [other for other in FOLDS if other != fold]
        inner = (fold + 1) % len(FOLDS)
        train, val = ([other for other in left if other != inner], inner) if self.choice else (left, fold)
        return {"data.init_args.train_folds": json.dumps(train), "data.init_args.val_folds": json.dumps([val])}


def network_of(study: str, arm: str, init: str, width: int) -> dict[str, Any]:
    """Return the settings of a network of `width` that starts from `init`."""
    key = "task.init_args.network."
    if study == "nodules":
        options: dict[str, Any] = {"depth": 18, "width": width, "num_classes": 2, "stem_pool": False, "depth_stride": 2}
    else:
        encoder = {"encoder": "resnet3d", "encoder_options": {"depth": 18, "width": width}}
        options = {"num_classes": 2 if study == "masks" else 3, **(encoder if arm == "scratch" else {})}
        options |= {"head_channels": 2 * width} if study == "masks" else {}
    if study == "nodules" and arm == "acs":
        options["convolution"] = "acs"
    return {f"{key}init": init, f"{key}options": json.dumps(options)}


def last_row(folder: Path) -> dict[str, Any]:
    """Return the last line of a finished run's log."""
    row: dict[str, Any] = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])
    return row


def execute(run: Run, init: str, data: str, width: int, folder: Path, precision: str) -> None:
    """Train, unless that is done; only what is measured is kept, not the networks of hundreds of runs."""
    import torch

    from svd_hub.training import engine

    torch.set_num_threads(1)
    study, place = STUDIES[run.study], folder / run.name
    if (place / "scores.csv").is_file():
        return
    settings = {
        **study.settings,
        **network_of(run.study, run.arm, init, width),
        **run.split(),
        "run.seed": run.seed,
        "run.precision": precision,
        "run.checkpoint_epochs": 1000,
        "run.checkpoint_steps": 100_000,
        "task.init_args.optimiser.lr": run.rate,
        "data.init_args.folder": data,
    }
    for file in place.glob("*") if place.is_dir() else ():  # a run that was stopped begins again: it is of seconds
        file.unlink()
    engine.train(study.recipe, run=place, overrides=settings, progress=False)
    (place / "last.ckpt").unlink(missing_ok=True)
    if run.choice or run.arm != "ours" or run.seed:
        (place / "model.safetensors").unlink(missing_ok=True)


def chosen(study: str, arm: str, part: float, folder: Path) -> float | None:
    """Return the learning rate that was best in the choice; None while that is not done."""
    rule = STUDIES[study]
    found = {}
    for rate in rule.rates:
        place = folder / Run(study=study, arm=arm, part=part, rate=rate, seed=0, choice=True).name
        if not (place / "scores.csv").is_file():
            return None
        found[rate] = last_row(place)[rule.metric]
    return max(found, key=lambda rate: found[rate])


def plan(study: str, seeds: int, arms: list[str], folder: Path) -> Iterator[list[Run]]:
    """Yield the runs in stages: the choices first, then all arms and parts of one seed after another."""
    rule, parts = STUDIES[study], FRACTIONS if study == "hippocampus" else FOLDS
    places = list(itertools.product(parts, arms))
    yield [
        Run(study=study, arm=arm, part=part, rate=rate, seed=0, choice=True)
        for (part, arm), rate in itertools.product(places, rule.rates)
    ]
    for seed in range(seeds):
        yield [
            Run(study=study, arm=arm, part=part, rate=rate, seed=seed)
            for part, arm in places
            if (rate := chosen(study, arm, part, folder)) is not None
        ]


def main() -> None:
    """Do what is left of the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=tuple(STUDIES))
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path, required=True, help="ours, strided and planar.safetensors")
    parser.add_argument("--width", type=int, default=16, help="stem channels of the weights")
    parser.add_argument("--arms", nargs="+", choices=ARMS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--runs", type=Path, default=Path("runs/transfer"))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1e6)
    parser.add_argument("--precision", default="32-true")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    end = time.monotonic() + 60 * args.minutes
    inits, data = make(args.weights, args.runs / "starts"), str(args.data.absolute())
    arms = args.arms or list(STUDIES[args.study].arms)
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    with ProcessPoolExecutor(args.workers, mp_context=context) as pool:
        for stage in plan(args.study, args.seeds, arms, args.runs):
            waiting, going = list(stage), set[Future[None]]()
            while going or (waiting and time.monotonic() < end):
                while waiting and len(going) < args.workers and time.monotonic() < end:
                    run = waiting.pop(0)
                    job = (run, inits[run.arm], data, args.width, args.runs, args.precision)
                    going.add(pool.submit(execute, *job))
                done, going = wait(going, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
            print(json.dumps({"stage": len(stage), "left": len(waiting)}), flush=True)
            if waiting:
                print("stopped by --minutes. Next: the same command goes on")
                return


if __name__ == "__main__":
    main()
