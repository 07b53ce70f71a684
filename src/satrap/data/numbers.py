"""Numbers: columns to float values, with nulls and NaN marked; the transforms of numeric features.

R rows of a piece, w values a row.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat
from numpy.typing import NDArray

from satrap.data.columns import is_list_type
from satrap.data.source import Piece
from satrap.errors import DataError
from satrap.schema import Numeric

F64 = NDArray[np.float64]

_SPELLED_MISSING = ("", "NA", "N/A", "n/a", "na", "NULL", "null", "None", "none", "\\N")


def bad_value(piece: Piece, column: str, row: int, message: str) -> DataError:
    """The error for a value: where it stands, and what is wrong with it. `row` counts within the piece."""
    return DataError(f"{piece.file}: column '{column}', row {piece.file_row + row} (the first is 0): {message}")


def first_true(mask: NDArray[np.bool_]) -> int | None:
    """Index of the first True, or None.

    >>> first_true(np.array([False, True, True])), first_true(np.array([False]))
    (1, None)
    """
    if not mask.any():
        return None
    return int(mask.argmax())


def as_floats(array: pa.Array, piece: Piece, column: str) -> F64:
    """The single values of a column [R] as float64, NaN where null. Text of an untyped piece is parsed."""
    if piece.untyped:
        return _parsed(array, piece, column)
    if pat.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    if not pat.is_float64(array.type):
        array = array.cast(pa.float64(), safe=False)
    values: F64 = array.to_numpy(zero_copy_only=False)
    return values


def _parsed(array: pa.Array, piece: Piece, column: str) -> F64:
    if pat.is_dictionary(array.type):
        array = array.cast(pa.string())
    text = pc.utf8_trim_whitespace(array)
    missing = pc.is_in(text, value_set=pa.array(_SPELLED_MISSING))
    text = pc.if_else(missing, pa.scalar(None, pa.string()), text)
    try:
        values: F64 = text.cast(pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        for row, spelled in enumerate(text.to_pylist()):
            if spelled is not None and not _is_number(spelled):
                raise bad_value(piece, column, row, f"'{spelled}' is not a number") from None
        raise
    return values


def _is_number(spelled: str) -> bool:
    try:
        pa.scalar(spelled).cast(pa.float64())
    except pa.ArrowInvalid:
        return False
    return True


def fixed_lists(array: pa.Array, width: int, piece: Piece, column: str) -> F64:
    """Lists of `width` numbers as float64 [R, width]; a null list is a row of NaN. DataError on other lengths."""
    lengths = pc.list_value_length(array)
    null = np.asarray(lengths.is_null())
    counts = lengths.fill_null(width).to_numpy(zero_copy_only=False)
    wrong = first_true(counts != width)
    if wrong is not None:
        raise bad_value(piece, column, wrong, f"the list has {counts[wrong]} numbers; the feature's width is {width}")
    flat = as_floats(array.flatten(), piece, column)
    if not null.any():
        return flat.reshape(-1, width)
    values = np.full((len(array), width), np.nan)
    values[~null] = flat.reshape(-1, width)
    return values


_TRANSFORMS: dict[str, Callable[[F64], F64]] = {
    "none": lambda x: x,
    "log": lambda x: np.copysign(np.log1p(np.abs(x)), x),
    "sqrt": lambda x: np.copysign(np.sqrt(np.abs(x)), x),
}


def transformed(feature: Numeric, array: pa.Array, piece: Piece, column: str) -> F64:
    """A numeric feature's values [R, w] after `transform` and before `scale`, NaN or infinite where missing."""
    if is_list_type(array.type):
        values = fixed_lists(array, feature.width, piece, column)
    else:
        values = as_floats(array, piece, column)[:, None]
        if feature.width != 1 and len(values):  # a column of nulls has no list type
            values = np.full((len(values), feature.width), np.nan)
    return _TRANSFORMS[feature.transform](values)


def fill_numeric(feature: Numeric, piece: Piece, column: str, out: NDArray[np.float32]) -> None:
    """Writes a feature's values, and its indicator where it has one, into its columns [R, w (+ 1)] of a block."""
    array = piece.columns.column(column)
    plain = feature.transform == "none" and feature.scale == "none" and feature.width == 1
    if plain and pat.is_float32(array.type) and array.null_count == 0:
        values = array.to_numpy()
        if np.isfinite(values).all():
            out[:, 0] = values
            out[:, 1:] = 0.0
            return
    values = transformed(feature, array, piece, column)
    missing = ~np.isfinite(values)
    if feature.missing == "error" and missing.any():
        row = int(np.argmax(missing.any(axis=1)))
        shown = array[row].as_py()
        raise bad_value(
            piece, column, row, f"{shown} is missing or not finite, and features.{feature.name} says missing: error"
        )
    if feature.scale == "standard":
        assert feature.mean is not None
        assert feature.std is not None
        values = (values - feature.mean) / feature.std
    if missing.any():
        values = np.where(missing, feature.fill, values)
    width = feature.width
    with np.errstate(over="ignore"):
        out[:, :width] = values
    large = ~np.isfinite(out[:, :width])
    if large.any():
        row = int(np.argmax(large.any(axis=1)))
        raise bad_value(
            piece,
            column,
            row,
            f"{array[row].as_py()} does not fit 32-bit floats; features.{feature.name} could use transform: log",
        )
    if feature.indicator:
        out[:, width] = missing.any(axis=1)
