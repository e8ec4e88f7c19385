"""Sixteen bits as casts in an ONNX graph: what gains by them runs in them, what loses by them stays in float32.

One file then means the same everywhere: ONNX Runtime, OpenVINO, and TensorRT, whose releases from 11 on read precision
from the graph alone (its FP16 and INT8 flags are gone).

Convolutions and matrix products run in 16 bits, with their kernels stored so. What only moves or compares numbers
follows where it stands among such, and so may what adds two of them. Norms, reductions, softmax and the arithmetic of
boxes do not.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..errors import SvdHubError

ALWAYS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
FOLLOWING = frozenset(
    {"Relu", "LeakyRelu", "MaxPool", "Add", "Concat", "Pad", "Slice", "Reshape", "Transpose", "Squeeze", "Unsqueeze"}
    | {"Flatten", "Identity", "Expand", "Split"}
)
# Inputs of a following operator that are sizes or places, not numbers of the network.
_SIZES = {"Pad": (1, 3), "Slice": (1, 2, 3, 4), "Reshape": (1,), "Squeeze": (1,), "Unsqueeze": (1,), "Expand": (1,)}
_SIZES |= {"Split": (1,)}


def lowered(model: Any, precision: str, *, sums: bool = True) -> Any:
    """Return a float32 ONNX model with its arithmetic in "fp16" or "bf16"; inputs and outputs stay float32.

    Args:
        model: as `onnx.single_precision` made it.
        precision: "fp16" | "bf16".
        sums: in 16 bits too, where they stand among such.

    Raises:
        SvdHubError: a kernel has a number that float16 cannot hold.
    """
    import onnx

    result = onnx.ModelProto()
    result.CopyFrom(model)
    _Lowering(result, precision, FOLLOWING if sums else FOLLOWING - {"Add"}).run()
    return result


class _Lowering:
    """One pass over the nodes, which ONNX keeps in an order that can be run."""

    def __init__(self, model: Any, precision: str, following: frozenset[str]) -> None:
        from onnx import TensorProto

        self.graph, self.precision, self.following = model.graph, precision, following
        self.type = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[precision]
        self.single = TensorProto.FLOAT
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.floats = _float_names(model)
        self.low: set[str] = set()  # tensors that are made in 16 bits
        self.casts: dict[tuple[str, int], str] = {}
        self.nodes: list[Any] = []

    def run(self) -> None:
        """Rewrite the graph."""
        outputs = {value.name for value in self.graph.output}
        for node in list(self.graph.node):
            if self._lowers(node):
                self._rewire(node, self.type, skip=_SIZES.get(node.op_type, ()))
                self.nodes.append(node)
                self.low.update(name for name in node.output if name)
                for index, name in enumerate(node.output):
                    if name in outputs:  # a graph's output stays float32
                        node.output[index] = f"{name}_{self.precision}"
                        self.low.add(node.output[index])
                        self.low.discard(name)
                        self.casts[(name, self.type)] = node.output[index]
                        self._cast(node.output[index], self.single, name)
            else:
                self._rewire(node, self.single, skip=())
                self.nodes.append(node)
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        self._drop_unused()

    def _lowers(self, node: Any) -> bool:
        """Return whether a node is computed in 16 bits."""
        if node.domain or node.op_type not in ALWAYS | self.following:
            return False
        if node.op_type in ALWAYS:
            return True
        sizes = _SIZES.get(node.op_type, ())
        data = [name for index, name in enumerate(node.input) if name and index not in sizes]
        made = [name for name in data if name not in self.constants]
        fits = all(self._fits(name) for name in data if name in self.constants)
        return fits and bool(made) and all(name in self.low for name in made)

    def _fits(self, name: str) -> bool:
        """Return whether 16 bits can hold a constant: a detector pads its scores with one that float16 cannot."""
        from onnx import numpy_helper

        values = numpy_helper.to_array(self.constants[name])
        if self.precision != "fp16" or values.dtype.kind != "f" or not values.size:
            return True
        return bool(np.abs(values).max() <= np.finfo(np.float16).max)

    def _rewire(self, node: Any, wanted: int, skip: Iterable[int]) -> None:
        """Give a node its numbers in the precision it computes in."""
        for index, name in enumerate(node.input):
            if not name or index in skip:
                continue
            if name in self.constants:
                if wanted == self.type and name in self.floats:
                    node.input[index] = self._constant(name)
            elif wanted == self.type and name not in self.low and name in self.floats:
                node.input[index] = self._cast(name, self.type)
            elif wanted == self.single and name in self.low:
                node.input[index] = self._cast(name, self.single)

    def _cast(self, name: str, to: int, made: str = "") -> str:
        """Return a tensor in another precision; each is cast once."""
        from onnx import helper

        if made or (name, to) not in self.casts:
            made = made or f"{name}_{'fp32' if to == self.single else self.precision}"
            self.nodes.append(helper.make_node("Cast", [name], [made], name=f"Cast_{made}", to=to))
            self.casts[(name, to)] = made
            if to == self.type:
                self.low.add(made)
        return self.casts[(name, to)]

    def _constant(self, name: str) -> str:
        """Return a constant in 16 bits.

        Raises:
            SvdHubError: float16 cannot hold it.
        """
        from onnx import numpy_helper

        made = f"{name}_{self.precision}"
        if made not in self.constants:
            import ml_dtypes

            values = numpy_helper.to_array(self.constants[name])
            if not self._fits(name):
                raise SvdHubError(
                    f"{name} has a number of {np.abs(values).max():.3g}, which float16 cannot hold. Next: "
                    "precision='bf16' or 'fp32'"
                )
            low = values.astype(np.float16 if self.precision == "fp16" else ml_dtypes.bfloat16)
            self.constants[made] = numpy_helper.from_array(low, made)
            self.graph.initializer.append(self.constants[made])
        return made

    def _drop_unused(self) -> None:
        used = {name for node in self.graph.node for name in node.input}
        kept = [tensor for tensor in self.graph.initializer if tensor.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)


def _float_names(model: Any) -> set[str]:
    """Return the names of float32 tensors: those of the network, not sizes, places or masks."""
    from onnx import TensorProto, shape_inference

    graph = shape_inference.infer_shapes(model).graph
    values = (*graph.value_info, *graph.input, *graph.output)
    found = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    return found | {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
