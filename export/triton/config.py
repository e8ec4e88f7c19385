"""config.pbtxt: what Triton is told of a model. Each setting has its reason here. No torch, no protobuf.

Tests hold the text against Triton's own schema; a real server (`svd-hub serve-check`) holds it against the models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .interface import Port

# Compute capability -> the GPUs that have it. An engine of TensorRT runs on the one that it was built for.
CAPABILITIES = {
    "7.5": "T4, RTX 20",
    "8.0": "A100, A30",
    "8.6": "A10, A40, RTX 30",
    "8.9": "L4, L40, RTX 40",
    "9.0": "H100, H200",
    "10.0": "B200",
    "12.0": "RTX 50, RTX PRO 6000",
}
DELAY = 1000  # microseconds a request waits for others to share a batch with; a window takes far longer than that
IMAGES_AT_ONCE = 2  # processes with a Python and a torch each: one prepares while the other's windows are computed
LARGEST_VOXELS = 2**29  # of an image; 1 GiB of HU, half of what a gRPC message may have


class Word(str):
    """A word of the schema, written without quotes."""

    __slots__ = ()


def text(message: Mapping[str, Any], comment: str = "") -> str:
    """Return a message in protobuf's text form, after a comment.

    Args:
        message: field -> a text, number, bool, `Word`, a message, or a sequence of these, which is a repeated field.
        comment: for people; each of its lines becomes one.
    """
    head = [f"# {line}".rstrip() for line in comment.splitlines()]
    return "\n".join([*head, *_lines(message, ""), ""])


def _lines(message: Mapping[str, Any], indent: str) -> list[str]:
    found = []
    for name, value in message.items():
        several = isinstance(value, Sequence) and not isinstance(value, str)
        if several and not any(isinstance(item, Mapping) for item in value):
            found.append(f"{indent}{name}: [{', '.join(map(_said, value))}]")
            continue
        for item in value if several else [value]:
            if isinstance(item, Mapping):
                found += [f"{indent}{name} {{", *_lines(item, indent + "  "), f"{indent}}}"]
            else:
                found.append(f"{indent}{name}: {_said(item)}")
    return found


def _said(value: Any) -> str:
    if isinstance(value, Word):
        return str(value)
    return json.dumps(value, ensure_ascii=True)


# ---- the network -----------------------------------------------------------------------------------------------------


def network(
    name: str,
    *,
    ports: tuple[Port, Sequence[Port]],
    batch: int,
    typical: Sequence[int],
    labels: bool,
) -> dict[str, Any]:
    """Return the configuration of a network on the onnxruntime backend.

    Args:
        name: of the model, and of its folder.
        ports: its input, and its outputs; without the batch axis where `batch` is above 0.
        batch: the most images in one request, 0 = the shape is as it is.
        typical: the shape of the input that the server tries on start, without the batch axis where there is one.
        labels: labels.txt has the names of its classes.
    """
    given, gives = ports
    return {
        "name": name,
        "backend": "onnxruntime",
        "default_model_filename": "model.onnx",
        "max_batch_size": batch,
        "input": [_port(given)],
        "output": [_port(port, "labels.txt" if labels and port.name == "logits" else "") for port in gives],
        # a GPU where the server has one and the CPU elsewhere; KIND_GPU would not start without
        "instance_group": [{"count": 1, "kind": Word("KIND_AUTO")}],
        **(_batching() if batch else {}),
        "model_warmup": [_warmup(given, typical)],
        # heuristics instead of trying every algorithm for each new shape; the backend reads this key here alone, and
        # without it takes the slow way even where an execution accelerator says otherwise
        "parameters": _parameters({"cudnn_conv_algo_search": "1"}),
    }


def engines(onnxruntime: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same model on the tensorrt backend, for `tritonserver --model-config-name tensorrt`.

    Args:
        onnxruntime: what `network` gave.
    """
    found = {key: value for key, value in onnxruntime.items() if key not in ("parameters", "default_model_filename")}
    return {
        **found,
        "backend": "tensorrt",
        # no default file: a GPU without an engine of its own is told so, and is given no other's
        "cc_model_filenames": [{"key": key, "value": engine_file(key)} for key in CAPABILITIES],
        "instance_group": [{"count": 1, "kind": Word("KIND_GPU"), "profile": ["0"]}],
    }


def engine_file(capability: str) -> str:
    """Return the name of the engine for a compute capability such as "9.0"."""
    return f"model_cc{capability.replace('.', '')}.plan"


def _batching() -> dict[str, Any]:
    """Return dynamic batching. No preferred sizes: Triton then takes what is there, up to the most.

    No queue policy: with one, whatever it says, a request now and then waits half a second for nothing (72 of 1,920
    single requests on 2.51.0, and none of 1,440 without).
    """
    return {"dynamic_batching": {"max_queue_delay_microseconds": DELAY}}


def _warmup(given: Port, typical: Sequence[int]) -> dict[str, Any]:
    tensor = {"data_type": Word(f"TYPE_{given.dtype}"), "dims": list(typical), "zero_data": True}
    return {"name": "typical", "batch_size": 1, "inputs": {"key": given.name, "value": tensor}}


# ---- the model in front ----------------------------------------------------------------------------------------------


def image(name: str, network_name: str, inputs: Sequence[Port], outputs: Sequence[Port]) -> dict[str, Any]:
    """Return the configuration of the model that takes images, on the Python backend.

    Args:
        name: of the model, and of its folder.
        network_name: the model it calls.
        inputs: see `interface.inputs`.
        outputs: see `interface.outputs`.
    """
    return {
        "name": name,
        "backend": "python",
        "max_batch_size": 0,
        "input": [_port(port) for port in inputs],
        "output": [_port(port, "labels.txt" if port.name == "probabilities" else "") for port in outputs],
        "instance_group": [{"count": IMAGES_AT_ONCE, "kind": Word("KIND_CPU")}],
        "parameters": _parameters({"network": network_name, "largest_voxels": str(LARGEST_VOXELS)}),
    }


def _port(port: Port, label_file: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {"name": port.name, "data_type": Word(f"TYPE_{port.dtype}"), "dims": list(port.dims)}
    if port.optional:
        found["optional"] = True
    if label_file:
        found["label_filename"] = label_file
    return found


def _parameters(values: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"key": key, "value": {"string_value": value}} for key, value in values.items()]
