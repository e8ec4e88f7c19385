"""python benchmarks/transfer_report.py STUDY [DATA]: the tables of a transfer study, from its file of results.

LIDC: scores of all folds pooled, each from the network that did not see the nodule; every arm against "ours" by the
paired bootstrap over patients, and the independent t-test over seeds beside it where there are two or more.
Hippocampus: mean Dice at each share of the labels, with the paired interval over volumes. With DATA, the AUC of the
masks' volume alone stands beside the networks. Seeds that are not complete over all parts and arms are left out.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from facts import RESULTS
from lidc_finetune import volumes_of
from numpy.typing import NDArray
from starts import ARMS
from transfer_runs import FOLDS, Runs, read

from svd_hub.training.evaluation import auc, bootstrap_mean, paired_bootstrap, t_test
from svd_hub.training.saving import write_text

OURS = "ours"
Pooled = tuple[NDArray[np.float64], list[str], list[str]]  # scores or Dice of cases, their names, their patients


def finals(runs: Runs) -> dict[tuple[str, int, float], dict[str, Any]]:
    """Return (arm, seed, part) -> what a run that is no choice found."""
    told = (found for found in runs.found.values() if not found["run"]["choice"])
    return {(t["run"]["arm"], t["run"]["seed"], t["run"]["part"]): t for t in told}


def complete(found: dict[tuple[str, int, float], Any], parts: list[float]) -> tuple[list[str], list[int], list[int]]:
    """Return the arms with any run, the seeds that all of them have whole, and the seeds that they do not."""
    arms = [arm for arm in ARMS if any(key[0] == arm for key in found)]
    seeds = sorted({seed for _, seed, _ in found})
    whole = [seed for seed in seeds if all((arm, seed, part) in found for arm in arms for part in parts)]
    return arms, whole, [seed for seed in seeds if seed not in whole]


def pooled(runs: Runs, rows: list[dict[str, Any]], column: str) -> Pooled:
    """Return one column of several runs, end to end."""
    values = [value for row in rows for value in row["scores"][column]]
    cases = [name for row in rows for name in runs.cases[row["cases"]]["case"]]
    patients = [name for row in rows for name in runs.cases[row["cases"]]["patient"]]
    return np.asarray(values), cases, patients


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def nodules(runs: Runs, data: Path | None) -> str:
    """Return the table of LIDC malignancy."""
    found, parts = finals(runs), [float(fold) for fold in FOLDS]
    arms, seeds, left = complete(found, parts)
    picked = {arm: [[found[arm, seed, part] for part in parts] for seed in seeds] for arm in arms}
    scores = {arm: np.stack([pooled(runs, rows, "score")[0] for rows in picked[arm]]) for arm in arms}
    labels = pooled(runs, picked[OURS][0], "label")[0].astype(int)
    _, cases, patients = pooled(runs, picked[OURS][0], "score")
    each = {arm: [auc(row, labels) for row in scores[arm]] for arm in arms}
    rows = []
    for arm in arms:
        folds = [f"{np.mean([picked[arm][k][i]['log']['val/auc'] for k in range(len(seeds))]):.3f}" for i in range(4)]
        rows.append([arm, f"{np.mean(each[arm]):.4f}", *folds, *against(scores, each, arm, labels, patients)])
    lines = [
        f"{len(labels)} nodules of {len(set(patients))} patients, {int(labels.sum())} malignant; seeds {seeds}, "
        f"{sorted({row['on'] for rows in picked.values() for some in rows for row in some})}",
        f"seeds begun and not complete: {left or 'none'}",
        "",
        table(
            ["start", "AUC, pooled", *(f"fold {k}" for k in FOLDS), "ours minus it, 95 %", "one-sided p", "t-test"],
            rows,
        ),
    ]
    if data is not None:
        volumes = volumes_of(data)
        lines.append(f"\nThe mask's volume alone: {auc([volumes[case] for case in cases], labels):.4f}")
    return "\n".join(lines)


def against(
    scores: dict[str, NDArray[np.float64]],
    each: dict[str, list[float]],
    arm: str,
    labels: NDArray[np.int64],
    patients: list[str],
) -> list[str]:
    """Return the cells of an arm that hold it against ours."""
    if arm == OURS:
        return ["", "", ""]
    told = paired_bootstrap(scores[OURS], scores[arm], labels, patients)
    test = f"{t_test(each[OURS], each[arm]).p:.3f}" if len(each[arm]) > 1 else "-"
    return [f"{told.value:+.4f} ({told.low:+.4f}, {told.high:+.4f})", f"{told.below_zero:.3f}", test]


def dice(runs: Runs, columns: list[str], *, folds: bool) -> str:
    """Return the table of mean Dice for each part of a segmentation study, ours against each arm.

    Args:
        runs: of the study.
        columns: of the scores, whose mean is a case's.
        folds: parts are folds: a last block has the cases of all of them that every arm has.
    """
    found = finals(runs)
    parts = sorted({part for _, _, part in found})
    blocks: list[tuple[str, list[float]]] = [(f"{part:g}", [part]) for part in parts]
    if folds:
        blocks.append(("all", [part for part in parts if complete(found, [part])[1]]))
    rows = []
    for name, of in blocks:
        here = {key: row for key, row in found.items() if key[2] in of}
        arms, seeds, _ = complete(here, of)
        if not seeds:
            continue
        picked = {arm: [[found[arm, seed, part] for part in of] for seed in seeds] for arm in arms}
        means = {arm: per_case(runs, picked[arm], columns) for arm in arms}
        patients = pooled(runs, picked[OURS][0], columns[0])[2]
        for arm in arms:
            cells = [name, arm, f"{np.nanmean(means[arm]):.4f}", str(len(patients)), str(seeds)]
            if arm != OURS:
                told = bootstrap_mean(means[OURS] - means[arm], patients)
                cells.append(f"{told.value:+.4f} ({told.low:+.4f}, {told.high:+.4f})")
            rows.append([*cells, ""][:6])
    return table(["part", "start", "Dice", "cases", "seeds", "ours minus it, 95 %"], rows)


def per_case(runs: Runs, seeds: list[list[dict[str, Any]]], columns: list[str]) -> NDArray[np.float64]:
    """Return each case's Dice, the mean over organs and seeds; of each seed its runs, whose cases follow each other."""
    values: NDArray[np.float64] = np.mean(
        [[pooled(runs, rows, column)[0] for column in columns] for rows in seeds], axis=(0, 1)
    )
    return values


def main() -> None:
    """Print the tables and keep them beside the runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=("nodules", "masks", "hippocampus"))
    parser.add_argument("data", type=Path, nargs="?")
    args = parser.parse_args()
    runs = read(args.study)
    if args.study == "nodules":
        text = nodules(runs, args.data)
    else:
        columns = ["nodule"] if args.study == "masks" else ["anterior", "posterior"]
        text = dice(runs, columns, folds=args.study == "masks")
    write_text(RESULTS / f"transfer_{args.study}.md", text + "\n")
    print(text)


if __name__ == "__main__":
    main()
