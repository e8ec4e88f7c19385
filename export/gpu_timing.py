"""Ways of running one volume on a device, timed in turn in one process."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .contract import INPUT
from .network import returned

WARM = (
    3  # calls before the first that counts; the first of all is told apart, since libraries search their kernels then
)


@dataclass(frozen=True)
class Timed:
    """One way: a call that begins the work, or why there is none."""

    call: Callable[[], Any] | None = None
    error: str = ""


def alternate(
    ways: Mapping[str, Timed], wait: Callable[[], None], rounds: int, *, base: str
) -> dict[str, dict[str, Any]]:
    """Return milliseconds of each way, run in turn: of the first call, the median and the least of `rounds`.

    Args:
        ways: by name.
        wait: returns when the device has done all it was given; it is part of the time.
        rounds: of all ways.
        base: the way that ratios are to, where it is among them.
    """
    told: dict[str, dict[str, Any]] = {}
    calls: dict[str, Callable[[], Any]] = {}
    for name, way in ways.items():
        if way.call is None:
            told[name] = {"error": way.error}
            continue
        try:
            told[name] = {"first_ms": round(_milliseconds(way.call, wait), 3)}
            for _ in range(WARM):
                _milliseconds(way.call, wait)
            calls[name] = way.call
        except Exception as error:  # one way that this device cannot go costs only itself
            told[name] = {"error": first_line(error)}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(_milliseconds(call, wait))
    for name, own in times.items():
        told[name] |= {"median_ms": round(statistics.median(own), 3), "least_ms": round(min(own), 3)}
        if base in times:
            told[name]["ratio"] = round(statistics.median(own) / statistics.median(times[base]), 3)
    return told


def first_line(error: Exception) -> str:
    """Return the kind and the first line of an error; what follows may hold paths."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _milliseconds(call: Callable[[], Any], wait: Callable[[], None]) -> float:
    wait()
    begun = time.perf_counter()
    call()
    wait()
    return (time.perf_counter() - begun) * 1e3


def eager_ways(model: nn.Module, kind: str, volume: Tensor, *, compiled: bool) -> dict[str, Timed]:
    """Return torch's own ways of running a network, each a copy of it on the volume's device.

    Args:
        model: as `svd_hub.load` returned it.
        kind: of the network, one of `formats.KINDS`.
        volume: (N, C, D, H, W).
        compiled: with those by torch.compile.
    """
    plain = copy.deepcopy(model).to(volume.device)
    last = channels_last(copy.deepcopy(plain))
    x = volume.contiguous(memory_format=torch.channels_last_3d)
    ways = {
        "eager fp32": _way(plain, kind, volume),
        "eager tf32": _way(plain, kind, volume, tf32=True),
        "eager bf16 channels_last_3d": _way(last, kind, x, autocast=torch.bfloat16),
        "eager fp16 channels_last_3d": _way(last, kind, x, autocast=torch.float16),
    }
    if compiled:
        ways["compiled tf32"] = _way(torch.compile(plain, dynamic=False), kind, volume, tf32=True)
        ways["compiled bf16 channels_last_3d"] = _way(
            torch.compile(last, dynamic=False), kind, x, autocast=torch.bfloat16
        )
    return ways if volume.is_cuda else {name: way for name, way in ways.items() if "tf32" not in name}


def channels_last(model: nn.Module) -> nn.Module:
    """Return the network with its 3D kernels in channels_last_3d, in place; `Module.to` stumbles over 2D ones."""
    for parameter in model.parameters():
        if parameter.dim() == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
    return model


def _way(model: Any, kind: str, volume: Tensor, *, tf32: bool = False, autocast: torch.dtype | None = None) -> Timed:
    """Return a call of the network; TF32 only where it is asked for, and cuDNN searches its best kernels."""

    def call() -> Any:
        with (
            torch.inference_mode(),
            torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=tf32),
            torch.autocast(volume.device.type, dtype=autocast, enabled=autocast is not None),
        ):
            return returned(model, kind, volume)

    return Timed(call)


def bound(session: Any, volume: Tensor, outputs: tuple[str, ...]) -> Callable[[], Any]:
    """Return a call of an ONNX Runtime session whose input and outputs stay on the device.

    Args:
        session: an InferenceSession.
        volume: float32, on the device; it must live as long as the call is used, which holds it.
        outputs: their names.
    """
    import numpy as np

    kept = volume.contiguous()
    device, number = kept.device.type, kept.device.index or 0
    binding = session.io_binding()
    binding.bind_input(INPUT, device, number, np.float32, tuple(kept.shape), kept.data_ptr())

    def call(kept: Tensor = kept) -> Any:
        binding.clear_binding_outputs()
        for name in outputs:
            binding.bind_output(name, device, number)
        session.run_with_iobinding(binding)
        return binding

    return call
