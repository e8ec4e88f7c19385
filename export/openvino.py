"""A network in OpenVINO's own files, model.xml and model.bin, by way of its ONNX graph."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from . import onnx as onnx_format
from .biases import apart
from .contract import Order
from .quantise import wrong_in_openvino
from .run_openvino import import_openvino, the_core

XML, BIN = "model.xml", "model.bin"


def build(order: Order, folder: Path) -> dict[str, Any]:
    """Write model.xml and model.bin; see `contract.Builder`.

    fp16 and bf16 store numbers in fp16 (those that it cannot hold stay fp32); what is computed in which precision is
    the runner's to ask for. int8 is in the graph, by the same Q/DQ pairs as in ONNX, but for the layers of
    `quantise.wrong_in_openvino`; they stay fp32.

    Raises:
        MissingExtraError: OpenVINO or the exporter's libraries are not installed.
    """
    openvino = import_openvino()
    inner = order.precision if order.precision == "int8" else "fp32"
    graph = onnx_format.graph(dataclasses.replace(order, precision=inner), leave=wrong_in_openvino)
    graph = apart(graph, clips=True) if order.precision == "bf16" else graph
    model = the_core().read_model(graph.SerializeToString(deterministic=True))
    halved = order.precision in ("fp16", "bf16")
    openvino.save_model(model, os.fspath(folder / XML), compress_to_fp16=halved)
    operators: dict[str, int] = {}
    for operator in model.get_ops():
        operators[operator.get_type_name()] = operators.get(operator.get_type_name(), 0) + 1
    return {
        "opset": onnx_format.opset_of(order),
        "operators": dict(sorted(operators.items())),
        "bytes": sum((folder / name).stat().st_size for name in (XML, BIN)),
    }
