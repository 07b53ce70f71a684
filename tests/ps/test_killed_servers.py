"""Servers that are killed with SIGKILL, again and again, while workers push: the ledger is exact to the gradient."""

from __future__ import annotations

import random
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from deployments import cold, exact, is_held, outcome, pull, push_of, u64, until
from killed import Servers
from test_ledger_under_faults import TABLES, Worker, check, run

from satrap.durable.snapshot import VERSION, Snapshot
from satrap.errors import JournalError
from satrap.ps import LocalService, PullRequest, PushRequest
from satrap.schema import SGD, Adam, Admission, Capacity, Expiry, Table, ValueFormat

IDS = np.arange(100, dtype=np.uint64)


@pytest.mark.parametrize("level", ["process", "disk"])
def test_a_killed_server_comes_back_with_its_rows_and_its_client_goes_on(level: str, tmp_path: Path) -> None:
    with Servers(tmp_path, [exact()], level=level) as cluster:
        client = cluster.connect()
        pull(client, "t", IDS, create=True)
        for seq in range(1, 6):
            assert outcome(client.push(push_of(seq, IDS, seq))) == (100, {}, False)
        cluster.servers[0].kill()
        cluster.servers[0].begin()
        assert (pull(client, "t", IDS) == -15).all()
        assert outcome(client.push(push_of(6, IDS, 6))) == (100, {}, False)
        assert outcome(client.push(push_of(6, IDS, 6))) == (0, {}, True)
        assert (pull(cluster.connect(1), "t", IDS) == -21).all()


def test_a_row_that_was_pulled_and_not_pushed_is_there_after_a_kill(tmp_path: Path) -> None:
    # Recording pushes alone loses it, and the gradient that comes next is refused.
    with Servers(tmp_path, [exact()]) as cluster:
        client = cluster.connect()
        pull(client, "t", u64(7), create=True)
        cluster.servers[0].kill()
        cluster.servers[0].begin()
        assert outcome(client.push(push_of(1, u64(7), 1))) == (1, {}, False)


def test_half_a_merged_step_survives_a_kill(tmp_path: Path) -> None:
    # Forgetting held pushes makes their clients wait for ever, or the step is applied without them.
    with Servers(tmp_path, [exact()], servers=2) as cluster:
        one, two = cluster.connect(0), cluster.connect(1)
        pull(one, "t", IDS, create=True)
        waiting = one.submit_push(push_of(1, IDS, 1, merge=2, client=0))
        acks: list[object] = []
        thread = threading.Thread(target=lambda: acks.append(waiting.result()))
        thread.start()
        until(lambda: is_held(two))
        for server in cluster.servers:
            server.kill()
            server.begin()
        assert outcome(two.push(push_of(1, IDS, 2, merge=2, client=1))) == (100, {}, False)
        thread.join()
        assert outcome(acks[0]) == (100, {}, False)  # type: ignore[arg-type]
        assert (pull(one, "t", IDS) == -3).all()


class Killer:
    """Kills servers at random while others work, each time after some gradients more."""

    def __init__(self, cluster: Servers, workers: list[Worker], seed: int) -> None:
        self._cluster, self._workers, self._random = cluster, workers, random.Random(seed)
        self._stop = threading.Event()
        self.kills = 0
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        wanted = 0.0
        while not self._stop.wait(self._random.uniform(0.0, 0.05)):
            sent = sum(w.ledger.sent for w in self._workers)
            if sent < wanted:
                continue
            wanted = sent + self._random.uniform(100, 1500)
            server = self._random.choice(self._cluster.servers)
            server.kill()
            server.begin()
            self.kills += 1

    def __enter__(self) -> Killer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


@pytest.mark.parametrize("where", ["in memory", "on disk"])
@pytest.mark.parametrize(
    ("level", "merge", "snapshot_bytes"), [("process", 1, 1 << 30), ("process", 2, 1 << 16), ("disk", 1, 1 << 16)]
)
def test_the_ledger_is_exact_under_kills(
    level: str, merge: int, snapshot_bytes: int, where: str, tmp_path: Path
) -> None:
    tables = TABLES if where == "in memory" else cold(TABLES)
    with Servers(tmp_path, tables, servers=2, level=level, snapshot_bytes=snapshot_bytes) as cluster:
        workers = [Worker(cluster.connect(c), c, window=4 if merge == 1 else 1, merge=merge) for c in range(2)]
        with Killer(cluster, workers, seed=merge) as killer:
            while killer.kills < 6:
                run(workers, 40)
        check(cluster.connect(9), workers)
        # Small thresholds are there so that kills meet snapshots, too.
        assert snapshot_bytes > 1 << 20 or list(tmp_path.glob("server-*/snapshot-*"))


BOUNDED = (
    Table(name="often", dim=3, optimizer=Adam(lr=0.1), capacity=Capacity(rows=1200, evict="frequency")),
    Table(name="lately", dim=2, optimizer=SGD(lr=0.5), capacity=Capacity(rows=1200), expire=Expiry(steps=90)),
    Table(name="seen", dim=2, optimizer=SGD(lr=0.5), format=ValueFormat.INT8, admit=Admission(sightings=2, window=600)),
)


@pytest.mark.parametrize("seed", [1, 2])
def test_bounded_tables_are_what_they_are_without_kills(seed: int, tmp_path: Path) -> None:
    # Rows that went by a rule, and the age of those that stayed, are in increments of snapshots and in replay.
    rng, chosen = np.random.default_rng(seed), random.Random(seed)
    undisturbed = LocalService(BOUNDED, seed=0, partitions=8, threads=1)
    with Servers(tmp_path, BOUNDED, servers=2, snapshot_bytes=40_000, segment_bytes=1 << 12) as cluster:
        client = cluster.connect()
        seq = 0
        while seq < 300 or (seq < 3000 and not any(map(incremental, tmp_path.glob("server-*")))):
            seq += 1
            ids = {t.name: np.unique((20_000 * rng.random(60) ** 3).astype(np.uint64)) for t in BOUNDED}
            gradients = {t.name: rng.standard_normal((ids[t.name].size, t.dim)).astype(np.float32) for t in BOUNDED}
            killer = None
            if seq % 40 == 0:
                server = chosen.choice(cluster.servers)
                killer = threading.Timer(chosen.uniform(0.0, 0.004), lambda s=server: (s.kill(), s.begin()))
                killer.start()
            for service in (undisturbed, client):
                rows = service.pull(PullRequest(ids=ids, create=True))
                service.push(PushRequest(0, 0, seq, ids, gradients, hints=rows.hints))
            if killer is not None:
                killer.join()
        for t in BOUNDED:
            assert undisturbed.stats()[t.name].evicted + undisturbed.stats()[t.name].refused > 0
            for p in range(8):
                have, want = client.export_rows(t.name, p), undisturbed.export_rows(t.name, p)
                for part in ("ids", "values", "state", "marks", "bound"):
                    np.testing.assert_array_equal(getattr(have, part), getattr(want, part), f"{t.name}, {p}: {part}")
        assert seq < 3000, "no snapshot built on another"


def incremental(history: Path) -> bool:
    with suppress(JournalError):  # one that is being removed
        newest = Snapshot.newest(history)
        return newest is not None and newest.manifest.version == VERSION
    return False
