"""Flaws of earlier systems, by their numbers in the list of known flaws."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from data_reference import job_of, whole_epoch, write

from satrap.data import Reader
from satrap.data.stages import Queue
from satrap.errors import DataError
from satrap.schema import Categorical, Numeric, Sequence


def test_end_of_data_is_told_and_needs_no_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Flaw 15: end of data was a time-out of the consumer. Here nobody ever waits for a while: every wait has no limit.
    waits: list[float | None] = []
    wait = threading.Condition.wait

    def spy(self: threading.Condition, timeout: float | None = None) -> bool:
        if threading.current_thread().name.startswith("satrap-data"):
            waits.append(timeout)
        return wait(self, timeout)

    monkeypatch.setattr(threading.Condition, "wait", spy)
    path = write(tmp_path / "a.parquet", {"a": list(range(1000)), "y": [0] * 1000}, row_group_size=10)
    reader = Reader(job_of(Categorical(name="a"), batch=7), path, seed=0, shuffle=True)
    assert sum(b.size for b in reader.epoch()) == 1000
    assert waits.count(None) == len(waits) > 0


def test_end_of_a_queue_comes_after_its_last_item_even_for_a_late_consumer() -> None:
    # Flaw 15: what was still queued at the end must come first.
    queue: Queue[int] = Queue(3)
    for i in range(3):
        queue.put(i)
    queue.end()
    assert list(queue) == [0, 1, 2]


def test_bad_row_is_an_error_of_the_epoch_not_a_batch_that_is_dropped(tmp_path: Path) -> None:
    # Flaw 15: an error while a batch was made dropped the batch, and the reader waited ten minutes for it.
    path = write(tmp_path / "a.parquet", {"a": list(range(40)), "y": [0] * 39 + [5]}, row_group_size=10)
    reader = Reader(job_of(Categorical(name="a"), batch=10, data={"shuffle_rows": 10}), path, seed=0, shuffle=True)
    with pytest.raises(DataError, match="row 39"):
        list(reader.epoch())


@pytest.mark.parametrize("count", [65_535, 65_536, 65_537, 200_000])
def test_more_than_65535_ids_in_one_sample_are_all_there(tmp_path: Path, count: int) -> None:
    # Flaw 16: lengths were kept in 16 bits and wrapped around silently.
    table = pa.table({"a": [[1], list(range(count)), [2, 3]], "y": [0, 1, 0]})
    path = write(tmp_path / "a.parquet", table)
    batch = whole_epoch(job_of(Categorical(name="a"), Sequence(name="s", column="a", max_length=70_000)), path)
    assert batch.ids["a"].offsets is not None
    assert batch.ids["a"].offsets.tolist() == [0, 1, count + 1, count + 3]
    assert np.array_equal(batch.ids["a"].values[1:-2], np.arange(count, dtype=np.uint64))
    assert batch.ids["s"].offsets is not None
    assert np.diff(batch.ids["s"].offsets).tolist() == [1, min(count, 70_000), 2]


@pytest.mark.parametrize("place", ["first", "middle", "last", "held out"])
def test_checks_run_on_every_row_wherever_it_stands(tmp_path: Path, place: str) -> None:
    # Flaw 16: the checks were a generator that nobody consumed.
    rows = 3000
    path = tmp_path / "a.parquet"
    job = job_of(Numeric(name="a", missing="error"), batch=10, data={"valid": 0.5, "shuffle_rows": 500})
    clean = write(path, {"a": np.arange(float(rows)), "y": [0] * rows}, row_group_size=100)
    held = [int(v) for b in Reader(job, clean, seed=0, shuffle=False, split="valid").epoch() for v in b.numeric[:, 0]]
    bad = {"first": 0, "middle": rows // 2, "last": rows - 1, "held out": held[len(held) // 2]}[place]
    values: list[float | None] = [float(i) for i in range(rows)]
    values[bad] = None
    write(path, {"a": values, "y": [0] * rows}, row_group_size=100)
    with pytest.raises(DataError, match=rf"column 'a', row {bad} "):
        list(Reader(job, path, seed=0, shuffle=True, split="train").epoch())
