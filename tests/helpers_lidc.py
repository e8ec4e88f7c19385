"""LIDC in miniature: the ACS npz set with tables of the official form, and readings as the public XML has them."""

from __future__ import annotations

import csv
import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

INFO = "info/lidc_nodule_info_new_with_subset.csv"
Square = tuple[int, int, int]  # first column, first row, side of a contour


def official_tables(folder: Path, *, seed: int = 0) -> Path:
    """Tables with the properties of the official ones, which are not at hand.

    2,635 nodules; train 2,142 names, all different; test 526, of which 33 are there twice or three times (491
    different); 986 and 246 benign, 337 and 64 malignant, the others undecided; lidc101_1 has mode 0 and is in neither;
    all patients of test are on both sides.
    """
    draw = random.Random(seed)
    modes = {
        "train": [draw.choice("12") for _ in range(986)] + [draw.choice("45") for _ in range(337)] + ["3"] * 819,
        "test": [draw.choice("12") for _ in range(246)] + [draw.choice("45") for _ in range(64)] + ["3"] * 181,
    }
    rows, lists = [row("lidc101_1", "LIDC-IDRI-0101", "0")], {}
    for split, found in modes.items():
        draw.shuffle(found)
        names = [f"lidc{k // 3 + 200}_{k % 3 + (1 if split == 'train' else 5)}" for k in range(len(found))]
        rows += [row(n, f"LIDC-IDRI-{int(n[4:].split('_')[0]):04}", m) for n, m in zip(names, found, strict=True)]
        lists[split] = [f"{name}.npz" for name in names]
    rows.append(row("lidc1_9", "LIDC-IDRI-0001", "5"))  # in neither list
    lists["test"] += lists["test"][:33] + lists["test"][:2]
    draw.shuffle(lists["test"])
    write_tables(folder, rows, lists["train"], lists["test"])
    return folder


def row(name: str, patient: str, mode: str) -> dict[str, str]:
    return {"index": name, "uid": patient, "scan": "3000566", "malignancy": mode * 4, "malignancy_mode": mode}


def write_tables(folder: Path, rows: Sequence[dict[str, str]], train: Sequence[str], test: Sequence[str]) -> None:
    (folder / "info").mkdir(parents=True)
    with (folder / INFO).open("w", newline="") as handle:
        table = csv.DictWriter(handle, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    with (folder / "train_test_split.csv").open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["", "train", "test"])
        for k, names in enumerate(itertools.zip_longest(train, test, fillvalue="")):
            writer.writerow([k, *names])


def acs_set(folder: Path, *, nodules: int = 12) -> Path:
    """An npz set: bright blocks are malignant. The last four are test; the last one's patient is in training, too."""
    (folder / "nodule").mkdir(parents=True)
    rows, names = [], []
    for k in range(nodules):
        voxel, mask = cube(k, value=(80, 250)[k % 2])
        names.append(f"lidc{k}_1")
        answers = {f"answer{n}": mask if n == 1 else np.zeros_like(mask) for n in range(1, 5)}
        np.savez_compressed(folder / "nodule" / f"{names[-1]}.npz", voxel=voxel, **answers)
        rows.append(row(names[-1], f"LIDC-IDRI-{k % (nodules - 1):04}", "15"[k % 2]))
    files = [f"{name}.npz" for name in names]
    write_tables(folder, rows, files[:-4], [*files[-4:], files[-2]])
    return folder


def cube(seed: int, *, value: int) -> tuple[np.ndarray, np.ndarray]:
    """(80, 80, 80) uint8 with a block of `value` about the middle, and its mask."""
    random = np.random.default_rng(seed)
    mask = np.zeros((80, 80, 80), np.uint8)
    z, y, x = random.integers(28, 40, 3)
    mask[z : z + 14, y : y + 11, x : x + 12] = 1
    return np.where(mask, value, random.integers(20, 40, mask.shape)).astype(np.uint8), mask


# ---- XML -----------------------------------------------------------------------------------------------------------


def contour(image: str, z: float, points: Sequence[tuple[int, int]], *, inclusion: bool = True) -> str:
    edges = "".join(f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>" for x, y in points)
    return (
        f"<roi><imageZposition>{z}</imageZposition><imageSOP_UID>{image}</imageSOP_UID>"
        f"<inclusion>{'TRUE' if inclusion else 'FALSE'}</inclusion>{edges}</roi>"
    )


def square(first: int, row: int, side: int) -> list[tuple[int, int]]:
    """The line around (row, first) ... of `side` pixels, pixel by pixel, as readers' lines are."""
    low_x, low_y, high_x, high_y = first - 1, row - 1, first + side, row + side
    top = [(x, low_y) for x in range(low_x, high_x)]
    right = [(high_x, y) for y in range(low_y, high_y)]
    bottom = [(x, high_y) for x in range(high_x, low_x, -1)]
    left = [(low_x, y) for y in range(high_y, low_y, -1)]
    return top + right + bottom + left


def nodule(name: str, rois: Sequence[str], malignancy: int | None) -> str:
    ratings = ""
    if malignancy is not None:
        ratings = f"<characteristics><subtlety>3</subtlety><malignancy>{malignancy}</malignancy></characteristics>"
    return f"<unblindedReadNodule><noduleID>{name}</noduleID>{ratings}{''.join(rois)}</unblindedReadNodule>"


def message(sessions: Sequence[Sequence[str]], *, series: str = "1.2.3.5", before: str = "") -> str:
    """The public form: a header, and what each reader drew."""
    readings = "".join(
        f"<readingSession><annotationVersion>3.12</annotationVersion>{''.join(found)}</readingSession>"
        for found in sessions
    )
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>{before}<LidcReadMessage uid="1.3" xmlns="http://www.nih.gov">'
        f"<ResponseHeader><Version>1.8.1</Version><SeriesInstanceUid>{series}</SeriesInstanceUid></ResponseHeader>"
        f"{readings}</LidcReadMessage>"
    )


def non_nodule(image: str, z: float) -> str:
    return (
        f"<nonNodule><nonNoduleID>9</nonNoduleID><imageZposition>{z}</imageZposition>"
        f"<imageSOP_UID>{image}</imageSOP_UID><locus><xCoord>3</xCoord><yCoord>4</yCoord></locus></nonNodule>"
    )


def pairs(folder: Path, *, count: int = 8) -> Path:
    """NIfTI pairs with masks: `count` nodules, a fold each in turn."""
    import miniature
    import nibabel as nib

    rows: list[dict[str, Any]] = []
    volumes, masks = {}, {}
    for k in range(count):
        name = f"n{k}"
        random = np.random.default_rng(k)
        masks[name] = np.zeros((16, 17, 9), np.uint8)
        x, y, z = random.integers(3, 6, 3)
        masks[name][x : x + 6, y : y + 7, z : z + 3] = 1
        volumes[name] = np.where(masks[name], 40, -800).astype(np.int16)
        rows.append({"name": name, "patient_id": f"p{k}", "Malignancy_value": 3, "fold": k % 4, "label": -1})
    miniature.nodules(folder, rows, volumes, zooms=(1, 1, 2))
    (folder / "masks").mkdir()
    for name, mask in masks.items():
        nib.save(nib.Nifti1Image(mask, np.diag([1, 1, 2, 1.0])), folder / "masks" / f"{name}.nii.gz")
    return folder
