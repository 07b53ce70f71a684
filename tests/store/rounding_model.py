"""Row formats in plain numpy: what the native table stores, bit for bit, and the random bits that it draws.

R rows, D values a row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from satrap.schema import ValueFormat

F32 = np.float32
U32 = np.uint32


def decode(form: ValueFormat, stored: NDArray[Any]) -> NDArray[np.float32]:
    """Stored rows, as they are exported, to [R, D]."""
    if form is ValueFormat.BF16:
        return (stored.astype(U32) << U32(16)).view(F32)
    if form is ValueFormat.INT8:
        scale = np.ascontiguousarray(stored[:, :4]).view(F32)
        return stored[:, 4:].view(np.int8).astype(F32) * scale
    return stored.astype(F32)


def scales(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """[R, 1] of int8 rows: a 127th of the largest magnitude, rounded up to 3 bits of mantissa."""
    exact = (np.abs(values).max(axis=1, keepdims=True) / F32(127)).astype(F32)
    up = ((exact.view(U32) + U32(0xFFFFF)) & ~U32(0xFFFFF)).view(F32)
    return np.where(exact < F32(2.0**-119), F32(0), up)


def encode(form: ValueFormat, values: NDArray[np.float32], draws: NDArray[np.uint32] | None) -> NDArray[Any]:
    """[R, D] to stored rows; `draws` [R, D]: 32 random bits a value, None: to the nearest, ties to even."""
    bits = values.view(U32)
    if form is ValueFormat.FP32:
        return values
    if form is ValueFormat.FP16:
        return values.astype(np.float16) if draws is None else _half(values, draws)
    if form is ValueFormat.BF16:
        low = U32(0x7FFF) + ((bits >> U32(16)) & U32(1)) if draws is None else draws & U32(0xFFFF)
        return ((bits + low) >> U32(16)).astype(np.uint16)
    scale = scales(values)
    x = values / np.where(scale == 0, F32(1), scale)
    if draws is None:
        codes = np.rint(x)
    else:
        codes = np.floor(x + ((draws >> U32(16)).astype(F32) * F32(2.0**-16) + F32(2.0**-17)))
    codes = np.where(scale == 0, F32(0), np.clip(codes, -127, 127))
    return np.concatenate([scale.view(np.uint8).reshape(-1, 4), codes.astype(np.int8).view(np.uint8)], axis=1)


def _half(values: NDArray[np.float32], draws: NDArray[np.uint32]) -> NDArray[np.float16]:
    """By exact arithmetic: the fraction that is cut off, in units of the last place, against the random number."""
    x = np.abs(values.astype(np.float64))
    exponent = np.maximum(np.floor(np.log2(np.where(x == 0, 1.0, x))), -14)
    unit = 2.0 ** (exponent - 10)
    small = x < 2.0**-14
    # As many random bits as are cut off; below the normal numbers, as many as are looked at.
    at, spread = np.where(small, draws & U32(0xFFFFF), draws & U32(0x1FFF)), np.where(small, 2.0**20, 2.0**13)
    units = np.floor(np.floor(x / unit * spread) / spread + at / spread)
    return (np.sign(values) * units * unit).astype(np.float16)


def step(form: ValueFormat, values: NDArray[np.float32]) -> NDArray[np.float64]:
    """[R, D] the distance of neighbouring numbers of a format around each value."""
    if form is ValueFormat.INT8:
        return np.broadcast_to(scales(values), values.shape).astype(np.float64)
    digits, least = (10, -24.0) if form is ValueFormat.FP16 else (7, -133.0)
    exponent = np.floor(np.log2(np.abs(np.where(values == 0, F32(1e-30), values)).astype(np.float64)))
    return np.asarray(2.0 ** np.maximum(exponent - digits, least))


def mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The store's bijection of 64-bit numbers."""
    s, k = np.uint64(32), np.uint64(0xD6E8FEB86659FD93)
    for _ in range(2):
        x = (x ^ (x >> s)) * k
    return x ^ (x >> s)


def draws_of(
    key: int, ids: NDArray[np.uint64], versions: NDArray[np.uint8], gradients: NDArray[np.float32]
) -> NDArray[np.uint32]:
    """[R, D] the random bits of one update of rows: of the table's key, id, version and first gradient."""
    with np.errstate(over="ignore"):
        first = np.ascontiguousarray(gradients[:, 0]).view(U32).astype(np.uint64)
        made = mix(mix(np.uint64(key) + mix(ids)) + ((versions.astype(np.uint64) << np.uint64(32)) | first))
        low, high = (made & np.uint64(0xFFFFFFFF)).astype(U32)[:, None], (made >> np.uint64(32)).astype(U32)[:, None]
        x = low + np.arange(gradients.shape[1], dtype=U32) * U32(0x9E3779B9)
        x = (x ^ (x >> U32(16))) * U32(0x21F0AAAD)
        x = (x ^ (x >> U32(15)) ^ high) * U32(0x735A2D97)
        return x ^ (x >> U32(15))
