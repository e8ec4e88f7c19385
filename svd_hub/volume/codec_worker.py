"""The process that unpacks compressed frames, each put into the file that its argument names; see codec.py.

Run as a file, not imported: it knows nothing of svd_hub, and whatever a damaged frame does to it ends with it.
"""

from __future__ import annotations

import contextlib
import struct
import sys
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
    path = Path(sys.argv[1])
    try:
        while len(head := source.read(8)) == 8:
            count, dtype = struct.unpack("<I4s", head)
            pixels = unpack(path, count, np.dtype(dtype.rstrip(b"\0").decode()))
            path.unlink()  # a patient's pixels: gone before the answer
            sink.write(b"\0" if pixels is None else b"\1" + pixels)
            sink.flush()
    finally:  # also where the other process was killed, and could not
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
            path.parent.rmdir()


if __name__ == "__main__":
    main()
