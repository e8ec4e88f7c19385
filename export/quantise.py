"""Eight bits as Q/DQ pairs in an ONNX graph: kernels and what their layers read, by ranges seen on real data.

A pair stands before each input of a convolution or matrix product and nowhere else: each number is rounded once, sums
and outputs stay float32, and so do heads, which cost nothing and whose rounding nothing evens out. It is where TensorRT
asks for explicit quantisation and where OpenVINO puts its own. Symmetric int8 throughout, a scale per output channel of
a kernel, biases in float32: TensorRT takes nothing else.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from ..errors import OptionError
from .contract import INPUT
from .run_onnx import import_runtime

QUANTISED = {"Conv": 0, "ConvTranspose": 1, "Gemm": 1}
"""Operator -> the axis of its kernel that its output channels have (of Gemm, where it is not transposed)."""
LEVELS = 127
SAMPLE = 1 << 20  # numbers of a tensor, of all volumes together, that its range is chosen by
CENTRED = 16  # volumes at most that means are taken over
_CLIPS = np.geomspace(1 / 32, 1, 241)  # parts of the largest number seen that the range may end at


def quantised(
    model: Any, calibration: Sequence[np.ndarray], *, leave: Collection[str] = (), centred: bool = False
) -> Any:
    """Return a float32 ONNX model with Q/DQ pairs before its convolutions and matrix products.

    Args:
        model: as `onnx.single_precision` made it.
        calibration: arrays (C, D, H, W), as the network takes them.
        leave: names of layers that stay float32.
        centred: move the biases so that each channel's mean on the data is what it was. For what is pooled over a
            volume, where rounding cancels and a shift stays. It takes a run of the network for each layer, with those
            that have the shape of the first of the data.

    Raises:
        OptionError: no calibration data.
        MissingExtraError: ONNX Runtime is not installed.
    """
    if not calibration:
        raise OptionError(
            "int8 needs data to calibrate with; allowed: a folder of images like those that it will see, or arrays. "
            "Next: --images DIR"
        )
    import onnx

    found = onnx.ModelProto()
    found.CopyFrom(model)
    kernels = {tensor.name: tensor for tensor in found.graph.initializer}
    left = {*leave, *heads(model)}
    nodes = [
        node
        for node in found.graph.node
        if node.op_type in QUANTISED and node.input[1] in kernels and node.name not in left
    ]
    scales = _ranges(model, list(dict.fromkeys(node.input[0] for node in nodes)), calibration)
    before = _Pairs(found.graph)
    for node in nodes:
        kernel = kernels[node.input[1]]
        node.input[0] = before.of_map(node.input[0], scales[node.input[0]])
        node.input[1] = before.of_kernel(kernel, _axis(node))
    before.insert()
    if centred:
        usual = [volume for volume in calibration if volume.shape == calibration[0].shape]
        _centre(model, found, [node.name for node in nodes], usual[:CENTRED])
    return found


def heads(model: Any) -> list[str]:
    """Return the names of matrix products and 1x1x1 convolutions that no other layer follows."""
    wide = {tensor.name for tensor in model.graph.initializer if any(n > 1 for n in tensor.dims[2:])}
    followed: set[str] = set()  # names from which a layer is reached
    found = []
    for node in reversed(model.graph.node):
        layer = node.op_type in QUANTISED
        if layer and node.input[1] not in wide and not followed & set(node.output):
            found.append(node.name)
        if layer or followed & set(node.output):
            followed |= set(node.input)
    return found


def shortcuts(model: Any) -> list[str]:
    """Return the names of 1x1x1 convolutions that a sum alone reads, of a map that others read too.

    What they round goes past the blocks, on to the end. In float32 they leave four fifths of the error of
    `resnet3d18w16_lidc`, and a fifth of that of an untrained ResNet3D-50; in OpenVINO they cost 2 to 7 % of the time.
    """
    wide = {tensor.name for tensor in model.graph.initializer if any(n > 1 for n in tensor.dims[2:])}
    readers: dict[str, list[str]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    return [
        node.name
        for node in model.graph.node
        if node.op_type == "Conv" and node.input[1] not in wide
        if readers.get(node.output[0]) == ["Add"] and len(readers[node.input[0]]) > 1
    ]


def wrong_in_openvino(model: Any) -> list[str]:
    """Return the names of layers that OpenVINO 2026.4 computes wrongly in eight bits, in float32 or with pairs.

    Those that read a Concat (it made a U-Net wrong by 14 %), and those whose result is read by operators of several
    kinds (a norm and a sum: a SegResNet by 20 %); ONNX Runtime is wrong by 1 with the same files.
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    readers: dict[str, set[str]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)

    def made_by(name: str) -> str:
        node = makers.get(name)
        while node is not None and node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            node = makers.get(node.input[0])
        return node.op_type if node is not None else ""

    return [
        node.name
        for node in model.graph.node
        if node.op_type in QUANTISED
        and (made_by(node.input[0]) == "Concat" or len(readers.get(node.output[0], set()) - {"Shape"}) > 1)
    ]


class _Pairs:
    """The pairs of a graph: one of each tensor, however many read it."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self.made: dict[str, list[Any]] = {}  # tensor -> nodes that follow it
        self.constants: list[Any] = []

    def of_map(self, name: str, scale: float) -> str:
        """Return the name of a map as it is after rounding."""
        from onnx import helper

        if name not in self.made:
            self._constant(f"{name}_scale", np.float32(scale))
            self._constant(f"{name}_zero", np.int8(0))
            parts = [f"{name}_scale", f"{name}_zero"]
            self.made[name] = [
                helper.make_node("QuantizeLinear", [name, *parts], [f"{name}_int8"], name=f"{name}_quantize"),
                helper.make_node(
                    "DequantizeLinear", [f"{name}_int8", *parts], [f"{name}_rounded"], name=f"{name}_back"
                ),
            ]
        return f"{name}_rounded"

    def of_kernel(self, kernel: Any, axis: int) -> str:
        """Return the name of a kernel that is stored in eight bits; float32 if something else reads it too."""
        from onnx import helper, numpy_helper

        name = kernel.name
        if name not in self.made:
            rows = np.moveaxis(numpy_helper.to_array(kernel), axis, 0)
            whole, scale = eight_bits(rows)
            self._constant(f"{name}_int8", np.ascontiguousarray(np.moveaxis(whole, 0, axis)))
            self._constant(f"{name}_scale", scale)
            self._constant(f"{name}_zero", np.zeros(len(scale), np.int8))
            parts = [f"{name}_int8", f"{name}_scale", f"{name}_zero"]
            self.made[name] = [
                helper.make_node("DequantizeLinear", parts, [f"{name}_rounded"], name=f"{name}_back", axis=axis)
            ]
        return f"{name}_rounded"

    def _constant(self, name: str, value: Any) -> None:
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(np.asarray(value), name))

    def insert(self) -> None:
        """Put the pairs behind what they round, and leave out the kernels that nothing reads any more."""
        by_nodes = {name for node in self.graph.node for name in node.output}
        nodes = [node for name, pair in self.made.items() if name not in by_nodes for node in pair]
        for node in self.graph.node:
            nodes += [node, *(follower for name in node.output for follower in self.made.get(name, ()))]
        read = {name for node in nodes for name in node.input} | {out.name for out in self.graph.output}
        constants = [tensor for tensor in self.graph.initializer if tensor.name in read] + self.constants
        for field, content in (("node", nodes), ("initializer", constants)):
            kept = [type(item).FromString(item.SerializeToString()) for item in content]
            self.graph.ClearField(field)
            getattr(self.graph, field).extend(kept)


def _axis(node: Any) -> int:
    transposed = any(given.name == "transB" and given.i for given in node.attribute)
    return 0 if transposed else QUANTISED[node.op_type]


def eight_bits(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return kernels in whole steps and the step of each.

    The sum over each input channel stays what it was to half a step. A CT is air for the most part: one value, and far
    from 0. Each element rounded to its nearest leaves a 7x7x7 kernel whose sum is five steps off, which that value
    turns into a shift of the whole map. The elements that are nearest to the next step go there instead.

    Args:
        rows: a kernel of each output channel (out, in, ...).
    """
    flat = rows.reshape(*rows.shape[:2], -1).astype(np.float64)
    scale = np.abs(flat).max((1, 2)).clip(1e-12) / LEVELS
    whole = rounded(flat / scale[:, None, None])
    return whole.reshape(rows.shape).astype(np.int8), scale.astype(np.float32)


def rounded(steps: np.ndarray) -> np.ndarray:
    """Return whole numbers of -127 to 127 beside `steps` (..., n), whose sum is theirs to a half where that can be."""
    whole = np.rint(steps).clip(-LEVELS, LEVELS)
    more = steps - whole  # the largest go up, or the least go down
    count = np.rint(more.sum(-1, keepdims=True))
    place = more.argsort(-1, kind="stable").argsort(-1, kind="stable")  # from the least
    up, down = place >= steps.shape[-1] - count, place < -count
    found: np.ndarray = (whole + up - down).clip(-LEVELS, LEVELS)
    return found


def _ranges(model: Any, names: Sequence[str], calibration: Sequence[np.ndarray]) -> dict[str, float]:
    """Return the step of each map: that with the least squared error on the data."""
    seen = _run(_watching(model, names, SAMPLE // len(calibration)), calibration)
    return {name: step_of(np.abs(np.concatenate(samples))) for name, samples in zip(names, seen, strict=True)}


def _centre(model: Any, found: Any, names: Sequence[str], calibration: Sequence[np.ndarray]) -> None:
    """Move the biases of layers, the first of them first, so that the means of their channels are those of `model`."""
    from onnx import numpy_helper

    layers = {node.name: node for node in found.graph.node if node.name in set(names)}
    biases = {tensor.name: tensor for tensor in found.graph.initializer}
    wanted = _means(model, [layers[name].output[0] for name in names], calibration)
    for name, mean in zip(names, wanted, strict=True):
        layer = layers[name]
        bias = mean - _means(found, [layer.output[0]], calibration)[0]
        if len(layer.input) > 2 and layer.input[2]:
            bias += numpy_helper.to_array(biases[layer.input[2]])
        del layer.input[2:]
        layer.input.append(f"{name}_bias")
        found.graph.initializer.append(numpy_helper.from_array(bias.astype(np.float32), layer.input[2]))
    read = {name for node in found.graph.node for name in node.input}
    kept = [tensor for tensor in found.graph.initializer if tensor.name in read]
    del found.graph.initializer[:]
    found.graph.initializer.extend(kept)


def _means(model: Any, names: Sequence[str], calibration: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the mean of each channel of some maps (N, C, ...)."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    watching = onnx.ModelProto()
    watching.CopyFrom(model)
    graph = watching.graph
    graph.ClearField("output")
    graph.initializer.append(numpy_helper.from_array(np.array([0, 0, -1], np.int64), "watch_shape"))
    graph.initializer.append(numpy_helper.from_array(np.array([0, 2], np.int64), "watch_axes"))
    for number, name in enumerate(names):
        flat, mean = f"watch_{number}_flat", f"watch_{number}_mean"
        graph.node.append(helper.make_node("Reshape", [name, "watch_shape"], [flat]))
        graph.node.append(helper.make_node("ReduceMean", [flat, "watch_axes"], [mean], keepdims=0))
        graph.output.append(helper.make_tensor_value_info(mean, TensorProto.FLOAT, [None]))
    return [np.mean(column, axis=0) for column in _run(watching, calibration)]


def _run(model: Any, calibration: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
    """Return of each output what it is for every volume."""
    runtime = import_runtime()
    settings = runtime.SessionOptions()
    settings.log_severity_level = 3
    session = runtime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    volumes = (np.ascontiguousarray(volume[None], dtype=np.float32) for volume in calibration)
    return [list(column) for column in zip(*(session.run(None, {INPUT: volume}) for volume in volumes), strict=True)]


def _watching(model: Any, names: Sequence[str], most: int) -> Any:
    """Return the model with other outputs: of each tensor its largest and least number, and evenly `most` others."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    found = onnx.ModelProto()
    found.CopyFrom(model)
    graph = found.graph
    graph.ClearField("output")
    for name, value in (("flat", [-1]), ("zero", 0), ("one", 1), ("most", most)):
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), f"watch_{name}"))
    for number, name in enumerate(names):
        at = f"watch_{number}_"
        steps: list[tuple[str, list[str], str, dict[str, Any]]] = [
            ("Reshape", [name, "watch_flat"], "all", {}),
            ("Size", [name], "size", {}),
            ("Div", [at + "size", "watch_most"], "part", {}),
            ("Max", [at + "part", "watch_one"], "step", {}),
            ("Range", ["watch_zero", at + "size", at + "step"], "places", {}),
            ("Gather", [at + "all", at + "places"], "some", {}),
            ("ReduceMax", [at + "all"], "largest", {"keepdims": 1}),
            ("ReduceMin", [at + "all"], "least", {"keepdims": 1}),
            ("Concat", [at + "some", at + "largest", at + "least"], "seen", {"axis": 0}),
        ]
        graph.node.extend(
            helper.make_node(operator, given, [at + gives], **options) for operator, given, gives, options in steps
        )
        graph.output.append(helper.make_tensor_value_info(at + "seen", TensorProto.FLOAT, [None]))
    return found


def step_of(sizes: np.ndarray) -> float:
    """Return the step whose 127 multiples are nearest to some numbers >= 0, by the mean of the squares.

    The largest of them is worth a step of its own only where there are many like it: beyond the range it is cut off.
    """
    top = float(sizes.max())
    if top == 0:
        return 1.0 / LEVELS
    counts, edges = np.histogram(sizes, bins=8192, range=(0.0, top))
    middles = (edges[1:] + edges[:-1]) / 2
    steps = _CLIPS[:, None] * top / LEVELS
    errors = ((np.minimum(np.rint(middles / steps), LEVELS) * steps - middles) ** 2 * counts).sum(1)
    return float(steps[errors.argmin(), 0])
