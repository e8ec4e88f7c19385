"""Guards against wrong 16-bit gradients of Conv3d on CPUs, and against slow ones on GPUs.

oneDNN 3.12 (torch 2.13) goes wrong without a word in bf16 weight gradients of Conv3d where a map is smaller than the
kernel: at 1 < depth < kernel (3x3x3 at depth 2, the 7x7x7 stem at 2 to 6, with a stride in depth also at 7), and at
heights and widths well below it (1 for 3x3x3 with a stride, 2 for 7x7x7). The gradient is then noise up to 1e36 or NaN,
and in places the process dies of a damaged heap. Depth 1, larger maps, outputs and input gradients are right to
rounding. So is fp32, but for one place that no guard can reach: a 7x7x7 kernel with stride 2 in depth at depths 5 to 7
(the transfer form's stem on very thin volumes). `tests/test_precision.py` holds the safe side of this.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


def unsafe_in_bf16(conv: nn.Conv3d, size: Sequence[int]) -> bool:
    """Return True where the bf16 weight gradient of `conv` on a CPU cannot be trusted.

    Measured with sizes 1 to 9 on each axis, kernels 3, 5, 7 and strides 1 and 2; some of what it holds back is right.

    Args:
        conv: its kernel, dilation and stride count.
        size: (D, H, W) of its input.
    """
    depth, *plane = (d * (k - 1) + 1 for d, k in zip(conv.dilation, conv.kernel_size, strict=True))
    return 1 < size[0] < depth + conv.stride[0] - 1 or any(
        2 * length <= extent for length, extent in zip(size[1:], plane, strict=True) if extent > 1
    )


def _guarded(conv: nn.Conv3d, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu") or not unsafe_in_bf16(conv, x.shape[2:]):
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


CUDNN = 91500  # below it torch leaves cuDNN out for 16-bit Conv3d: pytorch issues 166122, 166643


def warn_of_slow_cudnn(network: nn.Module, precision: str) -> None:
    """Warn where 16-bit Conv3d on the GPU would be several times slower and larger than need be."""
    found = torch.backends.cudnn.version() if torch.cuda.is_available() else None
    if found is None or found >= CUDNN or precision == "32-true":
        return
    if any(isinstance(module, nn.Conv3d) for module in network.modules()):
        warnings.warn(
            f"cuDNN {found // 10000}.{found // 100 % 100} does no 16-bit Conv3d, as 9.15 does: this run is 4 times "
            "slower and takes up to 17 times the memory. Next: a torch build with cuDNN 9.15, or "
            "--set run.precision=32-true",
            stacklevel=3,
        )
