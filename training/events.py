"""A run's log as TensorBoard reads it: an event file, written without TensorBoard.

The form is TensorFlow's record file of `Event` messages (tensorflow/core/util/event.proto, framework/summary.proto,
lib/io/record_writer.h): a length, a masked CRC-32C of it, the message, a masked CRC-32C of that. `tensorboard` is 55 MB
with its server, and both it and tensorboardX put the host's name into the name of the file.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

NAME = "events.out.tfevents.svd-hub"  # TensorBoard looks for "tfevents" in a name
VERSION = b"brain.Event:2"
PLACES = ("epoch", "step", "seconds")  # columns of a row that are no curves
_POLYNOMIAL = 0x82F63B78  # of CRC-32C (Castagnoli), reflected


def _table() -> tuple[int, ...]:
    found = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        found.append(value)
    return tuple(found)


_TABLE = _table()


def crc32c(data: bytes) -> int:
    """Return the CRC-32C of some bytes."""
    value = 0xFFFFFFFF
    for byte in data:
        value = _TABLE[(value ^ byte) & 0xFF] ^ value >> 8
    return value ^ 0xFFFFFFFF


def _masked(data: bytes) -> bytes:
    value = crc32c(data)
    return struct.pack("<I", ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _record(message: bytes) -> bytes:
    length = struct.pack("<Q", len(message))
    return length + _masked(length) + message + _masked(message)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def encode(rows: Sequence[Mapping[str, Any]], *, begun: float) -> bytes:
    """Return the event file of a log.

    Args:
        rows: of the log, an epoch each.
        begun: seconds since 1970 at which the run began. The time of a row is that and the seconds of all epochs to
            there, so that pauses of the run do not show, and equal rows give equal bytes.
    """
    out = [_record(b"\x09" + struct.pack("<d", begun) + _field(3, VERSION))]
    return b"".join([*out, *_scalars(rows, begun)])


def _scalars(rows: Sequence[Mapping[str, Any]], time: float) -> list[bytes]:
    found = []
    for row in rows:
        time += row["seconds"]
        values = b"".join(
            _field(1, _field(1, name.encode()) + b"\x15" + struct.pack("<f", value))
            for name, value in row.items()
            if name not in PLACES
        )
        place = b"\x09" + struct.pack("<d", time) + b"\x10" + _varint(row["step"])
        found.append(_record(place + _field(5, values)))
    return found
