"""Laws of svd_hub.four_axes: code that counts on (N, C, H, W) is found, code that fits volumes is not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svd_hub.four_axes import HABITS, INDEXED, READ
from svd_hub.functional_calls import CALLS, CALLS_2D, functional_calls


class Network(nn.Module):
    """Its forward is `function`, written as a method."""

    def __init__(self) -> None:
        super().__init__()
        self.dims, self.groups, self.scale = (2, 3), 2, nn.Parameter(torch.ones(3))


def unpacks(self: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, self.groups, c // self.groups, h, w)


def unpacks_a_call(self: Any, x: Tensor) -> Tensor:
    _, _, h, _ = x.size()
    return x * h


def keeps_some(self: Any, x: Tensor) -> Tensor:
    b, c, *rest = x.shape
    return x.view(b, c, -1) * len(rest)


def with_comprehensions(self: Any, x: Tensor) -> Tensor:
    return torch.cat([torch.relu(part * 2) for part in x.unbind()], 1)


def with_a_helper(self: Any, x: Tensor) -> Tensor:
    return _pooled(x)


def _pooled(x: Tensor) -> Tensor:
    return x.mean(3).mean(2)


def writes(self: Any, x: Tensor) -> Tensor:
    x[:, :, 0:1] = 0
    return x


def in_a_branch(self: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.sum(x, dim=(2, 3)) if x is not None else self.act(x)


FOUND: tuple[tuple[Any, str], ...] = (
    (lambda self, x: x.mean([2, 3]), "mean over rows or columns"),
    (lambda self, x: x.mean((2, 3), keepdim=True), "mean over rows or columns"),
    (lambda self, x: x.amax(dim=(-2, -1)), "amax over rows or columns"),
    (lambda self, x: torch.mean(x, self.dims), "mean over rows or columns"),
    (lambda self, x: torch.roll(x, (1, 1), (2, 3)), "roll over rows or columns"),
    (lambda self, x: torch.roll(x, shifts=(self.groups, 1), dims=[2, 1]), "roll over rows or columns"),
    (lambda self, x: x.roll(x.size(1), 3), "roll over rows or columns"),
    (lambda self, x: torch.roll(x, self.groups, self.dims), "roll over rows or columns"),
    (lambda self, x: torch.flip(x, [2, 3]), "flip over rows or columns"),
    (lambda self, x: x.flip(2, 3), "flip over rows or columns"),
    (lambda self, x: x.flip(dims=(3,)), "flip over rows or columns"),
    (lambda self, x: x.cumsum(2), "cumsum over rows or columns"),
    (lambda self, x: torch.cumsum(x, dim=3), "cumsum over rows or columns"),
    (lambda self, x: F.softmax(x, dim=2), "softmax over rows or columns"),
    (lambda self, x: x.log_softmax(3), "log_softmax over rows or columns"),
    (lambda self, x: x.transpose(2, 3), "transpose over rows or columns"),
    (lambda self, x: x.unsqueeze(2).unsqueeze(3), "unsqueeze over rows or columns"),
    (lambda self, x: x.flatten(2, 3), "flatten over rows or columns"),
    (lambda self, x: torch.cat([x * 2, x], dim=3), "cat over rows or columns"),
    (lambda self, x: x * x.size(2), "size over rows or columns"),
    (lambda self, x: x.view(x.size(0), -1, 1, 1), "view of four sizes"),
    (lambda self, x: torch.reshape(x, (x.shape[0], -1, 1, 1)), "reshape of four sizes"),
    (lambda self, x: x.permute(0, 2, 3, 1), "permute of four sizes"),
    (lambda self, x: torch.permute(x, [0, 2, 3, 1]), "permute of four sizes"),
    (lambda self, x: x.repeat(1, 3, 1, 1), "repeat of four sizes"),
    (lambda self, x: x[:, :, 1:, 1:], INDEXED),
    (lambda self, x: x[..., 0], INDEXED),
    (lambda self, x: x * self.scale[:, None, None], INDEXED),
    (lambda self, x: x * x.shape[2], READ),
    (lambda self, x: self.act(x, size=x.shape[-2:]), READ),
    (unpacks, READ),
    (unpacks_a_call, READ),
    (with_a_helper, "mean over rows or columns"),
    (writes, INDEXED),
    (in_a_branch, "sum over rows or columns"),
)
FITS: tuple[Any, ...] = (
    lambda self, x: torch.flatten(x, 1),
    lambda self, x: x.flatten(2),
    lambda self, x: x.flatten(1, -1),
    lambda self, x: x.view(x.size(0), -1),
    lambda self, x: x.view(x.shape[0], x.shape[1], -1),
    lambda self, x: x.mean(1, keepdim=True).pow(2),
    lambda self, x: torch.cat((x[:, 2:], x), 1),
    lambda self, x: torch.cat([x[:, 0] * 2, x[:, 3]], dim=1),
    lambda self, x: x.chunk(2, dim=1)[0] * max(2, 3),
    lambda self, x: x.clamp(min=-1, max=3) + sum([2, 3]),
    lambda self, x: F.relu(x, inplace=True),
    lambda self, x: torch.roll(x, 2, 1),
    lambda self, x: x.roll(shifts=(2, 3), dims=(0, 1)),
    lambda self, x: torch.roll(x, [2, 3], [0, 1]),
    lambda self, x: x.flip(1),
    lambda self, x: torch.flip(x, (-2, -1)),
    lambda self, x: x.flatten(2).transpose(1, 2),
    lambda self, x: x.softmax(1).cumsum(1) * F.softmax(x, dim=-1),
    keeps_some,
    with_comprehensions,
)


def found_in(function: Any, calls: Any = CALLS_2D) -> frozenset[str]:
    kind = type("Written", (Network,), {"forward": function})
    return functional_calls(kind(), calls)


@pytest.mark.parametrize(("function", "habit"), FOUND, ids=[f"{n}: {habit}" for n, (_, habit) in enumerate(FOUND)])
def test_a_habit_is_found(function: Any, habit: str) -> None:
    assert habit in HABITS
    assert found_in(function) == {habit}


@pytest.mark.parametrize("function", FITS)
def test_what_fits_volumes_is_not_called_a_habit(function: Any) -> None:
    assert found_in(function) == frozenset()


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda self, x: F.max_pool2d(x, 2), "max_pool2d"),
        (lambda self, x: F.adaptive_avg_pool2d(x, 1), "adaptive_avg_pool2d"),
        (lambda self, x: F.interpolate(x, scale_factor=2), "interpolate"),
        (lambda self, x: F.pad(x, (1, 1, 1, 1)), "pad"),
        (lambda self, x: nn.AvgPool2d(2)(x), "AvgPool2d"),
        (lambda self, x: F.pixel_shuffle(x, 2), "pixel_shuffle"),
        (lambda self, x: x.rot90(1, [2, 3]), "rot90"),
        (lambda self, x: torch.rot90(x, 1, (2, 3)), "rot90"),
    ],
)
def test_functions_of_2d_modules_are_found(function: Any, name: str) -> None:
    assert found_in(function) == {name}


def test_each_question_has_its_own_answers() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return F.max_pool2d(x.mean((2, 3)), 2) + F.max_pool3d(x, 2)

    assert found_in(forward, CALLS) == {"max_pool3d"}
    assert found_in(forward) == {"max_pool2d", "mean over rows or columns"}
