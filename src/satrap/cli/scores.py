"""Scores and carried columns written to one file, aside first, so that a file under its name is always whole.

B rows of a piece, T labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from satrap.errors import DataError


def write_scores(
    out: Path,
    names: list[str],
    scores: Iterator[NDArray[np.float32]],
    kept: Iterator[pa.RecordBatch] | None = None,
) -> int:
    """Writes pieces of scores [B, T], beside the kept columns of the same rows, and returns the number of rows.

    Raises DataError when the kept columns have another number of rows than the scores.
    """
    part = out.with_name(out.name + ".partial")
    carried = None if kept is None else _Rows(kept)
    rows = 0
    writer: Any = None
    try:
        for piece in scores:
            columns = [pa.array(np.ascontiguousarray(piece[:, i], dtype=np.float32)) for i in range(len(names))]
            table = pa.table(columns, names=names)
            if carried is not None:
                before = carried.take(len(piece), rows)
                table = pa.table([*before.columns, *table.columns], names=[*before.column_names, *names])
            if writer is None:
                writer = _open(part, table.schema)
            writer.write_table(table)
            rows += len(piece)
        if carried is not None:
            carried.expect_end(rows)
        if writer is None:
            raise DataError(f"{out}: nothing to write, the data has no rows")
        writer.close()
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    return rows


def _open(part: Path, schema: pa.Schema) -> Any:
    if part.name.endswith(".csv.partial"):
        return pyarrow.csv.CSVWriter(str(part), schema)
    return pyarrow.parquet.ParquetWriter(str(part), schema, compression="zstd")


class _Rows:
    """Takes rows, any number at a time, from a stream of record batches of any size."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches = batches
        self._waiting: list[pa.RecordBatch] = []

    def take(self, n: int, taken: int) -> pa.Table:
        have = sum(b.num_rows for b in self._waiting)
        while have < n:
            batch = next(self._batches, None)
            if batch is None:
                raise DataError(f"the kept columns end at row {taken + have}, the scores go on to row {taken + n}")
            self._waiting.append(batch)
            have += batch.num_rows
        table = pa.Table.from_batches(self._waiting)
        self._waiting = table.slice(n).to_batches()
        return table.slice(0, n)

    def expect_end(self, rows: int) -> None:
        more = sum(b.num_rows for b in self._waiting) + sum(b.num_rows for b in self._batches)
        if more:
            raise DataError(f"the kept columns have {rows + more} rows, the scores {rows}")
