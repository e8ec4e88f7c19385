"""What a weight undergoes on its way into a network of another head, input or kernel; a test holds each law."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .entry import Entry
from .inflation import CHANNEL_RULES as CHANNEL_RULES
from .inflation import change_channels as change_channels
from .inflation import inflate_kernel
from .models import Backbone
from .models.acs import ACSConv
from .models.group_transform import GroupTransform


@dataclass(frozen=True)
class Adaptation:
    """One explicit change: the tensor's name, the rule in words, its shape before and after (None = not there)."""

    name: str
    rule: str
    before: tuple[int, ...] | None
    after: tuple[int, ...] | None

    def __str__(self) -> str:
        shapes = " -> ".join("absent" if shape is None else str(shape) for shape in (self.before, self.after))
        return f"{self.name} {shapes}: {self.rule}"


def values_that_fit(entry: Entry, option: str, default: Any) -> list[Any]:
    """Return the values of a weight option that the weights of `entry` can be adapted to, the trained one first."""
    values = [plain(entry.options.get(option, default))]
    if option == "convolution" and (entry.inflation == "acs" or values == ["acs"]):
        values = [values[0], *({"acs", "3d"} - set(values))]  # 2D kernels, or the dense ones that equal them
    if option == "dsdepth":
        values += range(values[0] - 1, 0, -1)  # heads of the coarser levels may be left out
    if option == "stem_depth" and values == [3]:
        values.append(7)  # zeros around the kernel and as much more padding: the same function
    if option == "reduction" and values == ["centre"]:
        values.append("group")  # starts as the middle slice: the same function
    if option == "slices" and entry.options.get("reduction") != "group":
        values += [depth for depth in range(1, 65) if depth not in values]  # no tensor has them yet
    return values


def plain(value: Any) -> Any:
    """Return an option's value as it compares: TOML and JSON have lists where Python has tuples, in tables too."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return tuple(plain(item) for item in value) if isinstance(value, list | tuple) else value


def first_convolution(network: nn.Module) -> str:
    """Return the name of the weight that reads the input."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv3d | ACSConv):
            return f"{name}.weight"
    raise TypeError(f"{type(network).__name__} has no Conv3d")


def deepen(weight: Tensor, depth: int) -> Tensor:
    """Return a kernel (O, I, D, H, W) with zeros around its depth: with as much more padding, the same function."""
    more = (depth - weight.shape[2]) // 2
    return F.pad(weight, (0, 0, 0, 0, more, more))


def adapt(
    tensors: Mapping[str, Tensor], network: Backbone, *, in_channels_rule: str, new_head: bool, inflation: str = ""
) -> tuple[dict[str, Tensor], list[Adaptation]]:
    """Return the tensors as `network` (built on any device) needs them, and every change made.

    Args:
        tensors: of the network as it was trained.
        network: the network asked for: another head (`new_head`) or none, other input channels, a deeper stem, 3D
            kernels for 2D ones, group transforms for middle slices.
        in_channels_rule: see `change_channels`.
        new_head: what the weights have under `network.head` is left, and made new.
        inflation: the rule of `svd_hub.inflation` by which 2D kernels become 3D.
    """
    wanted = dict(network.state_dict())
    adapted = dict(tensors)
    changes: list[Adaptation] = []

    def change(name: str, rule: str, new: Tensor) -> None:
        changes.append(Adaptation(name, rule, tuple(adapted[name].shape), tuple(new.shape)))
        adapted[name] = new

    first, rule = first_convolution(network), inflation or "acs"  # 2D kernels without a rule are an ACS network's own
    for name, tensor in tensors.items():
        if name in wanted and tensor.ndim == 4 and wanted[name].ndim == 5:
            change(name, f"2D kernel inflated by {rule}", inflate_kernel(tensor, rule))
    if first in adapted and adapted[first].ndim == wanted[first].ndim:
        _adapt_first(first, adapted, wanted[first].shape, in_channels_rule, change)
    changes += _add_group_transforms(adapted, network)
    return adapted, [*changes, *_adapt_head(adapted, wanted, network, new_head=new_head)]


def _adapt_first(name: str, adapted: Mapping[str, Tensor], want: torch.Size, rule: str, change: Any) -> None:
    old = adapted[name]
    if old.ndim == 5 and 1 < old.shape[2] < want[2] and old.shape[3:] == want[3:] and (want[2] - old.shape[2]) % 2 == 0:
        change(name, f"depth {old.shape[2]} -> {want[2]} with zeros, the same function", deepen(old, want[2]))
        old = adapted[name]
    if old.shape[1] != want[1] and old.shape[0] == want[0] and old.shape[2:] == want[2:]:
        change(name, f"input channels by {rule}", change_channels(old, want[1], rule))


def _add_group_transforms(adapted: dict[str, Tensor], network: nn.Module) -> list[Adaptation]:
    """Add the group transforms that weights of a detector on middle slices lack, all of them, as middle slices."""
    named = [(f"{n}.weight", m.weight) for n, m in network.named_modules() if isinstance(m, GroupTransform)]
    if any(name in adapted for name, _ in named):
        return []
    for name, like in named:
        adapted[name] = torch.zeros(like.shape)
        adapted[name][:, like.shape[1] // 2] = 1
    rule = "new group transform, the middle slice: the same function"
    return [Adaptation(name, rule, None, tuple(like.shape)) for name, like in named]


def _adapt_head(
    adapted: dict[str, Tensor], wanted: Mapping[str, Tensor], network: Backbone, *, new_head: bool
) -> list[Adaptation]:
    heads = (network.head,) if isinstance(network.head, str) else network.head
    kept = tuple(prefix for prefix in heads if any(name.startswith(prefix) for name in adapted))
    # classes of the whole image instead of the voxels': the old head goes, and the other one is new
    new_head = new_head or any(n.startswith(heads) and not n.startswith(kept) for n in wanted)
    changes = []
    for name in [n for n in adapted if n.startswith((*heads, *network.decoder))]:
        if name not in wanted or (new_head and name.startswith(heads)):
            part = "head" if name.startswith(heads) else "decoder"
            changes.append(Adaptation(name, f"{part} dropped", tuple(adapted.pop(name).shape), None))
    for name in [n for n in wanted if new_head and n.startswith(heads)]:
        shape = tuple(wanted[name].shape)
        weight = len(shape) > 1
        adapted[name] = torch.empty(shape).normal_(std=0.01) if weight else torch.zeros(shape)
        rule = "new head, normal with std 0.01" if weight else "new head, zeros"
        changes.append(Adaptation(name, rule, None, shape))
    return changes
