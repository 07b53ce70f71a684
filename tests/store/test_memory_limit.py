"""Tables that would outgrow the memory there is end with an error that says so, and keep their rows."""

from __future__ import annotations

import re

import numpy as np
import pytest

from satrap.errors import StoreError
from satrap.observe.machine import memory_in_use_bytes, rss_bytes
from satrap.schema import SGD, Capacity, Table
from satrap.store import Store


def filled_until_refused(store: Store) -> tuple[int, str]:
    """Rows there are when a pull is refused, and what the error says."""
    for k in range(10_000):
        ids = np.arange(20_000 * k, 20_000 * (k + 1), dtype=np.uint64)
        try:
            store.pull("t", ids, create=True)
        except StoreError as e:
            return store.size("t")[0], str(e)
    raise AssertionError("no limit held")


def test_a_table_that_reaches_the_limit_says_so_and_keeps_its_rows() -> None:
    limit = rss_bytes() + (120 << 20)
    store = Store([Table(name="t", dim=64, optimizer=SGD(lr=1.0))], seed=0, threads=1, memory=limit)
    before = store.pull("t", np.arange(1000, dtype=np.uint64), create=True)[0]
    rows, text = filled_until_refused(store)
    assert rss_bytes() <= limit + (16 << 20)
    assert 200_000 < rows < 500_000  # 275 bytes a row
    assert re.search(r"out of memory: process \d+ uses \d\.\d\d GiB, and may use \d\.\d\d GiB \(store.memory\)", text)
    assert f"'t' {sum(store.size('t')[1:]) / 2**30:.2f} GiB ({rows:,} rows)" in text
    assert "tables.NAME.capacity" in text
    ids = np.arange(1000, dtype=np.uint64)
    np.testing.assert_array_equal(store.lookup("t", ids), before)
    assert store.push("t", ids, np.ones((1000, 64), np.float32))[0] == 1000
    assert sum(store.export_rows("t", p)[0].size for p in range(64)) == rows


def test_more_memory_lets_a_table_go_on() -> None:
    store = Store([Table(name="t", dim=64, optimizer=SGD(lr=1.0))], seed=0, threads=1, memory=rss_bytes() + (50 << 20))
    rows, _ = filled_until_refused(store)
    assert store.room.limit_bytes is not None
    store.room.limit_bytes += 100 << 20
    store.pull("t", np.arange(2**40, 2**40 + 50_000, dtype=np.uint64), create=True)
    assert store.size("t")[0] == rows + 50_000


def test_a_bounded_table_never_comes_to_the_limit() -> None:
    table = Table(name="t", dim=64, optimizer=SGD(lr=1.0), capacity=Capacity(bytes=40 << 20))
    store = Store([table], seed=0, threads=1, memory=rss_bytes() + (90 << 20))
    for k in range(40):
        store.pull("t", np.arange(20_000 * k, 20_000 * (k + 1), dtype=np.uint64), create=True)
    assert sum(store.size("t")[1:]) <= 40 << 20
    assert store.bound_counts("t")[1] > 500_000


def test_the_limit_of_a_container_is_what_it_has_less_what_is_in_use(tmp_path: object) -> None:
    from pathlib import Path

    folder = Path(str(tmp_path))
    (folder / "memory.max").write_text("1000000\n")
    (folder / "memory.current").write_text("900000\n")
    (folder / "memory.stat").write_text("anon 500000\ninactive_file 300000\n")
    assert memory_in_use_bytes(folder) == 600_000
    (folder / "memory.max").write_text("max\n")
    assert memory_in_use_bytes(folder) is None


@pytest.mark.parametrize("rows", [63, 1])
def test_a_capacity_of_less_than_a_row_a_partition_is_named(rows: int) -> None:
    with pytest.raises(StoreError, match=f"'t' {rows} rows, over 64 partitions"):
        Store([Table(name="t", dim=2, optimizer=SGD(), capacity=Capacity(rows=rows))], seed=0)
