"""What the tests of Triton share: Triton's Python backend in this process, and what they need of the real one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from svd_hub.errors import SvdHubError
from svd_hub.export.triton.installation import Installation, find

Network = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


def need_server() -> Installation:
    """The real server, or the test is skipped."""
    try:
        return find()
    except SvdHubError as error:
        pytest.skip(str(error))


class Tensor:
    """A tensor as the backend has it: by DLPack alone, because its numpy part is built for numpy 1."""

    def __init__(self, name: str, array: np.ndarray) -> None:
        self._name, self.array = name, array

    @classmethod
    def from_dlpack(cls, name: str, given: Any) -> Tensor:
        return cls(name, np.from_dlpack(given).copy())

    def name(self) -> str:
        return self._name

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()


class TritonError:
    INVALID_ARG, INTERNAL, UNAVAILABLE, CANCELLED = "INVALID_ARG", "INTERNAL", "UNAVAILABLE", "CANCELLED"

    def __init__(self, text: str, code: str) -> None:
        self.text, self.code = text, code

    def message(self) -> str:
        return self.text


class InferenceResponse:
    def __init__(self, tensors: list[Tensor], error: TritonError | None = None) -> None:
        self.tensors, self.failure = tensors, error

    def has_error(self) -> bool:
        return self.failure is not None

    def error(self) -> TritonError | None:
        return self.failure

    def arrays(self) -> dict[str, np.ndarray]:
        assert self.failure is None, self.failure.text
        return {tensor.name(): tensor.array for tensor in self.tensors}


class Request:
    """A request that comes in."""

    def __init__(self, arrays: Mapping[str, np.ndarray], *, gone_after: int | None = None) -> None:
        self.tensors = [Tensor(name, array) for name, array in arrays.items()]
        self.left = gone_after

    def is_cancelled(self) -> bool:
        if self.left is None:
            return False
        self.left -= 1
        return self.left < 0


def backend(monkeypatch: pytest.MonkeyPatch, networks: Mapping[str, Network]) -> SimpleNamespace:
    """Put the backend's module in place; `networks` are the models that others may call.

    Returns:
        What it was asked: `calls` (model, arrays), and its `log`.
    """
    seen = SimpleNamespace(calls=[], log=[])

    class InferenceRequest:
        def __init__(self, **given: Any) -> None:
            self.given = given

        def exec(self) -> InferenceResponse:
            assert self.given["preferred_memory"] == ("CPU", 0), "an answer on a GPU could not be read"
            arrays = {tensor.name(): tensor.array for tensor in self.given["inputs"]}
            seen.calls.append((self.given["model_name"], arrays))
            try:
                found = networks[self.given["model_name"]](arrays)
            except RuntimeError as error:
                return InferenceResponse([], TritonError(str(error), TritonError.INTERNAL))
            return InferenceResponse([Tensor(name, found[name]) for name in self.given["requested_output_names"]])

    def by_name(holder: Any, name: str) -> Tensor | None:
        return next((tensor for tensor in holder.tensors if tensor.name() == name), None)

    made = ModuleType("triton_python_backend_utils")
    own: dict[str, Any] = {
        "Tensor": Tensor,
        "TritonError": TritonError,
        "InferenceResponse": InferenceResponse,
        "InferenceRequest": InferenceRequest,
        "PreferredMemory": lambda kind, device: (kind, device),
        "TRITONSERVER_MEMORY_CPU": "CPU",
        "get_input_tensor_by_name": by_name,
        "get_output_tensor_by_name": by_name,
        "Logger": SimpleNamespace(log_error=seen.log.append),
    }
    made.__dict__.update(own)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", made)
    return seen


def parsed(path: Path) -> Any:
    """A configuration as Triton's own schema reads it."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
