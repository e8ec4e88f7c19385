"""Pictures of a few classes, as Parquet shards of the Hugging Face form and as folders of classes."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

TRAIN, VAL, CLASSES = 22, 7, 3
SETTINGS = {"image_set": {"task.init_args.network.options.num_classes": CLASSES}}


def picture(seed: int, *, size: tuple[int, int] = (24, 24), grey: bool = False, label: int = 0) -> np.ndarray:
    """Return a smooth random picture (H, W, 3) or (H, W) uint8 whose brightness tells its label.

    So do its stripes, which networks see whose norms take brightness away: none, along the rows, along the columns.
    """
    random = np.random.default_rng(seed)
    coarse = random.uniform(0, 150, (4, 4) if grey else (4, 4, 3)) + 40 * label
    smooth = Image.fromarray(coarse.clip(0, 255).astype(np.uint8)).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    pixels = np.asarray(smooth)
    if not label:
        return pixels
    along = np.arange(size[label - 1]) // 3 % 2 * 40
    stripes = along[:, None] if label == 1 else along[None, :]
    return np.clip(pixels + (stripes if grey else stripes[..., None]), 0, 255).astype(np.uint8)


def encoded(pixels: np.ndarray, form: str = "JPEG") -> bytes:
    """Return the bytes of a picture file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, quality=95)
    return buffer.getvalue()


def shard(path: Path, rows: list[tuple[bytes, int]]) -> None:
    """Write one Parquet shard of encoded pictures and labels."""
    images = pa.array([{"bytes": data, "path": f"{i}.jpg"} for i, (data, _) in enumerate(rows)])
    pq.write_table(pa.table({"image": images, "label": pa.array([label for _, label in rows], pa.int64())}), path)


def image_set(folder: Path, *, seed: int = 0) -> Path:
    """Make 22 training pictures in two shards, one of them grey, and 7 for validation; return the folder."""
    folder.mkdir(parents=True)
    rows = [(encoded(picture(100 * seed + i, grey=i == 5, label=i % CLASSES)), i % CLASSES) for i in range(TRAIN + VAL)]
    shard(folder / "train-00000-of-00002.parquet", rows[:12])
    shard(folder / "train-00001-of-00002.parquet", rows[12:TRAIN])
    shard(folder / "val-00000-of-00001.parquet", rows[TRAIN:])
    names = [{"id": i, "words": f"thing {i}, other name"} for i in range(CLASSES)]
    (folder / "classes.json").write_text(json.dumps(names))
    return folder


def folder_set(folder: Path, *, size: tuple[int, int] = (40, 56)) -> Path:
    """Make the same numbers of pictures as ImageNet's archives unpack: train/CLASS/*.JPEG and val/CLASS/*.JPEG."""
    for i in range(TRAIN + VAL):
        place = folder / ("train" if i < TRAIN else "val") / f"n{i % CLASSES:08}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i:08}.JPEG").write_bytes(encoded(picture(i, size=size, label=i % CLASSES)))
    return folder
