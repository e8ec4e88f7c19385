"""Eight bits as Q/DQ pairs in an ONNX graph, by ONNX Runtime's static quantiser and real data.

Symmetric int8 for activations and kernels, a scale per output channel of a kernel, biases in float32: what TensorRT
accepts of explicit quantisation, and ONNX Runtime and OpenVINO run. (ONNX Runtime on CPUs would be a third faster with
unsigned activations, which TensorRT refuses.)
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import MissingExtraError, OptionError
from .contract import INPUT
from .quiet import quiet

QUANTISED = ("Conv", "ConvTranspose", "Gemm", "Add")
_OPTIONS = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}


def quantised(model: Any, calibration: Sequence[np.ndarray], *, behind_concat: bool = True) -> Any:
    """Return a float32 ONNX model with Q/DQ pairs about its convolutions, matrix products and sums.

    Args:
        model: as `onnx.single_precision` made it.
        calibration: arrays (C, D, H, W), as the network takes them.
        behind_concat: also convolutions that read a Concat, as a U-Net's decoder has them.

    Raises:
        OptionError: no calibration data.
        MissingExtraError: ONNX Runtime is not installed.
    """
    if not calibration:
        raise OptionError(
            "int8 needs data to calibrate with; allowed: a folder of images like those that it will see, or arrays. "
            "Next: --calibration DIR"
        )
    import onnx

    try:
        from onnxruntime import quantization as q
    except ModuleNotFoundError as error:
        raise MissingExtraError("onnxruntime", "onnx") from error
    left = [] if behind_concat else _behind_concat(model.graph)
    with tempfile.TemporaryDirectory() as name, quiet():
        before, after = Path(name) / "before.onnx", Path(name) / "after.onnx"
        onnx.save(model, before)
        q.quantize_static(
            str(before),
            str(after),
            reader(calibration),
            quant_format=q.QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTISED),
            nodes_to_exclude=left,
            per_channel=True,
            activation_type=q.QuantType.QInt8,
            weight_type=q.QuantType.QInt8,
            calibrate_method=q.CalibrationMethod.MinMax,
            extra_options=dict(_OPTIONS),
        )
        found = onnx.load(after)
    _keep_sums(model.graph, found.graph)
    return found


def _keep_sums(before: Any, after: Any) -> None:
    """Round the quantised kernels anew, so that the sum of each is what it was to half a step.

    A CT is air for the most part: one value, and far from 0. Each element rounded to its nearest leaves a 7x7x7 kernel
    whose sum is five steps off, which that value turns into a shift of the whole map (of `resnet3d18w16_lidc`: 0.44 of
    the logits). The elements that are nearest to the next step go there instead.
    """
    from onnx import numpy_helper

    exact = {tensor.name: tensor for tensor in before.initializer}
    stored = {tensor.name: tensor for tensor in after.initializer}
    makers = {name: node for node in after.node for name in node.output}
    kernels = {node.name: node.input[1] for node in before.node if node.op_type == "Conv"}
    for node in after.node:
        reads = makers.get(node.input[1]) if node.name in kernels and node.op_type == "Conv" else None
        if reads is None or reads.op_type != "DequantizeLinear":
            continue
        kernel, scale = (numpy_helper.to_array(one) for one in (exact[kernels[node.name]], stored[reads.input[1]]))
        steps = kernel.reshape(*kernel.shape[:2], -1).astype(np.float64) / scale.reshape(-1, 1, 1)
        whole = rounded(steps).reshape(kernel.shape).astype(np.int8)
        stored[reads.input[0]].CopyFrom(numpy_helper.from_array(whole, reads.input[0]))


def rounded(steps: np.ndarray) -> np.ndarray:
    """Return whole numbers of -127 to 127 beside `steps` (..., n), whose sum is theirs to a half where that can be."""
    whole = np.rint(steps).clip(-127, 127)
    more = steps - whole  # the largest go up, or the least go down
    count = np.rint(more.sum(-1, keepdims=True))
    place = more.argsort(-1, kind="stable").argsort(-1, kind="stable")  # from the least
    up, down = place >= steps.shape[-1] - count, place < -count
    found: np.ndarray = (whole + up - down).clip(-127, 127)
    return found


def _behind_concat(graph: Any) -> list[str]:
    """Return the names of the convolutions whose input a Concat made."""
    makers = {name: node.op_type for node in graph.node for name in node.output}
    return [node.name for node in graph.node if node.op_type == "Conv" and makers.get(node.input[0]) == "Concat"]


def reader(calibration: Sequence[np.ndarray]) -> Any:
    """Return the data as ONNX Runtime's quantiser reads it: one volume at a time."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest: Iterator[np.ndarray] = iter(calibration)

        def get_next(self) -> dict[str, np.ndarray] | None:
            volume = next(self.rest, None)
            return None if volume is None else {INPUT: np.ascontiguousarray(volume[None], dtype=np.float32)}

    return Reader()
