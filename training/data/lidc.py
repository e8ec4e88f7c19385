"""LIDC nodule crops as NIfTI pairs with a CSV (`nodules.csv`): benign (0) against malignant (1), split by patient."""

from __future__ import annotations

import csv
import functools
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ...errors import SvdHubError
from ...preprocess import Preprocess
from ..console import bar
from ..seeding import Place, ResumableData, sample_generator
from .splits import check_leakage


@dataclass(frozen=True, kw_only=True)
class Nodule:
    """One row of `nodules.csv`. `label` is -1 where the readers were undecided (malignancy 3)."""

    name: str
    patient: str
    fold: int
    label: int
    rating: int


COLUMNS = ("name", "patient_id", "fold", "label", "Malignancy_value")


def _nodule(row: dict[str, str], where: str) -> Nodule:
    try:
        return Nodule(
            name=row["name"],
            patient=row["patient_id"],
            fold=int(row["fold"]),
            label=int(row["label"]),
            rating=int(float(row["Malignancy_value"])),
        )
    except (TypeError, ValueError) as error:
        raise SvdHubError(f"{where}: fold, label and Malignancy_value must be numbers ({error})") from error


def read_nodules(folder: Path) -> list[Nodule]:
    """Return the rows of `folder/nodules.csv`, by name: the order of its lines changes no number of a run.

    Raises:
        SvdHubError: no such file or columns, a value that is no number, or a patient in two folds.
    """
    file = folder / "nodules.csv"
    if not file.is_file():
        raise SvdHubError(f"{file} does not exist. Next: --data FOLDER with nodules.csv, images/ and masks/")
    with file.open(newline="", encoding="utf-8") as handle:
        table = csv.DictReader(handle)
        found = table.fieldnames or []
        if missing := [column for column in COLUMNS if column not in found]:
            raise SvdHubError(f"{file} has no columns {missing}; found: {list(found)}")
        rows = [_nodule(row, f"{file}, line {table.line_num}") for row in table]
    folds = sorted({row.fold for row in rows})
    check_leakage({f"fold {fold}": [row.patient for row in rows if row.fold == fold] for fold in folds})
    return sorted(rows, key=lambda row: row.name)


def crop_file(folder: Path, name: str, kind: str = "images") -> Path:
    """Return where the crop of a nodule is, or its mask ("masks"); a name cannot lead out of the folder."""
    return folder / kind / f"{Path(name).name}.nii.gz"


def read_crop(folder: Path, name: str, kind: str = "images") -> tuple[np.ndarray, tuple[float, float, float]]:
    """Return a crop in HU, or its mask, as (D, H, W) and its spacing in mm (z, y, x).

    Raises:
        SvdHubError: there is no such crop.
    """
    import nibabel as nib

    file = crop_file(folder, name, kind)
    if not file.is_file():
        raise SvdHubError(f"{file} does not exist, though nodules.csv names it. Next: complete the folder")
    image: Any = nib.load(file)
    x, y, z = (float(s) for s in image.header.get_zooms()[:3])
    return np.asarray(image.dataobj).transpose(2, 1, 0), (z, y, x)


def digest(folder: Path, rows: Sequence[Nodule], kinds: Sequence[str]) -> str:
    """Return a hash of what is read of some rows, and of their crops ("images", "masks")."""
    found = hashlib.sha256()
    for row in rows:
        found.update(f"{row}".encode())
        for kind in kinds:
            found.update(crop_file(folder, row.name, kind).read_bytes())
    return found.hexdigest()


Stamp = tuple[int, int]  # size and time of a file: another content is another crop


def stamp(file: Path) -> Stamp:
    """Return what changes where a file does; (0, 0) where there is none."""
    facts = file.stat() if file.is_file() else None
    return (facts.st_size, facts.st_mtime_ns) if facts else (0, 0)


@functools.lru_cache(maxsize=4096)
def _cube(folder: Path, name: str, stamp: Stamp, preprocess: Preprocess) -> Tensor:
    array, spacing = read_crop(folder, name)
    return preprocess(array, spacing=spacing)[0]


def cube(folder: Path, name: str, preprocess: Preprocess) -> Tensor:
    """Return a crop as the network takes it, (1, S, S, S); runs of one process, as of a study, read each once.

    Raises:
        SvdHubError: there is no such crop.
    """
    return _cube(folder, name, stamp(crop_file(folder, name)), preprocess)


class Crops(Dataset[tuple[Tensor, int]]):
    """(epoch, index) -> ((1, S, S, S) in the window's scale, label), with shifts, flips and axial quarter turns."""

    def __init__(self, volumes: Tensor, labels: Sequence[int], *, size: int, train: bool, seed: int) -> None:
        self.volumes, self.labels = volumes, list(labels)
        self.size, self.train, self.seed = size, train, seed

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, place: Place) -> tuple[Tensor, int]:
        epoch, index = place
        x, room = self.volumes[index], self.volumes.shape[-1] - self.size
        corner = [room // 2] * 3
        if self.train:
            random = sample_generator(self.seed, epoch, index)
            corner = [int(random.integers(0, room + 1)) for _ in range(3)]
        x = x[:, *(slice(c, c + self.size) for c in corner)]
        if self.train:
            flips = [axis for axis in (1, 2, 3) if random.random() < 0.5]
            x = torch.rot90(x.flip(flips), int(random.integers(0, 4)), (2, 3))
        return x.contiguous(), self.labels[index]


class LidcNodules(ResumableData):
    """The nodules of some folds for training and of others for evaluation.

    Args:
        folder: holds `nodules.csv` and `images/`, `--data` on the command line.
        train_folds, val_folds: patient-level folds; a fold in both is refused.
        size: voxels of the cube at 1 mm that the network sees.
        margin: voxels of random shift in training, in all.
        window: HU, mapped to 0..255. Crops smaller than the cube are padded with its low end.
        seed: of order and augmentation; a recipe's is `run.seed`.
    """

    def __init__(
        self,
        *,
        train_folds: list[int],
        val_folds: list[int],
        folder: Path | None = None,
        batch_size: int = 16,
        size: int = 32,
        margin: int = 8,
        window: tuple[float, float] = (-1000.0, 400.0),
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, seed=seed)
        check_leakage({"train_folds": train_folds, "val_folds": val_folds}, what="folds")
        self.folder, self.train_folds, self.val_folds, self.size = folder, train_folds, val_folds, size
        self.exact = Preprocess(
            modality="CT", spacing=(1.0, 1.0, 1.0), window=window, scale=(0.0, 255.0), size=(size,) * 3
        )
        self.wide = replace(self.exact, size=(size + margin,) * 3)  # to shift in

    def _rows(self, folds: Sequence[int]) -> list[Nodule]:
        if self.folder is None:
            raise SvdHubError("this recipe needs a data set. Next: add --data FOLDER")
        rows = [r for r in read_nodules(Path(self.folder)) if r.fold in folds and r.label >= 0]
        if not rows:
            raise SvdHubError(f"no labelled nodules of folds {list(folds)} in {self.folder}")
        return rows

    def _crops(self, folds: Sequence[int], *, train: bool) -> Crops:
        rows, folder = self._rows(folds), Path(self.folder or ".")
        preprocess = self.wide if train else self.exact
        cubes = [cube(folder, row.name, preprocess) for row in bar(rows, "reading nodules")]
        return Crops(torch.stack(cubes), [r.label for r in rows], size=self.size, train=train, seed=self.seed)

    def setup(self, stage: str) -> None:
        """Read and resample the crops into memory (130 kB each)."""
        if stage == "fit" and not hasattr(self, "train_set"):  # Lightning asks once more
            self.train_set = self._crops(self.train_folds, train=True)
        if not hasattr(self, "val_set"):
            self.val_set = self._crops(self.val_folds, train=False)

    def examples(self) -> Iterator[tuple[dict[str, Any], int]]:
        """Yield the evaluation split as `Preprocess` takes it, with labels."""
        for row in self._rows(self.val_folds):
            array, spacing = read_crop(Path(self.folder or "."), row.name)
            yield {"image": array, "spacing": spacing}, row.label

    def scored_cases(self) -> list[tuple[str, str]]:
        """Return the nodules of evaluation with their patients, in order."""
        return [(row.name, row.patient) for row in self._rows(self.val_folds)]

    def preprocess(self, *, mean: float, std: float) -> dict[str, Any]:
        """Return the entry's `Preprocess` arguments."""
        return {**asdict(self.exact), "mean": mean, "std": std}

    def class_names(self) -> tuple[str, ...]:
        """Return the names of the two classes."""
        return ("benign", "malignant")

    def fingerprint(self) -> dict[str, object]:
        """Return what identifies the data of this run."""
        rows = self._rows([*self.train_folds, *self.val_folds])
        found = digest(Path(self.folder or "."), rows, ("images",))
        return {"sha256": found, "train_folds": self.train_folds, "val_folds": self.val_folds}

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the shuffled, augmented batches."""
        return self.loader(self.train_set, train=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the centre crops."""
        return self.loader(self.val_set, train=False)
