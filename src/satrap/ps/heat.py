"""How stale gradients are by how hot their rows are: a row that every batch names is updated often between a pull and
its push, a rare one hardly ever, and the mean over both says little of either.

Heat is the number of updates a row has had on this server. Its version tells that up to 255, and then begins anew; so
the ids that have come so far are kept (8 bytes each). U unique ids of a table in a push.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from satrap.ps.protocol import STALENESS_BINS
from satrap.store import MISSING

CLASSES = ("0-3", "4-15", "16-63", "64-255", "256+")
"""Updates a row has had before this one."""
EVERY, SAMPLE = 8, 64
"""One step in so many is looked at, and of it so many gradients a table, evenly spread: enough, and cheap."""
_LEAST = np.array([4, 16, 64], np.uint16)
_FRESH = 4096
LAG_DOUBTED = 128
"""Updates between a pull and its push from which they are no longer believed, of a row that may have been made again
since: its version then began anew."""

Outcomes = NDArray[np.uint16]
"""[U] as `Store.push_many` gives them: the version a row had before the step, or why there was none."""


def room(ids: Mapping[str, NDArray[np.uint64]]) -> tuple[Outcomes, dict[str, Outcomes]]:
    """Room for the outcomes of a step: of all tables, one behind the other, and the same table by table."""
    flat, views, at = np.empty(sum(x.size for x in ids.values()), np.uint16), {}, 0
    for table, x in ids.items():
        views[table] = flat[at : at + x.size]
        at += x.size
    return flat, views


class Heat:
    """Staleness by heat. Written by the thread that applies pushes; reading the counts elsewhere is safe.

    >>> heat, ids = Heat(every=1), {"t": np.array([7], np.uint64)}
    >>> for version in range(255, 259):  # before each of four updates, the first of them the row's 256th
    ...     now = np.array([version % 256], np.uint16)
    ...     heat.measured("t", ids["t"], pulled=(now - 1).astype(np.uint8), outcomes=now)
    ...     heat.stepped(ids, now)
    >>> heat.counts[:, 1]
    array([0, 0, 0, 1, 3])
    """

    def __init__(self, every: int = EVERY, sample: int = SAMPLE) -> None:
        self.counts: NDArray[np.int64] = np.zeros((len(CLASSES), STALENESS_BINS - 1), np.int64)
        """[classes, 256] gradients by updates of their row between pull and apply."""
        self._every, self._sample = every, sample
        self._hot: dict[str, _Ids] = {}
        self._turn = 0

    @property
    def due(self) -> bool:
        """Whether the step that is under way is one of those to be measured."""
        return self._turn % self._every == 0

    def measured(
        self,
        table: str,
        ids: NDArray[np.uint64],
        pulled: NDArray[np.uint8],
        outcomes: Outcomes,
        returns: bool = False,
    ) -> None:
        """Counts some of a push's gradients [U], which were pulled at the versions `pulled` [U].

        `returns`: their rows may have been evicted and made again since; of those that seem to, nothing is known.
        """
        stride = max(1, ids.size // self._sample)
        part = slice(self._turn // self._every % stride, None, stride)
        ids, now, then = ids[part], outcomes[part], pulled[part]
        stepped = now < MISSING
        if returns:
            stepped &= ((now - then) & 255) < LAG_DOUBTED
        if not stepped.all():
            ids, now, then = ids[stepped], now[stepped], then[stepped]
        heat = np.searchsorted(_LEAST, now, side="right")
        hot = self._hot.get(table)
        if hot is not None:
            heat[hot.has(ids)] = len(CLASSES) - 1
        bins = heat * self.counts.shape[1] + ((now - then) & 255)
        self.counts += np.bincount(bins, minlength=self.counts.size).reshape(self.counts.shape)

    def stepped(self, ids: Mapping[str, NDArray[np.uint64]], outcomes: Outcomes) -> None:
        """Ends a step: takes in its rows; `outcomes` as `room` made it, filled in."""
        self._turn += 1
        wrapped = np.flatnonzero(outcomes == 255)
        if not wrapped.size:
            return
        at = 0
        for table, x in ids.items():
            mine = wrapped[np.searchsorted(wrapped, at) : np.searchsorted(wrapped, at + x.size)]
            if mine.size:
                self._hot.setdefault(table, _Ids()).add(x[mine - at])
            at += x.size

    def forget(self) -> None:
        """The rows are gone, and with them how often they were updated."""
        self._hot.clear()


class _Ids:
    """A set of ids that grows: a large sorted array, and a small one of what is new."""

    def __init__(self) -> None:
        self._old = self._fresh = np.zeros(0, np.uint64)

    def add(self, ids: NDArray[np.uint64]) -> None:
        self._fresh = np.union1d(self._fresh, ids)
        if self._fresh.size > _FRESH:
            self._old, self._fresh = np.union1d(self._old, self._fresh), self._fresh[:0]

    def has(self, ids: NDArray[np.uint64]) -> NDArray[np.bool_]:
        found = np.zeros(ids.size, np.bool_)
        for some in (self._old, self._fresh):
            if some.size:
                found |= some[np.minimum(np.searchsorted(some, ids), some.size - 1)] == ids
        return found
