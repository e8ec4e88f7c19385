"""A user's own volumes: a CSV of `image,label[,mask][,patient][,split]` over NIfTI, NRRD, MetaImage or DICOM folders.

What both tasks share: the table in its splits, the reading of a volume, the preprocessing. It is that of the network
the run starts from (`planning`), and goes into the record of the result. `own_volumes` gives whole volumes with a
label, `own_masks` patches with their masks. Messages and run folders name lines of the CSV, never a patient.
"""

from __future__ import annotations

import functools
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ... import volume
from ...errors import OptionError, SvdHubError, VolumeError, check_choice
from ...preprocess import Preprocess
from ...volume import Volume
from ..console import bar
from ..seeding import ResumableData
from . import planning
from .kept import Memory
from .patches import Triple, Values
from .planning import ORIENTATION, Extent, Millimetres
from .splits import check_leakage, split_by_patient
from .table import SPLITS, Row, Table, digest, read_table

NO_HU = "no value is below 0"  # how the note of svd_hub.volume begins


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How volumes are read. What is None is that of the network the run starts from, or follows from the volumes.

    Attributes:
        modality: "CT" (the values are HU) or "MR", of all volumes.
        spacing: mm as (z, y, x).
        size: (D, H, W) of the network's input: of a whole volume, or of a patch.
        window: (low, high) in the volumes' units; see `planning.starting_point`.
        ct_window: HU, where the network it starts from has none, because it was trained on pictures.
        voxels: of an input at most, where its size follows from the volumes.
        memory: gigabytes of volumes that are kept; what is beyond is read again in each epoch.
    """

    modality: str = "CT"
    spacing: Millimetres | None = None
    size: Triple | None = None
    window: tuple[float, float] | None = None
    ct_window: tuple[float, float] = (-1000.0, 400.0)
    voxels: int = 96**3
    memory: float = 8.0

    def __post_init__(self) -> None:
        check_choice("reading.modality", self.modality, ("CT", "MR"))
        if self.voxels < 1 or not self.memory >= 0:
            raise OptionError(
                f"reading.voxels={self.voxels}, reading.memory={self.memory} are not allowed; allowed: above 0, and 0 "
                "or more gigabytes"
            )


@dataclass(frozen=True, kw_only=True)
class Division:
    """The split of a table that has no column `split`: by patient, in the proportion of the labels.

    Attributes:
        val_share: of the patients, for evaluation.
        seed: of the draw; not the run's, so that runs of several seeds have one split.
        evaluated: "val", or "test" where the table has one, for a last look.
    """

    val_share: float = 0.2
    seed: int = 0
    evaluated: Literal["val", "test"] = "val"


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Reads the volumes of a table; workers get it, and nothing else of the data module."""

    table: Table
    modality: str

    def image(self, row: Row) -> Volume:
        """Return the image of a row, its axes run to "SPL".

        Raises:
            SvdHubError: it cannot be read; names the line.
        """
        try:
            return volume.read(row.image, modality=self.modality)
        except VolumeError as error:
            raise SvdHubError(f"{self.table.at(row)}: {error}{self._hint(row)}") from error

    def _hint(self, row: Row) -> str:
        """Return that the modality may be the other one, where it is the modality that keeps from reading."""
        try:
            volume.read(row.image)
        except VolumeError:
            return ""
        other = {"CT": "MR", "MR": "CT"}[self.modality]
        return f" (where it is {other}: --set data.init_args.reading.modality={other})"

    def mask(self, row: Row) -> Volume:
        """Return the mask of a row, on its own grid; see `image`."""
        try:
            return volume.read(row.mask or row.image)
        except VolumeError as error:
            raise SvdHubError(f"{self.table.at(row)}, mask: {error}") from error

    def prepared(self, row: Row, rule: Preprocess) -> tuple[Volume, Tensor]:
        """Return the image of a row, and the network's input (1, C, D, H, W) by `rule`; see `image`."""
        image = self.image(row)
        try:
            return image, rule(image.array, spacing=image.spacing, orientation=ORIENTATION)
        except VolumeError as error:
            raise SvdHubError(f"{self.table.at(row)}: {error}") from error


class OwnData(ResumableData):
    """A table's rows in splits, how they are read, and the preprocessing they ask for.

    Args:
        needs: columns of the table besides `image`.
        folder: the CSV, `--data` on the command line.
        init: the network the run starts from; a recipe's is `task.init_args.network.init`.
        reading: of the volumes.
        division: of the rows, where the table does not say it.
    """

    train_set: Dataset[Any] | None = None

    def __init__(
        self,
        *,
        needs: Sequence[str],
        folder: Path | None,
        init: str,
        reading: Reading,
        division: Division,
        batch_size: int,
        workers: int,
        seed: int,
    ) -> None:
        super().__init__(batch_size=batch_size, seed=seed, workers=workers)
        self.needs, self.folder, self.reading, self.division = tuple(needs), folder, reading, division
        self.memory = Memory(reading.memory)
        rule = planning.starting_point(
            init, modality=reading.modality, window=reading.window, ct_window=reading.ct_window
        )
        self.rule = replace(rule, spacing=reading.spacing or rule.spacing, size=reading.size or rule.size)

    @functools.cached_property
    def table(self) -> Table:
        """The CSV, its rows in splits.

        Raises:
            SvdHubError: no such table, or somebody in two splits.
        """
        if self.folder is None:
            raise SvdHubError(
                f"this recipe needs your data. Next: --data my.csv with image,{','.join(self.needs)}[,patient]"
            )
        table = read_table(Path(self.folder), needs=self.needs)
        rows = table.rows if "split" in table.columns else self._drawn(table)
        patients = {split: [row.patient for row in rows if row.split == split] for split in SPLITS}
        check_leakage(patients, hint=_lines_of_shared(rows))
        return replace(table, rows=tuple(rows))

    def _drawn(self, table: Table) -> list[Row]:
        if "patient" not in table.columns:
            warnings.warn(
                f"{table.path} has no column patient: each image is taken for another patient's. If some are of one "
                "patient, training leaks into the evaluation: add the column",
                stacklevel=2,
            )
        drawn = split_by_patient(
            [row.patient for row in table.rows],
            [row.label for row in table.rows],
            share=self.division.val_share,
            seed=self.division.seed,
        )
        return [replace(row, split=split) for row, split in zip(table.rows, drawn, strict=True)]

    def rows(self, split: str) -> list[Row]:
        """Return the rows of "train" or "val", which is what `division.evaluated` says.

        Raises:
            SvdHubError: there are none.
        """
        split = self.division.evaluated if split == "val" else split
        found = [row for row in self.table.rows if row.split == split]
        if not found:
            raise SvdHubError(
                f"{self.table.path}: no row has split {split}; allowed: train and val in some rows each, test in "
                "others. Next: fill the column split in, or leave it out for a split by patient"
            )
        return found

    def counts(self) -> dict[str, tuple[int, int]]:
        """Return by split how many images there are and of how many patients, 0 where the table does not say it."""
        known, rows = "patient" in self.table.columns, {split: self.rows(split) for split in ("train", "val")}
        return {split: (len(r), len({row.patient for row in r}) if known else 0) for split, r in rows.items()}

    @property
    def reader(self) -> Reader:
        """Reads a row."""
        return Reader(table=self.table, modality=self.reading.modality)

    @functools.cached_property
    def extents(self) -> list[Extent]:
        """Size and spacing of each volume of training: a first look at all of them, before anything is trained."""
        found, notes, reader = [], Counter[str](), self.reader
        for row in bar(self.rows("train"), "looking at volumes"):
            image = reader.image(row)
            found.append(Extent(size=image.shape, spacing=image.spacing))
            notes.update(NO_HU for note in image.notes if note.startswith(NO_HU))
        if notes:
            warnings.warn(
                f"{notes.total()} of {len(found)} volumes of training have no value below 0: hardly CT in HU. Where "
                "they are MR: --set data.init_args.reading.modality=MR",
                stacklevel=2,
            )
        return found

    @property
    def exact(self) -> Preprocess:
        """The preprocessing of the result."""
        raise NotImplementedError

    def preprocess(self, *, mean: float, std: float) -> dict[str, Any]:
        """Return the entry's `Preprocess` arguments; it normalises itself, so the task's mean and std are 0 and 1."""
        return asdict(self.exact)

    def values(self) -> Values:
        """Return the range of the normalised values."""
        rule = self.rule
        if rule.statistics != "fixed":
            return Values(low=-2.0, high=2.0, clamped=False)
        low, high = rule.scale or rule.window or (-1024.0, 2048.0)
        mean, std = planning.grey(rule.mean), planning.grey(rule.std)
        first, last = sorted(((low - mean) / std, (high - mean) / std))
        return Values(low=first, high=last, clamped=rule.window is not None)

    def fingerprint(self) -> dict[str, object]:
        """Return what identifies the data of this run: hashes and counts, no path and no patient."""
        rows = self.table.rows
        return {
            "sha256": digest(rows),
            "images": dict(sorted(Counter(row.split for row in rows).items())),
            "patients": len({row.patient for row in rows}),
            "preprocess": asdict(self.exact),
        }

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the shuffled, augmented batches."""
        if self.train_set is None:
            raise SvdHubError("the data are not set up. Next: setup('fit')")
        return self.loader(self.train_set, train=True)


def _lines_of_shared(rows: Sequence[Row]) -> str:
    """Return the first lines whose patient is in several splits, in words."""
    splits: dict[str, set[str]] = {}
    for row in rows:
        splits.setdefault(row.patient, set()).add(row.split)
    lines = sorted(row.line for row in rows if len(splits[row.patient]) > 1)
    return f"lines {', '.join(map(str, lines[:6]))}{', ...' if len(lines) > 6 else ''}" if lines else ""
