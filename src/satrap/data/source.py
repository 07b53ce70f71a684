"""What sources of rows have in common: pieces of a file, and the windows they belong to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from satrap.data.deal import ALL, Shard
from satrap.data.files import File

READ_ROWS = 131_072
"""Rows of a window when nothing is shuffled: what is read and decoded at a time."""


@dataclass(frozen=True, slots=True)
class Order:
    """In which order an epoch reads, and how rows form windows. Equal orders give equal positions."""

    seed: int
    shuffle: bool
    window_rows: int
    """About this many rows are a window."""
    shard: Shard = ALL
    """Whose windows: each worker has its own, of the rows that are dealt to it."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of one file, one behind the other in it, all of one window."""

    columns: pa.RecordBatch
    file: str
    file_row: int
    """Row number of the first in its file, from 0."""
    row: int
    """Row number of the first in the dataset, in file order."""
    window: int
    """Of the worker's own, from 0."""
    closes: bool
    """True: the last piece of its window. (False on a file's last piece where the source could not know.)"""
    untyped: bool = False
    """From a text file: every column is text, and numbers are spelled."""
    integers: bool = False
    """An untyped id spelled as an integer is that integer, so that CSV and Parquet of the same data agree."""


class Source(Protocol):
    """Rows of a dataset. Thread-safe: each call of `pieces` reads on its own."""

    files: list[File]

    @property
    def rows(self) -> int | None:
        """Rows of the dataset; None where only reading it would tell."""

    def file_rows(self) -> list[int | None]:
        """Rows of each file."""

    def pieces(self, epoch: int, first_window: int) -> Iterator[Piece]:
        """The worker's pieces of an epoch, window by window, from one on. Raises DataError for unreadable files."""

    def dealt(self, epoch: int) -> list[list[tuple[int, int]]] | None:
        """Of each worker, the runs of rows it has in an epoch: (first row in the dataset, rows). None where only
        reading would tell."""
