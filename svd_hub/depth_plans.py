"""The settings with which a module keeps the depth of its input, or why it cannot: pure functions, one per kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import is_dataclass, replace
from typing import Any

from torch import nn

from .functional_calls import CALLS
from .models.acs import ACSConv

_TREATED = (nn.Conv3d, ACSConv, nn.MaxPool3d, nn.AvgPool3d)


def plan_module(module: nn.Module, calls: frozenset[str]) -> dict[str, Any] | str:
    """Return the new settings of a module, or the reason why it cannot be treated."""
    if isinstance(module, _TREATED):
        if "pad" in calls and not isinstance(module, ACSConv):  # which pads its kernel
            return "pads by itself in its forward"
        return _plan_conv(module) if isinstance(module, nn.Conv3d | ACSConv) else _plan_pool(module)
    if isinstance(module, nn.ConvTranspose3d):
        return _plan_transposed(module)
    if isinstance(module, nn.LPPool3d | nn.MaxUnpool3d):
        step = module.kernel_size if module.stride is None else module.stride
        kept = _triple(step)[0] == 1 and _triple(module.kernel_size)[0] == 1
        return {} if kept else f"{type(module).__name__} changes the depth"
    if isinstance(module, nn.FractionalMaxPool3d):
        return "FractionalMaxPool3d changes the depth"
    if isinstance(module, nn.AdaptiveAvgPool3d | nn.AdaptiveMaxPool3d) and not is_global_pool(module):
        size = module.output_size
        depth = size if size is None or isinstance(size, int) else size[0]
        return {} if depth is None else f"adaptive pool to depth {depth}"
    if isinstance(module, nn.Upsample):
        factor = module.scale_factor
        kept = isinstance(factor, tuple) and (len(factor) < 3 or factor[0] == 1)
        return {} if kept else "Upsample may change the depth"
    if _is_subsampler(module, calls):
        return {"stride": _with_depth(module.stride, 1)}
    return {}


def _plan_conv(conv: nn.Conv3d | ACSConv) -> dict[str, Any] | str:
    kernel, stride, dilation = conv.kernel_size[0], conv.stride[0], conv.dilation[0]
    if conv.padding == "same":
        return {}  # torch allows it with stride 1 only: the depth is kept
    span = dilation * (kernel - 1)
    if span % 2:
        return f"even depth kernel {kernel} of a convolution with depth stride {stride}"
    plan: dict[str, Any] = {"stride": _with_depth(conv.stride, 1)}
    now = (0, 0, 0) if isinstance(conv.padding, str) else _triple(conv.padding)
    if now[0] != span // 2:
        plan["padding"] = padding = (span // 2, *now[1:])
        if isinstance(conv, nn.Conv3d):  # torch keeps it twice, for each padding_mode but "zeros": W first, both sides
            plan["_reversed_padding_repeated_twice"] = tuple(n for n in reversed(padding) for _ in range(2))
    return plan


def _plan_pool(pool: nn.MaxPool3d | nn.AvgPool3d) -> dict[str, Any] | str:
    kernel, stride, padding = _triple(pool.kernel_size)[0], _triple(pool.stride)[0], _triple(pool.padding)[0]
    dilation = _triple(pool.dilation)[0] if isinstance(pool, nn.MaxPool3d) else 1
    target = (kernel, dilation * (kernel - 1) // 2) if kernel % 2 else (1, 0)
    if (kernel, stride, padding) == (target[0], 1, target[1]):
        return {}
    if isinstance(pool, nn.MaxPool3d) and pool.return_indices:
        return "max pool with return_indices: an unpooling reads its positions"
    if isinstance(pool, nn.AvgPool3d) and pool.divisor_override is not None and kernel != target[0]:
        return "even average pool with divisor_override"
    if target[1] > target[0] // 2:
        return f"dilated max pool: torch allows depth padding {target[0] // 2} at most, {target[1]} are needed"
    plan = {
        "kernel_size": _with_depth(pool.kernel_size, target[0]),
        "stride": _with_depth(pool.stride, 1),
        "padding": _with_depth(pool.padding, target[1]),
    }
    if isinstance(pool, nn.AvgPool3d) and target[1] and _triple(pool.padding) == (0, 0, 0):
        plan["count_include_pad"] = False  # no window counted a zero before; the mean of a constant stays the constant
    return plan


def _plan_transposed(conv: nn.ConvTranspose3d) -> dict[str, Any] | str:
    if conv.stride[0] > 1:
        return f"transposed convolution with depth stride {conv.stride[0]}"
    padding, extra = _triple(conv.padding)[0], conv.output_padding[0]  # type: ignore[arg-type]
    change = conv.dilation[0] * (conv.kernel_size[0] - 1) + extra - 2 * padding
    return {} if change == 0 else f"transposed convolution that changes the depth by {change}"


def plan_feature_info(module: nn.Module) -> dict[str, Any]:
    """Return a pyramid description (see models.layers.Feature) with depth stride 1, {} where there is none."""
    info = vars(module).get("feature_info")
    if not isinstance(info, tuple) or not all(is_dataclass(f) and hasattr(f, "stride") for f in info):
        return {}
    return {"feature_info": tuple(replace(f, stride=_with_depth(f.stride, 1)) for f in info)}


def explain_calls(name: str, module: nn.Module, calls: frozenset[str]) -> list[str]:
    """Return one sentence for each kind of call in the forward of a module that no plan covers."""
    if isinstance(module, _TREATED):
        calls -= {"conv3d", "max_pool3d", "avg_pool3d", "pad"}
    if _is_subsampler(module, calls):
        return []
    where = f"in forward of {name or '<root>'} ({type(module).__name__})"
    kinds = {kind: [call for call in sorted(calls) if CALLS[call] == kind] for kind in CALLS.values()}
    return [f"possible functional {kind} {where}: {', '.join(names)}" for kind, names in kinds.items() if names]


def is_global_pool(module: nn.Module) -> bool:
    """True for an adaptive pool to depth 1, which is meant to end the depth."""
    if not isinstance(module, nn.AdaptiveAvgPool3d | nn.AdaptiveMaxPool3d):
        return False
    size = module.output_size
    return (size if size is None or isinstance(size, int) else size[0]) == 1


def _is_subsampler(module: nn.Module, calls: frozenset[str]) -> bool:
    """True for a module that does nothing in depth but x[:, :, ::d] with the `stride` (d, h, w) it carries."""
    stride = getattr(module, "stride", None)
    alone = not any(True for _ in module.children()) and not module.state_dict()
    numbers = isinstance(stride, tuple) and len(stride) == 3 and all(isinstance(n, int) for n in stride)
    return alone and numbers and "strided slice" in calls and calls <= {"strided slice", "pad"}


def _triple(value: int | Sequence[int]) -> tuple[int, int, int]:
    numbers = (value,) * 3 if isinstance(value, int) else tuple(value)
    d, h, w = numbers * 3 if len(numbers) == 1 else numbers
    return (d, h, w)


def _with_depth(value: Any, depth: int) -> Any:
    """Return a setting with another depth; the very same object if its depth is that already."""
    d, h, w = _triple(value)
    return value if d == depth else (depth, h, w)
