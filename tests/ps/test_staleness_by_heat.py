"""Staleness by how hot a row is: counted against a plain dictionary."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from deployments import exact, pull, push_of, u64

from satrap.observe.scrape import Scrape
from satrap.ps import LocalService, PullRequest
from satrap.ps.heat import CLASSES, Heat
from satrap.testing import Cluster


def heat_of(updates: int) -> str:
    return next(c for c, top in zip(CLASSES, (3, 15, 63, 255, 10**9), strict=True) if updates <= top)


@pytest.mark.parametrize("merge", [1, 2])
def test_each_gradient_counts_at_the_heat_and_the_lag_of_its_row(merge: int) -> None:
    # A version begins anew after 255 updates: the hottest rows of all must not look cold then.
    service, heat = LocalService([exact()], seed=0, partitions=8, threads=1), Heat(every=1)
    service.watch(heat)
    rng, updates, expected = np.random.default_rng(0), Counter[int](), Counter[tuple[str, int]]()
    pulled: dict[int, tuple[np.ndarray, np.ndarray, list[int]]] = {}
    hot = u64(1, 2, 3)
    service.pull(PullRequest(ids={"t": np.arange(40, dtype=np.uint64)}, create=True))
    for seq in range(1, 701):
        for client in range(merge if seq % 3 == 1 else 0):  # two steps of three go by what was pulled before
            ids = np.unique(np.append(rng.integers(0, 40, 4).astype(np.uint64), hot))
            versions = service.pull(PullRequest(ids={"t": ids}, create=True)).versions["t"]
            pulled[client] = (ids, versions, [updates[int(i)] for i in ids])
        for client, (ids, versions, seen) in pulled.items():
            expected.update((heat_of(updates[int(i)]), updates[int(i)] - s) for i, s in zip(ids, seen, strict=True))
            service.offer(push_of(seq, ids, 1, client=client, merge=merge, versions={"t": versions}))
        updates.update(set().union(*(ids.tolist() for ids, _, _ in pulled.values())))
    counted = {(c, lag): int(n) for c, row in zip(CLASSES, heat.counts, strict=True) for lag, n in enumerate(row) if n}
    assert counted == dict(expected)
    assert {c for c, _ in counted} == set(CLASSES)


def test_a_large_push_is_sampled_over_all_of_it() -> None:
    heat, ids = Heat(every=1), np.arange(10_000, dtype=np.uint64)
    for _ in range(80):
        heat.measured("t", ids, np.zeros(ids.size, np.uint8), (ids // 5000).astype(np.uint16))
    total = heat.counts.sum()
    assert 80 * 60 <= total <= 80 * 70
    assert abs(heat.counts[0, 0] / total - 0.5) < 0.01


def test_rows_that_are_cleared_are_cold_again() -> None:
    with Cluster([exact()]) as cluster:
        cluster.servers[0].service.watch(heat := Heat(every=1))
        client, ids = cluster.connect(), u64(1)
        for seq in range(1, 261):
            versions = {"t": client.pull(PullRequest(ids={"t": ids}, create=True)).versions["t"]}
            client.push(push_of(seq, ids, 1, versions=versions))

        assert heat.counts.sum(axis=1).tolist() == [4, 12, 48, 192, 4]
        client.clear()
        pull(client, "t", ids, create=True)
        client.push(push_of(1, ids, 1, versions={"t": np.zeros(1, np.uint8)}))
        assert heat.counts.sum(axis=1).tolist() == [5, 12, 48, 192, 4]


def test_a_server_tells_staleness_by_heat_to_prometheus() -> None:
    with Cluster([exact()]) as cluster:
        client, ids = cluster.connect(), u64(1, 2)
        pull(client, "t", ids, create=True)
        client.push(push_of(1, ids, 1, versions={"t": np.zeros(2, np.uint8)}))
        told = Scrape.of(cluster.servers[0].metrics())
    assert told.total("satrap_staleness_by_heat_updates_count", heat="0-3") == 2
    assert told.total("satrap_staleness_by_heat_updates_bucket", heat="0-3", le="0") == 2


def test_rows_made_are_those_that_a_pull_in_training_did_not_find() -> None:
    with Cluster([exact()]) as cluster:
        client = cluster.connect()
        pull(client, "t", u64(1, 2, 3), create=True)
        pull(client, "t", u64(2, 3, 4), create=True)
        pull(client, "t", u64(5))  # an evaluation
        told = Scrape.of(cluster.servers[0].metrics())
    assert told.total("satrap_rows_made_total") == 4
    assert told.total("satrap_rows_pulled_total") == 7
