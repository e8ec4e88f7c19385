"""A detector that sees brightness, and a scan with one lesion."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from helpers_volume import AXIAL, make_series
from torch import Tensor, nn

import svd_hub
from svd_hub import Inference, Preprocess
from svd_hub.models.detection import Detections

rng = np.random.default_rng(0)


class Spots(nn.Module):
    """Finds the bright pixels of the key slice: one box around all of them, its label by their brightness."""

    task = "detection"

    def __init__(self, side: int | None = None, modality: str = "CT") -> None:
        super().__init__()
        self.entry = dataclasses.replace(
            svd_hub.get_entry("unet3d18w16_ctorgans"), name="spots", classes=("dim", "glaring"), metrics=()
        )
        self.preprocess = Preprocess(modality=modality)
        self.inference = Inference(slices=3 if modality == "RGB" else 9, side=side)
        self.options = {"num_classes": 2}
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> list[Detections]:
        self.seen.append(tuple(x.shape))
        key = x[0, 0, x.shape[2] // 2]
        at = (key > 200).nonzero()
        if not len(at):
            return [Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))]
        (y0, x0), (y1, x1) = at.min(0).values.tolist(), (at.max(0).values + 1).tolist()
        high = float(key.max())
        boxes = torch.tensor([[x0, y0, x1, y1]], dtype=torch.float32)
        return [Detections(boxes, torch.tensor([min(1.0, high / 1000)]), torch.tensor([int(high > 800)]))]


SHAPE, SPACING = (13, 20, 26), (2.5, 0.8, 0.7)
LESION = (slice(4, 8), slice(5, 9), slice(12, 20))


def scan() -> np.ndarray:
    """HU (D, H, W) with one lesion, brightest on plane 5."""
    hu = rng.integers(-100, 50, SHAPE).astype(np.int16)
    hu[LESION] = 600
    hu[5][LESION[1:]] = 700
    return hu


HU = scan()


def lesion_series(folder: Path, orientation: tuple[float, ...] = AXIAL, **options: Any) -> list[Path]:
    return make_series(folder, (HU + 1024).astype(np.uint16), spacing=SPACING, orientation=orientation, **options)
