"""An ONNX graph becomes an engine, typed as it says, for a range of shapes. Imported after `here.here()`.

Precision is in the graph alone (casts, Q/DQ pairs): TensorRT 11 knows nothing else, and 10 is told so. TF32, which
TensorRT would use for float32 by itself, is off: fp32 means fp32, and fp16 is the fast choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import tensorrt as trt
from packaging.version import Version

from ...errors import SvdHubError
from ..contract import INPUT
from .callbacks import Log, Monitor, said
from .here import Here
from .key import SHAPES
from .options import EngineOptions
from .progress import Board, stoppable
from .timing import attach, keep, timing_path

TYPED_ALWAYS = Version("11")  # from here on there is no other kind of network
GIB = 1 << 30


def plan(graph: bytes, profile: Mapping[str, Sequence[int]], options: EngineOptions, here: Here, board: Board) -> bytes:
    """Return the bytes of an engine for this machine's GPU.

    Args:
        graph: an ONNX model whose input is `contract.INPUT`.
        profile: smallest, typical and largest shape; the engine is fastest at the typical one.
        options: of the build.
        here: this machine.
        board: is told how far it is, and can stop it.

    Raises:
        SvdHubError: TensorRT does not take the graph, or builds no engine of it; with its own words.
        KeyboardInterrupt: it was stopped.
    """
    log = Log()
    trt.init_libnvinfer_plugins(None, "")  # RoiAlign is a plugin of TensorRT's own
    builder = trt.Builder(log)
    typed = Version(here.tensorrt) < TYPED_ALWAYS
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) if typed else 0
    network = builder.create_network(flags)
    parser = parsed(network, graph, log)
    config = configured(builder, profile, options)
    monitor = Monitor(board)
    config.progress_monitor = monitor
    times = timing_path(here)
    if options.timing_cache:
        attach(config, times)
    built = stoppable(lambda: builder.build_serialized_network(network, config), board)
    del parser  # it holds the graph's numbers, which the network points to until here
    if built is None:
        raise SvdHubError(
            f"TensorRT {here.tensorrt} built no engine: {said(log)}. Next: a smaller --largest, --set workspace=GIB, "
            "or another precision"
        )
    if options.timing_cache:
        keep(config, times)
    return bytes(built)


def parsed(network: trt.INetworkDefinition, graph: bytes, log: Log) -> trt.OnnxParser:
    """Read a graph into a network and return the parser, which must live as long as the network is built.

    Raises:
        SvdHubError: TensorRT does not take it; names the nodes.
    """
    parser = trt.OnnxParser(network, log)
    parser.set_flag(trt.OnnxParserFlag.NATIVE_INSTANCENORM)  # the plugin would fit no compatible engine
    if not parser.parse(graph):
        reasons = []
        for number in range(parser.num_errors):
            error = parser.get_error(number)
            reasons.append(f"{error.node_operator()} {error.node_name()}: {error.desc()}")
        raise SvdHubError(
            f"TensorRT does not take the graph: {'; '.join(reasons) or said(log)}. Next: a later TensorRT, or "
            "--to onnx for ONNX Runtime"
        )
    names = [network.get_input(number).name for number in range(network.num_inputs)]
    if names != [INPUT]:
        raise SvdHubError(f"the graph's inputs are {names}; expected: {INPUT!r} alone. Next: export it again")
    return parser


def configured(
    builder: trt.Builder, profile: Mapping[str, Sequence[int]], options: EngineOptions
) -> trt.IBuilderConfig:
    """Return the configuration of a build.

    Raises:
        SvdHubError: TensorRT refuses the shapes.
    """
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.refit:
        config.set_flag(trt.BuilderFlag.REFIT)
    levels = {
        "this": trt.HardwareCompatibilityLevel.NONE,
        "same_compute_capability": trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY,
        "ampere_plus": trt.HardwareCompatibilityLevel.AMPERE_PLUS,
    }
    config.hardware_compatibility_level = levels[options.hardware]
    if options.level is not None:
        config.builder_optimization_level = options.level
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(options.workspace * GIB))
    smallest, typical, largest = (tuple(profile[name]) for name in SHAPES)
    shapes = builder.create_optimization_profile()
    shapes.set_shape(INPUT, smallest, typical, largest)
    if config.add_optimization_profile(shapes) < 0:
        raise SvdHubError(f"TensorRT refuses the shapes {smallest}, {typical}, {largest}. Next: other shapes")
    return config
