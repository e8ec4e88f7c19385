"""This machine, as engines see it: its GPU and its release of TensorRT, asked for in this order."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass

from packaging.version import Version

from ...errors import MissingExtraError, SvdHubError
from ..gpu import Gpu, require_gpu

OLDEST = Version("10.16")  # what is checked against; older ones are typed weakly by default, and lack parts of the API


@dataclass(frozen=True, kw_only=True)
class Here:
    """What decides whether an engine fits.

    Attributes:
        gpu: the device.
        tensorrt: its release.
        system: operating system and processor.
    """

    gpu: Gpu
    tensorrt: str
    system: str


def here(index: int = 0) -> Here:
    """Return what this machine is.

    Raises:
        SvdHubError: it has no CUDA device, or an old TensorRT.
        MissingExtraError: TensorRT is not installed.
    """
    gpu = require_gpu(
        "TensorRT", index=index, instead="svd-hub export ENTRY --to onnx here, whose graph it builds from there"
    )
    return Here(gpu=gpu, tensorrt=release(), system=f"{sys.platform} {platform.machine()}")


def release() -> str:
    """Return the release of the installed TensorRT; importing it makes none of its objects.

    Raises:
        MissingExtraError: it is not installed.
        SvdHubError: it is too old, or its libraries are missing.
    """
    try:
        import tensorrt as trt
    except ModuleNotFoundError as error:
        raise MissingExtraError("tensorrt", "tensorrt") from error
    except ImportError as error:
        raise SvdHubError(
            f'TensorRT cannot be imported: {error}. Next: pip install --force-reinstall "svd-hub[tensorrt]", whose '
            "libraries come from NVIDIA's own index"
        ) from error
    found = str(trt.__version__)
    if Version(found) < OLDEST:
        raise SvdHubError(
            f'TensorRT {found} is too old; allowed: {OLDEST} or later. Next: pip install "svd-hub[tensorrt]"'
        )
    return found
