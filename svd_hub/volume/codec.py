"""Compressed DICOM frames, unpacked by SimpleITK (GDCM) in a process of its own.

GDCM's decoders can crash or run for long on a damaged frame (seen: a division by zero, two segmentation faults and one
run of 22 s in 22,000 damaged frames, SimpleITK 2.5.7). A crash of the worker is an error here; it reads no file of the
user's, only a frame that was checked and wrapped anew. GDCM reads files only, so a frame is one while it is unpacked,
in a folder that no other user sees. The worker removes it, also when we are killed, and we do when the worker is.
"""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from ..errors import VolumeError
from . import memory, streams
from .layout import Layout
from .libraries import pydicom, quiet, simpleitk

FILE = "frame.dcm"
SECONDS = 60.0  # a frame of 4096 x 4096 takes about 5
SYNTAXES = {
    "1.2.840.10008.1.2.4.50": "JPEG baseline",
    "1.2.840.10008.1.2.4.51": "JPEG extended",
    "1.2.840.10008.1.2.4.57": "JPEG lossless",
    "1.2.840.10008.1.2.4.70": "JPEG lossless",
    "1.2.840.10008.1.2.4.80": "JPEG-LS",
    "1.2.840.10008.1.2.4.81": "JPEG-LS near-lossless",
    "1.2.840.10008.1.2.4.90": "JPEG 2000 lossless",
    "1.2.840.10008.1.2.4.91": "JPEG 2000",
    "1.2.840.10008.1.2.5": "RLE",
}
_DAMAGED = "its compressed pixels are damaged. Next: copy the files again, or export them uncompressed"


class Decoder:
    """A worker that unpacks frames one after another; it starts with the first and ends with the `with`."""

    def __init__(self) -> None:
        self._worker: subprocess.Popen[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._frames: tuple[Layout | None, Frames] = (None, Frames(0))  # of the file that was asked for last

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def decode(self, layout: Layout, frame: int) -> np.ndarray:
        """Return the stored values (rows, columns) of a compressed frame.

        Raises:
            VolumeError: a compression that is not supported, a damaged frame, no room for a frame on the disk.
            MissingExtraError: SimpleITK or pydicom is not installed.
        """
        if layout.syntax not in SYNTAXES:
            with quiet():
                name = pydicom().uid.UID(layout.syntax).name
            raise VolumeError(
                f"its compression {name!r} is not supported; allowed: {', '.join(dict.fromkeys(SYNTAXES.values()))}, "
                "or none. Next: export the series uncompressed"
            )
        if self._frames[0] is not layout:
            self._frames = (layout, frames_of(layout))
        data = self._frames[1][frame]
        check_frame(data, layout)
        dtype = np.dtype(f"<{'i' if layout.signed else 'u'}{layout.allocated // 8}")
        image = self._ask(wrapped(data, layout), layout.rows * layout.columns * dtype.itemsize, dtype.str)
        return image.view(dtype).reshape(layout.rows, layout.columns)

    def _start(self) -> None:
        simpleitk()  # here, so that a missing library is named and not found to be a crash
        self._folder = tempfile.TemporaryDirectory(prefix="svd_hub_frame_")
        # -P: the folder of the worker is no place to import from.
        self._worker = subprocess.Popen(  # noqa: S603  this very Python, a file of this package
            [
                sys.executable,
                "-P",
                str(Path(__file__).with_name("codec_worker.py")),
                str(Path(self._folder.name) / FILE),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def _put(self, frame: bytes) -> None:
        """Make a file of a frame, for a worker that is there: it removes the file, also where we are killed now."""
        try:
            if self._worker is None:
                self._start()
            if self._folder is not None:
                (Path(self._folder.name) / FILE).write_bytes(frame)
        except OSError as error:
            raise VolumeError(
                f"its compressed pixels are not unpacked: the folder of temporary files takes no {len(frame):,} bytes "
                f"({error.strerror or error}). Next: make room there, or name another folder in TMPDIR"
            ) from None

    def _ask(self, frame: bytes, count: int, dtype: str) -> np.ndarray:
        self._put(frame)
        worker = self._worker
        if worker is None or worker.stdin is None or worker.stdout is None:
            raise VolumeError(_DAMAGED)
        timer = threading.Timer(SECONDS, worker.kill)
        timer.start()
        out = np.empty(count, np.uint8)
        try:
            worker.stdin.write(struct.pack("<I4s", count, dtype.encode()))
            worker.stdin.flush()
            answer = worker.stdout.read(1)
            done = answer == b"\1" and worker.stdout.readinto(out.data) == count  # type: ignore[attr-defined]
        except OSError:  # it died while it was written to
            answer, done = b"", False
        finally:
            timer.cancel()
        if not done:
            if answer != b"\0":  # it is dead or out of step; after a refusal it goes on
                self._stop()
            raise VolumeError(_DAMAGED)
        return out

    def _stop(self) -> None:
        if self._worker is not None:
            self._worker.kill()
            self._worker.communicate()
            self._worker = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


class Frames:
    """Compressed frames, one after another in an array of `memory`: a film of any length needs memory for one."""

    def __init__(self, count: int) -> None:
        """Make room for `count` bytes."""
        self._bytes = memory.empty((count,), np.uint8)
        self._ends = [0]

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> bytes:
        part = self._bytes[self._ends[index] : self._ends[index + 1]]
        frame = part.tobytes()
        memory.release(part)
        return frame

    def append(self, frame: bytes) -> None:
        """Put a frame behind the others."""
        start = self._ends[-1]
        part = self._bytes[start : start + len(frame)]
        part[...] = np.frombuffer(frame, np.uint8)
        memory.release(part)
        self._ends.append(start + len(frame))


def frames_of(layout: Layout) -> Frames:
    """Return the compressed frames of a file.

    Raises:
        VolumeError: not as many as its header declares.
    """
    with streams.open_regular(layout.path) as file:
        found = Frames(max(0, file.seek(0, io.SEEK_END) - layout.offset))
        file.seek(layout.offset)
        try:
            with quiet():
                for frame in pydicom().encaps.generate_frames(file, number_of_frames=layout.frames):
                    found.append(frame)
        except Exception:  # a damaged table of fragments can fail in any way at all
            raise VolumeError(_DAMAGED) from None
    if len(found) != layout.frames:
        raise VolumeError(f"it holds {len(found)} of {layout.frames} compressed frames. Next: copy the files again")
    return found


def check_frame(frame: bytes, layout: Layout) -> None:
    """Hold the size that a JPEG or JPEG 2000 stream declares against the header: nothing larger is unpacked.

    Raises:
        VolumeError: another size, more than one component, or no such stream.
    """
    if SYNTAXES[layout.syntax] == "RLE":
        return
    found = _jpeg2000_size(frame) if SYNTAXES[layout.syntax].startswith("JPEG 2000") else _jpeg_size(frame)
    if found is None:
        raise VolumeError(_DAMAGED)
    if found != (layout.rows, layout.columns, 1):
        raise VolumeError(
            f"its compressed pixels are {found[0]} x {found[1]} of {found[2]} component(s) and its header says "
            f"{layout.rows} x {layout.columns} of 1: damaged. Next: copy the files again"
        )


def _jpeg2000_size(data: bytes) -> tuple[int, int, int] | None:
    """Return (rows, columns, components) of a JPEG 2000 codestream (ISO 15444-1, A.5.1), None where it is none."""
    start = data.find(b"\xff\x4f\xff\x51", 0, 4096)  # some writers leave the boxes of a JP2 file before it
    if start < 0 or len(data) < start + 44:
        return None
    right, bottom, left, top = struct.unpack_from(">4I", data, start + 8)
    return bottom - top, right - left, struct.unpack_from(">H", data, start + 40)[0]


def _jpeg_size(data: bytes) -> tuple[int, int, int] | None:
    """Return (rows, columns, components) of a JPEG or JPEG-LS stream (ISO 10918-1, B.2.2), None where it is none."""
    position = data.find(b"\xff\xd8", 0, 64) + 2
    while 2 <= position <= len(data) - 10:
        if data[position] != 0xFF:
            return None
        marker = data[position + 1]
        if marker == 0xFF:  # fill
            position += 1
        elif marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            rows, columns, components = struct.unpack_from(">HHB", data, position + 5)
            return rows, columns, components
        elif marker in (0xD9, 0xDA):
            return None
        else:
            position += 2 + struct.unpack_from(">H", data, position + 2)[0]
    return None


def wrapped(frame: bytes, layout: Layout) -> bytes:
    """Return a DICOM file with a compressed frame and what is needed to unpack it, and nothing else of the original."""
    meta = _element(2, 0x10, "UI", layout.syntax.encode())
    short = {2: 1, 0x10: layout.rows, 0x11: layout.columns, 0x100: layout.allocated, 0x101: layout.stored,
             0x102: layout.high, 0x103: int(layout.signed)}  # fmt: skip
    parts = [b"\0" * 128, b"DICM", _element(2, 0, "UL", struct.pack("<I", len(meta))), meta]
    parts.append(_element(8, 0x16, "UI", b"1.2.840.10008.5.1.4.1.1.7"))
    for number, value in sorted(short.items()):
        parts.append(_element(0x28, number, "US", struct.pack("<H", value)))
        if number == 2:
            parts.append(_element(0x28, 4, "CS", b"MONOCHROME2 "))
    frame += b"\0" * (len(frame) % 2)
    parts += [
        struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OB", 0, 0xFFFFFFFF),
        struct.pack("<HHI", 0xFFFE, 0xE000, 0),
        struct.pack("<HHI", 0xFFFE, 0xE000, len(frame)),
        frame,
        struct.pack("<HHI", 0xFFFE, 0xE0DD, 0),
    ]
    return b"".join(parts)


def _element(group: int, number: int, kind: str, value: bytes) -> bytes:
    value += b"\0" * (len(value) % 2)
    return struct.pack("<HH2sH", group, number, kind.encode(), len(value)) + value
