"""Segments: files of records, each after a header that says whose they are (docs/formats/journal.md).

    segment = header record*

What a crash left half written can only be at the end. Whether it is the end is decided by what follows: a record that
is whole behind one that is not means damage, and is refused.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from satrap.durable.files import Files, Readable, Writable, write_all
from satrap.durable.record import RECORD, RECORD_MAGIC, Head, Kind, Record, frames_of, read_head, record_parts
from satrap.errors import JournalError
from satrap.store import crc32c

if TYPE_CHECKING:
    from typing_extensions import Buffer

VERSION = 1
SEGMENT_MAGIC = b"SATRJRNL"
SEGMENT = struct.Struct("<8sIIQQ32sII")
"""magic, version, server, first sequence, life, fingerprint, zero, CRC of the bytes before it."""
_CRC = struct.Struct("<I")
SCAN_BYTES = 1 << 20
REPAIR = "see what is left with: satrap journal check"


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose records these are. Those of others are refused."""

    server: int
    fingerprint: bytes
    """32 bytes that name tables, configuration and seed."""
    life: int
    """Names the rows."""


@dataclass(frozen=True, slots=True)
class Torn:
    """The end of a segment that is no record: what a crash left of one."""

    path: Path
    offset: int
    size: int
    why: str

    def __str__(self) -> str:
        return f"{self.path}: the last {self.size} bytes, from byte offset {self.offset} on, are no record: {self.why}"


def segment_header(identity: Identity, first: int) -> bytes:
    """The header of a segment whose first record has this sequence number."""
    head = SEGMENT.pack(SEGMENT_MAGIC, VERSION, identity.server, first, identity.life, identity.fingerprint, 0, 0)[
        : -_CRC.size
    ]
    return head + _CRC.pack(crc32c([head]))


def write_parts(file: Writable, parts: Iterable[Buffer]) -> int:
    """Writes all of it; returns how many bytes."""
    size = 0
    for part in parts:
        view = memoryview(part)
        if view.nbytes:
            write_all(file, view if view.format == "B" and view.ndim == 1 else view.cast("B"))
        size += view.nbytes
    return size


def write_segment(
    file: Writable, identity: Identity, first: int, records: Iterable[tuple[Kind, Sequence[Buffer]]]
) -> int:
    """Writes a whole segment; returns its bytes. Raises OSError."""
    size = write_parts(file, [segment_header(identity, first)])
    for sequence, (kind, frames) in enumerate(records, first):
        size += write_parts(file, record_parts(kind, sequence, frames))
    return size


class SegmentReader:
    """Reads one segment, front to back. Takes no memory for a length that the rest of the file cannot hold.

    Raises JournalError, naming file and byte offset, for anything that is damaged.
    """

    def __init__(self, path: Path, first: int, files: Files) -> None:
        """`first`: the sequence number of its first record, as the file's name has it."""
        self.path, self.first, self._files = path, first, files
        self.next = first
        """Sequence number expected next."""
        self.torn: Torn | None = None
        """Set when all records have been read and something is behind them."""
        self.identity: Identity | None = None
        """None where not even the header is whole."""
        self.size = 0

    def records(self) -> Iterator[Record]:
        """Every record. Reads the header first."""
        try:
            self.size = self._files.size(self.path)
            file = self._files.open(self.path)
        except OSError as e:
            raise JournalError(f"{self.path}: cannot be read: {e.strerror}") from e
        try:
            yield from self._records(file)
        except OSError as e:
            raise JournalError(f"{self.path}: cannot be read: {e.strerror}") from e
        finally:
            file.close()

    def _records(self, file: Readable) -> Iterator[Record]:
        head = _read(file, min(SEGMENT.size, self.size))
        self.identity, wrong = self._identity(head)
        if self.identity is None:
            self._end(file, 0, wrong)
            return
        at = SEGMENT.size
        while at < self.size:
            left = self.size - at
            if left < RECORD.size:
                self._end(file, at, f"{left} bytes, a record's header has {RECORD.size}")
                return
            found = read_head(_read(file, RECORD.size))
            if isinstance(found, str):
                self._end(file, at, found)
                return
            if found.payload_bytes > left - RECORD.size:
                missing = found.payload_bytes - (left - RECORD.size)
                self._end(file, at, f"the file ends {missing} bytes before it does")
                return
            frames = frames_of(found, memoryview(_read(file, found.payload_bytes)))
            if frames is None:
                self._end(file, at, "the checksum of its frames does not match")
                return
            if found.kind is None:
                raise JournalError(
                    f"{self.path}: record {found.sequence}, at byte offset {at}, is of a kind that this satrap does "
                    "not know; use a newer satrap"
                )
            if found.sequence != self.next:
                raise JournalError(
                    f"{self.path}: damaged at byte offset {at}: record {found.sequence} where {self.next} should be; "
                    f"{REPAIR}"
                )
            yield Record(found.kind, found.sequence, frames, at)
            self.next += 1
            at += RECORD.size + found.payload_bytes

    def _identity(self, head: bytearray) -> tuple[Identity | None, str]:
        if len(head) < SEGMENT.size:
            return None, f"{len(head)} bytes, a segment's header has {SEGMENT.size}"
        magic, version, server, first, life, fingerprint, zero, crc = SEGMENT.unpack(head)
        if magic != SEGMENT_MAGIC:
            return None, f"not a segment of a satrap journal: it begins with {magic.hex()}"
        if crc32c([head[: -_CRC.size]]) != crc:
            return None, "the checksum of its header does not match"
        if version != VERSION:
            raise JournalError(
                f"{self.path}: journal version {version}, this satrap reads version {VERSION}; use a newer satrap"
            )
        if first != self.first or zero:
            raise JournalError(
                f"{self.path}: damaged at byte offset 0: it begins with record {first}, its name says {self.first}: "
                f"the file was renamed or exchanged; {REPAIR}"
            )
        return Identity(server, fingerprint, life), ""

    def _end(self, file: Readable, at: int, why: str) -> None:
        """Something at this offset is no record. Raises JournalError where a whole one lies behind it."""
        behind = self._whole_record_behind(file, at)
        if behind is not None:
            offset, head = behind
            raise JournalError(
                f"{self.path}: damaged at byte offset {at}: {why}. Record {self.next} should be there; record "
                f"{head.sequence}, at {offset}, is whole, so this is not the end of the journal. Restore the file from "
                f"a copy, or {REPAIR}"
            )
        self.torn = Torn(self.path, at, self.size - at, why)

    def _whole_record_behind(self, file: Readable, at: int) -> tuple[int, Head] | None:
        """The first record behind an offset that is whole."""
        base, window = at + 1, b""
        if base >= self.size:
            return None
        file.seek(base)
        while True:
            # What may be the beginning of a header at the end of one look is the beginning of the next.
            start = base
            piece = _read(file, min(SCAN_BYTES, self.size - base - len(window)))
            window += piece
            found = window.find(RECORD_MAGIC)
            while found >= 0 and start + found + RECORD.size <= self.size:
                head = self._whole_record_at(file, start + found)
                if head is not None:
                    return start + found, head
                found = window.find(RECORD_MAGIC, found + 1)
            if start + len(window) >= self.size:
                return None
            keep = min(len(RECORD_MAGIC) - 1, len(window))
            base = start + len(window) - keep
            window = window[len(window) - keep :]
            file.seek(base + keep)

    def _whole_record_at(self, file: Readable, at: int) -> Head | None:
        file.seek(at)
        head = read_head(_read(file, RECORD.size))
        if isinstance(head, str) or head.payload_bytes > self.size - at - RECORD.size:
            return None
        payload = memoryview(_read(file, head.payload_bytes))
        return head if frames_of(head, payload) is not None else None


def _read(file: Readable, size: int) -> bytearray:
    """The next bytes, which the file is long enough for. Raises OSError where it is not any more."""
    data = bytearray(size)
    rest = memoryview(data)
    while rest:
        n = file.readinto(rest)
        if not n:
            raise OSError(0, "it has become shorter while it was read")
        rest = rest[n:]
    return data


def close_quietly(file: Writable) -> None:
    """Closes a file of which nothing more is wanted."""
    with suppress(OSError):
        file.close()
