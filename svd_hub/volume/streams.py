"""Bytes of a file, never more than its header promised: damaged files and gzip bombs end in an error, not in memory."""

from __future__ import annotations

import io
import os
import stat
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..errors import VolumeError
from . import memory

_PACKED, _UNPACKED = 1 << 18, 1 << 20  # bytes taken at a time; fewer packed ones leave less to be copied over
_SLACK = 1 << 20  # bytes tolerated behind the voxels of a gzip stream
_DEFLATE = 1032  # the most that deflate can shrink, zlib's own figure


class UnopenedError(VolumeError):
    """A file that is not there or may not be read."""


class NotAFileError(VolumeError):
    """A pipe, a device, a socket."""


def open_regular(path: Path, name: str = "a file of the input") -> BinaryIO:
    """Open a regular file to read; links are followed.

    Args:
        path: the file.
        name: what a message calls it: the path only where the caller's user gave it, for names can be patients' names.

    Raises:
        UnopenedError: not there or not readable.
        NotAFileError: a pipe or device, which could block for ever.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # before it is opened: opening a pipe waits for its other end
            raise NotAFileError(f"{name} is not a regular file. Next: give a file or a folder")
        return open(path, "rb")
    except OSError as error:
        raise UnopenedError(
            f"{name} cannot be read: {error.strerror}. Next: check the path and its permissions"
        ) from None


def head_of(path: Path, count: int = 4096, name: str = "a file of the input") -> tuple[bytes, bool]:
    """Return the first bytes of a file (see `open_regular`), unpacked where it is gzip, and whether it is.

    Raises:
        VolumeError: it cannot be read, or is gzip only by its first bytes.
    """
    with open_regular(path, name) as file:
        head = file.read(count)
        if not head.startswith(b"\x1f\x8b"):
            return head, False
        file.seek(0)
        return Inflated(file, wbits=31).read(count), True


class Inflated:
    """The unpacked bytes of a gzip or zlib stream, asked for in pieces, its check sum seen to at the end."""

    def __init__(self, file: BinaryIO, *, wbits: int) -> None:
        self._file, self._wbits = file, wbits
        self._stream = zlib.decompressobj(wbits)
        self._packed = b""
        self._left = -1  # packed bytes still to be read from the file; -1 = to its end

    def limit(self, count: int) -> None:
        """Say how long the packed stream is, where the header tells."""
        self._left = count

    def read(self, count: int) -> bytes:
        """Return `count` unpacked bytes, fewer at the end of the stream.

        Raises:
            VolumeError: the stream is damaged or ends in its middle.
        """
        parts, have = [], 0
        while have < count:
            part = self._some(count - have)
            if not part:
                break
            parts.append(part)
            have += len(part)
        return b"".join(parts)

    def read_into(self, buffer: memoryview) -> int:
        """Fill `buffer`, and return how many bytes there were."""
        have = 0
        while have < len(buffer):
            part = self._some(min(_UNPACKED, len(buffer) - have))
            if not part:
                break
            buffer[have : have + len(part)] = part
            have += len(part)
        return have

    def finish(self) -> None:
        """Read to the end of the stream, which verifies its check sum.

        Raises:
            VolumeError: the check sum is wrong, or far more follows than the header declared.
        """
        beyond = 0
        while part := self._some(_UNPACKED):
            beyond += len(part)
            if beyond > _SLACK:
                raise VolumeError(
                    "the packed data go on far beyond what the header declares; allowed: the voxels it declares. "
                    "The file is damaged or made to overflow. Next: export the volume again"
                )

    def _some(self, count: int) -> bytes:
        """Return 1 to `count` bytes, or nothing at the end."""
        while True:
            if self._stream.eof:
                rest = self._stream.unused_data
                if self._wbits != 31 or not (rest := rest or self._more()).startswith(b"\x1f\x8b"):
                    return b""
                self._stream, self._packed = zlib.decompressobj(self._wbits), rest  # a further gzip member
            packed = self._packed or self._more()
            if not packed:
                raise VolumeError("the packed data end in their middle: the file is cut off. Next: copy it again")
            try:
                part = self._stream.decompress(packed, count)
            except zlib.error:
                raise VolumeError(
                    "the packed data are damaged. Next: copy the file again, or export it again"
                ) from None
            self._packed = self._stream.unconsumed_tail
            if part:
                return part

    def _more(self) -> bytes:
        data = self._file.read(_PACKED if self._left < 0 else min(_PACKED, self._left))
        if self._left >= 0:
            self._left -= len(data)
        return data


def voxels(
    file: BinaryIO, *, offset: int, shape: tuple[int, int, int], dtype: np.dtype, packing: str = "", packed: int = -1
) -> np.ndarray:
    """Return (z, y, x) voxels as the file stores them.

    Args:
        file: open at any place.
        offset: where they begin: in the file, and for packing "file" in its unpacked bytes.
        shape: (z, y, x).
        dtype: with its byte order.
        packing: "" plain; "gzip" or "zlib" a packed stream at `offset`; "file" the whole file is gzip.
        packed: bytes of the packed stream, where the header tells.

    Raises:
        VolumeError: fewer bytes than declared, damaged packing.
    """
    count = int(np.prod([int(n) for n in shape], dtype=object)) * dtype.itemsize
    length = file.seek(0, io.SEEK_END)
    here = length - (0 if packing == "file" else offset)
    if here < 0 or count > (here * _DEFLATE + _SLACK if packing else here):
        raise VolumeError(
            f"the header declares {count} bytes of voxels and the file holds {max(here, 0)}"
            f"{' packed' if packing else ''}: it is cut off or damaged. Next: copy it again, or export it again"
        )
    out = memory.empty((count,), np.uint8)
    file.seek(0 if packing == "file" else offset)
    stream = None
    if packing:
        stream = Inflated(file, wbits=15 if packing == "zlib" else 31)
        if packed >= 0:
            stream.limit(packed)
        if packing == "file":
            stream.read(offset)
    have = 0
    for start in range(0, count, memory.SLAB):
        part = out[start : start + memory.SLAB]
        have += _read_into(file, part.data) if stream is None else stream.read_into(part.data)
        memory.release(part)
        if have < start + len(part):
            break
    if have < count:
        raise VolumeError(
            f"the header declares {count} bytes of voxels and the file holds {have}: it is cut off or damaged. "
            "Next: copy it again, or export it again"
        )
    if stream is not None:
        stream.finish()
    return out.view(dtype).reshape(shape)


def _read_into(file: BinaryIO, view: memoryview) -> int:
    have = 0
    while have < len(view):
        part = file.readinto(view[have:])  # type: ignore[attr-defined]
        if not part:
            break
        have += part
    return have
