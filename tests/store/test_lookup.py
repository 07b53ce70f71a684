"""Lookup: values alone, as evaluation reads them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from satrap.errors import StoreError
from satrap.schema import Adam, RowWiseAdagrad, Table, ValueFormat
from satrap.store import Store

TABLES = [
    Table(name="lines", dim=16, optimizer=RowWiseAdagrad()),
    Table(name="odd", dim=5, optimizer=Adam()),
    Table(name="half", dim=32, format=ValueFormat.FP16, optimizer=RowWiseAdagrad()),
]


def trained() -> tuple[Store, NDArray[np.uint64]]:
    store = Store(TABLES, seed=3, partitions=4, threads=2)
    ids = np.random.default_rng(0).integers(0, 2**64, 5000, np.uint64)
    for t in TABLES:
        store.pull(t.name, ids, create=True)
        store.push(t.name, ids, np.full((ids.size, t.dim), 0.5, np.float32))
    return store, ids


@pytest.mark.parametrize("table", [t.name for t in TABLES])
def test_a_lookup_reads_what_a_pull_reads_and_changes_nothing(table: str) -> None:
    # Missing rows among them: they must read as they would be made, and must not be made.
    store, ids = trained()
    asked = np.concatenate([ids[:3000], np.arange(300, dtype=np.uint64), ids[:10]])
    before = store.size(table)
    found = store.lookup(table, asked)
    np.testing.assert_array_equal(found, store.pull(table, asked)[0])
    assert store.size(table) == before


def test_a_lookup_of_several_tables_answers_each_by_name() -> None:
    store, ids = trained()
    found = store.lookup_many({"half": ids[:7], "lines": ids[7:20]})
    np.testing.assert_array_equal(found["half"], store.lookup("half", ids[:7]))
    np.testing.assert_array_equal(found["lines"], store.lookup("lines", ids[7:20]))


def test_a_lookup_fills_the_array_it_is_given() -> None:
    store, ids = trained()
    out = np.full((ids.size, 16), np.nan, np.float32)
    assert store.lookup("lines", ids, out) is out
    np.testing.assert_array_equal(out, store.lookup("lines", ids))


def test_a_lookup_into_an_array_of_another_shape_is_refused() -> None:
    # Native code writes [N, D] floats wherever it is told to.
    store, ids = trained()
    for out in (np.empty((ids.size - 1, 16), np.float32), np.empty((ids.size, 15), np.float32)):
        with pytest.raises(StoreError, match="values must be"):
            store.lookup("lines", ids, out)
    with pytest.raises(StoreError, match="contiguous float32"):
        store.lookup("lines", ids, np.empty((16, ids.size), np.float32).T)
