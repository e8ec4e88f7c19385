"""The data sets that lie beside a checkout. What needs them is marked slow, and skipped where they are not there."""

from __future__ import annotations

from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def need(folder: str) -> Path:
    """The folder of a data set, or the test is skipped."""
    if not (DATA / folder).is_dir():
        pytest.skip(f"{folder} is not beside the checkout")
    return DATA / folder
