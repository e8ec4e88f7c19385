"""python benchmarks/lidc_finetune.py DATA [--final]: LIDC malignancy, pre-trained, from scratch, and by volume alone.

Without --final: folds 0-2 only, two folds against the third in turn, every arm with every learning rate and seed; the
rate with the best mean AUC is each arm's choice. With --final: each arm once more with its choice on folds 0-2, and
fold 3 opened. Every run is `svd-hub train resnet3d18w16_lidc` with other settings, in a folder of its own under --runs;
finished ones are read again, stopped ones go on. The JSON keeps them all.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from pathlib import Path
from typing import Any

import nibabel as nib
from facts import RESULTS, keep

RECIPE = "resnet3d18w16_lidc"
ARMS = {"scratch": "none", "pretrained": "resnet3d18w16_tinyimagenet"}
RATES = (3e-4, 1e-3)
INNER = ((0, 1, 2), (0, 2, 1), (1, 2, 0))


def run(
    data: Path,
    arm: str,
    rate: float,
    seed: int,
    train: list[int],
    val: int,
    folder: Path,
    *,
    init: str = "",
    more: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Train once, or go on, or read a finished run; return the last epoch's metrics.

    `init` is the entry an arm starts from, if it is none of `ARMS`; `more` are further settings of the recipe.
    """
    from svd_hub.training import engine

    place = folder / f"{arm}-lr{rate:g}-seed{seed}-fold{val}"

    settings = (more or {}) | {
        "run.seed": seed,
        "task.init_args.network.init": init or ARMS[arm],
        "task.init_args.optimiser.lr": rate,
        "data.init_args.folder": str(data),
        "data.init_args.train_folds": json.dumps(train),
        "data.init_args.val_folds": json.dumps([val]),
    }
    if not (place / "model.safetensors").is_file():
        resume = (place / "last.ckpt").is_file()
        engine.train(RECIPE, run=place, overrides={} if resume else settings, resume=resume, progress=False)
    row = json.loads((place / "log.jsonl").read_text().splitlines()[-1])
    return {
        "arm": arm,
        "lr": rate,
        "seed": seed,
        "train": train,
        "val": val,
        "auc": row["val/auc"],
        "top1": row["val/top1"],
    }


def volumes_of(data: Path) -> dict[str, float]:
    """Return the volume of each labelled nodule's mask in mm3."""
    from svd_hub.training.data.lidc import read_nodules

    volumes = {}
    for row in read_nodules(data):
        if row.label >= 0:
            mask = nib.load(data / "masks" / f"{row.name}.nii.gz")
            x, y, z = mask.header.get_zooms()[:3]
            volumes[row.name] = float((mask.get_fdata() > 0).sum() * x * y * z)
    return volumes


def volume_auc(data: Path, fold: int) -> float:
    """Return the AUC of the mask's volume in mm3 alone."""
    from svd_hub.training.data.lidc import read_nodules
    from svd_hub.training.evaluation import auc

    rows, volumes = [r for r in read_nodules(data) if r.fold == fold and r.label >= 0], volumes_of(data)
    return auc([volumes[row.name] for row in rows], [row.label for row in rows])


def choose(runs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return each arm's learning rate with the best mean inner AUC."""
    chosen = {}
    for arm in ARMS:
        means = {r: statistics.mean(x["auc"] for x in runs if x["arm"] == arm and x["lr"] == r) for r in RATES}
        best = max(means, key=lambda r: means[r])
        chosen[arm] = {
            "lr": best,
            "inner_auc": round(means[best], 4),
            "all": {str(r): round(m, 4) for r, m in means.items()},
        }
    return chosen


def main() -> None:
    """Run what was asked for and keep it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--final", action="store_true", help="open fold 3, once")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=list(ARMS))
    parser.add_argument("--runs", type=Path, default=Path("runs/lidc"))
    args = parser.parse_args()
    data, folder = args.data.absolute(), args.runs
    if args.final:
        chosen = json.loads((RESULTS / "lidc_inner.json").read_text())["chosen"]
        plan = [(arm, chosen[arm]["lr"], seed, [0, 1, 2], 3) for arm in args.arms for seed in range(args.seeds)]
    else:
        splits = [([first, second], val) for first, second, val in INNER]
        cases = itertools.product(args.arms, RATES, range(args.seeds), splits)
        plan = [(arm, rate, seed, train, val) for arm, rate, seed, (train, val) in cases]
    runs = []
    for arm, rate, seed, train, val in plan:
        runs.append(run(data, arm, rate, seed, train, val, folder))
        print(json.dumps(runs[-1]), flush=True)
    if set(args.arms) != set(ARMS):
        return  # a part of the work; the result is written when all arms are there
    if args.final:
        scores = {arm: [r["auc"] for r in runs if r["arm"] == arm] for arm in ARMS}
        means = {arm: round(statistics.mean(values), 4) for arm, values in scores.items()}
        keep("lidc_fold3", {"recipe": RECIPE, "auc": means, "volume_auc": round(volume_auc(data, 3), 4), "runs": runs})
    else:
        baseline = {str(fold): round(volume_auc(data, fold), 4) for fold in range(3)}
        keep("lidc_inner", {"recipe": RECIPE, "chosen": choose(runs), "volume_auc": baseline, "runs": runs})


if __name__ == "__main__":
    main()
