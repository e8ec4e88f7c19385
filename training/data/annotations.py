"""Tables of true boxes: COCO's instances JSON, and NIH's DL_info.csv. What they say, checked, as `Picture`s.

A picture's boxes come by their corners, in whatever order the table has them.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import SvdHubError
from .boxes import Picture

Table = tuple[list[Picture], tuple[str, ...]]  # pictures in the file's order, names of the classes
# NIH's columns that are read, and its numbers of the splits. Boxes count pixels from 1 there: the first row's 226.169,
# 90.0204 is 225.169, 89.0204 in urmagicsmine/MVP-Net@61f3e28 data/DeepLesion/annotation/deeplesion_test.json.
NIH_COLUMNS = ("File_name", "Bounding_boxes", "Possibly_noisy", "Spacing_mm_px_", "Image_size", "Train_Val_Test")
NIH_SPLITS = {"train": "1", "val": "2", "test": "3"}


def read_coco(file: Path, *, one_class: str = "", noisy: bool = True, own_area: bool = True) -> Table:
    """Return what an instances JSON of COCO's form says.

    Args:
        file: keys images, annotations, categories. DeepLesion's has `slice_intv` (mm) with each image and `noisy`
            with each annotation besides.
        one_class: name of the one class that all categories are; "" = they stay apart, in the order of their ids.
        noisy: False leaves the boxes out that are marked noisy.
        own_area: False takes the box's area for the object's (DeepLesion's `area` is another number).

    Raises:
        SvdHubError: no such file, another form, or an annotation that points nowhere.
    """
    table = _json(file)
    ids = sorted(category["id"] for category in table["categories"])
    names = {category["id"]: str(category["name"]) for category in table["categories"]}
    labels = dict.fromkeys(ids, 0) if one_class else {number: label for label, number in enumerate(ids)}
    rows: dict[Any, list[Mapping[str, Any]]] = {image["id"]: [] for image in table["images"]}
    for annotation in table["annotations"]:
        if annotation["image_id"] not in rows or annotation["category_id"] not in labels:
            raise SvdHubError(
                f"{file}: annotation {annotation['id']} is of image {annotation['image_id']} and category "
                f"{annotation['category_id']}, which the file does not have. Next: take the file as it was published"
            )
        if noisy or not annotation.get("noisy"):
            rows[annotation["image_id"]].append(annotation)
    pictures = [_picture(image, rows[image["id"]], labels, own_area) for image in table["images"]]
    return pictures, ((one_class,) if one_class else tuple(names[number] for number in ids))


def _json(file: Path) -> Any:
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
        missing = [key for key in ("images", "annotations", "categories") if not isinstance(table.get(key), list)]
    except (ValueError, AttributeError, OSError) as error:
        raise SvdHubError(f"{file} cannot be read as JSON of COCO's form: {error}. Next: fetch it again") from error
    if missing:
        raise SvdHubError(f"{file} has no lists {missing}; allowed: instances in COCO's form. Next: another file")
    return table


def _picture(
    image: Mapping[str, Any], rows: list[Mapping[str, Any]], labels: Mapping[Any, int], own_area: bool
) -> Picture:
    rows = sorted(rows, key=lambda row: (row["bbox"], row["category_id"]))
    corners = np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4)
    box_area = corners[:, 2] * corners[:, 3]
    corners[:, 2:] += corners[:, :2]
    area = np.array([row.get("area", own) for row, own in zip(rows, box_area, strict=True)]) if own_area else box_area
    return Picture(
        file=image["file_name"],
        size=(int(image["height"]), int(image["width"])),
        boxes=corners.astype(np.float32),
        labels=np.array([labels[row["category_id"]] for row in rows], np.int64),
        crowd=np.array([bool(row.get("iscrowd") or row.get("ignore")) for row in rows], bool),
        area=area.astype(np.float32),
        interval=float(image.get("slice_intv", 0.0)),
    )


def read_nih(file: Path, split: str, *, one_class: str, noisy: bool = True) -> Table:
    """Return what NIH's DL_info.csv says of a split: one picture for each key slice, with all boxes on it.

    Args:
        file: a row for each lesion.
        split: "train", "val" or "test".
        one_class: name of the class.
        noisy: False leaves the boxes out that are marked possibly noisy; their slices stay.

    Raises:
        SvdHubError: no such file or columns, or a value that is none.
    """
    if split not in NIH_SPLITS:
        raise SvdHubError(f"{file} has no split {split!r}; allowed: {', '.join(NIH_SPLITS)}")
    slices: dict[str, tuple[tuple[int, int], float, list[list[float]]]] = {}
    for number, row in _rows(file):
        if row["Train_Val_Test"].strip() != NIH_SPLITS[split]:
            continue
        try:
            box = [float(part) - 1 for part in row["Bounding_boxes"].split(",")]
            width, height = (int(float(part)) for part in row["Image_size"].split(","))
            interval = float(row["Spacing_mm_px_"].split(",")[2])
            drop = not noisy and float(row["Possibly_noisy"]) > 0
            folder, _, name = row["File_name"].strip().rpartition("_")
            x0, y0, x1, y1 = box
        except (ValueError, IndexError) as error:
            raise SvdHubError(f"{file}, line {number}: {error}. Next: take the file as NIH published it") from error
        _, _, boxes = slices.setdefault(f"{folder}/{name}", ((height, width), interval, []))
        boxes += [] if drop else [[x0, y0, x1, y1]]
    return [_key_slice(name, *found) for name, found in slices.items()], (one_class,)


def _rows(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        handle = file.open(newline="", encoding="utf-8")
    except OSError as error:
        raise SvdHubError(f"{file} cannot be read: {error.strerror}. Next: --data FOLDER with DL_info.csv") from error
    with handle:
        table = csv.DictReader(handle)
        found = table.fieldnames or []
        if missing := [column for column in NIH_COLUMNS if column not in found]:
            raise SvdHubError(f"{file} has no columns {missing}; found: {list(found)}")
        for row in table:
            yield table.line_num, row


def _key_slice(name: str, size: tuple[int, int], interval: float, boxes: list[list[float]]) -> Picture:
    corners = np.array(sorted(boxes), np.float64).reshape(-1, 4)
    sides = corners[:, 2:] - corners[:, :2]
    return Picture(
        file=name,
        size=size,
        boxes=corners.astype(np.float32),
        labels=np.zeros(len(corners), np.int64),
        crowd=np.zeros(len(corners), bool),
        area=(sides[:, 0] * sides[:, 1]).astype(np.float32),
        interval=interval,
    )
