"""What the tests of svd_hub.predict share: narrow networks, one that sees brightness alone, volumes with a blob."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from pydicom.dataset import Dataset
from torch import Tensor, nn

import svd_hub
from svd_hub import Inference, Predictor, Preprocess, cli
from svd_hub.predict import Outputs, predict_files

SEGMENTER = "unet3d18w16_ctorgans"
QUICK = Outputs(picture=False, dicom=False)
NARROW = {"depth": 10, "width": 4, "stem_stride": 2, "stem_pool": False, "pool_stride": 2, "strides": [1, 2, 2, 2],
          "dilations": [1, 1, 1, 1], "depth_stride": 2}  # fmt: skip


def segmenter(
    *, window: tuple[int, int, int] = (16, 16, 16), rule: dict[str, Any] | None = None, **inference: Any
) -> Any:
    """A narrow, random UNet3D of four classes for CT, whose labels are many and mixed."""
    torch.manual_seed(0)
    model = svd_hub.load(SEGMENTER, weights=None, encoder_options=NARROW)
    own = {"spacing": None, "minimum": (1, 1, 1), **(rule or {})}
    model.preprocess = dataclasses.replace(model.preprocess, **own)
    model.inference = Inference(window=window, **inference)
    return model


def saved(model: Any, path: Path) -> Path:
    return svd_hub.save(model, path)


class Bright(nn.Module):
    """A segmenter that says class 1 where the (windowed) value is above a threshold: each voxel alone."""

    def __init__(self, above: float = 500.0, **rule: Any) -> None:
        super().__init__()
        self.entry = dataclasses.replace(
            svd_hub.get_entry(SEGMENTER), name="bright", classes=("background", "blob"), metrics=()
        )
        self.preprocess = Preprocess(**{"modality": "CT", "window": (-1000.0, 1000.0), **rule})
        self.inference = Inference(window=(8, 16, 16))
        self.options, self.task, self.above = {"num_classes": 2}, "segmentation", above
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        logit = (x[:, :1] - self.above) * self.scale
        return torch.cat((-logit, logit), 1)


def blob(shape: tuple[int, int, int] = (12, 20, 18), *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """HU (D, H, W) with noise around -100 and a bright ellipsoid that lies off the middle on every axis, and its mask.

    It has a tail, so that no flip or exchange of axes brings it onto itself.
    """
    rng = np.random.default_rng(seed)
    z, y, x = np.indices(shape)
    d, h, w = shape
    inside = ((z - 0.35 * d) / (0.2 * d)) ** 2 + ((y - 0.6 * h) / (0.2 * h)) ** 2 + (
        (x - 0.3 * w) / (0.15 * w)
    ) ** 2 < 1
    inside[int(0.35 * d), int(0.6 * h), int(0.3 * w) : int(0.8 * w)] = True
    inside[int(0.35 * d) : int(0.8 * d), int(0.6 * h), int(0.3 * w)] = True
    hu = rng.integers(-200, 0, shape)
    hu[inside] = rng.integers(800, 900, int(inside.sum()))
    return hu.astype(np.int16), inside


def detector() -> Any:
    """A narrow, random Faster R-CNN of two classes for CT."""
    torch.manual_seed(0)
    backbone = svd_hub.load("resnet3d18w16_lidc", weights=None, width=4, depth=10, num_classes=0)
    rule = Preprocess(window=(-1024.0, 2050.0), scale=(0.0, 255.0), mean=50.0, std=50.0, channels=backbone.in_channels)
    model = svd_hub.task_model(
        backbone, "faster_rcnn3d", num_classes=2, classes=("lesion", "nodule"), preprocess=rule, channels=16,
        head_channels=16, score_threshold=0.0,
    )  # fmt: skip
    model.eval()
    return model


def command(*args: object) -> tuple[int, str, str]:
    """Run `svd-hub` in this process: exit code, stdout, stderr."""
    out, err = io.StringIO(), io.StringIO()
    before, formatted = sys.argv, warnings.formatwarning  # `main` has its own
    sys.argv = ["svd-hub", *map(str, args)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
        code: Any = 0
    except SystemExit as end:
        code = end.code
    finally:
        sys.argv, warnings.formatwarning = before, formatted
    return int(code or 0), out.getvalue(), err.getvalue()


# A shell starts what runs behind it with SIGINT ignored, and that is inherited: the command is to get it all the same.
WITH_CTRL_C = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("svd_hub", run_name="__main__")
"""


def start(*args: object, **options: Any) -> subprocess.Popen[str]:
    """Start `svd-hub` in a process of its own."""
    root = Path(__file__).resolve().parents[1]
    line = [sys.executable, "-c", WITH_CTRL_C, *map(str, args)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(line, env={**os.environ, "PYTHONPATH": str(root)}, **{**pipes, **options})


def nifti(path: Path, *, seed: int = 0) -> Path:
    """Write the blob as a volume; each seed has a file of its own."""
    hu = blob()[0]
    hu[0, 0, 0] = seed
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(hu), str(path))
    return path


def batch(inputs: list[Path], out: Path, model: Any = None, *, want: Outputs = QUICK, **options: Any) -> list[Any]:
    """Predict inputs with a network that sees brightness."""
    return list(predict_files(Predictor(model or Bright()), inputs, out, outputs=want, **options))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def complete(data: Dataset, k: int) -> None:
    """Give a CT image what highdicom's converter to enhanced files asks for."""
    data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL", "NONE"]
    data.StudyDate = data.ContentDate = data.AcquisitionDate = "20200101"
    data.StudyTime = data.ContentTime = data.AcquisitionTime = "000000"
    data.PatientSex, data.StudyID, data.AccessionNumber, data.ReferringPhysicianName = "O", "1", "1", ""
    data.Manufacturer, data.PositionReferenceIndicator, data.RescaleType = "svd-hub", "", "HU"
    data.KVP, data.AcquisitionNumber, data.PatientPosition = "120", "1", "HFS"
