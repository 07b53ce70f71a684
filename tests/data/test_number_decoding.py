"""Numeric features, labels and sample weights: every option against plain arithmetic, every bad value named."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from data_reference import expected_numbers, job_of, whole_epoch, write
from hypothesis import given, settings
from hypothesis import strategies as st

from satrap.data import Reader
from satrap.data.numbers import fill_numeric
from satrap.data.source import Piece
from satrap.errors import DataError, JobError
from satrap.schema import Categorical, Label, Numeric

NUMBERS = st.none() | st.floats(-1e9, 1e9, width=32) | st.sampled_from([float("nan"), float("inf"), -float("inf")])


def decode(feature: Numeric, array: pa.Array) -> np.ndarray[Any, np.dtype[np.float32]]:
    piece = Piece(pa.record_batch({"x": array}), "a.parquet", 100, 0, 0, True)
    out = np.full((len(array), feature.width + feature.indicator), 77, np.float32)
    fill_numeric(feature, piece, "x", out)
    return out


@settings(max_examples=200, deadline=None)
@given(
    st.lists(NUMBERS, min_size=1, max_size=8),
    st.sampled_from(["none", "log", "sqrt"]),
    st.sampled_from([None, (3.0, 0.5)]),
    st.booleans(),
    st.sampled_from([pa.float32(), pa.float64()]),
)
def test_numbers_decode_as_by_the_plain_reader(
    values: list[Any], transform: Any, scale: tuple[float, float] | None, indicator: bool, kind: pa.DataType
) -> None:
    mean, std = scale or (None, None)
    feature = Numeric(
        name="x",
        transform=transform,
        scale="none" if scale is None else "standard",
        mean=mean,
        std=std,
        fill=-1.5,
        indicator=indicator,
    )
    expected = np.array([expected_numbers(feature, {"x": v}) for v in values], np.float32)
    np.testing.assert_allclose(decode(feature, pa.array(values, kind)), expected, rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.none() | st.lists(NUMBERS, min_size=3, max_size=3), min_size=1, max_size=6), st.booleans())
def test_vectors_decode_as_by_the_plain_reader(values: list[Any], fixed: bool) -> None:
    feature = Numeric(name="x", width=3, transform="log", indicator=True, fill=9.0)
    kind = pa.list_(pa.float64(), 3) if fixed else pa.list_(pa.float64())
    expected = np.array([expected_numbers(feature, {"x": v}) for v in values], np.float32)
    np.testing.assert_allclose(decode(feature, pa.array(values, kind)), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.array([1, None, -3], pa.int16()), [1, 0, -3]),
        (pa.array([True, False, None]), [1, 0, 0]),
        (pa.array([Decimal("1.50"), None]), [1.5, 0]),
        (pa.array([1.5, None], pa.float16()), [1.5, 0]),
        (pa.array([1.0, 2.0, 1.0]).dictionary_encode(), [1, 2, 1]),
        (pa.nulls(2), [0, 0]),
        (pa.array([[4], [5]]), [4, 5]),
        (pa.array([2**53, 1], pa.int64()), [2**53, 1]),
    ],
)
def test_columns_of_many_types_are_numbers(array: pa.Array, expected: list[float]) -> None:
    assert decode(Numeric(name="x"), array)[:, 0].tolist() == expected


def test_vector_of_another_length_is_refused_with_its_row() -> None:
    with pytest.raises(
        DataError, match=r"column 'x', row 101 \(the first is 0\): the list has 1 numbers; .* width is 2"
    ):
        decode(Numeric(name="x", width=2), pa.array([[1.0, 2.0], [3.0]]))


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_missing_error_refuses_nulls_and_what_is_not_finite(value: float | None) -> None:
    with pytest.raises(DataError, match=r"a\.parquet: column 'x', row 102 .* features\.x says missing: error"):
        decode(Numeric(name="x", missing="error"), pa.array([1.0, 2.0, value], pa.float32()))


def test_number_too_large_for_32_bits_is_refused_rather_than_read_as_infinity() -> None:
    with pytest.raises(DataError, match=r"row 101 .*1e\+300 does not fit 32-bit floats"):
        decode(Numeric(name="x"), pa.array([1.0, 1e300]))
    assert decode(Numeric(name="x", transform="log"), pa.array([1e300]))[0, 0] == pytest.approx(690.7755)


def test_numbers_stand_side_by_side_in_job_order_with_indicators_behind_their_feature(tmp_path: Path) -> None:
    table = {"a": [1.0, None], "b": [[2.0, 3.0], [4.0, 5.0]], "c": [6, 7], "y": [0, 1]}
    path = write(tmp_path / "a.parquet", table)
    job = job_of(
        Numeric(name="c"),
        Numeric(name="a", indicator=True, fill=-1),
        Categorical(name="id", column="c"),
        Numeric(name="b", width=2),
    )
    assert whole_epoch(job, path).numeric.tolist() == [[6, 1, 0, 2, 3], [7, -1, 1, 4, 5]]


def test_standard_scale_that_was_not_measured_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"x": [1.0], "y": [0]})
    with pytest.raises(JobError, match=r"features\.x: scale: standard needs its mean and std"):
        Reader(job_of(Numeric(name="x", scale="standard")), path, seed=0, shuffle=False)


def labels_of(tmp_path: Path, values: Any, label: Label | None = None) -> list[float]:
    path = write(tmp_path / "a.parquet", {"x": pa.array(range(len(values))), "y": values}, row_group_size=2)
    job = job_of(Categorical(name="x"), data={"label": (label or Label(column="y"),)})
    return [float(v) for v in whole_epoch(job, path).labels[:, 0]]


@pytest.mark.parametrize(
    ("values", "positive", "expected"),
    [
        ([0, 1, 1], None, [0, 1, 1]),
        ([True, False, True], None, [1, 0, 1]),
        ([0.0, 1.0], None, [0, 1]),
        (["no", "yes", "no"], "yes", [0, 1, 0]),
        ([1, 2, 3], 2, [0, 1, 0]),
        ([-1.0, 1.0], 1, [0, 1]),
        ([False, True], 0, [1, 0]),
        ([b"no", b"\xff", b"yes"], "yes", [0, 0, 1]),
    ],
)
def test_labels_are_zero_and_one_or_the_positive_value(
    tmp_path: Path, values: list[Any], positive: Any, expected: list[float]
) -> None:
    assert labels_of(tmp_path, pa.array(values), Label(column="y", positive=positive)) == expected


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ([0, 1, 1, 2], ["a.parquet", "'y'", "row 3", "2", "must be 0 or 1", "positive"]),
        ([0.0, 0.5], ["row 1", "0.5"]),
        ([0.0, float("nan")], ["row 1", "nan"]),
        ([0, 1, None], ["row 2", "missing"]),
        (["a", "b"], ["'y'", "text", "data.label", "positive: VALUE"]),
        ([[0], [1]], ["'y'", "lists of integers", "data.label"]),
    ],
)
def test_label_that_is_not_zero_or_one_names_file_column_row_and_value(
    tmp_path: Path, values: list[Any], parts: list[str]
) -> None:
    with pytest.raises(DataError) as caught:
        labels_of(tmp_path, pa.array(values))
    for part in parts:
        assert part in str(caught.value)


def test_row_of_an_error_is_counted_from_the_first_of_the_file(tmp_path: Path) -> None:
    # The row group before it, and the part of its own group that an earlier window had, count too.
    path = write(tmp_path / "a.parquet", {"x": list(range(100)), "y": [0] * 77 + [9] + [0] * 22}, row_group_size=40)
    job = job_of(Categorical(name="x"), data={"shuffle_rows": 10})
    with pytest.raises(DataError, match="column 'y', row 77 "):
        list(Reader(job, path, seed=0, shuffle=True).epoch())


@pytest.mark.parametrize(
    ("values", "positive", "message"),
    [([0, 1], "1", "positive: '1', a text"), (["0", "1"], 1, "positive: 1, a number"), (["a", None], "a", "row 1")],
)
def test_positive_of_another_type_than_the_column_is_refused(
    tmp_path: Path, values: list[Any], positive: Any, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        labels_of(tmp_path, pa.array(values), Label(column="y", positive=positive))


def test_positive_that_no_training_row_has_is_refused_at_the_end_of_the_epoch(tmp_path: Path) -> None:
    # A misspelt value would train on nothing but zeros, and the loss would look splendid.
    path = write(tmp_path / "a.parquet", {"x": [1, 2, 3], "y": ["<=50K", ">50K", "<=50K"]})
    job = job_of(Categorical(name="x"), data={"label": (Label(column="y", positive=">50k"),)})
    with pytest.raises(DataError, match="no row of the epoch equals positive: '>50k'"):
        list(Reader(job, path, seed=0, shuffle=True).epoch())
    # A few rows to score may well have no positive one.
    assert whole_epoch(job, path).size == 3


def test_sample_weights_reach_the_batch(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"x": [1, 2, 3], "y": [0, 1, 0], "w": [0, 2, 5]})
    weights = whole_epoch(job_of(Categorical(name="x"), data={"weight": "w"}), path).weights
    assert weights is not None
    assert weights.tolist() == [0, 2, 5]


@pytest.mark.parametrize("bad", [-1.0, float("nan"), None, float("inf")])
def test_sample_weight_that_is_negative_or_not_a_number_is_refused(tmp_path: Path, bad: float | None) -> None:
    path = write(tmp_path / "a.parquet", {"x": [1, 2, 3], "y": [0, 1, 0], "w": [1.0, 1.0, bad]})
    with pytest.raises(DataError, match=r"a\.parquet: column 'w', row 2 .* the sample weight is"):
        whole_epoch(job_of(Categorical(name="x"), data={"weight": "w"}), path)
