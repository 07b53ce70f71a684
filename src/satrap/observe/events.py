"""TensorBoard event files: scalars, written without TensorFlow and without importing TensorBoard (over a second).

A file is a run of records, each

    length  uint64 LE | crc of length  uint32 LE | payload, `length` bytes | crc of payload  uint32 LE

with `crc` = rotate(CRC-32C) + 0xa282ead8, and the payload one protobuf `Event` of
tensorflow/core/util/event.proto: wall_time = 1 (double), step = 2 (varint), file_version = 3 (string),
summary = 5 {value = 1 {tag = 1, simple_value = 2 (float)}}, session_log = 7 {status = 1}.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

from satrap.observe.files import append, open_for_append

_CRC32C = 0x82F63B78  # Castagnoli's polynomial, reflected


def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (_CRC32C if byte & 1 else 0)
        table.append(byte)
    return tuple(table)


_TABLE = _crc_table()


def masked_crc32c(data: bytes) -> int:
    """The checksum of a record.

    >>> hex(masked_crc32c(b"123456789"))  # CRC-32C of the standard check string is 0xe3069283
    '0xc78ab0e5'
    """
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ _TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


class EventFile:
    """One new event file in a folder. Not thread-safe. Every call is one write: a killed run loses nothing whole."""

    def __init__(self, directory: Path) -> None:
        """Raises TrainingError where the file cannot be made."""
        directory.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns() // 1_000_000_000}.{socket.gethostname()}.{os.getpid()}"
        taken = len(list(directory.glob(f"{name}.*")))
        self.path = directory / f"{name}.{taken}"
        self._file = open_for_append(self.path)
        self._write(_event(0, _text(3, "brain.Event:2")))

    def restart(self, step: int) -> None:
        """Marks that training goes on at `step`: TensorBoard hides what earlier files say of it and later ones."""
        self._write(_event(step, _bytes(7, b"\x08\x01")))  # SessionLog.START

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Points of several curves at one step."""
        summary = b"".join(
            _bytes(1, _text(1, tag) + b"\x15" + struct.pack("<f", value)) for tag, value in values.items()
        )
        self._write(_event(step, _bytes(5, summary)))

    def close(self) -> None:
        """Ends the file. More calls are errors, but of `close`."""
        self._file.close()

    def _write(self, payload: bytes) -> None:
        length = struct.pack("<Q", len(payload))
        crcs = struct.pack("<I", masked_crc32c(length)), struct.pack("<I", masked_crc32c(payload))
        append(self._file, self.path, length + crcs[0] + payload + crcs[1])


def _varint(n: int) -> bytes:
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode())


def _event(step: int, rest: bytes) -> bytes:
    return b"\x09" + struct.pack("<d", time.time()) + b"\x10" + _varint(step) + rest
