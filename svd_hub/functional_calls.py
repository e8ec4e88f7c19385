"""What a module's forward does by itself, found in its byte code: pools, interpolations, paddings that are no modules.

The byte code is read and not the source, which a notebook or an installed wheel need not have. What is found is
mentioned there, so it is possibly called, not certainly.
"""

from __future__ import annotations

import dis
import functools
import inspect
from collections.abc import Collection, Iterator
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import Any

from torch import nn

from .four_axes import HABITS, Reader

# What a forward may call that changes a depth, and the word a reader looks for.
CALLS = {
    **dict.fromkeys(("max_pool3d", "avg_pool3d", "lp_pool3d", "fractional_max_pool3d", "max_unpool3d"), "pool"),
    **dict.fromkeys(("adaptive_avg_pool3d", "adaptive_max_pool3d", "max_pool3d_with_indices"), "pool"),
    **dict.fromkeys(("MaxPool3d", "AvgPool3d", "get_pool_layer"), "pool"),  # made in a forward; the last by MONAI
    **dict.fromkeys(("interpolate", "upsample", "upsample_nearest", "grid_sample"), "interpolation"),
    **dict.fromkeys(("conv3d", "conv_transpose3d"), "convolution"),
    "pad": "padding",
    "strided slice": "subsampling",
}

# The same for a 2D network that is to become 3D: what works on H and W alone, and what counts on four axes.
CALLS_2D = HABITS | {
    *("max_pool2d", "avg_pool2d", "lp_pool2d", "fractional_max_pool2d", "max_unpool2d", "max_pool2d_with_indices"),
    *("adaptive_avg_pool2d", "adaptive_max_pool2d", "conv2d", "conv_transpose2d", "dropout2d", "pad"),
    *("MaxPool2d", "AvgPool2d", "LPPool2d", "AdaptiveAvgPool2d", "AdaptiveMaxPool2d", "Upsample", "ZeroPad2d"),
    *("interpolate", "upsample", "upsample_nearest", "upsample_bilinear", "grid_sample", "affine_grid"),
    *("pixel_shuffle", "pixel_unshuffle", "fold", "unfold", "unflatten", "einsum", "rot90", "strided slice"),
}


def functional_calls(module: nn.Module, calls: Collection[str] = CALLS) -> frozenset[str]:
    """Return what of `calls` is mentioned by the forward of a module and by the functions outside torch it calls."""
    found: set[str] = set()
    seen: set[CodeType] = set()
    queue = [(function, function.__code__) for function in _methods(module, "forward")]
    while queue:
        function, code = queue.pop()
        if code in seen:
            continue
        seen.add(code)
        queue += [(function, part) for part in code.co_consts if isinstance(part, CodeType)]
        for base, name in _mentions(code, function.__code__.co_varnames[:1]):
            held = vars(module) if base == "self" else function.__globals__ if base == "global" else {}
            value = _plain(held.get(name))
            called = [value] if base == "global" and _is_ours(value) else []
            called = _methods(module, name) if base == "self" else called
            queue += [(one, one.__code__) for one in called]
            if base != "other":  # an alias (`from ... import max_pool3d as pool`, `self.pool = F.max_pool3d`)
                name = value.__name__ if isinstance(value, FunctionType | BuiltinFunctionType | type) else ""
            asked_for = name.endswith(("Pool2d", "Pool3d")) and "isinstance" in code.co_names  # and not made
            if name in calls and not asked_for:
                found.add(name)
        if not HABITS.isdisjoint(calls):
            found.update(Reader(code, function.__code__.co_varnames[:1], vars(module)).habits())
    return frozenset(found)


def _mentions(code: CodeType, me: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Yield ("self" | "global" | "other", name) for what a code object loads, as in self.pool, pool and F.pool."""
    variable: Any = None
    constant: object = "unknown"
    for step in dis.get_instructions(code):
        name = step.argval[-1] if isinstance(step.argval, tuple) and step.argval else step.argval
        if step.opname == "LOAD_GLOBAL":
            yield "global", name
        elif step.opname in ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR"):
            yield ("self" if variable in me else "other"), name
        steps = [constant] if step.opname == "BUILD_SLICE" and step.arg == 3 else []
        if step.opname == "LOAD_CONST":  # from Python 3.14 on, slices of constants are constants
            items = step.argval if isinstance(step.argval, tuple) else (step.argval,)
            steps = [item.step for item in items if isinstance(item, slice)]
        # torch has no negative steps: those are lists
        if any(not (n is None or (isinstance(n, int) and n <= 1)) for n in steps):
            yield "other", "strided slice"
        variable = name if step.opname.startswith(("LOAD_FAST", "LOAD_DEREF")) else None
        constant = step.argval if step.opname in ("LOAD_CONST", "LOAD_SMALL_INT") else "unknown"


def _methods(module: nn.Module, name: str) -> list[FunctionType]:
    """Return the functions outside torch that `self.name(...)` runs: the first, and the next where it says super."""
    found: list[FunctionType] = []
    for holder in (module, *type(module).__mro__):
        value = _plain(vars(holder).get(name))
        if value is None:
            continue
        if not _is_ours(value):
            break
        found.append(value)
        if "super" not in value.__code__.co_names:
            break
    return found


def _is_ours(value: object) -> bool:
    """True for a Python function that torch did not define."""
    return isinstance(value, FunctionType) and (value.__module__ or "").split(".")[0] != "torch"


def _plain(value: Any) -> Any:
    """Return the function behind a partial, a bound, static or class method, or a decorator."""
    while isinstance(value, functools.partial):
        value = value.func
    if isinstance(value, MethodType | staticmethod | classmethod):
        value = value.__func__
    return inspect.unwrap(value) if isinstance(value, FunctionType) else value
