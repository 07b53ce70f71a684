"""Columns that are absent, repeated or of the wrong type are refused when the reader is made, before a row is read."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from data_reference import job_of, write

from satrap.data import Reader
from satrap.errors import DataError
from satrap.schema import Categorical, Feature, Label, Numeric, Sequence


def open_reader(path: Any, *features: Feature, **data: Any) -> Reader:
    return Reader(job_of(*features, data=data), path, seed=0, shuffle=False)


@pytest.mark.parametrize(
    ("features", "data", "message"),
    [
        ((Categorical(name="usr"),), {}, "no column 'usr', which features.usr reads; did you mean 'user'?"),
        ((Categorical(name="f", column="zzz"),), {}, "no column 'zzz', which features.f reads; known: user, w, y"),
        ((Categorical(name="user", weights="ww"),), {}, "no column 'ww', which features.user.weights reads"),
        ((Categorical(name="user"),), {"label": (Label(column="yy"),)}, "no column 'yy', which data.label reads"),
        ((Categorical(name="user"),), {"weight": "v"}, "no column 'v', which data.weight reads"),
    ],
)
def test_absent_column_is_named_with_the_nearest_one(
    tmp_path: Path, features: tuple[Feature, ...], data: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "a.parquet", {"user": [1], "w": [1.0], "y": [0]})
    with pytest.raises(DataError) as caught:
        open_reader(path, *features, **data)
    assert message in str(caught.value)
    assert "a.parquet" in str(caught.value)


@pytest.mark.parametrize(
    ("values", "feature", "message"),
    [
        ([1.5], Categorical(name="x"), "holds floats (double); features.x (categorical) needs integers, bools or text"),
        ([1.5], Categorical(name="x"), "`buckets`"),
        ([[1.5]], Categorical(name="x"), "holds lists of floats"),
        (["a"], Categorical(name="x", buckets=(1.0,)), "cuts numbers into buckets"),
        ([datetime.datetime(2024, 1, 1)], Categorical(name="x"), "cast dates to integers or text"),
        ([{"a": 1}], Categorical(name="x"), "something else"),
        ([[[1]]], Categorical(name="x"), "lists of something else"),
        ([7], Sequence(name="x", max_length=2), "a single value is a categorical feature"),
        ([[1.5]], Sequence(name="x", max_length=2), "needs lists of integers or text"),
        (["a"], Numeric(name="x"), "make text a categorical feature"),
        ([1.0], Numeric(name="x", width=3), "needs a list of 3 numbers a row"),
        ([datetime.date(2024, 1, 1)], Numeric(name="x"), "needs numbers"),
    ],
)
def test_column_of_the_wrong_type_is_refused_with_advice(
    tmp_path: Path, values: list[Any], feature: Feature, message: str
) -> None:
    path = write(tmp_path / "a.parquet", {"x": values, "y": [0]})
    with pytest.raises(DataError) as caught:
        open_reader(path, feature)
    assert message in str(caught.value)
    assert "column 'x'" in str(caught.value)


def test_weights_of_text_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"x": [1], "w": ["a"], "y": [0]})
    with pytest.raises(DataError, match=r"features\.x\.weights needs one number an id"):
        open_reader(path, Categorical(name="x", weights="w"))


def test_files_that_disagree_on_a_type_are_refused_because_equal_values_would_be_different_ids(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"x": [17], "y": [0]})
    write(tmp_path / "b.parquet", {"x": ["17"], "y": [0]})
    with pytest.raises(DataError, match=r"'x' holds text in .*b\.parquet but integers in .*a\.parquet"):
        open_reader(tmp_path, Categorical(name="x"))


def test_files_may_differ_in_width_and_one_may_have_nulls_alone(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"x": pa.nulls(1), "n": pa.array([1], pa.int8()), "y": [0]})
    write(tmp_path / "b.parquet", {"x": pa.array([-1], pa.int32()), "n": [0.5], "y": [True]})
    write(tmp_path / "c.parquet", {"x": pa.array([-1], pa.int64()), "n": [0.5], "y": [0.0]})
    reader = open_reader(tmp_path, Categorical(name="x"), Numeric(name="n"))
    (batch,) = reader.epoch()
    assert batch.ids["x"].values.tolist()[1:] == [2**64 - 1] * 2
    assert batch.numeric[:, 0].tolist() == [1, 0.5, 0.5]


def test_column_that_only_a_later_file_lacks_is_found_before_training(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"x": [17], "y": [0]})
    write(tmp_path / "b.parquet", {"z": [17], "y": [0]})
    with pytest.raises(DataError, match=r"b\.parquet: there is no column 'x'"):
        open_reader(tmp_path, Categorical(name="x"))


def test_column_name_that_stands_twice_is_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2]), pa.array([0])], names=["x", "x", "y"])
    with pytest.raises(DataError, match="2 columns named 'x'"):
        open_reader(write(tmp_path / "a.parquet", table), Categorical(name="x"))


def test_column_names_with_dots_are_taken_whole(tmp_path: Path) -> None:
    table = {"user.id": ["a"], "user": [["b"]], "y": [0]}
    path = write(tmp_path / "a.parquet", table)
    reader = open_reader(path, Categorical(name="user.id"), Categorical(name="user"))
    (batch,) = reader.epoch()
    assert batch.ids["user.id"].values.tolist() != batch.ids["user"].values.tolist()


def test_unreadable_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 this is not a Parquet file")
    with pytest.raises(DataError, match=r"a\.parquet: not a readable Parquet file"):
        open_reader(tmp_path / "a.parquet", Categorical(name="x"))


@pytest.mark.parametrize("place", [4, 1000])
def test_damage_in_the_middle_of_a_file_names_file_and_row_group(tmp_path: Path, place: int) -> None:
    # A page's header, and values inside a page, which only its checksum can tell.
    path = write(tmp_path / "a.parquet", {"x": list(range(5000)), "y": [0] * 5000}, write_page_checksum=True)
    data = bytearray(path.read_bytes())
    data[place : place + 40] = bytes(40)
    path.write_bytes(data)
    reader = open_reader(path, Categorical(name="x"))
    with pytest.raises(DataError, match=r"a\.parquet: cannot read row group 0"):
        list(reader.epoch())


def test_files_without_rows_give_no_batches(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"x": pa.array([], pa.int64()), "y": pa.array([], pa.int64())})
    reader = open_reader(tmp_path, Categorical(name="x"))
    assert list(reader.epoch()) == []
    assert (reader.rows, reader.batches_per_epoch) == (0, 0)
