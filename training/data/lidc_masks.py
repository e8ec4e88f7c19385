"""LIDC nodules with their masks, as cubes of one size: from NIfTI pairs with a CSV, or the ACS authors' npz set."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ... import images
from ...errors import OptionError, SvdHubError
from ...preprocess import Preprocess
from ...volume import Volume
from ..console import bar
from ..seeding import Place, ResumableData, sample_generator
from . import lidc, lidc_acs
from .lidc_acs import Split, hounsfield, middle, turned
from .organs import labels_on, network_grid
from .patches import Case
from .splits import check_leakage

KNOWN = torch.ones(2, dtype=torch.bool)
Pair = tuple[Tensor, Tensor]  # (S, S, S) of 0..255, and the mask


class MaskedCubes(Dataset[tuple[Tensor, ...]]):
    """(epoch, index) -> cube (1, S, S, S) of 0..255 and mask (S, S, S), turned alike in training; else with `known`."""

    def __init__(self, pairs: Sequence[Pair], *, size: int, train: bool, seed: int) -> None:
        self.pairs, self.size, self.train, self.seed = pairs, size, train, seed

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, place: Place) -> tuple[Tensor, ...]:
        epoch, index = place
        x, mask = self.pairs[index]
        if not self.train:
            return x[None], mask.long(), KNOWN
        random = sample_generator(self.seed, epoch, index)
        room = x.shape[-1] - self.size
        cut = tuple(slice(c := int(random.integers(0, room + 1)), c + self.size) for _ in range(3))
        x, mask = turned(random, x[cut], mask[cut])
        return x[None], mask.long()


class MaskedNodules(ResumableData):
    """What both forms share; a nodule is class 1.

    Args:
        folder: of the set, `--data` on the command line.
        size: voxels of the cube at 1 mm that the network sees.
        margin: voxels of random shift in training, in all.
        window: HU, mapped to 0..255.
    """

    def __init__(
        self,
        *,
        folder: Path | None,
        size: int,
        margin: int,
        window: tuple[float, float],
        batch_size: int,
        workers: int,
        seed: int,
    ) -> None:
        super().__init__(batch_size=batch_size, seed=seed, workers=workers)
        if size < 1 or margin < 0:
            raise OptionError(f"size={size}, margin={margin} are not allowed; allowed: above 0, and 0 or more")
        self.folder, self.size, self.margin = folder, size, margin
        self.exact = Preprocess(
            modality="CT", spacing=(1.0, 1.0, 1.0), window=window, scale=(0.0, 255.0), size=(size,) * 3
        )

    @property
    def root(self) -> Path:
        """The set's folder."""
        if self.folder is None:
            raise SvdHubError("this recipe needs a data set. Next: add --data FOLDER")
        return Path(self.folder)

    def names(self, *, train: bool) -> list[str]:
        """Return the nodules of training or of evaluation."""
        raise NotImplementedError

    def pair(self, name: str, side: int) -> Pair:
        """Return the middle cube of a nodule and its mask."""
        raise NotImplementedError

    def image(self, name: str) -> dict[str, Any]:
        """Return a nodule as `Preprocess` takes it."""
        raise NotImplementedError

    @property
    def val_cases(self) -> list[str]:
        """The nodules of evaluation."""
        return self.names(train=False)

    def setup(self, stage: str) -> None:
        """Read the cubes into memory (two bytes a voxel of the npz set, five of NIfTI)."""
        if stage == "fit" and not hasattr(self, "train_set"):
            self.train_set = self._cubes(train=True)
        if not hasattr(self, "val_set"):
            self.val_set = self._cubes(train=False)

    def _cubes(self, *, train: bool) -> MaskedCubes:
        side = self.size + self.margin * train
        pairs = [self.pair(name, side) for name in bar(self.names(train=train), "reading nodules")]
        return MaskedCubes(pairs, size=self.size, train=train, seed=self.seed)

    def examples(self) -> Iterator[tuple[dict[str, Any], Case]]:
        """Yield the nodules of evaluation as `Preprocess` takes them, with their masks on its grid."""
        for name in self.val_cases:
            x, mask = self.pair(name, self.size)
            yield self.image(name), Case(name=name, image=x[None], target=mask.long(), known=KNOWN)

    def preprocess(self, *, mean: float, std: float) -> dict[str, Any]:
        """Return the entry's `Preprocess` arguments: whole volumes, a cube large or more."""
        return {**asdict(self.exact), "mean": mean, "std": std, "size": None, "minimum": (self.size,) * 3}

    def class_names(self) -> tuple[str, ...]:
        """Return the names of the classes."""
        return ("background", "nodule")

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the shuffled, turned batches."""
        return self.loader(self.train_set, train=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the middle of each nodule."""
        return self.loader(self.val_set, train=False)


@functools.lru_cache(maxsize=4096)
def _pair(root: Path, name: str, stamps: tuple[lidc.Stamp, ...], exact: Preprocess, side: int) -> Pair:
    """Read a crop and its mask onto one cube; runs of one process, as of a study, read each once."""
    array, spacing = lidc.read_crop(root, name)
    drawn, _ = lidc.read_crop(root, name, "masks")
    if drawn.shape != array.shape:
        raise SvdHubError(f"{name}: the mask is {drawn.shape}, the image {array.shape}; allowed: one grid")
    x = replace(exact, size=None)(array, spacing=spacing)
    labels = Volume.from_array((drawn != 0).astype(np.uint8), spacing=spacing) if drawn.any() else None
    there = np.zeros(x.shape[2:], np.uint8)
    if labels is not None:
        there = labels_on(labels, network_grid(labels.grid, x.shape[2:])).astype(np.uint8)
    mask = images.fitted(torch.from_numpy(there)[None, None], (side,) * 3, 0.0)
    return images.fitted(x, (side,) * 3, 0.0)[0, 0], mask[0, 0]


class LidcMasks(MaskedNodules):
    """NIfTI pairs: `images/NAME.nii.gz`, `masks/NAME.nii.gz` and `nodules.csv`; undecided nodules are used too.

    Args:
        train_folds, val_folds: patient-level folds; a fold in both is refused.
    """

    def __init__(
        self,
        *,
        train_folds: list[int],
        val_folds: list[int],
        folder: Path | None = None,
        size: int = 32,
        margin: int = 8,
        window: tuple[float, float] = (-1000.0, 400.0),
        batch_size: int = 8,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(
            folder=folder,
            size=size,
            margin=margin,
            window=window,
            batch_size=batch_size,
            workers=workers,
            seed=seed,
        )
        check_leakage({"train_folds": train_folds, "val_folds": val_folds}, what="folds")
        self.folds = {True: train_folds, False: val_folds}

    def names(self, *, train: bool) -> list[str]:
        """Return the nodules of the folds.

        Raises:
            SvdHubError: there are none.
        """
        found = [row.name for row in lidc.read_nodules(self.root) if row.fold in self.folds[train]]
        if not found:
            raise SvdHubError(f"no nodules of folds {self.folds[train]} in {self.root}")
        return found

    def image(self, name: str) -> dict[str, Any]:
        """Return a nodule's crop in HU."""
        array, spacing = lidc.read_crop(self.root, name)
        return {"image": array, "spacing": spacing}

    def scored_cases(self) -> list[tuple[str, str]]:
        """Return the nodules of evaluation with their patients, in order."""
        rows = lidc.read_nodules(self.root)
        return [(row.name, row.patient) for row in rows if row.fold in self.folds[False]]

    def pair(self, name: str, side: int) -> Pair:
        """Return the middle of a crop at 1 mm, and of its mask by the nearest voxel."""
        files = [lidc.crop_file(self.root, name, kind) for kind in ("images", "masks")]
        return _pair(self.root, name, tuple(lidc.stamp(file) for file in files), self.exact, side)

    def fingerprint(self) -> dict[str, object]:
        """Return what identifies the data of this run."""
        used = {*self.folds[True], *self.folds[False]}
        rows = [row for row in lidc.read_nodules(self.root) if row.fold in used]
        found = lidc.digest(self.root, rows, ("images", "masks"))
        return {"sha256": found, "train_folds": self.folds[True], "val_folds": self.folds[False]}


class AcsMasks(MaskedNodules):
    """The npz set, all its nodules; see `lidc_acs.read_split`. The mask is the first reader's, `answer1`.

    Args:
        split: with "official", nodules that the test list has twice count twice, as in the published numbers.
    """

    def __init__(
        self,
        *,
        folder: Path | None = None,
        split: Split = "checked",
        size: int = 48,
        move: int = 5,
        batch_size: int = 32,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        lidc_acs.check_sides(size, move)
        super().__init__(
            folder=folder,
            size=size,
            margin=2 * move,
            window=lidc_acs.WINDOW,
            batch_size=batch_size,
            workers=workers,
            seed=seed,
        )
        self.split = split

    def names(self, *, train: bool) -> list[str]:
        """Return the nodules of the split, by name."""
        return [row.name for row in self._readings(train=train)]

    def _readings(self, *, train: bool) -> list[lidc_acs.Reading]:
        found = lidc_acs.by_name(lidc_acs.read_split(self.root, self.split)["train" if train else "test"])
        return found if self.split == "official" else list(dict.fromkeys(found))

    def image(self, name: str) -> dict[str, Any]:
        """Return a nodule's cube in HU."""
        (voxel,) = lidc_acs.read_nodule(self.root, name, "voxel")
        return {"image": hounsfield(voxel), "spacing": (1.0, 1.0, 1.0)}

    def pair(self, name: str, side: int) -> Pair:
        """Return the middle of a cube, as it is stored, and of its mask."""
        voxel, answer = lidc_acs.read_nodule(self.root, name, "voxel", "answer1")
        mask = middle((answer != 0).astype(np.uint8), side)
        return torch.from_numpy(middle(voxel, side)), torch.from_numpy(mask)

    def fingerprint(self) -> dict[str, object]:
        """Return what identifies the data of this run."""
        rows = {train: self._readings(train=train) for train in (True, False)}
        found = lidc_acs.digest(self.root, rows[True], rows[False])
        return {"sha256": found, "split": self.split, "nodules": [len(rows[True]), len(rows[False])]}
