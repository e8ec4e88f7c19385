"""Detectors that know a few images by heart, as a trained one knows its lesions: what to hold 16 bits against.

The boxes of random weights are near ties, of which rounding lets another one win, and say nothing about a format.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from helpers_detection import generator
from torch import Tensor, nn

from svd_hub.models.detection import Target

CELL = 32  # pixels; one square in each
COUNT = 3  # images of each shape: the largest batch of parity


def picture(sides: Sequence[int], draws: torch.Generator) -> tuple[Tensor, Target]:
    """An image (1, D, H, W) of faint noise with a dark (0) or bright (1) square of 14 to 20 pixels in each cell."""

    def drawn(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=draws))

    image = torch.randn(1, *sides, generator=draws) * 0.1
    boxes, labels = [], []
    for top in range(0, sides[1] - CELL + 1, CELL):
        for left in range(0, sides[2] - CELL + 1, CELL):
            height, width = drawn(14, 21), drawn(14, 21)
            y, x = top + drawn(2, CELL - height - 1), left + drawn(2, CELL - width - 1)
            labels.append(drawn(0, 2))
            image[:, :, y : y + height, x : x + width] += 3.0 * labels[-1] - 1.5
            boxes.append([x, y, x + width, y + height])
    return image, Target(torch.tensor(boxes, dtype=torch.float32), torch.tensor(labels))


def learn(model: Any, every: Sequence[Sequence[int]], *, steps: int) -> list[np.ndarray]:
    """Teach a detector of two classes `COUNT` images of each (D, H, W), in place; return them, arrays (1, D, H, W).

    Args:
        model: its batch norms take the statistics of the images first.
        every: sides; a step has the images of one of them.
        steps: of training.
    """
    draws = generator(0)
    batches = [[picture(sides, draws) for _ in range(COUNT)] for sides in every]
    images = [torch.stack([image for image, _ in batch]) for batch in batches]
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.reset_running_stats()
            module.momentum = None  # the mean of all
            module.train()
    with torch.no_grad():
        for batch in images:
            model.pyramid(batch)
    model.eval()
    taught = [parameter.requires_grad_() for parameter in model.parameters()]
    optimizer = torch.optim.Adam(taught, lr=0.003)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.003, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        number = step % len(batches)
        targets = [target for _, target in batches[number]]
        loss = torch.stack(list(model.losses(images[number], targets, generator=draws).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(taught, 5)
        optimizer.step()
        rate.step()
    model.requires_grad_(False)
    return [image.numpy() for batch in images for image in batch]
