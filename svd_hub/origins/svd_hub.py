"""Our own files: nothing to rename. Bundled weights are float16 on disk and float32 in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .conversion import Conversion, convert_by_rules


def convert(tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> Conversion:
    """Return the tensors under the names they have."""
    return convert_by_rules(tensors)
