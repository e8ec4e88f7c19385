"""TensorRTModule: an engine as a torch module. Imported after `here.here()`."""

from __future__ import annotations

import os
import threading

import tensorrt as trt
import torch
from torch import Tensor, cuda, nn

from ...errors import IntegrityError, OptionError, SvdHubError
from .. import artifact
from ..contract import INPUT
from .callbacks import Allocator, Log, said, taken
from .here import here
from .key import PLAN, Key, rebuild, refuse_other

DTYPES = {
    trt.DataType.FLOAT: torch.float32,
    trt.DataType.HALF: torch.float16,
    trt.DataType.BF16: torch.bfloat16,
    trt.DataType.INT64: torch.int64,
    trt.DataType.INT32: torch.int32,
    trt.DataType.INT8: torch.int8,
    trt.DataType.UINT8: torch.uint8,
    trt.DataType.BOOL: torch.bool,
}


class TensorRTModule(nn.Module):
    """Runs an engine with torch tensors, on a stream of its own that torch's current one waits for.

    One run at a time: an engine's context holds the memory of what is between. Threads that should run at once each
    make their own. An engine is a program: run those of your own.

    Args:
        folder: an artifact of the format "tensorrt".
        index: of the CUDA device.
        cuda_graph: replay the run as one CUDA graph; None = where all shapes are fixed.
        check: hash the files first.

    Raises:
        SvdHubError: no CUDA device, no TensorRT, or an engine for another GPU or release: with the command that builds
            it again, before anything of it is read.
        IntegrityError: the files are not those of the manifest, or TensorRT cannot read the engine.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        index: int = 0,
        cuda_graph: bool | None = None,
        check: bool = True,
    ) -> None:
        super().__init__()
        found = artifact.read(folder)
        if found.format.name != "tensorrt":
            raise OptionError(f"{folder} is {found.format.name}; allowed: tensorrt. Next: that format's runner")
        machine = here(index)
        self.key = refuse_other(found, machine)
        if check:
            artifact.check(found)
        self.device, self.outputs = machine.gpu.device, found.outputs
        self.log = Log()
        with cuda.device(self.device):  # TensorRT works on the current device
            self.engine: trt.ICudaEngine = self._opened(found)
            self.context: trt.IExecutionContext = self.engine.create_execution_context()
        if self.context is None:
            raise SvdHubError(f"the engine in {folder} cannot be run: {said(self.log)}. Next: a GPU with more memory")
        self.types = {name: DTYPES[self.engine.get_tensor_dtype(name)] for name in self.outputs}
        self.provider = f"TensorRT {machine.tensorrt} on {machine.gpu.name}"
        self._stream = cuda.Stream(self.device)
        self._lock = threading.Lock()
        fixed = self.key.profile["smallest"] == self.key.profile["largest"]
        self._graph: _Graph | None = None
        if fixed if cuda_graph is None else cuda_graph:
            with cuda.device(self.device):
                self._graph = self._captured()

    def _opened(self, found: artifact.Artifact) -> trt.ICudaEngine:
        """Return the engine of an artifact that fits this machine."""
        trt.init_libnvinfer_plugins(None, "")  # the engines of detectors call TensorRT's own RoiAlign plugin
        self.runtime = trt.Runtime(self.log)
        if self.key.version_compatible:
            self.runtime.engine_host_code_allowed = True  # such an engine brings a part of TensorRT with it
        engine = self.runtime.deserialize_cuda_engine((found.folder / PLAN).read_bytes())
        if engine is None:
            raise IntegrityError(
                f"TensorRT cannot read the engine in {found.folder}: {said(self.log)}. Next: {rebuild(found)}"
            )
        return engine

    def forward(self, volume: Tensor) -> dict[str, Tensor]:
        """Return the outputs by name, on the engine's device.

        Args:
            volume: (N, C, D, H, W) float32; one of another device is copied there.

        Raises:
            OptionError: a shape outside of the engine's profile, or another type.
        """
        check_input(volume, self.key)
        x = volume.detach().to(self.device).contiguous()
        with self._lock, cuda.device(self.device):
            if self._graph is not None:
                return self._graph.run(x, self._stream)
            return self._run(x)

    def _run(self, x: Tensor) -> dict[str, Tensor]:
        found, allocators = self._bound(x)
        # all memory is of the current stream: its blocks are given out again only to what waits for this run
        current = cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        self._enqueue()
        current.wait_stream(self._stream)
        for name, allocator in allocators.items():
            if (made := taken(allocator)) is None:
                raise SvdHubError(f"TensorRT gave no {name}: {said(self.log)}")
            found[name] = made
        return {name: found[name] for name in self.outputs}

    def _enqueue(self) -> None:
        if not self.context.execute_async_v3(self._stream.cuda_stream):
            raise SvdHubError(f"TensorRT could not run the engine: {said(self.log)}")

    def _bound(self, x: Tensor) -> tuple[dict[str, Tensor], dict[str, Allocator]]:
        """Give the context its input and a place for each output; those whose size is not known get an allocator."""
        if not self.context.set_input_shape(INPUT, tuple(x.shape)):
            raise SvdHubError(f"TensorRT takes no input of shape {tuple(x.shape)}: {said(self.log)}")
        self.context.set_tensor_address(INPUT, x.data_ptr())
        if missing := self.context.infer_shapes():
            raise SvdHubError(f"TensorRT does not know the shapes of {', '.join(missing)}: {said(self.log)}")
        found: dict[str, Tensor] = {}
        allocators: dict[str, Allocator] = {}
        for name in self.outputs:
            shape = tuple(self.context.get_tensor_shape(name))
            if min(shape, default=0) < 0:
                allocators[name] = Allocator(self.types[name], self.device)
                self.context.set_output_allocator(name, allocators[name])
            else:
                found[name] = torch.empty(shape, dtype=self.types[name], device=self.device)
                self.context.set_tensor_address(name, found[name].data_ptr())
        return found, allocators

    def _captured(self) -> _Graph:
        """Return the run at the one shape as a CUDA graph.

        Raises:
            OptionError: the engine has several shapes, or an output whose size only a run tells.
        """
        if self.key.profile["smallest"] != self.key.profile["largest"]:
            raise OptionError("cuda_graph=True needs one shape; this engine has several. Next: --dynamic none")
        x = torch.zeros(self.key.profile["typical"], device=self.device)
        found, allocators = self._bound(x)
        if allocators:
            raise OptionError(
                f"cuda_graph=True is not allowed: the size of {', '.join(allocators)} is only known in a run. Next: "
                "cuda_graph=False"
            )
        self._stream.wait_stream(cuda.current_stream(self.device))
        self._enqueue()  # what TensorRT does once, outside of the graph
        self._stream.synchronize()
        graph = cuda.CUDAGraph()
        with cuda.graph(graph, stream=self._stream):
            self._enqueue()
        return _Graph(graph, x, {name: found[name] for name in self.outputs})


class _Graph:
    """A captured run: its input and outputs lie at fixed places."""

    def __init__(self, graph: cuda.CUDAGraph, volume: Tensor, outputs: dict[str, Tensor]) -> None:
        self.graph, self.volume, self.outputs = graph, volume, outputs

    def run(self, x: Tensor, stream: cuda.Stream) -> dict[str, Tensor]:
        """Return copies of the outputs: the next run writes over its own."""
        current = cuda.current_stream(x.device)
        stream.wait_stream(current)
        with cuda.stream(stream):
            self.volume.copy_(x)
            self.graph.replay()
        current.wait_stream(stream)
        return {name: tensor.clone() for name, tensor in self.outputs.items()}


def check_input(volume: Tensor, key: Key) -> None:
    """Refuse what an engine does not take; TensorRT itself would only return False.

    Raises:
        OptionError: a type or a shape that is not allowed.
    """
    low, high = key.profile["smallest"], key.profile["largest"]
    shape = tuple(volume.shape)
    fits = len(shape) == len(low) and all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True))
    if volume.dtype != torch.float32 or not fits:
        raise OptionError(
            f"an input of {volume.dtype} {shape} is not allowed; allowed: float32 from {low} to {high}. Next: export "
            "with --smallest and --largest about it"
        )
