"""Bytes a row in the native table: the one place outside `native/` that knows its layout.

    index    chunks of one cache line, full to between 0.71 and 0.80
    row      values; state and version, in records beside them or behind them in one
    slack    rows, records and chunks come in blocks, of which the last of a partition is partly empty

A test fills tables and compares what the process has grown by with these numbers: when `native/table` changes its
layout, it fails until they follow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from satrap.schema import (
    SGD,
    Adagrad,
    Adam,
    AdamW,
    Ftrl,
    Hashed,
    Optimizer,
    QuotientRemainder,
    RowWiseAdagrad,
    StateFormat,
    Table,
    ValueFormat,
)

CHUNK_BYTES = 64
CHUNK_SLOTS = 7
"""Entries of an index chunk (`native/table/view.h`)."""
FILL_MOST = (4, 5)
"""An index grows when this share of its slots is taken."""
SMALL_CHUNKS = 4096
"""An index of fewer chunks grows by half, a larger one by an eighth (`native/table/table.cc`)."""
LINE_BYTES, VERSION_BYTES = 64, 1
"""Values of whole cache lines lie apart from state and version, of which as many rows share a line as fit
(`RowLayout`)."""
ROW_BLOCK_BYTES, RECORD_BLOCK_BYTES, CHUNK_BLOCK = 128 << 10, 64 << 10, 1024
"""Rows, and records beside them, come in blocks of the power of two of them that fits; chunks in blocks of so many."""
ALIGNMENT_BYTES = 4
"""Values are padded to a multiple, so that the state behind them is aligned."""
RESERVED_MORE = 16
"""An index that is given its size has room for a fiftieth more than a partition's share, and for so many rows."""
FREED_BYTES, FREED_BYTES_TTL = 1, 4
"""A row, for the numbers of rows removed, in a table bounded in bytes; the second: whose rows expire."""
SIGHTING_BYTES = 8
"""Of the window that sightings are counted in."""
ROWS_PER_PARTITION_MAX = 0xFFFFFFF0
"""Rows of a partition have 32-bit numbers."""

COLD_INDEX_BYTES = 256 / 36 * 5 / 4 * 1.125
"""Of memory, of a row on disk, where the index has just grown (`native/table/cold_index.h`)."""
COLD_HEAD_BYTES, COLD_FILE_PARTS = 16, 1.5
"""Of a record on disk, beside values and state; and how much larger the file may be than its rows (`table/cold.h`)."""

VALUE_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}
"""By row format, of one value."""
SCALE_BYTES = {"int8": 4}
"""Of a row, beside its values."""
COUNT_BYTES = 4
"""Of a row's count of updates, where it is saved."""
MOMENT_BLOCK = 64
"""Elements of a row whose 8-bit moments share a word of scales (`kMomentBlock`)."""


def is_built(row_format: str) -> bool:
    """Whether tables of this satrap can be told to store rows so.

    >>> is_built("fp16"), is_built("fp4")
    (True, False)
    """
    return row_format in {f.value for f in ValueFormat}


@dataclass(frozen=True, slots=True)
class RowBytes:
    """What a row costs, by part, in bytes; means over the rows of a table."""

    values: float
    """With the scale of an int8 row."""
    state: float
    """Of the optimizer."""
    version: float
    """And marks, and padding beside values, state and version."""
    index: float
    """Share of the index."""
    slack: float
    """Share of what is empty in blocks; next to nothing in large tables."""
    sketch: float = 0.0
    """Share of what counts the sightings of ids that wait for a row."""
    count: float = 0.0
    """Of a row's updates, where rounding draws from it: in checkpoints and snapshots, in memory the version has it."""

    @property
    def total(self) -> float:
        """All of it."""
        return self.values + self.state + self.version + self.index + self.slack + self.sketch

    @property
    def overhead(self) -> float:
        """Beside values and state."""
        return self.version + self.index + self.slack + self.sketch

    @property
    def on_disk(self) -> float:
        """Of the file of rows that are not in memory, at its largest."""
        return COLD_FILE_PARTS * (COLD_HEAD_BYTES + _padded(math.ceil(self.values)) + self.state)

    @property
    def saved(self) -> float:
        """In a checkpoint: id, values, state, count of updates."""
        return 8.0 + self.values + self.state + self.count


def state_floats(optimizer: Optimizer, dim: int) -> int:
    """Words of 4 bytes of optimizer state a row of `dim` values.

    >>> state_floats(RowWiseAdagrad(), 64), state_floats(Adam(), 64), state_floats(SGD(), 64)
    (1, 129, 0)
    >>> state_floats(Adam(state=StateFormat.INT8), 64)
    34
    """
    match optimizer:
        case SGD():
            return dim if optimizer.momentum > 0 else 0
        case Adagrad():
            return dim
        case RowWiseAdagrad():
            return 1
        case Adam(state=StateFormat.INT8) | AdamW(state=StateFormat.INT8):
            return 1 + -(-dim // MOMENT_BLOCK) + -(-2 * dim // 4)
        case Adam() | AdamW() | Ftrl():
            return 2 * dim + 1


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a bounded table's rules do to its memory."""

    marks: int = 0
    """Bytes a row, beside its version."""
    capacity: float = math.inf
    """Rows that the table never exceeds."""
    window: int = 0
    """Sightings of the whole table that are counted before ids get a row; 0: none are."""


NO_BOUNDS = Bounds()


def bounds_of(table: Table, row_format: str, partitions: int) -> Bounds:
    """Those of a table cut into so many partitions, its rows stored so. A table of fixed size has as many rows as it
    was given."""
    c, marks = table.capacity, sum(x is not None for x in (table.capacity, table.cold, table.expire))
    window = 0 if table.admit is None else table.admit.window
    capacity = math.inf
    match table.ids:
        case Hashed(rows=rows):
            capacity = rows
        case QuotientRemainder(rows=rows):
            capacity = 2 * rows
    if c is not None and c.rows is not None:
        capacity = c.rows
    elif c is not None and c.bytes is not None:
        kept = table.optimizer or RowWiseAdagrad()
        freed = FREED_BYTES if table.expire is None else FREED_BYTES_TTL
        room = c.bytes // partitions - _sketch_bytes(window, partitions)
        capacity = partitions * _rows_within(room, _lists_of(table.dim, row_format, kept, marks), freed)
    return Bounds(marks, capacity, window)


def row_bytes(
    dim: int,
    row_format: str,
    optimizer: Optimizer,
    *,
    rows: float,
    partitions: int,
    worst: bool = False,
    bounds: Bounds = NO_BOUNDS,
    reserved: bool = False,
) -> RowBytes:
    """Bytes a row of a table with so many rows in all, in so many partitions.

    `worst`: with the index as empty as it gets, just after it has grown; that is what memory must be there for.
    `reserved`: made at once in an index that was given its size before, as a fill or a restore does.

    >>> round(row_bytes(64, "fp32", RowWiseAdagrad(), rows=10_000_000, partitions=64).total, 1)
    273.6
    """
    raw = dim * VALUE_BYTES[row_format] + SCALE_BYTES.get(row_format, 0)
    state = 4 * state_floats(optimizer, dim)
    lists = _lists_of(dim, row_format, optimizer, bounds.marks)
    share = max(1.0, rows / partitions)
    bounded = bounds.marks and math.isfinite(bounds.capacity)
    most = chunks_for(math.ceil(bounds.capacity / partitions)) if bounded else math.inf
    room = math.ceil(share + share // 50 + RESERVED_MORE) if reserved else 0
    index, slack = _mean_of_partitions(share, lists, most, room)
    if worst:
        index = max(index, min(index_bytes_most(), CHUNK_BYTES * most / share))
    return RowBytes(
        values=float(raw),
        state=float(state),
        version=sum(x.bytes / x.rows for x in lists) - raw - state,
        index=index,
        slack=slack,
        sketch=partitions * _sketch_bytes(bounds.window, partitions) / max(1.0, rows),
        count=float(COUNT_BYTES) if _draws(row_format, optimizer) else 0.0,
    )


def chunks_for(rows: int) -> int:
    """Chunks of an index that is made for so many rows and never grows.

    >>> chunks_for(100), chunks_for(1000)
    (18, 179)
    """
    full, of = FILL_MOST
    chunks = rows * of // (full * CHUNK_SLOTS)
    while chunks * CHUNK_SLOTS * full // of < rows:
        chunks += 1
    return max(1, chunks)


def _rows_within(room: int, lists: list[_List], freed: int) -> int:
    """Rows that a partition of so many bytes may hold: as `Table::rows_within` of `native/table/table.cc` decides."""

    def taken(rows: int) -> int:
        blocks = sum(x.bytes * _capacity(-(-rows // x.rows), _per_block(x)) for x in lists)
        return CHUNK_BYTES * _capacity(chunks_for(rows), CHUNK_BLOCK) + blocks + freed * rows

    low, high = 0, max(0, min(room // lists[0].bytes, ROWS_PER_PARTITION_MAX - 1))
    while low < high:
        middle = low + (high - low + 1) // 2
        low, high = (middle, high) if taken(middle) <= room else (low, middle - 1)
    return low


def _sketch_bytes(window: int, partitions: int) -> int:
    """Of a partition's counters of sightings (`native/table/sketch.h`)."""
    return -(-(-(-window // partitions) * SIGHTING_BYTES) // LINE_BYTES) * LINE_BYTES


def _draws(row_format: str, optimizer: Optimizer) -> bool:
    """Whether updates draw random bits, with the rounding that is the format's default."""
    return row_format in ("bf16", "int8") or getattr(optimizer, "state", None) is StateFormat.INT8


@dataclass(frozen=True, slots=True)
class _List:
    """What a partition keeps in blocks for its rows."""

    bytes: int
    """Of an element."""
    rows: int
    """That share an element."""
    block_bytes: int


def _lists_of(dim: int, row_format: str, optimizer: Optimizer, marks: int) -> list[_List]:
    raw = dim * VALUE_BYTES[row_format] + SCALE_BYTES.get(row_format, 0)
    return _lists(_padded(raw), 4 * state_floats(optimizer, dim), marks)


def _lists(values: int, state: int, marks: int) -> list[_List]:
    """As `RowLayout` of `native/table/spec.h` decides."""
    side = state + VERSION_BYTES + marks
    if values % LINE_BYTES:
        return [_List(_padded(values + side), 1, ROW_BLOCK_BYTES)]
    group = max(1, LINE_BYTES // side)
    record = LINE_BYTES if group > 1 else _padded(side)
    return [_List(values, 1, ROW_BLOCK_BYTES), _List(record, group, RECORD_BLOCK_BYTES)]


def _padded(n: int) -> int:
    return math.ceil(n / ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def index_chunks(rows: int) -> int:
    """Chunks of the index of one partition that so many rows have been put into, one by one.

    >>> index_chunks(1), index_chunks(100)
    (1, 19)
    """
    full, of = FILL_MOST
    chunks = 0
    while chunks * CHUNK_SLOTS * full // of < rows:
        chunks += max(1, chunks // (2 if chunks < SMALL_CHUNKS else 8))
    return chunks


def index_bytes_most() -> float:
    """A row's share of a large index that has just grown by an eighth."""
    full, of = FILL_MOST
    return CHUNK_BYTES / CHUNK_SLOTS * of / full * 1.125


def _mean_of_partitions(share: float, lists: list[_List], most: float, reserved: int) -> tuple[float, float]:
    """(index, slack) a row. Partitions have a share of the rows each, give or take its square root, so their indices do
    not grow at one moment. An index has at most `most` chunks, and from the beginning those for `reserved` rows."""
    spread = (-1.645, -1.036, -0.674, -0.385, -0.126, 0.126, 0.385, 0.674, 1.036, 1.645)  # tenths of the normal
    sizes = [max(1, round(share + z * math.sqrt(share))) for z in spread]
    total = sum(sizes)
    least = reserved * FILL_MOST[1] // (FILL_MOST[0] * CHUNK_SLOTS) + 1 if reserved else 0
    chunks = [int(min(most, least if n <= reserved else index_chunks(n))) for n in sizes]
    empty = 0.0
    for x in lists:
        empty += sum(x.bytes * (_capacity(-(-n // x.rows), _per_block(x)) - n / x.rows) for n in sizes)
    held = sum(_capacity(n, CHUNK_BLOCK) for n in chunks)
    return CHUNK_BYTES * sum(chunks) / total, (empty + CHUNK_BYTES * (held - sum(chunks))) / total


def _per_block(x: _List) -> int:
    return 1 << (max(x.block_bytes // x.bytes, 1).bit_length() - 1)


def _capacity(n: int, per_block: int) -> int:
    """Elements there is room for: whole blocks, of which the first is a power of two while it is alone."""
    return 1 << (n - 1).bit_length() if n <= per_block else -(-n // per_block) * per_block
