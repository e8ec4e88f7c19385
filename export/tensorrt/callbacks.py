"""What TensorRT calls: for messages, for progress, and for the memory of outputs whose size only a run tells.

Imported after `here.here()`. TensorRT calls from its own threads; an exception here would be lost in it. All methods
are those that TensorRT calls: a test holds their names and arguments against the bindings.
"""

from __future__ import annotations

import logging

import tensorrt as trt
import torch
from torch import Tensor

from .progress import Board

_LEVELS = {
    trt.ILogger.Severity.INTERNAL_ERROR: logging.ERROR,
    trt.ILogger.Severity.ERROR: logging.ERROR,
    trt.ILogger.Severity.WARNING: logging.WARNING,
    trt.ILogger.Severity.INFO: logging.INFO,
    trt.ILogger.Severity.VERBOSE: logging.DEBUG,
}
_LOG = logging.getLogger(__name__)


class Log(trt.ILogger):
    """Passes messages on to Python's logging; the errors stay, for the exception that is raised of them."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: list[str] = []

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Take a message."""
        level = _LEVELS.get(severity, logging.WARNING)
        if level >= logging.ERROR:
            self.errors.append(msg.strip())
        _LOG.log(level if level < logging.ERROR else logging.DEBUG, msg.strip())


def said(log: Log) -> str:
    """Return the errors of a log, for a message."""
    return "; ".join(log.errors) or "it gave no reason"


class Monitor(trt.IProgressMonitor):
    """Tells a board how far a build is, and TensorRT whether to go on."""

    def __init__(self, board: Board) -> None:
        trt.IProgressMonitor.__init__(self)
        self.board = board

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """Note a phase."""
        self.board.begin(phase_name, num_steps)

    def step_complete(self, phase_name: str, step: int) -> bool:
        """Note a step; False stops the build."""
        return self.board.step(phase_name, step)

    def phase_finish(self, phase_name: str) -> None:
        """Note the end of a phase."""
        self.board.finish(phase_name)


class Allocator(trt.IOutputAllocator):
    """Gives the memory of one output, and takes its shape.

    Args:
        dtype: of the output.
        device: where.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        trt.IOutputAllocator.__init__(self)
        self.dtype, self.device = dtype, device
        self.memory: Tensor | None = None
        self.shape: tuple[int, ...] | None = None

    def reallocate_output_async(self, tensor_name: str, memory: int, size: int, alignment: int, stream: int) -> int:
        """Return the address of `size` bytes; 0 where there are none, which TensorRT reports.

        torch's own addresses are multiples of 512, more than TensorRT asks for. The memory is of torch's current
        stream, for which the engine's stream has waited.
        """
        try:
            self.memory = torch.empty(size, dtype=torch.uint8, device=self.device)
        except RuntimeError:
            return 0
        return self.memory.data_ptr()

    def notify_shape(self, tensor_name: str, shape: trt.Dims) -> None:
        """Take the shape of the output."""
        self.shape = tuple(shape)


def taken(allocator: Allocator) -> Tensor | None:
    """Return the output of a run, None where TensorRT asked for no memory or told no shape."""
    if allocator.memory is None or allocator.shape is None:
        return None
    count = torch.Size(allocator.shape).numel() * allocator.dtype.itemsize
    return allocator.memory[:count].view(allocator.dtype).view(allocator.shape)
