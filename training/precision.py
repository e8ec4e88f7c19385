"""Guards against wrong 16-bit gradients of Conv3d on CPUs.

oneDNN 3.12 (torch 2.13) goes wrong without a word in bf16 weight gradients of Conv3d where 1 < input depth < depth of
the kernel: 3x3x3 at depth 2, 5x5x5 at 2 to 4, the 7x7x7 stem at 2 to 6, for every H and W that was tried. It is then
noise up to 1e36 or NaN, and at depth 4 under a 7x7x7 kernel the process died of a damaged heap. Depth 1 and every depth
from the kernel's on are right to rounding, and so is fp32. `tests/test_precision.py` holds the safe side of this.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn


def unsafe_in_bf16(conv: nn.Conv3d, depth: int) -> bool:
    """Return True where the bf16 weight gradient of `conv` on a CPU cannot be trusted at this input depth."""
    extent = conv.dilation[0] * (conv.kernel_size[0] - 1) + 1
    return 1 < depth < extent


def _guarded(conv: nn.Conv3d, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu") or not unsafe_in_bf16(conv, x.shape[2]):
        return forward(x)
    with torch.autocast("cpu", enabled=False):
        return forward(x.float())


def guard_cpu_bf16(network: nn.Module) -> nn.Module:
    """Make every Conv3d of `network` compute in fp32 under CPU autocast where bf16 is not safe; return it.

    In place and for training only: parameters, state dict and results in fp32 are the same.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            module.forward = functools.partial(_guarded, module, module.forward)  # type: ignore[method-assign]
    return network
