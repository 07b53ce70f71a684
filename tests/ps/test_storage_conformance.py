"""What any `RowStorage` must do: partitions out, blocks in. R rows, D dimension, K floats of state."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from deployments import Deploy, exact, outcome, pull, push_of, u64

from satrap.errors import StoreError
from satrap.ps import LocalService, PullRequest, PushRequest, RowBlock
from satrap.schema import SGD, Adam, RowWiseAdagrad, Table, Uniform, ValueFormat

TABLES = [
    Table(name="plain", dim=3, optimizer=SGD(lr=0.1), initializer=Uniform(low=-1, high=1)),
    Table(name="adam", dim=5, optimizer=Adam(lr=0.01)),
    Table(name="half", dim=7, format=ValueFormat.FP16, optimizer=RowWiseAdagrad(lr=0.1)),
]


def train(service: Any, steps: int = 3, rows: int = 400, epoch: int = 0) -> None:
    rng = np.random.default_rng(epoch)
    for seq in range(1, steps + 1):
        ids = {t.name: rng.choice(10 * rows, rows, replace=False).astype(np.uint64) for t in TABLES}
        found = service.pull(PullRequest(ids=ids, create=True))
        gradients = {t.name: rng.standard_normal((rows, t.dim)).astype(np.float32) for t in TABLES}
        push = PushRequest(0, epoch, seq, ids, gradients, versions=found.versions, hints=found.hints)
        assert service.push(push).applied == 3 * rows


def blocks(service: Any) -> dict[str, list[RowBlock]]:
    return {t.name: [service.export_rows(t.name, p) for p in range(service.partitions)] for t in TABLES}


def assert_same(a: dict[str, list[RowBlock]], b: dict[str, list[RowBlock]]) -> None:
    for name in a:
        for x, y in zip(a[name], b[name], strict=True):
            np.testing.assert_array_equal(x.ids, y.ids)
            np.testing.assert_array_equal(x.values.view(np.uint8), y.values.view(np.uint8))
            np.testing.assert_array_equal(x.state.view(np.uint32), y.state.view(np.uint32))


def test_trained_rows_are_bit_for_bit_those_of_one_process(deploy: Deploy) -> None:
    service, reference = deploy(TABLES)(0), LocalService(TABLES, seed=5, partitions=8, threads=1)
    train(service)
    train(reference)
    assert service.partitions == reference.partitions
    assert_same(blocks(service), blocks(reference))
    for name, size in reference.stats().items():
        have = service.stats()[name]
        assert have.rows == size.rows
        # On disk they take no memory.
        same = (have.value_bytes, have.state_bytes) == (size.value_bytes, size.state_bytes)
        assert same == (have.cold is None)
        assert have.overhead_bytes > 0


def test_imported_rows_go_on_as_those_they_are_a_copy_of(deploy: Deploy) -> None:
    # From another number of partitions, in blocks of any order.
    reference = LocalService(TABLES, seed=5, partitions=2, threads=1)
    train(reference, steps=2)
    service = deploy(TABLES)(0)
    found = {t.name: [reference.export_rows(t.name, p) for p in (1, 0)] for t in TABLES}
    for name, parts in found.items():
        service.reserve_rows(name, sum(b.ids.size for b in parts))
        for block in parts:
            service.import_rows(name, block)
    service.set_clients(reference.clients())
    assert service.push(PushRequest(client=0, epoch=0, seq=2, ids={}, gradients={})).duplicate
    for each in (service, reference):
        train(each, steps=2, epoch=1)
    wide = LocalService(TABLES, seed=5, partitions=8, threads=1)
    for name in found:
        for p in range(2):
            wide.import_rows(name, reference.export_rows(name, p))
    assert_same(blocks(service), blocks(wide))


def test_an_import_replaces_rows_that_are_there_and_keeps_the_others(deploy: Deploy) -> None:
    service = deploy([exact()])(0)
    ids = np.arange(100, dtype=np.uint64)
    pull(service, "t", ids, create=True)
    service.push(push_of(1, ids, 1))
    service.import_rows("t", RowBlock(ids[50:].copy(), np.full((50, 2), 7, np.float32), np.empty((50, 0), np.float32)))
    assert pull(service, "t", ids)[:, 0].tolist() == [-1.0] * 50 + [7.0] * 50
    assert service.stats()["t"].rows == 100
    service.import_rows("t", RowBlock(u64(), np.empty((0, 2), np.float32), np.empty((0, 0), np.float32)))
    assert service.stats()["t"].rows == 100


def test_a_block_that_does_not_fit_is_refused_with_no_row_changed(deploy: Deploy) -> None:
    service = deploy(TABLES)(0)
    ids = np.arange(64, dtype=np.uint64)

    def floats(*shape: int) -> Any:
        return np.zeros(shape, np.float32)

    wrong: list[tuple[str, Any, Any]] = [
        ("plain", floats(64, 4), floats(64, 0)),
        ("plain", floats(64, 3), floats(64, 1)),
        ("plain", floats(63, 3), floats(64, 0)),
        ("plain", floats(64, 3).astype(np.float16), floats(64, 0)),
        ("half", floats(64, 7), floats(64, 1)),
        ("adam", floats(64, 5), floats(64, 10)),
        ("other", floats(64, 5), floats(64, 10)),
    ]
    for table, values, state in wrong:
        with pytest.raises(StoreError):
            service.import_rows(table, RowBlock(ids, values, state))
    assert all(s.rows == 0 for s in service.stats().values())


def test_a_partition_or_table_that_is_not_there_is_refused(deploy: Deploy) -> None:
    service = deploy(TABLES)(0)
    for table, partition in (("plain", 8), ("plain", -1), ("plane", 0)):
        with pytest.raises(StoreError):
            service.export_rows(table, partition)
    with pytest.raises(StoreError):
        service.reserve_rows("plane", 10)


def test_an_empty_partition_has_the_shapes_of_its_table(deploy: Deploy) -> None:
    block = deploy(TABLES)(0).export_rows("half", 3)
    assert block.ids.shape == (0,)
    assert block.values.shape == (0, 7)
    assert block.values.dtype == np.float16
    assert block.state.shape == (0, 1)


def test_clear_removes_all_rows_and_all_names(deploy: Deploy) -> None:
    doors = deploy([exact()])
    service = doors(0)
    ids = np.arange(500, dtype=np.uint64)
    pull(service, "t", ids, create=True)
    service.push(push_of(9, ids, 1))
    service.clear()
    assert service.stats()["t"].rows == 0
    assert service.clients() == {}
    assert not pull(service, "t", ids, create=True).any()
    assert outcome(service.push(push_of(1, ids, 1))) == (500, {}, False)


def test_names_that_a_restore_sets_count_as_applied(deploy: Deploy) -> None:
    doors = deploy([exact()])
    service = doors(0)
    pull(service, "t", u64(1), create=True)
    service.push(push_of(50, u64(1), 1))
    service.set_clients({0: (2, 10), 5: (0, 3)})
    assert service.clients() == {0: (2, 10), 5: (0, 3)}
    for epoch, seq, duplicate in ((0, 60, True), (2, 10, True), (2, 11, False)):
        assert service.push(push_of(seq, u64(1), 1, epoch=epoch)).duplicate is duplicate
    assert doors(5).push(push_of(3, u64(1), 1, client=5)).duplicate
    assert outcome(doors(5).push(push_of(4, u64(1), 1, client=5))) == (1, {}, False)
    assert pull(service, "t", u64(1)).tolist() == [[-3, -3]]
