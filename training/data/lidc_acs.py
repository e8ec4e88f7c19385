"""The LIDC set of the ACS authors, which the paper uses: one `.npz` a nodule, a split and a table of readings as CSVs.

    FOLDER/nodule/lidc101_1.npz     voxel (80, 80, 80) uint8: HU -1024..400 as 0..255 at 1 mm, axes z, y, x; answer1-4
    FOLDER/train_test_split.csv     columns train, test: file names, of unequal length
    FOLDER/info/lidc_nodule_info_new_with_subset.csv    index (a name), uid (the patient), malignancy_mode

Facts of the files in urmagicsmine/CSPR@390a413 data/lidc: 2,142 names in train; 526 in test, 491 of them different;
of these 986 and 246 have a mode of 1 or 2 (benign), 337 and 64 one of 4 or 5, others 3, which is dropped; lidc101_1 has
mode 0, "no annotation", and is in neither list. 268 of the 340 patients of test are in train, too.
"""

from __future__ import annotations

import csv
import hashlib
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ...errors import OptionError, SvdHubError, check_choice
from ...preprocess import Preprocess
from ..console import bar
from ..seeding import Place, ResumableData, sample_generator
from .splits import check_leakage

SPLIT, INFO = "train_test_split.csv", "info/lidc_nodule_info_new_with_subset.csv"
WINDOW, SIDE = (-1024.0, 400.0), 80
MEAN, STD = 99.0, 77.0  # of the classification; CSPR configs/LIDC_Cls_configs
SPLITS = ("checked", "clean", "official")
Split = Literal["checked", "clean", "official"]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A row of the table of readings. `mode` is the most frequent malignancy of the readers, 1 to 5; 0 where none."""

    name: str
    patient: str
    mode: int

    @property
    def label(self) -> int:
        """0 benign, 1 malignant, -1 undecided or not rated."""
        return {1: 0, 2: 0, 4: 1, 5: 1}.get(self.mode, -1)


def _table(file: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    if not file.is_file():
        raise SvdHubError(
            f"{file} does not exist. Next: --data FOLDER with nodule/, {SPLIT} and {INFO}, as the ACS authors have it"
        )
    with file.open(newline="", encoding="utf-8-sig") as handle:
        table = csv.DictReader(handle)
        if missing := [column for column in columns if column not in (table.fieldnames or ())]:
            raise SvdHubError(f"{file} has no columns {missing}; found: {table.fieldnames}")
        for row in table:
            yield table.line_num, {column: (row[column] or "").strip() for column in columns}


def read_lists(folder: Path) -> dict[str, tuple[str, ...]]:
    """Return the names (without .npz) of "train" and "test" as the split has them, those that are there twice too."""
    rows = [row for _, row in _table(folder / SPLIT, ("train", "test"))]
    return {key: tuple(row[key].removesuffix(".npz") for row in rows if row[key]) for key in ("train", "test")}


def read_readings(folder: Path) -> dict[str, Reading]:
    """Return name -> what the readers found."""
    found = {}
    for line, row in _table(folder / INFO, ("index", "uid", "malignancy_mode")):
        try:
            reading = Reading(name=row["index"], patient=row["uid"], mode=int(float(row["malignancy_mode"])))
        except ValueError as error:
            raise SvdHubError(f"{folder / INFO}, line {line}: malignancy_mode is no number ({error})") from error
        found[reading.name] = reading
    return found


def read_split(folder: Path, split: Split = "checked") -> dict[str, tuple[Reading, ...]]:
    """Return the readings of "train" and "test", in the order of the lists and as often as they are there.

    Args:
        folder: of the set.
        split: "checked" = the official lists, unless a patient is in both, which is so; "clean" = the official test
            list, and training without its patients; "official" = as they are, to compare with published numbers.

    Raises:
        SvdHubError: a file or column is missing, a name has no reading, or the lists share patients.
    """
    check_choice("split", split, SPLITS)
    lists, readings = read_lists(folder), read_readings(folder)
    if unknown := sorted({name for names in lists.values() for name in names} - set(readings)):
        raise SvdHubError(f"{folder / INFO} has no reading of {len(unknown)} nodules of {SPLIT}, {unknown[0]} first")
    found = {key: tuple(readings[name] for name in names) for key, names in lists.items()}
    held = {reading.patient for reading in found["test"]}
    if split == "clean":
        found["train"] = tuple(reading for reading in found["train"] if reading.patient not in held)
    if split != "official":
        hint = "the lists are by nodule; split=clean trains without these patients, split=official is as published"
        check_leakage({key: [r.patient for r in rows] for key, rows in found.items()}, hint=hint)
    return found


def by_name(readings: Sequence[Reading]) -> list[Reading]:
    """Return the readings by name, as often as they are there: the order of a list changes no number of a run."""
    return sorted(readings, key=lambda reading: reading.name)


def two_classes(readings: Sequence[Reading]) -> list[Reading]:
    """Return each nodule once, without those that are undecided: what the official classification trains on."""
    return [reading for reading in dict.fromkeys(by_name(readings)) if reading.label >= 0]


def read_nodule(folder: Path, name: str, *arrays: str) -> tuple[np.ndarray, ...]:
    """Return arrays (80, 80, 80) of a nodule's file, which are read without unpickling anything.

    Raises:
        SvdHubError: no such file or array, or another form.
    """
    file = folder / "nodule" / f"{Path(name).name}.npz"
    try:
        with np.load(file, allow_pickle=False) as opened:
            found = tuple(opened[array] for array in arrays)
    except FileNotFoundError as error:
        raise SvdHubError(f"{file} does not exist, though {SPLIT} names it. Next: complete the folder") from error
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise SvdHubError(f"{file} has no arrays {', '.join(arrays)} that can be read: {error}") from error
    if wrong := [array.shape for array in found if array.shape != (SIDE,) * 3]:
        raise SvdHubError(f"{file} holds {wrong[0]}; allowed: {(SIDE,) * 3}")
    return found


def hounsfield(voxel: np.ndarray) -> np.ndarray:
    """Return the HU that voxels of 0..255 stand for."""
    low, high = WINDOW
    return voxel.astype(np.float32) / 255 * (high - low) + low


def middle(array: np.ndarray, side: int) -> np.ndarray:
    """Return the middle (side, side, side) of a cube."""
    cut = (len(array) - side) // 2
    return np.ascontiguousarray(array[cut : cut + side, cut : cut + side, cut : cut + side])


def turned(random: np.random.Generator, *cubes: Tensor) -> tuple[Tensor, ...]:
    """Return cubes (..., S, S, S), turned alike: 0 to 3 quarters about each axis, and along one mirrored or none."""
    for axes in ((-3, -2), (-3, -1), (-2, -1)):
        turns = int(random.integers(0, 4))
        cubes = tuple(torch.rot90(cube, turns, axes) for cube in cubes)
    if (axis := int(random.integers(0, 4)) - 4) > -4:
        cubes = tuple(cube.flip(axis) for cube in cubes)
    return tuple(cube.contiguous() for cube in cubes)


class Cubes(Dataset[tuple[Tensor, int]]):
    """(epoch, index) -> ((1, S, S, S) uint8, label): the middle, or in training near it and turned."""

    def __init__(self, cubes: Tensor, labels: Sequence[int], *, size: int, train: bool, seed: int) -> None:
        self.cubes, self.labels, self.size, self.train, self.seed = cubes, list(labels), size, train, seed

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, place: Place) -> tuple[Tensor, int]:
        epoch, index = place
        cube = self.cubes[index][None]
        if self.train:
            random = sample_generator(self.seed, epoch, index)
            room = cube.shape[-1] - self.size
            cube = cube[:, *(slice(c := int(random.integers(0, room + 1)), c + self.size) for _ in range(3))]
            (cube,) = turned(random, cube)
        return cube, self.labels[index]


def check_sides(size: int, move: int) -> None:
    """Raise `OptionError` unless a cube of `size` can be moved by `move` voxels each way."""
    if size < 1 or move < 0 or size + 2 * move > SIDE:
        raise OptionError(f"size={size}, move={move} are not allowed; allowed: size + 2 * move up to {SIDE}")


def digest(folder: Path, *parts: Sequence[Reading]) -> str:
    """Return a hash of what is read of the parts of a split, and of their nodules' files."""
    found = hashlib.sha256()
    for k, part in enumerate(parts):
        for reading in part:
            found.update(f"{k} {reading}".encode())
            found.update((folder / "nodule" / f"{reading.name}.npz").read_bytes())
    return found.hexdigest()


class AcsNodules(ResumableData):
    """Benign against malignant; see `read_split` for the split.

    Args:
        folder: of the set, `--data` on the command line.
        size: voxels of the cube at 1 mm that the network sees.
        move: voxels that training moves it by, each way and along each axis.
    """

    def __init__(
        self,
        *,
        folder: Path | None = None,
        split: Split = "checked",
        batch_size: int = 128,
        size: int = 48,
        move: int = 5,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, seed=seed, workers=workers)
        check_sides(size, move)
        self.folder, self.split, self.size, self.move = folder, split, size, move

    @property
    def root(self) -> Path:
        """The set's folder."""
        if self.folder is None:
            raise SvdHubError("this recipe needs a data set. Next: add --data FOLDER")
        return Path(self.folder)

    def rows(self) -> dict[str, list[Reading]]:
        """Return the nodules of "train" and "test"."""
        found = {key: two_classes(rows) for key, rows in read_split(self.root, self.split).items()}
        if empty := [key for key, rows in found.items() if not rows]:
            raise SvdHubError(f"no nodule of {empty} is benign or malignant in {self.root}")
        return found

    def setup(self, stage: str) -> None:
        """Read the middle of each nodule into memory (200 kB each)."""
        rows = self.rows()
        if stage == "fit" and not hasattr(self, "train_set"):
            self.train_set = self._cubes(rows["train"], train=True)
        if not hasattr(self, "val_set"):
            self.val_set = self._cubes(rows["test"], train=False)

    def _cubes(self, rows: Sequence[Reading], *, train: bool) -> Cubes:
        side, cubes = self.size + 2 * self.move * train, []
        for row in bar(rows, "reading nodules"):
            (voxel,) = read_nodule(self.root, row.name, "voxel")
            cubes.append(torch.from_numpy(middle(voxel, side)))
        return Cubes(torch.stack(cubes), [row.label for row in rows], size=self.size, train=train, seed=self.seed)

    def examples(self) -> Iterator[tuple[dict[str, Any], int]]:
        """Yield the test nodules as `Preprocess` takes them, in HU, with labels."""
        for row in self.rows()["test"]:
            (voxel,) = read_nodule(self.root, row.name, "voxel")
            yield {"image": hounsfield(voxel), "spacing": (1.0, 1.0, 1.0)}, row.label

    def scored_cases(self) -> list[tuple[str, str]]:
        """Return the test nodules with their patients, in order."""
        return [(row.name, row.patient) for row in self.rows()["test"]]

    def preprocess(self, *, mean: float, std: float) -> dict[str, Any]:
        """Return the entry's `Preprocess` arguments."""
        side = self.size
        rule = Preprocess(modality="CT", spacing=(1.0, 1.0, 1.0), window=WINDOW, scale=(0.0, 255.0), mean=mean, std=std)
        return {**asdict(rule), "size": (side, side, side)}

    def class_names(self) -> tuple[str, ...]:
        """Return the names of the two classes."""
        return ("benign", "malignant")

    def fingerprint(self) -> dict[str, object]:
        """Return what identifies the data of this run."""
        rows = self.rows()
        counts = {key: [sum(row.label == k for row in found) for k in (0, 1)] for key, found in rows.items()}
        return {
            "sha256": digest(self.root, rows["train"], rows["test"]),
            "split": self.split,
            "benign_malignant": counts,
        }

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the shuffled, turned batches."""
        return self.loader(self.train_set, train=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the middle of each nodule."""
        return self.loader(self.val_set, train=False)
