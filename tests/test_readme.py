"""The README tells the truth: its code runs, and its table is the catalogue's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from svd_hub.card import readme_table
from svd_hub.catalog import all_entries

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_readme_has_code() -> None:
    assert len(BLOCKS) >= 2


@pytest.mark.parametrize("block", BLOCKS, ids=[block.strip().splitlines()[0][:50] for block in BLOCKS])
def test_every_block_runs_offline_in_an_empty_folder(block: str, tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "SVD_HUB_HOME": str(tmp_path / "home")}
    code = block.replace('"org/svd"', repr(str(ROOT))).replace("trust_repo=True", 'source="local", trust_repo=True')
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_table_is_the_catalogue() -> None:
    table = README.split("<!-- entries -->\n")[1].split("<!-- /entries -->")[0]
    assert table == readme_table(all_entries().values()), "put this table there: svd_hub.card.readme_table"
