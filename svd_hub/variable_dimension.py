"""The variable dimension transform: a 3D network learns from RGB images, then moves to volumes with the same weights.

Source: SVD-Net paper, III-A (colour planes become slices), III-B (depth is kept during pre-training) and III-C
(transfer; the group transform module). No parameter depends on a stride or a padding, so weights fit the kept and the
strided form.
"""

from __future__ import annotations

import copy
import dis
import functools
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, is_dataclass, replace
from itertools import permutations
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import OptionError

# urmagicsmine/CSPR@390a413 configs/imagenet_pretrain: one mean and one std of all colour planes, on 0..255. Separate
# ones would let the network tell the planes apart by their level.
PRETRAIN_MEAN = 114.495
PRETRAIN_STD = 57.63


def rgb_to_depth(x: Tensor) -> Tensor:
    """Return images (N, 3, H, W) as volumes (N, 1, 3, H, W), a view: depth 0, 1, 2 are the planes R, G, B.

    Raises:
        OptionError: any other shape.
    """
    if x.ndim != 4 or x.shape[1] != 3:
        hint = " (one image: x[None])" if x.ndim == 3 else ""
        raise OptionError(f"images of shape {tuple(x.shape)} are not allowed; allowed: (N, 3, H, W){hint}")
    return x.unsqueeze(1)


def pretrain_input(x: Tensor, *, shuffle: bool = False, generator: torch.Generator | None = None) -> Tensor:
    """Return images as the pre-trained networks read them (the rule of the official code).

    Args:
        x: (N, 3, H, W) on 0..255, of any integer or floating type.
        shuffle: puts the planes of each image in one of their six orders, drawn uniformly; for training only.
        generator: draws the orders.

    Returns:
        (N, 1, 3, H, W), floating: all planes normalised with `PRETRAIN_MEAN` and `PRETRAIN_STD`.

    Raises:
        OptionError: any other shape.
    """
    rgb_to_depth(x)  # refuses other shapes before anything is drawn
    if shuffle:
        orders = torch.tensor(list(permutations(range(3))))
        device = generator.device if generator is not None else torch.device("cpu")
        drawn = torch.randint(len(orders), (len(x),), generator=generator, device=device)
        x = x[torch.arange(len(x), device=x.device)[:, None], orders[drawn.cpu()].to(x.device)]
    x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
    return rgb_to_depth((x - PRETRAIN_MEAN) / PRETRAIN_STD)


def centre_slice(x: Tensor) -> Tensor:
    """Return slice D // 2 of x (N, C, D, H, W): (N, C, H, W), a view.

    Raises:
        OptionError: x has not five axes.
    """
    if x.ndim != 5:
        raise OptionError(f"features of shape {tuple(x.shape)} are not allowed; allowed: (N, C, D, H, W)")
    return x[:, :, x.shape[2] // 2]


class GroupTransform(nn.Conv2d):
    """The group transform module (GTM): (N, C, D, H, W) -> (N, C, H, W), a learned sum over the depth of each channel.

    A 1x1 convolution without bias in C groups: group c sees the D slices of channel c. It starts as `centre_slice`.
    The only key is `weight`, (C, D, 1, 1), so weights of one depth fit no other. Upstream (urmagicsmine/MP3D@08e5ace,
    modified_p3d.py) names it `backbone.groupconv_{i}.weight`, i = 1..4 for layer1..layer4.

    Raises:
        OptionError: fewer than one channel or slice; in `forward`, a shape other than (N, channels, depth, H, W).
    """

    def __init__(self, channels: int, depth: int) -> None:
        if channels < 1 or depth < 1:
            raise OptionError(f"channels={channels}, depth={depth} are not allowed; allowed: 1 or more of each")
        super().__init__(channels * depth, channels, 1, groups=channels, bias=False)
        self.channels, self.depth = channels, depth

    def reset_parameters(self) -> None:
        """Set the weight to one at the centre slice and zero elsewhere."""
        with torch.no_grad():
            self.weight.zero_()
            self.weight[:, self.weight.shape[1] // 2] = 1

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        # a traced size is a tensor, which cannot steer Python
        if not torch.jit.is_tracing() and (x.ndim != 5 or x.shape[1] != self.channels or x.shape[2] != self.depth):
            raise OptionError(
                f"features of shape {list(x.shape)} are not allowed; allowed: (N, {self.channels}, {self.depth}, H, W)"
            )
        x = x.reshape(x.shape[0], self.channels * self.depth, x.shape[3], x.shape[4])
        return F.conv2d(x, self.weight, groups=self.channels)


@dataclass(frozen=True)
class Change:
    """One submodule that `preserve_depth` changed: the attributes that differ, before and after."""

    name: str
    kind: str
    before: dict[str, Any]
    after: dict[str, Any]

    def __str__(self) -> str:
        parts = (f"{key} {self.before[key]} -> {value}" for key, value in self.after.items())
        return f"{self.name or '<root>'} ({self.kind}): {', '.join(parts)}"


@dataclass(frozen=True)
class DepthReport:
    """What `preserve_depth` did.

    `changed`: every submodule with new settings. `global_pools`: adaptive pools to depth 1, left as they are.
    `untreated`: (name, reason) of whatever may still change the depth; the name of the whole network is "".
    """

    changed: tuple[Change, ...]
    global_pools: tuple[str, ...]
    untreated: tuple[tuple[str, str], ...]

    @property
    def complete(self) -> bool:
        """True if nothing is left that may change the depth (global pools are meant to)."""
        return not self.untreated

    def __str__(self) -> str:
        lines = [f"depth is kept: {len(self.changed)} changed, {len(self.untreated)} untreated"]
        lines += [f"  changed    {change}" for change in self.changed]
        lines += [f"  global     {name or '<root>'}" for name in self.global_pools]
        lines += [f"  untreated  {name or '<root>'}: {reason}" for name, reason in self.untreated]
        return "\n".join(lines)


# A plain attribute of each changed submodule and of the root: it survives deepcopy and pickle, no state dict has it.
_BEFORE = "_svd_hub_depth_before"
# What a forward may call that changes a depth, and the word a reader looks for.
_CALLS = {
    **dict.fromkeys(("max_pool3d", "avg_pool3d", "lp_pool3d", "fractional_max_pool3d", "max_unpool3d"), "pool"),
    **dict.fromkeys(("adaptive_avg_pool3d", "adaptive_max_pool3d", "max_pool3d_with_indices"), "pool"),
    **dict.fromkeys(("MaxPool3d", "AvgPool3d", "get_pool_layer"), "pool"),  # made in a forward; the last by MONAI
    **dict.fromkeys(("interpolate", "upsample", "upsample_nearest", "grid_sample"), "interpolation"),
    **dict.fromkeys(("conv3d", "conv_transpose3d"), "convolution"),
    "pad": "padding",
    "strided slice": "subsampling",
}
Network = TypeVar("Network", bound=nn.Module)
_TREATED = (nn.Conv3d, nn.MaxPool3d, nn.AvgPool3d)


def preserve_depth(module: Network, *, strict: bool = False) -> tuple[Network, DepthReport]:
    """Return a copy of a 3D network that keeps the depth of its input, and what was done (paper III-B).

    Every convolution and pool gets depth stride 1 and depth padding dilation * (k - 1) / 2; H and W stay as they are.
    An even average or max pool gets depth kernel 1. An average pool without any padding does not count its new zeros.
    A parameter-free module that slices by its own `stride` (shortcut A) is treated, and `feature_info` follows.
    The copy is deep: it shares no tensor with `module`, its state dict has the same keys and values. What a forward
    calls by itself is found in its byte code, so such a leftover is possible, not certain; it is never changed.
    torch's own limits stay: average pools need a depth of their kernel or more, reflecting paddings one above the new
    padding. What a forward does by arithmetic (a mean over depth, an unfold) is not seen.

    Args:
        module: any network; it is not changed.
        strict: raise on leftovers.

    Raises:
        OptionError: `strict` and something untreated, by name.
    """
    new = copy.deepcopy(module)
    changed: list[Change] = []
    pools: list[str] = []
    untreated: list[tuple[str, str]] = []
    for name, child in _open_modules(new, untreated):
        calls = _calls(child)
        if _is_global_pool(child):
            pools.append(name)
        plan = _plan(child, calls)
        if isinstance(plan, str):
            untreated.append((name, plan))
        else:
            changed += _apply(name, child, plan)
        untreated += [(name, reason) for reason in _explain(name, child, calls)]
    for name, child in new.named_modules():
        plan = _plan_feature_info(child)
        prefix = f"{name}." if name else ""
        if plan and any(leftover == name or leftover.startswith(prefix) for leftover, _ in untreated):
            untreated.append((name, "feature_info is left: its depth strides may be wrong because of the others here"))
        else:
            changed += _apply(name, child, plan)
    if not isinstance(new, torch.jit.ScriptModule) and _BEFORE not in vars(new):
        setattr(new, _BEFORE, {})
    report = DepthReport(tuple(changed), tuple(pools), tuple(untreated))
    if strict and not report.complete:
        found = "; ".join(f"{name or '<root>'}: {reason}" for name, reason in untreated)
        raise OptionError(
            f"preserve_depth(strict=True) of {type(module).__name__} cannot treat {len(untreated)}: {found}. "
            "Next: replace these by Conv3d, MaxPool3d or AvgPool3d modules, or use strict=False and check them yourself"
        )
    return new, report


def restore_depth(module: Network) -> Network:
    """Return a deep copy of a network with the settings it had before `preserve_depth`.

    Raises:
        OptionError: `preserve_depth` never treated this network.
    """
    new = copy.deepcopy(module)
    treated = [child for child in new.modules() if _BEFORE in vars(child)]
    if not treated:
        raise OptionError(
            f"restore_depth: {type(module).__name__} did not come out of preserve_depth: nothing to restore; "
            "allowed: the network that preserve_depth returned, or a copy of it"
        )
    for child in treated:
        for key, value in vars(child)[_BEFORE].items():
            setattr(child, key, value)
        delattr(child, _BEFORE)
    return new


def _open_modules(root: nn.Module, untreated: list[tuple[str, str]]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the submodules that can be read; note scripted and lazy ones."""
    closed: list[str] = []
    for name, child in root.named_modules():
        if any(prefix == "" or name.startswith(f"{prefix}.") for prefix in closed):
            continue
        if isinstance(child, torch.jit.ScriptModule):
            closed.append(name)
            untreated.append((name, "scripted module: call preserve_depth before torch.jit.script or torch.jit.trace"))
        elif isinstance(child, nn.modules.lazy.LazyModuleMixin):
            untreated.append((name, "lazy module: run one batch through the network first"))
        else:
            yield name, child


def _apply(name: str, module: nn.Module, after: dict[str, Any]) -> list[Change]:
    before = {key: getattr(module, key) for key in after}
    after = {key: value for key, value in after.items() if value != before[key]}
    if not after:
        return []
    # the oldest value wins, so that a second call does not forget the original
    setattr(module, _BEFORE, {**{key: before[key] for key in after}, **vars(module).get(_BEFORE, {})})
    for key, value in after.items():
        setattr(module, key, value)
    public = [key for key in after if not key.startswith("_")]
    kept = ({key: before[key] for key in public}, {key: after[key] for key in public})
    return [Change(name, type(module).__name__, *kept)]


def _triple(value: int | Sequence[int]) -> tuple[int, int, int]:
    numbers = (value,) * 3 if isinstance(value, int) else tuple(value)
    d, h, w = numbers * 3 if len(numbers) == 1 else numbers
    return (d, h, w)


def _with_depth(value: Any, depth: int) -> Any:
    """Return a setting with another depth; the very same object if its depth is that already."""
    d, h, w = _triple(value)
    return value if d == depth else (depth, h, w)


def _plan(module: nn.Module, calls: frozenset[str]) -> dict[str, Any] | str:
    """Return the new settings of a module, or the reason why it cannot be treated."""
    if isinstance(module, _TREATED):
        if "pad" in calls:
            return "pads by itself in its forward"
        return _plan_conv(module) if isinstance(module, nn.Conv3d) else _plan_pool(module)
    if isinstance(module, nn.ConvTranspose3d):
        return _plan_transposed(module)
    if isinstance(module, nn.LPPool3d | nn.MaxUnpool3d):
        step = module.kernel_size if module.stride is None else module.stride
        kept = _triple(step)[0] == 1 and _triple(module.kernel_size)[0] == 1
        return {} if kept else f"{type(module).__name__} changes the depth"
    if isinstance(module, nn.FractionalMaxPool3d):
        return "FractionalMaxPool3d changes the depth"
    if isinstance(module, nn.AdaptiveAvgPool3d | nn.AdaptiveMaxPool3d) and not _is_global_pool(module):
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


def _plan_conv(conv: nn.Conv3d) -> dict[str, Any] | str:
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
        # torch keeps the padding twice, for each padding_mode but "zeros": W first, both sides of it
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


def _is_global_pool(module: nn.Module) -> bool:
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


def _plan_feature_info(module: nn.Module) -> dict[str, Any]:
    """Return a pyramid description (see models.layers.Feature) with depth stride 1, {} where there is none."""
    info = vars(module).get("feature_info")
    if not isinstance(info, tuple) or not all(is_dataclass(f) and hasattr(f, "stride") for f in info):
        return {}
    return {"feature_info": tuple(replace(f, stride=_with_depth(f.stride, 1)) for f in info)}


def _explain(name: str, module: nn.Module, calls: frozenset[str]) -> list[str]:
    """Return one sentence for each kind of call in the forward of a module that no plan covers."""
    if isinstance(module, _TREATED):
        calls -= {"conv3d", "max_pool3d", "avg_pool3d", "pad"}
    if _is_subsampler(module, calls):
        return []
    where = f"in forward of {name or '<root>'} ({type(module).__name__})"
    kinds = {kind: [call for call in sorted(calls) if _CALLS[call] == kind] for kind in _CALLS.values()}
    return [f"possible functional {kind} {where}: {', '.join(names)}" for kind, names in kinds.items() if names]


def _calls(module: nn.Module) -> frozenset[str]:
    """Return what of `_CALLS` is mentioned by the forward of a module and by the functions outside torch it calls."""
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
            if name in _CALLS and not (
                name.endswith("Pool3d") and "isinstance" in code.co_names
            ):  # made, not asked for
                found.add(name)
    return frozenset(found)


def _mentions(code: CodeType, me: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Yield ("self" | "global" | "other", name) for what a code object loads, as in self.pool, pool and F.pool.

    The byte code is read and not the source, which a notebook or an installed wheel need not have.
    """
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
