"""Tables of the ACS npz set with the properties of the official ones, and readings as the public XML has them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from svd_hub.training.miniature.nodules import reading, write_tables

Square = tuple[int, int, int]  # first column, first row, side of a contour


def official_tables(folder: Path, *, seed: int = 0) -> Path:
    """Tables with the properties of the official ones, which have no licence to be here.

    The official ones themselves (urmagicsmine/CSPR@390a413: data/lidc/train_test_split.csv and
    medseg/data/lidc/info/) give the same four counts; 268 of their 340 test patients are in training, too.

    2,635 nodules; train 2,142 names, all different; test 526, of which 33 are there twice or three times (491
    different); 986 and 246 benign, 337 and 64 malignant, the others undecided; lidc101_1 has mode 0 and is in neither;
    all patients of test are on both sides.
    """
    draw = random.Random(seed)
    modes = {
        "train": [draw.choice("12") for _ in range(986)] + [draw.choice("45") for _ in range(337)] + ["3"] * 819,
        "test": [draw.choice("12") for _ in range(246)] + [draw.choice("45") for _ in range(64)] + ["3"] * 181,
    }
    rows, lists = [reading("lidc101_1", "LIDC-IDRI-0101", "0")], {}
    for split, found in modes.items():
        draw.shuffle(found)
        names = [f"lidc{k // 3 + 200}_{k % 3 + (1 if split == 'train' else 5)}" for k in range(len(found))]
        rows += [reading(n, f"LIDC-IDRI-{int(n[4:].split('_')[0]):04}", m) for n, m in zip(names, found, strict=True)]
        lists[split] = [f"{name}.npz" for name in names]
    rows.append(reading("lidc1_9", "LIDC-IDRI-0001", "5"))  # in neither list
    lists["test"] += lists["test"][:33] + lists["test"][:2]
    draw.shuffle(lists["test"])
    write_tables(folder, rows, lists["train"], lists["test"])
    return folder


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
