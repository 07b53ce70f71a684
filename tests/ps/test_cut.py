"""Rows as they were at one moment, whatever happens to them while they are read."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from killed import Servers
from msgspec import structs

from satrap.errors import StoreError
from satrap.ps import Cut, LocalService, Placement, PullRequest, PushRequest, RemoteService, RowBlock, Server
from satrap.ps.cutting import Cutting
from satrap.schema import SGD, Adam, Admission, Capacity, Expiry, RowWiseAdagrad, Table, ValueFormat, Zeros

TABLES = (
    Table(name="user", dim=3, optimizer=Adam(lr=0.1)),
    Table(name="item", dim=2, optimizer=RowWiseAdagrad(lr=0.1), format=ValueFormat.INT8),
)
P = 4
SPAN = 400


def ids_of(rng: np.random.Generator, count: int) -> dict[str, Any]:
    return {t.name: np.unique(rng.integers(0, SPAN, count, np.uint64)) * np.uint64(0x9E3779B97F4A7C15) for t in TABLES}


def train(service: Any, seq: int, count: int = 60) -> None:
    ids = ids_of(np.random.default_rng(seq), count)
    rows = service.pull(PullRequest(ids=ids, create=True))
    gradients = {t: np.full(x.shape, 0.25, np.float32) for t, x in rows.values.items()}
    service.push(PushRequest(client=0, epoch=1, seq=seq, ids=ids, gradients=gradients, hints=rows.hints))


def same(a: RowBlock, b: RowBlock) -> bool:
    return all(
        x is y if x is None or y is None else (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes())
        for x, y in zip(
            (a.ids, a.values, a.state, a.marks, a.bound), (b.ids, b.values, b.state, b.marks, b.bound), strict=True
        )
    )


def everything(rows: Any) -> dict[tuple[str, int], RowBlock]:
    return {(t.name, p): rows.export_rows(t.name, p) for t in rows.tables() for p in range(rows.partitions)}


@pytest.fixture(params=["here", "one_server", "two_servers"])
def service(request: pytest.FixtureRequest) -> Iterator[Any]:
    options: dict[str, Any] = {"seed": 3, "partitions": P, "threads": 1}
    if request.param == "here":
        yield LocalService(TABLES, **options)
        return
    servers = [Server(TABLES, index=i, **options).start() for i in range(1 if request.param == "one_server" else 2)]
    try:
        with RemoteService(TABLES, Placement.even([s.address for s in servers], P), seed=3) as client:
            client.servers = servers  # type: ignore[attr-defined]
            yield client
    finally:
        for s in servers:
            s.stop()


def test_a_cut_gives_the_rows_of_its_moment_while_they_are_trained_erased_and_replaced(service: Any) -> None:
    for seq in range(1, 5):
        train(service, seq)
    then, stats, clients = everything(service), service.stats(), service.clients()
    cut: Cut = service.cut()
    rng = np.random.default_rng(1)
    seq = 5
    for partition in range(P):
        train(service, seq, 120)
        gone = ids_of(rng, 20)
        for table, ids in gone.items():
            service.erase(table, ids)
        if isinstance(service, LocalService):
            service.store.erase("user", np.repeat(everything(service)["user", partition].ids[:3], 2))
        some = everything(service)["user", 3 - partition]
        service.import_rows("user", RowBlock(some.ids, some.values + 1, some.state))
        for t in TABLES:
            for _ in range(2):  # asked again, it gives the same
                assert same(cut.export_rows(t.name, partition), then[t.name, partition])
            seq += 1
            train(service, seq)
        cut.done(partition)
    assert (dict(cut.stats()), cut.clients()) == (dict(stats), clients)
    assert not any(same(x, then[unit]) for unit, x in everything(service).items())
    with pytest.raises(StoreError, match="was read before"):
        cut.export_rows("user", 0)
    cut.close()
    cut.close()
    with pytest.raises(StoreError, match="not kept any more: it was closed"):
        cut.export_rows("user", 0)


def test_what_is_done_beside_a_cut_is_what_is_done_without_one(service: Any) -> None:
    undisturbed = LocalService(TABLES, seed=3, partitions=P, threads=1)
    for seq in range(1, 9):
        if seq == 4:
            cut = service.cut()
        if seq == 6:
            cut.done(1)
        if seq == 8:
            cut.close()
        train(service, seq)
        train(undisturbed, seq)
    now, want = everything(service), everything(undisturbed)
    assert all(same(now[unit], want[unit]) for unit in want)


def test_a_second_cut_ends_the_first_and_clearing_ends_any(service: Any) -> None:
    train(service, 1)
    first = service.cut()
    second = service.cut()
    with pytest.raises(StoreError, match="not kept any more"):
        first.export_rows("user", 0)
    second.export_rows("user", 0)
    service.clear()
    with pytest.raises(StoreError, match="not kept any more: the rows were cleared"):
        second.export_rows("user", 0)


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("train"), st.integers(0, 30)),
        st.tuples(st.just("erase"), st.integers(0, 30)),
        st.tuples(st.just("import"), st.integers(0, 30)),
        st.tuples(st.just("read"), st.integers(0, 7)),
        st.tuples(st.just("done"), st.integers(0, 7)),
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(OPERATIONS, st.sampled_from([1, 2, 8, 128]))
def test_a_cut_stands_whatever_comes_in_whatever_order(operations: list[tuple[str, int]], partitions: int) -> None:
    service = LocalService(TABLES, seed=3, partitions=partitions, threads=1)
    for seq in range(1, 4):
        train(service, seq, 25)
    then, cut, seq, read = everything(service), service.cut(), 10, set()
    for what, n in operations:
        seq += 1
        ids = {t: x[: n + 1] for t, x in ids_of(np.random.default_rng(n), 20).items()}
        if what == "train":
            train(service, seq, n + 1)
        elif what == "erase":
            service.erase("item", ids["item"])
        elif what == "import":
            x = ids["user"]
            service.import_rows("user", RowBlock(x, np.ones((x.size, 3), np.float32), np.ones((x.size, 7), np.float32)))
        elif n * partitions // 8 not in read:
            p = n * partitions // 8
            assert all(same(cut.export_rows(t.name, p), then[t.name, p]) for t in TABLES)
            if what == "done":
                read.add(p)
                cut.done(p)
    for p in set(range(partitions)) - read:
        assert all(same(cut.export_rows(t.name, p), then[t.name, p]) for t in TABLES)


RULES: dict[str, dict[str, Any]] = {
    "recency": {"capacity": Capacity(rows=64)},
    "frequency": {"capacity": Capacity(rows=64, evict="frequency")},
    "expiry": {"expire": Expiry(steps=12)},
    "admission": {"admit": Admission(sightings=2, window=200)},
    "all": {
        "capacity": Capacity(rows=64, evict="frequency"), "expire": Expiry(steps=30),
        "admit": Admission(sightings=2, window=400),
    },
}  # fmt: skip
"""Of bounded tables: what their rows go by, beyond what anybody names."""


def with_rules(rules: str) -> tuple[Table, ...]:
    return TABLES[0], structs.replace(TABLES[1], **RULES[rules])


@settings(max_examples=100, deadline=None)
@given(OPERATIONS, st.sampled_from([1, 2, 8]), st.sampled_from(sorted(RULES)))
def test_a_cut_of_bounded_tables_stands_while_rows_go_and_grow_older(
    operations: list[tuple[str, int]], partitions: int, rules: str
) -> None:
    service = LocalService(with_rules(rules), seed=3, partitions=partitions, threads=1)
    for seq in range(1, 12):
        train(service, seq)
    then, cut, seq, read = everything(service), service.cut(), 100, set()
    for what, n in operations:
        ids = {t: x[: n + 1] for t, x in ids_of(np.random.default_rng(n), 20).items()}
        if what == "train":
            for _ in range(n + 1):
                seq += 1
                train(service, seq, 10 + n)
        elif what == "erase":
            service.erase("item", ids["item"])
        elif what == "import":
            x, old = ids["item"], everything(service)["item", 0]
            width = old.values.shape[1]
            values, state = (
                np.ones((x.size, width), old.values.dtype),
                np.ones((x.size, old.state.shape[1]), np.float32),
            )
            service.import_rows("item", RowBlock(x, values, state))
        elif n * partitions // 8 not in read:
            p = n * partitions // 8
            assert all(same(cut.export_rows(t.name, p), then[t.name, p]) for t in TABLES)
            if what == "done":
                read.add(p)
                cut.done(p)
    for p in set(range(partitions)) - read:
        assert all(same(cut.export_rows(t.name, p), then[t.name, p]) for t in TABLES)
    cut.close()
    # And nothing of it is left behind: the next one is as good.
    then, cut = everything(service), service.cut()
    train(service, seq + 1, 200)
    assert all(same(x, then[unit]) for unit, x in everything(cut).items())


@pytest.mark.parametrize("rules", sorted(RULES))
def test_a_cut_of_bounded_tables_holds_only_what_goes_or_changes(rules: str) -> None:
    service = LocalService(with_rules(rules), seed=3, partitions=P, threads=1)
    undisturbed = LocalService(with_rules(rules), seed=3, partitions=P, threads=1)
    for seq in range(1, 9):
        train(service, seq)
        train(undisturbed, seq)
    then, cut = everything(service), service.cut()
    rows = sum(x.ids.size for x in then.values())
    sketches = sum(x.bound.nbytes - 88 for x in then.values() if x.bound is not None)
    at_most = cut._marks
    assert sketches <= at_most <= 2 * rows + sketches
    assert cut._bytes == 0  # nothing was copied yet
    for seq in range(9, 40):
        train(service, seq, 10)
        train(undisturbed, seq, 10)
    assert cut._bytes > 0
    assert cut._marks == at_most
    assert all(same(x, then[unit]) for unit, x in everything(cut).items())
    cut.close()
    # Who trains beside a cut trains as without one.
    want = everything(undisturbed)
    assert all(same(x, want[unit]) for unit, x in everything(service).items())


def test_a_cut_of_bounded_tables_that_does_not_fit_is_refused_and_leaves_nothing() -> None:
    service = LocalService(with_rules("all"), seed=3, partitions=P, threads=1)
    train(service, 1)
    with pytest.raises(StoreError, match=r"the bounded tables up to 'item' takes .* room for a copy of 10;"):
        service.cut(aside_bytes=10)
    then, cut = everything(service), service.cut()
    train(service, 2)
    assert all(same(x, then[unit]) for unit, x in everything(cut).items())


def test_who_trains_waits_for_room_until_something_was_written() -> None:
    service = LocalService(TABLES, seed=3, partitions=P, threads=1)
    for seq in range(1, 5):
        train(service, seq)
    then = everything(service)
    cut = service.cut(aside_bytes=1)
    trained = threading.Event()

    def more() -> None:
        train(service, 5)  # its pull sets aside more than there is room for
        trained.set()

    thread = threading.Thread(target=more)
    thread.start()
    while not cut.full:
        thread.join(0.01)
    for p in range(P):
        assert not trained.wait(0.05)
        assert all(same(cut.export_rows(t.name, p), then[t.name, p]) for t in TABLES)
        cut.done(p)
    thread.join()
    assert service.clients() == {0: (1, 5)}


def test_a_server_gives_a_cut_up_that_keeps_clients_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("satrap.ps.cut.ASIDE_LEAST", 1)
    monkeypatch.setattr("satrap.ps.cutting.HELD_UP_S", 0.0)
    monkeypatch.setattr("satrap.store.limit.MemoryRoom.left_bytes", lambda self: 0)
    monkeypatch.setattr("satrap.store.store.Store._look", lambda self: None)
    with (
        Server(TABLES, seed=3, partitions=P, threads=1) as server,
        RemoteService(TABLES, Placement.even([server.address], P), seed=3) as client,
    ):
        for seq in range(1, 5):
            train(client, seq)
        cut = client.cut()
        for seq in range(5, 9):
            train(client, seq)
        assert client.clients() == {0: (1, 8)}
        with pytest.raises(StoreError, match="did not fit into memory for 0 s"):
            cut.export_rows("user", 0)


def test_a_cut_that_nobody_reads_ends() -> None:
    service = LocalService(TABLES, seed=3, partitions=P, threads=1)
    cutting = Cutting(service)
    cutting.begin(5)
    now = cutting._asked_at
    cutting.tend(now + 599)
    assert cutting.open
    cutting.tend(now + 601)
    assert not cutting.open


def test_rows_on_different_servers_that_change_together_are_equal_in_every_cut() -> None:
    # The value of a row is the number of pushes it had; each push has one id of either server.
    table = Table(name="t", dim=1, optimizer=SGD(lr=1.0), initializer=Zeros())
    probe = LocalService([table], seed=0, partitions=P, threads=1)
    every = np.arange(1, 400, dtype=np.uint64)
    parts = probe.store.partitions_of(every)
    pairs = list(zip(every[parts < 2][:50].tolist(), every[parts >= 2][:50].tolist(), strict=True))
    servers = [Server([table], index=i, seed=0, partitions=P, threads=1).start() for i in range(2)]
    drained, more = threading.Lock(), True
    with RemoteService([table], Placement.even([s.address for s in servers], P), seed=0) as client:

        def pushes() -> None:
            rng, seq = np.random.default_rng(4), 0
            while more:
                with drained:
                    seq += 1
                    chosen = rng.choice(len(pairs), 10, replace=False)
                    ids = {"t": np.array([x for i in chosen for x in pairs[i]], np.uint64)}
                    client.pull(PullRequest(ids=ids, create=True))
                    client.push(PushRequest(0, 1, seq, ids, {"t": np.full((20, 1), -1.0, np.float32)}))

        thread = threading.Thread(target=pushes)
        thread.start()
        try:
            last = -1.0
            for _ in range(8):
                with drained:
                    cut = client.cut()
                rows: dict[int, float] = {}
                for p in range(P):
                    block = cut.export_rows("t", p)
                    rows |= dict(zip(block.ids.tolist(), block.values[:, 0].tolist(), strict=True))
                    cut.done(p)
                assert all(rows.get(a) == rows.get(b) for a, b in pairs)
                assert sum(rows.values()) == 20 * cut.clients().get(0, (0, 0))[1] > last
                last = sum(rows.values())
        finally:
            more = False
            thread.join()
            for s in servers:
                s.stop()


def test_a_server_that_is_killed_takes_the_cut_with_it_and_nothing_else(tmp_path: Path) -> None:
    with Servers(tmp_path, TABLES, 2) as servers:
        client = servers.connect()
        for seq in range(1, 4):
            train(client, seq)
        cut = client.cut()
        train(client, 4)
        servers.servers[1].kill()
        servers.servers[1].begin()
        train(client, 5)
        with pytest.raises(StoreError, match="not kept any more: the server has begun anew"):
            everything(cut)
        cut.close()
        undisturbed = LocalService(TABLES, seed=0, partitions=8, threads=1)
        for seq in range(1, 6):
            train(undisturbed, seq)
        then = everything(client)
        assert all(same(then[unit], x) for unit, x in everything(undisturbed).items())
        another = client.cut()
        train(client, 6)
        assert all(same(then[unit], x) for unit, x in everything(another).items())
