"""Times of kernels, kept between builds on the same kind of GPU with the same TensorRT: a second build is faster.

Imported after `here.here()`. The file is a cache: one that is damaged or of another GPU is left out, never an error.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import tensorrt as trt

from ...files import write_atomic
from ...store import cache_dir
from .here import Here


def timing_path(here: Here) -> Path:
    """Return where the times of this machine's GPU are kept."""
    gpu = re.sub(r"[^a-z0-9]+", "-", here.gpu.name.lower()).strip("-")
    name = f"{here.tensorrt}-{gpu}-sm{here.gpu.compute_capability.replace('.', '')}.timing"
    return cache_dir() / "tensorrt" / name


def attach(config: trt.IBuilderConfig, path: Path) -> None:
    """Give a build the times that are known."""
    if not config.set_timing_cache(_read(config, path), False):  # TensorRT checks itself whether they are of this GPU
        config.set_timing_cache(config.create_timing_cache(b""), False)


def keep(config: trt.IBuilderConfig, path: Path) -> None:
    """Write the times that a build has measured, with those that another has written meanwhile."""
    cache = config.get_timing_cache()
    cache.combine(_read(config, path), False)
    content = bytes(cache.serialize())
    with contextlib.suppress(OSError):  # a cache folder that cannot be written costs time, not the engine
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)


def _read(config: trt.IBuilderConfig, path: Path) -> trt.ITimingCache:
    content = b""
    with contextlib.suppress(OSError):
        content = path.read_bytes()
    return config.create_timing_cache(content)
