"""Ids: columns of integers, bools, text and lists of them to 64-bit ids per row.

R rows of a piece, N ids in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat
from numpy.typing import NDArray

from satrap.data.batch import Jagged
from satrap.data.block import offsets_of
from satrap.data.columns import Family, column_of, is_list_type, shape_of
from satrap.data.hashing import NULL_ID, hash_strings
from satrap.data.numbers import as_floats, bad_value, first_true
from satrap.data.source import Piece
from satrap.schema import Categorical, Sequence

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]
Mask = NDArray[np.bool_]

_INTEGER_SPELLED = r"^(0|-?[1-9][0-9]{0,19})$"


class Dictionaries:
    """The ids of dictionaries seen last, by column: pieces of one row group come with equal dictionaries."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[pa.Array, bool, U64, Mask | None]] = {}

    def ids(self, column: str, dictionary: pa.Array, integers: bool, untyped: bool) -> tuple[U64, Mask | None]:
        """Ids of a dictionary's entries, and which of them are missing."""
        last = self._last.get(column)
        if last is not None and last[1] == integers and len(last[0]) == len(dictionary) and last[0].equals(dictionary):
            return last[2], last[3]
        ids, missing = _text_ids(dictionary, integers, untyped)
        self._last[column] = (dictionary, integers, ids, missing)
        return ids, missing


def decode_ids(feature: Categorical | Sequence, piece: Piece, known: Dictionaries) -> Jagged:
    """The ids of a feature in a piece. Raises DataError for a null where the feature says `missing: error`."""
    column = column_of(feature)
    array = piece.columns.column(column)
    flat = _Flat(feature, piece, known)
    jagged = _lists(flat, array) if is_list_type(array.type) else _singles(flat, array)
    return jagged


@dataclass(frozen=True, slots=True)
class _Flat:
    """Turns the elements of one feature's column into ids."""

    feature: Categorical | Sequence
    piece: Piece
    known: Dictionaries

    @property
    def column(self) -> str:
        return column_of(self.feature)

    def ids(self, array: pa.Array) -> tuple[U64, Mask | None]:
        """Ids of elements, and which are missing (None: none is; ids at missing ones are arbitrary)."""
        if isinstance(self.feature, Categorical) and self.feature.buckets is not None:
            values = as_floats(array, self.piece, self.column)
            nan = np.isnan(values)
            buckets = np.searchsorted(np.asarray(self.feature.buckets), values, side="right").astype(np.uint64)
            return buckets, nan if nan.any() else None
        family = shape_of(array.type).family
        if family is Family.NULL:
            return np.zeros(len(array), np.uint64), np.ones(len(array), np.bool_)
        if family is Family.TEXT:
            return self._text(array)
        if pat.is_dictionary(array.type):
            array = array.cast(array.type.value_type)
        missing = _nulls(array)
        if family is Family.BOOL:
            array = array.cast(pa.uint8())
        if missing is not None:
            array = array.fill_null(0)
        return whole_integers(array.to_numpy()), missing

    def _text(self, array: pa.Array) -> tuple[U64, Mask | None]:
        if not pat.is_dictionary(array.type):
            if pat.is_string_view(array.type) or pat.is_binary_view(array.type):
                array = array.cast(pa.large_binary())
            array = array.dictionary_encode()
        missing = _nulls(array)
        indices = array.indices if missing is None else array.indices.fill_null(0)
        if len(array.dictionary) == 0:
            return np.zeros(len(array), np.uint64), missing
        entries, entries_missing = self.known.ids(
            self.column, array.dictionary, self.piece.integers, self.piece.untyped
        )
        at = indices.to_numpy()
        if entries_missing is not None:
            also = entries_missing[at]
            missing = also if missing is None else missing | also
        return entries[at], missing

    def refuse(self, row: int) -> None:
        raise bad_value(
            self.piece, self.column, row, f"the value is missing, and features.{self.feature.name} says missing: error"
        )


def whole_integers(values: NDArray[np.generic]) -> U64:
    """Integers of any width as ids: signed ones by their 64-bit two's complement, unsigned ones whole.

    >>> whole_integers(np.array([-1, 7], np.int32)).tolist()
    [18446744073709551615, 7]
    """
    if values.dtype.kind == "u":
        return values.astype(np.uint64, copy=False)
    return values.astype(np.int64, copy=False).view(np.uint64)


def _nulls(array: pa.Array) -> Mask | None:
    if array.null_count == 0:
        return None
    mask: Mask = array.is_null().to_numpy(zero_copy_only=False)
    return mask


def _text_ids(dictionary: pa.Array, integers: bool, untyped: bool) -> tuple[U64, Mask | None]:
    missing = _nulls(dictionary)
    if missing is not None:
        dictionary = dictionary.fill_null("" if pat.is_string(dictionary.type) else b"")
    if untyped:
        dictionary = pc.utf8_trim_whitespace(dictionary)
        blank: Mask = pc.equal(pc.binary_length(dictionary), 0).to_numpy(zero_copy_only=False)
        if blank.any():
            missing = blank if missing is None else missing | blank
    ids = hash_strings(dictionary)
    if integers:
        spelled = np.flatnonzero(pc.match_substring_regex(dictionary, _INTEGER_SPELLED).to_numpy(zero_copy_only=False))
        if len(spelled):
            _read_integers(dictionary, spelled, ids)
    return ids, missing


def _read_integers(dictionary: pa.Array, at: I64, ids: U64) -> None:
    """Writes ids of entries spelled as integers; one that does not fit 64 bits stays hashed."""
    entries = dictionary.take(pa.array(at))
    short = np.asarray(pc.less_equal(pc.binary_length(entries), 18))
    ids[at[short]] = entries.filter(pa.array(short)).cast(pa.int64()).to_numpy(zero_copy_only=False).view(np.uint64)
    for i, spelled in zip(at[~short], entries.filter(pa.array(~short)).to_pylist(), strict=True):
        value = int(spelled)
        if -(2**63) <= value < 2**64:
            ids[i] = np.uint64(value % 2**64)


def _singles(flat: _Flat, array: pa.Array) -> Jagged:
    ids, missing = flat.ids(array)
    weights = _single_weights(flat)
    if missing is None:
        return Jagged(ids, None, weights)
    if flat.feature.missing == "error":
        flat.refuse(int(missing.argmax()))
    if flat.feature.missing == "id":
        return Jagged(np.where(missing, np.uint64(NULL_ID), ids), None, weights)
    there = ~missing
    return Jagged(ids[there], offsets_of(there.astype(np.int64)), None if weights is None else weights[there])


def _lists(flat: _Flat, array: pa.Array) -> Jagged:
    null_rows = _nulls(array)
    lengths = pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    ids, missing = flat.ids(array.flatten())
    offsets = offsets_of(lengths)
    weights = _list_weights(flat, lengths)
    if flat.feature.missing == "error":
        bad = np.zeros(len(array), np.bool_) if null_rows is None else null_rows.copy()
        if missing is not None:
            bad[np.searchsorted(offsets, np.flatnonzero(missing), side="right") - 1] = True
        row = first_true(bad)
        if row is not None:
            flat.refuse(row)
    jagged = Jagged(ids, offsets, weights)
    if flat.feature.missing == "id":
        if missing is not None:
            jagged = Jagged(np.where(missing, np.uint64(NULL_ID), ids), offsets, weights)
        if null_rows is not None:
            jagged = _insert_null_ids(jagged, null_rows)
    elif missing is not None:
        jagged = _keep(jagged, ~missing)
    return _shortened(flat.feature, jagged)


def _insert_null_ids(jagged: Jagged, rows: Mask) -> Jagged:
    """One NULL_ID of weight 1 in each of the rows, which are empty."""
    assert jagged.offsets is not None
    at = jagged.offsets[:-1][rows]
    values = np.insert(jagged.values, at, np.uint64(NULL_ID))
    weights = None if jagged.weights is None else np.insert(jagged.weights, at, np.float32(1))
    return Jagged(values, offsets_of(np.diff(jagged.offsets) + rows), weights)


def _keep(jagged: Jagged, kept: Mask) -> Jagged:
    assert jagged.offsets is not None
    before = offsets_of(kept.astype(np.int64))
    weights = None if jagged.weights is None else jagged.weights[kept]
    return Jagged(jagged.values[kept], before[jagged.offsets], weights)


def _shortened(feature: Categorical | Sequence, jagged: Jagged) -> Jagged:
    limit = feature.max_length
    assert jagged.offsets is not None
    lengths = np.diff(jagged.offsets)
    if limit is None or lengths.max(initial=0) <= limit:
        return jagged
    at = np.arange(len(jagged.values), dtype=np.int64)
    if isinstance(feature, Sequence):
        return _keep(jagged, np.repeat(jagged.offsets[1:], lengths) - at <= limit)
    return _keep(jagged, at - np.repeat(jagged.offsets[:-1], lengths) < limit)


def _single_weights(flat: _Flat) -> NDArray[np.float32] | None:
    column = _weights_column(flat)
    if column is None:
        return None
    array = flat.piece.columns.column(column)
    if is_list_type(array.type):
        raise bad_value(
            flat.piece, column, 0, f"holds lists, but '{flat.column}' has one id a row; weights go with ids"
        )
    return _checked_weights(flat, column, as_floats(array, flat.piece, column), None)


def _list_weights(flat: _Flat, lengths: I64) -> NDArray[np.float32] | None:
    """The weights of every element, in step with the ids. Lengths are compared row by row."""
    column = _weights_column(flat)
    if column is None:
        return None
    array = flat.piece.columns.column(column)
    if not is_list_type(array.type):
        raise bad_value(
            flat.piece, column, 0, f"holds single values, but '{flat.column}' has lists; give one weight an id"
        )
    counts = pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False)
    row = first_true(counts != lengths)
    if row is not None:
        raise bad_value(flat.piece, column, row, f"{counts[row]} weights for {lengths[row]} ids of '{flat.column}'")
    values = as_floats(array.flatten(), flat.piece, column)
    return _checked_weights(flat, column, values, offsets_of(lengths))


def _weights_column(flat: _Flat) -> str | None:
    return flat.feature.weights if isinstance(flat.feature, Categorical) else None


def _checked_weights(flat: _Flat, column: str, values: NDArray[np.float64], offsets: I64 | None) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        weights = values.astype(np.float32)
    at = first_true(~np.isfinite(weights))
    if at is not None:
        row = at if offsets is None else int(np.searchsorted(offsets, at, side="right")) - 1
        raise bad_value(flat.piece, column, row, f"the weight {values[at]} is missing or not finite")
    return weights
