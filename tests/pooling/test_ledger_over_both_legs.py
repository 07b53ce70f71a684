"""No gradient is lost and none is applied twice on the way worker → embedding worker → server: the ledger technique.

With SGD at rate 1 from zeros, and integer gradients, the rows are exact sums in any order, so they tell every loss,
double and misrouting. Each (client, push) has a value of its own.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any

import numpy as np
import pytest
from pooling_jobs import job_with
from test_pooler_conformance import lists

from satrap.data.batch import Jagged
from satrap.embedding import Ledger
from satrap.pooling import Gradients, Plan, Pooler
from satrap.ps import PullRequest
from satrap.schema import SGD, Categorical, Job, Sequence, Table, Zeros
from satrap.testing import Cluster, EmbeddingWorkers, Faults

IDS = 120
FAULTS = {
    "drop": Faults(drop=0.2),
    "duplicate": Faults(duplicate=0.4),
    "reorder": Faults(reorder=0.6, spread_ms=60),
    "delay": Faults(delay_ms=5),
    "all of it": Faults(drop=0.1, duplicate=0.2, reorder=0.4, delay_ms=2, bytes_per_s=20e6),
}


def exact_job() -> Job:
    tables = [Table(name=n, dim=d, optimizer=SGD(lr=1.0), initializer=Zeros()) for n, d in (("a", 3), ("b", 8))]
    return job_with(
        [
            Categorical(name="x", table="a"),
            Categorical(name="z", table="b"),
            Sequence(name="s", table="b", max_length=3),
        ],
        tables,
    )


class Worker:
    """Looks batches up and pushes their gradients, `window` of them under way, and keeps a ledger."""

    def __init__(self, pooler: Pooler, client: int, *, window: int, merge: int = 1) -> None:
        self.ledger, self._pooler, self._client = Ledger(), pooler, client
        self._window, self._merge = window, merge
        self.sums = {"a": np.zeros(IDS), "b": np.zeros(IDS)}

    def run(self, steps: int) -> None:
        rng = np.random.default_rng([7, self._client])
        under_way: list[Any] = []
        ahead: list[Any] = []
        for seq in range(1, steps + 1):
            batch, uses = self._batch(rng)
            ahead.append((uses, self._pooler.begin_lookup(self._pooler.prepare(batch, 16), train=True)))
            if len(ahead) < (1 if self._merge > 1 else 3):
                continue
            under_way.append(self._push(seq, *ahead.pop(0)))
            if len(under_way) >= self._window:
                self._settle(under_way.pop(0))
        for i, (uses, finish) in enumerate(ahead):
            under_way.append(self._push(steps + 1 + i, uses, finish))
        for finish in under_way:
            self._settle(finish)

    def _push(self, seq: int, uses: dict[str, Any], finish: Any) -> Any:
        found = finish()
        value = np.float32(100 * self._client + seq)
        gradients = Gradients(np.full_like(found.pooled, value), [np.full_like(s, value) for s in found.sequences])
        for table, ids in uses.items():
            np.add.at(self.sums[table], ids.astype(int), value)
        return self._pooler.begin_push(found, gradients, epoch=0, seq=3 * seq, merge=self._merge)

    def _settle(self, finish: Any) -> None:
        sent, ack = finish()
        # A push is begun once: that a network repeated it must not be seen here.
        assert not ack.duplicate
        assert not ack.repeated
        self.ledger.enter(sent, ack)

    def _batch(self, rng: np.random.Generator) -> tuple[dict[str, Jagged], dict[str, Any]]:
        x = rng.integers(0, IDS, 16).astype(np.uint64)
        y = [rng.integers(0, IDS, rng.integers(0, 4)).tolist() for _ in range(16)]
        s = [rng.integers(0, IDS, rng.integers(0, 4)).tolist() for _ in range(16)]
        both = np.array([i for lists_ in (y, s) for of in lists_ for i in of], np.uint64)
        return {"x": Jagged(x, None, None), "z": lists(*y), "s": lists(*s)}, {"a": x, "b": both}


def run(workers: list[Worker], steps: int) -> None:
    failures: list[BaseException] = []

    def start(worker: Worker) -> None:
        try:
            worker.run(steps)
        except BaseException as e:
            failures.append(e)

    threads = [threading.Thread(target=start, args=(w,)) for w in workers]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures


def check(service: Any, workers: list[Worker]) -> None:
    every = np.arange(IDS, dtype=np.uint64)
    for table, dim in (("a", 3), ("b", 8)):
        have = service.pull(PullRequest(ids={table: every}, create=False)).values[table]
        want = -sum(w.sums[table] for w in workers)
        np.testing.assert_array_equal(have, np.repeat(want[:, None], dim, axis=1))
    for w in workers:
        assert w.ledger.balanced
        assert w.ledger.applied == w.ledger.sent > 0


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("kind", FAULTS)
def test_the_ledger_balances_to_the_gradient_under(kind: str, count: int) -> None:
    job = exact_job()
    with (
        Cluster(job.resolved_tables(), servers=2, seed=job.seed, faults=FAULTS[kind]) as cluster,
        EmbeddingWorkers(Plan.of(job), cluster, count=count, faults=FAULTS[kind]) as pooling,
    ):
        workers = [Worker(pooling.connect(c), c, window=4) for c in range(2)]
        run(workers, 20)
        check(cluster.connect(9), workers)
        happened = {"drop": "dropped", "duplicate": "duplicated", "reorder": "reordered"}.get(kind)
        for leg in (cluster.proxies, pooling.proxies):
            counts = sum((p.counts for p in leg), start=Counter())
            assert happened is None or counts[happened] > 5


@pytest.mark.parametrize("count", [1, 2, 3])
def test_merged_steps_add_each_workers_gradients_once_under_all_faults(count: int) -> None:
    job = exact_job()
    faults = FAULTS["all of it"]
    with (
        Cluster(job.resolved_tables(), servers=2, seed=job.seed, faults=faults) as cluster,
        EmbeddingWorkers(Plan.of(job), cluster, count=count, faults=faults, seed=count) as pooling,
    ):
        group = [Worker(pooling.connect(c), c, window=1, merge=3) for c in range(3)]
        run(group, 10)
        check(cluster.connect(9), group)


def test_a_server_that_comes_back_with_its_rows_costs_no_gradient() -> None:
    # As one with a journal does: the embedding worker asks again, and neither worker need know.
    job = exact_job()
    with (
        Cluster(job.resolved_tables(), servers=2, seed=job.seed) as cluster,
        EmbeddingWorkers(Plan.of(job), cluster) as pooling,
    ):
        workers = [Worker(pooling.connect(c), c, window=3) for c in range(2)]
        training = threading.Thread(target=run, args=(workers, 150))
        training.start()
        for server in (0, 1):
            while workers[0].ledger.pushes < 30 * (server + 1) and training.is_alive():
                time.sleep(0.001)
            assert training.is_alive()
            cluster.restart(server, cluster.stop(server))
        training.join()
        check(cluster.connect(9), workers)
        assert workers[0].ledger.pushes == 150
