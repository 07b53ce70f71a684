"""What any `ParameterService` must do. U unique ids, D dimension."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from deployments import Deploy, Open, exact, outcome, pull, push_of, u64
from msgspec import structs
from numpy.typing import NDArray

from satrap.errors import StoreError
from satrap.ps import LocalService, ParameterService, PullRequest, PushRequest
from satrap.schema import SGD, Adagrad, Table, Uniform, ValueFormat

EDGES = u64(0, 1, 2**63 - 1, 2**63, 2**64 - 1)


def test_a_service_has_the_tables_it_was_made_with(deploy: Deploy) -> None:
    tables = [exact("a", 3), Table(name="b", dim=5, format=ValueFormat.FP16, optimizer=Adagrad())]
    service: ParameterService = deploy(tables)(0)
    # Whether rows lie on disk is the deployment's.
    assert [structs.replace(t, cold=None) for t in service.tables()] == tables


def test_a_training_pull_makes_each_missing_row_with_the_values_its_id_stands_for(deploy: Deploy) -> None:
    table = Table(name="t", dim=3, optimizer=SGD(lr=1.0), initializer=Uniform(low=-1, high=1))
    service = deploy([table])(0)
    first = pull(service, "t", EDGES, create=True)
    want = np.stack([LocalService([table], seed=5).store.initial_values("t", int(i)) for i in EDGES])
    np.testing.assert_array_equal(first, want)
    assert service.stats()["t"].rows == EDGES.size
    np.testing.assert_array_equal(pull(service, "t", EDGES[::-1].copy(), create=True), want[::-1])
    assert service.stats()["t"].rows == EDGES.size


def test_an_evaluating_pull_reads_a_missing_row_as_it_would_be_made_and_makes_none(deploy: Deploy) -> None:
    # A flaw of an early system: evaluation in the middle of training changed the servers.
    table = Table(name="t", dim=3, optimizer=SGD(lr=1.0), initializer=Uniform(low=-1, high=1))
    service = deploy([table])(0)
    read = pull(service, "t", EDGES)
    assert service.stats()["t"].rows == 0
    np.testing.assert_array_equal(pull(service, "t", EDGES, create=True), read)


def test_a_pull_of_several_tables_keeps_them_and_their_order_apart(deploy: Deploy) -> None:
    tables = [exact("a", 1), exact("b", 4), exact("c", 2)]
    service = deploy(tables)(0)
    ids = {"c": np.arange(100, dtype=np.uint64), "a": u64(), "b": np.arange(50, 170, dtype=np.uint64)}
    service.pull(PullRequest(ids=ids, create=True))
    gradients = {
        t: -x[:, None] - np.arange(d, dtype=np.float32) for (t, x), d in zip(ids.items(), (2, 1, 4), strict=True)
    }
    gradients = {t: g.astype(np.float32) for t, g in gradients.items()}
    ack = service.push(PushRequest(client=0, epoch=0, seq=1, ids=ids, gradients=gradients))
    assert outcome(ack) == (220, {}, False)
    rows = service.pull(PullRequest(ids={t: x[::-1].copy() for t, x in ids.items()}, create=False))
    for t in ids:
        np.testing.assert_array_equal(rows.values[t], -gradients[t][::-1])
        assert rows.values[t].dtype == np.float32
        assert rows.versions[t].tolist() == [1] * ids[t].size


def test_a_pull_of_nothing_is_answered(service: Any) -> None:
    assert service.pull(PullRequest(ids={}, create=True)).values == {}
    assert pull(service, "t", u64(), create=True).shape == (0, 2)


def test_a_push_of_nothing_counts_as_a_push(service: Any) -> None:
    empty = PushRequest(client=3, epoch=0, seq=1, ids={}, gradients={})
    assert outcome(service.push(empty)) == (0, {}, False)
    assert service.clients() == {3: (0, 1)}
    assert service.push(empty).duplicate


def test_a_name_is_applied_once_however_often_it_is_pushed(service: Any) -> None:
    pull(service, "t", u64(1), create=True)
    for seq in (1, 2):
        assert outcome(service.push(push_of(seq, u64(1), 1))) == (1, {}, False)
        for _ in range(3):
            assert outcome(service.push(push_of(seq, u64(1), 1))) == (0, {}, True)
    assert outcome(service.push(push_of(1, u64(1), 1))) == (0, {}, True)
    assert pull(service, "t", u64(1)).tolist() == [[-2, -2]]


def test_names_may_skip_numbers_and_a_later_epoch_begins_anew(service: Any) -> None:
    # The engine sends nothing for a batch without embeddings.
    pull(service, "t", u64(1), create=True)
    for epoch, seq in ((0, 3), (0, 17), (0, 18), (1, 1), (4, 0)):
        assert outcome(service.push(push_of(seq, u64(1), 1, epoch=epoch))) == (1, {}, False)
    assert service.push(push_of(99, u64(1), 1, epoch=3)).duplicate
    assert pull(service, "t", u64(1)).tolist() == [[-5, -5]]
    assert service.clients() == {0: (4, 0)}


def test_clients_have_names_of_their_own(doors: Open) -> None:
    pull(doors(0), "t", u64(1), create=True)
    for client in (0, 7, 2**32 - 1):
        assert outcome(doors(client).push(push_of(1, u64(1), 1, client=client))) == (1, {}, False)
    assert pull(doors(0), "t", u64(1)).tolist() == [[-3, -3]]
    assert doors(0).clients() == {0: (0, 1), 7: (0, 1), 2**32 - 1: (0, 1)}


def test_a_gradient_for_a_missing_row_is_counted_and_moves_no_other(service: Any) -> None:
    # A flaw of an early system: when a row was missing, every later id got its predecessor's gradient.
    ids = np.arange(40, dtype=np.uint64)
    pull(service, "t", ids[::2].copy(), create=True)
    g = np.repeat(np.arange(40, dtype=np.float32)[:, None], 2, axis=1)
    assert outcome(service.push(push_of(1, ids, g))) == (20, {"missing_row": 20}, False)
    np.testing.assert_array_equal(pull(service, "t", ids[::2].copy()), -g[::2])
    assert service.stats()["t"].rows == 20


def test_a_gradient_that_is_not_finite_is_refused_alone(service: Any) -> None:
    ids = u64(1, 2, 3, 4)
    pull(service, "t", ids[:3].copy(), create=True)
    g = np.ones((4, 2), np.float32)
    g[0, 1], g[2, 0] = np.nan, np.inf
    assert outcome(service.push(push_of(1, ids, g))) == (1, {"missing_row": 1, "not_finite": 2}, False)
    assert pull(service, "t", ids).tolist() == [[0, 0], [-1, -1], [0, 0], [0, 0]]


WRONG: dict[str, tuple[Any, Any, str]] = {
    "repeated ids": (u64(1, 2, 1), np.ones((3, 2), np.float32), "repeat"),
    "too few gradients": (u64(1, 2), np.ones((1, 2), np.float32), r"must be \[2, 2\]"),
    "another dim": (u64(1, 2), np.ones((2, 3), np.float32), r"must be \[2, 2\]"),
    "double precision": (u64(1, 2), np.ones((2, 2)), "float32"),
    "signed ids": (np.array([1, 2]), np.ones((2, 2), np.float32), "uint64"),
    "not contiguous": (u64(1, 2), np.ones((2, 4), np.float32)[:, ::2], "contiguous"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_malformed_push_is_refused_with_no_row_of_any_table_changed(deploy: Deploy, case: str) -> None:
    # A flaw of an early system: one failing server left a half-applied batch.
    service = deploy([exact("good"), exact("t")])(0)
    ids, gradients, says = WRONG[case]
    both = {"good": np.arange(100, dtype=np.uint64), "t": u64(1, 2)}
    service.pull(PullRequest(ids=both, create=True))
    wrong = {"good": np.ones((100, 2), np.float32), "t": gradients}
    with pytest.raises(StoreError, match=says):
        service.push(PushRequest(client=0, epoch=0, seq=1, ids={**both, "t": ids}, gradients=wrong))
    for table, x in both.items():
        assert not pull(service, table, x).any()
    # The name was not used up.
    assert outcome(service.push(push_of(1, u64(1, 2), 1))) == (2, {}, False)


def test_what_a_push_lacks_or_has_too_much_is_named(service: Any) -> None:
    pull(service, "t", u64(1, 2), create=True)
    one, g = {"t": u64(1, 2)}, {"t": np.ones((2, 2), np.float32)}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"ids": {"u": u64(1)}, "gradients": {"u": np.ones((1, 2), np.float32)}}, "no table 'u'"),
        ({"ids": one, "gradients": {}}, "no gradients for table 't'"),
        ({"ids": {}, "gradients": g}, "without ids"),
        ({"ids": one, "gradients": g, "versions": {}}, "no versions for table 't'"),
        (
            {"ids": one, "gradients": g, "versions": {"t": np.zeros(1, np.uint8)}},
            r"versions of table 't' must be \[2\]",
        ),
        ({"ids": one, "gradients": g, "lr_factor": float("nan")}, "lr_factor"),
        ({"ids": one, "gradients": g, "lr_factor": -1.0}, "lr_factor"),
        ({"ids": one, "gradients": g, "merge": 0}, "merge"),
    ]
    for arguments, says in cases:
        with pytest.raises(StoreError, match=says):
            service.push(PushRequest(client=0, epoch=0, seq=1, **arguments))
    assert not pull(service, "t", u64(1, 2)).any()
    assert service.clients() == {}


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        ({"t": u64(1, 2, 1)}, "repeat"),
        ({"t": np.array([1, 2])}, "uint64"),
        ({"t": np.array([[1, 2]], np.uint64)}, "1 dimension"),
        ({"tt": u64(1)}, "did you mean 't'"),
    ],
)
def test_a_malformed_pull_is_refused_with_no_row_made(service: Any, ids: dict[str, Any], says: str) -> None:
    with pytest.raises(StoreError, match=says):
        service.pull(PullRequest(ids=ids, create=True))
    assert service.stats()["t"].rows == 0


def test_the_factor_of_a_schedule_scales_the_step(service: Any) -> None:
    pull(service, "t", u64(1), create=True)
    service.push(push_of(1, u64(1), 8, lr_factor=0.25))
    assert pull(service, "t", u64(1)).tolist() == [[-2, -2]]


def test_staleness_counts_the_updates_of_each_row_between_pull_and_push(service: Any) -> None:
    ids = np.arange(60, dtype=np.uint64)
    rows = service.pull(PullRequest(ids={"t": ids}, create=True))
    for seq, upto in ((1, 20), (2, 40), (3, 40)):
        service.push(push_of(seq, ids[:upto].copy(), 1))
    ack = service.push(push_of(4, ids, 1, versions=rows.versions, hints=rows.hints))
    assert {int(b): int(ack.staleness[b]) for b in np.flatnonzero(ack.staleness)} == {3: 20, 2: 20, 0: 20}
    assert np.flatnonzero(service.push(push_of(5, ids, 1)).staleness).tolist() == [256]


def test_a_pull_that_asks_for_no_versions_reads_the_same_values(service: Any) -> None:
    ids = np.arange(60, dtype=np.uint64)
    service.pull(PullRequest(ids={"t": ids[:30]}, create=True))
    service.push(push_of(1, ids[:30].copy(), 3))
    rows = service.pull(PullRequest(ids={"t": ids}, create=False, versions=False))
    np.testing.assert_array_equal(rows.values["t"], pull(service, "t", ids))


def test_hints_never_change_a_result(service: Any) -> None:
    # Another pull's hints, hints of rows since cleared, and hints given back twice.
    ids, others = np.arange(50, dtype=np.uint64), np.arange(900, 950, dtype=np.uint64)
    hints = service.pull(PullRequest(ids={"t": others}, create=True)).hints
    service.pull(PullRequest(ids={"t": ids}, create=True))
    for seq in (1, 2):
        assert outcome(service.push(push_of(seq, ids, 1, hints=hints))) == (50, {}, False)
    service.clear()
    service.pull(PullRequest(ids={"t": ids}, create=True))
    assert outcome(service.push(push_of(3, ids, 5, hints=hints))) == (50, {}, False)
    assert (pull(service, "t", ids) == -5).all()
    assert not pull(service, "t", others).any()


def test_callers_of_several_threads_lose_no_gradient(doors: Open) -> None:
    # The ledger technique: every push has a value of its own, and the rows are the exact sum.
    clients, pushes = 4, 12
    service = doors(0)
    ids = np.arange(300, dtype=np.uint64)
    pull(service, "t", ids, create=True)
    failures: list[BaseException] = []

    def run(client: int) -> None:
        try:
            door, rng = doors(client), np.random.default_rng(client)
            for seq in range(1, pushes + 1):
                chosen = ids[rng.random(ids.size) < 0.5]
                g = np.full((chosen.size, 2), client * pushes + seq, np.float32)
                pull(door, "t", chosen, create=True)
                assert outcome(door.push(push_of(seq, chosen, g, client=client))) == (chosen.size, {}, False)
        except BaseException as e:
            failures.append(e)

    threads = [threading.Thread(target=run, args=(c,)) for c in range(clients)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures
    np.testing.assert_array_equal(pull(service, "t", ids), -expected(ids, clients, pushes))


def expected(ids: NDArray[np.uint64], clients: int, pushes: int) -> NDArray[np.float32]:
    total = np.zeros((ids.size, 2), np.float32)
    for client in range(clients):
        rng = np.random.default_rng(client)
        for seq in range(1, pushes + 1):
            total[rng.random(ids.size) < 0.5] += client * pushes + seq
    return total
