"""The same network with fewer layers: norms folded into the convolutions before them, ACS kernels put together.

For inference alone, on a copy. Which norm belongs to which convolution is seen in a run without data, not taken from
names: the norm must be the only one to read what the convolution made.
"""

from __future__ import annotations

import copy
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .models.acs import ACSConv, dense_kernel
from .sizes import blank, channels_of, run, some_sides
from .skeleton import shadow

CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, ACSConv)
NORMS = (nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def fold(model: Any, *, shape: Sequence[int] | None = None) -> Any:
    """Return a copy of a network for inference, in eval mode, without the norms that can be folded.

    The copy computes the same up to rounding (1e-6 relative). It has no ACS convolutions: their kernels are put
    together once. Norms that use the statistics of their input, and group and instance norms, stay.

    Args:
        model: a network of this package; it is not changed.
        shape: (N, C, D, H, W) of an input it takes; None = one is found by asking.

    Raises:
        OptionError: no input was found that it takes.
    """
    shape = shape or (2, channels_of(model), *some_sides(model))
    pairs = foldable(shadow(model).eval(), shape)
    network = copy.deepcopy(model).eval().requires_grad_(False)
    for name, module in list(network.named_modules()):
        if isinstance(module, ACSConv):
            put(network, name, _dense(module))
    for convolution, norm in pairs.items():
        _fold_into(network.get_submodule(convolution), network.get_submodule(norm))
        put(network, norm, nn.Identity())
    return network


def put(network: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of another one."""
    parent, _, last = name.rpartition(".")
    network.get_submodule(parent)._modules[last] = module


def foldable(twin: nn.Module, shape: Sequence[int]) -> dict[str, str]:
    """Return the names of convolutions, each with the norm that alone reads its output.

    Args:
        twin: a network without data (`skeleton.shadow`); it is used up.
        shape: (N, C, D, H, W) that it takes.
    """
    watch = _Watch()
    calls: Counter[str] = Counter()
    for name, module in twin.named_modules():
        if type(module) in CONVOLUTIONS:
            module.register_forward_hook(functools.partial(watch.made, name, calls))
        elif type(module) in NORMS and getattr(module, "running_mean", None) is not None:
            module.register_forward_pre_hook(functools.partial(watch.read, name, calls))
    with torch.no_grad(), watch:
        out = run(twin, blank(twin, shape))
    for tensor in _tensors(out):
        watch.uses[id(tensor)] += 1  # what the network returns must stay
    return {
        convolution: norm
        for norm, number in watch.norms.items()
        if (convolution := watch.makers.get(number, ""))
        and watch.uses[number] == calls[norm] == calls[convolution] == 1
    }


class _Watch(TorchFunctionMode):
    """Counts which functions use what convolutions make."""

    def __init__(self) -> None:
        super().__init__()
        self.makers: dict[int, str] = {}  # id of a tensor -> its convolution
        self.norms: dict[str, int] = {}  # norm -> id of what it reads
        self.uses: Counter[int] = Counter()
        self.alive: list[Tensor] = []  # or an id would come again

    def made(self, name: str, calls: Counter[str], module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.makers[id(output)] = name
        self.alive.append(output)
        calls[name] += 1

    def read(self, name: str, calls: Counter[str], module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.norms[name] = id(inputs[0])
        self.alive.append(inputs[0])
        calls[name] += 1

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(True for _ in _tensors(result)):  # not `x.shape` and the like
            self.uses.update(id(tensor) for tensor in _tensors((args, kwargs)) if id(tensor) in self.makers)
        return result


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _fold_into(convolution: Any, norm: Any) -> None:
    """Scale the kernels of a convolution and move its bias as a norm in eval mode would do to its output."""
    weight, bias = convolution.weight, convolution.bias
    scale = torch.rsqrt(norm.running_var.double() + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight.double()
    shift = -norm.running_mean.double() if bias is None else bias.double() - norm.running_mean.double()
    shift = shift * scale if norm.bias is None else shift * scale + norm.bias.double()
    kernel = weight.double() * scale.view(-1, *[1] * (weight.ndim - 1))
    convolution.weight = nn.Parameter(kernel.to(weight.dtype), requires_grad=False)
    convolution.bias = nn.Parameter(shift.to(weight.dtype), requires_grad=False)


def _dense(module: ACSConv) -> nn.Conv3d:
    """Return the ordinary convolution that an ACS convolution is."""
    with torch.device("meta"):
        plain = nn.Conv3d(
            module.in_channels,
            module.out_channels,
            module.kernel_size,
            stride=module.stride,
            padding=module.padding,
            dilation=module.dilation,
            groups=module.groups,
            bias=module.bias is not None,
        )
    plain.weight = nn.Parameter(dense_kernel(module.weight.detach()), requires_grad=False)
    if module.bias is not None:
        plain.bias = nn.Parameter(module.bias.detach(), requires_grad=False)
    return plain
