"""The process that unpacks compressed frames: frames come on its input, pixels go out; see codec.py.

Run as a file, not imported: it knows nothing of svd_hub, and whatever a damaged frame does to it ends with it.
"""

from __future__ import annotations

import contextlib
import struct
import sys
import tempfile
from pathlib import Path

import numpy as np
import SimpleITK

_MEMORY = 8 * 2**30  # address space; a frame of 16,384 x 16,384 needs 2 GiB


def unpack(path: Path, count: int, dtype: np.dtype) -> bytes | None:
    """Return the `count` bytes of the pixels of a wrapped frame, None where they are not what the header declares."""
    try:
        image = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
    except RuntimeError:
        return None
    if image.size * dtype.itemsize != count or image.dtype.kind not in "iu":
        return None
    limits = np.iinfo(dtype)
    if image.min() < limits.min or image.max() > limits.max:
        return None
    return image.astype(dtype).tobytes()


def main() -> None:
    """Answer requests until the input ends."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # where the platform can
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "frame.dcm"
        while len(head := source.read(12)) == 12:
            length, count, dtype = struct.unpack("<II4s", head)
            path.write_bytes(source.read(length))
            pixels = unpack(path, count, np.dtype(dtype.rstrip(b"\0").decode()))
            sink.write(b"\0" if pixels is None else b"\1" + pixels)
            sink.flush()


if __name__ == "__main__":
    main()
