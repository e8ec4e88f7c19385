"""The variable dimension transform: a 3D network learns from RGB images, then moves to volumes with the same weights.

Source: SVD-Net paper, III-A (colour planes become slices), III-B (depth is kept during pre-training) and III-C
(transfer; the group transform module). No parameter depends on a stride or a padding, so weights fit the kept and the
strided form.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .depth_plans import explain_calls, is_global_pool, plan_feature_info, plan_module
from .errors import OptionError
from .functional_calls import functional_calls

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
        parts = (f"{key} {_difference(self.before[key], value)}" for key, value in self.after.items())
        return f"{self.name or '<root>'} ({self.kind}): {', '.join(parts)}"


def _difference(before: Any, after: Any) -> str:
    """Return what changed in words; of a pyramid's description only the levels' strides that did."""
    if not isinstance(before, tuple) or not all(hasattr(level, "stride") for level in before):
        return f"{before} -> {after}"
    pairs = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
    return ", ".join(f"{a.name} {a.stride} -> {b.stride}" for a, b in pairs)


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
        head = "depth is kept" if self.complete else "depth is not kept everywhere"
        lines = [f"{head}: {len(self.changed)} changed, {len(self.untreated)} untreated"]
        lines += [f"  changed    {change}" for change in self.changed]
        lines += [f"  global     {name or '<root>'}" for name in self.global_pools]
        lines += [f"  untreated  {name or '<root>'}: {reason}" for name, reason in self.untreated]
        return "\n".join(lines)


# A plain attribute of each changed submodule and of the root: it survives deepcopy and pickle, no state dict has it.
_BEFORE = "_svd_hub_depth_before"
Network = TypeVar("Network", bound=nn.Module)


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
        calls = functional_calls(child)
        if is_global_pool(child):
            pools.append(name)
        plan = plan_module(child, calls)
        if isinstance(plan, str):
            untreated.append((name, plan))
        else:
            changed += _apply(name, child, plan)
        untreated += [(name, reason) for reason in explain_calls(name, child, calls)]
    for name, child in new.named_modules():
        plan = plan_feature_info(child)
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


def is_preserved(module: nn.Module) -> bool:
    """Return whether `preserve_depth` changed something in a network, which is then not the one its options build."""
    return any(vars(child).get(_BEFORE) for child in module.modules())


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
