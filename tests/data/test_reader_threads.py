"""Background threads: errors come out at the consumer, closing stops everything, memory stays bounded."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from data_reference import job_of, same_bits, write

from satrap.data import Position, Reader
from satrap.data.stages import in_background
from satrap.errors import DataError
from satrap.schema import Categorical


def reader_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("satrap-data")]


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    path = write(tmp_path / "a.parquet", {"a": list(range(2000)), "y": [0, 1] * 1000}, row_group_size=50)
    return Reader(job_of(Categorical(name="a"), batch=10, data={"shuffle_rows": 100}), path, seed=0, shuffle=True)


def test_closing_the_iterator_stops_its_threads(reader: Reader) -> None:
    batches = reader.epoch()
    next(batches)
    assert len(reader_threads()) == 2
    batches.close()
    assert reader_threads() == []


def test_iterator_that_is_dropped_stops_its_threads(reader: Reader) -> None:
    batches = reader.epoch()
    next(batches)
    del batches
    gc.collect()
    assert reader_threads() == []


def test_iterator_that_is_never_used_starts_no_thread(reader: Reader) -> None:
    reader.epoch()
    assert reader_threads() == []


def test_end_of_the_epoch_stops_the_threads(reader: Reader) -> None:
    assert sum(b.size for b in reader.epoch()) == 2000
    assert reader_threads() == []


def test_two_epochs_read_at_once_do_not_disturb_each_other(reader: Reader) -> None:
    # Validation in the middle of training reads beside it.
    expected = [list(reader.epoch(0)), list(reader.epoch(1))]
    both = list(zip(reader.epoch(0), reader.epoch(1), strict=True))
    assert same_bits([a for a, _ in both], expected[0])
    assert same_bits([b for _, b in both], expected[1])


def test_error_in_a_thread_is_raised_at_the_consumer_after_the_batches_before_it(tmp_path: Path) -> None:
    labels = [0] * 95 + [7] + [0] * 4
    path = write(tmp_path / "a.parquet", {"a": list(range(100)), "y": labels}, row_group_size=10)
    job = job_of(Categorical(name="a"), batch=10)
    # File order reads windows of many rows, so the damage is in the only window; a second file adds windows before it.
    first = write(tmp_path / "0.parquet", {"a": list(range(140_000)), "y": [0] * 140_000})
    batches = Reader(job, [first, path], seed=0, shuffle=False).epoch()
    for _ in range(100):
        next(batches)
    with pytest.raises(DataError, match=r"a\.parquet: column 'y', row 95 .* the label is 7"):
        list(batches)
    assert reader_threads() == []


def test_producer_runs_at_most_a_few_items_ahead() -> None:
    # A reader that is faster than training must not fill the memory with what it read.
    made: list[int] = []
    ahead = threading.Event()

    def source() -> Iterator[int]:
        for i in range(100):
            made.append(i)
            if len(made) == 5:
                ahead.set()
            yield i

    consumer = in_background(source, lambda items: items, name="satrap-data-test")
    next(consumer)
    ahead.wait()
    # One item with the consumer, one behind each thread, one in the hands of each.
    for taken, _ in enumerate(consumer, start=2):
        assert len(made) <= taken + 4
    assert len(made) == 100


def test_windows_that_were_consumed_are_freed(reader: Reader) -> None:
    windows = []
    for i, batch in enumerate(reader.epoch()):
        base = batch.ids["a"].values.base
        assert base is not None
        windows.append(weakref.ref(base))
        del batch, base
        if i > 150:
            break
    alive = {id(w()) for w in windows if w() is not None}
    assert len(alive) <= 2


def test_row_group_much_larger_than_the_window_is_read_in_parts(tmp_path: Path) -> None:
    # A file of one row group, as many tools write, must not be taken into memory whole.
    path = write(tmp_path / "a.parquet", {"a": list(range(50_000)), "y": [0] * 50_000})
    reader = Reader(job_of(Categorical(name="a"), data={"shuffle_rows": 1000}), path, seed=0, shuffle=True)
    sizes = [piece.columns.num_rows for piece in reader._source.pieces(0, 0)]
    assert max(sizes) <= 1500
    assert sum(sizes) == 50_000


def test_error_of_the_source_reaches_the_consumer_with_its_type() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise KeyError("from the thread")

    consumer = in_background(source, lambda items: items, name="satrap-data-test")
    assert next(consumer) == 1
    with pytest.raises(KeyError, match="from the thread"):
        next(consumer)


def test_consumer_that_stops_while_the_source_waits_ends_both() -> None:
    closed: list[str] = []

    def source() -> Iterator[int]:
        try:
            yield from range(1000)
        finally:
            closed.append("source")

    def stage(items: Iterator[int]) -> Iterator[int]:
        try:
            yield from items
        finally:
            closed.append("stage")

    consumer = in_background(source, stage, name="satrap-data-test")
    next(consumer)
    consumer.close()
    assert sorted(closed) == ["source", "stage"]
    assert reader_threads() == []


def test_positions_ascend_and_end_at_the_next_epoch(reader: Reader) -> None:
    positions = [b.position for b in reader.epoch(3)]
    assert positions == sorted(positions)
    assert positions[-1] == Position(4)
    assert all(p.epoch == 3 for p in positions[:-1])


def test_arrays_of_arrow_stay_alive_as_long_as_batches_need_them(tmp_path: Path) -> None:
    # File order hands out views of what Arrow read; freeing that first would show other rows' bytes.
    path = write(tmp_path / "a.parquet", {"a": pa.array(range(1000), pa.uint64()), "y": [0] * 1000}, row_group_size=100)
    batches: list[Any] = list(Reader(job_of(Categorical(name="a"), batch=100), path, seed=0, shuffle=False).epoch())
    gc.collect()
    assert [v for b in batches for v in b.ids["a"].values.tolist()] == list(range(1000))
