"""Volumes and label maps in pairs of NIfTI files: a task of the Medical Segmentation Decathlon, or LiTS.

decathlon   dataset.json (labels, modality, training: [{image, label}, ...]), imagesTr/, labelsTr/
lits        volume-N.nii and segmentation-N.nii (or .nii.gz), in the folder or in folders inside it
"""

from __future__ import annotations

import csv
import functools
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader

from ... import volume
from ...errors import OptionError, SvdHubError, check_choice
from ...preprocess import Preprocess
from ..console import bar
from ..seeding import EpochSampler, ResumableData
from .kept import Kept, Memory
from .organs import classes_on
from .patches import STANDARD, Augmentation, Case, Patches, Triple, Values, Whole, places_of
from .planning import ORIENTATION, Millimetres
from .splits import check_leakage
from .table import ends_of

FORMS = ("decathlon", "lits")
LITS_LABELS = {0: "background", 1: "liver", 2: "tumour"}
# urmagicsmine/CSPR@390a413 medseg/data: of the 131 volumes 0 to 130; the others are trained on
LITS_TEST = (2, 19, 20, 26, 42, 52, 65, 77, 86, 88, 99, 112, 127)
LITS_VAL = (0, 17, 29, 34, 58, 72, 73, 75, 85, 87, 103, 110, 113)
MOST_PLACES = 4096  # voxels of each class and volume that patches are centred on


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A case's files."""

    name: str
    image: Path
    labels: Path


@dataclass(frozen=True, kw_only=True)
class PairSet:
    """What a folder has: its pairs by name, what the values of the label maps mean, and the modality ("CT", "MR")."""

    pairs: tuple[Pair, ...]
    labels: dict[int, str]
    modality: str


def read_pairs(folder: Path, form: str) -> PairSet:
    """Return the pairs of a folder; no volume is opened.

    Raises:
        SvdHubError: the folder has another form.
    """
    check_choice("form", form, FORMS)
    found = _lits(folder) if form == "lits" else _decathlon(folder)
    if not found.pairs:
        raise SvdHubError(f"{folder} has no pairs of the form {form!r}. Next: check the folder")
    return found


def _decathlon(folder: Path) -> PairSet:
    file = folder / "dataset.json"
    if not file.is_file():
        raise SvdHubError(
            f"{file} does not exist. Next: give a task's folder, with dataset.json, imagesTr and labelsTr"
        )
    try:
        table = json.loads(file.read_text(encoding="utf-8-sig"))
        labels = {int(value): str(name) for value, name in table["labels"].items()}
        kinds = [str(kind).upper() for kind in table["modality"].values()]
        pairs = [
            Pair(
                name=Path(item["image"]).name.partition(".")[0],
                image=folder / item["image"],
                labels=folder / item["label"],
            )
            for item in table["training"]
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SvdHubError(
            f"{file} has another form ({type(error).__name__} {error}); needed: labels, modality, training"
        ) from error
    if len(kinds) != 1:
        raise SvdHubError(f"{file} is of {len(kinds)} modalities, {', '.join(kinds)}; allowed: one")
    modality = "CT" if kinds[0] == "CT" else "MR"
    return PairSet(pairs=tuple(sorted(pairs, key=lambda pair: pair.name)), labels=labels, modality=modality)


def _lits(folder: Path) -> PairSet:
    found: dict[str, dict[int, Path]] = {"volume": {}, "segmentation": {}}
    for file in sorted(folder.rglob("*.nii*")):
        if match := re.fullmatch(r"(volume|segmentation)-(\d+)\.nii(\.gz)?", file.name):
            found[match[1]].setdefault(int(match[2]), file)
    pairs = [
        Pair(
            name=f"volume-{k}", image=file, labels=found["segmentation"].get(k, file.with_name(f"segmentation-{k}.nii"))
        )
        for k, file in sorted(found["volume"].items())
    ]
    return PairSet(pairs=tuple(pairs), labels=LITS_LABELS, modality="CT")


def lits_split(names: Sequence[str]) -> dict[str, list[str]]:
    """Return the official lists of LiTS, as far as the names are there."""
    of = {**{f"volume-{k}": "test" for k in LITS_TEST}, **{f"volume-{k}": "val" for k in LITS_VAL}}
    return {split: [name for name in names if of.get(name, "train") == split] for split in ("train", "val", "test")}


def drawn_split(names: Sequence[str], *, share: float, seed: int) -> dict[str, list[str]]:
    """Return a split by case, a function of the names and the seed."""
    if not 0 < share < 1 or len(names) < 2:
        raise OptionError(f"val_share={share} of {len(names)} cases is not allowed; allowed: 0 to 1, of two or more")
    order = np.random.default_rng(seed).permutation(len(names))
    held = {sorted(names)[k] for k in order[: min(max(1, round(share * len(names))), len(names) - 1)]}
    return {"train": [n for n in names if n not in held], "val": [n for n in names if n in held], "test": []}


def part_of(names: Sequence[str], *, fraction: float, seed: int) -> list[str]:
    """Return a share of the names, one at least; a smaller share is part of a larger one of the same seed."""
    if not 0 < fraction <= 1:
        raise OptionError(f"fraction={fraction} is not allowed; allowed: above 0, up to 1")
    order = np.random.default_rng((seed, 1)).permutation(len(names))
    kept = {sorted(names)[k] for k in order[: max(1, round(fraction * len(names)))]}
    return [name for name in names if name in kept]


@dataclass(frozen=True, kw_only=True)
class Cases:
    """Makes the case of pair k on the network's grid."""

    pairs: tuple[Pair, ...]
    modality: str
    rule: Preprocess
    classes: Mapping[str, Sequence[int]]

    def __call__(self, k: int) -> Case:
        pair = self.pairs[k]
        for file in (pair.image, pair.labels):
            if not file.is_file():
                raise SvdHubError(f"{file} does not exist. Next: complete the folder, or leave {pair.name} out")
        image, drawn = volume.read(pair.image, modality=self.modality), volume.read(pair.labels)
        x = self.rule(image.array, spacing=image.spacing, orientation=ORIENTATION)[0]
        target = classes_on(drawn, image, x.shape[1:], self.rule.orientation or ORIENTATION, self.classes)
        known = torch.ones(len(self.classes) + 1, dtype=torch.bool)
        return Case(name=pair.name, image=x, target=torch.from_numpy(target), known=known)


class PairVolumes(ResumableData):
    """Pairs of a folder, some for training and others for evaluation.

    Args:
        folder: `--data` on the command line.
        form: "decathlon" or "lits".
        classes: class -> its values in the label maps; values that are not named are background.
        split: "official" (LiTS' lists, 105 to train, 13 and 13), or "drawn", by case.
        evaluated: "val" or "test" of the split.
        val_share, split_seed: of a drawn split.
        fraction: share of the training cases that is used; smaller ones are part of larger ones.
        checked: the folder of `svd-hub prepare`; pairs that its cases.csv lacks are left out. None = all.
        patches: an epoch has so many.
        size: (D, H, W) of a patch, and the least sides of a volume for the trained network.
        spacing: mm as (z, y, x).
        window: HU, mapped to 0..255; None = each volume's own mean and standard deviation, for MR.
        memory: gigabytes of volumes that are kept; what is beyond is read again for each patch.
        augmentation: of the patches.
    """

    def __init__(
        self,
        *,
        form: Literal["decathlon", "lits"],
        classes: dict[str, list[int]],
        folder: Path | None = None,
        split: Literal["official", "drawn"] = "drawn",
        evaluated: Literal["val", "test"] = "val",
        val_share: float = 0.2,
        split_seed: int = 0,
        fraction: float = 1.0,
        checked: Path | None = None,
        patches: int = 400,
        size: Triple = (48, 48, 48),
        spacing: Millimetres = (1.0, 1.0, 1.0),
        window: tuple[float, float] | None = None,
        memory: float = 16.0,
        augmentation: Augmentation = STANDARD,
        batch_size: int = 2,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, seed=seed, workers=workers)
        if split == "official" and form != "lits":
            raise OptionError(
                f"split='official' with form={form!r} is not allowed; allowed: 'drawn'. LiTS alone has one"
            )
        self.form, self.classes, self.folder, self.checked = form, classes, folder, checked
        self.split, self.evaluated, self.fraction = split, evaluated, fraction
        self.val_share, self.split_seed = val_share, split_seed
        self.patches, self.size, self.augmentation = patches, size, augmentation
        self.memory = Memory(memory)
        base = Preprocess(modality="CT" if form == "lits" else "MR", orientation=ORIENTATION, spacing=spacing)
        self.rule = (
            replace(base, statistics="volume") if window is None else replace(base, window=window, scale=(0.0, 255.0))
        )

    @functools.cached_property
    def found(self) -> PairSet:
        """The pairs of the folder, those that were checked.

        Raises:
            SvdHubError: no such folder, or values of classes that it does not have.
        """
        if self.folder is None:
            raise SvdHubError("this recipe needs a data set. Next: add --data FOLDER")
        found = read_pairs(Path(self.folder), self.form)
        if unknown := {value for values in self.classes.values() for value in values} - set(found.labels):
            raise SvdHubError(f"classes with the values {sorted(unknown)}; the folder's labels are {found.labels}")
        if self.checked is not None:
            with (Path(self.checked) / "cases.csv").open(newline="", encoding="utf-8") as handle:
                whole = {row["name"] for row in csv.DictReader(handle)}
            found = replace(found, pairs=tuple(pair for pair in found.pairs if pair.name in whole))
        return found

    @functools.cached_property
    def names(self) -> dict[str, list[str]]:
        """The cases of "train" and "val" (what is evaluated).

        Raises:
            SvdHubError: one of them is empty.
        """
        names = [pair.name for pair in self.found.pairs]
        if self.split == "official":
            split = lits_split(names)
        else:
            split = drawn_split(names, share=self.val_share, seed=self.split_seed)
        check_leakage(split, what="cases")
        chosen = {"train": split["train"], "val": split[self.evaluated]}
        if empty := [key for key, found in chosen.items() if not found]:
            raise SvdHubError(f"no case of {', '.join(empty)} in {self.folder}; found: {len(names)} pairs")
        return {**chosen, "train": part_of(chosen["train"], fraction=self.fraction, seed=self.split_seed)}

    def _cases(self, split: str) -> Cases:
        pairs = {pair.name: pair for pair in self.found.pairs}
        chosen = tuple(pairs[name] for name in self.names[split])
        rule = replace(self.rule, modality=self.found.modality)
        return Cases(pairs=chosen, modality=self.found.modality, rule=rule, classes=self.classes)

    @property
    def values(self) -> Values:
        """The range of the values."""
        return Values() if self.rule.window is not None else Values(low=-2.0, high=2.0, clamped=False)

    def setup(self, stage: str) -> None:
        """Read and resample the volumes into memory."""
        if stage == "fit" and not hasattr(self, "train_set"):
            train = self._cases("train")
            cases = Kept(train, len(train.pairs), self.memory)
            self.train_set = Patches(
                cases,
                count=self.patches,
                size=self.size,
                rule=self.augmentation,
                seed=self.seed,
                values=self.values,
                places=[places_of(case, MOST_PLACES) for case in bar(cases, "finding classes", total=len(cases))],
            )
        if stage == "fit" and not hasattr(self, "val_set"):
            val = self._cases("val")
            self.val_set = Whole(Kept(val, len(val.pairs), self.memory))

    @property
    def val_cases(self) -> list[str]:
        """The cases of evaluation."""
        return self.names["val"]

    def scored_cases(self) -> list[tuple[str, str]]:
        """Return the cases of evaluation, each a patient of its own."""
        return [(name, name) for name in self.val_cases]

    def examples(self) -> Iterator[tuple[dict[str, Any], Case]]:
        """Yield the cases of evaluation as `Preprocess` takes them, with their classes on its grid (unpadded)."""
        cases = self._cases("val")
        for k, pair in enumerate(cases.pairs):
            image = volume.read(pair.image, modality=cases.modality)
            example = {"image": image.array, "spacing": image.spacing, "orientation": ORIENTATION}
            yield example, cases(k)

    def preprocess(self, *, mean: float, std: float) -> dict[str, Any]:
        """Return the entry's `Preprocess` arguments: whole volumes, one patch large or more."""
        own = {} if self.rule.statistics == "volume" else {"mean": mean, "std": std}
        return {**asdict(self.rule), "modality": self.found.modality, "minimum": self.size, **own}

    def class_names(self) -> tuple[str, ...]:
        """Return the names of the classes."""
        return ("background", *self.classes)

    def fingerprint(self) -> dict[str, object]:
        """Return what identifies the data of this run: sizes and both ends of each file."""
        digest, pairs = hashlib.sha256(), {pair.name: pair for pair in self.found.pairs}
        for name in [*self.names["train"], *self.names["val"]]:
            for file in (pairs[name].image, pairs[name].labels):
                digest.update(f"{name} ".encode() + ends_of(file))
        return {"sha256": digest.hexdigest(), **self.names}

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the patches."""
        return self.loader(self.train_set, train=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the whole volumes, one at a time: their sides differ."""
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        sampler = EpochSampler(len(self.val_set), seed=self.seed, shuffle=False, rank=rank, world=world)
        return DataLoader(self.val_set, sampler=sampler, batch_size=1, num_workers=0)
