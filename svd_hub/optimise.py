"""The same network, fast on a CPU: norms folded, kernels laid out for oneDNN once, 16 bits where they are asked for.

torch sends a single-precision Conv3d of a single image to its slow im2col, not to oneDNN, where the kernel is at most 3
in H and W and N * C * D * H is at most 20480 (measured with torch 2.13, `torch._C._select_conv_backend`): 1x1x3x224x224
then takes longer than 1x1x6x224x224. Calling oneDNN directly with its own layout of the kernel goes around that, and
saves the reordering of the kernel in each call. `benchmarks/inference.py` has the figures.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .errors import OptionError, check_choice
from .folding import fold, put

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# They compute in float32 inside and take 16-bit input as it is: their own numbers need not lose digits.
_KEPT = (nn.modules.batchnorm._NormBase, nn.GroupNorm)


def optimize_for_inference(model: Any, *, dtype: str | torch.dtype = "float32") -> Any:
    """Return a copy of a network that computes the same on a CPU in a half to a tenth of the time, and does only that.

    The copy has no gradients, cannot be trained, saved or exported; the original can, and shares nothing with it. It
    carries `.entry`, `.preprocess`, `.inference` and `.options`, so `svd_hub.Predictor(copy)` takes it.

    Args:
        model: a network that `svd_hub.load` or `task_model` returned, on the CPU.
        dtype: a name, or torch's own. "float32": the same up to rounding, 1e-6 relative. "bfloat16": 0.3 to 1 %
            relative, for processors with 16-bit arithmetic (`avx512_bf16` or `amx_bf16` in /proc/cpuinfo; elsewhere it
            is slow); input and output stay float32.

    Raises:
        OptionError: not such a network, not on the CPU, or another dtype.
    """
    dtype = str(dtype).removeprefix("torch.")
    check_choice("dtype", dtype, DTYPES)
    if any(isinstance(module, FixedConv3d) for module in getattr(model, "modules", tuple)()):
        raise OptionError("the network is an optimised one already. Next: optimise the one that svd_hub.load returned")
    for name, tensor in getattr(model, "state_dict", dict)().items():
        if tensor.device.type != "cpu" or (tensor.is_floating_point() and tensor.dtype != torch.float32):
            raise OptionError(
                f"{name} is {tensor.dtype} on {tensor.device}; allowed: float32 on the CPU. Next: model.float().cpu(); "
                "on a GPU: model.to(memory_format=torch.channels_last_3d) and torch.autocast, or svd-hub export"
            )
    network = fold(model)
    for name, module in list(network.named_modules()):
        if type(module) is nn.Conv3d and module.padding_mode == "zeros" and isinstance(module.padding, tuple):
            put(network, name, FixedConv3d(module, DTYPES[dtype]))
    if dtype != "float32":
        in_sixteen_bits(network, DTYPES[dtype])
        network.register_forward_hook(_widened)
    return network


def in_sixteen_bits(network: nn.Module, dtype: torch.dtype) -> None:
    """Make a network compute in a 16-bit type, in place; the numbers of its norms stay in float32."""
    for module in network.modules():
        if not isinstance(module, _KEPT) and not any(True for _ in module.children()):
            module.to(dtype)
        if isinstance(module, nn.AvgPool3d):  # torch 2.13 has none for 16 bits on a CPU
            module.register_forward_pre_hook(lambda module, inputs: (inputs[0].float(),))
            module.register_forward_hook(lambda module, inputs, output: output.to(dtype))


def _widened(module: nn.Module, inputs: Any, output: Any) -> Any:
    """Return an output in float32: a tensor, or the levels of a pyramid; detections are already."""
    if isinstance(output, Tensor):
        return output.float()
    return {name: level.float() for name, level in output.items()} if isinstance(output, dict) else output


class FixedConv3d(nn.Module):
    """A Conv3d by oneDNN, whatever the shape of its input, with a kernel that is laid out for it and cannot change.

    Where torch was built without oneDNN it is the Conv3d that it was made from. Its bias stays float32.
    """

    def __init__(self, plain: nn.Conv3d, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype
        self._form: list[Any] = [plain.padding, plain.stride, plain.dilation, plain.groups]
        weight = plain.weight.detach().to(dtype)
        self._bias = None if plain.bias is None else plain.bias.detach()
        self._direct = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        # no buffer: torch copies and moves buffers, which this layout does not allow
        self._kernel = (
            torch._C._nn.mkldnn_reorder_conv3d_weight(weight.to_mkldnn(), *self._form) if self._direct else weight
        )

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        x = x.to(self.dtype)
        if self._direct:
            return torch.ops.mkldnn._convolution_pointwise(x, self._kernel, self._bias, *self._form, "none", [], "")
        padding, stride, dilation, groups = self._form
        out = nn.functional.conv3d(x, self._kernel, None, stride, padding, dilation, groups)
        return out if self._bias is None else out.add_(self._bias.reshape(-1, 1, 1, 1))

    def _check(self, x: Tensor) -> None:
        """Raise `OptionError` where this is more than a forward on a CPU."""
        compiled = torch.compiler.is_compiling() or torch.compiler.is_exporting() or torch.jit.is_tracing()
        if compiled or x.device.type != "cpu" or (x.requires_grad and torch.is_grad_enabled()):
            what = "traced, exported or compiled" if compiled else f"given a tensor on {x.device}"
            what = "asked for gradients" if not compiled and x.device.type == "cpu" else what
            raise OptionError(
                f"an optimised network cannot be {what}; allowed: forward on the CPU. Next: use the network that it "
                "was made from, which has not changed"
            )

    def train(self, mode: bool = True) -> FixedConv3d:
        """Stay in eval mode, or raise `OptionError`."""
        if mode:
            raise OptionError("an optimised network cannot be trained. Next: train the network that it was made from")
        return super().train(mode)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        raise OptionError("an optimised network cannot be saved. Next: save the network that it was made from")

    def __deepcopy__(self, memo: dict[int, Any]) -> FixedConv3d:
        twin = FixedConv3d.__new__(FixedConv3d)
        nn.Module.__init__(twin)
        for name in ("dtype", "_form", "_bias", "_direct", "_kernel"):
            setattr(twin, name, getattr(self, name))  # nothing can change it, so both may have it
        twin.training = False
        return twin

    def extra_repr(self) -> str:
        padding, stride, dilation, groups = self._form
        return f"stride={stride}, padding={padding}, dilation={dilation}, groups={groups}, {self.dtype}"
