"""Every pooler does the same: here, here over servers, in an embedding worker, and over links that lose messages."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pooling_jobs import assert_same_bits, batch_of, job_with, jobs, rows_of, train

from satrap.data.batch import Jagged
from satrap.errors import DataError
from satrap.pooling import Gradients, LocalPooler, Plan, Pooler
from satrap.ps import LocalService, PullRequest
from satrap.schema import SGD, Categorical, Job, Sequence, Table, WireFormat, Zeros
from satrap.testing import Cluster, EmbeddingWorkers, Faults

BAD = Faults(drop=0.1, duplicate=0.1, reorder=0.2)
Start = Callable[[Job], tuple[Callable[[int], Pooler], Any]]
"""job → (client → its pooler, the rows)"""


def here(job: Job, stack: ExitStack) -> tuple[Callable[[int], Pooler], Any]:
    service = LocalService.of(job)
    return lambda client: LocalPooler(Plan.of(job), service, client=client), service


def over_servers(job: Job, stack: ExitStack) -> tuple[Callable[[int], Pooler], Any]:
    cluster = stack.enter_context(Cluster(job.resolved_tables(), servers=2, partitions=8, seed=job.seed))
    return lambda client: LocalPooler(Plan.of(job), cluster.connect(client), client=client), cluster.connect(99)


def embedding_workers(count: int, servers: int, faults: Faults | None = None) -> Any:
    def start(job: Job, stack: ExitStack) -> tuple[Callable[[int], Pooler], Any]:
        cluster = stack.enter_context(
            Cluster(job.resolved_tables(), servers=servers, partitions=8, seed=job.seed, faults=faults)
        )
        workers = stack.enter_context(EmbeddingWorkers(Plan.of(job), cluster, count=count, faults=faults))
        return workers.connect, cluster.connect(99)

    return start


WAYS = {
    "here": here,
    "here over two servers": over_servers,
    "an embedding worker before one server": embedding_workers(1, 1),
    "two embedding workers before three servers": embedding_workers(2, 3),
    "an embedding worker behind bad networks": embedding_workers(1, 2, BAD),
}


@pytest.fixture(params=WAYS)
def start(request: pytest.FixtureRequest) -> Iterator[Start]:
    with ExitStack() as stack:
        yield lambda job: WAYS[request.param](job, stack)


def two_features() -> Job:
    """A pooled feature and a sequence on tables in which integer gradients add up without rounding."""
    tables = [Table(name=n, dim=d, optimizer=SGD(lr=1.0), initializer=Zeros()) for n, d in (("a", 2), ("b", 3))]
    return job_with([Categorical(name="x", table="a"), Sequence(name="s", table="b", max_length=2)], tables)


def lists(*of: list[int]) -> Jagged:
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum([len(x) for x in of])])
    return Jagged(np.array([i for x in of for i in x], np.uint64), offsets, None)


def some() -> dict[str, Jagged]:
    """Two samples."""
    return {"x": lists([1, 2], []), "s": lists([5], [6, 5, 7])}


def ones(found: Any) -> Gradients:
    return Gradients(np.ones_like(found.pooled), [np.ones_like(s) for s in found.sequences])


@pytest.mark.parametrize("way", list(WAYS)[1:4])
@settings(max_examples=15, deadline=None)
@given(job=jobs(), sizes=st.lists(st.integers(0, 30), min_size=1, max_size=4), seed=st.integers(0, 2**32 - 1))
def test_any_job_has_the_bits_of_one_process(way: str, job: Job, sizes: list[int], seed: int) -> None:
    # Columns of one dim travel as one section, others apart; a batch may have no ids, or no samples at all.
    with ExitStack() as stack:
        (one, rows), (door, far) = here(job, stack), WAYS[way](job, stack)
        assert_same_bits(train(job, door(0), sizes, seed), train(job, one(0), sizes, seed))
        assert_same_bits(rows_of(job, far), rows_of(job, rows))


@settings(max_examples=5, deadline=None)
@given(job=jobs(), seed=st.integers(0, 2**32 - 1))
def test_any_job_has_the_bits_of_one_process_behind_bad_networks(job: Job, seed: int) -> None:
    with ExitStack() as stack:
        (one, rows), (door, far) = here(job, stack), embedding_workers(1, 2, BAD)(job, stack)
        assert_same_bits(train(job, door(0), [9, 9, 9], seed), train(job, one(0), [9, 9, 9], seed))
        assert_same_bits(rows_of(job, far), rows_of(job, rows))


@pytest.mark.parametrize(("wire", "close"), [(WireFormat.FP16, 2e-3), (WireFormat.INT8, 3e-2)])
@settings(max_examples=10, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_narrow_formats_are_close_and_do_not_depend_on_the_number_of_servers(
    wire: WireFormat, close: float, data: Any, seed: int
) -> None:
    job = data.draw(jobs(wire))
    rng = np.random.default_rng(seed)
    batch = batch_of(job, 20, rng)
    with ExitStack() as stack:
        seen = []
        for door, _ in (embedding_workers(1, s)(job, stack) for s in (1, 3)):
            seen.append(train(job, door(0), [20, 20], seed))
        assert_same_bits(*seen)
        exact, narrow = here(job, stack)[0](0), embedding_workers(1, 2)(job, stack)[0](0)
        want, have = (p.begin_lookup(p.prepare(batch, 20), train=True)() for p in (exact, narrow))
    for x, y in zip([have.pooled, *have.sequences], [want.pooled, *want.sequences], strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=close * max(1e-6, float(np.abs(y).max(initial=0))))


def test_evaluation_makes_no_row(start: Start) -> None:
    door, rows = start(two_features())
    pooler = door(0)
    found = pooler.begin_lookup(pooler.prepare(some(), 2), train=False)()
    assert found.pooled.shape == (2, 2)
    assert found.sequences[0].shape == (2, 2, 3)
    assert found.masks[0].tolist() == [[True, False], [True, True]]
    assert [s.rows for s in rows.stats().values()] == [0, 0]


def test_gradients_reach_each_id_once_for_every_place_it_stood(start: Start) -> None:
    door, rows = start(two_features())
    pooler = door(0)
    found = pooler.begin_lookup(pooler.prepare(some(), 2), train=True)()
    sent, ack = pooler.begin_push(found, ones(found), epoch=0, seq=1)()
    # Id 7 is the third of its list, of which two are kept: its row is made, and gets a gradient of zero.
    assert (sent, ack.applied, ack.duplicate) == (5, 5, False)
    b = rows.pull(PullRequest(ids={"b": np.array([5, 6, 7], np.uint64)}, create=False)).values["b"]
    assert b[:, 0].tolist() == [-2.0, -1.0, 0.0]


def test_a_lookup_sees_every_push_begun_before_it(start: Start) -> None:
    door, _ = start(two_features())
    pooler = door(0)
    finishes, looked_up = [], pooler.begin_lookup(pooler.prepare(some(), 2), train=True)()
    for seq in range(1, 9):
        finishes.append(pooler.begin_push(looked_up, ones(looked_up), epoch=0, seq=seq))
        looked_up = pooler.begin_lookup(pooler.prepare(some(), 2), train=True)()
        assert looked_up.pooled[0].tolist() == [-2.0 * seq] * 2
    assert [f().ack.applied for f in finishes] == [5] * 8


def test_several_lookups_and_pushes_under_way_end_in_order(start: Start) -> None:
    job = two_features()
    door, rows = start(job)
    pooler = door(0)
    looked_up = [pooler.begin_lookup(pooler.prepare(some(), 2), train=True) for _ in range(5)]
    found = [f() for f in looked_up]
    pushes = [pooler.begin_push(f, ones(f), epoch=0, seq=3 * i + 1) for i, f in enumerate(found)]
    results = [p() for p in pushes]
    assert [r.ack.applied for r in results] == [5] * 5
    # Each was pulled before all of them: the i-th finds i updates between.
    assert [int(np.flatnonzero(r.ack.staleness)[0]) for r in results] == list(range(5))
    a = rows.pull(PullRequest(ids={"a": np.array([1], np.uint64)}, create=False)).values["a"]
    assert a.tolist() == [[-5.0, -5.0]]


def test_merged_pushes_wait_for_each_other_an_empty_one_included(start: Start) -> None:
    door, rows = start(two_features())
    poolers = [door(c) for c in range(2)]
    found = poolers[0].begin_lookup(poolers[0].prepare(some(), 2), train=True)()
    pushes: list[Any] = []

    def push(client: int) -> None:
        looked_up = found if client == 0 else None
        gradients = None if looked_up is None else ones(looked_up)
        finish = poolers[client].begin_push(looked_up, gradients, epoch=0, seq=1, merge=2)
        pushes.append((client, finish()))

    threads = [threading.Thread(target=push, args=(c,)) for c in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert {c: (p.sent, p.ack.applied) for c, p in pushes} == {0: (5, 5), 1: (0, 0)}
    a = rows.pull(PullRequest(ids={"a": np.array([1, 2], np.uint64)}, create=False)).values["a"]
    assert a[:, 0].tolist() == [-1.0, -1.0]


def test_a_name_that_was_applied_before_is_a_duplicate(start: Start) -> None:
    door, _ = start(two_features())
    pooler = door(0)
    for duplicate in (False, True):
        found = pooler.begin_lookup(pooler.prepare(some(), 2), train=True)()
        sent, ack = pooler.begin_push(found, ones(found), epoch=0, seq=1)()
        assert (sent, ack.duplicate, ack.applied) == (5, duplicate, 0 if duplicate else 5)


def test_gradients_that_are_not_finite_are_refused_by_the_row(start: Start) -> None:
    door, _ = start(two_features())
    pooler = door(0)
    found = pooler.begin_lookup(pooler.prepare(some(), 2), train=True)()
    gradients = ones(found)
    assert gradients.pooled is not None
    gradients.pooled[0, 0] = np.nan
    sent, ack = pooler.begin_push(found, gradients, epoch=0, seq=1)()
    assert (sent, ack.applied, dict(ack.refused)) == (5, 3, {"not_finite": 2})


def test_a_batch_without_a_feature_is_refused_by_name(start: Start) -> None:
    door, _ = start(two_features())
    pooler = door(0)
    with pytest.raises(DataError, match="no ids of feature 's'"):
        pooler.prepare({"x": some()["x"]}, 2)


def test_a_part_without_gradients_has_gradients_of_zero(start: Start) -> None:
    door, rows = start(two_features())
    pooler = door(0)
    found = pooler.begin_lookup(pooler.prepare(some(), 2), train=True)()
    pooler.begin_push(found, Gradients(None, [np.ones_like(found.sequences[0])]), epoch=0, seq=1)()
    values = rows.pull(
        PullRequest(ids={"a": np.array([1], np.uint64), "b": np.array([6], np.uint64)}, create=False)
    ).values
    assert values["a"].tolist() == [[0.0, 0.0]]
    assert values["b"].tolist() == [[-1.0] * 3]
