"""A small stand-in for Triton's onnxruntime backend, on the Python backend: for servers that come without one.

`svd-hub serve-check` puts it in place of backends/onnxruntime, so that config.pbtxt and model.onnx of production are
served as they are: Triton's own core does everything around the run (checks, queue, batches, warm-up). It computes on
the CPU alone, and is no replacement: each call goes through another process.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..run_onnx import CPU, import_runtime, open_session
from .tensors import array_of, tensor_of


class TritonPythonModel:
    """One instance of a model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the model's file.

        Args:
            args: Triton's: the configuration as JSON, the model's folder and version.
        """
        self.pb: Any = importlib.import_module("triton_python_backend_utils")
        config = json.loads(args["model_config"])
        file = config["default_model_filename"] or "model.onnx"
        runtime = import_runtime()
        settings = runtime.SessionOptions()
        settings.log_severity_level = 3
        model = Path(args["model_repository"]) / args["model_version"] / file
        self.session = open_session(runtime, model, CPU, settings)
        self.batched = config["max_batch_size"] > 0
        self.inputs = [port["name"] for port in config["input"]]
        self.outputs = [port["name"] for port in config["output"]]

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Return a response to each request; those that Triton put together are run as one batch."""
        pb = self.pb
        given = [[array_of(pb.get_input_tensor_by_name(r, name)) for name in self.inputs] for r in requests]
        if not self.batched:
            return [self._run(one)[0] for one in given]
        together = [np.concatenate(column) for column in zip(*given, strict=True)]
        return self._run(together, [len(one[0]) for one in given])

    def _run(self, inputs: Sequence[np.ndarray], shares: Sequence[int] = ()) -> list[Any]:
        """Return the responses: of one request, or of a batch's shares."""
        pb = self.pb
        try:
            found = self.session.run(self.outputs, dict(zip(self.inputs, inputs, strict=True)))
        except Exception as error:  # its errors share no base; the real backend's code is the same
            failed = pb.TritonError(f"onnx runtime error: {str(error).splitlines()[0]}", pb.TritonError.INTERNAL)
            return [pb.InferenceResponse([], failed) for _ in shares or (1,)]
        ends = np.cumsum(shares)[:-1].tolist()
        parts = zip(*(np.split(array, ends) if shares else [array] for array in found), strict=True)
        return [
            pb.InferenceResponse([tensor_of(pb, name, one) for name, one in zip(self.outputs, part, strict=True)])
            for part in parts
        ]
