"""Pushes of W clients that make one optimizer step."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
from deployments import Deploy, Open, is_held, outcome, pull, push_of, u64, until

from satrap.errors import ServiceError, StoreError
from satrap.ps import Ack, LocalService, PullRequest, PushRequest
from satrap.schema import Adam, Normal, RowWiseAdagrad, Table, ValueFormat

TABLES = [
    Table(name="a", dim=5, optimizer=Adam(lr=0.05), initializer=Normal(std=0.1)),
    Table(name="b", dim=16, format=ValueFormat.FP16, optimizer=RowWiseAdagrad(lr=0.1)),
]


def together(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """What each call returned or raised, all made at once in threads of their own."""
    results: list[Any] = [None] * len(calls)

    def run(i: int) -> None:
        try:
            results[i] = calls[i]()
        except Exception as e:
            results[i] = e

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(calls))]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
        assert not t.is_alive(), "a push was never answered"
    return results


def batches(workers: int, step: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Ids and gradients of each worker; ids overlap, one worker in three has none of table `b`, one has nothing."""
    out = []
    for w in range(workers):
        rng = np.random.default_rng([workers, step, w])
        size = 0 if (step + w) % 5 == 4 else 60
        ids = {t.name: rng.choice(150, size, replace=False).astype(np.uint64) for t in TABLES}
        if (step + w) % 3 == 2 or size == 0:
            del ids["b"]
        gradients = {t.name: rng.standard_normal((60, t.dim)).astype(np.float32) for t in TABLES if t.name in ids}
        out.append((ids, {t: g[: ids[t].size] for t, g in gradients.items()}))
    return out


def merged_by_hand(parts: list[tuple[dict[str, Any], dict[str, Any]]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The sum per id in the order of the workers, plainly."""
    ids, gradients = {}, {}
    for t in TABLES:
        total: dict[int, Any] = {}
        for part_ids, part_gradients in parts:
            for i, g in zip(part_ids.get(t.name, ()), part_gradients.get(t.name, ()), strict=True):
                total[int(i)] = total[int(i)] + g if int(i) in total else g.copy()
        ids[t.name] = np.array(list(total), np.uint64)
        gradients[t.name] = np.array(list(total.values()), np.float32).reshape(-1, t.dim)
    return ids, gradients


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_a_step_of_several_workers_is_one_step_with_the_sum_in_worker_order(deploy: Deploy, workers: int) -> None:
    doors, reference = deploy(TABLES), LocalService(TABLES, seed=5, partitions=8, threads=1)
    for step in range(1, 7):
        parts = batches(workers, step)
        pushes = []
        for w, (ids, gradients) in enumerate(parts):
            rows = doors(w).pull(PullRequest(ids=ids, create=True))
            reference.pull(PullRequest(ids=ids, create=True))
            pushes.append(
                PushRequest(
                    client=w,
                    epoch=0,
                    seq=step,
                    ids=ids,
                    gradients=gradients,
                    versions=rows.versions,
                    merge=workers,
                    lr_factor=1 / step,
                )
            )
        # The last client's push first: order must come from the names, not from arrival.
        acks = together([partial(doors(p.client).push, p) for p in reversed(pushes)])
        ids, gradients = merged_by_hand(parts)
        reference.push(PushRequest(client=0, epoch=0, seq=step, ids=ids, gradients=gradients, lr_factor=1 / step))
        for ack, (own, _) in zip(reversed(acks), parts, strict=True):
            sent = sum(x.size for x in own.values())
            assert outcome(ack) == (sent, {}, False)
            assert int(ack.staleness[0]) == sent
    for t in TABLES:
        for p in range(8):
            have, want = doors(0).export_rows(t.name, p), reference.export_rows(t.name, p)
            np.testing.assert_array_equal(have.ids, want.ids)
            np.testing.assert_array_equal(have.values.view(np.uint8), want.values.view(np.uint8))
            np.testing.assert_array_equal(have.state.view(np.uint32), want.state.view(np.uint32))


def test_a_push_waits_for_the_others_of_its_step(doors: Open) -> None:
    pull(doors(0), "t", u64(1), create=True)
    seen: list[Ack] = []
    first = threading.Thread(target=lambda: seen.append(doors(0).push(push_of(1, u64(1), 1, merge=2))))
    first.start()
    until(lambda: is_held(doors(1)))
    assert first.is_alive()
    assert not pull(doors(0), "t", u64(1)).any()
    doors(1).push(push_of(1, u64(1), 2, merge=2, client=1))
    first.join(60)
    assert outcome(seen[0]) == (1, {}, False)
    assert pull(doors(0), "t", u64(1)).tolist() == [[-3, -3]]


def test_a_worker_whose_step_was_already_merged_has_sent_a_duplicate(doors: Open) -> None:
    pull(doors(0), "t", u64(1), create=True)
    for seq in (1, 2):
        together([partial(doors(w).push, push_of(seq, u64(1), 1, merge=2, client=w)) for w in (0, 1)])
    assert doors(1).push(push_of(1, u64(1), 1, merge=2, client=1)).duplicate
    assert doors(0).push(push_of(2, u64(1), 1, merge=2)).duplicate
    assert pull(doors(0), "t", u64(1)).tolist() == [[-4, -4]]
    assert doors(0).clients() == {0: (0, 2), 1: (0, 2)}


def test_each_worker_is_told_what_became_of_its_own_gradients(doors: Open) -> None:
    pull(doors(0), "t", u64(1, 2, 3), create=True)
    poison = np.ones((2, 2), np.float32)
    poison[0] = np.nan
    acks = together(
        [
            lambda: doors(0).push(push_of(1, u64(1, 2, 9), 1, merge=2)),
            lambda: doors(1).push(push_of(1, u64(2, 3), poison, merge=2, client=1)),
        ]
    )
    # Row 2 got a sum that is not finite: refused for both who had a part in it. Row 9 was never made.
    assert outcome(acks[0]) == (1, {"missing_row": 1, "not_finite": 1}, False)
    assert outcome(acks[1]) == (1, {"not_finite": 1}, False)
    assert pull(doors(0), "t", u64(1, 2, 3, 9)).tolist() == [[-1, -1], [0, 0], [-1, -1], [0, 0]]


def test_a_push_that_does_not_fit_its_step_is_refused_and_the_step_waits_on(doors: Open) -> None:
    pull(doors(0), "t", u64(1), create=True)
    first = threading.Thread(target=lambda: doors(0).push(push_of(1, u64(1), 1, merge=2)))
    first.start()
    until(lambda: is_held(doors(1)))
    for wrong, says in (
        ({"merge": 3}, "merge 2"),
        ({"merge": 2, "lr_factor": 0.5}, "lr_factor"),
    ):
        with pytest.raises(StoreError, match=says):
            doors(1).push(push_of(1, u64(1), 1, client=1, **wrong))
    with pytest.raises(StoreError, match="must be"):
        doors(1).push(push_of(1, u64(1), np.ones((1, 3), np.float32), client=1, merge=2))
    assert first.is_alive()
    doors(1).push(push_of(1, u64(1), 1, client=1, merge=2))
    first.join(60)
    assert pull(doors(0), "t", u64(1)).tolist() == [[-2, -2]]


def test_pushes_that_wait_when_rows_are_cleared_are_told_so(doors: Open) -> None:
    pull(doors(0), "t", u64(1), create=True)
    seen: list[Any] = []

    def push() -> None:
        try:
            doors(0).push(push_of(1, u64(1), 1, merge=2))
        except ServiceError as e:
            seen.append(e)

    waiting = threading.Thread(target=push)
    waiting.start()
    until(lambda: is_held(doors(1)))
    doors(1).clear()
    waiting.join(60)
    assert "cleared or restored" in str(seen[0])
    assert doors(1).clients() == {}
