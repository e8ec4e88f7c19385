"""Parameters, FLOPs and MACs of any network, without running it.

`flops` is the counter behind the paper's Table II (open-mmlab/mmcv v1.3.0 mmcv/cnn/utils/flops_counter.py, applied to
backbone and neck only): multiply-accumulates and biases of convolutions, plus what norms, activations and pools touch.
It is neither 2 x MACs nor what most other counters print; `macs` is the plain number to compare with those.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .errors import OptionError
from .models.acs import ACSConv
from .skeleton import shadow

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, ACSConv)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.GroupNorm, nn.LayerNorm)
PER_OUTPUT = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.Upsample)
POOLS = tuple(
    getattr(nn, f"{kind}Pool{n}d") for kind in ("Max", "Avg", "AdaptiveMax", "AdaptiveAvg") for n in (1, 2, 3)
)


@dataclass(frozen=True)
class Count:
    """What a network costs.

    Attributes:
        parameters: numbers in all parameters, trainable or not, each shared one once; buffers are not parameters.
        flops: by the paper's counter; no linear layer is in it (the paper's leaves the classifier out).
        macs: multiply-accumulates of convolutions (transposed ones too) and linear layers; no biases.
    """

    parameters: int
    flops: int
    macs: int


def count(model: nn.Module, shape: Sequence[int]) -> Count:
    """Count a network for one input, in evaluation mode, on a copy that has shapes but no numbers.

    A layer counts each time it is called. What a `forward` does without a module (additions, `torch.relu`,
    attention products) is not seen. Hooks of the model run once, on the copy.

    Args:
        model: any module that takes one tensor. It stays as it is.
        shape: (C, D, H, W), or (C, H, W) for a 2D network: one sample; or (N, C, D, H, W): all N together.

    Raises:
        OptionError: the shape is not such a shape, or the model is a TorchScript module.
    """
    sizes = tuple(int(n) for n in shape)
    if len(sizes) not in (3, 4, 5) or min(sizes) < 1:
        raise OptionError(
            f"shape={tuple(shape)} is not allowed; allowed: positive (C, D, H, W), (C, H, W) for a 2D network, "
            "or (N, C, D, H, W)"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise OptionError("a TorchScript module cannot be counted, its layers are hidden. Next: count it before export")
    parameters = sum(p.numel() for p in model.parameters())
    batch = sizes if len(sizes) == 5 else (1, *sizes)
    try:
        flops, macs = _run(shadow(model), batch, "meta")
    except (RuntimeError, NotImplementedError):
        # A forward that looks at numbers, or a tensor that is no registered buffer: run for real, on a real copy.
        flops, macs = _run(copy.deepcopy(model).cpu(), batch, "cpu")
    return Count(parameters=parameters, flops=flops, macs=macs)


def _run(model: nn.Module, batch: tuple[int, ...], device: str) -> tuple[int, int]:
    """Return FLOPs and MACs of one call of `model`, which is a copy: its hooks are never taken off."""
    total = [0, 0]

    def add(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
            flops, macs = layer_cost(module, inputs[0], output)
            total[0] += flops
            total[1] += macs

    for module in model.modules():
        module.register_forward_hook(add)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    with torch.no_grad():
        model.eval()(torch.zeros(batch, dtype=dtype, device=device))
    return total[0], total[1]


def layer_cost(module: nn.Module, x: Tensor, out: Tensor) -> tuple[int, int]:
    """Return (flops, macs) of one call of one layer; (0, 0) for a layer the counter does not know."""
    if isinstance(module, CONVOLUTIONS + TRANSPOSED):
        positions = x if isinstance(module, TRANSPOSED) else out  # each input position of a transposed one is spread
        taps = math.prod(module.kernel_size) * module.in_channels * module.out_channels // module.groups
        macs = taps * positions.numel() // positions.shape[1]
        return macs + (0 if module.bias is None else out.numel()), macs
    if isinstance(module, nn.Linear):
        return 0, out.numel() * module.in_features
    if isinstance(module, NORMS):
        affine = getattr(module, "affine", False) or getattr(module, "elementwise_affine", False)
        return x.numel() * (2 if affine else 1), 0
    if isinstance(module, PER_OUTPUT):
        return out.numel(), 0
    if isinstance(module, POOLS):
        return x.numel(), 0
    return 0, 0
