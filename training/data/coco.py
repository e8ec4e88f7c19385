"""COCO 2017 for detection: photographs whose colour planes become the three slices of a volume (paper, III-A)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...errors import SvdHubError
from .annotations import Table, read_coco
from .boxes import Flip, Picture
from .detection import BoxData, Reader, first_there

Planes = Literal["rgb", "bgr"]


class CocoImages(BoxData):
    """COCO's images with boxes of its 80 categories, classes 0 to 79 in the order of their ids.

    The folder holds `train2017/`, `val2017/` (or both under `images/`) and `instances_train2017.json`,
    `instances_val2017.json` (or both under `annotations/`). The default is the official pre-training as far as it is
    known; its configuration was never released. Its batches hold images that are all upright or all wide, ours do not.

    Args:
        planes: the colours of slices 0, 1, 2. The authors' shared loader makes blue, green, red of them (inferred from
            urmagicsmine/MP3D@08e5ace mmdet/datasets/pipelines/transforms.py); `Preprocess` red, green, blue.
        year: of the names in the folder.
        train_split, val_split, test_split: of `train`, `val`; COCO's own test split has no public boxes.
        folder, batch_size, sizes, eval_size, flips, first, partial, workers, seed: see `BoxData`.
    """

    def __init__(
        self,
        *,
        folder: Path | None = None,
        batch_size: int = 2,
        sizes: Sequence[int] = (384, 448, 512, 576, 640),
        eval_size: int = 640,
        flips: Sequence[Flip] = ("horizontal",),
        planes: Planes = "rgb",
        year: str = "2017",
        train_split: str = "train",
        val_split: str = "val",
        test_split: str = "val",
        first: int = 0,
        partial: bool = False,
        workers: int = 4,
        seed: int = 0,
    ) -> None:
        super().__init__(
            folder=folder,
            batch_size=batch_size,
            sizes=sizes,
            eval_size=eval_size,
            flips=flips,
            splits=(train_split, val_split, test_split),
            first=first,
            partial=partial,
            workers=workers,
            seed=seed,
        )
        self.planes, self.year = planes, year

    def table(self, split: str) -> Table:
        """Return what `instances_SPLIT.json` says."""
        name = f"instances_{split}{self.year}.json"
        return read_coco(first_there(self.root, (f"annotations/{name}", name), "table of boxes"))

    def pictures_of(self, split: str) -> Path:
        """Return the folder of the split's pictures."""
        name = f"{split}{self.year}"
        return first_there(self.root, (name, f"images/{name}"), "pictures")

    def reader(self, split: str) -> Reader:
        """Return what reads a picture as its three planes."""
        return functools.partial(read_planes, self.pictures_of(split), planes=self.planes)

    def raw(self, picture: Picture, split: str) -> np.ndarray:
        """Return a picture (H, W, 3); `Preprocess` makes its colours planes in their order."""
        return read_picture(self.pictures_of(split), picture, self.planes)

    def preprocess(self, *, mean: float, std: float) -> dict[str, Any]:
        """Return the entry's `Preprocess` arguments: a picture as it is; `inference` says its size."""
        note = f"longer side {min(self.sizes)} to {max(self.sizes)} px in training"
        if self.planes == "bgr":
            note += "; trained on planes B, G, R: give the picture with its colours reversed"
        return {"modality": "RGB", "mean": mean, "std": std, "note": note}

    def inference(self) -> dict[str, Any]:
        """Return what pictures are resized to."""
        return {"side": self.eval_size}


def read_picture(root: Path, picture: Picture, planes: Planes) -> np.ndarray:
    """Return a picture (H, W, 3) uint8, its colours in the order of the planes.

    Raises:
        SvdHubError: it cannot be decoded, or has another size than its table says.
    """
    try:
        with Image.open(root / picture.file) as image:
            pixels = np.asarray(image.convert("RGB"))
    except OSError as error:
        raise SvdHubError(f"{root / picture.file} cannot be decoded: {error}. Next: fetch that image again") from error
    check_size(root / picture.file, pixels.shape[:2], picture.size)
    return pixels if planes == "rgb" else pixels[:, :, ::-1]


def read_planes(root: Path, picture: Picture, *, planes: Planes) -> Tensor:
    """Return a picture as a volume (1, 3, H, W) of 0..255, float32."""
    pixels = read_picture(root, picture, planes)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None].float()


def check_size(file: Path, found: Sequence[int], told: tuple[int, int]) -> None:
    """Raise `SvdHubError` unless an image has the (height, width) that its boxes were drawn on."""
    if tuple(found) != told:
        raise SvdHubError(
            f"{file} has {found[1]} x {found[0]} pixels, its boxes are for {told[1]} x {told[0]}: they would not fit. "
            "Next: images and table of one data set, neither of them resized"
        )
