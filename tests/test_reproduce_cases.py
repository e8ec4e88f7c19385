"""Runs that say what each case got: pooled over folds, tested over patients; and the tables with further starts."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_reproduce import line, put, run  # noqa: F401

from svd_hub.errors import SvdHubError
from svd_hub.training.evaluation import bootstrap_mean, paired_bootstrap
from svd_hub.training.reproduce import compare, read_runs
from svd_hub.training.reproduce.paired import difference, pool

OURS, OTHER = "resnet3d18_imagenet", "none"


def cases(fold: int) -> list[tuple[str, str, int]]:
    """Ten nodules of a fold, two of each patient."""
    return [(f"n{fold}-{k}", f"p{fold}-{k // 2}", k % 2) for k in range(10)]


def score(case: str, label: int, *, skill: float, seed: int) -> float:
    return float(np.random.default_rng([ord(c) for c in case] + [seed]).normal(skill * label, 1))


def write(folder: Path, rows: Sequence[Sequence[Any]], columns: Sequence[str]) -> None:
    with (folder / "scores.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows([columns, *rows])


def with_scores(folder: Path, init: str, *, skill: float, seeds: Sequence[int], folds: Sequence[int]) -> None:
    for seed in seeds:
        for fold in folds:
            place = put(folder, init, seed, 0.8 + seed / 100, val=fold)
            rows = [(c, p, y, f"{score(c, y, skill=skill, seed=seed):.6g}") for c, p, y in cases(fold)]
            write(place, rows[:: -1 if seed else 1], ["case", "patient", "label", "score"])  # the order says nothing


# ---- pooling ---------------------------------------------------------------------------------------------------------


def test_folds_of_a_seed_are_one_arm_and_patients_are_drawn(tmp_path: Path) -> None:
    """The same as the bootstrap of arrays put together by hand, in percent."""
    with_scores(tmp_path, OURS, skill=1.5, seeds=(0, 1), folds=(0, 3))
    with_scores(tmp_path, OTHER, skill=0.5, seeds=(0, 1, 2), folds=(0, 3))
    found = compare("table4", tmp_path)
    everything = sorted(case for fold in (0, 3) for case in cases(fold))
    labels, patients = [y for _, _, y in everything], [p for _, p, _ in everything]

    def rows(skill: float, seeds: Sequence[int]) -> list[list[float]]:
        return [[float(f"{score(c, y, skill=skill, seed=s):.6g}") for c, _, y in everything] for s in seeds]

    want = paired_bootstrap(rows(1.5, (0, 1)), rows(0.5, (0, 1, 2)), labels, patients)
    lead = line(found, "scratch").lead
    assert lead is not None
    assert (lead.value, lead.low, lead.high) == pytest.approx((100 * want.value, 100 * want.low, 100 * want.high))
    assert (lead.clusters, lead.resamples) == (10, 10_000)
    assert lead.low < lead.value < lead.high
    assert line(found, "scratch").p is not None, "the t-test stands beside it"
    assert line(found, "SVD-Net (ImageNet)").lead is None


def test_without_all_scores_there_is_no_lead(tmp_path: Path) -> None:
    with_scores(tmp_path, OURS, skill=1.5, seeds=(0, 1), folds=(0, 3))
    with_scores(tmp_path, OTHER, skill=0.5, seeds=(0, 1), folds=(0, 3))
    assert line(compare("table4", tmp_path), "scratch").lead is not None
    file = next(tmp_path.glob("*-none-1-*-3/scores.csv"))
    text = file.read_text()
    file.unlink()
    assert line(compare("table4", tmp_path), "scratch").lead is None
    file.write_text(text.replace("n3-4", "other"))
    assert line(compare("table4", tmp_path), "scratch").lead is None, "another case"
    file.write_text(text.replace("n3-4", "n0-4"))
    assert line(compare("table4", tmp_path), "scratch").lead is None, "two folds share a case"
    file.write_text(text.replace("p3-2", "p3-1"))
    assert line(compare("table4", tmp_path), "scratch").lead is None, "another patient"
    file.write_text(text)
    assert line(compare("table4", tmp_path), "scratch").lead is not None


def test_rows_that_are_there_twice_stay_two(tmp_path: Path) -> None:
    """The official list of LIDC has some nodules twice; each counts twice, as there."""
    columns = ["case", "patient", "nodule"]
    for name, dice in (("a", (0.5, 0.75, 0.5)), ("b", (0.25, 0.25, 0.25))):
        (tmp_path / name).mkdir()
        write(tmp_path / name, [("x", "p", dice[0]), ("y", "q", dice[1]), ("x", "p", dice[2])], columns)
    first, second = (pool([tmp_path / name / "scores.csv"]) for name in "ab")
    assert first is not None
    assert second is not None
    assert len(first.values) == 3
    found = difference([first], [second], resamples=50)
    assert found is not None
    assert found.value == pytest.approx((0.25 + 0.5 + 0.25) / 3)
    assert pool([tmp_path / name / "scores.csv" for name in "ab"]) is None


def test_dice_is_the_mean_of_the_organs_that_are_annotated(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    tables = random.uniform(0, 1, (2, 12, 2)).round(6)
    tables[:, 3, 1] = np.nan
    tables[:, 5] = np.nan
    for name, table in zip("ab", tables, strict=True):
        (tmp_path / name).mkdir()
        rows = [(f"c{k}", f"p{k // 3}", *row) for k, row in enumerate(table)]
        write(tmp_path / name, rows, ["case", "patient", "liver", "kidneys"])
    arms = [pool([tmp_path / name / "scores.csv"]) for name in "ab"]
    found = difference(*([arm] for arm in arms if arm is not None))
    there = [k for k in range(12) if k != 5]
    means = [[np.nanmean(table[k]) for k in there] for table in tables]
    want = bootstrap_mean(np.subtract(*means), [f"p{k // 3}" for k in there])
    assert found is not None
    assert found.value == pytest.approx(want.value)
    assert abs(found.low - want.low) < 0.02  # case 5 is drawn, and has no value
    assert abs(found.high - want.high) < 0.02


def test_files_of_another_form_are_told(tmp_path: Path) -> None:
    for columns, row in ((["case", "label"], ["a", 1]), (["case", "patient", "liver"], ["a", "p", "much"])):
        write(tmp_path, [row], columns)
        with pytest.raises(SvdHubError, match=r"scores\.csv has another form \(\w+ .*\); needed: case, patient"):
            pool([tmp_path / "scores.csv"])


def test_a_run_that_kept_its_scores_alone_is_finished(tmp_path: Path) -> None:
    place = put(tmp_path, OTHER, 0, 0.9)
    (place / "model.safetensors").unlink()
    assert read_runs(tmp_path)[1] == [place]
    write(place, [("a", "p", 1, 0.5)], ["case", "patient", "label", "score"])
    ((found,), unfinished) = read_runs(tmp_path)
    assert (found.scores, unfinished) == (place / "scores.csv", [])


def test_the_command_prints_the_interval(run: Any, tmp_path: Path) -> None:  # noqa: F811
    with_scores(tmp_path, OURS, skill=1.5, seeds=(0, 1), folds=(0, 3))
    with_scores(tmp_path, OTHER, skill=0.5, seeds=(0, 1), folds=(0, 3))
    lead = line(compare("table4", tmp_path), "scratch").lead
    assert lead is not None
    code, out, err = run("reproduce", "table4", "--runs", tmp_path)
    assert (code, err) == (0, "")
    assert f"{lead.value:+.2f} [{lead.low:+.2f}, {lead.high:+.2f}]" in out
    assert "10,000 draws of patients: the primary test" in " ".join(out.split())
    code, out, err = run("reproduce", "table4", "--runs", tmp_path, "--json")
    scratch = next(one for one in json.loads(out)["lines"] if one["name"] == "scratch")
    assert scratch["lead"]["value"] == pytest.approx(lead.value)


# ---- further tables --------------------------------------------------------------------------------------------------


def log_of(place: Path, **row: float) -> None:
    (place / "log.jsonl").write_text(json.dumps({"epoch": 0, **row}) + "\n")


def test_table_7_goes_by_the_pre_training(tmp_path: Path) -> None:
    """Wherever it was, also as the first of several seeds."""
    for recipe, init, froc in (
        ("deeplesion_resnet3dv1c18", "/data/runs/coco_resnet3dv1c18_strided/model.safetensors", 0.80),
        ("deeplesion_resnet3dv1c18", "runs/coco_resnet3dv1c18/seed0/model.safetensors", 0.85),
        ("deeplesion_p3d18ba", "runs/coco_p3d18ba_strided/model.safetensors", 0.79),
    ):
        log_of(put(tmp_path, init, 0, 0, recipe=recipe), **{"val/froc": froc})
    found = compare("table7", tmp_path)
    here = {one.name: one.cells["mean"].here for one in found.lines}
    assert [None if cell is None else round(cell.mean) for cell in here.values()] == [80, 85, 79, None]
    assert list(here) == [
        f"{network}, depth {kept}"
        for network in ("ResNet3DV1c-18", "P3D-18ba")
        for kept in ("not preserved", "preserved")
    ]
    assert found.lines[0].cells["mean"].difference == -3.76
    assert found.notes == ()


def test_tables_3_and_5_have_their_measures(tmp_path: Path) -> None:
    log_of(put(tmp_path, "none", 0, 0, recipe="fcn3d18_lidc_paper"), **{"val/dice": 0.4, "val/dice_pooled": 0.75})
    log_of(put(tmp_path, "none", 0, 0, recipe="lits_unet3d18"), **{"val/dice": 0.93})
    for table, value in (("table3", 75), ("table5", 93)):
        cell = line(compare(table, tmp_path), "scratch").cells["dice"].here
        assert cell is not None
        assert cell.mean == pytest.approx(value)


def test_a_run_of_table_2_stands_beside_what_is_counted(tmp_path: Path) -> None:
    log_of(put(tmp_path, "none", 0, 0, recipe="resnet3d18_imagenet_paper"), **{"val/top1": 0.731})
    found = compare("table2", tmp_path)
    cells = line(found, "ResNet3D-18", "resnet3d18_imagenet_paper").cells
    assert [round(cells[key].here.mean, 2) for key in ("parameters", "flops", "top1")] == [33.67, 15.99, 73.1]  # type: ignore[union-attr]
    assert cells["top1"].difference == -0.33
    assert not [command for command in found.commands if "resnet3d18_imagenet_paper" in command]
    assert all("SEED" not in command for command in found.commands)


def test_the_figure_has_a_line_for_each_share(tmp_path: Path) -> None:
    """Each is tested against ours of the same share; no share is taken for another seed."""
    for init, dice in (("none", 0.7), ("resnet3d18w16_tinyimagenet", 0.8)):
        for share in (0.2, 1.0) if init == "none" else (0.2, 0.4):
            for seed in (0, 1):
                place = put(tmp_path / f"{share}", init, seed, 0, recipe="hippocampus_unet3d")
                recipe = place / "recipe.yaml"
                recipe.write_text(recipe.read_text().replace("folder:", f"fraction: {share}, folder:"))
                log_of(place, **{"val/dice": dice + share / 10 + seed / 100})
    found = compare("fig4", tmp_path)
    told = [(one.name, one.detail.rpartition("=")[2], len(one.seeds), one.p is None) for one in found.lines]
    assert told == [
        ("scratch", "0.2", 2, False),
        ("scratch", "1.0", 2, True),
        ("SVD-Net (ImageNet)", "0.2", 2, True),
        ("SVD-Net (ImageNet)", "0.4", 2, True),
    ]
    (command,) = [one for one in found.commands if "hippocampus" in one]
    assert "--set data.init_args.fraction=FRACTION" in command
    assert "FRACTION: 0.2, 0.4, 0.6, 0.8, 1.0; SEED: 0 to 4" in command
    assert found.notes == ()
