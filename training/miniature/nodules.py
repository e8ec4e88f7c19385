"""LIDC in its two forms of cubes: NIfTI pairs with `nodules.csv`, and the ACS authors' npz set with its tables."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from ..data.lidc_acs import INFO, SIDE, SPLIT

FOLDS = 4

# ---- NIfTI pairs ---------------------------------------------------------------------------------------------------


def write_nodules(
    folder: Path, rows: list[dict[str, Any]], volumes: dict[str, np.ndarray], zooms: Any = (1, 1, 1)
) -> Path:
    """Write a set: volumes are (x, y, z) as NIfTI holds them, `zooms` theirs in mm."""
    (folder / "images").mkdir(parents=True)
    with (folder / "nodules.csv").open("w", newline="") as handle:
        table = csv.DictWriter(handle, ["name", "patient_id", "Malignancy_value", "fold", "label"])
        table.writeheader()
        table.writerows(rows)
    for name, volume in volumes.items():
        nib.save(nib.Nifti1Image(volume, np.diag([*zooms, 1.0])), folder / "images" / f"{name}.nii.gz")
    return folder


def pair_set(folder: Path, *, count: int = 16) -> Path:
    """Make `count` nodules with masks, in folds of two in turn; the malignant one of two is denser."""
    rows: list[dict[str, Any]] = []
    volumes, masks = {}, {}
    for k in range(count):
        name, label = f"n{k}", k % 2
        random = np.random.default_rng(k)
        masks[name] = np.zeros((16, 17, 9), np.uint8)
        x, y, z = random.integers(3, 6, 3)
        masks[name][x : x + 6, y : y + 7, z : z + 3] = 1
        volumes[name] = np.where(masks[name], (40, 400)[label], -800).astype(np.int16)
        rating = (1, 5)[label]
        fold = k // 2 % FOLDS
        rows.append({"name": name, "patient_id": f"p{k}", "Malignancy_value": rating, "fold": fold, "label": label})
    write_nodules(folder, rows, volumes, zooms=(1, 1, 2))
    (folder / "masks").mkdir()
    for name, mask in masks.items():
        nib.save(nib.Nifti1Image(mask, np.diag([1, 1, 2, 1.0])), folder / "masks" / f"{name}.nii.gz")
    return folder


# ---- the npz set ---------------------------------------------------------------------------------------------------


def reading(name: str, patient: str, mode: str) -> dict[str, str]:
    """Return a row of the table of readings."""
    return {"index": name, "uid": patient, "scan": "3000566", "malignancy": mode * 4, "malignancy_mode": mode}


def write_tables(folder: Path, rows: Sequence[dict[str, str]], train: Sequence[str], test: Sequence[str]) -> None:
    """Write the table of readings, and the lists of file names in columns of unequal length."""
    (folder / INFO).parent.mkdir(parents=True)
    with (folder / INFO).open("w", newline="") as handle:
        table = csv.DictWriter(handle, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    with (folder / SPLIT).open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["", "train", "test"])
        for k, names in enumerate(itertools.zip_longest(train, test, fillvalue="")):
            writer.writerow([k, *names])


def acs_set(folder: Path, *, count: int = 12) -> Path:
    """Make `count` nodules: bright blocks are malignant.

    The last four are test, one of them twice; the last one's patient is in training, too.
    """
    (folder / "nodule").mkdir(parents=True)
    rows, names = [], []
    for k in range(count):
        voxel, mask = cube(k, value=(80, 250)[k % 2])
        names.append(f"lidc{k}_1")
        answers: dict[str, Any] = {f"answer{n}": mask if n == 1 else np.zeros_like(mask) for n in range(1, 5)}
        np.savez_compressed(folder / "nodule" / f"{names[-1]}.npz", voxel=voxel, **answers)
        rows.append(reading(names[-1], f"LIDC-IDRI-{k % (count - 1):04}", "15"[k % 2]))
    files = [f"{name}.npz" for name in names]
    write_tables(folder, rows, files[:-4], [*files[-4:], files[-2]])
    return folder


def cube(seed: int, *, value: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (80, 80, 80) uint8 with a block of `value` about the middle, and its mask."""
    random = np.random.default_rng(seed)
    mask = np.zeros((SIDE,) * 3, np.uint8)
    z, y, x = random.integers(28, 40, 3)
    mask[z : z + 14, y : y + 11, x : x + 12] = 1
    return np.where(mask, value, random.integers(20, 40, mask.shape)).astype(np.uint8), mask
