"""From a run to an entry: what is published loads, measures and computes what the run did."""

from __future__ import annotations

import hashlib
import json
import os
import tomllib
from pathlib import Path
from typing import Any

import miniature
import pytest
import torch
from safetensors.torch import load_file

import svd_hub
from svd_hub.errors import SvdHubError
from svd_hub.training import engine
from svd_hub.training.evaluation import evaluate_entry
from svd_hub.training.miniature import pictures
from svd_hub.training.release import golden_input, publish_run

FOLDER = "data.init_args.folder"
NAME = "miniature_net"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the miniature recipe and its release."""
    folder = tmp_path_factory.mktemp("release")
    before = os.environ.get("SVD_HUB_HOME")
    os.environ["SVD_HUB_HOME"] = str(folder / "cache")
    try:
        torch.set_num_threads(1)
        pictures.image_set(folder / "set")
        miniature.recipe(folder / "miniature.yaml")
        data = {FOLDER: str(folder / "set")}
        engine.train(str(folder / "miniature.yaml"), run=folder / "run", overrides=data, progress=False)
        facts = publish_run(folder / "run", NAME, folder / "release")
        (folder / "facts.json").write_text(json.dumps(facts))
    finally:
        if before is None:
            del os.environ["SVD_HUB_HOME"]
        else:
            os.environ["SVD_HUB_HOME"] = before
    return folder


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    for name in list(os.environ):
        if name.startswith(("HF_", "SVD_HUB_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SVD_HUB_HOME", str(here / "cache"))


@pytest.fixture
def facts(here: Path) -> dict[str, Any]:
    return json.loads((here / "facts.json").read_text())


@pytest.fixture
def entry(here: Path, facts: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The printed facts as an entry of the catalogue, its file beside a `file://` link."""
    metrics = [
        {"name": k, "value": v, "dataset": "miniature", "split": "val", "made_by": str(here / "miniature.yaml")}
        for k, v in facts["log"].items()
    ]
    table = {
        "summary": "a test",
        "architecture": "resnet3d",
        "options": facts["options"],
        "task": "classification",
        "status": "ours",
        "recipe": str(here / "miniature.yaml"),
        "preprocess": facts["preprocess"],
        "metrics": metrics,
        "source": {
            "kind": "url",
            "url": f"file://{here}/release/{facts['file']}",
            "file": facts["file"],
            "sha256": facts["sha256"],
            "size": facts["size"],
        },
    }
    overlay = tmp_path / "overlay.toml"
    overlay.write_text(toml(f"entry.{NAME}", table))
    tomllib.loads(overlay.read_text())
    monkeypatch.setenv("SVD_HUB_CATALOG", str(overlay))
    monkeypatch.setenv("SVD_HUB_MIRROR", f"file://{here}/release")
    return NAME


def toml(header: str, table: dict[str, Any]) -> str:
    """The few forms of TOML an entry needs."""

    def value(item: Any) -> str:
        if isinstance(item, dict):
            return "{ " + ", ".join(f"{k} = {value(v)}" for k, v in item.items() if v is not None) + " }"
        if isinstance(item, list | tuple):
            return "[" + ", ".join(map(value, item)) + "]"
        return json.dumps(item)

    return "\n".join([f"[{header}]", *(f"{k} = {value(v)}" for k, v in table.items())]) + "\n"


def test_a_release_is_an_entry_and_measures_what_the_log_says(here: Path, entry: str, facts: dict[str, Any]) -> None:
    found = evaluate_entry(entry, data=here / "set", batch=3)
    assert found["examples"] == 7
    assert found["card"] == facts["log"]
    assert found["metrics"].keys() == facts["log"].keys()
    for name, value in facts["log"].items():
        assert found["metrics"][name] == pytest.approx(value, abs=2e-3), name


def test_the_golden_output_comes_out_of_the_released_file(here: Path, entry: str) -> None:
    golden = load_file(here / "release" / f"{NAME}.golden.safetensors")
    model = svd_hub.load(entry)
    with torch.inference_mode():
        output = model(golden["input"].float())
    assert float((output - golden["output"]).abs().max()) < 1e-3
    assert torch.equal(golden_input(model.preprocess), golden["input"].float())
    assert float(golden["output"].std()) > 0  # it says something
    assert model.preprocess.size == (3, 24, 24)


def test_the_released_file_is_half_precision_and_rebuilds_alone(here: Path, facts: dict[str, Any]) -> None:
    file = here / "release" / facts["file"]
    assert hashlib.sha256(file.read_bytes()).hexdigest() == facts["sha256"]
    assert file.stat().st_size == facts["size"]
    assert {t.dtype for t in load_file(file).values() if t.is_floating_point()} == {torch.float16}
    trained = svd_hub.load(here / "run" / "model.safetensors")
    model = svd_hub.load(file)
    assert model.preprocess == trained.preprocess
    assert model.entry.classes == ("thing 0", "thing 1", "thing 2")
    x = golden_input(model.preprocess)
    assert float((model(x) - trained(x)).detach().abs().max()) < 2e-2  # what half precision costs


def test_a_release_names_no_place_and_nobody(here: Path) -> None:
    files = sorted((here / "release").iterdir())
    assert [f.name for f in files] == [f"{NAME}.golden.safetensors", f"{NAME}.log.jsonl", f"{NAME}.safetensors"]
    private = [str(here), str(Path.home()), os.uname().nodename]
    for file in files:
        assert not [word for word in private if word.encode() in file.read_bytes()]


def test_publishing_twice_gives_the_same_bytes(here: Path, facts: dict[str, Any], tmp_path: Path) -> None:
    assert publish_run(here / "run", NAME, tmp_path) == facts
    for file in tmp_path.iterdir():
        assert file.read_bytes() == (here / "release" / file.name).read_bytes()


def test_an_unfinished_run_is_not_published(here: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_bytes((here / "run" / "recipe.yaml").read_bytes())
    with pytest.raises(SvdHubError, match=r"not finished.*--resume"):
        publish_run(run, NAME, tmp_path / "release")
    (run / "model.safetensors").write_bytes((here / "run" / "model.safetensors").read_bytes())
    for log in ("", (here / "run" / "log.jsonl").read_text().splitlines()[0] + "\n"):
        (run / "log.jsonl").write_text(log)
        with pytest.raises(SvdHubError, match="epoch"):
            publish_run(run, NAME, tmp_path / "release")
    assert not (tmp_path / "release").exists()
