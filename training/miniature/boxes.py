"""Photographs with boxes as COCO has them, and CT slices with lesions as DeepLesion has them."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# ---- photographs ---------------------------------------------------------------------------------------------------

CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 2, "name": "cat"}]  # neither sorted nor without gaps, as COCO's 90 ids
LEVELS = {2: 40, 7: 230}  # how bright an object of each category is
SETTINGS = {"coco_set": {"task.init_args.network.options.num_classes": len(CATEGORIES)}}


def scene(seed: int, size: tuple[int, int], objects: list[tuple[int, list[float]]]) -> np.ndarray:
    """Return a noisy grey-green picture (H, W, 3) with filled boxes (x, y, width, height) of a category's level."""
    random = np.random.default_rng(seed)
    picture = np.array([110.0, 130.0, 100.0]) + random.normal(0, 6, (*size, 3))
    for category, (x, y, w, h) in objects:
        picture[round(y) : round(y + h), round(x) : round(x + w)] = LEVELS[category]
    return picture.clip(0, 255).astype(np.uint8)


def coco_set(folder: Path, *, images: int = 8, seed: int = 0) -> Path:
    """Make `images` pictures for training, one without a box, one with a crowd and a sliver; three for evaluation.

    With another seed than 0 the boxes lie elsewhere and no picture is written.
    """
    random = np.random.default_rng(seed)
    for split, count in (("train", images), ("val", 3)):
        rows: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": []}
        (folder / f"{split}2017").mkdir(parents=True)
        for number in range(count):
            h, w = (48, 64) if number % 2 else (64, 40)
            found = []
            for half, category in enumerate((2, 7)):
                side = random.uniform(14, 22, 2)
                x, y = random.uniform(1, w - side[0] - 1), half * h / 2 + random.uniform(0, h / 2 - side[1] + 6)
                found.append((category, [round(float(v), 2) for v in (x, min(y, h - side[1] - 1), *side)]))
            found = found[number % 2 :] if number % 3 else found
            found = [] if (split, number) == ("train", 3) else found
            image: dict[str, Any] = {"id": 100 + 7 * number, "file_name": f"{number:012d}.jpg", "height": h, "width": w}
            rows["images"].append(image)
            if not seed:
                Image.fromarray(scene(number, (h, w), found)).save(
                    folder / f"{split}2017" / image["file_name"], quality=95
                )
            for category, box in found:
                rows["annotations"].append(annotation(rows, image["id"], category, box))
            if (split, number) == ("train", 4):
                rows["annotations"].append({**annotation(rows, image["id"], 2, [0, 0, 30, 30]), "iscrowd": 1})
                rows["annotations"].append(annotation(rows, image["id"], 7, [5, 5, 0.5, 20]))
        table = {**rows, "categories": CATEGORIES}
        (folder / f"instances_{split}2017.json").write_text(json.dumps(table))
    return folder


def annotation(rows: dict[str, list[Any]], image: int, category: int, box: list[float]) -> dict[str, Any]:
    """Return the next row of a table of boxes (x, y, width, height)."""
    number = len(rows["annotations"]) + 1
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "area": box[2] * box[3],
        "iscrowd": 0,
    }


# ---- slices --------------------------------------------------------------------------------------------------------

LESIONS = {  # split -> series: (key slice, stored slices, interval, size, boxes x0 y0 x1 y1, noisy)
    "train": {
        "000001_01_01": (20, range(14, 27), 2.0, (64, 64), [[10.5, 12.25, 30.0, 33.5]], [0]),
        "000002_01_01": (5, range(1, 12), 5.0, (64, 64), [[30.0, 28.0, 52.0, 55.0], [4.0, 4.0, 20.0, 22.0]], [0, 1]),
        "000003_02_01": (110, range(100, 121), 1.0, (48, 64), [[20.0, 10.0, 41.0, 36.0]], [0]),
        "000004_01_02": (8, range(8, 10), 2.5, (64, 64), [], []),
        "000005_01_01": (33, range(25, 42), 1.25, (64, 64), [[33.0, 8.0, 55.0, 30.0]], [0]),
    },
    "val": {"000006_01_01": (40, range(36, 45), 5.0, (64, 64), [[12.0, 30.0, 34.0, 52.0]], [0])},
    "test": {
        "000007_01_01": (40, range(36, 45), 5.0, (80, 80), [[12.0, 30.0, 34.0, 52.0]], [0]),
        "000008_01_01": (9, range(3, 20), 3.0, (64, 64), [], []),
    },
}


def write_slice(file: Path, hu: np.ndarray) -> None:
    """Write a slice (H, W) in HU as NIH stores it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((hu + 32768).astype(np.uint16)).save(file)


def series(
    folder: Path, numbers: Sequence[int], size: tuple[int, int] = (64, 64), *, seed: int = 0
) -> dict[int, np.ndarray]:
    """Write slices of noise under their numbers; return what is in them, in HU."""
    random = np.random.default_rng(seed)
    made = {number: random.integers(-1000, 1200, size) for number in numbers}
    for number, hu in made.items():
        write_slice(folder / f"{number:03d}.png", hu)
    return made


def lesion_set(folder: Path) -> Path:
    """Make slices that are bright where a lesion is, and both tables of them: JSON and NIH's CSV."""
    info = []
    for number, (split, found) in enumerate(LESIONS.items(), start=1):
        rows: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": []}
        for name, (key, stored, interval, size, boxes, noisy) in found.items():
            random = np.random.default_rng(len(rows["images"]))
            for place in stored:
                hu = 30 + random.normal(0, 20, size) + 3 * (place - key)
                for x0, y0, x1, y1 in boxes:
                    hu[round(y0) : round(y1), round(x0) : round(x1)] = 600 + 3 * (place - key)
                write_slice(folder / "Images_png" / name / f"{place:03d}.png", hu)
            image: dict[str, Any] = {"id": 10 * number + len(rows["images"]), "file_name": f"{name}/{key:03d}.png"}
            image |= {"height": size[0], "width": size[1], "slice_no": key, "slice_intv": interval, "spacing": 0.8}
            rows["images"].append(image)
            for (x0, y0, x1, y1), doubt in zip(boxes, noisy, strict=True):
                box = [x0, y0, x1 - x0, y1 - y0]
                own = {"noisy": doubt, "segmentation": [[]], "area": 4943.9}
                rows["annotations"].append({**annotation(rows, image["id"], 1, box), **own})
                corners = ", ".join(f"{v + 1:g}" for v in (x0, y0, x1, y1))  # NIH counts pixels from 1
                sizes = {"Spacing_mm_px_": f"0.8, 0.8, {interval:g}", "Image_size": f"{size[1]}, {size[0]}"}
                row = {"File_name": f"{name}_{key:03d}.png", "Bounding_boxes": corners, "Possibly_noisy": doubt}
                info.append({**row, **sizes, "Train_Val_Test": number, "Patient_age": 60})
        table = {**rows, "categories": [{"id": 1, "name": "Lesion"}]}
        (folder / f"deeplesion_{split}.json").write_text(json.dumps(table))
    with (folder / "DL_info.csv").open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(info[0]))
        writer.writeheader()
        writer.writerows(info)
    return folder
