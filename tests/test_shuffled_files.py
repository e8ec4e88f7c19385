"""Laws of data sets: in whatever order a disk lists the files and a table its rows, a run has the same numbers."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from helpers_training import FOLDER, log, same

from svd_hub.training import engine, miniature
from svd_hub.training import recipe as recipes

# A recipe of each kind of data, with what makes it another kind.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "images": ("resnet3d18w16_tinyimagenet", {}),
    "coco": ("coco_resnet3d18", {}),
    "deeplesion json": ("deeplesion_resnet3d18", {}),
    "deeplesion nih": ("deeplesion_resnet3d18", {"data.init_args.form": "nih"}),
    "lidc pairs": ("resnet3d18w16_lidc", {}),
    "lidc masks": ("fcn3d18w16_lidc", {}),
    "lidc npz": ("resnet3d18_lidc_official", {}),
    "lidc npz masks": ("fcn3d18_lidc_official", {}),
    "decathlon": ("hippocampus_unet3d", {}),
    "lits": ("lits_unet3d18", {}),
    "organs": ("unet3d18w16_ctorgans", {}),
    "own labels": ("finetune-classify", {}),
    "own masks": ("finetune-segment", {}),
}


def shuffled(folder: Path) -> None:
    """Put the rows of all tables of a set into another order."""
    draw = random.Random(7)
    for file in sorted(folder.rglob("*.csv")):
        with file.open(newline="") as handle:
            header, *rows = list(csv.reader(handle))
        before = list(rows)
        while rows == before:
            draw.shuffle(rows)
        with file.open("w", newline="") as handle:
            csv.writer(handle).writerows([header, *rows])
    for file in sorted(folder.rglob("*.json")):
        table = json.loads(file.read_text())
        for key in ("images", "annotations", "training"):
            if isinstance(table, dict) and key in table:
                table[key].reverse()
        if file.name == "labels.json":
            table = dict(reversed(table.items()))
        file.write_text(json.dumps(table))


@contextmanager
def listed_backwards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The disk lists what is in a folder the other way round."""

    class Entries:
        def __init__(self, found: Any) -> None:
            self.found = found

        def __enter__(self) -> Any:
            return iter(self.found)

        def __exit__(self, *error: object) -> None:
            pass

        def __iter__(self) -> Any:
            return iter(self.found)

        def close(self) -> None:
            pass

    scan, names = os.scandir, os.listdir
    with monkeypatch.context() as patch:
        patch.setattr(
            os, "scandir", lambda *place: Entries(sorted(scan(*place), key=lambda one: one.name, reverse=True))
        )
        patch.setattr(os, "listdir", lambda *place: sorted(names(*place), reverse=True))
        yield


def equal(a: Any, b: Any) -> bool:
    """Whether two samples are one, to the bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(equal(*pair) for pair in zip(a, b, strict=True))
    return bool(a == b)


def data_of(name: str, folder: Path, changes: dict[str, Any]) -> Any:
    """The data module of a recipe on the miniature of its set, set up."""
    plan = recipes.read(name)
    assert plan.expected.smoke is not None
    asked = {**plan.expected.smoke.overrides(), "task.init_args.network.init": "none", **changes}
    data = recipes.read(name, {**asked, FOLDER: str(folder)}).make_data()
    data.setup("fit")
    return data


def made(name: str, changes: dict[str, Any], folder: Path) -> miniature.Made:
    data = recipes.read(name, changes).config.data
    return miniature.make(data.class_path, getattr(data.init_args, "form", None), folder)


@pytest.mark.parametrize("kind", KINDS)
def test_every_sample_is_the_same_in_any_order_of_files_and_rows(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so is the fingerprint, so that a run goes on with them."""
    name, changes = KINDS[kind]
    set_of = made(name, changes, tmp_path / "set")
    changes = {**set_of.settings, **changes}
    whole = data_of(name, set_of.data, changes)
    samples = [[part[1, k] for k in range(len(part))] for part in (whole.train_set, whole.val_set)]
    told = whole.fingerprint()
    shutil.copytree(tmp_path / "set", tmp_path / "other")
    shuffled(tmp_path / "other")
    with listed_backwards(monkeypatch):
        other = data_of(name, tmp_path / "other" / set_of.data.relative_to(tmp_path / "set"), changes)
        assert other.fingerprint() == told
        for part, found in zip((other.train_set, other.val_set), samples, strict=True):
            assert len(part) == len(found) > 0
            assert all(equal(part[1, k], one) for k, one in enumerate(found))
    if hasattr(whole, "scored_cases"):
        assert other.scored_cases() == whole.scored_cases()


def test_a_run_on_shuffled_files_has_the_same_weights_and_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made("finetune-classify", {}, tmp_path / "set")
    shutil.copytree(tmp_path / "set", tmp_path / "other")
    shuffled(tmp_path / "other")
    plan = recipes.read("finetune-classify").expected.smoke
    assert plan is not None
    settings = {**plan.overrides(), "task.init_args.network.init": "none", "run.epochs": 2}

    def run(folder: str) -> None:
        asked = {**settings, FOLDER: str(tmp_path / folder / miniature.CSV)}
        engine.train("finetune-classify", run=tmp_path / f"run-{folder}", overrides=asked, progress=False)

    run("set")
    with listed_backwards(monkeypatch):
        run("other")
    assert same(tmp_path / "run-set", tmp_path / "run-other")
    assert log(tmp_path / "run-set") == log(tmp_path / "run-other")
    facts = [json.loads((tmp_path / f"run-{folder}" / "run.json").read_text()) for folder in ("set", "other")]
    assert facts[0]["data"] == facts[1]["data"]


def test_the_rows_of_a_parquet_set_are_its_order(tmp_path: Path) -> None:
    """There is no name to sort them by: other rows first are another set, and its fingerprint says so."""
    name, changes = KINDS["images"]
    set_of = made(name, changes, tmp_path / "set")
    before = data_of(name, set_of.data, set_of.settings).fingerprint()
    shard = next((tmp_path / "set").glob("train-*.parquet"))
    table = pq.read_table(shard)
    pq.write_table(table.take(list(reversed(range(table.num_rows)))), shard)
    assert data_of(name, set_of.data, set_of.settings).fingerprint() != before
