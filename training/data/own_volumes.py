"""A user's own volumes with a label each, whole: for classification."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ...errors import OptionError, SvdHubError
from ...preprocess import Preprocess
from ..seeding import Place, sample_generator
from . import planning
from .kept import Kept
from .own import Division, OwnData, Reader, Reading
from .patches import Augmentation, Triple, Values, changed, check_axes
from .table import Row, class_order


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What a volume of training meets.

    Attributes:
        shift: moved by up to half this share of each side, either way.
        flip: axes of "DHW" that are mirrored half of the time; leave W out where left and right are classes.
        quarter_turns: turned by 0 to 3 quarters in the plane of H and W; by 0 or 2 where these differ.
        contrast, brightness, noise: see `Augmentation`, of the 0..255 scale.
    """

    shift: float = 0.2
    flip: str = "DHW"
    quarter_turns: bool = True
    contrast: float = 0.1
    brightness: float = 10.0
    noise: float = 5.0

    def __post_init__(self) -> None:
        if not 0 <= self.shift < 1:
            raise OptionError(f"changes.shift={self.shift} is not allowed; allowed: 0 or more, below 1")
        check_axes("changes.flip", self.flip)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Makes the network's input (1, D, H, W) of row k, with `margin` voxels more along each axis to be moved in."""

    reader: Reader
    rows: tuple[Row, ...]
    rule: Preprocess
    margin: Triple

    def __call__(self, k: int) -> Tensor:
        rule = self.rule
        resized = rule.fit == "resize"
        if not resized:
            d, h, w = (n + m for n, m in zip(rule.size or (1, 1, 1), self.margin, strict=True))
            rule = replace(rule, size=(d, h, w))
        _, x = self.reader.prepared(self.rows[k], rule)
        if resized and any(self.margin):  # beyond its edges there is nothing more to see
            x = F.pad(x, [part for m in reversed(self.margin) for part in (m // 2, m - m // 2)], mode="replicate")
        return x[0]


class Volumes(Dataset[tuple[Tensor, int]]):
    """(epoch, index) -> ((1, D, H, W), label): a volume as it is, or in training near its middle, and changed."""

    def __init__(
        self,
        inputs: Sequence[Tensor],
        labels: Sequence[int],
        *,
        size: Triple,
        changes: Changes | None,
        values: Values,
        seed: int,
    ) -> None:
        self.inputs, self.labels, self.size = inputs, list(labels), size
        self.changes, self.values, self.seed = changes, values, seed

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, place: Place) -> tuple[Tensor, int]:
        epoch, index = place
        x, rule = self.inputs[index], self.changes
        if rule is None:
            return x, self.labels[index]
        random = sample_generator(self.seed, epoch, index)
        corner = [int(random.integers(0, n - s + 1)) for n, s in zip(x.shape[1:], self.size, strict=True)]
        x = x[:, *(slice(c, c + s) for c, s in zip(corner, self.size, strict=True))]
        x = x.flip([1 + "DHW".index(axis) for axis in rule.flip if random.random() < 0.5])
        if rule.quarter_turns:
            turns = int(random.integers(0, 4))
            x = torch.rot90(x, turns if self.size[1] == self.size[2] else 2 * (turns % 2), (2, 3))
        noise = Augmentation(contrast=rule.contrast, brightness=rule.brightness, noise=rule.noise)
        return changed(x.contiguous(), random, noise, self.values), self.labels[index]


class OwnVolumes(OwnData):
    """Whole volumes, each with a label; see `OwnData`.

    Args:
        classes: the labels in the order of the network's outputs; None = all in the table: numbers by their size, other
            text by the alphabet.
        changes: of training.
    """

    def __init__(
        self,
        *,
        folder: Path | None = None,
        init: str = "none",
        reading: Reading = Reading(),  # noqa: B008  frozen
        division: Division = Division(),  # noqa: B008
        classes: list[str] | None = None,
        changes: Changes = Changes(),
        batch_size: int = 8,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(
            needs=("label",),
            folder=folder,
            init=init,
            reading=reading,
            division=division,
            batch_size=batch_size,
            workers=workers,
            seed=seed,
        )
        self.classes, self.changes = classes, changes

    @functools.cached_property
    def exact(self) -> Preprocess:
        """The preprocessing of the result, of one size."""
        known = self.rule.size is not None and (self.rule.spacing is not None or self.rule.fit == "resize")
        extents = [] if known else self.extents
        fixed = self.reading.spacing is not None
        return planning.whole_volumes(self.rule, extents, voxels=self.reading.voxels, fixed=fixed)

    def class_names(self) -> tuple[str, ...]:
        """Return the labels in the order of the outputs.

        Raises:
            SvdHubError: one label only, or another than `classes`.
        """
        table = self.table
        found = class_order([row.label for row in table.rows])
        if len(found) < 2:
            raise SvdHubError(
                f"{table.path}: all {len(table.rows)} rows have the label {found[0]!r}; allowed: two labels or more. "
                "Next: give images with another label too"
            )
        names = tuple(self.classes or found)
        if unknown := [row for row in table.rows if row.label not in names]:
            raise SvdHubError(
                f"{table.at(unknown[0])}: the label {unknown[0].label!r} is none of classes={list(names)}. Next: name "
                "it there"
            )
        return names

    def class_counts(self) -> list[int]:
        """Return how many volumes of training each class has.

        Raises:
            SvdHubError: one of them none.
        """
        found, names = Counter(row.label for row in self.rows("train")), self.class_names()
        if missing := [name for name in names if not found[name]]:
            raise SvdHubError(
                f"{self.table.path}: no row with label {', '.join(map(repr, missing))} is in the split train, so it "
                "cannot be learnt. Next: another split, or leave the label out"
            )
        return [found[name] for name in names]

    def fills(self) -> dict[str, Any]:
        """Return what a recipe's task takes from the data where the recipe leaves it open."""
        return {"network.options.num_classes": len(self.class_names())}

    def setup(self, stage: str) -> None:
        """Read and resample the volumes for training; evaluation goes by `examples`."""
        if stage != "fit":
            self.val_set: Any = self.rows("val")
        elif self.train_set is None:
            self.class_counts()
            self.train_set, self.val_set = self._set("train"), self._set("val")

    def _set(self, split: str) -> Volumes:
        rows, names, size = tuple(self.rows(split)), self.class_names(), self.exact.size or (1, 1, 1)
        changes = self.changes if split == "train" else None
        d, h, w = (2 * round(changes.shift * n / 2) if changes else 0 for n in size)
        inputs = Inputs(reader=self.reader, rows=rows, rule=self.exact, margin=(d, h, w))
        return Volumes(
            Kept(inputs, len(rows), self.memory),
            [names.index(row.label) for row in rows],
            size=size,
            changes=changes,
            values=self.values(),
            seed=self.seed,
        )

    def examples(self) -> Iterator[tuple[dict[str, Any], int]]:
        """Yield the evaluation split as `Preprocess` takes it, with labels."""
        reader, names, orientation = self.reader, self.class_names(), planning.ORIENTATION
        for row in self.rows("val"):
            image = reader.image(row)
            example = {"image": image.array, "spacing": image.spacing, "orientation": orientation}
            yield example, names.index(row.label)

    def fingerprint(self) -> dict[str, object]:
        """Return what identifies the data of this run."""
        return {**super().fingerprint(), "classes": list(self.class_names()), "class_counts": self.class_counts()}

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the volumes of evaluation in order."""
        return self.loader(self.val_set, train=False)
