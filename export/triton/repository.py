"""Writes a model repository: the network for the onnxruntime and tensorrt backends, and the model that takes images.

    NAME_network/config.pbtxt             the network on the onnxruntime backend
    NAME_network/configs/tensorrt.pbtxt   the same on the tensorrt backend
    NAME_network/1/model.onnx             and model_cc90.plan ... where engines were built and put there
    NAME/config.pbtxt                     from an image to a result, on the Python backend; it calls NAME_network
    NAME/1/model.py, record.json          a few lines, and the rules that belong to the weights

What runs in front of the network is svd_hub itself, installed in the server's Python, and not a copy written into the
repository: resampling, windows, blending and the largest parts then are the code of `svd-hub predict`, and give its
result by construction. It needs torch there (the CPU build is enough: it only does arithmetic), and neither a GPU nor a
download.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...files import write_atomic
from ...predict.record import Record
from .. import facts
from .. import onnx as onnx_format
from ..artifact import write_json
from ..contract import Order
from ..predicting import windows_at_once
from ..profile import Profile
from . import config, interface
from .interface import Port

SUFFIX = "_network"
MODEL = "model.py"
_TYPES = {"float": "FP32", "int64": "INT64"}  # of outputs

_MODEL = '''"""From an image to a result, as svd-hub predict does it. Written by svd-hub export; not to be edited.

The rules are in record.json beside this file; what applies them is svd_hub, in the server's Python.
"""

try:
    from svd_hub.export.triton.image_model import TritonPythonModel
except ModuleNotFoundError as error:
    raise ImportError(
        f'{error.name} is not installed in the Python of this server. Next: pip install "svd-hub[volume]" there'
    ) from error

__all__ = ["TritonPythonModel"]
'''
_ENGINES = """On the tensorrt backend: tritonserver --model-config-name tensorrt ...
On each kind of GPU: svd-hub export ENTRY --to tensorrt --out engine, with the shapes of manifest.json here; then its
model.plan goes into 1/ as:
"""


def build(order: Order, folder: Path) -> dict[str, Any]:
    """Write the repository; see `contract.Builder`.

    Raises:
        MissingExtraError: the libraries of the ONNX exporter are not installed.
        OptionError: shapes that the windows of the image model do not fit into.
    """
    source: Any = order.network.source
    name = model_name(getattr(getattr(source, "entry", None), "name", type(source).__name__))
    record, why = facts.record(source, weights_sha256=facts.weights_sha256(source))
    at_once = windows_at_once(record, order.profile.data()) if record is not None else None
    network = folder / f"{name}{SUFFIX}"
    (network / "1").mkdir(parents=True)
    built = onnx_format.build(order, network / "1")
    classes = facts.preprocessing(source)["classes"]
    _write_network(network, order.profile, _ports(network / "1" / onnx_format.FILE), classes)
    if record is not None:
        _write_image(folder / name, network.name, record, at_once)
    models = {"network": network.name, "image": name if record is not None else ""}
    return {
        **built,
        "model": f"{network.name}/1/{onnx_format.FILE}",
        "models": models,
        "note": f"no model that takes images: {why}" if why else "",
    }


def model_name(entry: str) -> str:
    """Return the name of a model that any client can put into a URL."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", entry.removesuffix(".safetensors")).strip("_") or "network"


# ---- the network -----------------------------------------------------------------------------------------------------


def _ports(path: Path) -> tuple[Port, list[Port]]:
    """Return input and outputs of an ONNX file, with the batch axis; -1 is an open one."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph

    def port(value: Any) -> Port:
        tensor = value.type.tensor_type
        dims = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim)
        kind = _TYPES[onnx.TensorProto.DataType.Name(tensor.elem_type).lower()]
        return Port(value.name, kind, dims, "")

    return port(graph.input[0]), [port(value) for value in graph.output]


def _write_network(folder: Path, profile: Profile, ports: tuple[Port, list[Port]], classes: Sequence[str]) -> None:
    given, gives = ports
    batch, typical = 0, list(profile.typical)
    if "batch" in profile.dynamic:  # then Triton adds the axis itself
        batch = profile.largest[0]
        given, *gives = (Port(p.name, p.dtype, p.dims[1:], "") for p in (given, *gives))
        typical = typical[1:]
    made = config.network(folder.name, ports=(given, gives), batch=batch, typical=typical, labels=bool(classes))
    _write(folder / "config.pbtxt", config.text(made))
    (folder / "configs").mkdir()
    files = "\n".join(f"  {config.engine_file(key)}  {gpus}" for key, gpus in config.CAPABILITIES.items())
    _write(folder / "configs" / "tensorrt.pbtxt", config.text(config.engines(made), _ENGINES + files))
    if classes:
        _write(folder / "labels.txt", "".join(f"{label}\n" for label in classes))


# ---- the model in front ----------------------------------------------------------------------------------------------


def _write_image(folder: Path, network: str, record: Record, at_once: int | None) -> None:
    (folder / "1").mkdir(parents=True)
    modality = record.preprocess.modality
    inputs = interface.inputs(record.task, modality)
    outputs = interface.outputs(record.task, modality, len(record.classes))
    said = "\n".join(f"{way} {port.name}: {port.says}" for way, ports in (("in", inputs), ("out", outputs))
                     for port in ports)  # fmt: skip
    _write(folder / "config.pbtxt", config.text(config.image(folder.name, network, inputs, outputs), said))
    _write(folder / "labels.txt", "".join(f"{label}\n" for label in record.classes))
    _write(folder / "1" / MODEL, _MODEL)
    write_json(folder / "1" / interface.RECORD, {"at_once": at_once, "record": record.data()})


def _write(path: Path, content: str) -> None:
    write_atomic(path, content.encode())
