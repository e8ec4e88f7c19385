"""python benchmarks/initialisations.py DATA: a short LIDC fine-tuning from each starting point that is at hand.

Every arm is `svd-hub train resnet3d18w16_lidc` with one word changed, `init`, and fewer epochs: two folds of 0-2
against the third in turn. Each arm has the same budget to choose its learning rate (seed 0, both rates); its choice is
then run with the other seeds. Fold 3 stays closed. Every run has a folder of its own under --runs; finished ones are
read again, stopped ones go on. --arms does a part of the work; the JSON is written when all of it is there.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from facts import keep
from lidc_finetune import INNER, RATES, RECIPE, run, volume_auc

OPTIONS = {"depth": 18, "width": 16, "num_classes": 2, "stem_pool": False, "depth_stride": 2}
OURS = "resnet3d18w16_tinyimagenet"
# arm -> (the entry it starts from, further options of the network)
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "scratch": ("none", {}),
    "ours": (OURS, {}),
    "i3d": (f"{OURS}_i3d", {}),
    "acs_dense": (f"{OURS}_acs", {}),
    "acs": (f"{OURS}_acs", {"convolution": "acs"}),
    "acs_scratch": ("none", {"convolution": "acs"}),
}


def train(args: argparse.Namespace, arm: str, rate: float, seed: int) -> list[dict[str, Any]]:
    """Return the three inner runs of one arm, rate and seed."""
    init, options = ARMS[arm]
    more = {
        "run.epochs": args.epochs,
        "run.threads": 1,
        "task.init_args.network.options": json.dumps({**OPTIONS, **options}),
    }
    rows = []
    for first, second, val in INNER:
        row = run(args.data.absolute(), arm, rate, seed, [first, second], val, args.runs, init=init, more=more)
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def table(chosen: dict[str, dict[str, Any]]) -> str:
    """Return the arms as a text table: mean AUC over folds for each seed, and over all."""
    seeds = len(next(iter(chosen.values()))["auc_of_seed"])
    head = ["arm", "lr", *(f"seed {n}" for n in range(seeds)), "mean", "sd of seeds"]
    lines = [" | ".join(f"{cell:>11}" for cell in head)]
    for arm, result in chosen.items():
        cells = [arm, f"{result['lr']:g}", *(f"{x:.4f}" for x in result["auc_of_seed"])]
        cells += [f"{result['auc']:.4f}", f"{result['sd']:.4f}"]
        lines.append(" | ".join(f"{cell:>11}" for cell in cells))
    return "\n".join(lines)


def main() -> None:
    """Run what was asked for, and keep it when all arms are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder of LIDC nodules")
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--runs", type=Path, default=Path("runs/initialisations"))
    args = parser.parse_args()
    runs: list[dict[str, Any]] = []
    chosen: dict[str, dict[str, Any]] = {}
    for arm in args.arms:
        first = {rate: train(args, arm, rate, 0) for rate in RATES}
        best = max(RATES, key=lambda rate: statistics.mean(row["auc"] for row in first[rate]))
        seeds = [first[best], *(train(args, arm, best, seed) for seed in range(1, args.seeds))]
        runs += [row for rows in (*first.values(), *seeds[1:]) for row in rows]
        scores = [statistics.mean(row["auc"] for row in rows) for rows in seeds]
        chosen[arm] = {
            "init": ARMS[arm][0],
            "lr": best,
            "auc_of_seed": [round(score, 4) for score in scores],
            "auc": round(statistics.mean(scores), 4),
            "sd": round(float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0, 4),
        }
    print(table(chosen))
    if set(args.arms) == set(ARMS):
        baseline = {str(fold): round(volume_auc(args.data, fold), 4) for fold in range(3)}
        keep(
            "initialisations",
            {"recipe": RECIPE, "epochs": args.epochs, "arms": chosen, "volume_auc": baseline, "runs": runs},
        )


if __name__ == "__main__":
    main()
