"""Partitions move between servers in use: no gradient is lost, none applied twice, and no partition has two owners.

The ledger technique of `test_ledger_under_faults.py`, while partitions move.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deployments import cold, exact, impatient, pull, push_of, u64
from histories import Life
from numpy.typing import NDArray
from test_ledger_under_faults import FAULTS, TABLES, Worker, check, run
from test_same_bits import assert_same_bits, tables, train

from satrap import wire
from satrap.errors import ServerLost, ServiceError
from satrap.ps import LocalService, Mover, Placement, PullRequest, PushRequest, moving
from satrap.schema import SGD, Adam, Admission, Capacity, Expiry, Table, WireFormat
from satrap.testing import Cluster
from satrap.testing.cluster import SOON

SECTIONS = (wire.Section(0, 100, 3),)
PULL_OF_ALL = wire.Pull(request=10, sections=SECTIONS, ids=np.arange(100, dtype=np.uint64), create=True)


def push_of_one(seq: int, row_id: int) -> wire.Push:
    gradients = np.ones(3, np.float32).view(np.uint8)
    sections = (wire.Section(0, 1, 3),)
    ids = np.array([row_id], np.uint64)
    return wire.Push(request=100 + seq, client=0, epoch=0, seq=seq, sections=sections, ids=ids, gradients=gradients)


class Killed(Exception):  # noqa: N818
    """A coordinator's end."""


def mover_of(cluster: Cluster, layout: Any = TABLES, placement: Placement | None = None, seed: int = 0) -> Mover:
    return Mover(layout, placement or cluster.placement, seed=seed, patience=SOON)


def scale(cluster: Cluster, mover: Mover, servers: int) -> None:
    while len(cluster.servers) < servers:
        mover.add(cluster.grow())
    mover.scale(servers)


def beside(work: Callable[[], object]) -> tuple[threading.Thread, Callable[[], None]]:
    """Runs something in a thread; the returned function waits for it and raises what it raised."""
    failed: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as e:
            failed.append(e)

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()

    def join() -> None:
        thread.join(120)
        assert not thread.is_alive()
        if failed:
            raise failed[0]

    return thread, join


def holders(cluster: Cluster) -> list[list[int]]:
    """Partition → servers that have rows of it."""
    held: list[list[int]] = [[] for _ in range(cluster.placement.partitions)]
    for i, s in enumerate(cluster.servers):
        for p in range(len(held)):
            if any(s.service.export_rows(t.name, p).ids.size for t in s.service.tables()):
                held[p].append(i)
    return held


def push_while(workers: list[Worker], work: Callable[[], object], pushes: int = 8) -> None:
    """Workers push until something has been done beside them, and a little longer."""
    run(workers, 3)
    thread, join = beside(work)
    while thread.is_alive():
        run(workers, pushes)
    join()
    run(workers, 3)


@pytest.mark.parametrize(
    ("clients", "window", "merge", "layout"),
    [(1, 5, 1, TABLES), (3, 4, 1, TABLES), (2, 1, 2, TABLES), (3, 4, 3, TABLES), (2, 4, 1, cold(TABLES))],
    ids=["one", "three", "merged", "three merged", "rows on disk"],
)
def test_the_ledger_is_exact_while_servers_come_and_go(clients: int, window: int, merge: int, layout: Any) -> None:
    with Cluster(layout, servers=2, bind="") as cluster, mover_of(cluster, layout) as mover:
        workers = [Worker(cluster.connect(c), c, window=window, merge=merge) for c in range(clients)]

        def moves() -> None:
            for servers in (4, 1, 3):
                scale(cluster, mover, servers)

        push_while(workers, moves)
        check(cluster.connect(9), workers)
        assert mover.placement.moves > 8
        assert [[o] for o in mover.placement.owners] == holders(cluster)


@pytest.mark.parametrize("merge", [1, 2])
def test_the_ledger_is_exact_under_a_bad_network_as_well(merge: int) -> None:
    # A message that comes again after the move, or late, must not be taken for one by the new placement.
    with (
        Cluster(TABLES, servers=2, faults=FAULTS["all of it"], seed=merge) as cluster,
        mover_of(cluster, seed=merge) as mover,
    ):
        workers = [Worker(cluster.connect(c), c, window=4, merge=merge) for c in range(2)]
        push_while(workers, lambda: scale(cluster, mover, 3), pushes=4)
        check(cluster.connect(9), workers)


@pytest.mark.parametrize("wire", [WireFormat.FP32, WireFormat.FP16, WireFormat.INT8])
def test_a_run_in_which_partitions_move_ends_with_the_bits_of_one_without(wire: WireFormat) -> None:
    # Every optimizer, both storage formats: state moves with the rows, and a gradient divided anew keeps its scale.
    layout = tables(wire)
    with Cluster(layout, servers=2, partitions=8, seed=3) as cluster:
        want = train(cluster.connect(), layout, steps=12)
    with Cluster(layout, servers=2, partitions=8, seed=3) as cluster, mover_of(cluster, layout, seed=3) as mover:
        client = cluster.connect()

        def moves() -> None:
            scale(cluster, mover, 3)
            scale(cluster, mover, 1)

        _, join = beside(moves)
        got = train(client, layout, steps=12)
        join()
    # Versions of rows that moved are not known: they tell staleness alone.
    values = [x.dtype != np.uint8 and x.dtype != np.int64 for x in want]
    assert_same_bits(*([x for x, v in zip(run, values, strict=True) if v] for run in (got, want)))


STAGES = ("copied", "released", "accepted", "placed")


@pytest.mark.parametrize("stage", STAGES)
def test_a_coordinator_that_dies_leaves_one_owner_to_every_partition(stage: str) -> None:
    with Cluster(TABLES, servers=2, bind="") as cluster:
        workers = [Worker(cluster.connect(c), c, window=3) for c in range(2)]
        first = mover_of(cluster)

        def dies(at: str) -> None:
            if at == stage:
                raise Killed

        def moves() -> None:
            with suppress(Killed):
                first.move(0, 1, dies)
            first.close()
            with mover_of(cluster) as second:
                placement = second.settle()
                assert placement.owners[0] == (1 if stage in ("accepted", "placed") else 0)
                second.move(5, 0)
                # What the dead one was told had changed, nobody has copied any more.
                second.move(0, 1 - placement.owners[0])
                assert [[o] for o in second.placement.owners] == holders(cluster)

        push_while(workers, moves)
        check(cluster.connect(9), workers)


def test_a_request_of_a_move_that_comes_twice_does_not_take_from_what_the_next_one_tells(tmp_path: Path) -> None:
    # A coordinator takes one answer; what only the other told would never be copied.
    life = Life(tmp_path)
    life.ask(PULL_OF_ALL)
    life.ask(wire.Place(request=20, number=0, addresses=("a", "b"), owners=(0, 0, 0, 0)))
    (first,) = life.ask(wire.Track(request=21, partition=1))
    assert isinstance(first, wire.Touched)
    assert not first.continues
    life.ask(push_of_one(seq=1, row_id=int(first.ids[0])))
    (again,) = life.ask(wire.Track(request=21, partition=1))
    assert wire.encode(again) == wire.encode(first)
    (second,) = life.ask(wire.Track(request=22, partition=1, after=21))
    assert isinstance(second, wire.Touched)
    assert (second.continues, second.ids.tolist()) == (True, [int(first.ids[0])])
    # One that has not had the last answer, another coordinator say, is told all.
    (third,) = life.ask(wire.Track(request=23, partition=1, after=21))
    assert isinstance(third, wire.Touched)
    assert (third.continues, third.ids.size) == (False, first.ids.size)
    life.close()


def test_a_part_that_one_move_has_divided_and_the_next_one_overtakes_is_no_duplicate(tmp_path: Path) -> None:
    # Its name is older than what the server has of the client, and so is the placement that it was divided by.
    life = Life(tmp_path)
    parts = life.handler.service.store.partitions_of(np.arange(100, dtype=np.uint64))
    life.ask(PULL_OF_ALL)
    life.ask(wire.Place(request=20, number=0, addresses=("a", "b"), owners=(1, 1, 0, 0)))
    life.ask(push_of_one(seq=1, row_id=int(np.flatnonzero(parts == 2)[0])))
    for move, partition in ((1, 0), (2, 1)):
        life.ask(wire.Accept(request=20 + move, partition=partition, number=move << 16))
        owners = (0, 1, 0, 0) if move == 1 else (0, 0, 0, 0)
        life.ask(wire.Place(request=30 + move, number=move << 16, addresses=("a", "b"), owners=owners))
    rest = replace(push_of_one(seq=1, row_id=int(np.flatnonzero(parts == 0)[0])), request=500, placement=1 << 16)
    (moved,) = life.ask(rest)
    assert isinstance(moved, wire.Moved)
    again = replace(rest, request=501, placement=2 << 16)
    for _ in range(2):  # the second time as a message that came twice
        (ack,) = life.ask(again)
        assert isinstance(ack, wire.AckReply)
        assert (ack.applied, ack.duplicate) == (1, False)
    (ack,) = life.ask(replace(again, request=502))
    assert isinstance(ack, wire.AckReply)
    assert ack.duplicate
    life.close()


def test_a_forget_that_comes_again_late_removes_nothing_that_was_copied_since(tmp_path: Path) -> None:
    life = Life(tmp_path)
    life.ask(wire.Place(request=20, number=0, addresses=("a", "b"), owners=(1, 1, 1, 1)))
    ids = np.arange(40, dtype=np.uint64)
    values, state = np.ones((40, 3), np.float32), np.zeros((40, 7), np.float32)
    in_it = life.handler.service.store.partitions_of(ids) == 2
    life.ask(wire.Forget(request=21, partition=2))
    life.ask(wire.ImportRows(request=22, table=0, ids=ids, values=values, state=state))
    for _ in range(2):  # also by the process that comes after
        life.ask(wire.Forget(request=21, partition=2))
        assert life.handler.service.export_rows("a", 2).ids.size == in_it.sum() > 0
        life.close()
        life = Life(tmp_path)
    life.close()


def test_a_coordinator_that_was_thought_dead_can_change_nothing_any_more() -> None:
    # It wakes between Release and Accept, after another has given the partition back: never two owners.
    with Cluster(TABLES, servers=2, bind="") as cluster:
        worker = Worker(cluster.connect(0), 0, window=1)
        run([worker], 5)
        with mover_of(cluster) as zombie, mover_of(cluster) as second:

            def wakes(stage: str) -> None:
                if stage == "released":
                    second.settle()

            with pytest.raises(ServiceError, match="out of date"):
                zombie.move(0, 1, wakes)
            assert second.placement.owners[0] == 0
            # What it had copied is forgotten by whoever moves something there next, and read by nobody.
            second.settle()
            assert [[o] for o in second.placement.owners] == holders(cluster)
        run([worker], 5)
        check(cluster.connect(9), [worker])


@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize("stage", STAGES)
def test_a_server_killed_in_a_move_comes_back_to_what_it_was_in(stage: str, who: int, tmp_path: Path) -> None:
    with Cluster(TABLES, servers=2, bind="", history=tmp_path) as cluster, mover_of(cluster) as mover:
        workers = [Worker(cluster.connect(c), c, window=3, merge=2) for c in range(2)]

        def killed(at: str) -> None:
            if at == stage:
                cluster.stop(who)
                cluster.restart(who)

        def moves() -> None:
            mover.move(0, 1, killed)
            mover.move(1, 1)

        push_while(workers, moves)
        assert mover.placement.owners[:2] == (1, 1)
        assert [[o] for o in mover.placement.owners] == holders(cluster)
        for i in range(2):  # and what it has on disk is what it is
            cluster.stop(i)
            cluster.restart(i)
        run(workers, 3)
        check(cluster.connect(9), workers)


def test_a_source_that_lost_its_rows_in_a_move_is_a_lost_server_to_all() -> None:
    with Cluster(TABLES, servers=2, bind="") as cluster, mover_of(cluster) as mover:
        service = cluster.connect(0)
        pull(service, "a", u64(*range(50)), create=True)

        def lost(stage: str) -> None:
            if stage == "copied":
                cluster.stop(0)
                cluster.restart(0)

        with pytest.raises(ServerLost):
            mover.move(0, 1, lost)
        with pytest.raises(ServerLost):
            pull(service, "a", u64(*range(50)))


def test_rows_that_are_erased_and_made_while_they_are_copied_are_so_at_the_target() -> None:
    layout = [exact()]
    ids = np.arange(400, dtype=np.uint64)
    with Cluster(layout, servers=2, bind="") as cluster, mover_of(cluster, layout) as mover:
        service = cluster.connect(0)
        pull(service, "t", ids[:300], create=True)
        service.push(push_of(1, ids[:300], 1.0))
        where = cluster.servers[0].service.store.partitions_of(ids)

        def changes(stage: str) -> None:
            if stage == "copied":
                service.erase("t", ids[:100])
                pull(service, "t", ids[300:], create=True)
                service.push(push_of(2, ids[200:], 2.0))

        mover.move(0, 1, changes)
        block = cluster.servers[1].service.export_rows("t", 0)
        assert set(block.ids.tolist()) == set(ids[(where == 0) & (ids >= 100)].tolist())
        want = np.where(block.ids < 200, -1.0, np.where(block.ids < 300, -3.0, -2.0))
        np.testing.assert_array_equal(block.values[:, 0], want)


def test_who_knows_only_of_the_old_servers_reads_saves_and_clears_all_rows() -> None:
    layout = [exact()]
    ids = np.arange(200, dtype=np.uint64)
    with Cluster(layout, servers=1, bind="") as cluster, mover_of(cluster, layout) as mover:
        first, second, third = (cluster.connect(c) for c in range(3))
        pull(first, "t", ids, create=True)
        first.push(push_of(1, ids, 1.0))
        scale(cluster, mover, 3)
        blocks = [second.export_rows("t", p) for p in range(8)]
        assert sorted(np.concatenate([b.ids for b in blocks]).tolist()) == ids.tolist()
        assert third.clients() == {0: (0, 1)}
        assert third.stats()["t"].rows == 200
        fourth = cluster.connect(3)
        assert fourth.erase("t", ids[:50]) == 50
        fifth = cluster.connect(4)
        fifth.clear()
        for block in blocks:
            cluster.connect(5).import_rows("t", block)
        assert sum(s.service.stats()["t"].rows for s in cluster.servers) == 200
        np.testing.assert_array_equal(pull(cluster.connect(6), "t", ids), -1.0)


def test_a_push_that_failed_before_a_move_is_not_tried_again_by_another_placement() -> None:
    # What of it was applied is not known, and the new owner would not know it either.
    layout = [exact()]
    ids = np.arange(200, dtype=np.uint64)
    with Cluster(layout, servers=2, bind="") as cluster, mover_of(cluster, layout) as mover:
        service = cluster.connect(0)
        pull(service, "t", ids, create=True)
        rows = cluster.stop(1)
        with impatient(service), pytest.raises(ServiceError, match="has not answered"):
            service.push(push_of(1, ids, 1.0))
        cluster.restart(1, rows)
        mover.move(0, 1)
        pull(service, "t", ids)
        with pytest.raises(ServerLost, match="partitions have moved since"):
            service.push(push_of(1, ids, 1.0))


def test_a_placement_of_another_start_is_refused_after_moves_too() -> None:
    with Cluster(TABLES, servers=2, bind="") as cluster, mover_of(cluster) as mover:
        mover.move(0, 1)
        service = cluster.connect(0)
        pull(service, "a", u64(1, 2, 3), create=True)
        for server in cluster.servers:
            server.advance(1)
        with pytest.raises(ServiceError, match="goes by placement 1, the request by placement 0"):
            service.pull(PullRequest(ids={"a": u64(1)}, create=False))
        with pytest.raises(ServiceError, match="placement 1"):
            mover.move(1, 1)


def test_the_fewest_partitions_move() -> None:
    placement = Placement.even(["a", "b", "c"], partitions=16)
    for servers in (1, 2, 3, 4, 5, 16):
        moves = placement.moves_to(servers)
        owners = list(placement.owners)
        for p, to in moves:
            assert owners[p] != to
            owners[p] = to
        counts = [owners.count(s) for s in range(servers)]
        assert max(counts) - min(counts) <= 1
        assert sum(counts) == 16
        before = [placement.owners.count(s) for s in range(16)]
        assert len(moves) == sum(max(0, n - (counts[s] if s < servers else 0)) for s, n in enumerate(before))
    with pytest.raises(ServiceError, match="1 to 16 servers, not on 17"):
        placement.moves_to(17)


BOUNDED = (
    Table(name="recent", dim=2, optimizer=SGD(lr=0.1), capacity=Capacity(rows=64)),
    Table(name="known", dim=3, optimizer=Adam(lr=0.1), capacity=Capacity(rows=48, evict="frequency"),
          admit=Admission(sightings=2, window=256)),
    Table(name="fleeting", dim=1, optimizer=SGD(lr=0.1), expire=Expiry(steps=20)),
    Table(name="plain", dim=2, optimizer=SGD(lr=0.1)),
)  # fmt: skip


def bounded_step(service: Any, seq: int) -> dict[str, Any]:
    rng = np.random.default_rng(seq)
    ids = {t.name: np.unique((200 * rng.random(40) ** 2).astype(np.uint64)) for t in BOUNDED}
    rows = service.pull(PullRequest(ids=ids, create=True))
    gradients = {n: np.full(x.shape, 0.5, np.float32) for n, x in rows.values.items()}
    service.push(PushRequest(client=0, epoch=0, seq=seq, ids=ids, gradients=gradients))
    return dict(rows.values)


def test_bounded_tables_move_with_marks_clocks_and_sketches_and_go_on_as_if_they_had_not() -> None:
    stayed = LocalService(BOUNDED, seed=0, partitions=8, threads=1)
    with Cluster(BOUNDED, servers=2, partitions=8) as cluster, mover_of(cluster, BOUNDED) as mover:
        client = cluster.connect()
        for seq in range(1, 90):
            if seq % 10 == 0:
                scale(cluster, mover, (3, 1, 2)[seq // 10 % 3])
            want, have = bounded_step(stayed, seq), bounded_step(client, seq)
            assert all(want[n].tobytes() == have[n].tobytes() for n in want)
        same_partitions(stayed, client, 8)
        # A partition is counted once, wherever it has been.
        assert client.stats() == {**client.stats(), **{n: replace_sizes(stayed, client, n) for n in client.stats()}}
        assert all(client.stats()[n].evicted > 0 for n in ("recent", "known"))
        assert client.stats()["fleeting"].expired > 0


def same_partitions(stayed: LocalService, client: Any, partitions: int) -> None:
    for t in BOUNDED:
        for p in range(partitions):
            a, b = stayed.export_rows(t.name, p), client.export_rows(t.name, p)
            for part in ("ids", "values", "state", "marks", "bound"):
                np.testing.assert_array_equal(getattr(a, part), getattr(b, part), err_msg=f"{t.name} {p} {part}")


class Interrupted(Mover):
    """A coordinator between whose requests others train, until a partition is given up: then they would wait."""

    after: tuple[type[wire.Message], ...] = (wire.Track, wire.ReadRows, wire.ReserveRows)

    def __init__(self, *arguments: Any, meanwhile: Callable[[], None], **options: Any) -> None:
        self.meanwhile, self.asked = meanwhile, dict[str, int]()
        super().__init__(*arguments, **options)

    def _ask(self, server: int, message: wire.Message, kind: Any) -> Any:
        answer = super()._ask(server, message, kind)
        self.asked[type(message).__name__] = self.asked.get(type(message).__name__, 0) + 1
        if isinstance(message, self.after) and "Release" not in self.asked:
            self.meanwhile()
        return answer


@pytest.mark.parametrize("seed", range(4))
def test_a_bounded_partition_is_copied_while_it_is_trained_and_ends_as_if_it_had_stayed(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Pages of 2 to 20 rows: rows go, come back, age and are halved between them.
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(Mover, "_page_rows", lambda self, table: int(rng.integers(2, 20)))
    monkeypatch.setattr(moving, "FEW", 3)
    stayed = LocalService(BOUNDED, seed=0, partitions=4, threads=1)
    seq, rounds = itertools.count(1), 0
    with Cluster(BOUNDED, servers=2, partitions=4) as cluster:
        client = cluster.connect()

        def train() -> None:
            # Often nothing: most rules look at what happened between one page and the next.
            for _ in range(int(rng.choice((0, 0, 0, 0, 0, 1, 2, 8)))):
                n = next(seq)
                want, have = bounded_step(stayed, n), bounded_step(client, n)
                assert all(want[t].tobytes() == have[t].tobytes() for t in want)
            if rng.random() < 0.2:
                # Rows of any age, so that those that come instead must not push out others at the target.
                for t in BOUNDED:
                    some = rng.integers(0, 200, 40).astype(np.uint64)
                    assert stayed.erase(t.name, np.unique(some)) == client.erase(t.name, np.unique(some))

        for _ in range(10):
            train()
        with Interrupted(BOUNDED, cluster.placement, meanwhile=train, seed=0, patience=SOON) as mover:
            for _ in range(6):
                mover.asked.clear()
                partition = int(rng.integers(4))
                mover.move(partition, 1 - mover.placement.owners[partition])
                # Nothing had to be copied all over again, which would be right as well.
                assert mover.asked["Release"] == 1
                assert mover.asked["Forget"] == 2
                rounds = max(rounds, mover.asked["Track"])
                for _ in range(int(rng.integers(6))):
                    train()
        same_partitions(stayed, client, 4)
        for _ in range(30):
            train()
    assert rounds >= 2


@pytest.mark.parametrize("seed", range(3))
def test_a_server_killed_while_bounded_rows_are_copied_makes_no_difference(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The source forgets what had changed and the copy begins again; the target comes back with the clocks it was given.
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(Mover, "_page_rows", lambda self, table: int(rng.integers(4, 20)))
    monkeypatch.setattr(moving, "FEW", 3)
    stayed = LocalService(BOUNDED, seed=0, partitions=4, threads=1)
    seq, kills = itertools.count(1), 0
    with Cluster(BOUNDED, servers=2, partitions=4, bind="", history=tmp_path) as cluster:
        client = cluster.connect()

        def train(steps: int) -> None:
            for _ in range(steps):
                n = next(seq)
                bounded_step(stayed, n), bounded_step(client, n)

        def meanwhile() -> None:
            nonlocal kills
            train(int(rng.choice((0, 0, 1, 4))))
            if rng.random() < 0.1:
                kills += 1
                who = int(rng.integers(2))
                cluster.stop(who)
                cluster.restart(who)

        train(30)
        with Interrupted(BOUNDED, cluster.placement, meanwhile=meanwhile, seed=0, patience=SOON) as mover:
            for _ in range(4):
                mover.asked.clear()
                partition = int(rng.integers(4))
                mover.move(partition, 1 - mover.placement.owners[partition])
                train(3)
        same_partitions(stayed, client, 4)
        for who in range(2):  # and what it has on disk is what it is
            cluster.stop(who)
            cluster.restart(who)
        same_partitions(stayed, client, 4)
        train(10)
        same_partitions(stayed, client, 4)
    assert kills > 1


def test_rows_that_were_just_used_age_while_others_of_their_partition_are_copied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = Table(name="fleeting", dim=1, optimizer=SGD(lr=0.1), expire=Expiry(steps=20))
    monkeypatch.setattr(Mover, "_page_rows", lambda self, table: 4)
    stayed = LocalService((table,), seed=0, partitions=2, threads=1)
    seq = itertools.count(1)

    def step(service: Any, ids: NDArray[np.uint64], n: int) -> None:
        rows = service.pull(PullRequest(ids={"fleeting": ids}, create=True)).values
        gradients = {t: np.ones_like(x) for t, x in rows.items()}
        service.push(PushRequest(client=0, epoch=0, seq=n, ids={"fleeting": ids}, gradients=gradients))

    with Cluster((table,), servers=2, partitions=2) as cluster:
        client = cluster.connect()

        def train(ids: NDArray[np.uint64], steps: int) -> None:
            for _ in range(steps):
                n = next(seq)
                step(stayed, ids, n), step(client, ids, n)

        train(u64(*range(24)), 3)
        with Interrupted(
            (table,), cluster.placement, meanwhile=lambda: train(u64(*range(24, 30)), 3), seed=0, patience=SOON
        ) as mover:
            mover.after = (wire.ReadRows,)
            mover.move(0, 1)
        a, b = stayed.export_rows("fleeting", 0), client.export_rows("fleeting", 0)
        assert b.marks is not None
        assert set(b.marks.ravel().tolist()) > {255}
        np.testing.assert_array_equal(a.marks, b.marks)


def replace_sizes(stayed: LocalService, client: Any, table: str) -> Any:
    """What is told of a table that stayed, with the bytes beside rows of the other, which vary."""
    return replace(stayed.stats()[table], overhead_bytes=client.stats()[table].overhead_bytes)


def test_a_bounded_partition_whose_move_is_cut_off_is_whole_at_one_server() -> None:
    for cut_at in ("copied", "released", "accepted", "placed"):
        stayed = LocalService(BOUNDED, seed=0, partitions=8, threads=1)
        with Cluster(BOUNDED, servers=2, partitions=8) as cluster:
            client = cluster.connect()
            for seq in range(1, 30):
                bounded_step(stayed, seq), bounded_step(client, seq)

            def dies(stage: str, cut_at: str = cut_at) -> None:
                if stage == cut_at:
                    raise Killed

            with mover_of(cluster, BOUNDED) as mover, suppress(Killed):
                mover.move(0, 1, dies)
            with mover_of(cluster, BOUNDED) as mover:
                mover.settle()
            for seq in range(30, 60):
                want, have = bounded_step(stayed, seq), bounded_step(client, seq)
                assert all(want[n].tobytes() == have[n].tobytes() for n in want), cut_at
