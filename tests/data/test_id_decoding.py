"""Columns to ids: integers whole, text hashed, lists with nulls, weights; every option tried."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from data_reference import MISSING, expected_ids, job_of, rows_in, whole_epoch, write
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from satrap.data import NULL_ID, Batch, Jagged
from satrap.data.ids import Dictionaries, decode_ids
from satrap.data.source import Piece
from satrap.errors import DataError
from satrap.schema import Categorical, Sequence

LISTS = st.none() | st.lists(st.none() | st.text("abc", max_size=3), max_size=7)


def decode(feature: Categorical | Sequence, columns: dict[str, pa.Array]) -> Jagged:
    piece = Piece(pa.record_batch(columns), "a.parquet", 100, 0, 0, True)
    return decode_ids(feature, piece, Dictionaries())


def lists_of(jagged: Jagged) -> list[tuple[tuple[int, ...], tuple[float, ...] | None]]:
    assert jagged.offsets is not None
    pairs = zip(jagged.offsets[:-1].tolist(), jagged.offsets[1:].tolist(), strict=True)
    return [
        (tuple(jagged.values[a:b].tolist()), None if jagged.weights is None else tuple(jagged.weights[a:b].tolist()))
        for a, b in pairs
    ]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(LISTS, min_size=1, max_size=12),
    st.sampled_from(["id", "empty"]),
    st.none() | st.integers(1, 4),
    st.booleans(),
    st.sampled_from([pa.list_(pa.string()), pa.large_list(pa.large_string()), pa.list_(pa.binary())]),
    st.integers(0, 3),
)
def test_lists_with_nulls_decode_as_by_the_plain_reader(
    lists: list[Any], missing: Any, limit: int | None, weighted: bool, kind: pa.DataType, skip: int
) -> None:
    feature = Categorical(name="f", missing=missing, max_length=limit, weights="w" if weighted else None)
    weights = [None if x is None else [float(i) / 4 for i in range(len(x))] for x in lists]
    columns = {"f": pa.array(lists, kind).slice(skip), "w": pa.array(weights, pa.list_(pa.float32())).slice(skip)}
    rows = [{"f": f, "w": w} for f, w in zip(lists[skip:], weights[skip:], strict=True)]
    assert lists_of(decode(feature, columns)) == [expected_ids(feature, row) for row in rows]
    sequence = Sequence(name="f", missing=missing, max_length=limit or 3)
    assert lists_of(decode(sequence, columns)) == [expected_ids(sequence, row) for row in rows]


def test_nulls_under_a_null_list_do_not_leak_into_the_next_row() -> None:
    # Arrow allows a null list to span elements; reading offsets alone would hand them to a neighbour.
    offsets, values = pa.array([0, 2, 4, 5], pa.int32()), pa.array([1, 2, 3, 4, 5])
    lists = pa.ListArray.from_arrays(offsets, values, mask=pa.array([False, True, False]))
    jagged = decode(Categorical(name="f"), {"f": lists})
    assert lists_of(jagged) == [((1, 2), None), ((NULL_ID,), None), ((5,), None)]


@pytest.mark.parametrize(
    "kind", [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]
)
def test_integers_of_every_width_are_kept_whole(kind: pa.DataType) -> None:
    info = np.iinfo(str(kind))
    values = [info.min, info.max, 0, 1]
    expected = [v % 2**64 for v in values]
    assert decode(Categorical(name="f"), {"f": pa.array(values, kind)}).values.tolist() == expected
    # With a null the column goes another way, in which pandas-like readers turn integers to floats and lose digits.
    with_null = decode(Categorical(name="f"), {"f": pa.array([*values, None], kind)}).values.tolist()
    assert with_null == [*expected, NULL_ID]
    encoded = pa.array(values, kind).dictionary_encode()
    assert decode(Categorical(name="f"), {"f": encoded}).values.tolist() == expected


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary()])
def test_text_of_every_arrow_type_gives_the_same_ids(kind: pa.DataType) -> None:
    words = ["a", "", None, "München", "a", "a rather long string, beyond the vector part"]
    array = pa.array([None if w is None else w.encode() for w in words], pa.binary()).cast(kind)
    expected = [MISSING if w is None else xxh3_64_intdigest(w.encode()) for w in words]
    assert decode(Categorical(name="f"), {"f": array}).values.tolist() == expected


def test_bools_are_zero_and_one() -> None:
    jagged = decode(Categorical(name="f"), {"f": pa.array([True, False, None])})
    assert jagged.values.tolist() == [1, 0, NULL_ID]


def test_dictionary_with_null_entries_and_sliced_indices() -> None:
    dictionary = pa.array(["a", None, "b"])
    array = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2, None, 0], pa.int8()), dictionary).slice(1)
    expected = [MISSING, xxh3_64_intdigest(b"b"), MISSING, xxh3_64_intdigest(b"a")]
    assert decode(Categorical(name="f"), {"f": array}).values.tolist() == expected


def test_column_of_nulls_alone_is_all_missing() -> None:
    columns = {"f": pa.nulls(3)}
    assert decode(Categorical(name="f"), columns).values.tolist() == [NULL_ID] * 3
    empty = decode(Categorical(name="f", missing="empty"), columns)
    assert (empty.values.tolist(), empty.offsets.tolist()) == ([], [0, 0, 0, 0])  # type: ignore[union-attr]


def test_dictionaries_of_one_column_that_differ_are_not_confused() -> None:
    # Ids of the last dictionary are remembered; an equally long other one must not get them.
    known = Dictionaries()
    for words in (["a", "b"], ["c", "d"], ["a", "b"]):
        piece = Piece(pa.record_batch({"f": pa.array(words)}), "", 0, 0, 0, True)
        expected = [xxh3_64_intdigest(w.encode()) for w in words]
        assert decode_ids(Categorical(name="f"), piece, known).values.tolist() == expected


def test_buckets_number_the_intervals_and_a_boundary_belongs_to_the_upper_one() -> None:
    feature = Categorical(name="f", buckets=(0.0, 10.0))
    values = pa.array([-1.0, 0.0, 9.99, 10.0, float("inf"), -float("inf"), float("nan"), None])
    assert decode(feature, {"f": values}).values.tolist() == [0, 1, 1, 2, 2, 0, NULL_ID, NULL_ID]
    lists = decode(Categorical(name="f", buckets=(5.0,), missing="empty"), {"f": pa.array([[1, 9, None], None, []])})
    assert lists_of(lists) == [((0, 1), None), ((), None), ((), None)]


@pytest.mark.parametrize(
    ("values", "row"),
    [(pa.array(["a", None]), 101), (pa.array([["a"], ["b", None]]), 101), (pa.array([["a"], [], None]), 102)],
)
def test_missing_error_names_file_column_row_and_feature(values: pa.Array, row: int) -> None:
    with pytest.raises(DataError) as caught:
        decode(Categorical(name="f", column="c", missing="error"), {"c": values})
    for part in ("a.parquet", "'c'", f"row {row}", "features.f"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("ids", "weights", "message"),
    [
        ([["a"], ["b", "c"]], [[1.0], [1.0]], "row 101 (the first is 0): 1 weights for 2 ids of 'f'"),
        ([["a"], ["b"]], [[1.0], None], "row 101 (the first is 0): 0 weights for 1 ids"),
        ([["a"], [], ["b", "c"]], [[1.0], [], [1.0, float("nan")]], "row 102 (the first is 0): the weight nan"),
        ([["a"]], [[None]], "row 100 (the first is 0): the weight nan is missing"),
        (["a", "b"], [1.0, float("inf")], "row 101 (the first is 0): the weight inf"),
        ([["a"]], [1.0], "holds single values, but 'f' has lists"),
        (["a"], [[1.0]], "holds lists, but 'f' has one id a row"),
    ],
)
def test_weights_that_do_not_go_with_the_ids_are_refused(ids: Any, weights: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        decode(Categorical(name="f", weights="w"), {"f": pa.array(ids), "w": pa.array(weights)})
    assert message in str(caught.value)
    assert "column 'w'" in str(caught.value)


def test_single_values_have_single_weights() -> None:
    columns = {"f": pa.array([7, 8, None]), "w": pa.array([0.5, 2, 1])}
    jagged = decode(Categorical(name="f", weights="w"), columns)
    assert jagged.offsets is None
    assert jagged.weights is not None
    assert jagged.weights.tolist() == [0.5, 2, 1]
    dropped = decode(Categorical(name="f", weights="w", missing="empty"), columns)
    assert lists_of(dropped) == [((7,), (0.5,)), ((8,), (2.0,)), ((), ())]


def test_features_that_share_a_column_decode_it_each_their_own_way(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"c": [["a", "b", "c"], None], "y": [0, 1]})
    job = job_of(
        Categorical(name="bag", column="c"),
        Sequence(name="last", column="c", max_length=1),
        Categorical(name="strict", column="c", max_length=2, missing="empty"),
    )
    a, b, c = (xxh3_64_intdigest(x) for x in (b"a", b"b", b"c"))
    ids = [[x for x, _ in row[0]] for row in rows_in([whole_epoch(job, path)])]
    assert ids == [[(a, b, c), (c,), (a, b)], [(MISSING,), (), ()]]


def test_strings_read_the_same_whether_the_file_stored_dictionaries_or_not(tmp_path: Path) -> None:
    # More distinct strings than a dictionary page holds: the file falls back to plain pages in the middle of a group.
    words = [f"key-{i % 7000}" for i in range(20_000)]
    table = {"f": words, "l": [[w] for w in words], "y": [0] * len(words)}
    options: list[dict[str, Any]] = [{}, {"use_dictionary": False}, {"dictionary_pagesize_limit": 4096}]
    batches: list[Batch] = []
    for i, option in enumerate(options):
        path = write(tmp_path / f"{i}.parquet", table, **option)
        batches.append(whole_epoch(job_of(Categorical(name="f"), Categorical(name="l")), path))
    expected = [xxh3_64_intdigest(w.encode()) for w in words]
    for batch in batches:
        assert batch.ids["f"].values.tolist() == expected
        assert batch.ids["l"].values.tolist() == expected
