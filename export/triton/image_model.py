"""The Python model in front of a network, as Triton's Python backend runs it: requests to `service`, answers back.

Each request is answered or refused on its own. A refusal says what `svd-hub predict` says; of a fault that nobody
foresaw only kind and place are told, since its words could hold anything. Nothing of a request is logged.
"""

from __future__ import annotations

import importlib
import json
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import MissingExtraError, OptionError, SvdHubError, VolumeError
from ...predict.record import Record
from ..contract import INPUT
from . import interface
from .service import Service
from .tensors import array_of, tensor_of


class CancelledError(Exception):
    """The client went away: it ends a request that nobody waits for."""


class NetworkError(SvdHubError):
    """The model behind answered with an error."""


class TritonPythonModel:
    """What the Python backend makes of model.py: it calls these methods."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the record beside model.py; called once, when the server loads the model.

        Args:
            args: Triton's: the configuration as JSON, the model's folder and version.
        """
        self.pb: Any = importlib.import_module("triton_python_backend_utils")
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        folder = Path(args["model_repository"]) / args["model_version"]
        told = json.loads((folder / interface.RECORD).read_text(encoding="utf-8"))
        record = Record.of(told["record"])
        self.network = parameters["network"]
        self.inputs = interface.inputs(record.task, record.preprocess.modality)
        self.outputs = interface.outputs(record.task, record.preprocess.modality, len(record.classes))
        self.answers = ("boxes", "scores", "labels") if record.task == "detection" else ("logits",)
        self.service = Service(
            record, self._run, at_once=told["at_once"], largest_voxels=int(parameters["largest_voxels"])
        )

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Return a response to each request."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        pb = self.pb

        def done(now: int, total: int) -> None:
            if request.is_cancelled():
                raise CancelledError

        try:
            given = {}
            for port in self.inputs:
                if (tensor := pb.get_input_tensor_by_name(request, port.name)) is not None:
                    given[port.name] = array_of(tensor)
            found = self.service(given, done=done)
            return pb.InferenceResponse([tensor_of(pb, port.name, found[port.name]) for port in self.outputs])
        except CancelledError:
            return self._refused("cancelled", pb.TritonError.CANCELLED)
        except (OptionError, VolumeError) as error:
            return self._refused(str(error), pb.TritonError.INVALID_ARG)
        except (MissingExtraError, NetworkError) as error:
            return self._refused(str(error), pb.TritonError.INTERNAL)
        except MemoryError:
            return self._refused("the server has not enough memory for this image", pb.TritonError.UNAVAILABLE)
        except Exception as error:  # the next request is another
            place = traceback.extract_tb(error.__traceback__)[-1]
            what = f"{type(error).__name__} in {Path(place.filename).name}, line {place.lineno}"
            pb.Logger.log_error(f"svd_hub: {what}")
            return self._refused(f"a fault of svd-hub or of a library it uses: {what}", pb.TritonError.INTERNAL)

    def _refused(self, message: str, code: Any) -> Any:
        return self.pb.InferenceResponse([], self.pb.TritonError(message, code))

    def _run(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        """Return what the network behind gives for a batch, in this machine's memory wherever it was computed.

        Raises:
            NetworkError: it answered with an error.
        """
        pb = self.pb
        request = pb.InferenceRequest(
            model_name=self.network,
            requested_output_names=list(self.answers),
            inputs=[tensor_of(pb, INPUT, batch)],
            preferred_memory=pb.PreferredMemory(pb.TRITONSERVER_MEMORY_CPU, 0),
        )
        response = request.exec()
        if response.has_error():
            first = response.error().message().split("\n")[0]
            raise NetworkError(f"{self.network} failed on an input of {tuple(batch.shape)}: {first}")
        found = {name: pb.get_output_tensor_by_name(response, name) for name in self.answers}
        return {name: array_of(tensor).copy() for name, tensor in found.items()}  # the memory is the response's
