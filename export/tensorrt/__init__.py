"""Engines of TensorRT: built from an artifact's ONNX graph, kept beside what they fit, run with torch tensors.

>>> from svd_hub.export.tensorrt import TensorRTModule
>>> run = TensorRTModule("out/lidc_engine")  # what svd-hub export ENTRY --to tensorrt wrote, on this GPU
>>> run(volume)["logits"]  # volume: (N, C, D, H, W) float32 on the GPU

An engine fits one release of TensorRT and one kind of GPU, and TensorRT itself cannot say beforehand whether it does:
`key` says it, before anything is deserialised. Modules that import TensorRT are imported after `here.here()` only,
which asks for the GPU first: without one, TensorRT may end the process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["TensorRTModule"]

if TYPE_CHECKING:
    from .module import TensorRTModule as TensorRTModule


def __getattr__(name: str) -> Any:
    if name != "TensorRTModule":
        raise AttributeError(
            f"module 'svd_hub.export.tensorrt' has no attribute {name!r}; it has: {', '.join(__all__)}"
        )
    from .here import here

    here()
    from .module import TensorRTModule

    return TensorRTModule
