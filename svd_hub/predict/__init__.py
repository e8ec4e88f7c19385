"""Prediction: from a CT or MR file, or an image in memory, to a result that a clinician's tool can read.

`Predictor` is the network with what belongs to it; `predict_files` runs one over files and writes what it finds. Names
are brought in when they are first used: `svd-hub list` passes by here and needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_DOOR = {
    "Predictor": "predictor",
    "Prediction": "results",
    "Classification": "results",
    "Segmentation": "results",
    "Detection": "results",
    "Finding": "results",
    "Outputs": "outputs",
    "find_inputs": "files",
    "predict_files": "files",
}
__all__ = list(_DOOR)

if TYPE_CHECKING:
    from .files import find_inputs as find_inputs
    from .files import predict_files as predict_files
    from .outputs import Outputs as Outputs
    from .predictor import Predictor as Predictor
    from .results import Classification as Classification
    from .results import Detection as Detection
    from .results import Finding as Finding
    from .results import Prediction as Prediction
    from .results import Segmentation as Segmentation


def __getattr__(name: str) -> Any:
    if name not in _DOOR:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has: {', '.join(_DOOR)}")
    value = getattr(importlib.import_module(f".{_DOOR[name]}", __name__), name)
    globals()[name] = value
    return value
