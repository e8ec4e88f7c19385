"""Arrays of whole volumes that stay out of memory: pages of a file without a name, brought in as they are touched.

A long scan is gone through plane by plane, so that only a few planes have to be in memory. `empty` lays a large array
into a temporary file, `release` gives back the memory of what was gone through, and the voxels stay in the file.

People's data: the file has no name, from the moment it is made or the next, and the system takes its blocks back when
the last array on it is gone or the process ends, however it ends; it does not wipe them. The file lies in the folder of
temporary files; TMPDIR names another. Where that folder is itself memory (tmpfs), nothing is lost, and nothing saved.

Such an array is one to numpy and torch like any other, but for this: a forked process that writes into it, writes into
its parent's.
"""

from __future__ import annotations

import math
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.lib.array_utils import byte_bounds

MAPPED = 32 << 20  # bytes from which an array lies in a file
SLAB = 16 << 20  # bytes gone through before they are released
_SPARE = 256 << 20  # bytes of the disk that are left to others
_ZEROS = bytes(1 << 20)
# Linux brings in more than the page that is touched: 64 KiB about it, since 6.18 the whole folio, which is larger for
# large files, but never more than one page table holds (mm/memory.c, finish_fault; mm/filemap.c, filemap_map_pages).
_AROUND = 2 << 20


class _Map(mmap.mmap):
    """A map made here. Pages of another's are never dropped: a private map would lose what was written into it."""


def empty(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """Return an array to be filled, as `np.empty` does; from `MAPPED` bytes on it lies in a file, if the disk has room.

    Args:
        shape: of the array.
        dtype: of its numbers.
    """
    kind = np.dtype(dtype)
    count = math.prod(shape) * kind.itemsize
    pages = _map(count) if count >= MAPPED else None
    return np.empty(shape, kind) if pages is None else np.frombuffer(pages, kind).reshape(shape)


def release(array: np.ndarray) -> None:
    """Give back the memory of an array of `empty`, or of a part of one; its values stay, and come back when touched.

    Any other array is left alone.
    """
    root, pages = _root(array)
    if pages is None or not array.size or not hasattr(mmap, "MADV_DONTNEED"):
        return
    low, high = byte_bounds(array)
    begin = root.__array_interface__["data"][0]
    start, end = max(0, low // _AROUND * _AROUND - begin), min(len(pages), -(-high // _AROUND) * _AROUND - begin)
    pages.madvise(mmap.MADV_DONTNEED, start, end - start)


def is_mapped(array: np.ndarray) -> bool:
    """Return whether an array lies in a file of `empty`."""
    return _root(array)[1] is not None


def planes(*arrays: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield the planes along the first axis of arrays of one length, and release them as it goes."""
    step = max(1, SLAB // max(1, *(array[:1].nbytes for array in arrays)))
    for start in range(0, len(arrays[0]), step):
        parts = [array[start : start + step] for array in arrays]
        yield from zip(*parts, strict=True)
        for part in parts:
            release(part)


def copy(source: np.ndarray, target: np.ndarray) -> None:
    """Copy an array into another of its shape (..., z, y, x), whichever ways their axes lie, and release as it goes.

    Where a plane of the target takes a little of every plane of the source, both are gone through in blocks.
    """
    if source.ndim > 3:
        for one, other in zip(source, target, strict=True):
            copy(one, other)
        return
    slow = max(range(3), key=lambda axis: abs(source.strides[axis]))
    across = max(1, SLAB // max(1, abs(source.strides[slow])))
    for start in range(0, len(target), step := max(1, SLAB // max(1, target[:1].nbytes))):
        part = target[start : start + step]
        one, other = (np.moveaxis(array, slow, 0) for array in (source[start : start + step], part))
        for k in range(0, len(one), across):
            other[k : k + across] = one[k : k + across]
            release(one[k : k + across])
        release(part)


def _root(array: np.ndarray) -> tuple[np.ndarray, _Map | None]:
    """Return the array that an array is a view of, and the map that one lies in."""
    root = array
    while isinstance(root.base, np.ndarray):
        root = root.base
    pages = root.base.obj if isinstance(root.base, memoryview) else None
    return root, pages if isinstance(pages, _Map) else None


def _map(count: int) -> _Map | None:
    """Return a map of `count` bytes whose blocks are all there, so that a full disk is no crash later on, or None."""
    try:
        if shutil.disk_usage(tempfile.gettempdir()).free < count + _SPARE:
            return None
        with tempfile.TemporaryFile(buffering=0) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, count)
            else:
                for start in range(0, count, len(_ZEROS)):
                    file.write(_ZEROS[: count - start])
            return _Map(file.fileno(), count)
    except OSError:
        return None
