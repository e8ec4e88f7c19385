"""Finished runs without a training: what the engine writes, around a network as it is initialised."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import miniature
import pytest
import torch

from svd_hub.training import engine, publish, tree
from svd_hub.training import recipe as recipes
from svd_hub.training.miniature import pictures
from svd_hub.training.publish import Release, Told

ROOT = Path(__file__).resolve().parents[1]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CLEAN = {"commit": COMMIT, "dirty": False}
LOG = {"val/auc": 0.75, "val/loss": 0.5, "val/top1": 0.625}
FOLDER = "data.init_args.folder"
SAID = Told(dataset="pictures", data_licence="CC0-1.0", licence="Apache-2.0", notes=("It knows three things.",))


def untrained(run: Path, recipe: str, overrides: dict[str, Any], **facts: Any) -> Path:
    """Write a run folder of `recipe` as if it had been trained; `facts` are laid over `run.json`."""
    made = recipes.read(recipe, overrides)
    task, data = made.make()
    data.setup("fit")
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text(made.text)
    rows = [{"epoch": epoch, "step": epoch + 1, **LOG} for epoch in range(made.settings.epochs)]
    (run / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = {"recipe": made.name, "versions": {"torch": torch.__version__}, "data": data.fingerprint(), "git": CLEAN}
    (run / "run.json").write_text(json.dumps({**told, **facts}))
    network = {f"network.{name}": tensor for name, tensor in task.network.state_dict().items()}
    torch.save({"state_dict": network}, run / "last.ckpt")
    engine.finish(made, task, data, run)
    return run


def small_run(folder: Path, **facts: Any) -> Path:
    """A run of the miniature recipe in `folder`, with its data beside it."""
    if not (folder / "set").exists():
        pictures.image_set(folder / "set")
        miniature.recipe(folder / "miniature.yaml")
    return untrained(folder / "run", str(folder / "miniature.yaml"), {FOLDER: str(folder / "set")}, **facts)


def clean_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkout that publishes is as committed, whatever its tests find."""
    monkeypatch.setattr(tree, "present", lambda **_: tree.Tree(commit=COMMIT))


def release(run: Path, name: str = "net", **given: Any) -> Release:
    return publish.publish_run(run, name, **{"told": SAID, **given})


def python(code: str, *arguments: object, cwd: Path, **env: str) -> str:
    """Run code in another process, offline and with an empty cache, and return what it prints."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "SVD_HUB_"))}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**clean, "PYTHONPATH": str(ROOT), "SVD_HUB_HOME": str(cwd / "home"), **env},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


LOADS = """
import json, sys, torch, svd_hub
from svd_hub import checkpoint
name, file = sys.argv[1:]
model, report = svd_hub.load(name, return_report=True)
golden = checkpoint.read(file).tensors
with torch.inference_mode():
    apart = (model(golden["input"].float()) - golden["output"]).abs().max()
print(json.dumps([report.source, report.source_sha256, float(apart), len(report.matched) == report.total]))
"""


def header(card: str) -> str:
    found = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    assert found
    return found[1]
