"""How loops and shape checks survive `torch.jit.trace`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import torch

F = TypeVar("F", bound=Callable[..., object])

# A plain function until it is met by a trace, which then calls it in its scripted form: a trace alone would burn the
# number of turns of a loop in. torch leaves this decorator without types.
script_when_tracing = cast("Callable[[F], F]", torch.jit.script_if_tracing)
