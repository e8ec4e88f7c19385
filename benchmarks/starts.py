"""The starting points of `transfer.py`, made of three pre-training runs: ours, ours with depth strides, the 2D twin.

Each becomes a file that `init` takes: I3D and ACS of the twin, and the control: our weights with the elements of every
convolution shuffled, so that their scale is left and their structure is not.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
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


def make(weights: Path, folder: Path, arms: Sequence[str] = ARMS) -> dict[str, str]:
    """Return arm -> what `init` is: "none" or a file in `folder`, made where it is missing.

    Args:
        weights: has `ours.safetensors` and what the arms are made of: `strided.safetensors`, `planar.safetensors`.
        folder: where the files go.
        arms: which are wanted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for arm in arms:
        if arm != "scratch" and not (folder / f"{arm}.safetensors").is_file():
            _make(arm, weights, folder / f"{arm}.safetensors")
    return {arm: "none" if arm == "scratch" else str((folder / f"{arm}.safetensors").absolute()) for arm in arms}


def _make(arm: str, weights: Path, file: Path) -> None:
    if arm in ("ours", "strided"):
        shutil.copyfile(weights / f"{arm}.safetensors", file)
        return
    ours = checkpoint.read(weights / "ours.safetensors")
    record: dict[str, Any] = checkpoint.unpack_metadata(ours.metadata)
    if arm == "shuffled":
        checkpoint.write(file, _shuffled(ours.tensors), record)
        return
    options = {**record["options"], "convolution": "acs"} if arm == "acs" else record["options"]
    twin = checkpoint.read(weights / "planar.safetensors").tensors
    checkpoint.write(file, _of_twin(twin, arm), {**record, "options": options})
