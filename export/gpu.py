"""The GPU that something is to run on, or a plain refusal."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..errors import SvdHubError


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """What is known of a CUDA device."""

    device: torch.device
    name: str
    compute_capability: str
    multiprocessors: int
    memory_bytes: int


def require_gpu(what: str, *, index: int = 0, instead: str = "") -> Gpu:
    """Return a CUDA device.

    Args:
        what: needs it, for the message.
        index: of the device.
        instead: what to do on a machine without one.

    Raises:
        SvdHubError: there is none.
    """
    if not torch.cuda.is_available():
        raise SvdHubError(
            f"{what} needs a CUDA device, and torch {torch.__version__} sees none here. Next: run it on the machine "
            f"that will serve, with its driver and a torch built for CUDA{instead and f'; or {instead}'}"
        )
    if not 0 <= index < (count := torch.cuda.device_count()):
        raise SvdHubError(f"{what} was asked for on CUDA device {index}; there are {count}, from 0 on")
    told = torch.cuda.get_device_properties(index)
    return Gpu(
        device=torch.device("cuda", index),
        name=told.name,
        compute_capability=f"{told.major}.{told.minor}",
        multiprocessors=told.multi_processor_count,
        memory_bytes=told.total_memory,
    )
