"""Rows by id, whole; and rows of several partitions that are put back in one call."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from numpy.typing import NDArray

from satrap.ps.noting import NotingStore
from satrap.schema import Adam, Table, ValueFormat
from satrap.store import Store

PARTITIONS = 8


def store(form: ValueFormat, threads: int = 1) -> Store:
    return Store(
        [Table(name="t", dim=5, format=form, optimizer=Adam())], seed=1, partitions=PARTITIONS, threads=threads
    )


def filled(form: ValueFormat) -> Store:
    s, ids = store(form), np.arange(0, 3000, 3, dtype=np.uint64)
    s.pull_many({"t": ids}, create=True)
    s.push_many({"t": ids}, {"t": np.ones((ids.size, 5), np.float32)})
    return s


@pytest.mark.parametrize("form", ValueFormat)
def test_rows_by_id_are_those_of_the_export_and_missing_ones_are_left_out(form: ValueFormat) -> None:
    s = filled(form)
    exported = s.export_rows("t", 2)
    wanted = np.concatenate([exported[0][::-1], np.array([1, 4], np.uint64)])
    for have, want in zip(s.read_rows("t", wanted), exported, strict=True):
        assert have.dtype == want.dtype
        np.testing.assert_array_equal(have, want[::-1])


@pytest.mark.parametrize("form", ValueFormat)
@pytest.mark.parametrize("order", ["by partition", "a partition twice"])
def test_partitions_filled_at_once_are_what_they_are_one_by_one(form: ValueFormat, order: str) -> None:
    # With a partition twice two threads would make its rows at once.
    s = filled(form)
    blocks = [s.export_rows("t", p) for p in range(PARTITIONS)]
    if order == "a partition twice":
        blocks = [tuple(x[:10] for x in b) for b in blocks] + [tuple(x[10:] for x in b) for b in blocks]  # type: ignore[misc]
    again = store(form, threads=4)
    again.import_rows("t", *(np.concatenate([b[k] for b in blocks]) for k in range(3)))
    for p in range(PARTITIONS):
        for have, want in zip(again.export_rows("t", p), s.export_rows("t", p), strict=True):
            np.testing.assert_array_equal(have, want)


@pytest.mark.parametrize("order", ["by partition", "a partition in two blocks"])
def test_blocks_imported_in_one_call_are_what_they_are_one_after_another(order: str) -> None:
    s = filled(ValueFormat.FP32)
    blocks = [s.export_rows("t", p)[:3] for p in range(PARTITIONS)]
    if order == "a partition in two blocks":
        # Of an id in both the last one counts.
        again = [(ids, values + 1, state) for ids, values, state in (tuple(x[:20].copy() for x in b) for b in blocks)]
        blocks += again  # type: ignore[arg-type]
    one, many = store(ValueFormat.FP32), store(ValueFormat.FP32, threads=4)
    for block in blocks:
        one.import_rows("t", *block)
    many.import_many("t", [(*block, None) for block in blocks])
    for p in range(PARTITIONS):
        for have, want in zip(many.export_rows("t", p), one.export_rows("t", p), strict=True):
            np.testing.assert_array_equal(have, want)


def test_watchers_are_told_of_every_block_of_an_import() -> None:
    # What changes while a snapshot is taken would be missing in it.
    s, told = filled(ValueFormat.FP32), []

    class Watcher:
        def add(self, table: str, ids: NDArray[np.uint64]) -> None:
            told.append((table, ids.tolist()))

    noting = NotingStore(store(ValueFormat.FP32), [Watcher()], threading.Condition())
    blocks = [s.export_rows("t", p)[:3] for p in range(2)]
    noting.import_many("t", [(*block, None) for block in blocks])
    assert told == [("t", block[0].tolist()) for block in blocks]
