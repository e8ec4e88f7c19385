"""Every recipe at its smallest: it learns on miniature data of its real format, and what comes out stands alone."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import miniature as tests_recipe
import pytest
import torch
import yaml
from helpers_recipes import RECIPES, table_of
from real_data import need
from test_training import At, forked, kill, log, same

import svd_hub
from svd_hub import cli
from svd_hub.errors import OptionError, SvdHubError
from svd_hub.training import engine, miniature
from svd_hub.training import recipe as recipes
from svd_hub.training.evaluation import evaluate_entry
from svd_hub.training.expected import TIERS, Tier
from svd_hub.training.miniature import pictures
from svd_hub.training.miniature.boxes import lesion_set
from svd_hub.training.reproduce.tiers import reproduce


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def tiers_of(name: str) -> dict[str, Any]:
    expected = recipes.read(name).expected
    return {tier: getattr(expected, tier) for tier in TIERS if getattr(expected, tier) is not None}


# What the files that come out say of their input and their classes, by the beginnings of the recipes' names.
TWO = ("benign", "malignant")
NODULE = ("background", "nodule")
SAYS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "coco": ({"modality": "RGB", "mean": 123.675, "std": 58.395}, ("cat", "dog")),
    "deeplesion": ({"modality": "CT", "window": (-1024, 1050), "mean": 123.675, "std": 58.395}, ("lesion",)),
    "fcn3d18_lidc": ({"window": (-1024, 400), "spacing": (1, 1, 1), "mean": 123.675}, NODULE),
    "fcn3d18w16_lidc": ({"window": (-1000, 400), "mean": 114.495}, NODULE),
    "finetune-classify": ({"window": (-1000, 400), "size": (8, 12, 12), "mean": 114.495}, ("soft", "solid")),
    "finetune-segment": ({"window": (-1000, 400), "mean": 114.495}, ("background", "label 1", "label 4")),
    "hippocampus": ({"modality": "MR", "statistics": "volume"}, ("background", "anterior", "posterior")),
    "lits": ({"window": (-200, 250), "mean": 123.675}, ("background", "liver")),
    "resnet3d18_lidc_": ({"window": (-1024, 400), "mean": 99, "std": 77}, TWO),
    "resnet3d18_lidc": ({"window": (-1000, 400), "mean": 114.495}, TWO),
    "resnet3d18w16_lidc": ({"window": (-1000, 400), "mean": 114.495}, TWO),
    "unet3d18w16_ctorgans": ({"window": (-200, 300)}, ("background", "liver", "spleen", "kidneys")),
    "resnet": ({"modality": "RGB", "mean": 114.495, "std": 57.63}, ("thing 0", "thing 1", "thing 2")),
}


@pytest.mark.parametrize("name", RECIPES)
def test_twenty_steps_of_each_recipe_reduce_the_loss_and_give_a_network(name: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    found = reproduce(name, "smoke", run=run)
    rows = log(run)
    assert found.passed, found.line
    assert rows[-1]["step"] >= 20
    assert found.values == {found_seed(run): pytest.approx(rows[-1]["train/loss"] / rows[0]["train/loss"])}
    model, report = svd_hub.load(run / "model.safetensors", return_report=True)
    assert (report.missing, report.unexpected) == ((), ())
    says, classes = next(facts for beginning, facts in SAYS.items() if name.startswith(beginning))
    assert {key: getattr(model.preprocess, key) for key in says} == says
    assert model.entry.classes == classes
    if name.startswith(("resnet2d", "deeplesion")):  # inflated it is another network; and its log is of another split
        return
    measured = evaluate_entry(str(run / "model.safetensors"), recipe=str(run / "recipe.yaml"))["metrics"]
    logged = {key.removeprefix("val/"): value for key, value in rows[-1].items() if key.startswith("val/")}
    near = 1.01 / pictures.VAL if "_imagenet" in name else 2e-3  # half a pixel of 24 may cost one of seven pictures
    assert {key: measured[key] for key in logged if key in measured} == pytest.approx(
        {key: value for key, value in logged.items() if key in measured}, abs=near
    )
    assert logged.keys() - measured.keys() <= {"dice_pooled"}


def found_seed(run: Path) -> int:
    return recipes.read(str(run / "recipe.yaml")).settings.seed


@pytest.mark.parametrize("name", RECIPES)
def test_what_a_recipe_states_is_whole(name: str) -> None:
    """A smoke tier is there and decides; a figure has hardware and hours; each tier can be laid over the recipe."""
    stated = tiers_of(name)
    assert stated["smoke"].falls is not None
    assert not name.startswith("finetune") or set(stated) == {"smoke"}
    for one in stated.values():
        recipes.read(name, one.overrides())
        assert one.metric.split("/")[0] in ("train", "val", "test")
        assert one.measured != "here" or (one.hardware and one.hours)


# The real data beside a checkout on which a mini tier is run, by the beginnings of the recipes' names.
REAL = {
    "coco": "detection_coco_mini",
    "deeplesion": "deeplesion_samples",
    "fcn3d18w16_lidc": "lidc_nodules",
    "hippocampus": "msd_hippocampus",
    "resnet3d18w16_lidc": "lidc_nodules",
    "unet3d18w16_ctorgans": "ct_organ_seg",
    "resnet": "tiny_imagenet",
}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", [name for name in RECIPES if "mini" in (t := tiers_of(name)) and t["mini"].allowed])
def test_a_mini_tier_comes_out_as_it_states(name: str, tmp_path: Path) -> None:
    """Detectors learn four real images by heart; DeepLesion's samples have a FROC on other studies, too."""
    data = need(next(folder for beginning, folder in REAL.items() if name.startswith(beginning)))
    found = reproduce(name, "mini", run=tmp_path / "run", data=data)
    assert found.passed, found.line
    if name.startswith("deeplesion"):
        run = tmp_path / "run"
        told = evaluate_entry(str(run / "model.safetensors"), data=data, recipe=str(run / "recipe.yaml"))
        assert 0 <= told["metrics"]["froc"] <= 1


# ---- a tier ----------------------------------------------------------------------------------------------------------

ROWS = [{"train/loss": 2.0, "val/auc": 0.5}, {"train/loss": 1.0, "val/auc": 0.8}]


@pytest.mark.parametrize(
    ("stated", "value", "passed", "allowed"),
    [
        ({"metric": "val/auc", "centre": 0.82, "tolerance": 0.03}, 0.8, True, "0.79 to 0.85"),
        ({"metric": "val/auc", "centre": 0.9, "tolerance": 0.03}, 0.8, False, "0.87 to 0.93"),
        ({"metric": "val/auc", "centre": 0.7, "tolerance": 0.03}, 0.8, False, "0.67 to 0.73"),
        ({"metric": "val/auc", "least": 0.8}, 0.8, True, "0.8 or more"),
        ({"metric": "val/auc", "least": 0.81}, 0.8, False, "0.81 or more"),
        ({"metric": "train/loss", "falls": 0.6}, 0.5, True, "below 0.6"),
        ({"metric": "train/loss", "falls": 0.5}, 0.5, False, "below 0.5"),
        ({"metric": "val/auc", "measured": "published", "centre": 0.9, "source": "a paper"}, 0.8, None, ""),
        ({"metric": "val/auc", "measured": "never"}, 0.8, None, ""),
    ],
)
def test_a_range_decides_or_there_is_none(stated: dict[str, Any], value: float, passed: Any, allowed: str) -> None:
    tier = Tier(**stated)
    assert tier.value(ROWS) == value
    assert (tier.passed(value), tier.allowed) == (passed, allowed)
    if passed is not None:
        assert tier.passed(float("nan")) is False


@pytest.mark.parametrize(
    ("stated", "told"),
    [
        ({}, "centre and tolerance, or least, or falls"),
        ({"centre": 0.9}, "centre and tolerance"),
        ({"tolerance": 0.1}, "centre and tolerance"),
        ({"least": 0.5, "falls": 0.5}, "one of the three"),
        ({"measured": "published", "centre": 0.9}, "centre and source"),
        ({"measured": "published", "source": "a paper"}, "centre and source"),
        ({"measured": "published", "centre": 0.9, "source": "a", "tolerance": 0.1}, "before it was run here"),
        ({"measured": "never", "centre": 0.9}, "nobody has seen"),
        ({"measured": "never", "falls": 0.9}, "nobody has seen"),
        ({"least": 0.9, "seeds": ()}, "one or more, each once"),
        ({"least": 0.9, "seeds": (1, 1)}, "one or more, each once"),
    ],
)
def test_figures_that_nobody_saw_are_refused(stated: dict[str, Any], told: str) -> None:
    with pytest.raises(OptionError, match=told):
        Tier(metric="val/auc", **stated)


def test_a_log_without_the_metric_is_told() -> None:
    with pytest.raises(SvdHubError, match=r"no val/dice; found: train/loss, val/auc"):
        Tier(metric="val/dice", least=0.5).value(ROWS)
    with pytest.raises(SvdHubError, match="found: no epoch"):
        Tier(metric="val/dice", least=0.5).value([])


# ---- runs ------------------------------------------------------------------------------------------------------------

EXPECTED = """
expected:
  smoke: {metric: train/loss, falls: 1.0, hardware: any, hours: 0.001}
  mini:
    metric: val/top1
    least: 0.2
    seeds: [0, 7]
    set: {run.epochs: 1, data.init_args: {phases: [{epochs: 1, size: 16}]}}
  full: {metric: val/top1, measured: published, centre: 0.9, source: a paper}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tests_recipe.recipe(tmp_path / "plain.yaml")
    path.write_text(path.read_text() + EXPECTED)
    return path


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    def go(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["svd-hub", "reproduce", *map(str, args)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0), *capsys.readouterr()

    return go


def test_seeds_run_one_after_another_and_are_read_again(recipe: Path, tmp_path: Path, monkeypatch: Any) -> None:
    data, run, lines = pictures.image_set(tmp_path / "set"), tmp_path / "run", list[str]()
    found = reproduce(str(recipe), "mini", run=run, data=data, report=lines.append)
    assert [row["epoch"] for row in map(json.loads, lines)] == [0, 0]
    for seed in (0, 7):
        assert recipes.read(str(run / f"seed{seed}" / "recipe.yaml")).settings.seed == seed
        assert found.values[seed] == log(run / f"seed{seed}")[-1]["val/top1"]
    assert found.mean == pytest.approx(sum(found.values.values()) / 2)
    assert found.passed == (found.mean >= 0.2)
    assert "mean of seeds 0, 7: " in found.line
    again = list[str]()
    assert reproduce(str(recipe), "mini", run=run, data=data, report=again.append) == found
    assert not again
    (run / "seed7" / "model.safetensors").unlink()  # stopped before the end: what was trained is not trained again
    assert reproduce(str(recipe), "mini", run=run, data=data, report=again.append) == found
    assert not again


def test_a_stopped_run_goes_on_to_the_same_end(recipe: Path, tmp_path: Path) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert reproduce(str(recipe), "smoke", run=whole).passed
    made = miniature.make("ImageParquet", None, run / ".miniature")
    settings = {"data.init_args.folder": str(made.data), **made.settings, "run.seed": 0}
    at = At("on_train_batch_end", 7, kill)
    assert forked(lambda: engine.train(str(recipe), run=run, overrides=settings, progress=False, callbacks=[at])) < 0
    assert not (run / "model.safetensors").exists()
    reproduce(str(recipe), "smoke", run=run)
    assert same(run, whole)


def test_a_folder_of_another_run_is_refused(recipe: Path, tmp_path: Path) -> None:
    data, run = pictures.image_set(tmp_path / "set"), tmp_path / "run"
    reproduce(str(recipe), "full", run=run, data=data)
    recipe.write_text(recipe.read_text().replace("source: a paper", "source: a paper, seeds: [5]"))
    with pytest.raises(SvdHubError, match=r"holds a run of other settings: run\.seed is 0 there, asked for 5.*--run"):
        reproduce(str(recipe), "full", run=run, data=data)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(SvdHubError, match="not empty"):
        reproduce(str(recipe), "full", run=tmp_path / "other", data=data)


def test_a_run_that_came_to_nothing_is_no_other_run(recipe: Path, tmp_path: Path) -> None:
    """It ended before its first checkpoint; the corrected tier takes its place."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(recipes.read(str(recipe), {"run.seed": 9}).text)
    assert reproduce(str(recipe), "smoke", run=run).passed
    assert found_seed(run) == 0


def test_the_test_split_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lesion detector's table is of another split than its log."""
    table = table_of("deeplesion_resnet3d18")
    smallest = {**table["expected"]["smoke"]["set"]}
    smallest["run"] = {**smallest["run"], "epochs": 2}
    table["expected"] = {"full": {"metric": "test/froc", "measured": "never", "set": smallest}}
    recipe, run = tmp_path / "lesions.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump(table))
    data = lesion_set(tmp_path / "set")
    found = reproduce(str(recipe), "full", run=run, data=data)
    measured = evaluate_entry(str(run / "model.safetensors"), data=data, recipe=str(run / "recipe.yaml"))["metrics"]
    assert found.values == {0: pytest.approx(measured["froc"])}

    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr("svd_hub.training.evaluation.evaluate_entry", never)
    assert reproduce(str(recipe), "full", run=run, data=data) == found
    (run / "test.json").write_text((run / "test.json").read_text().replace('"sha256": "', '"sha256": "0'))
    with pytest.raises(AssertionError, match="measured again"):  # of another network
        reproduce(str(recipe), "full", run=run, data=data)


def test_only_smoke_makes_its_data(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(SvdHubError, match=r"needs a data set.*--data"):
        reproduce(str(recipe), "mini", run=tmp_path / "run")
    with pytest.raises(SvdHubError, match=r"no miniature of Spots; there is of ImageParquet.*--data"):
        miniature.make("mine.Spots", None, tmp_path / "set")


def test_the_command_passes_fails_and_says_what_it_cannot(recipe: Path, tmp_path: Path, command: Any) -> None:
    code, out, err = command(recipe, "--tier", "smoke", "--run", tmp_path / "smoke")
    assert code == 0
    assert re.fullmatch(
        r"miniature, smoke: train/loss is 0\.\d+ of the first epoch's \(seed 0\), as expected; allowed: below 1\n", out
    )
    assert json.loads(err.splitlines()[0])["epoch"] == 0
    data = pictures.image_set(tmp_path / "set")
    recipe.write_text(recipe.read_text().replace("least: 0.2", "least: 1.01"))
    code, out, err = command(recipe, "--tier", "mini", "--run", tmp_path / "mini", "--data", data, "--json")
    assert code == 1
    told = "".join(line for line in err.splitlines() if not line.startswith("{"))
    assert re.search(
        r"error: miniature, mini: val/top1 is 0\.\d+ .mean of seeds 0, 7: .*not as expected.*1.01 or more", told
    )
    assert json.loads(out)["passed"] is False
    code, out, err = command(recipe, "--tier", "full", "--run", tmp_path / "full", "--data", data)
    assert code == 0
    assert "It neither passes nor fails: 0.9 is published (a paper) and was not re-run by this project; diff" in out
    recipe.write_text(
        recipe.read_text().replace("measured: published, centre: 0.9, source: a paper", "measured: never")
    )
    code, out, err = command(recipe, "--tier", "full", "--run", tmp_path / "full", "--data", data)
    assert code == 0
    assert "It neither passes nor fails: nobody has run this tier to its end, so it has no range" in out


def test_the_command_tells_what_does_not_go_together(command: Any) -> None:
    code, _, err = command("table4", "--data", "x")
    assert code == 2
    assert "--tier" in err
    code, _, err = command("resnet3d18_lidc", "--tier", "smoke", "--runs", "x")
    assert code == 2
    code, _, err = command("resnet3d18_lidc")
    assert code == 1
    assert "of a recipe: --tier" in " ".join(err.split())
    code, _, err = command("resnet3d18_lidc", "--tier", "tiny")
    assert code == 1
    assert "--tier tiny is not allowed; allowed: smoke, mini, full" in " ".join(err.split())
    code, _, err = command("finetune-classify", "--tier", "full")
    assert code == 1
    assert "states no tier 'full'; it states: smoke" in " ".join(err.split())
