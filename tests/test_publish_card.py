"""Card and table of a release say what run, log, data and publisher say, and nothing of a machine or a patient."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import tomllib
from pathlib import Path
from typing import Any

import helpers_publish as helpers
import pytest
import yaml
from huggingface_hub import ModelCard

from svd_hub.errors import OptionError
from svd_hub.training import recipe as recipes
from svd_hub.training.miniature.own import labelled
from svd_hub.training.publish import Release, Told, against, terms
from svd_hub.training.publish.finished import Finished, public, read_finished
from svd_hub.training.publish.toml import header, written

SECRET = "SENTINEL-4711"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("card")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SVD_HUB_HOME", str(folder / "cache"))
        helpers.small_run(folder)
    return folder


@pytest.fixture
def made(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Release:
    helpers.clean_tree(monkeypatch)
    return helpers.release(here / "run", to=tmp_path / "mirror")


# ---- the card -------------------------------------------------------------------------------------------------------


def test_the_header_is_read_as_the_hub_reads_it(made: Release) -> None:
    data = ModelCard(made.card).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("apache-2.0", "svd-hub", "image-classification")
    assert {"medical", "3d", "resnet3d"} <= set(data.tags)
    assert data.model_name == "net"
    found = {result.metric_type: result.metric_value for result in data.eval_results}
    assert found == {"auc": 0.75, "top1": 0.625}
    assert {result.dataset_name for result in data.eval_results} == {"pictures"}


@pytest.mark.parametrize(
    ("licence", "found"),
    [
        ("MIT", {"license": "mit"}),
        ("CC-BY-4.0", {"license": "cc-by-4.0"}),
        ("My Own 1.0", {"license": "other", "license_name": "my-own-1.0"}),
        (
            "CC-BY-NC-ND-4.0",
            {"license": "cc-by-nc-nd-4.0"},
        ),
        (
            "ASU-Academic",
            {
                "license": "other",
                "license_name": "asu-academic",
                "license_link": "https://github.com/MrGiovanni/ModelsGenesis/blob/master/LICENSE",
            },
        ),
    ],
)
def test_a_licence_as_the_hub_has_it(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, licence: str, found: dict[str, str]
) -> None:
    helpers.clean_tree(monkeypatch)
    card = helpers.release(here / "run", to=tmp_path, told=Told(licence=licence)).card
    told = yaml.safe_load(helpers.header(card))
    assert {key: value for key, value in told.items() if key.startswith("license")} == found


def test_the_card_has_every_part(here: Path, made: Release, tmp_path: Path) -> None:
    card = (tmp_path / "mirror" / "net" / "README.md").read_text()
    assert card == made.card
    assert made.entry.card().rstrip() in card, "the catalogue's own card"
    parts = [line for line in card.splitlines() if line.startswith("## ")]
    assert parts == [
        *("## Preprocessing", "## Measured", "## Notes", "## Intended use", "## Limits", "## Data"),
        *("## How it was made", "## Files", "## Citation"),
    ]
    assert "Research use. Not a medical device." in card
    assert "| auc | 0.75 | pictures | val | miniature |" in card
    assert "- licence of the data: CC0-1.0" in card
    assert "It knows three things." in card
    assert f"- trained by commit {helpers.COMMIT}" in card
    assert f'svd_hub.load("{made.entry.source.file}")' in card
    recipe = yaml.safe_load(card.split("```yaml\n")[1].split("\n```")[0])
    whole = yaml.safe_load((tmp_path / "mirror" / "net" / "recipe.yaml").read_text())
    assert recipe == {key: value for key, value in whole.items() if key != "expected"}
    told = json.loads(card.split("```json\n")[1].split("\n```")[0])
    assert told == json.loads((here / "run" / "run.json").read_text())["data"]


def test_the_recipe_on_the_card_is_that_of_the_run(here: Path, made: Release, tmp_path: Path) -> None:
    """It trains the same network again: only the folder of the data is to be given."""
    there = recipes.read(str(tmp_path / "mirror" / "net" / "recipe.yaml"), {helpers.FOLDER: str(here / "set")})
    before = recipes.read(str(here / "run" / "recipe.yaml"))
    assert yaml.safe_load(there.text) == yaml.safe_load(before.text)


# ---- what a run did otherwise ---------------------------------------------------------------------------------------


def run_of(recipe: recipes.Recipe, **row: float) -> Finished:
    settings = public(recipe)
    record = {"architecture": "resnet3d", "options": {}}
    return Finished(
        folder=Path("run"), recipe=recipe, settings=settings, record=record, tensors={}, log="", row=row, facts={}
    )


def test_what_was_set_otherwise_than_in_the_shipped_recipe_is_told() -> None:
    plain = recipes.read("resnet3d18w16_lidc", {"run.seed": 7, helpers.FOLDER: "/a/b"})
    assert against.remarks(run_of(plain, **{"val/auc": 0.9})) == ()
    other = recipes.read("resnet3d18w16_lidc", {"run.epochs": 3, "task.init_args.network.options.width": 8})
    (told,) = against.remarks(run_of(other, **{"val/auc": 0.9}))
    assert "run.epochs=3 (there 20), task.init_args.network.options.width=8 (there 16)" in told
    (told,) = against.remarks(run_of(plain, **{"val/auc": 0.7}))
    assert told == "the recipe expects val/auc 0.91 within 0.03: this run, with 0.7, is outside"


def test_each_shipped_recipe_says_what_it_is_trained_on() -> None:
    for file in sorted((helpers.ROOT / "training" / "recipes").glob("*.yaml")):
        data = terms.data_of(run_of(recipes.read(file.stem)), Told())
        assert data.stated != file.stem.startswith("finetune"), file.stem
        if data.stated:
            assert data.licence
            assert data.url.startswith("http")
            assert data.citation


def test_the_terms_of_the_data_before_are_told() -> None:
    before = terms.data_before(run_of(recipes.read("resnet3d18w16_lidc")))
    assert before is not None
    assert before.licence.startswith("ImageNet's terms")
    assert terms.data_before(run_of(recipes.read("resnet3d18w16_tinyimagenet"))) is None


def test_other_data_have_other_terms() -> None:
    run = run_of(recipes.read("resnet3d18w16_lidc"))
    mine = terms.data_of(run, Told(dataset="nodules of ours"))
    assert (mine.name, mine.licence, mine.citation) == ("nodules of ours", "not stated", "")
    both = terms.data_of(run, Told(data_licence="CC BY 4.0"))
    assert (both.name, both.licence) == ("LIDC-IDRI nodules", "CC BY 4.0")


# ---- what stays at home ---------------------------------------------------------------------------------------------


def test_nothing_of_a_machine_or_a_patient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helpers.clean_tree(monkeypatch)
    table = labelled(tmp_path / SECRET, patient=SECRET)
    init = tmp_path / SECRET / "before" / "model.safetensors"
    init.parent.mkdir()
    first = helpers.small_run(tmp_path / "first")
    (first / "model.safetensors").rename(init)
    started = {helpers.FOLDER: str(table), "task.init_args.network.init": str(init)}
    run = helpers.untrained(tmp_path / "run", "finetune-classify", {**started, "run.epochs": 1})
    (run / "scores.csv").write_text(f"case,patient\nx,{SECRET}\n")
    made = helpers.release(run, to=tmp_path / "mirror")
    read = read_finished(run)
    assert (read.init, read.settings["data"]["init_args"]["folder"]) == ("before", None)
    private = [SECRET, str(tmp_path), str(Path.home()), os.uname().nodename]
    texts = [path.read_bytes() for path in (tmp_path / "mirror").rglob("*") if path.is_file()]
    for text in (*texts, repr(made.text).encode(), made.card.encode(), *(note.encode() for note in made.notes)):
        assert not [word for word in private if word.encode() in text]
    assert "- started from: before" in made.card


def test_cases_that_only_the_publisher_names_are_counted() -> None:
    shipped = recipes.read("unet3d18w16_ctorgans")
    assert "ts_abdomen_3mm" in run_of(shipped).recipe_text
    assert run_of(shipped).split == "val, val_cases=2 cases"
    cases = {
        "data.init_args.train_cases": f'{{"{SECRET}": {{}}}}',
        "data.init_args.val_cases": f'{{"{SECRET}2": {{}}}}',
    }
    mine = run_of(recipes.read("unet3d18w16_ctorgans", cases))
    assert SECRET not in mine.recipe_text
    assert SECRET not in "".join(against.remarks(mine))
    assert (mine.settings["data"]["init_args"]["train_cases"], mine.split) == ("1 cases", "val, val_cases=1 cases")


def test_what_the_run_recorded_of_data_and_machine_is_sifted() -> None:
    facts = {
        "data": {"sha256": "ab", "train": [SECRET], "val": [SECRET, SECRET], "classes": ["x"], "train_folds": [0]},
        "machine": {"processor": "x86_64", "threads": 1, "name": SECRET},
    }
    run = dataclasses.replace(run_of(recipes.read("hippocampus_unet3d")), facts=facts)
    assert run.data == {"sha256": "ab", "train": "1 cases", "val": "2 cases", "classes": ["x"], "train_folds": [0]}
    assert run.machine == {"processor": "x86_64", "threads": 1}


def test_paths_of_a_machine_are_shortened() -> None:
    recipe = recipes.read("resnet3d18w16_lidc")
    for given in ("/home/me/x.yaml", "C:\\Users\\me\\x.yaml", "~/me/x.yaml"):
        text = recipe.text.replace("summary: ", f"summary: {json.dumps(given)}\nname_of: ", 1)
        told = public(dataclasses.replace(recipe, text=text))
        assert told["summary"] == "x.yaml"


# ---- TOML -----------------------------------------------------------------------------------------------------------


def anything(random: random.Random, depth: int = 0) -> Any:
    characters = "aZ9 _-.@\"'\\\n\t\r\x00\x1f\x7f\x85éß中\U0001f600#=[]{},"
    kinds = ["text", "int", "float", "bool"] + (["list", "table"] if depth < 3 else [])
    match random.choice(kinds):
        case "text":
            return "".join(random.choices(characters, k=random.randrange(8)))
        case "int":
            return random.randrange(-(10**12), 10**12)
        case "float":
            return random.uniform(-1, 1) * 10 ** random.randrange(-30, 30)
        case "bool":
            return random.random() < 0.5
        case "list":
            return [anything(random, depth + 1) for _ in range(random.randrange(4))]
    return {anything_named(random): anything(random, depth + 1) for _ in range(random.randrange(4))}


def anything_named(source: random.Random) -> str:
    return "".join(source.choices("aZ9_-.@ \"'\\\n\x7fé", k=source.randrange(1, 6)))


def test_what_is_written_is_read_back() -> None:
    source = random.Random(0)
    for _ in range(500):
        path = [anything_named(source) for _ in range(source.randrange(1, 4))]
        value = anything(source)
        found = tomllib.loads(f"{header(*path)}\nx = {written(value)}\n")
        for part in path:
            found = found[part]
        assert found["x"] == value


def test_what_toml_does_not_have_is_left_out_or_refused() -> None:
    assert written({"a": None, "b": 1}) == "{ b = 1 }"
    for value in (None, float("nan"), float("inf"), b"x", [None]):
        with pytest.raises(OptionError, match="cannot stand in the catalogue"):
            written(value)
