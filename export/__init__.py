"""From any entry or fine-tuned network to what an inference server runs, proved to compute the same.

>>> from svd_hub.export import export, predictor, verify
>>> made = export("resnet3d18w16_lidc", "onnx", "out/lidc")  # or: svd-hub export resnet3d18w16_lidc --to onnx --out ...
>>> verify("out/lidc").passed
>>> predictor("out/lidc")("ct.nii.gz").probabilities

`formats` has the one table of formats, precisions and tolerances; `run_onnx` and `run_openvino` run artifacts without
torch. Importing this package imports none of the heavy libraries.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_DOOR = {
    "export": "exporting",
    "verify": "verifying",
    "predictor": "predicting",
    "FORMATS": "formats",
    "ParityError": "parity",
}
__all__ = ["FORMATS", "ParityError", "export", "predictor", "verify"]

if TYPE_CHECKING:
    from .exporting import export as export
    from .formats import FORMATS as FORMATS
    from .parity import ParityError as ParityError
    from .predicting import predictor as predictor
    from .verifying import verify as verify


def __getattr__(name: str) -> Any:
    if name not in _DOOR:
        raise AttributeError(f"module 'svd_hub.export' has no attribute {name!r}; it has: {', '.join(__all__)}")
    value = getattr(importlib.import_module(f".{_DOOR[name]}", __name__), name)
    globals()[name] = value
    return value
