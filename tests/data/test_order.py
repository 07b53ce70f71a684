"""Orders and splits are pure functions of their keys, and stay what they were."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from satrap.data.order import Purpose, held_out, key, permutation
from satrap.data.parquet import plan_windows
from satrap.data.source import Order


@given(st.integers(0, 3000), st.integers(0, 2**64 - 1))
def test_permutation_has_every_index_once(count: int, stream: int) -> None:
    assert sorted(permutation(count, stream).tolist()) == list(range(count))


def test_golden_orders() -> None:
    # Positions saved by one version must mean the same rows in the next, under any numpy.
    assert permutation(8, key(Purpose.ROWS, 1, 2, 3)).tolist() == [3, 0, 1, 7, 4, 5, 2, 6]
    assert permutation(5, key(Purpose.ROW_GROUPS, 0, 0)).tolist() == [2, 4, 3, 1, 0]
    assert np.flatnonzero(held_out(7, 100_000, 60, 0.1)).tolist() == [24]
    assert permutation(100_000, 5)[:3].tolist() == [53054, 48828, 66978]


def test_keys_differ_by_every_part() -> None:
    keys = {key(p, s, *m) for p in Purpose for s in (0, 1, -1) for m in ((), (0,), (1,), (0, 0), (0, 1), (1, 0))}
    assert len(keys) == len(Purpose) * 3 * 6


def test_permutation_is_uniform() -> None:
    # Each of the 24 orders of four rows should come up as often; 99.99 % of fair draws pass.
    counts = np.zeros((4, 4))
    for stream in range(4000):
        order = permutation(4, key(Purpose.ROWS, stream))
        counts[np.arange(4), order] += 1
    chi_squared = float((((counts - 1000) ** 2) / 1000).sum())
    assert chi_squared < 33.7  # 9 degrees of freedom


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.5, 0.99])
def test_split_takes_its_fraction_whatever_way_rows_are_cut(fraction: float) -> None:
    whole = held_out(3, 0, 100_000, fraction)
    parts = np.concatenate([held_out(3, a, 10_000, fraction) for a in range(0, 100_000, 10_000)])
    assert np.array_equal(whole, parts)
    assert abs(whole.mean() - fraction) < 0.01
    assert fraction == 0 or not np.array_equal(whole, held_out(4, 0, 100_000, fraction))


GROUPS = st.lists(st.integers(0, 400), min_size=1, max_size=30)


@settings(max_examples=200)
@given(GROUPS, st.integers(1, 300), st.integers(0, 9), st.booleans())
def test_windows_hold_every_row_once_and_stay_near_their_size(
    sizes: list[int], window: int, epoch: int, shuffle: bool
) -> None:
    groups = [(0, g, rows) for g, rows in enumerate(sizes)]
    windows = plan_windows(groups, Order(1, shuffle, window), epoch)
    seen = sorted((c.group, row) for w in windows for c in w for row in range(c.start, c.stop))
    assert seen == [(g, row) for g, rows in enumerate(sizes) for row in range(rows)]
    rows = [sum(c.stop - c.start for c in w) for w in windows]
    assert all(0 < r < 2 * window for r in rows)
    # Two windows that follow one another could not have been one.
    assert all(a + b > window for a, b in pairwise(rows))
    assert all(c.whole == (c.stop - c.start == sizes[c.group]) for w in windows for c in w)


def test_row_groups_come_in_another_order_each_epoch() -> None:
    groups = [(0, g, 10) for g in range(20)]
    orders = [[c.group for w in plan_windows(groups, Order(1, True, 10), e) for c in w] for e in range(3)]
    assert orders[0] != orders[1] != orders[2]
    assert [c.group for w in plan_windows(groups, Order(1, False, 10), 1) for c in w] == list(range(20))
