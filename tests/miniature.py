"""Miniature data sets and recipes in the real formats, for the tests of training: seconds on one core."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

TRAIN, CLASSES = 22, 3

RECIPE = """\
# svd-hub train miniature
name: miniature
summary: two epochs of a narrow network
run: {epochs: 2, seed: 3, checkpoint_steps: 2, threads: 1}
task:
  class_path: svd_hub.training.tasks.Classification
  init_args:
    network:
      architecture: resnet3d
      options: {depth: 10, width: 2, num_classes: 3, stem_pool: false}
    optimiser: {name: sgd, lr: 0.05, nesterov: true, warmup: 0.2}
    label_smoothing: 0.1
data:
  class_path: svd_hub.training.data.images.ImageParquet
  init_args:
    phases: [{epochs: 1, size: 16}, {epochs: 1, size: 24}]
    batch_size: 4
    scale: [0.3, 1.0]
    eval_crop: 1.0
    workers: 0
"""


def picture(seed: int, *, size: tuple[int, int] = (24, 24), grey: bool = False, label: int = 0) -> np.ndarray:
    """A smooth random picture (H, W, 3) or (H, W) whose brightness tells its label."""
    random = np.random.default_rng(seed)
    coarse = random.uniform(0, 150, (4, 4) if grey else (4, 4, 3)) + 40 * label
    image = Image.fromarray(coarse.clip(0, 255).astype(np.uint8))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BICUBIC))


def encoded(pixels: np.ndarray, form: str = "JPEG") -> bytes:
    """The bytes of a picture file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, quality=95)
    return buffer.getvalue()


def shard(path: Path, rows: list[tuple[bytes, int]]) -> None:
    """One Parquet shard in the Hugging Face form."""
    images = pa.array([{"bytes": data, "path": f"{i}.jpg"} for i, (data, _) in enumerate(rows)])
    pq.write_table(pa.table({"image": images, "label": pa.array([label for _, label in rows], pa.int64())}), path)


def image_set(folder: Path, *, seed: int = 0) -> Path:
    """22 training pictures in two shards, one of them grey, and 7 for validation."""
    folder.mkdir(parents=True)
    rows = [(encoded(picture(100 * seed + i, grey=i == 5, label=i % CLASSES)), i % CLASSES) for i in range(TRAIN + 7)]
    shard(folder / "train-00000-of-00002.parquet", rows[:12])
    shard(folder / "train-00001-of-00002.parquet", rows[12:TRAIN])
    shard(folder / "val-00000-of-00001.parquet", rows[TRAIN:])
    names = [{"id": i, "words": f"thing {i}, other name"} for i in range(CLASSES)]
    (folder / "classes.json").write_text(json.dumps(names))
    return folder


def recipe(path: Path, **changes: str) -> Path:
    """The miniature recipe; each change replaces a text."""
    text = RECIPE
    for old, new in changes.items():
        if old not in text:
            raise ValueError(f"{old!r} is not in the recipe")
        text = text.replace(old, new)
    path.write_text(text)
    return path


def nodules(folder: Path, rows: list[dict[str, Any]], volumes: dict[str, np.ndarray], zooms: Any = (1, 1, 1)) -> Path:
    """A nodule set: volumes are (x, y, z) as NIfTI holds them, `zooms` theirs in mm."""
    import nibabel as nib

    (folder / "images").mkdir(parents=True)
    with (folder / "nodules.csv").open("w", newline="") as handle:
        table = csv.DictWriter(handle, ["name", "patient_id", "Malignancy_value", "fold", "label"])
        table.writeheader()
        table.writerows(rows)
    for name, volume in volumes.items():
        nib.save(nib.Nifti1Image(volume, np.diag([*zooms, 1.0])), folder / "images" / f"{name}.nii.gz")
    return folder
