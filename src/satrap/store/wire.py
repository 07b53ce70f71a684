"""Rows as bytes of a message, and ids by the server that owns them (docs/formats/wire.md).

U rows of an array, R rows of a message, D values a row, P partitions, S servers. Functions of one table; each releases
the GIL, runs in the caller's thread, and gives the same bits on every instruction-set level.
"""

from __future__ import annotations

from math import frexp
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from satrap.errors import StoreError
from satrap.schema import WireFormat
from satrap.store import _native

if TYPE_CHECKING:
    from typing_extensions import Buffer

T = TypeVar("T", np.uint64, np.uint8)

HALF_TOO_LARGE = 65520.0
"""Finite values from here on, times the scale, would round to infinity."""
_CODES = {WireFormat.FP32: 0, WireFormat.FP16: 1, WireFormat.INT8: 2}


def fp16_scale(values: NDArray[np.float32], *, least: float = 2.0**-126) -> float:
    """The power of two to send values [U, D] with: the smallest from `least` on with which all of them fit.

    What is not finite has no say. Choose it before rows are divided among servers, and the division changes no bit.
    `least=1` leaves values as they are until one of them reaches 2^15, whichever rows come together.

    >>> fp16_scale(np.array([[3e5, -0.1]], np.float32)), fp16_scale(np.array([[0.5, -0.1]], np.float32), least=1.0)
    (16.0, 1.0)
    """
    _need(values, np.float32, 2, "values")
    largest = _native.largest(values)
    # Zeros fit with any scale; 1 is the plain one.
    return _native.half_scale(largest, least) if largest else max(1.0, least)


def encode_rows(
    values: NDArray[np.float32],
    format: WireFormat,
    scale: float = 1.0,
    *,
    order: NDArray[np.uint32] | None = None,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Rows of values [U, D] as the bytes of a message: row i is row order[i], or row i.

    `scale` is for fp16 (`fp16_scale`); 1 in the other formats. `out`: bytes to write to, as many as
    `format.section_bytes(R, D)`; None: new ones. A row that holds NaN or infinity arrives with one: whole rows of NaN
    in int8.

    Raises StoreError where a finite value is too large for fp16 at this scale, or an argument does not fit.

    >>> rows = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
    >>> data = encode_rows(rows, WireFormat.FP16, order=np.array([2, 0], np.uint32))
    >>> back = np.empty((2, 2), np.float32)
    >>> decode_rows(data, 2, 2, WireFormat.FP16, 1.0, back)
    >>> back.tolist()
    [[5.0, 6.0], [1.0, 2.0]]
    """
    _need(values, np.float32, 2, "values")
    rows = values.shape[0]
    if order is not None:
        _need(order, np.uint32, 1, "order")
        rows = order.size
    if out is None:
        out = np.empty(format.section_bytes(rows, values.shape[1]), np.uint8)
    else:
        _need(out, np.uint8, 1, "out")
    _check_scale(format, scale)
    largest = _encoded(values, format, scale, order, out)
    if largest >= HALF_TOO_LARGE * scale:
        raise StoreError(f"encode_rows: scale {scale} is too small for fp16; values reach {largest}")
    return out


def encode_fitted(
    values: NDArray[np.float32], format: WireFormat, out: NDArray[np.uint8], *, least: float, guess: float
) -> float:
    """`encode_rows` with the scale that `fp16_scale` would choose, which it returns; 1 in the other formats.

    A right `guess`, a power of two, saves a pass over the values; it never changes the result.

    >>> out = np.empty(4, np.uint8)
    >>> encode_fitted(np.array([[3e5, -0.1]], np.float32), WireFormat.FP16, out, least=1.0, guess=1.0)
    16.0
    """
    if format is not WireFormat.FP16:
        encode_rows(values, format, out=out)
        return 1.0
    _need(values, np.float32, 2, "values")
    _need(out, np.uint8, 1, "out")
    _check_scale(format, guess)
    largest = _encoded(values, format, guess, None, out)
    scale = _native.half_scale(largest, least) if largest else max(1.0, least)
    if scale != guess:
        _encoded(values, format, scale, None, out)
    return scale


def _encoded(
    values: NDArray[np.float32],
    format: WireFormat,
    scale: float,
    order: NDArray[np.uint32] | None,
    out: NDArray[np.uint8],
) -> float:
    try:
        return _native.encode_rows(values, _CODES[format], scale, order, out)
    except (ValueError, TypeError) as e:
        raise StoreError(f"encode_rows: {e}") from e


def decode_rows(
    buffer: Buffer,
    rows: int,
    dim: int,
    format: WireFormat,
    scale: float,
    out: NDArray[np.float32],
    positions: NDArray[np.uint32] | None = None,
) -> None:
    """The inverse of `encode_rows`: row i of the message becomes row positions[i] of out [U, D], or row i.

    The buffer may lie at any address. Raises StoreError, with nothing written, where a length or a position does not
    fit.
    """
    _need(out, np.float32, 2, "out")
    if positions is not None:
        _need(positions, np.uint32, 1, "positions")
    if out.shape[1] != dim:
        raise StoreError(f"decode_rows: rows of dim {dim} into an array of dim {out.shape[1]}")
    _check_scale(format, scale)
    try:
        _native.decode_rows(np.frombuffer(memoryview(buffer), np.uint8), rows, _CODES[format], scale, out, positions)
    except (ValueError, TypeError) as e:
        raise StoreError(f"decode_rows: {e}") from e


def route(
    ids: NDArray[np.uint64], partition_bits: int, owners: NDArray[np.uint16], servers: int
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Groups ids [U] by server: (order [U], counts [S]). `owners` [P]: server of each of the 2^partition_bits
    partitions, which are those of `Store`.

    The first counts[0] positions in `order` are those of server 0's ids, as they stand in `ids`, and so on.

    >>> order, counts = route(np.arange(9, dtype=np.uint64), 2, np.array([0, 1, 1, 1], np.uint16), servers=2)
    >>> order.tolist(), counts.tolist()
    ([0, 2, 5, 1, 3, 4, 6, 7, 8], [3, 6])
    """
    _need(ids, np.uint64, 1, "ids")
    _need(owners, np.uint16, 1, "owners")
    try:
        return _native.route(ids, partition_bits, owners, servers)
    except (ValueError, TypeError) as e:
        raise StoreError(f"route: {e}") from e


def gather(array: NDArray[T], order: NDArray[np.uint32], out: NDArray[T] | None = None) -> NDArray[T]:
    """[R] elements of ids or versions [U] in this order: out[i] = array[order[i]]."""
    _need(order, np.uint32, 1, "order")
    if out is None:
        out = np.empty(order.size, array.dtype)
    _move(_native.gather, array, order, out)
    return out


def scatter(array: NDArray[T], positions: NDArray[np.uint32], out: NDArray[T]) -> None:
    """The inverse of `gather`: out[positions[i]] = array[i]."""
    _need(positions, np.uint32, 1, "positions")
    _move(_native.scatter, array, positions, out)


def _move(move: object, array: NDArray[T], indices: NDArray[np.uint32], out: NDArray[T]) -> None:
    # Compared as dtypes: ids from native code may have another class of the same 64 bits.
    dtype = np.uint64 if array.dtype == np.uint64 else np.uint8
    if array.dtype != dtype:
        raise StoreError(f"elements must be uint64 or uint8, got {array.dtype}")
    _need(array, dtype, 1, "the array")
    _need(out, dtype, 1, "out")
    try:
        move(array, indices, out)  # type: ignore[operator]
    except (ValueError, TypeError) as e:
        raise StoreError(str(e)) from e


def _check_scale(format: WireFormat, scale: float) -> None:
    if scale != 1.0 and format is not WireFormat.FP16:
        raise StoreError(f"{format.value} has no scale of its own, got {scale}")
    if not 2.0**-126 <= scale <= 2.0**127 or frexp(scale)[0] != 0.5:
        raise StoreError(f"a scale must be a power of two, 2^-126 to 2^127, got {scale}")


def _need(x: object, dtype: type[np.generic], dims: int, what: str) -> None:
    """Refuses what the native core would otherwise convert to a copy behind the caller's back."""
    if not isinstance(x, np.ndarray) or x.dtype != dtype or x.ndim != dims or not x.flags.c_contiguous:
        got = f"{x.dtype} of {x.ndim} dimensions" if isinstance(x, np.ndarray) else type(x).__name__
        raise StoreError(f"{what} must be a contiguous {np.dtype(dtype).name} array of {dims} dimensions, got {got}")
