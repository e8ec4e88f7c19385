"""What exporters say that is expected, in one place with the reason; every other warning is shown."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

# The beginning of a message -> why it is not shown.
EXPECTED = {
    r"`torch\.jit\.": "TorchScript is deprecated: the format table and the docs say so; libtorch loads nothing else",
    r".*torch\.jit\..* (is|are) deprecated": "the same, in other words of torch",
    r".*Converting a tensor to a Python": "shape checks in torch's own norms; the traced file is run at other shapes",
    r".*Iterating over a tensor might cause the trace": "the same",
    r".*is a deprecated .*TreeSpec|.*treespec, LeafSpec": "torch.export calls a part of torch that torch has renamed",
    r".*torch\.onnx\._internal.*": "torch's exporter about its own parts",
    r".*Exporting a model while it is in training mode": "modules of ours without a mode",
}
TALKERS = ("torch.onnx", "onnxscript", "onnx_ir", "torch.export", "torch.fx")  # steps done, torchvision not found


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Leave out the warnings of `EXPECTED`, the exporters' logs below errors, and what they print."""
    loggers = [logging.getLogger(name) for name in TALKERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        for message in EXPECTED:
            warnings.filterwarnings("ignore", message=message)
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
