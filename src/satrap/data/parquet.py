"""Parquet files, read row group by row group. Only the columns a job needs are read."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby

import pyarrow as pa
import pyarrow.parquet as pq

from satrap.data.columns import Family, Need, Shape, check_columns, shape_of
from satrap.data.deal import Part, deal
from satrap.data.files import File
from satrap.data.order import Purpose, key, permutation
from satrap.data.source import Order, Piece
from satrap.errors import DataError

_FOOTER_THREADS = 8
"""Footers read at once: on a remote store each is a round trip."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows start … stop of one row group: the whole of it, or a part where it is much larger than a window."""

    file: int
    group: int
    start: int
    stop: int
    whole: bool


def deal_groups(groups: list[tuple[int, int, int]], order: Order, epoch: int) -> list[list[Part]]:
    """What each worker has of an epoch, from (file, row group, rows) in file order. A pure function."""
    if order.shuffle:
        turn = permutation(len(groups), key(Purpose.ROW_GROUPS, order.seed, epoch))
        groups = [groups[at] for at in turn.tolist()]
    return deal(groups, order.shard.world)


def plan_windows(groups: list[tuple[int, int, int]], order: Order, epoch: int) -> list[list[Chunk]]:
    """The windows of a worker's epoch, from (file, row group, rows) in file order. A pure function.

    Row groups, in the epoch's order, are dealt to the workers and put together to windows of about `window_rows`. One
    of more than 1.5 windows is cut in equal parts, which follow one another so that it is read as one stream.
    """
    windows: list[list[Chunk]] = []
    filled = order.window_rows  # of the last window; the first chunk opens one
    for part in deal_groups(groups, order, epoch)[order.shard.rank]:
        pieces = max(1, round(part.rows / order.window_rows))
        for i in range(pieces):
            start, stop = (part.start + part.rows * n // pieces for n in (i, i + 1))
            chunk = Chunk(part.file, part.group, start, stop, stop - start == part.of)
            size = chunk.stop - chunk.start
            if filled + size / 2 >= order.window_rows:
                windows.append([])
                filled = 0
            windows[-1].append(chunk)
            filled += size
    return windows


class ParquetSource:
    """A dataset of Parquet files. Opens every file once for its footer; raises DataError if columns do not fit."""

    def __init__(self, files: list[File], needs: tuple[Need, ...], order: Order) -> None:
        self.files = files
        self._order = order
        self._needs = needs
        self._columns = list(dict.fromkeys(n.column for n in needs))
        with ThreadPoolExecutor(min(_FOOTER_THREADS, len(files))) as pool:
            footers = list(pool.map(_footer, files))
        self._footers = [metadata for metadata, _ in footers]
        self.schemas = [schema for _, schema in footers]
        agreed: dict[str, tuple[Shape, str]] = {}
        for file, schema in zip(files, self.schemas, strict=True):
            _refuse_repeated(schema, self._columns, file.name)
            check_columns(needs, dict(zip(schema.names, schema.types, strict=True)), file.name, agreed)
        self._groups = [
            (i, g, m.row_group(g).num_rows) for i, m in enumerate(self._footers) for g in range(m.num_row_groups)
        ]
        self._first_row: dict[tuple[int, int], tuple[int, int]] = {}  # in the dataset, and in the file
        row = file_row = 0
        for i, g, rows in self._groups:
            if g == 0:
                file_row = 0
            self._first_row[i, g] = (row, file_row)
            row, file_row = row + rows, file_row + rows

    @property
    def rows(self) -> int:
        return sum(m.num_rows for m in self._footers)

    def file_rows(self) -> list[int | None]:
        return [m.num_rows for m in self._footers]

    def dealt(self, epoch: int) -> list[list[tuple[int, int]]]:
        hands = deal_groups(self._groups, self._order, epoch)
        return [[(self._first_row[p.file, p.group][0] + p.start, p.rows) for p in hand] for hand in hands]

    def pieces(self, epoch: int, first_window: int) -> Iterator[Piece]:
        windows = plan_windows(self._groups, self._order, epoch)
        if first_window >= max(1, len(windows)):
            raise DataError(
                f"the position is in window {first_window}, but an epoch has {len(windows)} windows; the data is not "
                "what it was when the position was saved"
            )
        todo = [(w, chunk, chunk is windows[w][-1]) for w in range(first_window, len(windows)) for chunk in windows[w]]
        opened: tuple[int, pq.ParquetFile] | None = None
        for (file, group), run in groupby(todo, key=lambda x: (x[1].file, x[1].group)):
            name = self.files[file].name
            try:
                if opened is None or opened[0] != file:
                    opened = (file, self._open(file))
                for window, start, closes, batch in _cut_to_chunks(opened[1], group, self._columns, list(run)):
                    row, file_row = self._first_row[file, group]
                    yield Piece(batch, name, file_row + start, row + start, window, closes)
            except (pa.ArrowException, OSError) as e:
                raise DataError(f"{name}: cannot read row group {group}: {e}") from e

    def _open(self, file: int) -> pq.ParquetFile:
        f = self.files[file]
        return pq.ParquetFile(
            f.filesystem.open_input_file(f.path),
            metadata=self._footers[file],
            read_dictionary=_text_leaves(self._footers[file], self.schemas[file], self._needs),
            pre_buffer=True,
            page_checksum_verification=True,  # where the writer left checksums
        )


def _footer(file: File) -> tuple[pq.FileMetaData, pa.Schema]:
    try:
        with file.filesystem.open_input_file(file.path) as f:
            parquet = pq.ParquetFile(f)
            return parquet.metadata, parquet.schema_arrow
    except (pa.ArrowException, OSError) as e:
        raise DataError(f"{file.name}: not a readable Parquet file: {e}") from e


def _refuse_repeated(schema: pa.Schema, columns: list[str], file: str) -> None:
    for name in columns:
        if schema.names.count(name) > 1:
            raise DataError(f"{file}: there are {schema.names.count(name)} columns named '{name}'; names must differ")


def _text_leaves(metadata: pq.FileMetaData, schema: pa.Schema, needs: tuple[Need, ...]) -> list[str]:
    """Paths of the text columns that become ids: read as dictionaries, each distinct string is hashed once."""
    wanted = {n.column for n in needs if n.text_for_ids and shape_of(schema.field(n.column).type).family is Family.TEXT}
    leaves = [metadata.schema.column(i) for i in range(len(metadata.schema))]
    return [
        leaf.path
        for leaf in leaves
        if leaf.physical_type == "BYTE_ARRAY" and any(leaf.path == w or leaf.path.startswith(w + ".") for w in wanted)
    ]


def _cut_to_chunks(
    parquet: pq.ParquetFile, group: int, columns: list[str], run: list[tuple[int, Chunk, bool]]
) -> Iterator[tuple[int, int, bool, pa.RecordBatch]]:
    """(window, start row in the group, closes its window, rows) of chunks of one row group, which ascend."""
    if run[0][1].whole:
        batches = iter(parquet.read_row_group(group, columns=columns, use_threads=False).to_batches())
    else:
        size = max(chunk.stop - chunk.start for _, chunk, _ in run)
        batches = parquet.iter_batches(batch_size=size, row_groups=[group], columns=columns, use_threads=False)
    row = 0
    chunks = iter(run)
    window, chunk, closes = next(chunks)
    for batch in batches:
        end = row + batch.num_rows
        while True:
            a, b = max(row, chunk.start), min(end, chunk.stop)
            if a < b:
                yield window, a, closes and b == chunk.stop, batch.slice(a - row, b - a)
            if end < chunk.stop:
                break
            following = next(chunks, None)
            if following is None:
                return
            window, chunk, closes = following
        row = end
