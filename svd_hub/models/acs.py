"""ACS convolution: a 3D convolution whose weights stay 2D, a third of its output channels in each of the three planes.

Source: M3DV/ACSConv@95dc860 acsconv/operators/acsconv.py (axial, coronal and sagittal channels; sizes of the groups).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import OptionError

Triple = tuple[int, int, int]


def dense_kernel(weight_2d: Tensor) -> Tensor:
    """Return the one Conv3d kernel that equals an ACS kernel: (O, I, k, k) -> (O, I, k, k, k), differentiable.

    The output channels make three groups of O // 3, the remainder goes to the first, then the second. The 2D kernels
    of the first lie in the plane (H, W) (axial), of the second in (D, W) (coronal), of the third in (D, H) (sagittal),
    each in the centre of the third axis (k // 2 where k is even), with zeros elsewhere.

    Raises:
        OptionError: not four axes, or not square.
    """
    if weight_2d.ndim != 4 or weight_2d.shape[2] != weight_2d.shape[3]:
        raise OptionError(
            f"a kernel of shape {tuple(weight_2d.shape)} has no ACS form; allowed: (O, I, k, k). "
            'Next: method "i3d" takes kernels that are not square'
        )
    return _assemble(weight_2d)


def _assemble(weight: Tensor) -> Tensor:
    """Return `dense_kernel` of a weight that fits; torch.jit.script reads this, so it raises nothing of ours."""
    o, k = weight.shape[0], weight.shape[2]
    before, after = k // 2, k - 1 - k // 2
    axial, coronal, sagittal = torch.split(weight, [(o + 2) // 3, (o + 1) // 3, o // 3])
    parts = [
        F.pad(axial.unsqueeze(2), [0, 0, 0, 0, before, after]),
        F.pad(coronal.unsqueeze(3), [0, 0, before, after]),
        F.pad(sagittal.unsqueeze(4), [before, after]),
    ]
    return torch.cat(parts)


class ACSConv(nn.Module):
    """(N, I, D, H, W) -> (N, O, D', H', W'): `nn.Conv3d` of `dense_kernel(weight)`, with a gradient for `weight` alone.

    The state dict is that of `nn.Conv2d`: `weight` (O, I / groups, k, k) and `bias` (O). So is the initialisation.

    Args:
        in_channels, out_channels: I and O.
        kernel_size: k, or k three times.
        stride, padding, dilation: an integer or (D, H, W) each; the padding is zeros, or "valid" or "same".
        groups: 1, or `in_channels` (depthwise).
        bias, device, dtype: as in `nn.Conv3d`.

    Raises:
        OptionError: a value that is not allowed, with what is.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        *,
        stride: int | Sequence[int] = 1,
        padding: int | str | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if min(in_channels, out_channels) < 1 or groups not in (1, in_channels) or out_channels % groups:
            raise OptionError(
                f"ACSConv with in_channels={in_channels}, out_channels={out_channels}, groups={groups} is not allowed; "
                "allowed: groups=1, or groups=in_channels that divide out_channels (depthwise)"
            )
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = _triple("kernel_size", kernel_size, 1)
        self.stride, self.dilation = _triple("stride", stride, 1), _triple("dilation", dilation, 1)
        kernel = self.kernel_size[0]
        if self.kernel_size != (kernel, kernel, kernel):
            raise OptionError(f"kernel_size={kernel_size!r} is not allowed; allowed: one size on all sides")
        if padding == "same":
            if self.stride != (1, 1, 1) or any(d * (kernel - 1) % 2 for d in self.dilation):
                raise OptionError(
                    f"padding='same' with kernel_size={kernel}, stride={self.stride}, dilation={self.dilation} is not "
                    "allowed; allowed: stride 1 and an odd kernel"
                )
            padding = [d * (kernel - 1) // 2 for d in self.dilation]
        self.padding = _triple("padding", 0 if padding == "valid" else padding, 0)
        shape = (out_channels, in_channels // groups, kernel, kernel)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        if bias:
            self.bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights as `nn.Conv2d` does: uniform, with the fan of the 2D kernel."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        # One dense convolution and not three thin ones, whose sums a CPU adds up in another order: of 1500 random
        # cases a fifth differed from the dense kernel in their last bits (torch 2.13). This way both forms of a
        # network run the very same operation. The price on one core, forward and backward, against three thin ones:
        # 1.5 times the time at 3x3x3 with 64 channels, 2 to 4 times with 256 or 512 and in the 7x7x7 stem, and a
        # quarter at 1x1x1.
        return F.conv3d(x, _assemble(self.weight), self.bias, self.stride, self.padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        shown = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        for name, usual in (("padding", (0, 0, 0)), ("dilation", (1, 1, 1)), ("groups", 1)):
            if getattr(self, name) != usual:
                shown += f", {name}={getattr(self, name)}"
        return shown if self.bias is not None else f"{shown}, bias=False"


def _triple(option: str, value: int | str | Sequence[int], least: int) -> Triple:
    """Return (D, H, W) of an integer or three, in which no integer spares the depth as in `layers.triple`."""
    numbers = (value,) * 3 if isinstance(value, int) else tuple(n for n in value if isinstance(n, int))
    if len(numbers) != 3 or min(numbers) < least or isinstance(value, str):
        raise OptionError(
            f"{option}={value!r} is not allowed; allowed: an integer from {least} on, or three, (D, H, W)"
        )
    return (numbers[0], numbers[1], numbers[2])
