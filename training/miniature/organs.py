"""CT volumes with label maps of organs, on grids that run different ways."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np

SIDES = (20, 24, 28)  # (z, y, x) of the patients, at 3 mm
TABLE = {
    "1": {"name": "spleen", "voxels": 0},
    "2": {"name": "kidney_right", "voxels": 0},
    "3": {"name": "kidney_left", "voxels": 0},
    "5": {"name": "liver", "voxels": 0},
    "9": {"name": "aorta", "voxels": 0},
}
LIVER_ALONE = {"image": "scan.nii.gz", "labels": "other.nii.gz", "values": {"liver": [7]}}
SETTINGS = {
    "organ_set": {
        "data.init_args.train_cases": {"first": {}},
        "data.init_args.val_cases": {"second": {}, "third": LIVER_ALONE},
    }
}


def anatomy(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return HU and labels of a patient, (z, y, x) towards superior, posterior, left: the liver is on the right."""
    z, y, x = np.meshgrid(*(np.arange(n) for n in SIDES), indexing="ij")
    noise = np.random.default_rng(seed).normal(0, 15, SIDES)
    hu, labels = 40 + noise, np.zeros(SIDES, np.uint8)
    for value, level, centre, radius in (
        (5, 160, (11, 12, 7), 6),
        (1, 240, (13, 13, 22), 4),
        (2, -60, (4, 18, 8), 3),
        (3, -60, (4, 18, 20), 3),
    ):
        ball = sum((a - c) ** 2 for a, c in zip((z, y, x), centre, strict=True)) <= radius**2
        hu[ball], labels[ball] = level + noise[ball], value
    return hu.astype(np.int16), labels


def nifti(path: Path, array: np.ndarray, *, flips: str = "", spacing: float = 3.0) -> None:
    """Write (z, y, x) towards S, P, L; `flips` are axes that run backwards in the file, at the same places."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data, steps = array.transpose(2, 1, 0), np.array([-1.0, -1.0, 1.0]) * spacing  # NIfTI's world runs to R, A, S
    origin = np.array([50.0, -20.0, 30.0])
    for axis in ("xyz".index(flip) for flip in flips):
        data = np.flip(data, axis)
        origin[axis] += steps[axis] * (data.shape[axis] - 1)
        steps[axis] *= -1
    matrix = np.diag([*steps, 1.0])
    matrix[:3, 3] = origin
    nib.save(nib.Nifti1Image(np.ascontiguousarray(data), matrix), path)


def organ_set(folder: Path) -> Path:
    """Make three patients: labels on the image's grid, labels whose file runs the other way, and a liver alone."""
    for name, seed in (("first", 0), ("second", 1)):
        hu, labels = anatomy(seed)
        nifti(folder / name / "ct.nii.gz", hu)
        nifti(folder / name / "seg.nii.gz", labels, flips="" if name == "first" else "yx")
    hu, labels = anatomy(2)
    nifti(folder / "third" / "scan.nii.gz", hu[9:13], flips="z")
    nifti(folder / "third" / "other.nii.gz", 7 * (labels[9:13] == 5).astype(np.uint8))
    (folder / "labels.json").write_text(json.dumps({"first": TABLE, "second": TABLE}))
    return folder
