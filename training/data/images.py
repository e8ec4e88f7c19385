"""Image classification sets in the Hugging Face Parquet form (imagenet-1k, Tiny-ImageNet): columns image, label."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ... import store
from ...errors import OptionError, SvdHubError
from ..seeding import Place, ResumableData, sample_generator
from .packed import PackedImages, pack

Crop = Literal["scaled", "plain"]


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Part of a run: so many epochs at this side length in pixels (progressive resizing)."""

    epochs: int
    size: int

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.size < 1:
            raise OptionError(f"phase of {self.epochs} epochs at {self.size} px is not allowed; allowed: 1 or more")


def random_resized_crop(
    image: Image.Image, size: int, scale: tuple[float, float], random: np.random.Generator
) -> Image.Image:
    """Return a crop of random area and aspect ratio (3/4 to 4/3), resized to size x size, antialiased."""
    width, height = image.size
    for _ in range(10):
        area = width * height * random.uniform(*scale)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if w <= width and h <= height:
            x, y = random.uniform(0, width - w), random.uniform(0, height - h)
            return image.resize((size, size), Image.Resampling.BILINEAR, box=(x, y, x + w, y + h))
    return resize_and_centre_crop(image, size, size)


def random_plain_crop(image: Image.Image, short: int, size: int, random: np.random.Generator) -> Image.Image:
    """Return a random size x size of the image after its short side became `short`, in one resampling."""
    width, height = image.size
    side = min(width, height) * size / short
    x, y = random.uniform(0, width - side), random.uniform(0, height - side)
    return image.resize((size, size), Image.Resampling.BILINEAR, box=(x, y, x + side, y + side))


def resize_and_centre_crop(image: Image.Image, short: int, size: int) -> Image.Image:
    """Return the centre size x size of the image after its short side became `short`, in one resampling."""
    width, height = image.size
    side = min(width, height) * size / short
    x, y = (width - side) / 2, (height - side) / 2
    return image.resize((size, size), Image.Resampling.BILINEAR, box=(x, y, x + side, y + side))


class Images(Dataset[tuple[Tensor, int]]):
    """(epoch, index) -> ((3, S, S) uint8, label). Augmentation depends on (seed, epoch, index) only."""

    def __init__(
        self,
        images: PackedImages,
        phases: Sequence[Phase],
        *,
        train: bool,
        seed: int,
        scale: tuple[float, float],
        crop: Crop,
        shuffle_planes: bool,
        eval_crop: float,
    ) -> None:
        self.images, self.phases, self.train, self.seed = images, tuple(phases), train, seed
        self.scale, self.crop, self.shuffle_planes, self.eval_crop = scale, crop, shuffle_planes, eval_crop

    def __len__(self) -> int:
        return len(self.images)

    def size(self, epoch: int) -> int:
        """Return the side length in pixels of an epoch."""
        for phase in self.phases:
            if epoch < phase.epochs:
                return phase.size
            epoch -= phase.epochs
        return self.phases[-1].size

    def __getitem__(self, place: Place) -> tuple[Tensor, int]:
        epoch, index = place
        image, size = self.images.image(index), self.size(epoch)
        short = round(size / self.eval_crop)
        if not self.train:
            pixels = np.asarray(resize_and_centre_crop(image, short, size))
        else:
            random = sample_generator(self.seed, epoch, index)
            if self.crop == "plain":
                image = random_plain_crop(image, short, size, random)
            else:
                image = random_resized_crop(image, size, self.scale, random)
            pixels = np.asarray(image)
            if random.random() < 0.5:
                pixels = pixels[:, ::-1]
            if self.shuffle_planes:
                pixels = pixels[:, :, random.permutation(3)]
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))), int(self.images.labels[index])


class ImageParquet(ResumableData):
    """Train and validation splits of a Parquet image set.

    Args:
        folder: the data set's folder, `--data` on the command line.
        phases: epochs and side lengths in turn.
        batch_size: images a step, of this process.
        crop: of training: "scaled" = a random share of the image at a random aspect ratio, "plain" = a random square of
            the image after its short side became size / eval_crop.
        scale: range of the share of "scaled".
        shuffle_planes: permute the colour planes of each training image (the official code's rule).
        eval_crop: side of the evaluation crop over the resized short side (224 / 256 for ImageNet, 1 = whole).
        workers: loader processes.
        val_split: name of the split that is evaluated.
        seed: of order and augmentation; a recipe's is `run.seed`.
    """

    def __init__(
        self,
        *,
        phases: list[Phase],
        folder: Path | None = None,
        batch_size: int = 128,
        crop: Crop = "scaled",
        scale: tuple[float, float] = (0.08, 1.0),
        shuffle_planes: bool = True,
        eval_crop: float = 0.875,
        workers: int = 1,
        val_split: str = "val",
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, seed=seed, workers=workers)
        if not phases:
            raise OptionError("phases=[] is not allowed; allowed: one or more of {epochs, size}")
        if not 0 < scale[0] <= scale[1] <= 1 or not 0 < eval_crop <= 1:
            raise OptionError(
                f"scale={scale}, eval_crop={eval_crop} are not allowed; allowed: shares of the image, 0..1"
            )
        self.folder, self.phases, self.val_split = folder, phases, val_split
        self.scale, self.crop, self.shuffle_planes, self.eval_crop = scale, crop, shuffle_planes, eval_crop

    def setup(self, stage: str) -> None:
        """Pack what is not packed yet and read the class names."""
        if self.folder is None:
            raise SvdHubError("this recipe needs a data set. Next: add --data FOLDER")
        folder, cache = Path(self.folder), store.cache_dir() / "data"
        if stage == "fit":
            self.train_set = self._set(pack(folder, "train", cache), train=True)
        self.val_set = self._set(pack(folder, self.val_split, cache), train=False)

    def _set(self, images: PackedImages, *, train: bool) -> Images:
        return Images(
            images,
            self.phases,
            train=train,
            seed=self.seed,
            scale=self.scale,
            crop=self.crop,
            shuffle_planes=self.shuffle_planes,
            eval_crop=self.eval_crop,
        )

    def examples(self) -> Iterator[tuple[dict[str, Any], int]]:
        """Yield the evaluation split as `Preprocess` takes it, with labels."""
        images = self.val_set.images
        for index in range(len(images)):
            yield {"image": np.asarray(images.image(index))}, int(images.labels[index])

    def preprocess(self, *, mean: float, std: float) -> dict[str, Any]:
        """Return the entry's `Preprocess` arguments for the last phase's side length."""
        size = self.phases[-1].size
        side = round(size / self.eval_crop)
        return {"modality": "RGB", "short_side": side, "size": [3, size, size], "mean": mean, "std": std}

    def class_names(self) -> tuple[str, ...]:
        """Return the class names of `classes.json`, () where there is none."""
        file = Path(self.folder or ".") / "classes.json"
        if not file.is_file():
            return ()
        rows = sorted(json.loads(file.read_text()), key=lambda row: row["id"])
        return tuple(row["words"].split(",")[0] for row in rows)

    def fingerprint(self) -> dict[str, object]:
        """Return what identifies the data of this run."""
        return {"train": self.train_set.images.info, "val": self.val_set.images.info}

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the shuffled training batches."""
        return self.loader(self.train_set, train=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the validation batches, at the side length of the epoch."""
        return self.loader(self.val_set, train=False)
