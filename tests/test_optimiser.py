"""Laws of the schedules: those of the official runners, stated again in plain arithmetic."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from svd_hub.errors import OptionError
from svd_hub.training.tasks.optimiser import Optimiser, configure, factor

STEPS, EPOCHS = 240, 24


class Trainer:
    estimated_stepping_batches, max_epochs = STEPS, EPOCHS


def rates(rule: Optimiser) -> list[float]:
    """The rates that an optimiser really has, step by step."""
    layer = nn.Linear(2, 2)
    made: dict[str, Any] = configure(layer, rule, Trainer())  # type: ignore[arg-type]
    found = []
    for _ in range(STEPS):
        found.append(made["optimizer"].param_groups[0]["lr"])
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()
    return found


def test_the_detectors_schedule() -> None:
    """Linear from a third over 50 steps, times a tenth from epochs 16 and 22 on (mmcv's step and linear warm-up)."""
    rule = Optimiser(lr=0.02, schedule="step", drops=(16, 22), warmup_steps=50, warmup_start=1 / 3)
    expected = []
    for step in range(STEPS):
        regular = 0.02 * 0.1 ** sum(step // 10 >= drop for drop in (16, 22))
        lack = (1 - step / 50) * (1 - 1 / 3) if step < 50 else 0.0
        expected.append(regular * (1 - lack))
    assert rates(rule) == pytest.approx(expected, rel=1e-12)
    assert rates(rule)[0] == pytest.approx(0.02 / 3)
    assert [rates(rule)[step] for step in (159, 160, 219, 220)] == pytest.approx([0.02, 0.002, 0.002, 0.0002])


def test_a_drop_falls_on_the_first_step_of_its_epoch_whatever_the_length() -> None:
    for length in (1, 7, 13):
        of = factor(Optimiser(schedule="step", drops=(2, 3)), steps=5 * length, epochs=5)
        assert [round(of(step), 6) for step in range(5 * length)] == [
            (1, 1, 0.1, 0.01, 0.01)[step // length] for step in range(5 * length)
        ]


def test_a_cosine_may_stay_within_an_epoch() -> None:
    """mmcv's CosineAnnealing by epoch: half of 1 + cos(pi * epoch / epochs), the same in each of its steps."""
    rule = Optimiser(lr=0.1, schedule="cosine", stepped="epoch")
    expected = [0.05 * (1 + math.cos(math.pi * (step // 10) / EPOCHS)) for step in range(STEPS)]
    assert rates(rule) == pytest.approx(expected, rel=1e-9)
    assert rates(rule) != rates(Optimiser(lr=0.1, schedule="cosine"))
    warm = rates(Optimiser(lr=0.1, schedule="cosine", stepped="epoch", warmup_steps=15))
    assert warm[:15] == pytest.approx([0.1 * (step + 1) / 15 for step in range(15)])
    assert warm[15:20] == pytest.approx([0.1] * 5)


def test_poly_ends_at_its_least_rate() -> None:
    rule = Optimiser(name="adam", lr=1e-3, schedule="poly", power=0.9, min_lr=1e-6)
    expected = [(1e-3 - 1e-6) * (1 - step / STEPS) ** 0.9 + 1e-6 for step in range(STEPS)]
    assert rates(rule) == pytest.approx(expected, rel=1e-9)


def test_a_constant_warm_up() -> None:
    """LIDC's: a tenth for 50 steps."""
    rule = Optimiser(
        name="adam", lr=5e-4, schedule="step", drops=(6,), warmup_steps=50, warmup_start=0.1, warmup_shape="constant"
    )
    assert rates(rule) == pytest.approx([5e-5] * 50 + [5e-4] * 10 + [5e-5] * 180)


def test_cosine_is_what_the_released_weights_were_trained_with() -> None:
    """To the bit: the rule as it stood before it had names."""
    rule = Optimiser(lr=0.2, warmup=0.08)
    rise = max(1, round(0.08 * STEPS))
    before = [
        0.2 * ((s + 1) / rise if s < rise else 0.5 * (1 + math.cos(math.pi * min(1.0, (s - rise) / (STEPS - rise)))))
        for s in range(STEPS)
    ]
    assert rates(rule) == before
    ending = rates(Optimiser(lr=0.2, min_lr=0.05))
    assert ending[0] == 0.2
    assert ending == sorted(ending, reverse=True)
    assert 0.05 < ending[-1] < 0.0501


def test_weight_decay_of_the_three() -> None:
    """adam and sgd add it to the gradient, adamw takes it off the weights: told apart where the gradient is zero."""
    for name, moved in (("sgd", 0.01 * 0.5), ("adam", 0.01), ("adamw", 0.01 * 0.5)):
        layer = nn.Linear(1, 1, bias=False)
        nn.init.ones_(layer.weight)
        rule = Optimiser(name=name, lr=0.01, weight_decay=0.5)  # type: ignore[arg-type]
        made = configure(layer, rule, Trainer())["optimizer"]  # type: ignore[arg-type]
        layer(torch.zeros(1, 1)).sum().backward()
        made.step()
        assert float(1 - layer.weight.detach()) == pytest.approx(moved, rel=1e-4)


def test_what_needs_no_gradient_is_left_out() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[0].requires_grad_(False)
    made = configure(network, Optimiser(), Trainer())["optimizer"]  # type: ignore[arg-type]
    assert [p.shape for g in made.param_groups for p in g["params"]] == [(2, 2), (2,)]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"schedule": "step"}, r"drops=\[\].*epochs that rise"),
        ({"drops": (3,)}, r"drops=\[3\] with schedule='cosine'"),
        ({"schedule": "step", "drops": (22, 16)}, r"drops=\[22, 16\]"),
        ({"schedule": "step", "drops": (0, 16)}, r"drops=\[0, 16\].*from 1 on"),
        ({"min_lr": 0.2}, r"min_lr=0.2 with lr=0.1"),
        ({"warmup": 0.1, "warmup_steps": 5}, "exclude each other"),
        ({"warmup_steps": -1}, "warmup_steps=-1"),
        ({"warmup_start": 2.0}, "warmup_start=2.0"),
    ],
)
def test_what_is_refused(values: dict[str, Any], told: str) -> None:
    with pytest.raises(OptionError, match=told):
        Optimiser(**values)
