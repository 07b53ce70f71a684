"""Text files, read as streams: CSV and TSV with a header line, and the original Criteo format without one.

A text file has no types, and a reader that guesses them guesses differently from file to file: the same user would be
the integer 17 here and the text "17" there. So every column is read as text, and what a value means is decided value
by value: an empty field is missing; a number is parsed where the job wants a number; an id spelled as an integer is
that integer, as it would be in Parquet, and any other id is hashed. Criteo's hexadecimal ids are always hashed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv

from satrap.data.columns import Need
from satrap.data.deal import Shard, runs_of
from satrap.data.files import File
from satrap.data.source import Order, Piece
from satrap.errors import DataError, did_you_mean

CRITEO_COLUMNS = ("label", *(f"I{i}" for i in range(1, 14)), *(f"C{i}" for i in range(1, 27)))
"""The 40 columns of the Criteo format. Its test files have no label: 39."""

_BLOCK_BYTES = 8 << 20
"""Text parsed at a time, and so the longest line."""
_HEADER_BYTES = 1 << 20
_RUN_ROWS = 16_384
"""Rows of a stream that go to one worker at a time: so many that they are decoded as fast as all would be."""


class TextSource:
    """A dataset of text files. Reads the head of every file once; raises DataError if a column is not there."""

    def __init__(self, files: list[File], needs: tuple[Need, ...], order: Order) -> None:
        self.files = files
        self._order = order
        self._needs = needs
        self._headers = [_header(f) for f in files]
        self._rows: list[int | None] = [None] * len(files)
        for file, header in zip(files, self._headers, strict=True):
            self._check(file, header)

    def _check(self, file: File, header: list[str]) -> None:
        for need in self._needs:
            if need.column not in header:
                hint = did_you_mean(need.column, header)
                raise DataError(f"{file.name}: there is no column '{need.column}', which {need.part} reads; {hint}")
            if header.count(need.column) > 1:
                raise DataError(f"{file.name}: {header.count(need.column)} columns are named '{need.column}'")
            if False not in need.lists:
                raise DataError(
                    f"{file.name}: {need.part} reads lists from column '{need.column}', but a {file.format} file has "
                    "one value a field; convert the data to Parquet with a list column"
                )

    @property
    def rows(self) -> int | None:
        """Known once every file has been read to its end."""
        known = [r for r in self._rows if r is not None]
        return sum(known) if len(known) == len(self._rows) else None

    def file_rows(self) -> list[int | None]:
        return list(self._rows)

    def dealt(self, epoch: int) -> list[list[tuple[int, int]]] | None:
        total, world = self.rows, self._order.shard.world
        if total is None:
            return None
        return [runs_of(total, self._run_rows, Shard(rank, world)) for rank in range(world)]

    @property
    def _run_rows(self) -> int:
        return min(_RUN_ROWS, self._order.window_rows)

    def pieces(self, epoch: int, first_window: int) -> Iterator[Piece]:
        """Every worker reads the whole stream, and leaves out the runs that are not its own."""
        size, run, (rank, world) = self._order.window_rows, self._run_rows, self._order.shard
        row = mine = 0  # rows before this place: of the stream, and of this worker
        for i, file in enumerate(self.files):
            file_row = 0
            for batch in read_text(file, self._headers[i], self._needs):
                done = 0
                while done < batch.num_rows:
                    window, left = mine // size, batch.num_rows - done
                    own = world == 1 or row // run % world == rank
                    count = left if world == 1 else min(left, run - row % run)
                    if own:
                        count = min(count, (window + 1) * size - mine)
                        if window >= first_window:
                            closes = mine + count == (window + 1) * size
                            piece = batch.slice(done, count)
                            integers = file.format != "criteo"
                            yield Piece(
                                piece, file.name, file_row, row, window, closes, untyped=True, integers=integers
                            )
                        mine += count
                    done, row, file_row = done + count, row + count, file_row + count
            self._rows[i] = file_row
        if first_window > 0 and mine <= first_window * size:
            raise DataError(
                f"the position is in window {first_window}, which begins at row {first_window * size}, but there are "
                f"{mine} rows; the data is not what it was when the position was saved"
            )


def read_text(file: File, header: list[str], needs: tuple[Need, ...]) -> Iterator[pa.RecordBatch]:
    """The columns needed, as text (dictionary-encoded where they become ids), block by block."""
    names = list(dict.fromkeys(n.column for n in needs))
    ids = {n.column for n in needs if n.text_for_ids} - {n.column for n in needs if not n.text_for_ids}
    raw = _raw_names(file, header)
    kinds = {raw[n]: pa.dictionary(pa.int32(), pa.string()) if n in ids else pa.string() for n in names}
    convert = pacsv.ConvertOptions(
        include_columns=[raw[n] for n in names], column_types=kinds, null_values=[""], strings_can_be_null=True
    )
    read = pacsv.ReadOptions(
        use_threads=False, block_size=_BLOCK_BYTES, column_names=header if file.format == "criteo" else None
    )
    try:
        with file.filesystem.open_input_stream(file.path, compression="detect") as stream:
            try:
                reader = pacsv.open_csv(stream, read, _dialect(file), convert)
            except pa.ArrowInvalid as e:
                if "Empty CSV file" in str(e):
                    return
                raise
            for batch in reader:
                yield batch.rename_columns(names)
    except (pa.ArrowException, OSError, EOFError) as e:
        raise DataError(_text_failure(file, e)) from e


def header_of(file: File) -> list[str]:
    """The column names of a text file."""
    return _header(file)


def _dialect(file: File) -> Any:
    if file.format == "criteo":
        return pacsv.ParseOptions(delimiter="\t", quote_char=False, ignore_empty_lines=True)
    # A quoted field may hold a line break: slower to cut in blocks, but a plain file of free text has them.
    delimiter = "," if file.format == "csv" else "\t"
    return pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True)


def _header(file: File) -> list[str]:
    """Column names, blanks around them trimmed."""
    if file.format != "criteo":
        return [name.strip() for name in _raw_header(file)]
    line = _first_line(file)
    fields = line.count("\t") + 1
    if line and fields not in (len(CRITEO_COLUMNS), len(CRITEO_COLUMNS) - 1):
        raise DataError(
            f"{file.name}: the first line has {fields} tab-separated fields; the Criteo format has 40 "
            "(label, I1-I13, C1-C26), or 39 without the label. For other files set data.format: tsv or csv"
        )
    return list(CRITEO_COLUMNS if fields == len(CRITEO_COLUMNS) or not line else CRITEO_COLUMNS[1:])


def _raw_header(file: File) -> list[str]:
    read = pacsv.ReadOptions(use_threads=False, block_size=_HEADER_BYTES)
    try:
        with file.filesystem.open_input_stream(file.path, compression="detect") as stream:
            names = pacsv.open_csv(stream, read, _dialect(file)).schema.names
    except (pa.ArrowException, OSError, EOFError) as e:
        raise DataError(_text_failure(file, e)) from e
    return list(names)


def _raw_names(file: File, header: list[str]) -> dict[str, str]:
    if file.format == "criteo":
        return {n: n for n in header}
    return {name.strip(): name for name in _raw_header(file)}


def _first_line(file: File) -> str:
    try:
        with file.filesystem.open_input_stream(file.path, compression="detect") as stream:
            return bytes(stream.read(_HEADER_BYTES)).split(b"\n", 1)[0].decode("utf-8", "replace").rstrip("\r")
    except (pa.ArrowException, OSError, EOFError) as e:
        raise DataError(_text_failure(file, e)) from e


def _text_failure(file: File, error: Exception) -> str:
    message = str(error)
    if "straddling" in message:
        message = f"a line is longer than {_BLOCK_BYTES} bytes, or a quote is never closed ({message})"
    elif "Empty CSV file" in message:
        message = "the file is empty; a header line with the column names is needed"
    elif "Expected" in message and "columns" in message:
        message += "; is the separator right (data.format: csv or tsv), and is there a header line?"
    return f"{file.name}: cannot read as {file.format}: {message}"
