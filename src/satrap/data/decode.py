"""A piece of a file to a block of arrays: every column of the job decoded.

R rows of a piece, n numbers a row, T labels a row.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat
from numpy.typing import NDArray

from satrap.data.block import Block
from satrap.data.columns import column_of
from satrap.data.ids import Dictionaries, decode_ids
from satrap.data.numbers import as_floats, bad_value, fill_numeric, first_true
from satrap.data.source import Piece
from satrap.errors import DataError, JobError
from satrap.schema import Job, Label


def numeric_slices(job: Job) -> dict[str, slice]:
    """The columns of `Batch.numeric` that belong to each numeric feature: its width, and its indicator behind them.

    >>> from satrap.schema import Data, Numeric
    >>> job = Job(data=Data(train=("a.parquet",), label=(Label(column="y"),)),
    ...           features=(Numeric(name="age", indicator=True), Numeric(name="pixels", width=3)))
    >>> numeric_slices(job)
    {'age': slice(0, 2, None), 'pixels': slice(2, 5, None)}
    """
    slices, start = {}, 0
    for f in job.numeric_features:
        stop = start + f.width + int(f.indicator)
        slices[f.name] = slice(start, stop)
        start = stop
    return slices


def require_measured(job: Job) -> None:
    """Raises JobError if a feature is to be scaled by a mean and std that are not known yet."""
    for f in job.numeric_features:
        if f.scale == "standard" and f.mean is None:
            raise JobError(
                f"features.{f.name}: scale: standard needs its mean and std; satrap.data.measure(job) fills them in"
            )


class Decoder:
    """Decodes pieces of one reader. Not thread-safe: it remembers dictionaries and what it has seen."""

    def __init__(self, job: Job, *, labels: bool) -> None:
        self._job = job
        self._labels = job.data.label if labels else ()
        self._weight = job.data.weight if labels else None
        self._slices = numeric_slices(job)
        self._width = max((s.stop for s in self._slices.values()), default=0)
        self._known = Dictionaries()
        self._positive_seen = [label.positive is None for label in self._labels]

    def decode(self, piece: Piece) -> Block:
        """Raises DataError naming file, column, row and value where a value does not fit the job."""
        rows = piece.columns.num_rows
        numeric = np.empty((rows, self._width), np.float32)
        for f in self._job.numeric_features:
            fill_numeric(f, piece, column_of(f), numeric[:, self._slices[f.name]])
        labels = np.empty((rows, len(self._labels)), np.float32)
        for t, label in enumerate(self._labels):
            labels[:, t] = _decode_label(label, piece)
            self._positive_seen[t] = self._positive_seen[t] or bool(labels[:, t].any())
        return Block(
            rows=rows,
            numeric=numeric,
            ids={f.name: decode_ids(f, piece, self._known) for f in self._job.id_features},
            labels=labels,
            weights=None if self._weight is None else _sample_weights(self._weight, piece),
        )

    def require_positives(self) -> None:
        """Raises DataError for a label whose `positive` no row had: a slip of the pen there would train on zeros."""
        for label, seen in zip(self._labels, self._positive_seen, strict=True):
            if not seen:
                raise DataError(
                    f"column '{label.column}': no row of the epoch equals positive: {label.positive!r}, so every label "
                    "is 0; check the spelling and the type of data.label's positive"
                )


def _decode_label(label: Label, piece: Piece) -> NDArray[np.generic]:
    """Zeros and ones [R]."""
    array = piece.columns.column(label.column)
    if array.null_count:
        null = int(np.asarray(array.is_null()).argmax())
        raise bad_value(piece, label.column, null, "the label is missing; remove such rows from the data")
    if isinstance(label.positive, str):
        return _equals_text(array, label.positive, piece)
    if piece.untyped and label.positive is None:
        array = _spelled_bools(array)
    values = as_floats(array, piece, label.column)
    if label.positive is not None:
        if np.isnan(values).any():
            raise bad_value(piece, label.column, int(np.isnan(values).argmax()), "the label is NaN")
        return np.equal(values, label.positive)
    row = first_true((values != 0) & (values != 1))
    if row is not None:
        raise bad_value(
            piece,
            label.column,
            row,
            f"the label is {array[row].as_py()!r}, but must be 0 or 1; for other values name the one that means 1: "
            f"data.label: {{column: {label.column}, positive: VALUE}}",
        )
    return values


def _equals_text(array: pa.Array, positive: str, piece: Piece) -> NDArray[np.generic]:
    if not pat.is_dictionary(array.type):
        array = array.dictionary_encode()
    entries = array.dictionary
    if piece.untyped:
        entries = pc.utf8_trim_whitespace(entries)
    # As bytes: a binary column need not be valid text.
    equal = pc.equal(entries.cast(pa.large_binary()), pa.scalar(positive.encode(), pa.large_binary()))
    matches: NDArray[np.bool_] = equal.to_numpy(zero_copy_only=False)[array.indices.to_numpy()]
    return matches


def _spelled_bools(array: pa.Array) -> pa.Array:
    """A text column with true and false written as 1 and 0."""
    if pat.is_dictionary(array.type):
        array = array.cast(pa.string())
    spelled = pc.utf8_lower(pc.utf8_trim_whitespace(array))
    array = pc.if_else(pc.equal(spelled, "true"), "1", array)
    return pc.if_else(pc.equal(spelled, "false"), "0", array)


def _sample_weights(column: str, piece: Piece) -> NDArray[np.float32]:
    values = as_floats(piece.columns.column(column), piece, column)
    with np.errstate(over="ignore"):
        weights = values.astype(np.float32)
    row = first_true(~(np.isfinite(weights) & (weights >= 0)))
    if row is not None:
        raise bad_value(piece, column, row, f"the sample weight is {values[row]}; it must be a number of 0 or more")
    return weights
