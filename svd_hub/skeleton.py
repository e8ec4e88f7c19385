"""A network without its values: names, shapes and strides at no cost. Weights are put into it, or held against it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from . import models
from .models import Backbone

_RANDOM = ("normal_", "uniform_", "trunc_normal_")


class _NoValues(TorchFunctionMode):
    """Random fills do nothing.

    Without data they have no effect, and for `normal_` torch would import its compiler: 900 modules, 1.2 s of
    processor time in torch 2.13.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _RANDOM:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def skeleton(architecture: str, options: Mapping[str, Any]) -> Backbone:
    """Return the network of `options` on the meta device.

    Raises:
        OptionError: as `models.build`.
    """
    with torch.device("meta"), _NoValues():
        return models.build(architecture, options)


def shadow(model: nn.Module) -> nn.Module:
    """Return a copy of a network on the meta device; no weight is copied on the way."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, memo)


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return name -> shape."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
