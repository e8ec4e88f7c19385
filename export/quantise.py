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


def quantised(model: Any, calibration: Sequence[np.ndarray]) -> Any:
    """Return a float32 ONNX model with Q/DQ pairs about its convolutions, matrix products and sums.

    Args:
        model: as `onnx.single_precision` made it.
        calibration: arrays (C, D, H, W), as the network takes them.

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
    with tempfile.TemporaryDirectory() as name, quiet():
        before, after = Path(name) / "before.onnx", Path(name) / "after.onnx"
        onnx.save(model, before)
        q.quantize_static(
            str(before),
            str(after),
            reader(calibration),
            quant_format=q.QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTISED),
            per_channel=True,
            activation_type=q.QuantType.QInt8,
            weight_type=q.QuantType.QInt8,
            calibrate_method=q.CalibrationMethod.MinMax,
            extra_options=dict(_OPTIONS),
        )
        return onnx.load(after)


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
