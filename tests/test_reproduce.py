"""The paper's tables beside ours: what is recorded fits together, runs go to their rows, and numbers are right."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import miniature
import pytest
from scipy import stats

from svd_hub import cli, list_entries
from svd_hub.errors import SvdHubError
from svd_hub.training import engine, reproduce
from svd_hub.training.miniature import pictures
from svd_hub.training.reproduce import Comparison, Line, compare, read_paper, read_runs

TABLES = ("table2", "table3", "table4", "table5", "table6", "table7", "fig4")
RECIPE = """\
name: {recipe}
run: {{epochs: 20, seed: {seed}, threads: 1}}
task:
  class_path: svd_hub.training.tasks.Classification
  init_args:
    network: {{architecture: resnet3d, options: {{depth: 18}}, init: {init}}}
    optimiser: {{name: adamw, lr: {lr}}}
data:
  class_path: svd_hub.training.data.lidc.LidcNodules
  init_args: {{train_folds: {train}, val_folds: {val}, folder: /somewhere/{seed}}}
"""


def put(
    folder: Path, init: str, seed: int, auc: float, *, recipe: str = "resnet3d18_lidc", lr: float = 3e-4, val: int = 3
) -> Path:
    """A finished run, as the engine leaves it."""
    run = folder / f"{recipe}-{Path(init).parent.name or init}-{seed}-{lr}-{val}"
    run.mkdir(parents=True)
    train = sorted({0, 1, 2, 3} - {val})
    (run / "recipe.yaml").write_text(RECIPE.format(recipe=recipe, init=init, seed=seed, lr=lr, train=train, val=[val]))
    (run / "run.json").write_text(json.dumps({"recipe": recipe, "data": {"val_folds": [val]}}))
    rows = [{"epoch": e, "step": e, "seconds": 1.0, "val/auc": value} for e, value in enumerate((0.5, auc))]
    (run / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "model.safetensors").write_bytes(b"")
    return run


def line(found: Comparison, name: str, detail: str = "") -> Line:
    (only,) = [one for one in found.lines if one.name == name and detail in one.detail]
    return only


# ---- what the paper prints -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLES)
def test_what_is_recorded_is_consistent(name: str) -> None:
    table = read_paper(name)
    keys = {metric.key for metric in table.metrics}
    assert len({row.name for row in table.rows}) == len(table.rows)
    assert sum(row.ours for row in table.rows) <= 1
    assert table.known, "nothing is said of what does not fit"
    for row in table.rows:
        assert set(row.sd) <= set(row.values) <= keys
    starts = [start for row in table.rows for start in row.starts]
    assert len(set(starts)) == len(starts), "a run would belong to two rows"
    for _, init in starts:
        assert init == "none" or init in list_entries() or init.startswith("runs/")


def test_means_over_false_positives_are_means() -> None:
    whole = 0
    for row in (*read_paper("table6").rows, *read_paper("table7").rows):
        four = [row.values[key] for key in ("fp05", "fp1", "fp2", "fp4") if key in row.values]
        if len(four) == 4:
            assert row.values["mean"] == pytest.approx(statistics.mean(four), abs=0.0051)
            whole += 1
    assert whole == 6


def test_what_the_paper_repeats_is_still_the_same() -> None:
    """The inconsistencies that `known` names are there in the numbers, too."""
    (seventh,) = [row for row in read_paper("table7").rows if row.values]
    (sixth,) = [row for row in read_paper("table6").rows if row.ours]
    assert seventh.values == sixth.values
    texts = " ".join(known.text for name in TABLES for known in read_paper(name).known)
    for words in ("1,156 benign and 556 malignant, which makes 1,712", "73.07", "digit for digit", "268 of the 341"):
        assert words in texts
    assert 1156 + 556 == 1712 != 1633 == 1232 + 401


def test_an_unknown_table_is_told() -> None:
    with pytest.raises(SvdHubError, match=r"no table 'table8'.*nearest: table.*all: table2, .*fig4"):
        compare("table8")


# ---- counting --------------------------------------------------------------------------------------------------------


def test_table_2_comes_out_to_the_last_printed_digit() -> None:
    found = compare("table2")
    counted = 0
    for one in found.lines:
        for key in ("parameters", "flops"):
            cell = one.cells[key]
            if cell.here is not None:
                assert round(cell.here.mean, 2) == cell.paper, f"{one.name}, {key}"
                assert cell.difference == 0
                counted += 1
        assert one.cells["top1"].here is None
    assert counted == 12
    assert [one.name for one in found.lines] == [row.name for row in read_paper("table2").rows]


# ---- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, (scratch, ours) in enumerate([(0.90, 0.93), (0.91, 0.95), (0.89, 0.94)]):
        put(tmp_path / "deep" / "er", "none", seed, scratch)
        put(tmp_path, "resnet3d18_imagenet", seed, ours)
    return tmp_path


def test_runs_go_to_their_rows(folder: Path) -> None:
    found = compare("table4", folder)
    scratch, ours = line(found, "scratch"), line(found, "SVD-Net (ImageNet)")
    here = scratch.cells["auc"].here
    assert here is not None
    assert (here.mean, here.sd, here.count) == pytest.approx((90.0, 1.0, 3))
    assert scratch.cells["auc"].paper == 92.75
    assert scratch.cells["auc"].difference == -2.75
    assert (scratch.seeds, scratch.runs, scratch.detail) == ((0, 1, 2), 3, "resnet3d18_lidc")
    assert scratch.p == pytest.approx(stats.ttest_ind([90, 91, 89], [93, 95, 94]).pvalue)
    assert ours.p is None
    assert line(found, "Kinetics").cells["auc"].here is None
    assert found.notes == ()
    (train,) = [one for one in found.commands if one.startswith("svd-hub train resnet3d18_lidc ")]
    last = found.commands[-1]
    assert "resnet3d18_kinetics_moments" in train
    assert "none" not in train
    assert last == "svd-hub reproduce table4 --runs runs/table4"


def test_folds_of_a_seed_are_averaged_before_seeds_are(tmp_path: Path) -> None:
    for seed in (0, 1):
        for val, auc in ((0, 0.8), (3, 0.9 + 0.02 * seed)):
            put(tmp_path, "none", seed, auc, val=val)
    scratch = line(compare("table4", tmp_path), "scratch")
    here = scratch.cells["auc"].here
    assert here is not None
    assert (here.mean, here.count) == pytest.approx((85.5, 2))
    assert here.sd == pytest.approx(statistics.stdev([85, 86]))
    assert (scratch.runs, scratch.splits) == (4, ("val_folds=[0]", "val_folds=[3]"))
    assert compare("table4", tmp_path).notes == ()
    put(tmp_path, "none", 2, 0.9, val=3)
    assert "not every seed has one run on each split" in compare("table4", tmp_path).notes[0]


def test_the_same_run_twice_is_told(folder: Path) -> None:
    put(folder / "again", "none", 0, 0.9)
    assert "not every seed has one run on each split" in compare("table4", folder).notes[0]


def test_arms_on_different_cases_are_not_tested(folder: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        put(tmp_path, "resnet3d18_imagenet_acs", seed, 0.9 + seed / 100, val=0)
    found = compare("table4", folder)
    assert line(found, "ACS").p is None
    assert line(found, "scratch").p is not None
    assert "evaluated on different cases" in found.notes[0]


def test_settings_are_not_mixed(folder: Path) -> None:
    """A tuning run is no further seed."""
    put(folder, "none", 0, 0.7, lr=1e-3)
    found = compare("table4", folder)
    assert line(found, "scratch", "lr=0.0003").runs == 3
    assert line(found, "scratch", "lr=0.001").runs == 1
    assert line(found, "scratch", "lr=0.001").p is None


def test_an_arm_that_the_paper_does_not_have(folder: Path) -> None:
    put(folder, "runs/mine/model.safetensors", 0, 0.96)
    put(folder, "mine.safetensors", 0, 0.97)
    found = compare("table4", folder)
    last = found.lines[-1]
    assert (last.name, last.runs) == ("from mine", 2)
    assert last.cells["auc"].paper is None


def test_recipes_are_apart(folder: Path) -> None:
    put(folder, "none", 0, 0.85, recipe="resnet3d18w16_lidc")
    assert line(compare("table4", folder), "scratch", "resnet3d18w16_lidc").runs == 1
    assert line(compare("table4", folder), "scratch", "resnet3d18_lidc").runs == 3
    for seed in (1, 2):
        put(folder, "none", seed, 0.85 + seed / 100, recipe="resnet3d18w16_lidc")
    assert line(compare("table4", folder), "scratch", "resnet3d18w16_lidc").p is None, "its own arm was not run"


def test_detectors_go_by_the_run_they_start_from(tmp_path: Path) -> None:
    """An absolute place of the pre-training is the same start; the differences are those of what is printed."""
    run = put(tmp_path, "/data/runs/coco_resnet3d18/model.safetensors", 0, 0, recipe="deeplesion_resnet3d18")
    row = {"epoch": 23, "val/froc": 0.83766, "val/froc_0.5": 0.7, "val/froc_4": 0.9}
    (run / "log.jsonl").write_text(json.dumps(row) + "\n")
    cells = line(compare("table6", tmp_path), "ResNet3D-18, SVD-Net (COCO)").cells
    assert cells["mean"].difference == 0.01
    assert cells["fp4"].difference == -0.12
    assert cells["fp1"].here is None


def test_what_does_not_belong_is_told(folder: Path) -> None:
    put(folder, "none", 0, 0.5, recipe="other")
    (put(folder, "none", 7, 0.5) / "model.safetensors").unlink()
    found = compare("table4", folder)
    assert "1 runs are of recipes that are not in Table IV: other" in found.notes[0]
    assert "1 runs are not finished. Next: svd-hub train --resume" in found.notes[1]
    assert line(found, "scratch").runs == 3


def test_a_recipe_that_is_not_shipped_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduce.comparison, "_shipped", lambda recipe: recipe == "resnet3d18w16_lidc")
    commands = compare("table4").commands
    assert commands[2].startswith("# resnet3d18_lidc is no recipe of this version: none, resnet3d18_med3d23")
    assert commands[3].startswith("svd-hub train resnet3d18w16_lidc --data DIR --init INIT")


def test_folders_without_runs_and_damaged_runs(tmp_path: Path) -> None:
    with pytest.raises(SvdHubError, match="is no folder"):
        read_runs(tmp_path / "absent")
    with pytest.raises(SvdHubError, match="no run is in"):
        read_runs(tmp_path)
    run = put(tmp_path, "none", 0, 0.9)
    for name, text in (("log.jsonl", ""), ("run.json", "{"), ("recipe.yaml", "run: {}"), ("recipe.yaml", "a: [")):
        before = (run / name).read_text()
        (run / name).write_text(text)
        with pytest.raises(SvdHubError, match=r"cannot be read: \w+: .*Next: take it out"):
            read_runs(tmp_path)
        (run / name).write_text(before)
    assert len(read_runs(tmp_path)[0]) == 1


def test_a_run_of_the_engine_is_read(tmp_path: Path) -> None:
    pictures.image_set(tmp_path / "set")
    recipe = str(miniature.recipe(tmp_path / "plain.yaml"))
    settings = {"data.init_args.folder": str(tmp_path / "set"), "run.seed": 5, "run.epochs": 1}
    engine.train(recipe, run=tmp_path / "runs" / "one", overrides=settings, progress=False)
    ((run,), unfinished) = read_runs(tmp_path / "runs")
    assert (run.recipe, run.init, run.seed, run.split, unfinished) == ("miniature", "none", 5, "val_split=val", [])
    assert {"val/top1", "val/loss", "train/loss"} <= set(run.metrics)
    assert run.settings["task.init_args.network.options.width"] == "2"
    assert not [key for key in run.settings if "folder" in key or "seed" in key]


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    def go(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["svd-hub", *map(str, args)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0), *capsys.readouterr()

    return go


def test_the_command_prints_a_table(run: Any) -> None:
    code, out, err = run("reproduce", "table2")
    assert (code, err) == (0, "")
    assert ["ResNet3D-18", "33.67", "33.67", "+0.00", "15.99", "15.99", "+0.00", "73.43"] in [
        text.split() for text in out.splitlines()
    ]
    for known in read_paper("table2").known:
        assert f"- {known.text} [{known.source}]\n" in out, "it is cut, or left out"


@pytest.mark.parametrize("name", TABLES)
def test_every_table_is_printed_in_both_forms(run: Any, name: str) -> None:
    table = read_paper(name)
    code, out, err = run("reproduce", name)
    assert (code, err) == (0, "")
    assert out.startswith(f"{table.place}: {table.title}\n")
    assert all(row.name in out for row in table.rows)
    code, out, err = run("reproduce", name, "--json")
    assert (code, err) == (0, "")
    assert [one["name"] for one in json.loads(out)["lines"]] == [row.name for row in table.rows]


def test_the_command_reads_runs(run: Any, folder: Path) -> None:
    put(folder, "unet3d_genesis", 0, 0.92)
    code, out, err = run("reproduce", "table4", "--runs", folder)
    assert (code, err) == (0, "")
    (scratch,) = [text for text in out.splitlines() if text.startswith("scratch")]
    p = stats.ttest_ind([90, 91, 89], [93, 95, 94]).pvalue
    assert scratch.split()[:3] == ["scratch", "resnet3d18_lidc", "3"]
    assert scratch.split()[3:] == ["90.00", "+-", "1.00", "92.75", "-2.75", f"{p:.3g}"]
    code, out, err = run("reproduce", "table4", "--runs", folder, "--json")
    genesis = next(one for one in json.loads(out)["lines"] if one["name"] == "Models Genesis")
    assert genesis["cells"]["auc"]["here"] == {"mean": 92.0, "sd": None, "count": 1}
    assert "NaN" not in out


def test_errors_end_the_command(run: Any, tmp_path: Path) -> None:
    code, _, err = run("reproduce", "table9")
    assert code == 1
    assert "no table 'table9'" in err
    code, _, err = run("reproduce", "table4", "--runs", tmp_path)
    assert code == 1
    assert "no run is in" in err
