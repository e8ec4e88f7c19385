"""Biases of convolutions as sums of their own, which stay in float32 where the convolutions are bfloat16.

A bias that is rounded to bfloat16's 8 bits is off by the same at every voxel, which no pooling evens out: it was more
than a half of the 1.1 % by which `resnet3d18w16_tinyimagenet` differed. What is not pooled gains nothing by it, but in
OpenVINO: elsewhere what a convolution gives is rounded once more before its bias is added.
"""

from __future__ import annotations

from typing import Any

import numpy as np

LAYERS = ("Conv", "ConvTranspose")


def apart(model: Any, *, clips: bool = False) -> Any:
    """Return a float32 ONNX model whose convolutions have no biases: they are added to what they give.

    Where that is but read by a sum, the bias is added to the sum, so that runtimes still add that in the convolution.

    Args:
        model: as `onnx.single_precision` made it.
        clips: between a convolution and its bias, clip to what float32 holds. OpenVINO 2026.4 makes an addition that
            follows a convolution its bias, which it rounds; behind another operation it is done in float32, and all
            the same inside of the convolution.
    """
    import onnx

    found = onnx.ModelProto()
    found.CopyFrom(model)
    _Apart(found.graph, clips=clips).run()
    return found


class _Apart:
    """One pass over the nodes of a graph."""

    def __init__(self, graph: Any, *, clips: bool) -> None:
        self.graph, self.clips = graph, clips
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.readers: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.outputs = {value.name for value in graph.output}
        self.late: dict[str, Any] = {}  # sum -> what is to be added to it
        self.nodes: list[Any] = []

    def run(self) -> None:
        """Rewrite the graph."""
        from onnx import numpy_helper

        for node in list(self.graph.node):
            self.nodes.append(node)
            if node.op_type in LAYERS and len(node.input) > 2 and node.input[2] in self.constants:
                bias = numpy_helper.to_array(self.constants[node.input[2]])
                rank = len(self.constants[node.input[1]].dims) if node.input[1] in self.constants else 5
                del node.input[2:]
                self._layer(node, bias.reshape(-1, *(1,) * (rank - 2)))
            elif (bias := self.late.pop(node.output[0], None)) is not None:
                self._add(node, bias)
        read = {name for node in self.nodes for name in node.input}
        kept = [type(node).FromString(node.SerializeToString()) for node in self.nodes]
        constants = [tensor for name, tensor in self.constants.items() if name in read]
        constants = [type(tensor).FromString(tensor.SerializeToString()) for tensor in constants]
        for field, content in (("node", kept), ("initializer", constants)):
            self.graph.ClearField(field)
            getattr(self.graph, field).extend(content)

    def _layer(self, node: Any, bias: np.ndarray) -> None:
        """Add the bias of a layer to the sum that alone reads it, or else to the layer itself."""
        readers = self.readers.get(node.output[0], [])
        if len(readers) == 1 and readers[0].op_type == "Add" and node.output[0] not in self.outputs:
            total = readers[0]
            if not any(name in self.constants for name in total.input):
                self.late[total.output[0]] = self.late.get(total.output[0], 0) + bias
                return
        if self.clips:
            largest = float(np.finfo(np.float32).max)
            low, high = (
                self._constant(f"clip_{side}", np.float32(n)) for side, n in (("low", -largest), ("high", largest))
            )
            self._follow(node, "Clip", [low, high], "clipped")
        self._add(self.nodes[-1], bias)

    def _add(self, node: Any, bias: np.ndarray) -> None:
        self._follow(node, "Add", [self._constant(f"{node.name}_bias", bias.astype(np.float32))], "biased")

    def _follow(self, node: Any, operator: str, more: list[str], what: str) -> None:
        """Put a node behind another one, whose name and readers its result takes over."""
        from onnx import helper

        result = node.output[0]
        node.output[0] = f"{result}_{what}_of"
        self.nodes.append(helper.make_node(operator, [node.output[0], *more], [result], name=f"{node.name}_{what}"))

    def _constant(self, name: str, value: Any) -> str:
        from onnx import numpy_helper

        self.constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name
