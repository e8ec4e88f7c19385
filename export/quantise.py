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
        return onnx.load(after)


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
