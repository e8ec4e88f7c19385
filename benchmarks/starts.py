"""The starting points of `transfer.py`, made of three pre-training runs: ours, ours with depth strides, the 2D twin.

Each becomes a file that `init` takes: I3D and ACS of the twin, and the control: our weights with the elements of every
convolution shuffled, so that their scale is left and their structure is not.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from svd_hub import checkpoint
from svd_hub.inflation import change_channels, inflate_kernel

ARMS = ("scratch", "i3d", "acs", "strided", "ours", "shuffled")


def _of_twin(tensors: dict[str, torch.Tensor], rule: str) -> dict[str, torch.Tensor]:
    """Return the twin's tensors as those of the 3D network; "acs" keeps its kernels 2D, as ACS layers have them."""
    made = {}
    for name, value in tensors.items():
        if name == "conv1.weight":
            value = change_channels(value, 1, "sum")
        made[name] = inflate_kernel(value, "i3d") if value.ndim == 4 and rule == "i3d" else value.contiguous()
    return made


def _shuffled(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: value.flatten()[torch.randperm(value.numel(), generator=generator)].view_as(value)
        if value.ndim == 5
        else value
        for name, value in tensors.items()
    }


def make(weights: Path, folder: Path) -> dict[str, str]:
    """Return arm -> what `init` is: "none" or a file in `folder`, made where it is missing.

    Args:
        weights: has `ours.safetensors`, `strided.safetensors` and `planar.safetensors`, of finished runs.
        folder: where the files go.
    """
    folder.mkdir(parents=True, exist_ok=True)
    starts = {"scratch": "none"} | {arm: str((folder / f"{arm}.safetensors").absolute()) for arm in ARMS[1:]}
    if all(Path(file).is_file() for file in list(starts.values())[1:]):
        return starts
    for arm in ("ours", "strided"):
        shutil.copyfile(weights / f"{arm}.safetensors", starts[arm])
    read = checkpoint.read(Path(starts["ours"]))
    record: dict[str, Any] = checkpoint.unpack_metadata(read.metadata)
    checkpoint.write(Path(starts["shuffled"]), _shuffled(read.tensors), record)
    twin = checkpoint.read(weights / "planar.safetensors").tensors
    for rule in ("i3d", "acs"):
        options = {**record["options"], "convolution": "acs"} if rule == "acs" else record["options"]
        checkpoint.write(Path(starts[rule]), _of_twin(twin, rule), {**record, "options": options})
    return starts
