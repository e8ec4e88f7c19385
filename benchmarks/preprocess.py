"""python benchmarks/preprocess.py: how long a CT scan takes to become the tensor of a network, on one core.

A scan of 300 x 512 x 512 int16 voxels of 2.5 x 0.7 x 0.7 mm is prepared by `svd_hub.Preprocess`, which computes the
region of the crop alone, and in turn as it was before: all of it through torch's interpolation, then cropped. Two
records: the 32^3 at 1 mm of resnet3d18w16_lidc, and Merlin's 160 x 224 x 224 at 3 x 1.5 x 1.5 mm. Aim: never slower,
and within 1e-3 of the same values (torch places voxels in single precision; the tests hold both to double).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from facts import alternate, keep

from svd_hub import Preprocess

SPACING = (2.5, 0.7, 0.7)
CASES: dict[str, dict[str, Any]] = {
    "lidc_32x32x32": {"spacing": (1.0, 1.0, 1.0), "window": (-1000.0, 400.0), "size": (32, 32, 32)},
    "merlin_160x224x224": {"spacing": (3.0, 1.5, 1.5), "window": (-1000.0, 1000.0), "size": (160, 224, 224)},
}


def resample_all(scan: np.ndarray, *, spacing: Any, window: Any, size: Any) -> torch.Tensor:
    """Return (1, 1, D, H, W), values 0..1: convert and resample the whole scan, window it, crop it."""
    x = torch.from_numpy(scan.astype(np.float32))[None, None]
    sides = [round(n * have / want) for n, have, want in zip(scan.shape, SPACING, spacing, strict=True)]
    x = F.interpolate(x, size=sides, mode="trilinear", align_corners=False)
    x = (x.clamp(*window) - window[0]) / (window[1] - window[0])
    cut = [(n - want) // 2 for n, want in zip(sides, size, strict=True)]
    return x[:, :, *(slice(c, c + want) for c, want in zip(cut, size, strict=True))].contiguous()


def main() -> None:
    """Measure and keep."""
    torch.set_num_threads(1)
    scan = np.random.default_rng(0).integers(-1024, 3000, (300, 512, 512)).astype(np.int16)
    results = {}
    for name, case in CASES.items():
        prepare = partial(Preprocess(**case, scale=(0.0, 1.0)), scan, spacing=SPACING)
        before = partial(resample_all, scan, **case)
        largest = float((prepare() - before()).abs().max())
        times = alternate({"resample_all": before, "preprocess": prepare}, 20)
        ratio = times["resample_all"]["wall_s"] / times["preprocess"]["wall_s"]
        results[name] = {"times": times, "times_faster": round(ratio, 2), "largest_difference": largest}
    keep("preprocess", {"scan": {"shape": scan.shape, "dtype": str(scan.dtype), "spacing": SPACING}, "cases": results})


if __name__ == "__main__":
    main()
