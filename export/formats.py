"""The one table of what can be exported to what, and how exactly. Help, docs, errors and tests read it. No torch here.

A format is a row of `FORMATS` and two functions, given by name so that nothing heavy is imported: one that writes the
files of an artifact, one that runs them. What both are given and return is in `contract`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..errors import OptionError, check_choice

if TYPE_CHECKING:
    from collections.abc import Mapping

AXES = ("batch", "depth", "height", "width")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
KINDS = ("logits", "features", "pyramid", "map", "detections")
"""What a network gives: of a classifier, of a backbone pooled, of its levels, of each voxel, of a detector."""
_ALL = frozenset(KINDS)


@dataclass(frozen=True, kw_only=True)
class Format:
    """One target.

    Attributes:
        summary: what it is, in a line.
        build: "module:function" of this package that writes its files; see `contract.Builder`.
        runner: "module:Class" that runs them; see `contract.Runner`.
        model: the file or folder that a server is pointed to.
        precisions: what it can be made in -> what runs that. One that no CPU runs is built and checked, and not run.
        unrun: the precisions of these that the runner here cannot run on a CPU.
        kinds: of networks, some of `KINDS`.
        why_not: why the other kinds are left out.
        devices: where the runner here runs it, by torch's names, the first of itself -> its options for that.
        axes: of the input, those that may be left open.
        extra: of svd-hub, that brings what it needs; "" = the core.
        settings: what else its builder takes, by name, each in a line.
    """

    name: str
    summary: str
    build: str
    runner: str
    model: str
    precisions: Mapping[str, str]
    unrun: frozenset[str] = frozenset()
    kinds: frozenset[str] = _ALL
    why_not: str = ""
    devices: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"cpu": {}})
    axes: tuple[str, ...] = AXES
    extra: str = ""
    quantised: frozenset[str] = field(default=frozenset({"logits", "features", "pyramid", "map"}))
    settings: Mapping[str, str] = field(default_factory=dict)


_TORCH_CPU = "libtorch and torch on CPU and GPU"
_ONNX_RUNTIME = MappingProxyType({"cpu": {}, "cuda": {"provider": "cuda"}})
_ROWS = (
    Format(
        name="torchscript",
        summary="a traced module for libtorch; deprecated by torch, still the only file it loads in C++ without more",
        build="torchscript:build",
        runner="torchscript:Runner",
        model="model.pt",
        precisions=MappingProxyType({"fp32": _TORCH_CPU, "fp16": "GPU; slow on CPUs", "bf16": _TORCH_CPU}),
    ),
    Format(
        name="torch_export",
        summary="an ExportedProgram of torch.export, for AOTInductor and torch.compile",
        build="program:build",
        runner="program:Runner",
        model="model.pt2",
        precisions=MappingProxyType({"fp32": "torch on CPU and GPU", "bf16": "torch on CPU and GPU"}),
        kinds=_ALL - {"detections"},
        why_not="its boxes depend on values, which torch.export does not follow without operators of ours",
    ),
    Format(
        name="onnx",
        summary="one graph of plain ONNX operators for ONNX Runtime, TensorRT and OpenVINO",
        build="onnx:build",
        runner="run_onnx:Runner",
        model="model.onnx",
        precisions=MappingProxyType(
            {
                "fp32": "ONNX Runtime on CPU and GPU, TensorRT, OpenVINO",
                "fp16": "ONNX Runtime on GPU (on CPUs as fp32), TensorRT, OpenVINO",
                "bf16": "TensorRT, OpenVINO, ONNX Runtime on GPU; not ONNX Runtime on CPUs",
                "int8": "ONNX Runtime on CPU and GPU, TensorRT, OpenVINO",
            }
        ),
        unrun=frozenset({"bf16"}),
        devices=_ONNX_RUNTIME,
        extra="onnx",
    ),
    Format(
        name="openvino",
        summary="OpenVINO's own files for Intel and AMD CPUs and Intel GPUs",
        build="openvino:build",
        runner="run_openvino:Runner",
        model="model.xml",
        precisions=MappingProxyType(
            {
                "fp32": "OpenVINO on CPU and GPU",
                "fp16": "OpenVINO on GPU (on CPUs the numbers are fp16, the arithmetic fp32)",
                "bf16": "OpenVINO on CPUs with avx512_bf16 or amx_bf16",
                "int8": "OpenVINO on CPUs with avx512_vnni or amx_int8, and on GPU",
            }
        ),
        extra="openvino",
    ),
    Format(
        name="tensorrt",
        summary="an engine for one kind of NVIDIA GPU and one release of TensorRT, built where it will run; this "
        "project has had no machine to build one on, so it is checked against TensorRT's bindings only",
        build="tensorrt.artifacts:build",
        runner="tensorrt.artifacts:Runner",
        model="model.plan",
        precisions=MappingProxyType(dict.fromkeys(PRECISIONS, "TensorRT on the GPU that it was built on")),
        devices=MappingProxyType({"cuda": {}}),
        extra="tensorrt",
        settings=MappingProxyType(
            {
                "hardware": "GPUs that may run it: this (default), same_compute_capability, ampere_plus",
                "version_compatible": "later releases of TensorRT may run it too",
                "refit": "its weights can be exchanged later (svd-hub export engine --refit-from)",
                "level": "how long TensorRT searches, 0 to 5; default 3",
                "workspace": "GiB of memory for a layer; default all there is",
                "timing_cache": "no = measure every kernel anew",
            }
        ),
    ),
    Format(
        name="triton",
        summary="a model repository for Triton: the network, and a model that answers whole images as predict does",
        build="triton.repository:build",
        runner="run_onnx:Runner",
        model=".",
        precisions=MappingProxyType(
            {
                "fp32": "Triton with the onnxruntime backend on CPU and GPU, or the tensorrt backend",
                "fp16": "Triton on GPU (on CPUs as fp32)",
                "bf16": "Triton with the tensorrt backend, or onnxruntime on GPU; not on CPUs",
                "int8": "Triton with the onnxruntime backend on CPU and GPU, or the tensorrt backend",
            }
        ),
        unrun=frozenset({"bf16"}),
        devices=_ONNX_RUNTIME,
        extra="onnx",
    ),
)
FORMATS: Mapping[str, Format] = MappingProxyType({row.name: row for row in _ROWS})

# ---- how exact -------------------------------------------------------------------------------------------------------

NORMS = ("batch", "group")
"""Norms that are constants at inference, and those that use the statistics of their input (group, instance, ...)."""
TOLERANCES: Mapping[tuple[str, str], float] = MappingProxyType(
    {
        ("batch", "fp32"): 1e-5,
        ("batch", "fp16"): 2e-3,
        ("batch", "bf16"): 1e-2,
        ("batch", "int8"): 5e-2,
        ("group", "fp32"): 1e-4,
        ("group", "fp16"): 5e-3,
        ("group", "bf16"): 3e-2,
        ("group", "int8"): 5e-2,
    }
)
"""(norm, precision) -> the largest relative error of an output: the norm of the difference by the norm of eager's."""
AGREEMENT: Mapping[str, float] = MappingProxyType({"fp32": 0.999, "fp16": 0.99, "bf16": 0.97, "int8": 0.95})
"""precision -> the least share of the task's own measure: classes that agree, Dice of labels, boxes that match."""


def get_format(name: str) -> Format:
    """Return a row of the table.

    Raises:
        OptionError: no such format.
    """
    check_choice("to", name, FORMATS)
    return FORMATS[name]


def check_cell(name: str, precision: str, kind: str) -> Format:
    """Return the format if it can hold a network of this kind in this precision.

    Raises:
        OptionError: it cannot; says why, and what is allowed.
    """
    row = get_format(name)
    check_choice(f"precision of {name}", precision, row.precisions)
    if kind not in row.kinds:
        others = ", ".join(other.name for other in _ROWS if kind in other.kinds)
        raise OptionError(f"{name} of a network that gives {kind} is not made: {row.why_not}. Next: one of {others}")
    if precision == "int8" and kind not in row.quantised:
        raise OptionError(
            f"int8 of a network that gives {kind} is not made: boxes of 8 bits are not exact enough; allowed: "
            f"{', '.join(p for p in row.precisions if p != 'int8')}"
        )
    return row


def matrix() -> list[tuple[str, str, str]]:
    """Return (format, precision, what runs it) of every cell."""
    return [(row.name, precision, runs) for row in _ROWS for precision, runs in row.precisions.items()]
