"""Changes a weight undergoes on its way into a network of another head or input. Each keeps a law that a test holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .errors import check_choice

CHANNEL_RULES = ("sum", "mean")
HEAD = "fc."


@dataclass(frozen=True)
class Adaptation:
    """One explicit change: the tensor's name, the rule in words, its shape before and after (() = not there)."""

    name: str
    rule: str
    before: tuple[int, ...]
    after: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.before or 'absent'} -> {self.after or 'absent'}: {self.rule}"


def first_convolution(network: nn.Module) -> str:
    """Return the name of the weight that reads the input."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv3d):
            return f"{name}.weight"
    raise TypeError(f"{type(network).__name__} has no Conv3d")


def change_channels(weight: Tensor, channels: int, rule: str) -> Tensor:
    """Return a first kernel (O, I, ...) for another number of input channels.

    "sum": the kernels are added up and shared out equally, so a grey volume repeated over the new channels gives
    exactly what it gave repeated over the old ones. "mean": their mean at every new channel (3 -> 1 as the SVD-Net
    paper did: a third of "sum").
    """
    check_choice("in_channels_rule", rule, CHANNEL_RULES)
    total = weight.sum(1, keepdim=True)
    one = total / channels if rule == "sum" else total / weight.shape[1]
    return one.expand(-1, channels, *weight.shape[2:]).contiguous()


def adapt(
    tensors: Mapping[str, Tensor], network: nn.Module, *, in_channels_rule: str, new_head: bool
) -> tuple[dict[str, Tensor], list[Adaptation]]:
    """Return the tensors as `network` (built on any device) needs them, and every change made.

    Args:
        tensors: of the network as it was trained.
        network: the network asked for: another head (`new_head`) or none, other input channels.
    """
    wanted = dict(network.state_dict())
    adapted = dict(tensors)
    changes: list[Adaptation] = []
    first = first_convolution(network)
    if first in adapted and adapted[first].shape != wanted[first].shape:
        old = adapted[first]
        if old.shape[0] == wanted[first].shape[0] and old.shape[2:] == wanted[first].shape[2:]:
            adapted[first] = change_channels(old, wanted[first].shape[1], in_channels_rule)
            rule = f"input channels by {in_channels_rule}"
            changes.append(Adaptation(first, rule, tuple(old.shape), tuple(adapted[first].shape)))
    for name in [n for n in adapted if n.startswith(HEAD)]:
        if name not in wanted or new_head:
            changes.append(Adaptation(name, "head dropped", tuple(adapted.pop(name).shape), ()))
    if new_head and f"{HEAD}weight" in wanted:
        shape = tuple(wanted[f"{HEAD}weight"].shape)
        adapted[f"{HEAD}weight"] = torch.empty(shape).normal_(std=0.01)
        adapted[f"{HEAD}bias"] = torch.zeros(shape[0])
        changes.append(Adaptation(f"{HEAD}weight", "new head, normal with std 0.01", (), shape))
        changes.append(Adaptation(f"{HEAD}bias", "new head, zeros", (), shape[:1]))
    return adapted, changes
