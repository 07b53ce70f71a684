"""The ids that come most often, from a sample of batches and in little memory."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

EVERY = 128
"""Of this many batches one is looked at: 0.05 ms a batch, on average, for 26 features of 4096 samples."""
COUNTERS = 512


def sampled(batch: int) -> bool:
    """Whether the batch of this number, from 0, is looked at: every 128th, and before it 1, 2, 4, 8 … for short runs.

    >>> [n for n in range(300) if sampled(n)]
    [0, 1, 2, 4, 8, 16, 32, 64, 128, 256]
    """
    return batch % EVERY == 0 or (batch < EVERY and batch & (batch - 1) == 0)


class HotId(NamedTuple):
    """An id that comes often."""

    id: int
    share: float
    """Of all sightings of the table's ids; at most `error` too small, never too large but for chance."""


class HotIds:
    """The most frequent ids of one table: a Misra-Gries summary (Science of Computer Programming 2, 1982), merged batch
    by batch as Agarwal et al. (PODS 2012) show. Not thread-safe.

    An id's count is never too large, and too small by at most sightings / counters. So every id with more than that
    share is in it.

    >>> hot = HotIds(counters=4)
    >>> for i in range(100):
    ...     hot.see(np.array([7, 7, 7, i + 10], np.uint64))
    >>> [(h.id, round(h.share, 1)) for h in hot.top(1)], hot.seen, hot.error <= 0.25
    ([(7, 0.7)], 400, True)
    """

    def __init__(self, counters: int = COUNTERS) -> None:
        self._counters = counters
        self._ids: NDArray[np.uint64] = np.empty(0, np.uint64)
        self._counts: NDArray[np.int64] = np.empty(0, np.int64)
        self.seen = 0
        """Sightings."""
        self._lost = 0

    def see(self, ids: NDArray[np.uint64]) -> None:
        """Takes ids [N] in, as often as they stand there."""
        if not ids.size:
            return
        self.seen += int(ids.size)
        new, new_counts = np.unique(ids, return_counts=True)
        both, where = np.unique(np.concatenate([self._ids, new]), return_inverse=True)
        weights = np.concatenate([self._counts, new_counts])
        counts = np.bincount(where, weights=weights, minlength=both.size).astype(np.int64)
        if both.size > self._counters:
            cut = int(np.partition(counts, -self._counters - 1)[-self._counters - 1])
            self._lost += cut
            counts -= cut
            both, counts = both[counts > 0], counts[counts > 0]
        self._ids, self._counts = both, counts

    @property
    def error(self) -> float:
        """What a share may be too small by, beside the chance of the sample."""
        return self._lost / self.seen if self.seen else 0.0

    def top(self, k: int = 20) -> list[HotId]:
        """The k most frequent, the most frequent first; those of equal count by id."""
        order = np.lexsort((self._ids, -self._counts))[:k]
        return [HotId(int(self._ids[i]), float(self._counts[i] / self.seen)) for i in order]
