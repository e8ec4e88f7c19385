"""A network as one ONNX file: dynamic axes, plain operators, no paths inside, the same bytes every time.

torch.onnx.export (the dynamo exporter of torch 2.13) follows the network; then all that it notes of itself is taken out
(66 KB of stack traces with paths), the precision is put into the graph (`precision`, `quantise`), and the checker of
onnx looks at the result.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import MissingExtraError, OptionError, SvdHubError
from .contract import INPUT, Order
from .detection import GraphDetector, translations
from .formats import AXES
from .network import Network
from .profile import Profile
from .quantise import quantised, shortcuts, wrong_in_openvino
from .quiet import quiet

FILE = "model.onnx"
# 20 is what torch's exporter writes best, and older servers read. bfloat16 convolutions came with 22; from 20 to 22 no
# operator that is used here changed but in the types that it takes, so for bf16 the number alone is raised. (ONNX
# Runtime 1.32 has no RoiAlign of 22 on CPUs, so it is not raised for the others.)
OPSET, OPSET_BF16 = 20, 22
IR_VERSION = 10
LARGEST = 1_900_000_000  # bytes; beyond 2 GB numbers would have to lie in a second file, which `1/model.onnx` forbids


def build(order: Order, folder: Path) -> dict[str, Any]:
    """Write model.onnx; see `contract.Builder`.

    Raises:
        MissingExtraError: onnx or onnxscript is not installed.
        OptionError: an opset that the precision does not allow.
    """
    model = graph(order)
    content = model.SerializeToString(deterministic=True)
    (folder / FILE).write_bytes(content)
    return {
        "opset": opset_of(order),
        "ir_version": model.ir_version,
        "operators": counted(model),
        **({"wrong_in_openvino": wrong_in_openvino(model)} if order.precision == "int8" else {}),
        "bytes": len(content),
    }


def graph(order: Order, *, leave: Callable[[Any], Collection[str]] | None = None) -> Any:
    """Return the ONNX model of an order, checked; of the float32 graph, `leave` gives the layers that int8 leaves."""
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "onnx", "onnx") from error
    opset = opset_of(order)
    model = single_precision(order.network, order.profile, opset if order.precision != "bf16" else OPSET)
    if order.precision in ("fp16", "bf16"):
        from .biases import apart
        from .precision import lowered

        apart_sums = order.precision == "bf16" and order.network.pooled
        model = lowered(apart(model) if apart_sums else model, order.precision, sums=not apart_sums)
        model.opset_import[0].version = opset
    elif order.precision == "int8":
        left = [*(leave(model) if leave is not None else ()), *(shortcuts(model) if order.exact else ())]
        model = quantised(model, order.calibration, leave=left, centred=order.network.pooled)
    finish(model, order.network, order.profile, order.facts)
    if model.ByteSize() > LARGEST:
        raise OptionError(f"the network has {model.ByteSize():,} bytes; allowed: {LARGEST:,}. Next: precision='fp16'")
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.checker.ValidationError as error:
        raise SvdHubError(f"the exported graph is not valid ONNX: {error}") from error
    return model


def opset_of(order: Order) -> int:
    """Return the opset of a file.

    Raises:
        OptionError: an opset that the precision does not allow.
    """
    least = OPSET_BF16 if order.precision == "bf16" else 18
    if order.opset is not None and not least <= order.opset <= 23:
        raise OptionError(f"opset={order.opset} with {order.precision} is not allowed; allowed: {least} to 23")
    return order.opset or max(OPSET, least)


def single_precision(network: Network, profile: Profile, opset: int) -> Any:
    """Return the float32 graph of a network, as the exporter makes it."""
    try:
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "onnxscript", "onnx") from error
    body: nn.Module = GraphDetector(network.inner) if network.kind == "detections" else network
    sample = torch.zeros(profile.sample(network.source.feature_info[-1].stride))
    axes = {index: name for index, name in zip((0, 2, 3, 4), AXES, strict=True) if name in profile.dynamic}
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            body.eval(),
            (sample,),
            dynamo=True,
            dynamic_shapes=(dict.fromkeys(axes, torch.export.Dim.DYNAMIC),),
            input_names=[INPUT],
            output_names=list(network.outputs),
            opset_version=opset,
            external_data=False,
            verbose=False,
            custom_translation_table=dict(translations()) if network.kind == "detections" else None,
        )
    if program is None:
        raise SvdHubError("torch.onnx.export gave nothing. Next: report it with the network's name")
    return program.model_proto


def finish(model: Any, network: Network, profile: Profile, facts: Mapping[str, str]) -> None:
    """Take out what the exporter notes of itself, name the axes, and put our facts in; in place."""
    from onnx import helper

    from .. import __version__

    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "svd_hub", __version__
    model.domain, model.doc_string, model.model_version = "", "", 0
    del model.metadata_props[:]
    helper.set_model_props(model, dict(sorted(facts.items())))
    silence(model.graph)
    model.graph.name = "svd_hub"
    del model.graph.value_info[:]  # shapes of what is between; runtimes find their own, and these may be too narrow
    name_axes(model.graph, network, profile)


def silence(graph: Any) -> None:
    """Take notes and paths out of a graph and the graphs inside its nodes."""
    graph.doc_string = ""
    del graph.metadata_props[:]
    for item in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        item.doc_string = ""
        del item.metadata_props[:]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                silence(attribute.g)


def name_axes(graph: Any, network: Network, profile: Profile) -> None:
    """Give the input's axes their names, and an output's those that are surely the input's."""
    (volume,) = graph.input
    _set_dims(volume, profile.dims)
    for value in graph.output:
        rank = len(value.type.tensor_type.shape.dim)
        own = [_dim(dim) for dim in value.type.tensor_type.shape.dim]
        dims: list[str | int] = [d if isinstance(d, int) else f"{value.name}_{i}" for i, d in enumerate(own)]
        dims[0] = profile.dims[0]
        if network.kind == "map":
            dims[2:] = profile.dims[2:]
        if network.kind == "detections":
            dims[1:] = [network.inner.max_detections, 4][: rank - 1]
        _set_dims(value, dims)


def _dim(dim: Any) -> str | int:
    return dim.dim_value if dim.HasField("dim_value") else str(dim.dim_param)


def _set_dims(value: Any, dims: Any) -> None:
    shape = value.type.tensor_type.shape
    del shape.dim[:]
    for dim in dims:
        made = shape.dim.add()
        if isinstance(dim, int):
            made.dim_value = dim
        else:
            made.dim_param = dim


def counted(model: Any) -> dict[str, int]:
    """Return how many nodes of each operator a graph has; operators of other domains with it."""
    found: dict[str, int] = {}
    for node in model.graph.node:
        name = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        found[name] = found.get(name, 0) + 1
    return dict(sorted(found.items()))
