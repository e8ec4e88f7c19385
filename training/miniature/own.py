"""A user's own data: CSVs over NIfTI volumes, with labels or with masks."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import CSV
from .volumes import write_volume


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], *, separator: str = ",") -> Path:
    """Write a table whose columns are the keys of its first row."""
    with path.open("w", newline="", encoding="utf-8") as handle:
        table = csv.DictWriter(handle, list(rows[0]), delimiter=separator)
        table.writeheader()
        table.writerows(rows)
    return path


def lump(
    seed: int, *, value: int, side: int = 5, shape: tuple[int, int, int] = (12, 14, 16)
) -> tuple[np.ndarray, np.ndarray]:
    """Return HU of a noisy block of `value` in lung, and its mask."""
    random = np.random.default_rng(seed)
    mask = np.zeros(shape, np.uint8)
    z, y, x = (int(random.integers(2, n - side - 1)) for n in shape)
    mask[z : z + side, y : y + side, x : x + side] = 1
    noise = random.normal(0, 30, shape)
    return np.where(mask, value, -800 + noise).round().astype(np.int16), mask


def labelled(folder: Path, *, count: int = 12, split: bool = True, patient: str = "p") -> Path:
    """Make `count` volumes of two labels, two of each patient; return the table."""
    rows = []
    for k in range(count):
        kind = k // 2 % 2
        write_volume(folder / "scans" / f"{k:02}.nii.gz", lump(k, value=(20, 400)[kind], side=(3, 8)[kind])[0])
        row = {"image": f"scans/{k:02}.nii.gz", "label": ("solid", "soft")[kind], "patient": f"{patient}-{k // 2}"}
        rows.append(row | ({"split": "val" if k >= count - 4 else "train"} if split else {}))
    return write_csv(folder / CSV, rows)


def masked(folder: Path, *, count: int = 4) -> Path:
    """Make `count` volumes with masks of the values 1 and 4, files in different orientations; return the table."""
    rows = []
    for k in range(count):
        image, mask = lump(k, value=200, shape=(18, 20, 22))
        other, more = lump(50 + k, value=-300, shape=(18, 20, 22))
        image, mask = np.where(more > mask, other, image), np.where(more > mask, 4, mask)
        axes = ("LPS", "RAS", "PIR", "SLA")[k % 4]
        write_volume(folder / f"ct{k}.nii.gz", image, axes=axes)
        write_volume(folder / f"seg{k}.nrrd", mask, axes=("RAS", "LPS")[k % 2])
        rows.append({"image": f"ct{k}.nii.gz", "mask": f"seg{k}.nrrd", "split": "val" if k == count - 1 else "train"})
    return write_csv(folder / CSV, rows)
