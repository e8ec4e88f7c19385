"""Keeps the runtimes from telling their makers what they run: nothing leaves a hospital's machine by our doing.

ONNX Runtime (from 1.29 on, Linux and macOS too) notes each process, session and model, with the file's name and hashes
of graph and weights, under ~/.cache/Microsoft and sends them to Microsoft. OpenVINO notes a number of the user under
~/intel, and each `import openvino` forks a process that tells Google Analytics. Both are on by default.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

ONNX_RUNTIME = "ORT_DISABLE_TELEMETRY"  # read when its library makes its environment; "0" leaves it on
_OPENVINO = "openvino_telemetry"


def onnx_runtime_off() -> None:
    """To be called before onnxruntime is imported; what the user has set stays."""
    os.environ.setdefault(ONNX_RUNTIME, "1")


@contextlib.contextmanager
def openvino_off() -> Iterator[None]:
    """Let `import openvino` not find its messenger, inside the block; it does without."""
    if "openvino" in sys.modules or _OPENVINO in sys.modules:  # the program that we are in has its own ways
        yield
        return
    sys.modules[_OPENVINO] = None  # type: ignore[assignment]  # the documented way to make an import fail
    try:
        yield
    finally:
        del sys.modules[_OPENVINO]
