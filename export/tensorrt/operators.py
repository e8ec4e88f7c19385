"""Which operators of a graph TensorRT does not take, before it is asked: its parser needs its libraries.

The table is operators.toml, with its source. It says what may be parsed, not how fast it is or how exact.
"""

from __future__ import annotations

import contextlib
import functools
import tomllib
from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from packaging.version import Version

from ...errors import SvdHubError


def refuse_operators(graph: bytes, release: str) -> None:
    """Refuse a graph that a release of TensorRT does not take.

    Raises:
        SvdHubError: it has such nodes; names each kind once.
    """
    found = list(dict.fromkeys(unsupported(onnx.load_model_from_string(graph), release)))
    if found:
        raise SvdHubError(
            f"TensorRT {release} does not take this graph: {'; '.join(found)}. Next: --to onnx, for ONNX Runtime"
        )


def unsupported(model: Any, release: str) -> list[str]:
    """Return what of an ONNX model a release of TensorRT does not take, a line for each node.

    Args:
        model: an ONNX model.
        release: "10.16", "11.4.0.106", ...
    """
    table = load()
    low, high = table["opset"]
    version = next(item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
    found = [] if low <= version <= high else [f"opset {version}, allowed {low} to {high}"]
    with contextlib.suppress(onnx.shape_inference.InferenceError):  # of operators that onnx does not know
        model = onnx.shape_inference.infer_shapes(model)
    graph = _Graph(model.graph)
    for node in graph.nodes:
        found += (f"{node.op_type}: {text}" for text in _faults(node, graph, table, Version(release)))
    return found


@functools.cache
def load() -> Mapping[str, Any]:
    """Return the table, its lists of operators as operator -> types."""
    table = tomllib.loads(files(__package__).joinpath("operators.toml").read_text(encoding="utf-8"))
    types = {name: kinds.split() for kinds, names in table["types"].items() for name in names.split()}
    return {**table, "types": types}


class _Graph:
    """What is known of a graph's tensors without running it."""

    def __init__(self, graph: Any) -> None:
        self.nodes = list(graph.node)
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant":
                self.constants[node.output[0]] = _constant(node)
        self.values = {value.name: value for value in (*graph.value_info, *graph.input, *graph.output)}

    def type_of(self, name: str) -> str:
        """Return ONNX's name of a tensor's type, "" where it is not known."""
        if (tensor := self.constants.get(name)) is not None:
            number = tensor.data_type
        elif (value := self.values.get(name)) is not None:
            number = value.type.tensor_type.elem_type
        else:
            return ""
        return onnx.TensorProto.DataType.Name(number).lower() if number else ""

    def shape_of(self, name: str) -> list[int | None] | None:
        """Return a tensor's shape, None for an open axis; None where not even its rank is known."""
        if (tensor := self.constants.get(name)) is not None:
            return list(tensor.dims)
        value = self.values.get(name)
        if value is None or not value.type.tensor_type.HasField("shape"):
            return None
        return [dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim]

    def value_of(self, name: str) -> np.ndarray | None:
        """Return the numbers of a constant."""
        tensor = self.constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)


def _constant(node: Any) -> Any:
    """Return the tensor of a Constant node, whichever attribute holds it."""
    attribute = node.attribute[0]
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return value
    kind = np.float32 if "float" in attribute.name else np.int64
    return numpy_helper.from_array(np.asarray(value, dtype=kind), node.output[0])


def _faults(node: Any, graph: _Graph, table: Mapping[str, Any], release: Version) -> Iterator[str]:
    """Yield what a release does not take of a node."""
    name = node.op_type
    later = table["since"].get(name)
    if node.domain not in ("", "ai.onnx"):
        yield f"an operator of {node.domain}"
        return
    if later is not None and release < Version(later["release"]):
        yield f"taken from TensorRT {later['release']} on"
        return
    types = later["types"].split() if later is not None else table["types"].get(name)
    if types is None:
        yield "not taken"
        return
    data = table["data"].get(name, 0)
    kind = graph.type_of(node.input[data]) if len(node.input) > data else ""
    if kind and kind not in types:
        yield f"not taken of type {kind}; allowed: {', '.join(types)}"
    yield from _broken(node, graph, table["rule"].get(name, {}), release)


def _broken(node: Any, graph: _Graph, rule: Mapping[str, Any], release: Version) -> Iterator[str]:
    """Yield the parts of an operator's rule that a node breaks."""
    attributes = {item.name: _text(onnx.helper.get_attribute_value(item)) for item in node.attribute}
    shape = graph.shape_of(node.input[0]) if node.input else None
    if shape is not None:
        ranks = rule.get("rank")
        if (later := rule.get("rank_since")) is not None and release >= Version(later["release"]):
            ranks = later["rank"]
        if ranks is not None and len(shape) not in ranks:
            yield f"takes inputs of rank {', '.join(map(str, ranks))}, not {len(shape)}"
        if "spatial" in rule and len(shape) - 2 not in rule["spatial"]:
            yield f"takes {' or '.join(map(str, rule['spatial']))} spatial axes, not {len(shape) - 2}"
    for name in rule.get("ones", ()):
        if any(n != 1 for n in attributes.get(name, ())):
            yield f"{name} must be ones, not {attributes[name]}"
    for name, allowed in rule.get("one_of", {}).items():
        if name in attributes and attributes[name] not in allowed:
            yield f"{name}={attributes[name]!r} is not taken; allowed: {', '.join(map(repr, allowed))}"
    if len([name for name in node.output if name]) > rule.get("outputs", len(node.output)):
        yield f"gives {rule['outputs']} output(s) only"
    yield from _inputs(node, graph, rule, release, shape)


def _inputs(
    node: Any, graph: _Graph, rule: Mapping[str, Any], release: Version, shape: list[int | None] | None
) -> Iterator[str]:
    """Yield the inputs that are not as a rule wants them."""
    given = {number: name for number, name in enumerate(node.input) if name}
    for number in rule.get("constant", ()):
        if number in given and given[number] not in graph.constants:
            yield f"its input {number} must be a constant"
    for number, most in rule.get("below", {}).items():
        value = graph.value_of(given[int(number)]) if int(number) in given else np.zeros(1)
        if value is None or value.max(initial=0) >= most:
            yield f"its input {number} must be a constant below {most}" + (
                "" if value is None else f", not {value.max()}"
            )
    for number in rule.get("zeros", ()):
        if number in given and ((value := graph.value_of(given[number])) is None or value.any()):
            yield f"its input {number} must be zero"
    until = rule.get("static_until")
    early = until is not None and release < Version(until) and len(given) <= rule["static"]
    if early and (shape is None or None in shape):
        yield f"without axes it takes a fixed shape only, before TensorRT {until}"


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value
