"""Laws of finding a recipe and its keys: the nearest is named, all can be shown, without the libraries of training."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from svd_hub.errors import SvdHubError
from svd_hub.training import keys, shelf
from svd_hub.training import recipe as recipes

ROOT = Path(__file__).resolve().parents[1]
LEAKS = ("Parser key", "class_path", "typing.", "unrecognized", "<class")  # words of the parser

NEAREST = {
    "epoch": "run.epochs",
    "epochs": "run.epochs",
    "run.epoch": "run.epochs",
    "optimiser.name": "task.init_args.optimiser.name",
    "lr": "task.init_args.optimiser.lr",
    "data.batch_size": "data.init_args.batch_size",
    "task.init_args.network.archi": "task.init_args.network.architecture",
}


@pytest.mark.parametrize("key", NEAREST)
def test_a_key_that_is_none_names_the_nearest(key: str) -> None:
    with pytest.raises(SvdHubError) as told:
        recipes.read("finetune-segment", {key: 1})
    found = f"recipe finetune-segment: no key {key!r}; nearest: {NEAREST[key]}"
    assert str(told.value).startswith(found)
    assert str(told.value).endswith("Next: svd-hub train finetune-segment --show prints its keys and values")


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("run.epochs", "many", "a whole number"),
        ("run.clip", "x", "a number"),
        ("run.precision", "8", "32-true, bf16-mixed, 16-mixed"),
        ("task.init_args.optimiser.name", "foo", "sgd, adam, adamw"),
        ("data.init_args.division.evaluated", "train", "val, test"),
    ],
)
def test_a_value_that_is_not_allowed_is_told_in_the_words_of_the_recipe(key: str, value: str, allowed: str) -> None:
    with pytest.raises(SvdHubError) as told:
        recipes.read("finetune-segment", {"run.seed": 1, key: value})
    assert f"{key}={value} is not allowed; allowed: {allowed}. Next: " in str(told.value)
    assert not [word for word in LEAKS if word in str(told.value)]


def test_what_lies_in_a_table_of_free_content_is_no_unknown_key() -> None:
    recipe = recipes.read(
        "finetune-segment",
        {"task.init_args.network.options.encoder_options.width": "8", "data.init_args.classes": "{a: [1]}"},
    )
    assert recipe.config.task.init_args.network.options["encoder_options"] == {"width": 8}


def test_every_recipe_is_listed_with_what_it_says_of_itself() -> None:
    found = shelf.summaries()
    assert {name: recipes.read(name).summary for name in found} == found
    assert all(found.values())


def without_libraries(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys; sys.modules['pytorch_lightning'] = sys.modules['jsonargparse'] = None\n"
        f"sys.argv = ['svd-hub', *{list(arguments)}]\nfrom svd_hub.cli import main; main()"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_recipes_are_listed_and_missed_without_the_libraries_of_training(tmp_path: Path) -> None:
    alone, asked = without_libraries("train"), without_libraries("train", "--list")
    assert alone.returncode == asked.returncode == 0, alone.stderr
    assert alone.stdout == asked.stdout
    assert len(alone.stdout.splitlines()) == len(shelf.shipped()) + 1
    assert "finetune-segment" in alone.stdout
    typo = without_libraries("train", "finetune-segmnt")
    assert typo.returncode == 1
    assert "no recipe 'finetune-segmnt'; nearest: finetune-segment" in typo.stderr
    missing = without_libraries("train", "finetune-segment", "--data", str(tmp_path / "my.csv"))
    assert "my.csv does not exist. Next: " in missing.stderr
    assert 'pip install "svd-hub[train]"' in without_libraries("train", "finetune-segment").stderr


def test_a_recipe_is_shown_as_it_would_be_run(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from svd_hub.cli import app
    from svd_hub.training.commands import register

    if not any(c.callback and c.callback.__name__ == "train" for c in app.registered_commands):
        register(app)
    shown = CliRunner().invoke(app, ["train", "finetune-segment", "--show", "--set", "run.epochs=3"])
    assert shown.exit_code == 0, shown.output
    (tmp_path / "shown.yaml").write_text(shown.stdout)
    assert recipes.read(str(tmp_path / "shown.yaml")).text == shown.stdout
    assert recipes.read("finetune-segment", {"run.epochs": 3}).text == shown.stdout


def test_nothing_is_near_what_is_like_nothing() -> None:
    assert keys.nearest_keys("qqqq", ["run.epochs", "run.seed"]) == []
