"""DeepLesion: lesions on key slices of CT, seen with the slices about them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...errors import OptionError, SvdHubError
from .annotations import Table, read_coco, read_nih
from .boxes import Flip, Picture
from .coco import check_size
from .detection import BoxData, Reader, first_there
from .slices import Rule, read_stack

Form = Literal["json", "nih", "jpeg"]
CLASS = "lesion"
JPEG_HU = (-1024.0, 3071.0)  # what 0 and 255 are in the JPEG samples: their README, "A = -1024 and B = 3071"


class DeepLesionSlices(BoxData):
    """Key slices with their neighbours as (slices, H, W), one class of objects; splits are by patient.

    Three forms of the data set:

    - "json": `deeplesion_{train,val,test}.json` (urmagicsmine/MVP-Net@07bf003; also under `annotation/` or
      `annotations/`), and NIH's 16-bit slices, `Images_png/000001_01_01/109.png`.
    - "nih": NIH's `DL_info.csv` and the same slices. Boxes, splits and distances are those of "json".
    - "jpeg": the few 8-bit key slices that are about (`instances_{train,test}.json`, `train/`, `test/`). They have no
      neighbours: the key slice stands for all of the stack. It shows that a run works, and nothing about lesions.

    Args:
        form: see above.
        slices: of the stack, an odd number.
        spacing: mm between them; stored ones are up to 5 mm apart.
        interpolation: how slices between stored ones are made, "exact" or "official": see `slices.parts`.
        window: HU, mapped to 0..255.
        noisy: False leaves the boxes out that NIH marks as possibly noisy, in all splits. The authors keep them.
        shared_patients: True allows patients that are in training and in evaluation.
        train_split, val_split, test_split: of the three above.
        folder, batch_size, sizes, eval_size, flips, first, partial, workers, seed: see `BoxData`. "depth" among the
            flips turns the order of the slices, the authors' z-flip.
    """

    def __init__(
        self,
        *,
        folder: Path | None = None,
        form: Form = "json",
        batch_size: int = 2,
        slices: int = 9,
        spacing: float = 2.5,
        interpolation: Rule = "exact",
        window: tuple[float, float] = (-1024.0, 1050.0),
        noisy: bool = True,
        shared_patients: bool = False,
        sizes: Sequence[int] = (384, 448, 512, 576, 640),
        eval_size: int = 512,
        flips: Sequence[Flip] = ("horizontal", "depth"),
        train_split: str = "train",
        val_split: str = "val",
        test_split: str = "test",
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
        if slices < 1 or slices % 2 == 0 or not spacing > 0 or not window[0] < window[1]:
            raise OptionError(
                f"slices={slices}, spacing={spacing}, window={window} are not allowed; allowed: an odd number of "
                "slices, a distance above 0 mm, (low, high) in HU"
            )
        self.form, self.slices, self.spacing, self.window = form, slices, spacing, window
        self.interpolation, self.noisy, self.shared_patients = interpolation, noisy, shared_patients

    def setup(self, stage: str) -> None:
        """Read the tables, and refuse splits that share patients."""
        super().setup(stage)
        if stage != "fit" or self.shared_patients or self.splits["train"] == self.splits["val"]:
            return
        patients = [{patient_of(p) for p in part.pictures} for part in (self.train_set, self.val_set)]
        if both := patients[0] & patients[1]:
            raise SvdHubError(
                f"patients {sorted(both)[:5]} ({len(both)} in all) are in training and in evaluation, which flatters "
                "the result; allowed: splits by patient, or --set data.init_args.shared_patients=true"
            )

    def table(self, split: str) -> Table:
        """Return what the tables say of a split; all kinds of lesions are one class."""
        if self.form == "nih":
            return read_nih(self.root / "DL_info.csv", split, one_class=CLASS, noisy=self.noisy)
        name = f"{'deeplesion' if self.form == 'json' else 'instances'}_{split}.json"
        names = (name, f"annotation/{name}", f"annotations/{name}")
        file = first_there(self.root, names, f"table of boxes of the form {self.form!r}")
        return read_coco(file, one_class=CLASS, noisy=self.noisy, own_area=False)

    def pictures_of(self, split: str) -> Path:
        """Return the folder of the slices; NIH's archives bring one `Images_png` each."""
        if self.form == "jpeg":
            return self.root / split
        return first_there(self.root, ("Images_png/Images_png", "Images_png"), "16-bit slices")

    def reader(self, split: str) -> Reader:
        """Return what reads a stack in the window's scale."""
        return functools.partial(read_windowed, self._stack(split), window=self.window)

    def raw(self, picture: Picture, split: str) -> np.ndarray:
        """Return a stack (slices, H, W) in HU."""
        found: np.ndarray = self._stack(split)(picture)
        return found

    def _stack(self, split: str) -> functools.partial[np.ndarray]:
        root = self.pictures_of(split)
        if self.form == "jpeg":
            return functools.partial(read_repeated, root, slices=self.slices)
        return functools.partial(read_slices, root, slices=self.slices, spacing=self.spacing, rule=self.interpolation)

    def preprocess(self, *, mean: float, std: float) -> dict[str, Any]:
        """Return the entry's `Preprocess` arguments; `inference` says how stacks are made."""
        return {"modality": "CT", "window": self.window, "scale": (0.0, 255.0), "mean": mean, "std": std}

    def inference(self) -> dict[str, Any]:
        """Return how stacks are made about a key slice."""
        return {"slices": self.slices, "slice_spacing": self.spacing, "side": self.eval_size}


def patient_of(picture: Picture) -> str:
    """Return the patient's number, the first part of a name as NIH gives it (patient, study, series, slice)."""
    return picture.file.split("_")[0]


def read_windowed(stack: functools.partial[np.ndarray], picture: Picture, *, window: tuple[float, float]) -> Tensor:
    """Return a stack (1, slices, H, W), its window's HU on 0..255, float32."""
    low, high = window
    return torch.from_numpy((stack(picture).clip(low, high) - low) / (high - low) * 255)[None]


def read_slices(root: Path, picture: Picture, *, slices: int, spacing: float, rule: Rule) -> np.ndarray:
    """Return the stack (slices, H, W) in HU, float32, about a key slice that is stored with its neighbours.

    Raises:
        SvdHubError: a slice that cannot be read, or has another size than its table says.
    """
    file = root / picture.file
    stack = read_stack(
        file.parent, int(file.stem), slices=slices, spacing=spacing, interval=picture.interval, rule=rule
    )
    check_size(file, stack.shape[1:], picture.size)
    return stack


def read_repeated(root: Path, picture: Picture, *, slices: int) -> np.ndarray:
    """Return an 8-bit key slice, `slices` times, in HU, float32: (slices, H, W).

    Raises:
        SvdHubError: it cannot be decoded, or has another size than its table says.
    """
    try:
        with Image.open(root / picture.file) as image:
            pixels = np.asarray(image.convert("L"), np.float32)
    except OSError as error:
        raise SvdHubError(f"{root / picture.file} cannot be decoded: {error}. Next: fetch that image again") from error
    check_size(root / picture.file, pixels.shape, picture.size)
    low, high = JPEG_HU
    return np.repeat((low + pixels / 255 * (high - low))[None], slices, axis=0)
