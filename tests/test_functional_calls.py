"""Laws of svd_hub.functional_calls: a functional call is found wherever a forward hides it."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers_depth import helper
from torch import Tensor, nn

from svd_hub.variable_dimension import (
    preserve_depth,
)

torch.set_num_threads(1)


class Calls(nn.Module):
    """A forward that is told what to do; each subclass hides a pool elsewhere."""

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x)

    def act(self, x: Tensor) -> Tensor:
        return x.relu()


class InComprehension(Calls):
    def act(self, x: Tensor) -> Tensor:
        return torch.cat([F.max_pool3d(part, 2) for part in x.unbind()])


class InAttribute(Calls):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def act(self, x: Tensor) -> Tensor:
        out: Tensor = self.function(x, 2)
        return out


class InSuper(InComprehension):
    def act(self, x: Tensor) -> Tensor:
        return super().act(x)


class InSlice(Calls):
    def act(self, x: Tensor) -> Tensor:
        return x[:, :, ::2]


class LocalImport(Calls):
    def act(self, x: Tensor) -> Tensor:
        from torch.nn import functional

        return functional.max_pool3d(x, 2)


class Decorated(Calls):
    @torch.no_grad()
    def act(self, x: Tensor) -> Tensor:
        return F.max_pool3d(x, 2)


class MadeInForward(Calls):
    def act(self, x: Tensor) -> Tensor:
        out: Tensor = nn.MaxPool3d(2)(x)
        return out


class Replaced(InComprehension):
    def act(self, x: Tensor) -> Tensor:
        sizes = list(x.shape)[::-1]
        return x[:, :, : sizes[0]]


@pytest.mark.parametrize(
    ("module", "word"),
    [
        (InComprehension(), "max_pool3d"),
        (InAttribute(F.max_pool3d), "max_pool3d"),
        (InAttribute(F.avg_pool3d), "avg_pool3d"),
        (InAttribute(functools.partial(F.max_pool3d, stride=2)), "max_pool3d"),
        (InAttribute(functools.partial(helper)), "avg_pool3d"),
        (InSuper(), "max_pool3d"),
        (InSlice(), "strided slice"),
        (LocalImport(), "max_pool3d"),
        (Decorated(), "max_pool3d"),
        (torch.fx.symbolic_trace(InComprehension.__mro__[1]()), ""),
        (torch.fx.symbolic_trace(LocalImport()), "max_pool3d"),
        (Calls(), ""),
        (InAttribute(torch.relu), ""),
        (Replaced(), ""),
        (MadeInForward(), "MaxPool3d"),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else v,
)
def test_functional_calls_are_found_where_they_hide(module: nn.Module, word: str) -> None:
    _, report = preserve_depth(module)
    assert [name for name, _ in report.untreated] == ([""] if word else [])
    assert all(word in reason for _, reason in report.untreated)
