"""No gradient is lost and none is applied twice, whatever the network does: the ledger technique.

With SGD at rate 1 and integer gradients the rows are exact sums in any order, so they tell every loss, double and
misrouting. Each (client, push) has a value of its own.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from deployments import exact
from numpy.typing import NDArray

from satrap.embedding import Ledger
from satrap.ps import PullRequest, PushRequest
from satrap.testing import Cluster, Faults

TABLES = [exact("a", 3), exact("b", 8)]
IDS = 200

FAULTS = {
    "drop": Faults(drop=0.25),
    "duplicate": Faults(duplicate=0.4),
    "reorder": Faults(reorder=0.6, spread_ms=60),
    "delay": Faults(delay_ms=5),
    "all of it": Faults(drop=0.15, duplicate=0.2, reorder=0.4, delay_ms=2, bytes_per_s=20e6),
}


class Worker:
    """Pushes a seeded sequence, several pushes under way at once, and keeps a ledger."""

    def __init__(self, service: Any, client: int, *, window: int, merge: int = 1) -> None:
        self.ledger, self._service, self._client = Ledger(), service, client
        self._window, self._merge, self._epoch = window, merge, 0
        self.sums = {t.name: np.zeros((IDS, t.dim), np.float32) for t in TABLES}

    def run(self, pushes: int) -> None:
        """Under names of its own, as often as it is called."""
        self._epoch += 1
        rng = np.random.default_rng([7, self._client])
        under_way: list[tuple[int, Any]] = []
        for seq in range(1, pushes + 1):
            ids, gradients = self._batch(rng, seq)
            rows = self._service.pull(PullRequest(ids=ids, create=True))
            name = (self._client, self._epoch, 3 * seq)
            push = PushRequest(*name, ids, gradients, versions=rows.versions, hints=rows.hints, merge=self._merge)
            under_way.append((sum(x.size for x in ids.values()), self._service.submit_push(push)))
            if len(under_way) >= self._window:
                self._settle(*under_way.pop(0))
        for sent, pending in under_way:
            self._settle(sent, pending)

    def _settle(self, sent: int, pending: Any) -> None:
        ack = pending.result()
        # A push of this client is sent once by the caller: that the network repeated it must not be seen here.
        assert not ack.duplicate
        assert not ack.repeated
        self.ledger.enter(sent, ack)

    def _batch(self, rng: np.random.Generator, seq: int) -> tuple[dict[str, Any], dict[str, Any]]:
        ids: dict[str, NDArray[np.uint64]] = {}
        gradients = {}
        for t in TABLES:
            chosen = np.flatnonzero(rng.random(IDS) < 0.2)
            if rng.random() < 0.3:
                continue  # names then skip servers, or all of them
            ids[t.name] = (chosen * 1_000_003).astype(np.uint64)
            value = 100 * self._client + seq
            gradients[t.name] = np.full((chosen.size, t.dim), value, np.float32)
            self.sums[t.name][chosen] += value
        return ids, gradients


def run(workers: list[Worker], pushes: int) -> None:
    failures: list[BaseException] = []

    def start(worker: Worker) -> None:
        try:
            worker.run(pushes)
        except BaseException as e:
            failures.append(e)

    threads = [threading.Thread(target=start, args=(w,)) for w in workers]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures


def check(service: Any, workers: list[Worker]) -> None:
    every = (np.arange(IDS) * 1_000_003).astype(np.uint64)
    for t in TABLES:
        have = service.pull(PullRequest(ids={t.name: every}, create=False)).values[t.name]
        np.testing.assert_array_equal(have, -sum(w.sums[t.name] for w in workers))
    for w in workers:
        assert w.ledger.balanced
        assert w.ledger.applied == w.ledger.sent > 0


@pytest.mark.parametrize("servers", [1, 3])
@pytest.mark.parametrize("kind", FAULTS)
def test_the_ledger_balances_to_the_gradient_under(kind: str, servers: int) -> None:
    with Cluster(TABLES, servers=servers, faults=FAULTS[kind], seed=servers) as cluster:
        workers = [Worker(cluster.connect(c), c, window=5) for c in range(2)]
        run(workers, 25)
        check(cluster.connect(9), workers)
        counts = sum((p.counts for p in cluster.proxies), start=cluster.proxies[0].counts.__class__())
        happened = {"drop": "dropped", "duplicate": "duplicated", "reorder": "reordered"}.get(kind)
        assert happened is None or counts[happened] > 10


@pytest.mark.parametrize("workers", [2, 4])
def test_merged_steps_add_each_workers_gradients_once_under_all_faults(workers: int) -> None:
    with Cluster(TABLES, servers=2, faults=FAULTS["all of it"], seed=workers) as cluster:
        group = [Worker(cluster.connect(c), c, window=1, merge=workers) for c in range(workers)]
        run(group, 12)
        check(cluster.connect(9), group)


def test_merged_steps_under_way_together_are_each_whole() -> None:
    # Several steps held at once: a window of pushes that wait for those of the other worker.
    with Cluster(TABLES, servers=3, faults=FAULTS["reorder"], seed=5) as cluster:
        group = [Worker(cluster.connect(c), c, window=4, merge=2) for c in range(2)]
        run(group, 15)
        check(cluster.connect(9), group)
