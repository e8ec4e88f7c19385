"""The README and the pages tell the truth: code runs, links and options exist, the table is the catalogue's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from svd_hub import cli
from svd_hub.card import readme_table
from svd_hub.catalog import all_entries

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    block for page in PAGES for block in re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), flags=re.DOTALL)
]


def test_there_is_code() -> None:
    assert len(BLOCKS) >= 4


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text("utf-8"))
    assert not [link for link in links if not (page.parent / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_option_of_a_command_exists(page: Path) -> None:
    """Of each `svd-hub ...` line in a block of shell, by the command's own parser."""
    cli._add_commands()
    for block in re.findall(r"```sh\n(.*?)```", page.read_text("utf-8"), flags=re.DOTALL):
        for line in re.findall(r"svd-hub ([a-z].*)", block):
            command: Any = typer.main.get_command(cli.app)
            words = line.split("#")[0].split()
            while commands := getattr(command, "commands", None):
                command = commands[words.pop(0) if words[0] in commands else command.default]
            known = {option for parameter in command.params for option in parameter.opts}
            assert not [word for word in words if word.startswith("--") and word not in known], line


@pytest.mark.parametrize("block", BLOCKS, ids=[block.strip().splitlines()[0][:50] for block in BLOCKS])
def test_every_block_runs_offline_in_an_empty_folder(block: str, tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "SVD_HUB_HOME": str(tmp_path / "home")}
    code = block.replace('"org/svd"', repr(str(ROOT))).replace("trust_repo=True", 'source="local", trust_repo=True')
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_table_is_the_catalogue() -> None:
    table = README.split("<!-- entries -->\n")[1].split("<!-- /entries -->")[0]
    assert table == readme_table(all_entries().values()), "put this table there: svd_hub.card.readme_table"
