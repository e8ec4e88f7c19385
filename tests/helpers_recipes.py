"""What the tests of shipped recipes share: their files, and the commands in their headers."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).resolve().parents[1] / "training" / "recipes"
RECIPES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def text_of(name: str) -> str:
    return (FOLDER / f"{name}.yaml").read_text()


def table_of(name: str) -> dict[str, Any]:
    table: dict[str, Any] = yaml.safe_load(text_of(name))
    return table


def commands_of(name: str) -> list[list[str]]:
    """The `svd-hub train` commands in the comments of a recipe, as a shell would take them apart."""
    lines = [line.removeprefix("#").strip() for line in text_of(name).splitlines() if line.startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [shlex.split(line) for line in text.splitlines() if line.startswith("svd-hub train ")]
