"""A double of TensorRT, made of its real bindings' names and signatures, that runs graphs with ONNX Runtime on the CPU.

A name that the bindings do not have, a wrong number of arguments, a wrong keyword or a wrong kind of argument fails as
it does there; every call is kept. Behind the names is a small emulation: an engine is the graph it was built from.
"""

from __future__ import annotations

import ast
import contextlib
import ctypes
import importlib
import importlib.machinery
import json
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorrt_uses import fits, signature

from svd_hub.export.gpu import Gpu
from svd_hub.export.run_onnx import import_runtime

SNAPSHOT = json.loads((Path(__file__).parent / "tensorrt_api.json").read_text())
RELEASES = tuple(SNAPSHOT)
INNER = ("building", "callbacks", "module", "timing", "refitting")  # modules of ours that import TensorRT
PLAN = b"double of a plan\n"
_SIMPLE = {"str": str, "bool": bool, "SupportsInt": int, "int": int, "Buffer": bytes, "tuple": tuple, "list": list}


class Thing:
    """Base of the double's classes; `double` is theirs, `hidden` what the emulation keeps."""

    double: Double
    name_in_api = ""
    made = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        members = self.double.api[self.name_in_api]
        self.double.call(self, self.name_in_api, "__init__", members.get("__init__", []), args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if not str(self.double.api[self.name_in_api].get(name, "")).startswith("<->"):
            raise AttributeError(f"{self.name_in_api} has no {name!r}")
        return self.double.answer(self.name_in_api, name, self)  # nothing was set

    def __setattr__(self, name: str, value: Any) -> None:
        own = type(self) in self.double.classes.values()
        if own and name != "hidden":
            told = self.double.api[self.name_in_api].get(name, "")
            if not str(told).startswith("<->"):
                raise AttributeError(f"{self.name_in_api} has no {name!r} that can be set")
            if (kind := str(told)[4:]) in self.double.classes and not isinstance(value, self.double.classes[kind]):
                raise TypeError(f"{self.name_in_api}.{name} is a {kind}, not {value!r}")
            self.double.calls.append((self.name_in_api, name, (value,)))
        object.__setattr__(self, name, value)


@dataclass
class Double:
    """One release of TensorRT.

    Attributes:
        release: of `RELEASES`.
        calls: (class, member, arguments) of everything that was called or set.
        does: "Class.member" -> what a test wants it to do instead.
        lost: outputs whose shape only a run tells.
        gpu: of the machine.
    """

    release: str
    calls: list[tuple[str, str, tuple[Any, ...]]] = field(default_factory=list)
    does: dict[str, Any] = field(default_factory=dict)
    lost: tuple[str, ...] = ()
    gpu: Gpu = field(default_factory=lambda: machine())
    classes: dict[str, type] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.api = SNAPSHOT[self.release]["api"]
        self.module = types.ModuleType("tensorrt")
        self.module.__spec__ = importlib.machinery.ModuleSpec("tensorrt", None)  # torch looks for it
        self.module.__version__ = SNAPSHOT[self.release]["release"]
        for name in sorted(self.api, key=lambda name: name.count(".")):
            if name != "module":
                self._add_class(name)
        for name, told in self.api["module"].items():
            if isinstance(told, list):
                setattr(self.module, name, self._method("module", name, told, bound=False))

    def _add_class(self, name: str) -> None:
        bases = (Thing, bytes) if name == "IHostMemory" else (Thing,)
        body: dict[str, Any] = {"double": self, "name_in_api": name}
        members = self.api[name]
        for member, told in members.items():
            if isinstance(told, list) and member != "__init__":
                body[member] = self._method(name, member, told)
            elif str(told).startswith("-> "):
                body[member] = property(lambda thing, m=member: self.answer(name, m, thing))
        outer, _, last = name.rpartition(".")
        self.classes[name] = made = type(last, bases, body)
        for member, told in members.items():
            if str(told).startswith("constant"):
                value = made.__new__(made)
                number = int(told.split()[1])
                made.__int__ = lambda thing: thing.hidden  # type: ignore[attr-defined]
                object.__setattr__(value, "hidden", number)
                setattr(made, member, value)
        setattr(self.classes[outer] if outer else self.module, last, made)

    def _method(self, of: str, name: str, told: list[str], *, bound: bool = True) -> Any:
        def method(*args: Any, **kwargs: Any) -> Any:
            thing, rest = (args[0], args[1:]) if bound else (None, args)
            return self.call(thing, of, name, told, rest, kwargs)

        return method

    def call(self, thing: Any, of: str, name: str, told: list[str], args: tuple[Any, ...], kwargs: Any) -> Any:
        """Check a call as the bindings do, keep it, and answer."""
        fit = [text for text in told if fits(text, len(args), tuple(kwargs)) and self._kinds(text, args, kwargs)]
        if not fit:
            raise TypeError(f"{of}.{name}(): incompatible function arguments {args} {kwargs}; supported: {told}")
        self.calls.append((of, name, (*args, *kwargs.values())))
        if name == "__init__":
            if thing is not None and args:
                object.__setattr__(thing, "hidden", args)
            return None
        return self.answer(of, name, thing, *args, returns=signature(fit[0])[2])

    def _kinds(self, text: str, args: tuple[Any, ...], kwargs: Any) -> bool:
        node = ast.parse(f"def f{text}: ...").body[0].args.args  # type: ignore[attr-defined]
        by_name = {argument.arg: ast.unparse(argument.annotation or ast.Name("object")) for argument in node}
        given = {**dict(zip(by_name, args, strict=False)), **kwargs}
        return all(self._is(value, by_name[name]) for name, value in given.items())

    def _is(self, value: Any, kind: str) -> bool:
        if kind == "Dims":
            return isinstance(value, tuple | list) and all(isinstance(n, int) for n in value)
        if kind in self.classes:
            return isinstance(value, self.classes[kind])
        if kind == "SupportsInt":
            return isinstance(value, int) or hasattr(value, "__int__")
        return isinstance(value, _SIMPLE.get(kind, object))

    def answer(self, of: str, name: str, thing: Any, *args: Any, returns: str = "") -> Any:
        """Return what the emulation says, or a test, or an empty value of the right kind."""
        if (said := self.does.get(f"{of}.{name}")) is not None:
            return said(*args) if callable(said) else said
        if (emulated := getattr(Emulation, f"{of}_{name}", None)) is not None:
            return emulated(self, thing, *args)
        if returns in self.classes:
            return self.new(returns)
        return {"bool": True, "int": 0, "str": ""}.get(returns)

    def new(self, name: str, hidden: Any = None, content: bytes = b"") -> Any:
        """Return an object that only TensorRT itself makes."""
        cls: Any = self.classes[name]
        made = bytes.__new__(cls, content) if issubclass(cls, bytes) else cls.__new__(cls)
        object.__setattr__(made, "hidden", hidden if hidden is not None else {})
        return made

    def named(self, *names: str) -> list[tuple[Any, ...]]:
        """Return the arguments of the calls of "Class.member"s, in order."""
        return [args for of, name, args in self.calls if f"{of}.{name}" in names]


class Emulation:
    """What is behind the names, of those for which an empty value is not enough."""

    @staticmethod
    def OnnxParser_parse(double: Double, parser: Any, graph: bytes) -> bool:
        network = parser.hidden[0]
        network.hidden["graph"] = graph
        return True

    @staticmethod
    def INetworkDefinition_num_inputs(double: Double, network: Any) -> int:
        return 1

    @staticmethod
    def INetworkDefinition_get_input(double: Double, network: Any, number: int) -> Any:
        return double.new("ITensor")

    @staticmethod
    def ITensor_name(double: Double, tensor: Any) -> str:
        return "volume"

    @staticmethod
    def IOptimizationProfile_set_shape(double: Double, profile: Any, *args: Any) -> None:
        profile.hidden["shapes"] = args

    @staticmethod
    def IBuilderConfig_add_optimization_profile(double: Double, config: Any, profile: Any) -> int:
        config.hidden["shapes"] = profile.hidden["shapes"]
        return 0

    @staticmethod
    def IBuilderConfig_create_timing_cache(double: Double, config: Any, content: bytes) -> Any:
        return double.new("ITimingCache", {"content": content})

    @staticmethod
    def IBuilderConfig_set_timing_cache(double: Double, config: Any, cache: Any, ignore: bool) -> bool:
        if cache.hidden["content"] not in (b"", b"times"):
            return False
        config.hidden["times"] = cache
        return True

    @staticmethod
    def IBuilderConfig_get_timing_cache(double: Double, config: Any) -> Any:
        return config.hidden["times"]

    @staticmethod
    def ITimingCache_serialize(double: Double, cache: Any) -> Any:
        return double.new("IHostMemory", content=b"times")

    @staticmethod
    def Builder_build_serialized_network(double: Double, builder: Any, network: Any, config: Any) -> Any:
        monitor = config.progress_monitor
        monitor.phase_start("Building", None, 3)
        for step in range(3):
            if not monitor.step_complete("Building", step):
                monitor.phase_finish("Building")
                return None
        monitor.phase_finish("Building")
        shapes = json.dumps([list(shape) for shape in config.hidden["shapes"][1:]]).encode()
        return double.new("IHostMemory", content=PLAN + shapes + b"\n" + network.hidden["graph"])

    @staticmethod
    def Runtime_deserialize_cuda_engine(double: Double, runtime: Any, plan: bytes) -> Any:
        if not plan.startswith(PLAN):
            return None
        shapes, _, graph = plan.removeprefix(PLAN).partition(b"\n")
        return double.new("ICudaEngine", {"shapes": json.loads(shapes), "graph": graph})

    @staticmethod
    def ICudaEngine_get_tensor_dtype(double: Double, engine: Any, name: str) -> Any:
        kind = next(value.type for value in _session(engine).get_outputs() if value.name == name)
        return getattr(double.module.DataType, {"tensor(float)": "FLOAT", "tensor(int64)": "INT64"}[kind])

    @staticmethod
    def ICudaEngine_create_execution_context(double: Double, engine: Any) -> Any:
        return double.new("IExecutionContext", {"engine": engine, "at": {}, "allocators": {}})

    @staticmethod
    def ICudaEngine_serialize(double: Double, engine: Any) -> Any:
        shapes = json.dumps(engine.hidden["shapes"]).encode()
        return double.new("IHostMemory", content=PLAN + shapes + b"\n" + engine.hidden["graph"])

    @staticmethod
    def OnnxParserRefitter_refit_from_bytes(double: Double, parser: Any, graph: bytes) -> bool:
        parser.hidden[0].hidden[0].hidden["graph"] = graph
        return True

    @staticmethod
    def Refitter_get_missing_weights(double: Double, refitter: Any) -> list[str]:
        return []

    @staticmethod
    def IExecutionContext_set_input_shape(double: Double, context: Any, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = context.hidden["engine"].hidden["shapes"]
        context.hidden["shape"] = shape
        return name == "volume" and all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True))

    @staticmethod
    def IExecutionContext_set_tensor_address(double: Double, context: Any, name: str, memory: int) -> bool:
        context.hidden["at"][name] = memory
        return True

    @staticmethod
    def IExecutionContext_set_output_allocator(double: Double, context: Any, name: str, allocator: Any) -> bool:
        context.hidden["allocators"][name] = allocator
        return True

    @staticmethod
    def IExecutionContext_infer_shapes(double: Double, context: Any) -> list[str]:
        return []

    @staticmethod
    def IExecutionContext_get_tensor_shape(double: Double, context: Any, name: str) -> tuple[int, ...]:
        shape = context.hidden["shape"]
        shapes = context.hidden["engine"].hidden.setdefault(("outputs", shape), None)
        if shapes is None:
            found = _run(context.hidden["engine"], np.zeros(shape, np.float32))
            shapes = {key: array.shape for key, array in found.items()}
            context.hidden["engine"].hidden[("outputs", shape)] = shapes
        return (-1, *shapes[name][1:]) if name in double.lost else shapes[name]

    @staticmethod
    def IExecutionContext_execute_async_v3(double: Double, context: Any, stream: int) -> bool:
        shape, at = context.hidden["shape"], context.hidden["at"]
        volume = np.empty(shape, np.float32)
        ctypes.memmove(volume.ctypes.data, at["volume"], volume.nbytes)
        for name, array in _run(context.hidden["engine"], volume).items():
            place = at.get(name, 0)
            if (allocator := context.hidden["allocators"].get(name)) is not None:
                place = allocator.reallocate_output_async(name, place, max(1, array.nbytes), 256, stream)
                if not place:
                    return False
                allocator.notify_shape(name, array.shape)
            ctypes.memmove(place, np.ascontiguousarray(array).ctypes.data, array.nbytes)
        return True


def _session(engine: Any) -> Any:
    onnxruntime = import_runtime()
    if "session" not in engine.hidden:
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        graph = engine.hidden["graph"]
        engine.hidden["session"] = onnxruntime.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])
    return engine.hidden["session"]


def _run(engine: Any, volume: np.ndarray) -> dict[str, np.ndarray]:
    session = _session(engine)
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(None, {"volume": volume}), strict=True))


# ---- the machine -----------------------------------------------------------------------------------------------------


class Stream:
    """A stream of a machine that does everything at once."""

    cuda_stream = 7

    def __init__(self, device: Any = None) -> None:
        self.waited: list[Any] = []

    def wait_stream(self, other: Any) -> None:
        self.waited.append(other)

    def synchronize(self) -> None:
        pass


class Graph:
    """A CUDA graph: what was enqueued while it was captured, done again."""

    def __init__(self) -> None:
        self.work: list[Any] = []
        self.replayed = 0

    def replay(self) -> None:
        self.replayed += 1
        for call in self.work:
            call()


class Cuda:
    """What `module` uses of torch.cuda."""

    Stream, CUDAGraph = Stream, Graph

    def __init__(self, double: Double) -> None:
        self.double, self.current = double, Stream()

    def current_stream(self, device: Any) -> Stream:
        return self.current

    def device(self, device: Any) -> contextlib.nullcontext[None]:
        return contextlib.nullcontext()

    def stream(self, stream: Stream) -> contextlib.nullcontext[None]:
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def graph(self, made: Graph, *, stream: Stream) -> Iterator[None]:
        """What is enqueued inside is not done, but when the graph is replayed."""
        contexts: list[Any] = []
        with pytest.MonkeyPatch.context() as patch:
            name = "IExecutionContext_execute_async_v3"
            real = getattr(Emulation, name)
            patch.setattr(Emulation, name, lambda double, context, handle: contexts.append(context) or True)
            yield
        assert contexts, "an empty graph"
        made.work = [lambda context=context: real(self.double, context, stream.cuda_stream) for context in contexts]


def machine(*, name: str = "Example GPU", capability: str = "9.0") -> Gpu:
    """A GPU that is the CPU."""
    return Gpu(
        device=torch.device("cpu"), name=name, compute_capability=capability, multiprocessors=1, memory_bytes=1 << 30
    )


@contextlib.contextmanager
def installed(release: str) -> Iterator[Double]:
    """Put a double of a release, a GPU for it, and streams in the places of the real ones."""
    double = Double(release)
    with pytest.MonkeyPatch.context() as patch:
        for part in INNER:
            patch.delitem(sys.modules, f"svd_hub.export.tensorrt.{part}", raising=False)
        patch.setitem(sys.modules, "tensorrt", double.module)
        patch.setattr("svd_hub.export.tensorrt.here.require_gpu", lambda what, **options: double.gpu)
        patch.setattr(importlib.import_module("svd_hub.export.tensorrt.module"), "cuda", Cuda(double))
        yield double
    for part in INNER:
        sys.modules.pop(f"svd_hub.export.tensorrt.{part}", None)
