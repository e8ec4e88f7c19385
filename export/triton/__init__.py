"""A network as a model repository of Triton, and a real server that checks it.

>>> from svd_hub.export.triton import serve_check
>>> serve_check("out/models").passed  # or: svd-hub serve-check out/models

`repository` writes two models: the network itself (tensor to tensor, on the onnxruntime or tensorrt backend), and one
in front of it that takes an image as it is and returns what `svd-hub predict` does (`service`, which the Python backend
runs through `image_model`). `server` starts a tritonserver on this machine's own address, `checking` holds it against
the network.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_DOOR = {"serve_check": "checking"}
__all__ = ["serve_check"]

if TYPE_CHECKING:
    from .checking import serve_check as serve_check


def __getattr__(name: str) -> Any:
    if name not in _DOOR:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has: {', '.join(__all__)}")
    value = getattr(importlib.import_module(f".{_DOOR[name]}", __name__), name)
    globals()[name] = value
    return value
