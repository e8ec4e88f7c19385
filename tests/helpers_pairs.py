"""The Decathlon and LiTS in miniature: pairs of NIfTI files in their own layouts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from helpers_own import write_volume

SIDES = (18, 20, 22)


def anatomy(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Values and labels (z, y, x): 1 is a block, 2 another behind it."""
    random = np.random.default_rng(seed)
    labels = np.zeros(SIDES, np.uint8)
    z, y, x = (int(random.integers(2, n - 11)) for n in SIDES)
    labels[z : z + 8, y : y + 5, x : x + 8] = 1
    labels[z : z + 8, y + 5 : y + 9, x : x + 8] = 2
    return np.array([-100, 60, 140])[labels] + random.normal(0, 10, SIDES), labels


def decathlon(folder: Path, *, count: int = 6) -> Path:
    """A task of MR volumes; the values are whole and not below 0."""
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
    """Volumes in two folders, as the download has them; 0 is one of validation and 2 of test."""
    for k in ids:
        values, labels = anatomy(k)
        place = folder / f"Training Batch {1 + k % 2}"
        write_volume(place / f"volume-{k}.nii", values.round().astype(np.int16))
        write_volume(place / f"segmentation-{k}.nii", labels)
    return folder
