"""Every recipe learns a handful of real samples by heart, in its data's own format, with a narrow network.

Validation is on copies of what is trained on, so a recipe whose reading, augmentation, loss and evaluation fit each
other ends with all of them right. The detectors' mini tiers are the same law (`test_tiers.py`).
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.ndimage
import torch
from helpers_recipes import RECIPES
from helpers_training import log
from real_data import need

from svd_hub.training import engine
from svd_hub.training import recipe as recipes
from svd_hub.training.data.lidc_acs import SIDE
from svd_hub.training.data.pairs import drawn_split
from svd_hub.training.engine import FOLDER
from svd_hub.training.miniature import nodules, pictures
from svd_hub.training.miniature.own import write_csv

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
OPTIONS = "task.init_args.network.options"


# ---- handfuls --------------------------------------------------------------------------------------------------------


def photographs(folder: Path) -> Path:
    """Four photographs of each of three classes."""
    found: dict[int, list[bytes]] = {}
    for row in pq.read_table(need("tiny_imagenet") / "val-00000-of-00001.parquet").to_pylist():
        found.setdefault(row["label"], []).append(row["image"]["bytes"])
    rows = [(data, k) for k, label in enumerate(sorted(found)[:3]) for data in found[label][:4]]
    folder.mkdir()
    for split in ("train", "val"):
        pictures.shard(folder / f"{split}-00000-of-00001.parquet", rows)
    (folder / "classes.json").write_text(json.dumps([{"id": k, "words": f"thing {k}"} for k in range(3)]))
    return folder


def rated() -> list[tuple[str, int]]:
    """Names and labels of four benign and four malignant nodules of as many patients."""
    found: dict[str, tuple[str, int]] = {}
    for row in csv.DictReader((need("lidc_nodules") / "nodules.csv").read_text().splitlines()):
        label = int(row["label"])
        if label >= 0 and sum(other == label for _, other in found.values()) < 4:
            found.setdefault(row["patient_id"], (row["name"], label))
    return list(found.values())


def voxels(kind: str, name: str) -> np.ndarray:
    """A nodule's volume or mask at 1 mm, (x, y, z)."""
    image = nib.load(need("lidc_nodules") / kind / f"{name}.nii.gz")
    order = 1 if kind == "images" else 0
    found: np.ndarray = scipy.ndimage.zoom(np.asarray(image.dataobj), image.header.get_zooms(), order=order)
    return found


def nodule_pairs(folder: Path) -> Path:
    """Eight nodules in fold 0, and in fold 3 as those of other patients."""
    rows, volumes, masks = [], {}, {}
    for k, (name, label) in enumerate(rated()):
        for fold in (0, 3):
            own = f"n{k}_{fold}"
            rating = (1, 5)[label]
            about = {"patient_id": f"p{k}_{fold}", "Malignancy_value": rating, "fold": fold, "label": label}
            rows.append({"name": own, **about})
            volumes[own], masks[own] = voxels("images", name), voxels("masks", name)
    nodules.write_nodules(folder, rows, volumes)
    (folder / "masks").mkdir()
    for name, mask in masks.items():
        nib.save(nib.Nifti1Image(mask, np.eye(4)), folder / "masks" / f"{name}.nii.gz")
    return folder


def nodule_cubes(folder: Path) -> Path:
    """Eight nodules as the npz set has them, 80 mm of 8 bits, and as test those of other patients."""
    (folder / "nodule").mkdir(parents=True)
    rows = []
    names: dict[str, list[str]] = {"train": [], "test": []}
    for k, (name, label) in enumerate(rated()):
        hu, mask = (voxels(kind, name).transpose(2, 1, 0) for kind in ("images", "masks"))
        grey = np.clip((hu + 1024.0) / 1424 * 255, 0, 255).astype(np.uint8)
        for number, split in enumerate(names):
            own = f"lidc{2 * k + number}_1"
            answers = {f"answer{n}": cube(mask if n == 1 else 0 * mask) for n in range(1, 5)}
            np.savez_compressed(folder / "nodule" / f"{own}.npz", voxel=cube(grey), **answers)
            rows.append(nodules.reading(own, f"LIDC-IDRI-{2 * k + number:04}", "15"[label]))
            names[split].append(f"{own}.npz")
    nodules.write_tables(folder, rows, names["train"], names["test"])
    return folder


def cube(array: np.ndarray) -> np.ndarray:
    """The middle of an array, in a cube of the set's side; its edge goes on outside."""
    pads = [((SIDE - n) // 2, SIDE - n - (SIDE - n) // 2) if n < SIDE else (0, 0) for n in array.shape]
    padded = np.pad(array, pads, mode="edge")
    starts = [(n - SIDE) // 2 for n in padded.shape]
    return padded[tuple(slice(at, at + SIDE) for at in starts)]


def organs(folder: Path) -> Path:
    """An abdomen, twice."""
    real = need("ct_organ_seg")
    for name in ("first", "again"):
        shutil.copytree(real / "ts_abdomen_3mm", folder / name)
    table = json.loads((real / "labels.json").read_text())["ts_abdomen_3mm"]
    (folder / "labels.json").write_text(json.dumps({"first": table, "again": table}))
    return folder


def livers(folder: Path) -> Path:
    """The room about a liver as LiTS has its volumes, one to train on (1) and one of validation (0)."""
    scan, seg = (nib.load(need("ct_organ_seg") / "ts_abdomen_3mm" / f"{kind}.nii.gz") for kind in ("ct", "seg"))
    liver = (np.asarray(seg.dataobj) == 5).astype(np.uint8)
    (room,) = scipy.ndimage.find_objects(liver)
    folder.mkdir()
    for k in (0, 1):
        for name, array in (("volume", np.asarray(scan.dataobj).astype(np.int16)), ("segmentation", liver)):
            nib.save(nib.Nifti1Image(array[room], scan.affine), folder / f"{name}-{k}.nii")
    return folder


def hippocampi(folder: Path) -> Path:
    """Four volumes of MR; what the recipe's split holds back are copies of them."""
    real = need("msd_hippocampus")
    table = json.loads((real / "dataset.json").read_text())
    names = [f"case{k}" for k in range(6)]
    held = drawn_split(names, share=0.2, seed=0)["val"]
    train = iter(table["training"])
    files = {name: next(train) for name in names if name not in held}
    files |= dict(zip(held, files.values(), strict=False))
    for kind, place in (("image", "imagesTr"), ("label", "labelsTr")):
        (folder / place).mkdir(parents=True)
        for name, pair in files.items():
            shutil.copy(real / pair[kind], folder / place / f"{name}.nii.gz")
    own = [{"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"} for name in names]
    (folder / "dataset.json").write_text(json.dumps({**table, "training": own}))
    return folder


def own_nodules(folder: Path, *, column: str) -> Path:
    """Eight nodules in a table, to train on and, as other patients, to validate."""
    rows = []
    (folder / "scans").mkdir(parents=True)
    for k, (name, label) in enumerate(rated()):
        for split in ("train", "val"):
            file = f"scans/{k}_{split}"
            nib.save(nib.Nifti1Image(voxels("images", name), np.eye(4)), folder / f"{file}.nii.gz")
            nib.save(nib.Nifti1Image(voxels("masks", name), np.eye(4)), folder / f"{file}_seg.nii.gz")
            told = {"label": ("benign", "malignant")[label], "mask": f"{file}_seg.nii.gz"}[column]
            rows.append({"image": f"{file}.nii.gz", column: told, "patient": f"{split}{k}", "split": split})
    return write_csv(folder / "my.csv", rows)


ENCODER, WINDOW, EPOCHS = f"{OPTIONS}.encoder_options", "task.init_args.window", "run.epochs"
BATCH, PATCHES, PHASES, SIZE = (f"data.init_args.{key}" for key in ("batch_size", "patches", "phases", "size"))
HIPPOCAMPUS = [32, 48, 32]  # (D, H, W): most of a volume
# The data module of a recipe -> its handful, what differs from the smoke tier's settings, and what is right at the end.
HANDFULS: dict[str, tuple[Callable[[Path], Path], dict[str, Any], dict[str, float]]] = {
    "ImageParquet": (
        photographs,
        {EPOCHS: 160, PHASES: [{"epochs": 160, "size": 32}], BATCH: 12, f"{OPTIONS}.num_classes": 3},
        {"val/top1": 0.9},
    ),
    "LidcNodules": (nodule_pairs, {EPOCHS: 60, BATCH: 8}, {"val/auc": 0.93}),
    "AcsNodules": (nodule_cubes, {EPOCHS: 120, BATCH: 8, SIZE: 32}, {"val/auc": 0.93}),
    "LidcMasks": (nodule_pairs, {EPOCHS: 60}, {"val/dice": 0.75}),
    "AcsMasks": (nodule_cubes, {EPOCHS: 100, BATCH: 4, ENCODER: {"depth": 10, "width": 8}}, {"val/dice": 0.7}),
    "OrganVolumes": (  # as the recipe has it but for the patches: four organs are too much for a narrow network
        organs,
        {
            "data.init_args.train_cases": {"first": {}},
            "data.init_args.val_cases": {"again": {}},
            "task.init_args.network.init": "resnet3d18w16_tinyimagenet",
            "task.init_args.optimiser.lr": 0.006,
            ENCODER: {"depth": 18, "width": 16, "stem_stride": 2, "stem_pool": False},
            f"{OPTIONS}.head_channels": 16,
            **{EPOCHS: 5, PATCHES: 60, SIZE: [32, 64, 64], WINDOW: [32, 64, 64]},
        },
        {"val/dice_liver": 0.7},
    ),
    "lits_unet3d18": (
        livers,
        {EPOCHS: 5, PATCHES: 60, SIZE: [32] * 3, WINDOW: [32] * 3, "data.init_args.spacing": [3.0] * 3},
        {"val/dice": 0.8},
    ),
    "hippocampus_unet3d": (
        hippocampi,
        {EPOCHS: 10, PATCHES: 40, BATCH: 4, ENCODER: {"depth": 18, "width": 8}, SIZE: HIPPOCAMPUS, WINDOW: HIPPOCAMPUS},
        {"val/dice": 0.7},
    ),
    "OwnVolumes": (lambda folder: own_nodules(folder, column="label"), {EPOCHS: 40}, {"val/auc": 0.93}),
    "OwnMasks": (
        lambda folder: own_nodules(folder, column="mask"),
        {EPOCHS: 5, PATCHES: 120, "data.init_args.reading.size": [32, 32, 32]},
        {"val/dice": 0.6},
    ),
}
NAMES = [name for name in RECIPES if not name.startswith(("coco", "deeplesion"))]


@pytest.mark.parametrize("name", NAMES)
def test_a_handful_of_real_samples(name: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    recipe = recipes.read(name)
    kind = recipe.config.data.class_path.rpartition(".")[2]
    make, changes, least = HANDFULS[name if name in HANDFULS else kind]
    settings = {**recipe.expected.tier("smoke").overrides(), FOLDER: str(make(tmp_path / "data")), **changes}
    settings["run.validate_every"] = settings[EPOCHS]
    engine.train(name, run=tmp_path / "run", overrides=settings, progress=False)
    rows = log(tmp_path / "run")
    assert {key: rows[-1][key] for key in least if rows[-1][key] < least[key]} == {}
