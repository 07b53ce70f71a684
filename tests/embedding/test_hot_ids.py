"""The sketch of frequent ids against exact counts."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from satrap.embedding.hot_ids import HotIds

batches = st.lists(st.lists(st.integers(0, 60), max_size=80), min_size=1, max_size=12)


@settings(max_examples=200, deadline=None)
@given(batches=batches, counters=st.integers(1, 40))
def test_share_is_never_too_large_and_too_small_by_no_more_than_the_error(batches, counters):
    hot, exact = HotIds(counters), np.zeros(61, np.int64)
    for ids in batches:
        hot.see(np.array(ids, np.uint64))
        np.add.at(exact, np.array(ids, np.int64), 1)
    total = int(exact.sum())
    assert hot.seen == total
    assert hot.error <= 1 / (counters + 1) + 1e-12
    found = {h.id: h.share for h in hot.top(61)}
    assert len(found) <= counters
    for i, n in enumerate(exact):
        if total:
            true = n / total
            assert true - hot.error - 1e-12 <= found.get(i, 0.0) <= true + 1e-12


def test_ids_beyond_the_signed_range_stay_whole():
    # Hashed text fills all 64 bits; a sketch that passed them through int64 or float would show ids that do not exist.
    big = 2**64 - 3
    hot = HotIds()
    hot.see(np.array([big, big, 5], np.uint64))
    assert [h.id for h in hot.top(2)] == [big, 5]
