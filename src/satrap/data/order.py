"""Where each row goes: permutations and the validation split, each a pure function of a key.

The bits come from splitmix64 (Steele, Lea and Flood 2014) and a stable sort, not from a library's generator, so a
position saved today names the same rows under any later version of numpy.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 0xFFFFFFFFFFFFFFFF
_BLOCK_ROWS = 16_384
"""Rows hashed at a time: temporaries stay in the cache."""


class Purpose(IntEnum):
    """What a key is for, so that two uses of one seed never share their bits. Values are part of saved positions."""

    ROW_GROUPS = 1
    ROWS = 2
    SPLIT = 3


def key(purpose: Purpose, seed: int, *more: int) -> int:
    """A 64-bit key of a seed and further numbers; any change of one of them gives unrelated bits."""
    state = 0
    for part in (int(purpose), seed, *more):
        state = _mixed((state ^ (part & _MASK)) + _GOLDEN & _MASK)
    return state


def _mixed(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK
    return x ^ (x >> 31)


def _random(stream: int, first: int, count: int) -> U64:
    """Elements first … first + count of the stream of random 64-bit numbers that belongs to a key."""
    start = (stream + first * _GOLDEN) & _MASK
    x = np.arange(count, dtype=np.uint64)
    x *= np.uint64(_GOLDEN)
    x += np.uint64(start)
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def permutation(count: int, stream: int) -> NDArray[np.int64]:
    """The order [count] that a key gives: a stable sort of 32 random bits each, as two radix passes of 16.

    >>> permutation(6, key(Purpose.ROWS, 0, 0, 0)).tolist()
    [2, 0, 5, 3, 1, 4]
    """
    low, high = np.empty(count, np.uint16), np.empty(count, np.uint16)
    for a in range(0, count, _BLOCK_ROWS):
        b = min(a + _BLOCK_ROWS, count)
        halves = _random(stream, a, b - a).astype("<u8", copy=False).view("<u2").reshape(-1, 4)
        low[a:b], high[a:b] = halves[:, 0], halves[:, 3]
    order = np.argsort(low, kind="stable")
    return order[np.argsort(high[order], kind="stable")]


def held_out(seed: int, first_row: int, count: int, fraction: float) -> NDArray[np.bool_]:
    """Which of the rows first_row … first_row + count of the dataset, in file order, belong to the validation part."""
    threshold = np.uint64(min(int(fraction * 2.0**64), _MASK))
    stream = key(Purpose.SPLIT, seed)
    held = np.empty(count, np.bool_)
    for a in range(0, count, _BLOCK_ROWS):
        b = min(a + _BLOCK_ROWS, count)
        np.less(_random(stream, first_row + a, b - a), threshold, out=held[a:b])
    return held


class HeldOut:
    """How many rows of a dataset's stretches belong to the validation part. Reads every row's hash once."""

    def __init__(self, seed: int, rows: int, fraction: float) -> None:
        self.rows = rows
        self._seed, self._fraction = seed, fraction
        starts = range(0, rows, _BLOCK_ROWS)
        blocks = [self._count(a, min(a + _BLOCK_ROWS, rows)) for a in starts]
        self._before = np.concatenate([[0], np.cumsum(blocks, dtype=np.int64)])

    def _count(self, first: int, stop: int) -> int:
        return int(np.count_nonzero(held_out(self._seed, first, stop - first, self._fraction)))

    def _until(self, row: int) -> int:
        block = row // _BLOCK_ROWS
        return int(self._before[block]) + self._count(block * _BLOCK_ROWS, row)

    def between(self, first: int, stop: int) -> int:
        """Those of the rows first … stop, in file order.

        >>> HeldOut(7, 100_060, 0.1).between(100_000, 100_060)
        1
        """
        return self._until(stop) - self._until(first)
