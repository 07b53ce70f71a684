"""The rows of an epoch divided among workers: every row once, evenly, with positions of each worker's own."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pytest
from data_reference import expected_row, job_of, rows_in, same_bits, write
from hypothesis import given, settings
from hypothesis import strategies as st
from test_reader_rows import FEATURES, datasets, stored

from satrap.data import Batch, Reader
from satrap.data import text as text_module
from satrap.data.deal import deal, share
from satrap.errors import DataError, JobError
from satrap.schema import Categorical, Numeric

WORLDS = st.integers(1, 6)


def numbers(batches: list[Batch]) -> list[int]:
    return [v for b in batches for v in b.ids["row"].values.tolist()]


@settings(max_examples=60, deadline=None)
@given(datasets(), WORLDS, st.booleans(), st.sampled_from([0.0, 0.4]))
def test_workers_together_have_every_row_once_and_agree_on_the_steps(
    data: dict[str, Any], world: int, shuffle: bool, valid: float
) -> None:
    data["batch"] = max(data["batch"], world)
    with tempfile.TemporaryDirectory() as folder:
        paths = stored(Path(folder), data)
        job = job_of(*FEATURES, batch=data["batch"], data={"shuffle_rows": data["window"], "valid": valid})

        def reader(rank: int) -> Reader:
            return Reader(job, paths, seed=data["seed"], shuffle=shuffle, split="train", shard=(rank, world))

        each = [list(reader(rank).epoch(data["epoch"])) for rank in range(world)]
        # Whoever splits a step among workers must not change it: a batch is what it was.
        assert sum(b[0].size for b in each if b) <= data["batch"]
        assert {reader(rank).steps(data["epoch"]) for rank in range(world)} == {max(len(b) for b in each)}
        alone = Reader(job, paths, seed=data["seed"], shuffle=shuffle, split="train")
        assert sorted(rows_in(b for batches in each for b in batches)) == sorted(rows_in(alone.epoch(data["epoch"])))
        assert {reader(rank).rows for rank in range(world)} == {alone.rows}
        if valid == 0.0:
            expected = sorted(expected_row(job, row) for row in data["rows"])
            assert sorted(rows_in(b for batches in each for b in batches)) == expected
            counts = [sum(b.size for b in batches) for batches in each]
            assert max(counts) - min(counts) <= 1


@settings(max_examples=25, deadline=None)
@given(datasets(), st.integers(2, 4), st.booleans())
def test_each_worker_goes_on_from_any_of_its_positions(data: dict[str, Any], world: int, shuffle: bool) -> None:
    data["batch"] = max(data["batch"], world)
    with tempfile.TemporaryDirectory() as folder:
        paths = stored(Path(folder), data)
        job = job_of(*FEATURES, batch=data["batch"], data={"shuffle_rows": data["window"], "valid": 0.2})
        for rank in range(world):
            reader = Reader(job, paths, seed=data["seed"], shuffle=shuffle, split="train", shard=(rank, world))
            batches = list(reader.epoch(data["epoch"]))
            for i, batch in enumerate(batches[:-1]):
                assert same_bits(list(reader.epoch(data["epoch"], batch.position)), batches[i + 1 :])


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, 90),
    batch=st.integers(4, 9),
    window=st.integers(1, 25),
    run=st.integers(1, 12),
    world=st.integers(1, 4),
    epoch=st.integers(0, 2),
)
def test_text_files_are_dealt_in_runs_of_the_stream(
    rows: int, batch: int, window: int, run: int, world: int, epoch: int
) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_module, "_RUN_ROWS", run)
        table = pa.table(
            {"row": list(range(rows)), "b": [i / 7 for i in range(rows)], "y": [i % 2 for i in range(rows)]}
        )
        paths = [Path(folder) / "1.csv", Path(folder) / "2.csv"]
        pacsv.write_csv(table.slice(0, rows // 3), paths[0])
        pacsv.write_csv(table.slice(rows // 3), paths[1])
        job = job_of(Categorical(name="row"), Numeric(name="b"), batch=batch, data={"shuffle_rows": window})
        every, longest = [], 0
        for rank in range(world):
            reader = Reader(job, paths, seed=5, shuffle=True, shard=(rank, world))
            assert reader.steps(epoch) is None  # nobody has read the files yet
            batches = list(reader.epoch(epoch))
            every += numbers(batches)
            longest = max(longest, len(batches))
            for i, one in enumerate(batches[:-1]):
                assert same_bits(list(reader.epoch(epoch, one.position)), batches[i + 1 :])
        assert sorted(every) == list(range(rows))
        assert reader.steps(epoch) == longest
        if world > 1:
            # Each run of the stream goes to one worker, in turn.
            last = set(numbers(batches))
            step = min(run, window)
            assert last == {r for r in range(rows) if r // step % world == world - 1}


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(0, 50)), max_size=12, unique_by=lambda g: g[:2]
    ),
    st.integers(1, 9),
)
def test_dealt_parts_are_all_rows_once_and_as_many_for_each(groups: list[tuple[int, int, int]], world: int) -> None:
    hands = deal(groups, world)
    total = sum(rows for _, _, rows in groups)
    assert [sum(p.rows for p in hand) for hand in hands] == [share(total, r, world) for r in range(world)]
    dealt = sorted((p.file, p.group, row) for hand in hands for p in hand for row in range(p.start, p.stop))
    assert dealt == sorted((f, g, row) for f, g, rows in groups for row in range(rows))
    # A row group is read from its beginning by whoever has a part of it: as few as can be are cut.
    cut = sum(p.rows < p.of for hand in hands for p in hand)
    assert cut <= 3 * (world - 1)


def test_equal_row_groups_go_round_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"row": list(range(60)), "y": [0, 1] * 30}, row_group_size=10)
    job = job_of(Categorical(name="row"), batch=4)
    parts = [numbers(list(Reader(job, path, seed=0, shuffle=False, shard=(r, 2)).epoch())) for r in range(2)]
    assert parts[0] == [*range(10), *range(20, 30), *range(40, 50)]
    assert parts[1] == [*range(10, 20), *range(30, 40), *range(50, 60)]


def test_row_groups_change_hands_with_the_epoch(tmp_path: Path) -> None:
    # Each worker would otherwise see the same part of the data for ever.
    path = write(tmp_path / "a.parquet", {"row": list(range(80)), "y": [0, 1] * 40}, row_group_size=10)
    reader = Reader(job_of(Categorical(name="row"), batch=4), path, seed=0, shuffle=True, shard=(0, 2))
    assert set(numbers(list(reader.epoch(0)))) != set(numbers(list(reader.epoch(1))))


def test_one_row_group_is_divided_among_all_workers(tmp_path: Path) -> None:
    # Many files are one row group: dealt whole, one worker would do all the work.
    path = write(tmp_path / "a.parquet", {"row": list(range(1000)), "y": [0, 1] * 500}, row_group_size=1000)
    job = job_of(Categorical(name="row"), batch=40, data={"shuffle_rows": 100})
    parts = [numbers(list(Reader(job, path, seed=2, shuffle=True, shard=(r, 3)).epoch())) for r in range(3)]
    assert sorted(map(len, parts)) == [333, 333, 334]
    assert sorted(row for part in parts for row in part) == list(range(1000))


def test_workers_without_a_row_have_an_empty_epoch(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"row": [7], "y": [1]})
    job = job_of(Categorical(name="row"), batch=4)
    each = [list(Reader(job, path, seed=0, shuffle=True, shard=(r, 3)).epoch()) for r in range(3)]
    assert [numbers(b) for b in each if b] == [[7]]
    assert Reader(job, path, seed=0, shuffle=True, shard=(1, 3)).steps(0) == 1


def test_windows_of_one_number_are_shuffled_differently_by_each_worker(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"row": list(range(400)), "y": [0, 1] * 200}, row_group_size=100)
    job = job_of(Categorical(name="row"), batch=400, data={"shuffle_rows": 100})
    orders = []
    for rank in range(2):
        rows = numbers(list(Reader(job, path, seed=2, shuffle=True, shard=(rank, 2)).epoch()))[:100]
        orders.append([row % 100 for row in rows])
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != orders[1]


def test_position_of_another_number_of_workers_is_refused_but_between_epochs(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"row": [1, 2, 3], "y": [0, 1, 1]})

    def reader(rank: int, world: int) -> Reader:
        return Reader(job_of(Categorical(name="row")), path, seed=1, shuffle=True, shard=(rank, world))

    saved = reader(0, 2).fingerprint
    reader(1, 2).check_fingerprint(saved)
    with pytest.raises(DataError, match="saved by 2 workers in the middle of an epoch, and there are 3 now"):
        reader(0, 3).check_fingerprint(saved)
    reader(0, 3).check_fingerprint(saved, between_epochs=True)
    before = reader(0, 1).fingerprint
    del before["order"]["world"]  # as it was saved before there were workers
    reader(0, 1).check_fingerprint(before)
    with pytest.raises(DataError, match="saved by 1 workers"):
        reader(0, 2).check_fingerprint(before)


@pytest.mark.parametrize("shard", [(2, 2), (-1, 2), (0, 0)])
def test_worker_that_does_not_exist_is_refused(tmp_path: Path, shard: tuple[int, int]) -> None:
    path = write(tmp_path / "a.parquet", {"row": [1], "y": [0]})
    with pytest.raises(JobError, match="there is no worker"):
        Reader(job_of(Categorical(name="row")), path, seed=1, shuffle=True, shard=shard)


def test_fewer_samples_a_batch_than_workers_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"row": [1], "y": [0]})
    with pytest.raises(JobError, match=r"train\.batch_size is 4: 5 workers need at least one sample each"):
        Reader(job_of(Categorical(name="row")), path, seed=1, shuffle=True, shard=(0, 5))


def test_one_worker_has_the_batches_of_ever(tmp_path: Path) -> None:
    # Positions and shuffles saved before there were workers must mean the same rows.
    path = write(tmp_path / "a.parquet", {"row": list(range(500)), "y": [0, 1] * 250}, row_group_size=70)
    job = job_of(Categorical(name="row"), batch=30, data={"shuffle_rows": 90, "valid": 0.1})
    sha = hashlib.sha256()
    for batch in Reader(job, path, seed=2, shuffle=True, split="train").epoch(3):
        sha.update(batch.ids["row"].values.tobytes() + str(batch.position).encode())
    assert sha.hexdigest()[:16] == "fcad06a10c7de6c9"
