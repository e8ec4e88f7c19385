"""What the data modules of detection share: splits, what is left out and counted, batches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader

from ...errors import OptionError, SvdHubError
from ..evaluation.boxes import Truth
from ..seeding import ResumableData
from .annotations import Table
from .boxes import AXES, Boxed, Flip, Picture, collate, for_training

Reader = Callable[[Picture], Tensor]


class BoxData(ResumableData):
    """Pictures with boxes: one split for training, one for evaluation in the run, one for the test behind it.

    A subclass says what is in a split (`table`), where its images are (`pictures_of`) and how one is read (`reader` for
    the run, `raw` for `Preprocess`).

    Args:
        folder: the data set's folder, `--data` on the command line.
        batch_size: images a step, of this process.
        sizes: pixels of the longer side in training, one of them drawn for each image.
        eval_size: pixels of the longer side in evaluation.
        flips: each done for half of the training images.
        splits: names of the splits for training, evaluation and test.
        first: only so many images of each split, those that its table has first; 0 = all.
        partial: True takes the images that are there and counts the others; False refuses a folder that lacks any.
        workers: loader processes.
        seed: of order and augmentation; a recipe's is `run.seed`.
    """

    def __init__(
        self,
        *,
        folder: Path | None,
        batch_size: int,
        sizes: Sequence[int],
        eval_size: int,
        flips: Sequence[Flip],
        splits: tuple[str, str, str],
        first: int,
        partial: bool,
        workers: int,
        seed: int,
    ) -> None:
        super().__init__(batch_size=batch_size, seed=seed, workers=workers)
        if not sizes or min([*sizes, eval_size]) < 1 or first < 0:
            raise OptionError(
                f"sizes={list(sizes)}, eval_size={eval_size}, first={first} are not allowed; allowed: one size or more "
                "of 1 or more pixels, 0 or more images"
            )
        if not set(flips) <= set(AXES) or len(set(flips)) != len(flips):
            raise OptionError(f"flips={list(flips)} are not allowed; allowed: each of {', '.join(AXES)} once at most")
        self.folder, self.sizes, self.eval_size, self.flips = folder, tuple(sizes), eval_size, tuple(flips)
        self.splits = dict(zip(("train", "val", "test"), splits, strict=True))
        self.first, self.partial = first, partial
        self.classes: tuple[str, ...] = ()
        self.facts: dict[str, dict[str, object]] = {}

    def table(self, split: str) -> Table:
        """Return the pictures of a split and the names of the classes."""
        raise NotImplementedError

    def pictures_of(self, split: str) -> Path:
        """Return the folder of a split's images."""
        raise NotImplementedError

    def reader(self, split: str) -> Reader:
        """Return what reads a picture as (1, D, H, W) of 0..255; it can be sent to another process."""
        raise NotImplementedError

    def raw(self, picture: Picture, split: str) -> np.ndarray:
        """Return a picture as `Preprocess` takes it."""
        raise NotImplementedError

    @property
    def root(self) -> Path:
        """The data set's folder."""
        if self.folder is None:
            raise SvdHubError("this recipe needs a data set. Next: add --data FOLDER")
        return Path(self.folder)

    def setup(self, stage: str) -> None:
        """Read the tables of the splits that `stage` ("fit", "validate" or "test") needs."""
        if stage == "fit":
            self.train_set = self._set("train")
        if stage in ("fit", "validate"):
            self.val_set = self._set("val")
        if stage == "test":
            self.test_set = self._set("test")

    def _set(self, role: str) -> Boxed:
        split, train = self.splits[role], role == "train"
        pictures, classes = self.table(split)
        if self.classes not in ((), classes):
            raise SvdHubError(
                f"split {split!r} has other classes than another split: {self.classes} and {classes}. Next: tables of "
                "one data set"
            )
        self.classes = classes
        counts: dict[str, int] = {}
        if train:
            pictures, counts = for_training(pictures)
        # by name: the order of the table's rows changes no number of a run
        pictures = sorted(pictures[: self.first or None], key=lambda picture: picture.file)
        root = self.pictures_of(split)
        sizes = {p.file: file.stat().st_size for p in pictures if (file := root / p.file).is_file()}
        found = [p for p in pictures if p.file in sizes]
        if len(found) < (len(pictures) if not self.partial else 1):
            missing = next((p.file for p in pictures if p.file not in sizes), "none at all")
            raise SvdHubError(
                f"{len(pictures) - len(found)} of {len(pictures)} images of split {split!r} are not in "
                f"{root} (first: {missing}). Next: complete the folder, or take what is there with "
                "--set data.init_args.partial=true"
            )
        digest = hashlib.sha256(repr(classes).encode())
        for picture in found:
            digest.update(f"{picture.file} {sizes[picture.file]} {picture.interval}\n".encode())
            digest.update(b"".join(c.tobytes() for c in (picture.boxes, picture.labels, picture.crowd)))
        kept = {"images": len(found), "boxes": sum(len(p.boxes) for p in found)}
        self.facts[role] = {**counts, **kept, "missing": len(pictures) - len(found), "sha256": digest.hexdigest()}
        drawn: dict[str, Any] = {"sizes": self.sizes, "flips": self.flips} if train else {"sizes": [self.eval_size]}
        return Boxed(found, self.reader(split), seed=self.seed, **drawn)

    def examples(self, role: str = "test") -> Iterator[tuple[dict[str, Any], Truth]]:
        """Yield a split as `Preprocess` takes it, with what is true of it; behind `setup(role)`."""
        for picture in (self.test_set if role == "test" else self.val_set).pictures:
            yield {"image": self.raw(picture, self.splits[role])}, picture.truth()

    def class_names(self) -> tuple[str, ...]:
        """Return the names of the classes, without the background."""
        return self.classes or self.table(self.splits["val"])[1]

    def fingerprint(self) -> dict[str, object]:
        """Return what identifies the data of this run, and how many of what was left out."""
        return {role: self.facts[role] for role in ("train", "val")}

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the shuffled, augmented batches."""
        return self.loader(self.train_set, train=True, collate=collate)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the evaluation split in order."""
        return self.loader(self.val_set, train=False, collate=collate)


def first_there(folder: Path, names: Sequence[str], what: str) -> Path:
    """Return the first of several places under a folder that exists.

    Raises:
        SvdHubError: there is none.
    """
    for name in names:
        if (folder / name).exists():
            return folder / name
    found = sorted(path.name for path in folder.glob("*"))[:8] if folder.is_dir() else "no such folder"
    raise SvdHubError(f"no {what} in {folder}; found: {found}; looked for: {', '.join(names)}. Next: --data FOLDER")
