"""A bounded sample of a dataset's rows, every column, with types."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from satrap.data.columns import Family, Need
from satrap.data.files import File, Format
from satrap.data.text import header_of, read_text
from satrap.errors import DataError

SAMPLE_ROWS = 100_000
ENOUGH_ROWS = 10_000_000
"""Nothing that is inferred depends on whether there are more."""
_PLACES = 8
"""Row groups a sample is taken from: a file sorted by its label or by time looks different at every place."""
_SPELLED_BOOLS = ("true", "false", "True", "False", "TRUE", "FALSE")


@dataclass(frozen=True, slots=True)
class Sample:
    """Some rows of the data."""

    table: pa.Table
    file: str
    """The first file, for messages."""
    format: Format
    rows: int | None
    """Rows of all files, counted no further than `ENOUGH_ROWS`. None: not known without reading them all."""


def take_sample(files: list[File], rows: int) -> Sample:
    """At most `rows` rows. Raises DataError for files that cannot be read, or that hold no row."""
    kind = files[0].format
    table = _parquet(files, rows) if kind == "parquet" else _text(files, rows)
    if table.num_rows == 0:
        raise DataError(f"{files[0].name}: there are no rows to infer a job from")
    whole = table.num_rows if table.num_rows < rows else None
    return Sample(table, files[0].name, kind, _count_rows(files) if kind == "parquet" else whole)


def _count_rows(files: list[File]) -> int:
    """What the footers say, up to enough."""
    counted = 0
    for file in files:
        try:
            with file.filesystem.open_input_file(file.path) as f:
                counted += pq.ParquetFile(f).metadata.num_rows
        except (pa.ArrowException, OSError) as e:
            raise DataError(f"{file.name}: not a readable Parquet file: {e}") from e
        if counted >= ENOUGH_ROWS:
            return ENOUGH_ROWS
    return counted


def _parquet(files: list[File], rows: int) -> pa.Table:
    """The first rows of row groups spread evenly over at most _PLACES of the files."""
    tables: list[pa.Table] = []
    chosen = [files[i] for i in _spread(len(files), _PLACES)]
    for file in chosen:
        try:
            with file.filesystem.open_input_file(file.path) as f:
                parquet = pq.ParquetFile(f)
                groups = _spread(parquet.num_row_groups, max(1, _PLACES // len(chosen)))
                for group in groups:
                    wanted = max(1, rows // (len(chosen) * len(groups)))
                    tables += _head(parquet, group, wanted)
        except (pa.ArrowException, OSError) as e:
            raise DataError(f"{file.name}: not a readable Parquet file: {e}") from e
    if not tables:
        raise DataError(f"{files[0].name}: there are no rows to infer a job from")
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowException, TypeError) as e:
        raise DataError(f"the files' columns are of types that do not go together: {e}") from e


def _head(parquet: pq.ParquetFile, group: int, rows: int) -> list[pa.Table]:
    for batch in parquet.iter_batches(batch_size=rows, row_groups=[group], use_threads=False):
        return [pa.Table.from_batches([batch])]
    return []


def _spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` numbers below `count`, evenly apart.

    >>> _spread(10, 3), _spread(2, 8)
    ([0, 3, 6], [0, 1])
    """
    return sorted({i * count // wanted for i in range(wanted)}) if count > wanted else list(range(count))


def _text(files: list[File], rows: int) -> pa.Table:
    """The first rows of the first files, each column with the narrowest type that all its values have."""
    batches: list[pa.RecordBatch] = []
    left = rows
    names = header_of(files[0])
    either = frozenset({False, True})
    needs = tuple(Need(name, "", frozenset(Family), either, "") for name in names)
    for file in files:
        for batch in read_text(file, header_of(file), needs):
            batches.append(batch.slice(0, left))
            left -= len(batches[-1])
            if left <= 0:
                break
        if left <= 0:
            break
    if not batches:
        return pa.table({name: pa.array([], pa.string()) for name in names})
    table = pa.Table.from_batches(batches)
    keep_text = files[0].format == "criteo"
    columns = {
        name: table.column(name) if keep_text and name.startswith("C") else _typed(table.column(name)) for name in names
    }
    return pa.table(columns)


def _typed(column: pa.ChunkedArray) -> pa.ChunkedArray:
    text = pc.utf8_trim_whitespace(column)
    text = pc.if_else(pc.equal(pc.binary_length(text), 0), pa.scalar(None, pa.string()), text)
    there = text.drop_null()
    if len(there) == 0:
        return pa.chunked_array([pa.nulls(len(text))])
    if pc.all(pc.is_in(there, value_set=pa.array(_SPELLED_BOOLS))).as_py():
        return pc.equal(pc.utf8_lower(text), "true")
    for kind in (pa.int64(), pa.uint64(), pa.float64()):
        try:
            return text.cast(kind)
        except pa.ArrowInvalid:
            continue
    return text
