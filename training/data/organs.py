"""CT volumes with label maps of organs: random patches for training, whole volumes of other patients for evaluation.

A folder per patient with an image (`ct.nii.gz`, or a DICOM folder) and labels (`seg.nii.gz`); `labels.json` beside the
folders says {case: {label value: {"name": organ}}}. Image and labels meet by their place in the patient, in mm, not by
the order of their voxels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from ... import volume
from ...errors import SvdHubError
from ...preprocess import Preprocess
from ...volume import Grid, Volume
from ..console import bar
from ..seeding import EpochSampler, ResumableData
from .patches import STANDARD, Augmentation, Case, Patches, Triple, Whole
from .splits import check_leakage

ORIENTATION = "SPL"


@dataclass(frozen=True, kw_only=True)
class CaseFiles:
    """Where a patient's files are, in the folder of that name.

    Attributes:
        image: a file, or a DICOM folder; "." is the case's own folder.
        labels: a file on any grid.
        values: organ -> label values, where `labels.json` does not say it.
    """

    image: str = "ct.nii.gz"
    labels: str = "seg.nii.gz"
    values: dict[str, list[int]] = field(default_factory=dict)


# ---- reading -------------------------------------------------------------------------------------------------------


def label_values(folder: Path, name: str, files: CaseFiles, organs: Mapping[str, Sequence[str]]) -> dict[str, set[int]]:
    """Return for each organ that is annotated in the case the values it has in the label map.

    Args:
        folder: of the data set.
        name: of the case.
        files: of the case.
        organs: class -> the names that `labels.json` has for its parts.

    Raises:
        SvdHubError: no `labels.json`, it does not name the case, or the case has none of the organs.
    """
    if files.values:
        if unknown := set(files.values) - set(organs):
            raise SvdHubError(f"case {name}: values for {sorted(unknown)} are not allowed; allowed: {list(organs)}")
        return {organ: set(values) for organ, values in files.values.items()}
    file = folder / "labels.json"
    if not file.is_file():
        raise SvdHubError(f"{file} does not exist. Next: --data FOLDER with labels.json and a folder for each case")
    table = json.loads(file.read_text(encoding="utf-8"))
    if name not in table:
        raise SvdHubError(f"{file} does not name the case {name!r}; found: {list(table)}. Next: give its `values`")
    found: dict[str, set[int]] = {}
    for organ, parts in organs.items():
        if values := {int(value) for value, label in table[name].items() if label["name"] in parts}:
            found[organ] = values
    if not found:
        raise SvdHubError(f"case {name!r} has none of {dict(organs)} in {file}. Next: leave the case out")
    return found


def network_grid(grid: Grid, size: Sequence[int]) -> Grid:
    """Return the grid of `size` voxels with the outer borders of `grid`: where `Preprocess` computes its voxels."""
    mm = [n * s / m for n, s, m in zip(grid.size, grid.spacing, size, strict=True)]
    corner = np.array([(new / old - 1) / 2 for new, old in zip(mm, grid.spacing, strict=True)])
    x, y, z = (float(p) for p in grid.points(corner))
    return Grid(
        size=(size[0], size[1], size[2]), spacing=(mm[0], mm[1], mm[2]), origin=(x, y, z), direction=grid.direction
    )


def labels_on(labels: Volume, grid: Grid) -> np.ndarray:
    """Return the label map (D, H, W) on another grid of the same patient, by the nearest voxel; outside it is 0."""
    out = np.zeros(grid.size, dtype=labels.array.dtype)
    rows = np.stack(np.meshgrid(*(np.arange(n) for n in grid.size[1:]), indexing="ij"), -1)
    for z in range(grid.size[0]):  # a plane at a time: the places of all voxels are six times the map
        index = np.concatenate([np.full((*rows.shape[:2], 1), z), rows], -1)
        at = np.rint(labels.grid.indices(grid.points(index)) - 1e-6).astype(np.int64)
        inside = ((at >= 0) & (at < np.asarray(labels.shape))).all(-1)
        out[z][inside] = labels.array[tuple(at[inside].T)]
    return out


def classes_on(
    labels: Volume, image: Volume, size: Sequence[int], orientation: str, classes: Mapping[str, Sequence[int]]
) -> np.ndarray:
    """Return the classes of a label map (D, H, W) uint8 where `Preprocess` computes its voxels; 0 is what has no class.

    Args:
        labels: on any grid of the patient.
        image: what was preprocessed, as it was read.
        size: of what came out, neither cropped nor padded.
        orientation: of what came out.
        classes: class -> its values in the label map; the first is class 1.
    """
    there = labels_on(labels, network_grid(image.grid.turned(orientation)[0], size))
    target = np.zeros(there.shape, np.uint8)
    for number, values in enumerate(classes.values(), start=1):
        target[np.isin(there, list(values))] = number
    return target


def read_files(folder: Path, name: str, files: CaseFiles) -> tuple[Volume, Volume]:
    """Return image (HU) and label map of a case, each on its own grid in the orientation `ORIENTATION`.

    Raises:
        SvdHubError: a file is missing.
        VolumeError: a file is no volume.
    """
    places = (folder / name / files.image, folder / name / files.labels)
    for place in places:
        if not place.exists():
            raise SvdHubError(f"{place} does not exist. Next: --data FOLDER with a folder {name}, or leave it out")
    return volume.read(places[0], modality="CT"), volume.read(places[1])


# ---- the data module -----------------------------------------------------------------------------------------------


class OrganVolumes(ResumableData):
    """Organs of some patients for training and of others for evaluation.

    Args:
        train_cases, val_cases: name of the folder -> its files; a case in both is refused.
        folder: holds `labels.json` and a folder for each case, `--data` on the command line.
        organs: class -> its parts' names in `labels.json`: {"kidneys": ["kidney_left", "kidney_right"]}.
        patches: an epoch has so many.
        size: (D, H, W) of a patch, and the least sides of a volume for the trained network.
        spacing: mm as (z, y, x).
        window: HU, mapped to 0..255.
        augmentation: of the patches.
        seed: of order and augmentation; a recipe's is `run.seed`.
    """

    def __init__(
        self,
        *,
        train_cases: dict[str, CaseFiles],
        val_cases: dict[str, CaseFiles],
        organs: dict[str, list[str]],
        folder: Path | None = None,
        batch_size: int = 2,
        patches: int = 400,
        size: Triple = (48, 48, 48),
        spacing: tuple[float, float, float] = (3.0, 3.0, 3.0),
        window: tuple[float, float] = (-200.0, 300.0),
        augmentation: Augmentation = STANDARD,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, seed=seed, workers=workers)
        check_leakage({"train_cases": train_cases, "val_cases": val_cases}, what="cases")
        if not train_cases or not val_cases:
            raise SvdHubError("train_cases and val_cases are empty; allowed: one case or more in each")
        self.folder, self.organs, self.patches, self.size = folder, organs, patches, size
        self.train_cases, self.val_cases, self.augmentation = train_cases, val_cases, augmentation
        self.exact = Preprocess(
            modality="CT", orientation=ORIENTATION, spacing=spacing, window=window, scale=(0.0, 255.0)
        )

    @property
    def root(self) -> Path:
        """The data set's folder."""
        if self.folder is None:
            raise SvdHubError("this recipe needs a data set. Next: add --data FOLDER")
        return Path(self.folder)

    def read_case(self, name: str, files: CaseFiles) -> tuple[Volume, Case]:
        """Return a patient's image as it is in the file, and image and classes on the network's grid.

        Raises:
            SvdHubError: a file is missing, or the case has none of the organs.
        """
        values = label_values(self.root, name, files, self.organs)
        image, labels = read_files(self.root, name, files)
        x = self.exact(image.array, spacing=image.spacing, orientation=ORIENTATION)[0]
        there = labels_on(labels, network_grid(image.grid, x.shape[1:]))
        target = np.zeros(there.shape, np.int64)
        for k, organ in enumerate(self.organs, start=1):
            target[np.isin(there, list(values.get(organ, ())))] = k
        known = torch.tensor([True, *(organ in values for organ in self.organs)])
        return image, Case(name=name, image=x, target=torch.from_numpy(target), known=known)

    def _read(self, cases: Mapping[str, CaseFiles]) -> list[Case]:
        return [self.read_case(name, files)[1] for name, files in bar(cases.items(), "reading volumes")]

    def setup(self, stage: str) -> None:
        """Read and resample the patients into memory."""
        if stage == "fit" and not hasattr(self, "train_set"):  # Lightning asks once more
            self.train_set = Patches(
                self._read(self.train_cases),
                count=self.patches,
                size=self.size,
                rule=self.augmentation,
                seed=self.seed,
            )
        if not hasattr(self, "val_set"):
            self.val_set = Whole(self._read(self.val_cases))

    def examples(self) -> Iterator[tuple[dict[str, Any], Case]]:
        """Yield the evaluation patients as `Preprocess` takes them, with their classes on its grid (unpadded)."""
        for name, files in self.val_cases.items():
            image, case = self.read_case(name, files)
            yield {"image": image.array, "spacing": image.spacing, "orientation": ORIENTATION}, case

    def preprocess(self, *, mean: float, std: float) -> dict[str, Any]:
        """Return the entry's `Preprocess` arguments: whole volumes, one patch large or more."""
        return {**asdict(self.exact), "mean": mean, "std": std, "minimum": self.size}

    def class_names(self) -> tuple[str, ...]:
        """Return the names of the classes."""
        return ("background", *self.organs)

    def fingerprint(self) -> dict[str, object]:
        """Return what identifies the data of this run."""
        digest = hashlib.sha256(json.dumps(self.organs).encode())
        for name, files in {**self.train_cases, **self.val_cases}.items():
            digest.update(json.dumps({k: sorted(v) for k, v in self._values(name, files).items()}).encode())
            for part in (files.image, files.labels):
                place = self.root / name / part
                found = sorted(p for p in place.iterdir() if p.is_file()) if place.is_dir() else [place]
                for file in found:
                    digest.update(file.read_bytes())
        return {"sha256": digest.hexdigest(), "train": list(self.train_cases), "val": list(self.val_cases)}

    def _values(self, name: str, files: CaseFiles) -> dict[str, set[int]]:
        return label_values(self.root, name, files, self.organs)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the patches."""
        return self.loader(self.train_set, train=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the whole volumes, one at a time: their sides differ."""
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        sampler = EpochSampler(len(self.val_set), seed=self.seed, shuffle=False, rank=rank, world=world)
        return DataLoader(self.val_set, sampler=sampler, batch_size=1, num_workers=0)
