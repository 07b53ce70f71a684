"""Rows as tables store them: their arrays by format, and from one table's formats to another's.

R rows, D values and K words of state a row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satrap.errors import StoreError
from satrap.schema import Table, ValueFormat
from satrap.store import _native
from satrap.store.spec import table_spec

StoredValues = NDArray[np.float32] | NDArray[np.float16] | NDArray[np.uint16] | NDArray[np.uint8]
"""Values of rows, to the bit: float32 [R, D] of fp32 tables, float16 [R, D] of fp16. numpy has no bf16: uint16 [R, D],
the upper halves of float32. int8: uint8 [R, 4 + D], a row's scale (float32, little-endian) and its codes (int8)."""

DTYPES: dict[ValueFormat, Any] = {
    ValueFormat.FP32: np.float32,
    ValueFormat.FP16: np.float16,
    ValueFormat.BF16: np.uint16,
    ValueFormat.INT8: np.uint8,
}
"""Of such an array."""

Convert = Callable[[StoredValues, NDArray[np.float32]], tuple[StoredValues, NDArray[np.float32]]]
"""Values and state [R, K] of rows, to those of the same rows in another table."""


def columns(value_format: ValueFormat, dim: int) -> int:
    """Elements of a row in such an array.

    >>> columns(ValueFormat.BF16, 16), columns(ValueFormat.INT8, 16)
    (16, 20)
    """
    return value_format.row_bytes(dim) // int(np.dtype(DTYPES[value_format]).itemsize)


def state_words(table: Table) -> int:
    """K: words of state a row, as rows are exported. Where updates draw random bits, the last one is the row's count of
    updates, modulo 256, as an integer's bits."""
    return table_spec(table, 0).state_words


def converter(theirs: Table, ours: Table) -> Convert | None:
    """From rows of one table to those of another that differs in format, rounding or its optimizer's state format; None
    where nothing differs that rows are made of.

    Values and moments are rounded to the nearest where `ours` has fewer bits. Raises StoreError where the tables differ
    in dim or in what their optimizers keep.

    >>> from satrap.schema import SGD
    >>> wide = Table(name="t", dim=2, optimizer=SGD())
    >>> narrow = Table(name="t", dim=2, optimizer=SGD(), format=ValueFormat.BF16)
    >>> to = converter(wide, narrow)
    >>> [hex(x) for x in to(np.array([[1.0, -2.0]], np.float32), np.empty((1, 0), np.float32))[0][0]]
    ['0x3f80', '0xc000']
    """
    a, b = table_spec(theirs, 0), table_spec(ours, 0)
    kinds = type(theirs.optimizer), type(ours.optimizer)
    momentum = [getattr(t.optimizer, "momentum", 0.0) > 0 for t in (theirs, ours)]
    if a.dim != b.dim or kinds[0] is not kinds[1] or momentum[0] != momentum[1]:
        raise StoreError(
            f"rows of table '{theirs.name}' (dim {a.dim}, {kinds[0].__name__}, momentum {momentum[0]}) cannot become "
            f"rows of dim {b.dim} with {kinds[1].__name__}, momentum {momentum[1]}"
        )
    states = [getattr(t.optimizer, "state", None) for t in (theirs, ours)]
    if theirs.format is ours.format and states[0] is states[1] and a.state_words == b.state_words:
        return None

    def convert(values: StoredValues, state: NDArray[np.float32]) -> tuple[StoredValues, NDArray[np.float32]]:
        raw = np.ascontiguousarray(values).view(np.uint8).reshape(len(values), a.value_bytes)
        made, words = _native.convert_rows(a, b, raw, np.ascontiguousarray(state))
        return made.view(DTYPES[ours.format]).reshape(len(values), columns(ours.format, b.dim)), words

    return convert
