"""Which push is next, which came before, and which one still lacks: the rules behind exactly once."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from deployments import exact, outcome, pull, push_of, u64
from hypothesis import given, settings
from hypothesis import strategies as st

from satrap.errors import StoreError
from satrap.ps import LocalService
from satrap.ps.pushes import KEPT_ACKS, MissingPush


def service() -> LocalService:
    made = LocalService([exact()], seed=0, partitions=2, threads=1)
    pull(made, "t", u64(1), create=True)
    return made


def test_a_push_before_its_predecessor_is_refused_until_that_has_come() -> None:
    # With "not newer than the last" alone, the push that was overtaken would be taken for a duplicate, and lost.
    s = service()
    with pytest.raises(MissingPush):
        s.offer(push_of(2, u64(1), 2), previous=(0, 1), request=102)
    assert outcome(s.offer(push_of(1, u64(1), 1), request=101)[0]) == (1, {}, False)
    assert outcome(s.offer(push_of(2, u64(1), 2), previous=(0, 1), request=102)[0]) == (1, {}, False)
    assert pull(s, "t", u64(1)).tolist() == [[-3, -3]]


def test_a_request_that_comes_again_gets_its_first_acknowledgement_and_another_one_a_duplicates() -> None:
    s = service()
    first = s.offer(push_of(1, u64(1), 1), request=7)
    assert s.offer(push_of(1, u64(1), 1), request=7) == first
    assert s.offer(push_of(1, u64(1), 1), request=8)[0].duplicate
    assert s.offer(push_of(1, u64(1), 1))[0].duplicate
    for seq in range(2, KEPT_ACKS + 2):
        s.offer(push_of(seq, u64(1), 0), request=seq + 100)
    # Longer ago than anything that can be under way: applied no second time all the same.
    assert s.offer(push_of(1, u64(1), 1), request=7)[0].duplicate
    assert pull(s, "t", u64(1)).tolist() == [[-1, -1]]


def test_a_client_that_does_not_say_what_went_before_may_begin_anywhere_newer() -> None:
    # A worker that was restarted knows no predecessor; neither does one whose rows were restored.
    s = service()
    s.set_clients({0: (0, 40)})
    assert s.offer(push_of(40, u64(1), 1), request=1)[0].duplicate
    assert outcome(s.offer(push_of(41, u64(1), 1), request=2)[0]) == (1, {}, False)
    assert outcome(s.offer(push_of(50, u64(1), 1), previous=(0, 12), request=3)[0]) == (1, {}, False)


def test_a_held_push_that_comes_again_is_not_added_twice() -> None:
    s = service()
    for _ in range(3):
        assert s.offer(push_of(1, u64(1), 1, merge=2), request=5) == {}
    assert s.offer(push_of(1, u64(1), 1, merge=2), request=6)[0].duplicate
    acks = s.offer(push_of(1, u64(1), 2, merge=2, client=9), request=5)
    assert {c: outcome(a) for c, a in acks.items()} == {0: (1, {}, False), 9: (1, {}, False)}
    assert s.offer(push_of(1, u64(1), 1, merge=2), request=5) == {0: acks[0]}
    assert pull(s, "t", u64(1)).tolist() == [[-3, -3]]


def test_the_pushes_that_a_client_may_have_held_are_bounded() -> None:
    s = service()
    for seq in range(KEPT_ACKS):
        assert s.offer(push_of(seq, u64(1), 1, merge=2), request=seq) == {}
    with pytest.raises(StoreError, match="already wait"):
        s.offer(push_of(KEPT_ACKS, u64(1), 1, merge=2), request=KEPT_ACKS)


@settings(max_examples=200, deadline=None)
@given(
    data=st.data(),
    merge=st.sampled_from([1, 2, 3]),
    names=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30)), unique=True, min_size=1, max_size=6),
)
def test_any_order_of_arrival_with_any_repeats_applies_each_push_once(
    data: st.DataObject, merge: int, names: list[tuple[int, int]]
) -> None:
    # Each (client, push) has a power of two for its gradient, so the row tells exactly which were applied.
    s = service()
    names.sort()
    sent = list(itertools.product(range(merge), range(len(names))))
    open_requests = dict.fromkeys(sent)
    for _ in range(400):
        if not open_requests:
            break
        client, k = data.draw(st.sampled_from(sent))
        epoch, seq = names[k]
        value = 2.0 ** (client * len(names) + k)
        push = push_of(seq, u64(1), value, client=client, epoch=epoch, merge=merge)
        try:
            acks = s.offer(push, names[k - 1] if k else None, request=1000 * client + k)
        except MissingPush:
            continue
        for c, ack in acks.items():
            assert outcome(ack) == (1, {}, False)
            open_requests.pop((c, k), None)
    for client, k in sorted(open_requests, key=lambda x: (x[1], x[0])):  # what the draws left out, in order
        epoch, seq = names[k]
        value = 2.0 ** (client * len(names) + k)
        s.offer(
            push_of(seq, u64(1), value, client=client, epoch=epoch, merge=merge),
            names[k - 1] if k else None,
            request=1000 * client + k,
        )
    assert pull(s, "t", u64(1))[0, 0] == -(2.0 ** len(sent) - 1)
    assert s.clients() == {c: names[-1] for c in range(merge)}


def test_versions_of_a_merged_step_count_the_updates_since_each_worker_pulled() -> None:
    s = service()
    s.push(push_of(1, u64(1), 1, client=5))
    s.offer(push_of(1, u64(1), 1, merge=2, versions={"t": np.array([0], np.uint8)}), request=1)
    acks = s.offer(push_of(1, u64(1), 1, merge=2, client=1), request=1)
    assert np.flatnonzero(acks[0].staleness).tolist() == [1]
    assert np.flatnonzero(acks[1].staleness).tolist() == [256]
