"""Other weights for an engine of the same graph, without building it again. Imported after `here.here()`."""

from __future__ import annotations

import tensorrt as trt

from ...errors import SvdHubError
from .callbacks import Log, said


def refitted(plan: bytes, graph: bytes, *, host_code: bool) -> bytes:
    """Return an engine with the weights of a graph.

    Args:
        plan: an engine that was built with refit=True, of a graph that differs in nothing but its numbers.
        graph: the ONNX model.
        host_code: the engine is version-compatible.

    Raises:
        SvdHubError: the engine does not take all of them.
    """
    log = Log()
    trt.init_libnvinfer_plugins(None, "")
    runtime = trt.Runtime(log)
    if host_code:
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise SvdHubError(f"TensorRT cannot read the engine: {said(log)}. Next: build anew")
    refitter = trt.Refitter(engine, log)
    parser = trt.OnnxParserRefitter(refitter, log)
    if not parser.refit_from_bytes(graph):
        errors = [parser.get_error(number).desc() for number in range(parser.num_errors)]
        raise SvdHubError(f"the engine cannot take these weights: {'; '.join(errors) or said(log)}. Next: build anew")
    if missing := refitter.get_missing_weights():
        raise SvdHubError(f"the graph has no weights for {', '.join(missing)} of the engine. Next: build anew")
    if not refitter.refit_cuda_engine():
        raise SvdHubError(f"TensorRT could not exchange the weights: {said(log)}. Next: build anew")
    return bytes(engine.serialize())
