"""python benchmarks/transfer.py STUDY DATA --weights DIR: does pre-training help? Every arm under the same budget.

STUDY is `nodules` (LIDC malignancy), `masks` (LIDC segmentation) or `hippocampus` (label fractions). Arms differ in
`init` alone: scratch, I3D and ACS of the 2D twin, ours with depth strides in pre-training, ours, ours shuffled inside
every convolution. LIDC is cross-validated over folds 0-3 by patient: each seed is trained on three and measured on the
fold left out. An arm's learning rate is chosen of two, with seed 0: for `nodules` anew for each fold, on one of the
three that are trained on; for `masks` once, trained on folds 2 and 3 and measured on 1; for `hippocampus` once, on
another split of a fifth of the labels.

Every run is `svd-hub train RECIPE` with other settings; what it measured goes into `results/transfer_STUDY.json`, and
is not run again. --workers runs go side by side; behind --minutes no further run begins, and the same command goes on.
`transfer_report.py` makes the tables.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facts import machine
from starts import ARMS, make
from transfer_runs import FOLDS, Run, Runs, read

FRACTIONS = (0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True)
class Study:
    """A recipe, what every run of the study changes in it, and what is chosen and measured.

    Attributes:
        choice: the part whose choice of learning rate holds for all; None chooses for each part.
    """

    recipe: str
    settings: dict[str, Any]
    rates: tuple[float, float]
    metric: str
    choice: float | None = None
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
        {"run.epochs": 4, "data.init_args.size": 24, "task.init_args.window": "[24, 24, 24]"},
        (1e-3, 3e-3),
        "val/dice_pooled",
        choice=0,
    ),
    "hippocampus": Study(
        "hippocampus_unet3d",
        {"run.epochs": 4},
        (1e-3, 3e-3),
        "val/dice",
        choice=0.2,
        arms=("scratch", "ours", "shuffled"),
    ),
}


def split_of(run: Run) -> dict[str, Any]:
    """Return the settings that say what is trained on and what is measured."""
    if run.study == "hippocampus":  # another split of the same volumes
        return {"data.init_args.fraction": run.part, "data.init_args.split_seed": int(run.choice)}
    fold = int(run.part)
    left = [other for other in FOLDS if other != fold]
    inner = (fold + 1) % len(FOLDS)
    train, val = ([other for other in left if other != inner], inner) if run.choice else (left, fold)
    return {"data.init_args.train_folds": json.dumps(train), "data.init_args.val_folds": json.dumps([val])}


def network_of(study: str, arm: str, init: str, width: int) -> dict[str, Any]:
    """Return the settings of a network of `width` that starts from `init`."""
    key = "task.init_args.network."
    if study == "nodules":
        options: dict[str, Any] = {"depth": 18, "width": width, "num_classes": 2, "stem_pool": False, "depth_stride": 2}
    else:
        encoder = {"encoder": "resnet3d", "encoder_options": {"depth": 18, "width": width}}
        options = {"num_classes": 2 if study == "masks" else 3, **(encoder if arm == "scratch" else {})}
        options |= {"head_channels": width} if study == "masks" else {}
    if study == "nodules" and arm == "acs":
        options["convolution"] = "acs"
    return {f"{key}init": init, f"{key}options": json.dumps(options)}


def execute(run: Run, init: str, data: str, width: int, folder: Path, precision: str) -> None:
    """Train; a run that was stopped begins again, since each is of minutes."""
    import torch

    from svd_hub.training import engine

    torch.set_num_threads(1)
    study, place = STUDIES[run.study], folder / run.name
    settings = {
        **study.settings,
        **network_of(run.study, run.arm, init, width),
        **split_of(run),
        "run.seed": run.seed,
        "run.precision": precision,
        "run.checkpoint_epochs": 1000,
        "run.checkpoint_steps": 100_000,
        "task.init_args.optimiser.lr": run.rate,
        "data.init_args.folder": data,
    }
    shutil.rmtree(place, ignore_errors=True)
    engine.train(study.recipe, run=place, overrides=settings, progress=False)
    for name in ("last.ckpt", "model.safetensors"):  # networks of hundreds of runs are too many to keep
        (place / name).unlink(missing_ok=True)


def choices(study: Study, name: str, arm: str, part: float) -> list[Run]:
    """Return the runs that choose the learning rate of an arm for a part."""
    where = part if study.choice is None else study.choice
    return [Run(study=name, arm=arm, part=where, rate=rate, seed=0, choice=True) for rate in study.rates]


def chosen(runs: Runs, arm: str, part: float) -> float | None:
    """Return the learning rate that was best in the choice; None while that is not done."""
    study = STUDIES[runs.study]
    found = {run.rate: runs.metric(run, study.metric) for run in choices(study, runs.study, arm, part)}
    if None in found.values():
        return None
    return max(found, key=lambda rate: found[rate] or 0.0)


def plan(runs: Runs, seeds: int, arms: list[str]) -> Iterator[list[Run]]:
    """Yield what is left in stages: the choices first, then all arms and parts of one seed after another."""
    study, parts = STUDIES[runs.study], FRACTIONS if runs.study == "hippocampus" else FOLDS
    places = list(itertools.product(parts, arms))
    first = dict.fromkeys(run for part, arm in places for run in choices(study, runs.study, arm, part))
    yield [run for run in first if run not in runs]
    for seed in range(seeds):
        stage = [
            Run(study=runs.study, arm=arm, part=part, rate=rate, seed=seed)
            for part, arm in places
            if (rate := chosen(runs, arm, part)) is not None
        ]
        yield [run for run in stage if run not in runs]


def main() -> None:
    """Do what is left of the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=tuple(STUDIES))
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path, required=True, help="ours, strided, planar.safetensors, as needed")
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
    arms = args.arms or list(STUDIES[args.study].arms)
    inits, data = make(args.weights, args.runs / f"starts{args.width}", arms), str(args.data.absolute())
    runs = read(args.study)
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    with ProcessPoolExecutor(args.workers, mp_context=context) as pool:
        for stage in plan(runs, args.seeds, arms):
            waiting, going = list(stage), dict[Future[None], Run]()
            while going or (waiting and time.monotonic() < end):
                while waiting and len(going) < args.workers and time.monotonic() < end:
                    run = waiting.pop(0)
                    job = (run, inits[run.arm], data, args.width, args.runs, args.precision)
                    going[pool.submit(execute, *job)] = run
                for future in wait(going, return_when=FIRST_COMPLETED).done:
                    future.result()
                    done = going.pop(future)
                    runs.add(done, args.runs / done.name, machine())
                    runs.save()
                    print(done.name, json.dumps(runs.found[done.name]["log"]), flush=True)
            if waiting:
                print("stopped by --minutes. Next: the same command goes on")
                return


if __name__ == "__main__":
    main()
