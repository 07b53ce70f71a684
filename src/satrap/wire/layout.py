"""The bytes that every message begins with: header, directory, body (docs/formats/wire.md)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from itertools import accumulate
from math import frexp
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from satrap.errors import WireError
from satrap.schema import WireFormat
from satrap.wire.limits import Limits
from satrap.wire.messages import PROTOCOL, Section

if TYPE_CHECKING:
    from typing_extensions import Buffer

MAGIC = b"STRP"
FRAMES_MAX = 4
"""Frames of a message."""


class Kind(IntEnum):
    """Numbers of messages. 40 to 63 move partitions, 64 to 127 are those of embedding workers."""

    HELLO = 1
    WELCOME = 2
    PULL = 3
    ROWS_REPLY = 4
    PUSH = 5
    ACK_REPLY = 6
    GAP = 7
    FAILURE = 8
    DONE = 9
    HELD = 10
    TABLES = 16
    TABLES_REPLY = 17
    STATS = 18
    STATS_REPLY = 19
    EXPORT_ROWS = 20
    BLOCK_REPLY = 21
    RESERVE_ROWS = 22
    IMPORT_ROWS = 23
    ERASE = 24
    CLEAR = 25
    CLIENTS = 26
    CLIENTS_REPLY = 27
    SET_CLIENTS = 28
    CUT = 29
    CUT_DONE = 30
    METRICS = 32
    METRICS_REPLY = 33
    STOP = 34
    PLACE = 40
    MOVED = 41
    OWNED = 42
    OWNED_REPLY = 43
    TRACK = 44
    TOUCHED = 45
    RELEASE = 46
    ACCEPT = 47
    FORGET = 48
    READ_ROWS = 49
    JOIN = 64
    LOOKUP = 65
    POOLED_REPLY = 66
    PUSH_POOLED = 67
    POOLED_ACK = 68


HEADER = struct.Struct("<4sBBHQQIIHHI")
ENTRY = struct.Struct("<HHBBHIf")
_FORMATS = (WireFormat.FP32, WireFormat.FP16, WireFormat.INT8)
_CODES = {f: i for i, f in enumerate(_FORMATS)}
_KINDS = {k.value: k for k in Kind}


class Head(NamedTuple):
    """A header that was checked."""

    kind: Kind
    flags: int
    request: int
    life: int
    placement: int
    entries: int


def pack(layout: struct.Struct, where: str, *values: Any) -> bytes:
    """Raises WireError for a number that has no place in its field."""
    try:
        return layout.pack(*values)
    except (struct.error, OverflowError) as e:
        raise WireError(f"{where}: a number does not fit its field: {e} (of {values})") from e


def over(where: str, what: str, value: int, limit: int) -> WireError:
    """The error of a claim above its limit."""
    return WireError(f"{where}: {what} {value}, the limit is {limit}")


def write_first(
    kind: Kind, flags: int, ids: tuple[int, int, int], sections: Sequence[Section], body: bytes, frames: int
) -> bytes:
    """The first frame. `ids`: request, life, placement."""
    where = kind.name
    last = -1
    entries = []
    for s in sections:
        check_section(where, s, last)
        entries.append(pack(ENTRY, where, s.table, s.dim, _CODES[s.format], 0, 0, s.rows, s.scale))
        last = s.table
    request, life, placement = ids
    head = pack(
        HEADER, where, MAGIC, PROTOCOL, kind, flags, request, life, placement, len(body), len(entries), frames, 0
    )
    return b"".join((head, *entries, body))


def read_head(first: memoryview, frames: int, limits: Limits) -> Head:
    """Checks the header against what came and what may come."""
    if first.nbytes < HEADER.size:
        raise WireError(f"a message begins with a header of {HEADER.size} bytes, got {first.nbytes}")
    most = HEADER.size + limits.tables * ENTRY.size + limits.body_bytes
    if first.nbytes > most:
        raise over("first frame", "bytes", first.nbytes, most)
    magic, version, number, flags, request, life, placement, body, entries, said, zero = HEADER.unpack_from(first)
    if magic != MAGIC:
        raise WireError(f"header: begins with {magic.hex()}, a satrap message with {MAGIC.hex()}")
    if version != PROTOCOL:
        raise WireError(f"header: version {version}, this satrap speaks version {PROTOCOL}")
    kind = _KINDS.get(number)
    if kind is None:
        raise WireError(f"header: unknown kind {number}")
    if zero != 0:
        raise WireError(f"{kind.name}: bytes 36 to 39 of the header must be zero")
    if said != frames:
        raise WireError(f"{kind.name}: {frames} frames came, the header says {said}")
    if entries > limits.tables:
        raise over(kind.name, "tables in the directory", entries, limits.tables)
    want = HEADER.size + entries * ENTRY.size + body
    if first.nbytes != want:
        raise WireError(f"{kind.name}: first frame of {first.nbytes} bytes, its header speaks of {want}")
    return Head(kind, flags, request, life, placement, entries)


def request_of(first: Buffer) -> int:
    """The request number that a malformed message seems to have, for the failure that answers it; 0: none seen."""
    view = as_bytes(first)
    if view.nbytes < HEADER.size or view[:4] != MAGIC:
        return 0
    return int(HEADER.unpack_from(view)[4])


def read_directory(first: memoryview, head: Head, limits: Limits) -> tuple[Section, ...]:
    """The sections, each within its limits and all together too."""
    sections: list[Section] = []
    rows_all = 0
    last = -1
    where = head.kind.name
    end = HEADER.size + head.entries * ENTRY.size
    for table, dim, code, zero_a, zero_b, rows, scale in ENTRY.iter_unpack(first[HEADER.size : end]):
        if code >= len(_FORMATS):
            raise WireError(f"{where}: table {table} has the unknown format {code}")
        if zero_a or zero_b:
            raise WireError(f"{where}: bytes 5 to 7 of the directory's entry for table {table} must be zero")
        section = Section(table, rows, dim, _FORMATS[code], scale)
        check_section(where, section, last)
        rows_all += rows
        if rows_all > limits.rows:
            raise over(where, "rows", rows_all, limits.rows)
        if dim > limits.dim:
            raise over(where, f"dim of table {table}", dim, limits.dim)
        sections.append(section)
        last = table
    return tuple(sections)


def check_section(where: str, s: Section, last: int) -> None:
    """Raises WireError for what no message may say, whatever the limits."""
    if s.table <= last:
        raise WireError(f"{where}: table {s.table} comes after table {last}; tables ascend, each named once")
    if s.dim < 1:
        raise WireError(f"{where}: dim of table {s.table} must be 1 or more, got {s.dim}")
    if s.scale == 1.0:
        return
    mantissa, exponent = frexp(s.scale)
    if s.format is not WireFormat.FP16 or mantissa != 0.5 or not -125 <= exponent <= 128:
        raise WireError(
            f"{where}: scale {s.scale} of table {s.table} ({s.format.value}); "
            "fp16 has a power of two, 2^-126 to 2^127, other formats have 1"
        )


def rows_of(sections: Sequence[Section]) -> int:
    """U: rows of all sections."""
    return sum(s.rows for s in sections)


def row_slices(sections: Sequence[Section]) -> list[slice]:
    """Where each table's ids and versions are.

    >>> row_slices([Section(0, rows=3, dim=4), Section(2, rows=1, dim=8)])
    [slice(0, 3, None), slice(3, 4, None)]
    """
    ends = list(accumulate(s.rows for s in sections))
    return [slice(end - s.rows, end) for s, end in zip(sections, ends, strict=True)]


def values_bytes(sections: Sequence[Section]) -> int:
    """Bytes of the values of all sections."""
    return sum(s.value_bytes for s in sections)


def value_slices(sections: Sequence[Section]) -> list[slice]:
    """Where each table's values are, in bytes, their padding included.

    >>> value_slices([Section(0, rows=3, dim=4), Section(2, rows=1, dim=7, format=WireFormat.FP16)])
    [slice(0, 48, None), slice(48, 64, None)]
    """
    sizes = [s.value_bytes for s in sections]
    return [slice(end - size, end) for size, end in zip(sizes, accumulate(sizes), strict=True)]


def as_bytes(frame: Buffer) -> memoryview:
    """A frame as plain bytes, without a copy."""
    view = memoryview(frame)
    if not view.c_contiguous:
        raise WireError("a frame must be contiguous")
    if view.nbytes == 0:
        return memoryview(b"")
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")


def view_of(frame: memoryview, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """A frame, whose length was checked, as a read-only array.

    Sockets hand small frames over at any address. Those are copied, since native code reads numbers only where they
    are aligned, and bytes may be rows.
    """
    array = np.frombuffer(frame, dtype)
    if array.__array_interface__["data"][0] % 8:
        array = array.copy()
    array.flags.writeable = False
    return array.reshape(shape)
