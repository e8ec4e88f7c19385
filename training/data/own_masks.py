"""A user's own volumes with their masks: patches for training, whole volumes for evaluation."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader

from ...errors import OptionError, SvdHubError
from ...preprocess import Preprocess
from ...volume import Grid, Volume
from ..console import bar
from ..seeding import EpochSampler
from . import planning
from .kept import Kept
from .organs import classes_on
from .own import Division, OwnData, Reader, Reading
from .patches import STANDARD, Augmentation, Case, Patches, Triple, Whole, places_of
from .planning import Extent
from .table import Row

OtherGrids = Literal["refuse", "resample"]
MOST_CLASSES = 256  # different values in the masks; an image given as a mask has more
MOST_PLACES = 4096  # voxels of each class and volume that patches are centred on
BELOW_A_VOXEL = 0.5  # how far, in voxels, the corners of a mask may be from its image's: headers are rounded


@dataclass(frozen=True, kw_only=True)
class Cases:
    """Makes the case of row k on the network's grid."""

    reader: Reader
    rows: tuple[Row, ...]
    rule: Preprocess
    classes: Mapping[str, Sequence[int]]
    other_grids: OtherGrids

    def __call__(self, k: int) -> Case:
        row = self.rows[k]
        (image, prepared), mask = self.reader.prepared(row, self.rule), self.reader.mask(row)
        check_place(self.reader.table.at(row), image, mask, other_grids=self.other_grids)
        x = prepared[0]
        target = classes_on(mask, image, x.shape[1:], self.rule.orientation or planning.ORIENTATION, self.classes)
        known = torch.ones(len(self.classes) + 1, dtype=torch.bool)
        return Case(name=f"line {row.line}", image=x, target=torch.from_numpy(target), known=known)


def check_place(where: str, image: Volume, mask: Volume, *, other_grids: OtherGrids) -> None:
    """Refuse a mask that is not on its image's grid, or lies beside it.

    Another grid is refused even where both overlap, unless it was asked for: a mask of another patient overlaps, too,
    because most data sets put every volume at about one origin, and training on it would be silently wrong.

    Raises:
        SvdHubError: size, spacing, origin or direction differ by more than rounding; or nothing of the mask is within
            the image.
    """
    if other_grids == "refuse" and not mask.grid.is_like(image.grid, BELOW_A_VOXEL * min(image.spacing)):
        cause = "its header is not the image's: write it with that" if mask.shape == image.shape else "check the pair"
        raise SvdHubError(
            f"{where}: the mask is not on the image's grid, as axes to superior, posterior, left: mask "
            f"{_told(mask.grid)}; image {_told(image.grid)}. Next: {cause}; or, where both are of one scan, --set "
            "data.init_args.other_grids=resample"
        )
    places = np.argwhere(mask.array != 0)
    at = image.grid.indices(mask.grid.points(places[:: max(1, len(places) // 10_000)]))
    inside = ((at > -0.5) & (at < np.asarray(image.shape) - 0.5)).all(-1)
    if len(places) and not inside.any():
        raise SvdHubError(
            f"{where}: nothing of the mask lies within the image. Next: check that both are of one patient and scan"
        )


def _told(grid: Grid) -> str:
    numbers = (grid.size, grid.spacing, grid.origin)
    size, spacing, origin = (" x ".join(f"{value:g}" for value in three) for three in numbers)
    turned = (
        ""
        if np.allclose(grid.direction, np.eye(3).ravel(), atol=1e-4)
        else (f", direction {' '.join(f'{value:.4g}' for value in grid.direction)}")
    )
    return f"{size} voxels of {spacing} mm, origin {origin.replace(' x ', ', ')}{turned}"


def label_values(where: str, mask: Volume) -> set[int]:
    """Return the values of a mask but 0.

    Raises:
        SvdHubError: a value that is no whole number, or more values than a mask has.
    """
    found = np.unique(mask.array)
    if (found != np.rint(found)).any() or len(found) > MOST_CLASSES or found.min() < 0:
        raise SvdHubError(
            f"{where}: the mask has {len(found)} different values, {found.min():g} to {found.max():g}; allowed: whole "
            f"numbers from 0, the background, and {MOST_CLASSES} of them at most. Next: give the mask, not an image"
        )
    return {int(value) for value in found} - {0}


class OwnMasks(OwnData):
    """Volumes with masks; see `OwnData`. The table needs `mask` and no `label`.

    Args:
        classes: class -> its values in the masks, in the order of the outputs behind the background; None = each value
            that the masks have is a class. Values that are not named are background.
        other_grids: what becomes of a mask whose grid is not its image's: "resample" brings it there by its place in
            the patient, for masks that were drawn on another resolution or written cropped.
        patches: an epoch has so many.
        augmentation: of the patches; flip is "" where left and right are classes.
    """

    def __init__(
        self,
        *,
        folder: Path | None = None,
        init: str = "none",
        reading: Reading = Reading(voxels=64**3),  # noqa: B008  frozen
        division: Division = Division(),  # noqa: B008
        classes: dict[str, list[int]] | None = None,
        other_grids: OtherGrids = "refuse",
        patches: int = 200,
        augmentation: Augmentation = STANDARD,
        batch_size: int = 2,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(
            needs=("mask",),
            folder=folder,
            init=init,
            reading=reading,
            division=division,
            batch_size=batch_size,
            workers=workers,
            seed=seed,
        )
        if patches < 1:
            raise OptionError(f"patches={patches} is not allowed; allowed: 1 or more")
        self.other_grids: OtherGrids = other_grids
        self.given, self.patches, self.augmentation = classes, patches, augmentation

    @functools.cached_property
    def classes(self) -> dict[str, list[int]]:
        """Class -> its values in the masks.

        Raises:
            SvdHubError: the masks are empty, or have nothing of a class.
        """
        found: set[int] = set()
        for row in bar([*self.rows("train"), *self.rows("val")], "looking at masks"):
            found |= label_values(self.table.at(row), self.reader.mask(row))
        if not found:
            raise SvdHubError(f"{self.table.path}: the masks are empty; allowed: values above 0 in some of them")
        if self.given is None:
            return {f"label {value}": [value] for value in sorted(found)}
        if missing := [name for name, values in self.given.items() if not found & set(values)]:
            raise SvdHubError(
                f"{self.table.path}: no mask has a value of {', '.join(missing)}; found: {sorted(found)}. Next: "
                "--set 'data.init_args.classes={\"name\": [value]}'"
            )
        return self.given

    @functools.cached_property
    def plan(self) -> tuple[Preprocess, Triple]:
        """The rule for whole volumes, and the (D, H, W) of a patch."""
        size, known = self.reading.size, self.rule.spacing is not None and self.reading.size is not None
        extents: list[Extent] = [] if known else self.extents
        return planning.patches(self.rule, extents, size=size, voxels=self.reading.voxels)

    @property
    def exact(self) -> Preprocess:
        """The preprocessing of the result: whole volumes, one patch large or more."""
        rule, size = self.plan
        return replace(rule, minimum=size)

    def class_names(self) -> tuple[str, ...]:
        """Return the names of the classes."""
        return ("background", *self.classes)

    def fills(self) -> dict[str, Any]:
        """Return what a recipe's task takes from the data where the recipe leaves it open."""
        names, size, values = list(self.classes), self.plan[1], self.values()
        found = {"network.options.num_classes": len(names) + 1, "organs": names, "window": size}
        return {**found, "pad": values.low} if values.clamped else found

    @property
    def val_cases(self) -> list[Row]:
        """The volumes of evaluation."""
        return self.rows("val")

    def _cases(self, split: str) -> Cases:
        return Cases(
            reader=self.reader,
            rows=tuple(self.rows(split)),
            rule=self.plan[0],
            classes=self.classes,
            other_grids=self.other_grids,
        )

    def setup(self, stage: str) -> None:
        """Read and resample the volumes for training; evaluation goes by `examples`."""
        if stage != "fit" or self.train_set is not None:
            return
        train, val = self._cases("train"), self._cases("val")
        cases = Kept(train, len(train.rows), self.memory)
        places = [places_of(case, MOST_PLACES) for case in bar(cases, "finding classes", total=len(cases))]
        missing = set(range(1, len(self.classes) + 1)) - {k for case in cases for k in case.target.unique().tolist()}
        if missing:
            names = ", ".join(list(self.classes)[k - 1] for k in sorted(missing))
            raise SvdHubError(
                f"{self.table.path}: no mask of training has anything of {names} at {self.exact.spacing} mm. Next: "
                "another split, a finer reading.spacing, or leave the class out"
            )
        self.train_set = Patches(
            cases,
            count=self.patches,
            size=self.plan[1],
            rule=self.augmentation,
            seed=self.seed,
            values=self.values(),
            places=places,
        )
        self.val_set = Whole(Kept(val, len(val.rows), self.memory))

    def examples(self) -> Iterator[tuple[dict[str, Any], Case]]:
        """Yield the evaluation volumes as `Preprocess` takes them, with their classes on its grid (unpadded)."""
        cases = self._cases("val")
        for k, row in enumerate(cases.rows):
            image = self.reader.image(row)
            example = {"image": image.array, "spacing": image.spacing, "orientation": planning.ORIENTATION}
            yield example, cases(k)

    def fingerprint(self) -> dict[str, object]:
        """Return what identifies the data of this run."""
        return {**super().fingerprint(), "classes": self.classes}

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the whole volumes, one at a time: their sides differ."""
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        sampler = EpochSampler(len(self.val_set), seed=self.seed, shuffle=False, rank=rank, world=world)
        return DataLoader(self.val_set, sampler=sampler, batch_size=1, num_workers=0)
