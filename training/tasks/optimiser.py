"""The optimiser of every task, with its schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True)
class Optimiser:
    """The optimiser and its schedule, stepped once a batch.

    Attributes:
        lr: the peak. `warmup` is the share of all steps with a linear rise to it; then a cosine to zero.
        decay_norms: False leaves norms and biases without weight decay; the official code decays all.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    decay_norms: bool = True
    warmup: float = 0.0


def configure(network: nn.Module, rule: Optimiser, *, steps: int) -> Any:
    """Return what Lightning's `configure_optimizers` is to: the optimiser of `network` and its per-step schedule.

    Args:
        network: whose parameters are trained.
        rule: how.
        steps: of the whole run.
    """
    no_decay = [p for p in network.parameters() if p.ndim < 2 and not rule.decay_norms]
    decay = [p for p in network.parameters() if p.ndim >= 2 or rule.decay_norms]
    groups = [{"params": decay, "weight_decay": rule.weight_decay}]
    if no_decay:
        groups.append({"params": no_decay, "weight_decay": 0.0})
    if rule.name == "sgd":
        made: torch.optim.Optimizer = torch.optim.SGD(
            groups, lr=rule.lr, momentum=rule.momentum, nesterov=rule.nesterov
        )
    else:
        made = torch.optim.AdamW(groups, lr=rule.lr)
    rise = max(1, round(rule.warmup * steps))

    def factor(step: int) -> float:
        if step < rise and rule.warmup > 0:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rise) / max(1, steps - rise))))

    schedule = torch.optim.lr_scheduler.LambdaLR(made, factor)
    return {"optimizer": made, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
