"""Requests to a server over HTTP or gRPC, by NVIDIA's own client: arrays in and out, and one kind of refusal."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np

from ...errors import MissingExtraError, SvdHubError, check_choice

PROTOCOLS = ("http", "grpc")
PATIENCE = 3600.0  # seconds for an answer: whole images on a CPU take minutes, and the client's own limit is one
UNNAMED = "[request id: <id_unknown>] "  # how the server says that a request has no name
_REFUSED = ("400", "404", "INVALID_ARGUMENT", "NOT_FOUND")


class RefusedError(SvdHubError):
    """The server answered with an error.

    Attributes:
        status: in the protocol's words, such as "400" or "INVALID_ARGUMENT".
        reason: what it said.
    """

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(f"the server answered {status}: {reason}")
        self.status, self.reason = status, reason

    @property
    def is_clients(self) -> bool:
        """Whether the request was at fault, and not the server."""
        return self.status in _REFUSED


class Client:
    """A connection, for one thread.

    Args:
        protocol: "http" | "grpc".
        address: host:port.

    Raises:
        MissingExtraError: tritonclient is not installed.
    """

    def __init__(self, protocol: str, address: str) -> None:
        check_choice("protocol", protocol, PROTOCOLS)
        try:
            self._library: Any = importlib.import_module(f"tritonclient.{protocol}")
            self._error = importlib.import_module("tritonclient.utils").InferenceServerException
        except (ModuleNotFoundError, RuntimeError) as error:  # it says RuntimeError where one of its extras is missing
            raise MissingExtraError("tritonclient", "serve") from error
        patience = {"network_timeout": PATIENCE, "connection_timeout": PATIENCE} if protocol == "http" else {}
        self._client = self._library.InferenceServerClient(address, **patience)
        self.protocol = protocol

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def infer(self, model: str, arrays: Mapping[str, np.ndarray], outputs: Iterable[str]) -> dict[str, np.ndarray]:
        """Return outputs by name.

        Raises:
            RefusedError: the server answered with an error.
        """
        given = []
        for name, array in arrays.items():
            tensor = self._library.InferInput(name, list(array.shape), _type_of(array))
            given.append(tensor.set_data_from_numpy(array) or tensor)
        asked = [self._library.InferRequestedOutput(name) for name in outputs]
        try:
            answer = self._client.infer(model, given, outputs=asked)
        except self._error as error:
            status = str(error.status() or "").removeprefix("StatusCode.")
            raise RefusedError(status, str(error.message()).removeprefix(UNNAMED)) from error
        return {output.name(): answer.as_numpy(output.name()) for output in asked}

    def server(self) -> str:
        """Return name and release of the server."""
        found = self._client.get_server_metadata()
        name, release = (found["name"], found["version"]) if self.protocol == "http" else (found.name, found.version)
        return f"{name} server {release}"

    def executions(self, model: str) -> tuple[int, int]:
        """Return how many images a model has answered, and in how many runs: the server's batches."""
        found = self._client.get_inference_statistics(model)
        stats = found["model_stats"][0] if self.protocol == "http" else found.model_stats[0]
        read = stats.get if self.protocol == "http" else lambda name: getattr(stats, name)
        return int(read("inference_count")), int(read("execution_count"))


def _type_of(array: np.ndarray) -> str:
    return str(importlib.import_module("tritonclient.utils").np_to_triton_dtype(array.dtype))
