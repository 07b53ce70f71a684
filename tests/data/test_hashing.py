"""Ids of strings equal xxh3's, bit for bit, whatever way they are computed."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from satrap.data import NULL_ID, hash_strings

# Values of the xxHash library 0.8 with seed 0. A change of any one would silently orphan every trained row.
GOLDEN = {
    "": 0x2D06800538D394C2,
    "a": 0xE6C632B61E964E1F,
    "68fd1e64": 0x00B0431058060B4D,
    ">50K": 0x5DA985A93445D30B,
    "a longer string than sixteen bytes": 0x327F51481BA014AB,
}


@given(st.lists(st.binary(max_size=40) | st.binary(min_size=120, max_size=300), max_size=60), st.integers(0, 5))
def test_ids_equal_the_xxhash_library(strings: list[bytes], skip: int) -> None:
    array = pa.array(strings, pa.binary()).slice(skip)
    assert hash_strings(array).tolist() == [xxh3_64_intdigest(s) for s in strings[skip:]]


@pytest.mark.parametrize("length", range(34))
def test_every_short_length_equals_the_xxhash_library(length: int) -> None:
    strings = [bytes((7 * i + 31 * j) % 256 for j in range(length)) for i in range(50)]
    assert hash_strings(strings).tolist() == [xxh3_64_intdigest(s) for s in strings]


def test_arrays_longer_than_a_block_are_hashed_whole() -> None:
    strings = [f"{i:x}" for i in range(20_000)]
    assert hash_strings(strings).tolist() == [xxh3_64_intdigest(s.encode()) for s in strings]


@pytest.mark.parametrize(("text", "golden"), list(GOLDEN.items()))
def test_golden_ids(text: str, golden: int) -> None:
    assert hash_strings([text]).tolist() == [golden]


def test_null_id_is_fixed() -> None:
    assert NULL_ID == 0x22D7703BFDABFDF9 == xxh3_64_intdigest(b"satrap: a missing value")


def test_nulls_are_refused() -> None:
    with pytest.raises(ValueError, match="null"):
        hash_strings(pa.array(["a", None]))
