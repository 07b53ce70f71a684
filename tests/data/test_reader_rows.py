"""An epoch hands out every row of its split exactly once, decoded as a plain reader would."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from data_reference import expected_row, job_of, rows_in, write
from hypothesis import given, settings
from hypothesis import strategies as st

from satrap.data import Reader
from satrap.errors import JobError
from satrap.schema import Categorical, Numeric, Sequence

ROWS = st.fixed_dictionaries(
    {
        "user": st.integers(-(2**63), 2**63 - 1),
        "city": st.none() | st.text(max_size=20),
        "tags": st.none()
        | st.lists(st.none() | st.sampled_from(["a", "b", "ccc", "a tag of more than sixteen bytes"])),
        "seen": st.none() | st.lists(st.none() | st.integers(0, 2**64 - 1), max_size=6),
        "price": st.none() | st.floats(-1e6, 1e6, width=32) | st.sampled_from([float("nan"), float("inf")]),
        "y": st.integers(0, 1),
    }
)
SCHEMA = pa.schema(
    {
        "user": pa.int64(),
        "city": pa.string(),
        "tags": pa.list_(pa.string()),
        "seen": pa.list_(pa.uint64()),
        "price": pa.float32(),
        "y": pa.int8(),
        "row": pa.int64(),
    }
)
FEATURES = (
    Categorical(name="row"),
    Categorical(name="user"),
    Categorical(name="city", missing="empty"),
    Categorical(name="tags", max_length=3),
    Sequence(name="seen", max_length=2),
    Numeric(name="price", indicator=True),
)


@st.composite
def datasets(draw: st.DrawFn) -> dict[str, Any]:
    """Rows cut to files and row groups, and the settings of a reader."""
    rows = [row | {"row": i} for i, row in enumerate(draw(st.lists(ROWS, min_size=1, max_size=40)))]
    cuts = sorted(draw(st.lists(st.integers(0, len(rows)), max_size=3)))
    files = [rows[a:b] for a, b in zip([0, *cuts], [*cuts, len(rows)], strict=True)]
    return {
        "rows": rows,
        "files": files,
        "group": draw(st.integers(1, 20)),
        "batch": draw(st.integers(1, 12)),
        "window": draw(st.integers(1, 30)),
        "seed": draw(st.integers(0, 2**32)),
        "epoch": draw(st.integers(0, 5)),
    }


def stored(folder: Path, data: dict[str, Any]) -> list[Path]:
    return [
        write(folder / f"{i:03}.parquet", pa.Table.from_pylist(rows, SCHEMA), row_group_size=data["group"])
        for i, rows in enumerate(data["files"])
    ]


@settings(max_examples=60, deadline=None)
@given(datasets())
def test_shuffled_epoch_has_every_row_once_decoded_as_by_the_plain_reader(data: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        job = job_of(*FEATURES, batch=data["batch"], data={"shuffle_rows": data["window"]})
        reader = Reader(job, stored(Path(folder), data), seed=data["seed"], shuffle=True)
        batches = list(reader.epoch(data["epoch"]))
    expected = [expected_row(job, row) for row in data["rows"]]
    assert sorted(rows_in(batches)) == sorted(expected)
    assert reader.rows == len(expected)
    assert reader.batches_per_epoch == len(batches)
    # Only the last batch may be short: a window's end must not cut one.
    assert all(b.size == data["batch"] for b in batches[:-1])


@settings(max_examples=30, deadline=None)
@given(datasets())
def test_unshuffled_epoch_has_every_row_in_file_order(data: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        job = job_of(*FEATURES, batch=data["batch"])
        batches = list(Reader(job, stored(Path(folder), data), seed=0, shuffle=False).epoch())
    assert rows_in(batches) == [expected_row(job, row) for row in data["rows"]]


@settings(max_examples=40, deadline=None)
@given(datasets(), st.floats(0.05, 0.95))
def test_train_and_valid_are_disjoint_and_complete(data: dict[str, Any], fraction: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = stored(Path(folder), data)
        job = job_of(*FEATURES, batch=data["batch"], data={"valid": fraction, "shuffle_rows": data["window"]})
        train = Reader(job, paths, seed=data["seed"], shuffle=True, split="train")
        valid = Reader(job, paths, seed=data["seed"], shuffle=False, split="valid")
        train_rows, valid_rows = rows_in(train.epoch(data["epoch"])), rows_in(valid.epoch())
        # The split must not depend on the epoch, or validation rows would leak into training.
        assert sorted(rows_in(train.epoch(data["epoch"] + 1))) == sorted(train_rows)
    assert sorted(train_rows + valid_rows) == sorted(expected_row(job, row) for row in data["rows"])
    assert (train.rows, valid.rows) == (len(train_rows), len(valid_rows))


def test_split_is_the_same_for_readers_that_cut_row_groups_differently(tmp_path: Path) -> None:
    # Training cuts a row group to windows, validation reads it whole: both must count rows from the group's first.
    path = write(tmp_path / "a.parquet", {"row": list(range(900)), "y": [0, 1] * 450}, row_group_size=300)
    job = job_of(Categorical(name="row"), data={"valid": 0.4, "shuffle_rows": 50})
    train = order_of(Reader(job, path, seed=1, shuffle=True, split="train"), 0)
    valid = order_of(Reader(job, path, seed=1, shuffle=False, split="valid"), 0)
    assert sorted(train + valid) == list(range(900))


def order_of(reader: Reader, epoch: int) -> list[int]:
    return [v for b in reader.epoch(epoch) for v in b.ids["row"].values.tolist()]


def test_order_follows_from_seed_and_epoch_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"row": list(range(400)), "y": [0, 1] * 200}, row_group_size=50)
    job = job_of(Categorical(name="row"), data={"shuffle_rows": 100})
    first = order_of(Reader(job, path, seed=1, shuffle=True), 0)
    assert order_of(Reader(job, path, seed=1, shuffle=True), 0) == first
    assert order_of(Reader(job, path, seed=1, shuffle=True), 1) != first
    assert order_of(Reader(job, path, seed=2, shuffle=True), 0) != first
    # Row groups are shuffled too: the first window is not the first rows of the file.
    assert {row // 50 for row in first[:100]} != {0, 1}


def test_shuffle_rows_zero_reads_in_file_order_though_shuffling_is_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"row": list(range(40)), "y": [0, 1] * 20}, row_group_size=7)
    reader = Reader(job_of(Categorical(name="row"), data={"shuffle_rows": 0}), path, seed=1, shuffle=True)
    assert order_of(reader, 0) == list(range(40))


def test_shuffle_mixes_row_groups_within_a_window(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"row": list(range(1000)), "y": [0, 1] * 500}, row_group_size=100)
    order = order_of(
        Reader(job_of(Categorical(name="row"), data={"shuffle_rows": 1000}), path, seed=3, shuffle=True), 0
    )
    for start in range(0, 1000, 100):
        assert len({row // 100 for row in order[start : start + 100]}) > 5


def test_single_valued_columns_without_nulls_have_no_offsets(tmp_path: Path) -> None:
    table = {"a": [1, 2, 3], "b": ["x", "y", "x"], "c": [1, None, 3], "y": [0, 1, 0]}
    path = write(tmp_path / "a.parquet", table)
    job = job_of(Categorical(name="a"), Categorical(name="b"), Categorical(name="c"))
    (batch,) = Reader(job, path, seed=0, shuffle=False).epoch()
    assert [batch.ids[n].offsets for n in "abc"] == [None, None, None]  # a null that is an id is still one id


def test_labels_false_reads_data_that_has_no_label_and_no_weight(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"a": [1, 2, 3]})
    job = job_of(Categorical(name="a"), data={"weight": "w"})
    (batch,) = Reader(job, path, seed=0, shuffle=False, labels=False).epoch()
    assert batch.labels.shape == (3, 0)
    assert batch.weights is None


def test_only_the_columns_of_the_job_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"a": [1, 2], "other": [{"x": 1}] * 2, "y": [0, 1]})
    reader = Reader(job_of(Categorical(name="a")), path, seed=0, shuffle=False)
    (piece,) = reader._source.pieces(0, 0)
    assert piece.columns.schema.names == ["a", "y"]


def test_validation_part_where_there_is_none_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"a": [1, 2], "y": [0, 1]})
    for valid in (0.0, (str(path),)):
        with pytest.raises(JobError, match=r"data\.valid"):
            Reader(job_of(Categorical(name="a"), data={"valid": valid}), path, seed=0, shuffle=False, split="valid")
        # Training rows are then all rows: the validation rows have files of their own.
        job = job_of(Categorical(name="a"), data={"valid": valid})
        assert Reader(job, path, seed=0, shuffle=False, split="train").rows == 2


def test_several_labels_stand_side_by_side(tmp_path: Path) -> None:
    from satrap.schema import Label

    path = write(tmp_path / "a.parquet", {"a": [1, 2, 3], "y": [0, 1, 1], "z": [True, False, True]})
    job = job_of(Categorical(name="a"), data={"label": (Label(column="y"), Label(column="z"))})
    (batch,) = Reader(job, path, seed=0, shuffle=False).epoch()
    assert batch.labels.tolist() == [[0, 1], [1, 0], [1, 1]]
