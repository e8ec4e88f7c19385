"""Runs an ONNX artifact with ONNX Runtime. Imports no torch: from the start of a process to a result in a second.

>>> run = Runner("out/resnet3d18")  # the folder that svd-hub export wrote
>>> run(volume)["logits"]  # volume: (N, C, D, H, W) float32, preprocessed
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator, Mapping
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..errors import MissingExtraError, OptionError, SvdHubError
from . import artifact, telemetry
from .contract import INPUT

if TYPE_CHECKING:
    import numpy as np

CPU = "CPUExecutionProvider"
FORMATS = ("onnx", "triton")  # a repository holds the same file
SHORT = {"cpu": CPU, "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}


class Runner:
    """A session on one provider, which is the one that was asked for or an error.

    Args:
        folder: an artifact of one of `FORMATS`.
        provider: "cpu" | "cuda" | "tensorrt", or a provider's own name.
        threads: within an operator; None = ONNX Runtime's choice, all cores.
        check: hash the files first.
        settings: of the provider, in its own words: {"use_tf32": "0"}.
        profile: where ONNX Runtime notes which node ran where, the beginning of a file's path; None = nowhere.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
        IntegrityError: the files are not those of the manifest.
        SvdHubError: both wheels are installed, or the provider is not to be had here.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        provider: str = "cpu",
        threads: int | None = None,
        check: bool = True,
        settings: Mapping[str, str] | None = None,
        profile: str | os.PathLike[str] | None = None,
    ) -> None:
        self.artifact = artifact.read(folder)
        if self.artifact.format.name not in FORMATS:
            raise OptionError(
                f"{folder} is {self.artifact.format.name}; allowed: {', '.join(FORMATS)}. Next: that format's runner"
            )
        if check:
            artifact.check(self.artifact)
        runtime = import_runtime()
        self.wanted = SHORT.get(provider, provider)
        session = runtime.SessionOptions()
        session.log_severity_level = 3  # errors; a provider that is not there is told below
        if threads is not None:
            session.intra_op_num_threads = threads
        if profile is not None:
            session.enable_profiling, session.profile_file_prefix = True, os.fspath(profile)
        self.session = open_session(runtime, self.artifact.model, self.wanted, session, settings or {})
        self.provider = f"ONNX Runtime {runtime.__version__} {self.wanted}"

    def __call__(self, volume: np.ndarray) -> dict[str, np.ndarray]:
        """Return the outputs by name for a volume (N, C, D, H, W), float32.

        Raises:
            OptionError: it is something else.
        """
        found = self.session.run(None, {INPUT: artifact.fitting(self.artifact, volume)})
        return dict(zip(self.artifact.outputs, found, strict=True))


def open_session(
    runtime: Any, model: Path, provider: str, session: Any, settings: Mapping[str, str] = MappingProxyType({})
) -> Any:
    """Return a session whose first provider is the one asked for.

    Raises:
        OptionError: there is no provider of that name.
        SvdHubError: it is not: ONNX Runtime falls back to the CPU without a word. Or the model cannot be run there.
    """
    if provider not in runtime.get_all_providers():
        raise OptionError(
            f"provider={provider!r} is not allowed; allowed: {', '.join(SHORT)}, or a name of ONNX Runtime's: "
            f"{', '.join(runtime.get_all_providers())}"
        )
    if provider != CPU and hasattr(runtime, "preload_dlls"):
        runtime.preload_dlls()  # CUDA's and cuDNN's libraries where pip has put them
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Specified provider")  # told below, as an error
            made = runtime.InferenceSession(os.fspath(model), session, providers=[(provider, dict(settings))])
    except Exception as error:  # its errors share no base
        raise SvdHubError(
            f"ONNX Runtime cannot run {model.name} on {provider}: {error}. Next: another precision (svd-hub export "
            "formats says what runs where), or another provider"
        ) from error
    if (got := made.get_providers()[0]) != provider:
        raise SvdHubError(
            f"{provider} was asked for and ONNX Runtime chose {got}; this build has "
            f"{', '.join(runtime.get_available_providers())}, whether there is such a device or not. Next: "
            f"{_advice(provider)}"
        )
    return made


def import_runtime() -> Any:
    """Return the module onnxruntime, which tells nobody what it runs.

    Raises:
        MissingExtraError: it is not installed.
        SvdHubError: both wheels are, of which one has overwritten the other.
    """
    installed = wheels()
    if len(installed) > 1 and len(set(places())) == 1:
        told = " and ".join(f"{name} {number}" for name, number in installed.items())
        raise SvdHubError(
            f"{told} are both installed: they share their files, and the last one that was installed is what runs. "
            "Next: pip uninstall onnxruntime onnxruntime-gpu, then install one of them"
        )
    telemetry.onnx_runtime_off()
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise MissingExtraError("onnxruntime", "onnx") from error
    return onnxruntime


def wheels() -> Mapping[str, str]:
    """Return the installed wheels of ONNX Runtime, with their releases."""
    return {name: told.version for name, told in _distributions()}


def places() -> list[str]:
    """Return the folder of each of them: in folders of their own they do not overwrite each other."""
    return [str(told.locate_file("")) for _, told in _distributions()]


def _distributions() -> Iterator[tuple[str, Distribution]]:
    for name in ("onnxruntime", "onnxruntime-gpu"):
        with contextlib.suppress(PackageNotFoundError):
            yield name, distribution(name)


def _advice(provider: str) -> str:
    if "onnxruntime-gpu" not in wheels() and provider != CPU:
        return 'pip uninstall onnxruntime, then pip install "svd-hub[onnx-gpu]"'
    return "check the device and its driver (nvidia-smi), and that CUDA's libraries are of the release this build needs"
