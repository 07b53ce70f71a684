"""From paths to a source of rows."""

from __future__ import annotations

from typing import Any

from satrap.data.columns import Need
from satrap.data.files import AnyFormat, Paths, find_files
from satrap.data.parquet import ParquetSource
from satrap.data.source import READ_ROWS, Order, Source
from satrap.data.text import TextSource

FILE_ORDER = Order(seed=0, shuffle=False, window_rows=READ_ROWS)
"""Rows as they stand in the files."""


def open_source(
    paths: Paths,
    needs: tuple[Need, ...],
    order: Order = FILE_ORDER,
    *,
    format: AnyFormat = "auto",
    filesystem: Any = None,
) -> Source:
    """The files behind the paths, their columns checked against the needs. Raises DataError where they do not fit."""
    files = find_files(paths, format, filesystem)
    return (ParquetSource if files[0].format == "parquet" else TextSource)(files, needs, order)
