"""The optimiser of every task, with its schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import nn

from ...errors import OptionError


@dataclass(frozen=True, kw_only=True)
class Optimiser:
    """The optimiser and its schedule, stepped once a batch.

    The rate is `lr` times the schedule's factor. "cosine" falls behind the warm-up to `min_lr` at the end; "step" and
    "poly" count from the first step, and the warm-up is multiplied on, as OpenMMLab's runners do it
    (open-mmlab/mmcv@v1.3.0 mmcv/runner/hooks/lr_updater.py).

    Attributes:
        name: "sgd" and "adam" add the weight decay to the gradient; "adamw" takes it off the weights.
        lr: the peak.
        decay_norms: False leaves norms and biases without weight decay; the official code decays all.
        schedule: "cosine", "step" (times `gamma` at each of `drops`), "poly" ((1 - share done) ** `power`).
        drops: epochs whose first step is the first of the next lower rate, rising; of "step".
        min_lr: what "cosine" and "poly" end at.
        stepped: "epoch" keeps the rate of "cosine" within an epoch at that of its first step.
        warmup: the share of all steps in which the rate rises; or
        warmup_steps: their number.
        warmup_start: the factor of the first step; the rise is linear from there. 0 = one step's share of the rise.
        warmup_shape: "constant" stays at `warmup_start` instead.
    """

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    decay_norms: bool = True
    schedule: Literal["cosine", "step", "poly"] = "cosine"
    drops: tuple[int, ...] = ()
    gamma: float = 0.1
    power: float = 0.9
    min_lr: float = 0.0
    stepped: Literal["step", "epoch"] = "step"
    warmup: float = 0.0
    warmup_steps: int = 0
    warmup_start: float = 0.0
    warmup_shape: Literal["linear", "constant"] = "linear"

    def __post_init__(self) -> None:
        if not 0 <= self.min_lr <= self.lr:
            raise OptionError(f"min_lr={self.min_lr} with lr={self.lr} is not allowed; allowed: 0 to lr")
        if (self.schedule == "step") != bool(self.drops) or list(self.drops) != sorted({0, *self.drops})[1:]:
            raise OptionError(
                f"drops={list(self.drops)} with schedule={self.schedule!r} are not allowed; allowed: epochs that rise, "
                "from 1 on, with 'step'; none with another"
            )
        if self.warmup and self.warmup_steps:
            raise OptionError(
                f"warmup={self.warmup} and warmup_steps={self.warmup_steps} exclude each other; allowed: one"
            )
        if not (0 <= self.warmup < 1 and self.warmup_steps >= 0 and 0 <= self.warmup_start <= 1):
            raise OptionError(
                f"warmup={self.warmup}, warmup_steps={self.warmup_steps}, warmup_start={self.warmup_start} are not "
                "allowed; allowed: a share of all steps below 1, 0 or more steps, a factor 0 to 1"
            )


def factor(rule: Optimiser, *, steps: int, epochs: int) -> Callable[[int], float]:
    """Return the function from a step (from 0) to the factor of `rule.lr`.

    Args:
        rule: the schedule.
        steps: of the whole run.
        epochs: of the whole run, equally long.
    """
    rise = max(1, round(rule.warmup * steps)) if rule.warmup else rule.warmup_steps
    floor = rule.min_lr / rule.lr if rule.lr else 0.0

    def warming(step: int) -> float:
        if rule.warmup_shape == "constant":
            return rule.warmup_start
        if not rule.warmup_start:
            return (step + 1) / rise
        return rule.warmup_start + (1 - rule.warmup_start) * step / rise

    def of(step: int) -> float:
        if rule.schedule == "cosine":
            if step < rise:
                return warming(step)
            if rule.stepped == "epoch":
                step = step * epochs // steps * steps // epochs
            share = min(1.0, max(0, step - rise) / max(1, steps - rise))
            return floor + (1 - floor) * (0.5 * (1 + math.cos(math.pi * share)))
        if rule.schedule == "step":
            value = rule.gamma ** sum(step * epochs >= drop * steps for drop in rule.drops)
        else:
            value = floor + (1 - floor) * (1 - min(1.0, step / max(1, steps))) ** rule.power
        return value * warming(step) if step < rise else value

    return of


def configure(network: nn.Module, rule: Optimiser, trainer: pl.Trainer) -> Any:
    """Return what Lightning's `configure_optimizers` is to: the optimiser of `network` and its per-step schedule.

    Args:
        network: whose parameters are trained, but for those that need no gradient.
        rule: how.
        trainer: knows how long the run is.
    """
    trained = [p for p in network.parameters() if p.requires_grad]
    no_decay = [p for p in trained if p.ndim < 2 and not rule.decay_norms]
    decay = [p for p in trained if p.ndim >= 2 or rule.decay_norms]
    groups = [{"params": decay, "weight_decay": rule.weight_decay}]
    if no_decay:
        groups.append({"params": no_decay, "weight_decay": 0.0})
    if rule.name == "sgd":
        made: torch.optim.Optimizer = torch.optim.SGD(
            groups, lr=rule.lr, momentum=rule.momentum, nesterov=rule.nesterov
        )
    else:
        made = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[rule.name](groups, lr=rule.lr)
    steps, epochs = int(trainer.estimated_stepping_batches), trainer.max_epochs or 1
    schedule = torch.optim.lr_scheduler.LambdaLR(made, factor(rule, steps=steps, epochs=epochs))
    return {"optimizer": made, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
