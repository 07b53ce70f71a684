"""A position leads back to the very batches that followed it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pytest
from data_reference import job_of, same_bits, write
from hypothesis import given, settings
from hypothesis import strategies as st
from test_reader_rows import FEATURES, datasets, stored

from satrap.data import Position, Reader
from satrap.errors import DataError
from satrap.schema import Categorical, Numeric


@settings(max_examples=50, deadline=None)
@given(datasets(), st.sampled_from([0.0, 0.4]), st.booleans())
def test_resume_from_any_position_gives_the_same_batches_bit_for_bit(
    data: dict[str, Any], valid: float, shuffle: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = stored(Path(folder), data)
        job = job_of(*FEATURES, batch=data["batch"], data={"shuffle_rows": data["window"], "valid": valid})
        epoch = data["epoch"]

        def reader() -> Reader:
            return Reader(job, paths, seed=data["seed"], shuffle=shuffle, split="train")

        batches = list(reader().epoch(epoch))
        for i, batch in enumerate(batches[:-1]):
            assert same_bits(list(reader().epoch(epoch, batch.position)), batches[i + 1 :])
        if batches:
            assert batches[-1].position == Position(epoch + 1, 0, 0)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 25), st.integers(0, 3))
def test_resume_of_text_files_gives_the_same_batches(rows: int, batch: int, window: int, epoch: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        table = pa.table({"a": list(range(rows)), "b": [i / 7 for i in range(rows)], "y": [i % 2 for i in range(rows)]})
        paths = [Path(folder) / "1.csv", Path(folder) / "2.csv"]
        pacsv.write_csv(table.slice(0, rows // 2), paths[0])
        pacsv.write_csv(table.slice(rows // 2), paths[1])
        job = job_of(Categorical(name="a"), Numeric(name="b"), batch=batch, data={"shuffle_rows": window})
        reader = Reader(job, paths, seed=5, shuffle=True)
        batches = list(reader.epoch(epoch))
        assert sorted(v for b in batches for v in b.ids["a"].values.tolist()) == list(range(rows))
        for i, one in enumerate(batches[:-1]):
            assert same_bits(list(reader.epoch(epoch, one.position)), batches[i + 1 :])


def test_resume_does_not_read_the_windows_before_it(tmp_path: Path) -> None:
    # Training that restarts near the end of a large epoch must not read the whole epoch again.
    paths = [
        write(tmp_path / f"{i}.parquet", {"row": list(range(i * 10, i * 10 + 10)), "y": [0, 1] * 5}) for i in range(6)
    ]
    job = job_of(Categorical(name="row"), batch=10, data={"shuffle_rows": 10})
    reader = Reader(job, paths, seed=0, shuffle=True)
    batches = list(reader.epoch(0))
    for batch in batches[:3]:
        paths[int(batch.ids["row"].values[0]) // 10].write_bytes(b"gone")
    assert same_bits(list(reader.epoch(0, batches[2].position)), batches[3:])
    with pytest.raises(DataError, match="cannot read row group 0"):
        list(reader.epoch(0))


def test_resume_in_a_row_group_larger_than_a_window_goes_on_in_its_middle(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"row": list(range(1000)), "y": [0, 1] * 500}, row_group_size=1000)
    job = job_of(Categorical(name="row"), batch=30, data={"shuffle_rows": 100})
    reader = Reader(job, path, seed=0, shuffle=True)
    batches = list(reader.epoch(2))
    assert sorted(v for b in batches for v in b.ids["row"].values.tolist()) == list(range(1000))
    assert same_bits(list(reader.epoch(2, batches[20].position)), batches[21:])


def test_position_of_another_epoch_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"row": [1, 2], "y": [0, 1]})
    reader = Reader(job_of(Categorical(name="row")), path, seed=0, shuffle=True)
    with pytest.raises(DataError, match="of epoch 2; epoch 1"):
        reader.epoch(1, Position(2, 0, 0))


@pytest.mark.parametrize("position", [Position(0, 9, 0), Position(0, 0, 99)])
@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_position_beyond_the_data_is_refused_rather_than_read_as_the_end(
    tmp_path: Path, position: Position, ending: str
) -> None:
    path = tmp_path / f"a.{ending}"
    table = pa.table({"row": [1, 2, 3], "y": [0, 1, 1]})
    write(path, table) if ending == "parquet" else pacsv.write_csv(table, path)
    reader = Reader(job_of(Categorical(name="row"), data={"shuffle_rows": 2}), path, seed=0, shuffle=True)
    with pytest.raises(DataError, match="when the position was saved"):
        list(reader.epoch(0, position))


FINGERPRINT_CHANGES = [
    ({"seed": 2}, {}, "seed was 1 and is 2"),
    ({"shuffle": False}, {}, "shuffle was True and is False"),
    ({"split": "train"}, {}, "split was all and is train"),
    ({}, {"shuffle_rows": 5}, "window_rows was 8 and is 5"),
]


@pytest.mark.parametrize(("options", "data", "message"), FINGERPRINT_CHANGES)
def test_fingerprint_of_another_order_is_refused(
    tmp_path: Path, options: dict[str, Any], data: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "a.parquet", {"row": [1, 2, 3], "y": [0, 1, 1]})
    plain: dict[str, Any] = {"seed": 1, "shuffle": True}
    saved = Reader(job_of(Categorical(name="row")), path, **plain).fingerprint
    now = Reader(job_of(Categorical(name="row"), data=data), path, **(plain | options))
    with pytest.raises(DataError, match=message):
        now.check_fingerprint(saved)


def test_fingerprint_of_changed_data_is_refused_and_of_a_moved_folder_accepted(tmp_path: Path) -> None:
    job = job_of(Categorical(name="row"))
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        for name in ("a", "b"):
            write(tmp_path / folder / f"{name}.parquet", {"row": [1, 2, 3], "y": [0, 1, 1]})
    saved = Reader(job, tmp_path / "one", seed=1, shuffle=True).fingerprint
    Reader(job, tmp_path / "two", seed=1, shuffle=True).check_fingerprint(saved)
    write(tmp_path / "two" / "b.parquet", {"row": [1, 2, 3, 4], "y": [0, 1, 1, 0]})
    with pytest.raises(DataError, match=r"'b\.parquet' had \d+ bytes when the position was saved and has \d+ now"):
        Reader(job, tmp_path / "two", seed=1, shuffle=True).check_fingerprint(saved)
    (tmp_path / "two" / "b.parquet").rename(tmp_path / "two" / "c.parquet")
    with pytest.raises(DataError, match=r"'c\.parquet' was 'b\.parquet'"):
        Reader(job, tmp_path / "two", seed=1, shuffle=True).check_fingerprint(saved)
    (tmp_path / "two" / "c.parquet").unlink()
    with pytest.raises(DataError, match="2 files when the position was saved and has 1 now"):
        Reader(job, tmp_path / "two", seed=1, shuffle=True).check_fingerprint(saved)


def test_fingerprint_survives_json(tmp_path: Path) -> None:
    import json

    path = write(tmp_path / "a.parquet", {"row": [1, 2, 3], "y": [0, 1, 1]})
    reader = Reader(job_of(Categorical(name="row"), data={"valid": 0.1}), path, seed=1, shuffle=True, split="train")
    reader.check_fingerprint(json.loads(json.dumps(reader.fingerprint)))
