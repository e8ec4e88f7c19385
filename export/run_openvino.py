"""Runs an artifact with OpenVINO on a CPU server, in the precision that its manifest says. Imports no torch.

OpenVINO's own choice on processors with bf16 is bf16, also for a network that was exported and checked in fp32; here
the precision is always set, and read back.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MissingExtraError, OptionError, SvdHubError
from . import artifact, telemetry

if TYPE_CHECKING:
    import numpy as np

# The arithmetic of a CPU for the precision of an artifact: fp16 is how numbers are stored, int8 is in the graph.
HINTS = {"fp32": "f32", "fp16": "f32", "bf16": "bf16", "int8": "f32"}
GPU_HINTS = {"fp32": "f32", "fp16": "f16", "bf16": "f16", "int8": "f16"}
FORMATS = ("openvino", "onnx", "triton")  # it reads the file of each


class Runner:
    """A compiled model on one device.

    Args:
        folder: an artifact of one of `FORMATS`.
        device: "CPU", "GPU", ... as OpenVINO names them.
        threads: None = OpenVINO's choice, all cores.
        check: hash the files first.

    Raises:
        MissingExtraError: OpenVINO is not installed.
        IntegrityError: the files are not those of the manifest.
        SvdHubError: the device or the precision is not to be had here.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        device: str = "CPU",
        threads: int | None = None,
        check: bool = True,
    ) -> None:
        self.artifact = artifact.read(folder)
        if self.artifact.format.name not in FORMATS:
            raise OptionError(
                f"{folder} is {self.artifact.format.name}; allowed: {', '.join(FORMATS)}. Next: that format's runner"
            )
        if check:
            artifact.check(self.artifact)
        _refuse_wrong(self.artifact)
        hint = (HINTS if device.startswith("CPU") else GPU_HINTS)[self.artifact.precision]
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": hint}
        if threads is not None:
            settings |= {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
        model = self.artifact.model
        self.model = compiled(model, device, settings)
        self.provider = f"OpenVINO {_release()} {device} {hint}"
        self._request = self.model.create_infer_request()
        self._in_fp32 = functools.cache(
            lambda: compiled(model, device, settings | {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
        )
        self._hint = hint

    def __call__(self, volume: np.ndarray) -> dict[str, np.ndarray]:
        """Return the outputs by name for a volume (N, C, D, H, W), float32; an OptionError says what else it is.

        One slice is computed in fp32 where the artifact is bf16: OpenVINO 2026.4 reads past it on processors with
        avx512_bf16, and what it returns then is no number. (Of an ONNX file the graph itself is bf16, and it does so
        all the same.)
        """
        volume = artifact.fitting(self.artifact, volume)
        request = self._in_fp32() if self._hint == "bf16" and volume.shape[2] == 1 else self._request
        found = request.infer({0: volume})
        return {name: found[index].copy() for index, name in enumerate(self.artifact.outputs)}


def _refuse_wrong(found: artifact.Artifact) -> None:
    """Refuse int8 of other formats that OpenVINO would compute wrongly.

    Raises:
        OptionError: it is such a one.
    """
    if wrong := found.manifest["built"].get("wrong_in_openvino"):
        raise OptionError(
            f"{found.folder} is int8 of {found.format.name} and has {len(wrong)} layers that OpenVINO is wrong in, by "
            "a tenth and more; allowed: int8 of openvino, which leaves them in fp32. Next: svd-hub export --to openvino"
        )


def compiled(path: Path, device: str, settings: dict[str, Any]) -> Any:
    """Return a compiled model that computes in the precision asked for.

    Raises:
        MissingExtraError: OpenVINO is not installed.
        SvdHubError: no such device, or it has no such precision.
    """
    core = the_core()
    try:
        model = core.compile_model(core.read_model(os.fspath(path)), device, settings)
    except RuntimeError as error:
        raise SvdHubError(
            f"OpenVINO cannot run {path.name} on {device}: {error}; devices here: {', '.join(core.available_devices)}"
        ) from error
    wanted, got = settings["INFERENCE_PRECISION_HINT"], model.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if got != wanted:
        raise SvdHubError(
            f"{wanted} was asked for and OpenVINO computes in {got} on this {device}; bf16 needs a processor with "
            "avx512_bf16 or amx_bf16. Next: export with precision fp32 or int8"
        )
    return model


@functools.cache
def the_core() -> Any:
    """Return OpenVINO's Core, the one of this process, which stays as long as it does.

    Its CPU plugin gives the thread that first compiles a stack for signal handlers, and takes it back in the thread
    that drops the last Core: where the garbage collector does that in another thread, the next signal with a handler
    (Ctrl-C, the end of a child) kills the process without a word (OpenVINO 2026.4, `tests/test_export_runners.py`).

    Raises:
        MissingExtraError: OpenVINO is not installed.
    """
    return import_openvino().Core()


def import_openvino() -> Any:
    """Return the module openvino, which tells nobody that it is used.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        with telemetry.openvino_off():
            import openvino
    except ModuleNotFoundError as error:
        raise MissingExtraError("openvino", "openvino") from error
    return openvino


def _release() -> str:
    from importlib.metadata import version

    return version("openvino")
