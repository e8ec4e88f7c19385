"""Pairs of NIfTI volumes and label maps: a task of the Decathlon, and LiTS."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK

SIDES = (18, 20, 22)


def write_volume(
    path: Path, array: np.ndarray, *, spacing: Sequence[float] = (1.0, 1.0, 1.0), axes: str = "LPS"
) -> Path:
    """Write (z, y, x) towards superior, posterior, left; `axes`: the orientation the file's x, y, z get."""
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing([float(s) for s in reversed(spacing)])
    image.SetOrigin((3.0, -7.0, 11.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(SimpleITK.DICOMOrient(image, axes), str(path))
    return path


def anatomy(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return values and labels (z, y, x): 1 is a block, 2 another behind it."""
    random = np.random.default_rng(seed)
    labels = np.zeros(SIDES, np.uint8)
    z, y, x = (int(random.integers(2, n - 11)) for n in SIDES)
    labels[z : z + 8, y : y + 5, x : x + 8] = 1
    labels[z : z + 8, y + 5 : y + 9, x : x + 8] = 2
    return np.array([-100, 60, 140])[labels] + random.normal(0, 10, SIDES), labels


def decathlon(folder: Path, *, count: int = 6) -> Path:
    """Make a task of MR volumes; the values are whole and not below 0."""
    training = []
    for k in range(count):
        values, labels = anatomy(k)
        write_volume(folder / "imagesTr" / f"case_{k:03}.nii.gz", (values + 200).round().astype(np.int16))
        write_volume(folder / "labelsTr" / f"case_{k:03}.nii.gz", labels)
        training.append({"image": f"./imagesTr/case_{k:03}.nii.gz", "label": f"./labelsTr/case_{k:03}.nii.gz"})
    table = {
        "name": "Miniature",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "front", "2": "back"},
        "numTraining": count,
        "training": training,
    }
    (folder / "dataset.json").write_text(json.dumps(table))
    return folder


def lits(folder: Path, ids: tuple[int, ...] = (0, 1, 2, 3, 4, 5)) -> Path:
    """Make volumes in two folders, as the download has them; 0 is one of validation and 2 of test."""
    for k in ids:
        values, labels = anatomy(k)
        place = folder / f"Training Batch {1 + k % 2}"
        write_volume(place / f"volume-{k}.nii", values.round().astype(np.int16))
        write_volume(place / f"segmentation-{k}.nii", labels)
    return folder
