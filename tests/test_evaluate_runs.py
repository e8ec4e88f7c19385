"""Laws of measuring a run again: its folder knows its recipe; what was measured on is said. And small words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import svd_hub
from svd_hub.cli import app
from svd_hub.errors import SvdHubError
from svd_hub.training import engine, evaluation
from svd_hub.training.commands import register
from svd_hub.training.data.own import Reading
from svd_hub.training.data.own_volumes import OwnVolumes
from svd_hub.training.data.splits import split_by_patient
from svd_hub.training.miniature.own import labelled, lump
from svd_hub.training.miniature.volumes import write_volume

BACKBONE = "resnet3d18w16_tinyimagenet"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated")
    start = svd_hub.load(BACKBONE, weights=None, depth=10, width=2)
    settings = {
        "data.init_args.folder": str(labelled(folder)),
        "data.init_args.batch_size": 4,
        "data.init_args.reading.size": "[8, 12, 12]",
        "task.init_args.network.init": str(svd_hub.save(start, folder / "start.safetensors")),
        "run.epochs": 1,
        "run.threads": 1,
    }
    return engine.train("finetune-classify", run=folder / "run", overrides=settings, progress=False).parent


def evaluate(*arguments: object) -> Any:
    if not any(c.callback and c.callback.__name__ == "evaluate" for c in app.registered_commands):
        register(app)
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def test_a_run_is_measured_by_its_folder_or_its_result_alone(run: Path) -> None:
    last = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    for name in (run, run / "model.safetensors"):
        found = json.loads(evaluate(name, "--json").stdout)
        assert found["metrics"]["loss"] == pytest.approx(last["val/loss"], abs=1e-4)
        assert (found["recipe"], found["split"], found["examples"]) == ("finetune-classify", "val", 4)
    assert evaluate(run).stdout.splitlines()[0].endswith("on 4 images, split val of finetune-classify")


def test_a_run_that_is_not_finished_is_told(run: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text((run / "recipe.yaml").read_text())
    with pytest.raises(SvdHubError, match=r"has no model\.safetensors: the run is not finished\. Next: .*--resume"):
        evaluation.evaluate_entry(str(tmp_path))


@pytest.mark.parametrize(("value", "told"), [(0.49999, "+0.0000"), (0.49, "-0.0100"), (0.51, "+0.0100")])
def test_no_difference_has_no_sign(monkeypatch: pytest.MonkeyPatch, value: float, told: str) -> None:
    found = {"name": "x", "examples": 1, "split": "val", "recipe": "r", "metrics": {"auc": value}, "card": {"auc": 0.5}}
    monkeypatch.setattr(evaluation, "evaluate_entry", lambda *_, **__: found)
    first, second = evaluate("x").stdout.splitlines()
    assert first == "x on 1 image, split val of r"
    assert second.endswith(f"difference {told}")


def test_the_modality_is_named_only_where_it_is_the_matter(tmp_path: Path) -> None:
    path = labelled(tmp_path, count=8)
    data = OwnVolumes(folder=path, init=BACKBONE, batch_size=4, reading=Reading(size=(8, 12, 12)))
    (tmp_path / "scans" / "00.nii.gz").write_bytes(b"nothing")
    with pytest.raises(SvdHubError, match=r"line 2: .*00\.nii\.gz is no volume") as told:
        data.setup("fit")
    assert "reading.modality" not in str(told.value)
    write_volume(tmp_path / "scans" / "00.nii.gz", lump(0, value=200)[1])  # 8-bit: no CT
    with pytest.raises(SvdHubError, match=r"line 2: .*--set data\.init_args\.reading\.modality=MR"):
        data.setup("fit")


def test_one_of_a_thing_is_not_many(tmp_path: Path) -> None:
    with pytest.raises(SvdHubError, match="1 patient cannot be split"):
        split_by_patient(["a", "a"], ["x", "y"], share=0.2, seed=0)
    data = OwnVolumes(folder=labelled(tmp_path, count=8), init=BACKBONE, batch_size=16)
    data.setup("fit")
    with pytest.raises(
        SvdHubError, match=r"^4 samples to train on, and a batch is 16; allowed: one whole batch\. Next"
    ):
        data.train_dataloader()
