"""What a forward does by itself, found in its byte code, and which convolutions read the input, found by a trial.

Pools, interpolations, paddings that are no modules: the byte code is read and not the source, which a notebook or an
installed wheel need not have. What is found is mentioned there, so it is possibly called, not certainly.
"""

from __future__ import annotations

import copy
import dis
import functools
import inspect
import itertools
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

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


CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# Heights and widths that are tried: cheap, enough for five halvings and a pool, what a Linear of a VGG needs.
SIZES = (32, 64, 224)
# Functions whose result is made of weighted sums over channels: it is a feature map, no longer the input.
CONVOLVING = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution")
WEIGHING = frozenset(
    (
        *(*CONVOLVING, "linear", "bilinear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "baddbmm"),
        *("inner", "einsum", "tensordot", "multi_head_attention_forward", "scaled_dot_product_attention"),
    )
)


@dataclass(frozen=True)
class Trial:
    """A run of a 2D network on zeros (2, `channels`, `size`, `size`).

    `readers`: name of each convolution module that read the input, or what was made of it without weights (scaled,
    padded, pooled), and True if nothing else went through it. `functional`: a convolution that is no module read it.
    """

    channels: int
    size: int
    readers: dict[str, bool]
    functional: bool


def try_channels(model: nn.Module, channels: Iterable[int], sizes: Iterable[int] = SIZES) -> Trial | str:
    """Run a copy of a 2D network on zeros, for each number of channels and each size until it runs.

    The copy is in evaluation mode, without hooks and gradients; the generators of random numbers are restored.

    Returns:
        The first trial that went through, or the message of the last error.
    """
    last = "no number of channels to try"
    try:
        probe = copy.deepcopy(model).eval()
        for part in probe.modules():
            if not isinstance(part, torch.jit.ScriptModule):
                part._forward_hooks.clear()
                part._forward_pre_hooks.clear()
    except Exception as error:  # whatever a foreign `train` raises
        return _told(error)
    found = next((p for p in probe.parameters() if p.is_floating_point()), torch.empty(0))
    devices = [found.device] if found.device.type == "cuda" else []
    for count, size in itertools.product(channels, sizes):
        try:
            image = torch.zeros(2, count, size, size, dtype=found.dtype, device=found.device)
            with torch.no_grad(), torch.random.fork_rng(devices=devices), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                follower = _Follower(image)
                with follower.watching(probe), follower:
                    probe(image)
        except Exception as error:  # whatever a foreign forward raises: these numbers are not those of its input
            last = _told(error)
        else:
            readers = {name: reads == {True} for name, reads in follower.reads.items() if True in reads}
            return Trial(count, size, readers, follower.functional)
    return last


def _told(error: Exception) -> str:
    """Return an error in one short line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


class _Follower(TorchFunctionMode):
    """Follows an image through the functions of torch, by the memory of what is made of it."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.held: dict[int, torch.UntypedStorage] = {}  # held, so that no other memory gets the same number
        self.reads: dict[str, set[bool]] = {}
        self.functional = False
        self.inside = 0  # convolution modules that are being run
        self._follow(image)

    def watching(self, model: nn.Module) -> ExitStack:
        """Return a context in which `reads` tells of each convolution module whether it was given the image."""
        with ExitStack() as hooks:
            for name, module in model.named_modules():
                if isinstance(module, CONVOLUTIONS):
                    enter = functools.partial(self._enter, name)
                    hooks.enter_context(module.register_forward_pre_hook(enter, with_kwargs=True))
                    hooks.enter_context(module.register_forward_hook(self._leave))
            return hooks.pop_all()

    def _enter(self, name: str, module: nn.Module, *given: Any) -> None:
        self.inside += 1
        self.reads.setdefault(name, set()).add(self._is_followed(given))

    def _leave(self, *_: Any) -> None:
        self.inside -= 1

    def _follow(self, value: Any) -> None:
        for tensor in _tensors(value):
            storage = tensor.untyped_storage()
            self.held[storage._cdata] = storage

    def _is_followed(self, value: Any) -> bool:
        return any(tensor.untyped_storage()._cdata in self.held for tensor in _tensors(value))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        result = func(*args, **given)
        if self._is_followed((args, given)):
            name = getattr(func, "__name__", "")
            if name not in WEIGHING:
                self._follow(args[0] if name == "__setitem__" else result)
            elif name in CONVOLVING and not self.inside:
                self.functional = True
        return result


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)
