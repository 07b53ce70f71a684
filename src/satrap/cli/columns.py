"""Columns of the user's files, apart from training: are they what the job needs, and carry some along to the output."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from satrap.data.columns import Family, Need, needs_of
from satrap.data.files import AnyFormat, File
from satrap.data.opening import open_source
from satrap.schema import Job


def check_columns(job: Job) -> dict[str, int | None]:
    """Checks the columns of each part of the data that is here; the result names it and the number of its files.

    None where the files of a part are not on this machine. Raises DataError for a column that is absent or of a type
    that does not fit, and for files that are there and cannot be read.
    """
    parts = {"data.train": job.data.train, "data.valid": job.data.valid, "data.test": job.data.test}
    checked: dict[str, int | None] = {}
    for part, paths in parts.items():
        if isinstance(paths, tuple) and paths:
            absent = all("://" not in p and not any(c in p for c in "*?[") and not Path(p).exists() for p in paths)
            checked[part] = None if absent else len(_files(job, paths))
    return checked


def _files(job: Job, paths: Sequence[str]) -> list[File]:
    return open_source(paths, needs_of(job, labels=True), format=job.data.format).files


def carried(paths: Sequence[str], names: list[str], format: AnyFormat) -> Iterator[pa.RecordBatch]:
    """The named columns of all rows, in the order in which the files are read for prediction.

    Columns of text files are text, as they stand there.
    """
    either = frozenset({False, True})
    needs = tuple(Need(name, "--keep", frozenset(Family), either, "") for name in names)
    source = open_source(paths, needs, format=format)
    return (piece.columns.select(names) for piece in source.pieces(0, 0))
