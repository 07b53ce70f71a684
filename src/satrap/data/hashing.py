"""Strings to 64-bit ids: xxh3 with seed 0, of many strings at once.

N strings. The algorithm is XXH3_64bits of the xxHash specification; the ids equal the `xxhash` package's bit for bit.
Strings of up to 16 bytes, the usual length of an id, are hashed a whole array at a time in numpy, which lets go of the
GIL, so hashing in a background thread never holds up training. Longer ones go one by one to the `xxhash` package.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]

NULL_ID = 0x22D7703BFDABFDF9
"""The id of a missing value where a feature says `missing: id`; xxh3 of b"satrap: a missing value", fixed for ever."""

_VECTOR_BYTES_MAX = 16
"""Longest string hashed in numpy; the specification's short inputs end here."""

_BLOCK_STRINGS = 8192
"""Strings hashed at a time: their temporaries stay in the second-level cache."""

# Words of the specification's default secret, as the short inputs combine them (byte offsets in the comments).
_FLIP_1_3 = np.uint64(0xBE4BA423 ^ 0x396CFEB8)  # 0 and 4, four bytes each; the lower one keeps the xor's low half
_FLIP_4_8 = np.uint64(0x1CAD21F72C81017C ^ 0xDB979083E96DD4DE)  # 8 and 16
_FLIP_9_16_LOW = np.uint64(0x1F67B3B7A4A44072 ^ 0x78E5C0CC4EE679CB)  # 24 and 32
_FLIP_9_16_HIGH = np.uint64(0x2172FFCC7DD05A82 ^ 0x8E2443F7744608B8)  # 40 and 48

_PRIME64_2 = np.uint64(0xC2B2AE3D27D4EB4F)
_PRIME64_3 = np.uint64(0x165667B19E3779F9)
_PRIME_MX1 = np.uint64(0x165667919E3779F9)
_PRIME_MX2 = np.uint64(0x9FB21C651E98DF25)
_LOW_32 = np.uint64(0xFFFFFFFF)


def hash_strings(strings: pa.Array | Sequence[str | bytes]) -> U64:
    """The ids [N] of N strings or byte strings; text is hashed as its UTF-8 bytes.

    Every string given is hashed: give distinct ones (a dictionary) where values repeat. Thread-safe.
    Raises ValueError for a null: it has no bytes to hash.

    >>> [hex(i) for i in hash_strings(["", "a", "a longer string than sixteen bytes"])]
    ['0x2d06800538d394c2', '0xe6c632b61e964e1f', '0x327f51481ba014ab']
    """
    array = strings if isinstance(strings, pa.Array) else pa.array(strings)
    if len(array) == 0:
        return np.empty(0, np.uint64)
    if array.null_count:
        raise ValueError("a null has no bytes to hash")
    array = array.cast(pa.large_binary())
    _, offsets_buffer, bytes_buffer = array.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int64, len(array) + 1, array.offset * 8)
    content = np.frombuffer(bytes_buffer, np.uint8) if bytes_buffer is not None else np.empty(0, np.uint8)
    lengths = np.diff(offsets)
    ids = np.empty(len(lengths), np.uint64)
    for a in range(0, len(ids), _BLOCK_STRINGS):
        b = min(a + _BLOCK_STRINGS, len(ids))
        ids[a:b] = _hash_block(content, offsets[a : b + 1], lengths[a:b])
    return ids


def _hash_block(content: NDArray[np.uint8], offsets: I64, lengths: I64) -> U64:
    data, starts = _Bytes(content, offsets), offsets[:-1]
    if lengths.min() >= 4 and lengths.max() <= 8:  # one class for all, as with Criteo's eight hex digits
        return _hash_4_to_8(data, starts, lengths)
    ids = np.empty(len(lengths), np.uint64)
    ids[lengths == 0] = np.uint64(xxh3_64_intdigest(b""))
    for low, high, hash_class in ((1, 3, _hash_1_to_3), (4, 8, _hash_4_to_8), (9, 16, _hash_9_to_16)):
        at = np.flatnonzero((lengths >= low) & (lengths <= high))
        if len(at):
            ids[at] = hash_class(data, starts[at], lengths[at])
    at = np.flatnonzero(lengths > _VECTOR_BYTES_MAX)
    if len(at):
        view = content.data
        bounds = zip(starts[at].tolist(), offsets[at + 1].tolist(), strict=True)
        ids[at] = np.fromiter((xxh3_64_intdigest(view[a:b]) for a, b in bounds), np.uint64, len(at))
    return ids


class _Bytes:
    """Little-endian words at any byte of a buffer, read from its aligned words."""

    def __init__(self, content: NDArray[np.uint8], offsets: I64) -> None:
        first, last = int(offsets[0]), int(offsets[-1])
        padded = np.zeros((last - first + 7) // 8 * 8 + 16, np.uint8)
        padded[: last - first] = content[first:last]
        self._words = padded.view("<u8")
        self._first = first

    def word(self, at: I64) -> U64:
        """The eight bytes from each offset on (what lies behind the end of the buffer reads as 0)."""
        at = at - self._first
        index = at >> 3
        shift = ((at & 7) << 3).view(np.uint64)
        # The second word moves by two shifts, because one by 64 is undefined.
        word: U64 = (self._words[index] >> shift) | (
            (self._words[index + 1] << np.uint64(1)) << (np.uint64(63) - shift)
        )
        return word


def _hash_1_to_3(data: _Bytes, starts: I64, lengths: I64) -> U64:
    word = data.word(starts)
    size = lengths.view(np.uint64)

    def shifted(index: U64) -> U64:
        byte: U64 = (word >> (index << np.uint64(3))) & np.uint64(0xFF)
        return byte

    first, middle, last = word & np.uint64(0xFF), shifted(size >> np.uint64(1)), shifted(size - np.uint64(1))
    x: U64 = (first << np.uint64(16)) | (middle << np.uint64(24)) | last | (size << np.uint64(8))
    x ^= _FLIP_1_3
    x ^= x >> np.uint64(33)
    x *= _PRIME64_2
    x ^= x >> np.uint64(29)
    x *= _PRIME64_3
    x ^= x >> np.uint64(32)
    return x


def _hash_4_to_8(data: _Bytes, starts: I64, lengths: I64) -> U64:
    head = data.word(starts) & _LOW_32
    tail = data.word(starts + lengths - 4) & _LOW_32
    x: U64 = (tail + (head << np.uint64(32))) ^ _FLIP_4_8
    x ^= _rotated(x, 49) ^ _rotated(x, 24)
    x *= _PRIME_MX2
    x ^= (x >> np.uint64(35)) + lengths.view(np.uint64)
    x *= _PRIME_MX2
    x ^= x >> np.uint64(28)
    return x


def _hash_9_to_16(data: _Bytes, starts: I64, lengths: I64) -> U64:
    low = data.word(starts) ^ _FLIP_9_16_LOW
    high = data.word(starts + lengths - 8) ^ _FLIP_9_16_HIGH
    x: U64 = lengths.view(np.uint64) + low.byteswap() + high + _folded_product(low, high)
    x ^= x >> np.uint64(37)
    x *= _PRIME_MX1
    x ^= x >> np.uint64(32)
    return x


def _rotated(x: U64, bits: int) -> U64:
    rotated: U64 = (x << np.uint64(bits)) | (x >> np.uint64(64 - bits))
    return rotated


def _folded_product(a: U64, b: U64) -> U64:
    """The 128-bit product of a and b, its halves xored."""
    half = np.uint64(32)
    a_low, a_high, b_low, b_high = a & _LOW_32, a >> half, b & _LOW_32, b >> half
    low, mid_a, mid_b, high = a_low * b_low, a_high * b_low, a_low * b_high, a_high * b_high
    cross = (low >> half) + (mid_a & _LOW_32) + mid_b
    upper = (mid_a >> half) + (cross >> half) + high
    lower = (cross << half) | (low & _LOW_32)
    folded: U64 = np.bitwise_xor(upper, lower)
    return folded
