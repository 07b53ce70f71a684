"""Records: frames of bytes with a sequence number and checksums (docs/formats/journal.md).

    record = header frame{1,4}        each frame padded with zeros to a multiple of 8 bytes
    header = magic kind frames zero sequence lengths crc(frames) crc(header)

Little-endian. A header is checked before its lengths are believed, frames before they are handed on.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from satrap.store import crc32c

if TYPE_CHECKING:
    from typing_extensions import Buffer

FRAMES_MAX = 4
FRAME_BYTES_MAX = (1 << 32) - 1
RECORD_MAGIC = b"JREC"
RECORD = struct.Struct("<4sBBHQ4III")
"""magic, kind, frames, zero, sequence, bytes of each frame, CRC of the padded frames, CRC of the bytes before it."""
_CRC = struct.Struct("<I")
_PADS = tuple(bytes(n) for n in range(8))
JOINED_BYTES = 1 << 16
"""A record up to this is written in one piece."""


class Kind(IntEnum):
    """What a record is of. 18 and up are kept for marks of checkpoints."""

    MESSAGE = 1
    """The frames of a message (docs/formats/wire.md)."""
    PLACEMENT = 2
    """The epoch of a placement, u64: pushes that waited for others were dropped."""
    ACK = 3
    """Only in states: the frame of an acknowledgement, and whose: client, epoch, seq, 3 u64."""
    CLOCK = 16
    """Seconds since 1970, u64, that rows which expire by the clock go by from here on."""
    PULLS = 17
    """Only in states: request numbers, u64 each, of pulls that bounded tables have counted and must not count again."""


@dataclass(frozen=True, slots=True)
class Record:
    """A record that was verified."""

    kind: Kind
    sequence: int
    frames: tuple[memoryview, ...]
    offset: int
    """Of its header in the file."""


_KINDS = {k.value: k for k in Kind}


class Head(NamedTuple):
    """A record's header that was verified."""

    kind: Kind | None
    """None: of a kind that this satrap does not know."""
    sequence: int
    lengths: tuple[int, ...]
    crc: int

    @property
    def payload_bytes(self) -> int:
        """Of the frames with their padding."""
        return sum(n + -n % 8 for n in self.lengths)


def record_parts(kind: Kind, sequence: int, frames: Sequence[Buffer]) -> list[Buffer]:
    """The bytes of a record, in parts that are to be written one behind the other. Frames are not copied unless they
    are small."""
    if not 1 <= len(frames) <= FRAMES_MAX:
        raise ValueError(f"a record has 1 to {FRAMES_MAX} frames, got {len(frames)}")
    parts: list[Buffer] = []
    lengths = [0] * FRAMES_MAX
    for i, frame in enumerate(frames):
        size = memoryview(frame).nbytes
        if size > FRAME_BYTES_MAX:
            raise ValueError(f"a frame of a record has at most {FRAME_BYTES_MAX} bytes, got {size}")
        lengths[i] = size
        if size:
            parts.append(frame)
        if size % 8:
            parts.append(_PADS[-size % 8])
    head = RECORD.pack(RECORD_MAGIC, kind, len(frames), 0, sequence, *lengths, crc32c(parts), 0)[: -_CRC.size]
    head += _CRC.pack(crc32c([head]))
    if sum(lengths) <= JOINED_BYTES:
        return [b"".join((head, *parts))]
    return [head, *parts]


def read_head(data: Buffer, at: int = 0) -> Head | str:
    """The header of a record at an offset of `data`, or what is wrong with it."""
    magic, kind, count, zero, sequence, *lengths, crc, crc_head = RECORD.unpack_from(data, at)
    if magic != RECORD_MAGIC:
        return f"it begins with {magic.hex()}, a record with {RECORD_MAGIC.hex()}"
    if crc32c([memoryview(data)[at : at + RECORD.size - _CRC.size]]) != crc_head:
        return "the checksum of its header does not match"
    if zero or not 1 <= count <= FRAMES_MAX or any(lengths[count:]):
        return f"its header speaks of {count} frames of {lengths} bytes"
    return Head(_KINDS.get(kind), sequence, tuple(lengths[:count]), crc)


def frames_of(head: Head, payload: memoryview) -> tuple[memoryview, ...] | None:
    """The frames in a record's payload; None where its checksum does not match."""
    if crc32c([payload]) != head.crc:
        return None
    frames, at = [], 0
    for n in head.lengths:
        frames.append(payload[at : at + n])
        at += n + -n % 8
    return tuple(frames)
