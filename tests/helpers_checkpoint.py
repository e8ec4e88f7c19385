"""What the tests of reading and writing checkpoints share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def weights(seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "conv1.weight": torch.randn(4, 1, 3, 3, 3, generator=g),
        "layer1.0.conv1.weight": torch.randn(4, 4, 3, 3, 3, generator=g).half(),
        "bn1.weight": torch.randn(4, generator=g),
        "bn1.num_batches_tracked": torch.tensor(7),
    }


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def torch_save(content: Any, path: Path, *, legacy: bool) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path
