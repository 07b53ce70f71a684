"""The row file: all rows of one partition, every table, with optimizer state (docs/formats/rows.md).

    file    = header table* end
    table   = table-header column(ids) column(values) column(state) column(marks) column(bound)
    column  = data pad checksums pad          (nothing at all where it has no bytes)

Little-endian; every part starts at a multiple of 64 bytes, so columns can be memory-mapped. Each block of a column
(1 MiB) and each header has an XXH3 checksum seeded with its own offset: damage is named by offset, and a block that
was moved does not pass. R rows of a table, D its dim, K state words a row.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from satrap.durable.files import Readable
from satrap.errors import CheckpointError
from satrap.schema import Table, ValueFormat
from satrap.store import DTYPES, StoredValues, columns

assert sys.byteorder == "little", "columns are written as they lie in memory, which the format says is little-endian"

PLAIN, BOUNDED = 1, 2
"""Versions: of a file without bounded tables, and of one with them. All else is the same."""
ALIGN = 64
BLOCK_BYTES = 1 << 20

HEADER = struct.Struct("<8s4I32xQ")
"""magic, version, block bytes, partition, partitions, checksum."""
TABLE = struct.Struct("<8s4IQ3HHQ8xQ")
"""magic, header bytes, dim, value bytes a row, state words a row, rows, bytes of name, format, optimizer, marks a row,
bytes of the bound state, checksum."""
END = struct.Struct("<8sI4xQQ24xQ")
"""magic, tables, rows, file bytes, checksum."""
HEADER_MAGIC, TABLE_MAGIC, END_MAGIC = b"SATRROWS", b"SATRTABL", b"SATRDONE"


@dataclass(frozen=True, slots=True)
class RowBlock:
    """R rows of one table, whole: what is exported, imported and kept in checkpoints. Arrays are C-contiguous.

    Exported rows come in the order of the id's mix (the store's bijective 64-bit hash), which cuts a table into
    partitions by its top bits: partitions 0 … P-1 one after another give one order that is the same for every P.
    """

    ids: NDArray[np.uint64]
    """[R], unique."""
    values: StoredValues
    """As the table stores them: float32 [R, D] for fp32, float16 [R, D] for fp16, uint16 [R, D] for bf16, uint8 [R, 4 +
    D] for int8."""
    state: NDArray[np.float32]
    """[R, K] optimizer state of the row, its step count included. Copied as bits: a count may be kept as an integer's
    bits, so a word need not be a meaningful float. K is 0 for an optimizer without state."""
    marks: NDArray[np.uint8] | None = None
    """[R, M] of a bounded table: what eviction and expiry go by. None: it has none, or rows count as just made."""
    bound: NDArray[np.uint8] | None = None
    """[B] of a bounded table: what it keeps for the partition beside its rows. None: nothing, or only part of a
    partition's rows is here."""


@dataclass(frozen=True, slots=True)
class Section:
    """What a row file says of one table's rows in it."""

    name: str
    dim: int
    format: ValueFormat
    optimizer: str
    """Kind, as in a job: sgd, adagrad, …"""
    state_width: int
    """K: words of 32 bits of optimizer state a row."""
    rows: int
    marks: int = 0
    """M: bytes of marks a row."""
    bound: int = 0
    """B: bytes of bound state."""


def kind_of(table: Table) -> str:
    """Kind of a table's optimizer, as in a job."""
    assert table.optimizer is not None, "a service's tables have their optimizers filled in"
    return str(table.optimizer.__struct_config__.tag)


def checksum(data: Any, offset: int) -> int:
    """XXH3 (64 bits) of a part of the file, seeded with the part's offset."""
    return int(xxhash.xxh3_64_intdigest(data, seed=offset))


def padding(size: int) -> int:
    """Zero bytes that follow `size` bytes so that the next part is aligned."""
    return -size % ALIGN


def _sealed(header: bytes, offset: int) -> bytes:
    """A header whose checksum field (bytes 56-63, zero so far) is filled in."""
    return header[:56] + struct.pack("<Q", checksum(header, offset)) + header[64:]


class RowWriter:
    """Writes one row file to `write`, table after table; memory beside the block given is a few checksums."""

    def __init__(
        self,
        write: Callable[[memoryview], None],
        *,
        partition: int,
        partitions: int,
        block_bytes: int = BLOCK_BYTES,
        bounded: bool = False,
    ) -> None:
        """`bounded`: one of its tables is."""
        self._version = BOUNDED if bounded else PLAIN
        self._write, self._block_bytes = write, block_bytes
        self._offset = self._tables = self._rows = 0
        self._put(_sealed(HEADER.pack(HEADER_MAGIC, self._version, block_bytes, partition, partitions, 0), 0))

    def add(self, table: Table, block: RowBlock) -> None:
        """Appends the rows of a table, R > 0 unless there is bound state; each table once."""
        rows, width = len(block.ids), block.state.shape[1]
        none = np.zeros((rows, 0), np.uint8)
        marks, bound = none if block.marks is None else block.marks, none[0:0] if block.bound is None else block.bound
        assert self._version == BOUNDED or not (marks.size or bound.size), "a plain file has no place for them"
        texts = [table.name.encode(), table.format.value.encode(), kind_of(table).encode()]
        text = b"".join(texts)
        head = TABLE.pack(
            TABLE_MAGIC,
            TABLE.size + len(text) + padding(len(text)),
            table.dim,
            table.format.row_bytes(table.dim),
            width,
            rows,
            *(len(t) for t in texts),
            marks.shape[1],
            bound.size,
            0,
        )
        self._put(_sealed(head + text + bytes(padding(len(text))), self._offset))
        for column, dtype in ((block.ids, np.uint64), (block.values, DTYPES[table.format]), (block.state, np.float32)):
            self._column(column, dtype)
        self._column(marks, np.uint8)
        self._column(bound, np.uint8)
        self._tables += 1
        self._rows += rows

    def close(self) -> int:
        """Writes the end part and returns the bytes of the file."""
        size = self._offset + END.size
        self._put(_sealed(END.pack(END_MAGIC, self._tables, self._rows, size, 0), self._offset))
        return size

    def _column(self, column: NDArray[Any], dtype: Any) -> None:
        assert column.dtype == dtype, f"a column of {column.dtype} where the format says {np.dtype(dtype)}"
        data = np.ascontiguousarray(column).reshape(-1).view(np.uint8).data
        if not data:
            return
        sums = []
        for start in range(0, len(data), self._block_bytes):
            piece = data[start : start + self._block_bytes]
            sums.append(checksum(piece, self._offset))
            self._put(piece)
        self._put(bytes(padding(len(data))))
        self._put(np.array(sums, np.uint64).tobytes())
        self._put(bytes(padding(8 * len(sums))))

    def _put(self, data: bytes | memoryview) -> None:
        if data:
            self._write(memoryview(data))
            self._offset += len(data)


class Source:
    """A row file being read front to back. `seen` gets every byte read, in order (a running SHA-256, say)."""

    def __init__(
        self, file: Readable, name: str, size: int, seen: Callable[[memoryview], object] | None = None
    ) -> None:
        self._file, self.name, self.size, self._seen = file, name, size, seen
        self.offset = 0

    def read_into(self, buffer: memoryview) -> None:
        """Fills the whole buffer. Raises CheckpointError where the file ends before."""
        rest = buffer
        while rest:
            try:
                n = self._file.readinto(rest)
            except OSError as e:
                raise CheckpointError(f"{self.name}: cannot be read at byte offset {self.offset}: {e.strerror}") from e
            if not n:
                raise self.damaged(self.offset, "the file ends here, in the middle of its data")
            rest = rest[n:]
            self.offset += n
        if self._seen:
            self._seen(buffer)

    def read(self, size: int) -> bytes:
        """The next `size` bytes; a small part, known to lie within the file."""
        data = bytearray(size)
        self.read_into(memoryview(data))
        return bytes(data)

    def skip(self, size: int) -> None:
        """Goes past `size` bytes; where `seen` must see them, by reading."""
        if self._seen is None:
            self._file.seek(self.offset + size)
            self.offset += size
            return
        while size > 0:
            n = min(size, BLOCK_BYTES)
            self.read(n)
            size -= n

    @property
    def left(self) -> int:
        """Bytes from here to the end."""
        return self.size - self.offset

    def damaged(self, offset: int, what: str) -> CheckpointError:
        """The error that names file and offset."""
        return CheckpointError(f"{self.name}: damaged at byte offset {offset}: {what}. {ADVICE}")


ADVICE = "Restore the file from a copy, or load another checkpoint"


class Scratch:
    """Memory for the columns of one row file after another: those of the one before are overwritten. Memory that a
    process touches for the first time costs more than reading into it."""

    def __init__(self) -> None:
        self._memory, self._used = np.empty(0, np.uint8), 0

    def begin(self, size: int) -> None:
        """What is there is wanted no more. `size`: bytes of the next file."""
        self._used = 0
        if self._memory.size < size:
            self._memory = np.empty(size, np.uint8)

    def take(self, size: int) -> NDArray[np.uint8]:
        """[size] aligned to 64 bytes, if the memory is. It must fit the file."""
        start, self._used = self._used, self._used + size + padding(size)
        return self._memory[start : start + size]


class RowReader:
    """Reads one row file front to back. Nothing read is trusted before its checksum has been compared, and no memory
    is taken for a length that the rest of the file cannot hold. Every failure is a CheckpointError with the offset."""

    def __init__(self, source: Source, scratch: Scratch | None = None) -> None:
        """`scratch`: where the columns of its blocks lie, until that is used for another file. None: in memory of their
        own."""
        self._source, self._scratch = source, scratch
        if scratch is not None:
            scratch.begin(source.size)
        self.version: int
        self.block_bytes: int
        self.partition: int
        self.partitions: int
        if source.size < HEADER.size + END.size:
            least = HEADER.size + END.size
            raise source.damaged(source.size, f"{source.size} bytes, but a row file has {least} or more")
        head = self._sealed(HEADER.size, "the file header")
        magic, self.version, self.block_bytes, self.partition, self.partitions, _ = HEADER.unpack(head)
        if magic != HEADER_MAGIC:
            raise source.damaged(0, f"not a satrap row file: it starts with {magic!r}")
        self._check(head, 0, "the file header")
        if self.version not in (PLAIN, BOUNDED):
            raise CheckpointError(
                f"{source.name}: row format version {self.version}, this satrap reads versions {PLAIN} and {BOUNDED}; "
                "use a newer satrap"
            )
        if not (ALIGN <= self.block_bytes <= 1 << 30 and self.block_bytes % ALIGN == 0):
            raise source.damaged(12, f"blocks of {self.block_bytes} bytes")

    def sections(self, wanted: Callable[[Section], bool] = lambda _: True) -> Iterator[tuple[Section, RowBlock | None]]:
        """Every table in the file, with its rows where `wanted`, and None (not read) where not.

        `wanted` may raise to refuse a section before memory is taken for it.
        """
        source, tables, rows = self._source, 0, 0
        while True:
            offset = source.offset
            if source.left < END.size:
                raise source.damaged(source.size, "the file ends before its end part: truncated")
            head = self._sealed(64, "a header")
            if head[:8] == END_MAGIC:
                self._end(head, offset, tables, rows)
                return
            section = self._section(head, offset)
            block = None
            if wanted(section):
                block = self._block(section)
            else:
                source.skip(sum(self._column_bytes(n) for n in self._columns(section)))
            tables += 1
            rows += section.rows
            yield section, block

    def _sealed(self, size: int, what: str) -> bytes:
        if self._source.left < size:
            raise self._source.damaged(self._source.size, f"the file ends inside {what}: truncated")
        return self._source.read(size)

    def _check(self, head: bytes, offset: int, what: str) -> None:
        if struct.unpack_from("<Q", head, 56)[0] != checksum(head[:56] + bytes(8) + head[64:], offset):
            raise self._source.damaged(offset, f"the checksum of {what} does not match")

    def _end(self, head: bytes, offset: int, tables: int, rows: int) -> None:
        source = self._source
        self._check(head, offset, "the end part")
        _, want_tables, want_rows, want_bytes, _ = END.unpack(head)
        if source.left:
            raise source.damaged(source.offset, f"{source.left} bytes follow the end part")
        if (want_tables, want_rows, want_bytes) != (tables, rows, source.size):
            raise source.damaged(
                offset,
                f"the end part says {want_tables} tables, {want_rows} rows, {want_bytes} bytes; "
                f"the file has {tables}, {rows}, {source.size}",
            )

    def _section(self, head: bytes, offset: int) -> Section:
        source = self._source
        magic, size, dim, value_bytes, width, rows, *lengths, marks, bound, _ = TABLE.unpack(head)
        if magic != TABLE_MAGIC:
            raise source.damaged(offset, f"neither a table nor the end: {magic!r}")
        text_bytes = sum(lengths)
        if size != TABLE.size + text_bytes + padding(text_bytes):
            raise source.damaged(offset + 8, f"a table header of {size} bytes with {text_bytes} bytes of text")
        text = self._sealed(size - TABLE.size, "a table header")
        self._check(head + text, offset, "a table header")
        ends = list(accumulate(lengths, initial=0))
        try:
            name, form, optimizer = (text[a:b].decode() for a, b in pairwise(ends))
            section = Section(name, dim, ValueFormat(form), optimizer, width, rows, marks, bound)
        except ValueError as e:
            raise source.damaged(offset + TABLE.size, f"unknown text in a table header: {e}") from e
        if self.version == PLAIN and (marks or bound):
            raise source.damaged(offset + 38, "marks in a file of version 1")
        if not (dim >= 1 and (rows >= 1 or bound) and value_bytes == section.format.row_bytes(dim)):
            raise source.damaged(offset, f"table '{name}': {rows} rows of dim {dim} in {value_bytes} bytes of {form}")
        needed = sum(self._column_bytes(n) for n in self._columns(section))
        if needed > source.left - END.size:
            raise source.damaged(
                source.size,
                f"the file ends here: truncated. The {rows} rows of table '{name}', whose header is at {offset}, "
                f"need {needed} bytes, {max(0, source.left - END.size)} are left for them",
            )
        return section

    def _columns(self, section: Section) -> tuple[int, int, int, int, int]:
        rows, value_bytes = section.rows, section.format.row_bytes(section.dim)
        return 8 * rows, value_bytes * rows, 4 * section.state_width * rows, section.marks * rows, section.bound

    def _column_bytes(self, size: int) -> int:
        sums = 8 * ((size + self.block_bytes - 1) // self.block_bytes)
        return size + padding(size) + sums + padding(sums)

    def _block(self, section: Section) -> RowBlock:
        ids, values, state, marks, bound = (self._column(n, section.name) for n in self._columns(section))
        return RowBlock(
            ids.view(np.uint64),
            values.view(DTYPES[section.format]).reshape(section.rows, columns(section.format, section.dim)),
            state.view(np.float32).reshape(section.rows, section.state_width),
            marks.reshape(section.rows, section.marks) if section.marks else None,
            bound if section.bound else None,
        )

    def _column(self, size: int, table: str) -> NDArray[np.uint8]:
        source, start = self._source, self._source.offset
        column = np.empty(size, np.uint8) if self._scratch is None else self._scratch.take(size)
        data = column.data
        sums = []
        for at in range(0, size, self.block_bytes):
            offset = source.offset
            piece = data[at : at + self.block_bytes]
            source.read_into(piece)
            sums.append(checksum(piece, offset))
        self._zeros(padding(size))
        stored = np.frombuffer(source.read(8 * len(sums)), np.uint64)
        for i, (want, have) in enumerate(zip(stored.tolist(), sums, strict=True)):
            if want != have:
                at = start + i * self.block_bytes
                end = min(at + self.block_bytes, start + size)
                raise source.damaged(
                    at, f"the checksum of bytes {at} to {end}, rows of table '{table}', does not match"
                )
        self._zeros(padding(8 * len(sums)))
        return column

    def _zeros(self, size: int) -> None:
        offset = self._source.offset
        if any(self._source.read(size)):
            raise self._source.damaged(offset, f"{size} bytes of padding are not zero")
