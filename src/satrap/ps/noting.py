"""Which ids have changed since somebody asked: for what copies rows while they are trained. U ids of a table."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from satrap.store import Store

Ids = NDArray[np.uint64]

COMPACT_AT = 1 << 20
"""Ids that are noted before those noted twice are looked for, and then when there are twice as many as after that."""


class Watcher(Protocol):
    """Is told of changes."""

    def add(self, table: str, ids: Ids) -> None:
        """The rows of these ids are about to be made, stepped, replaced or removed. Raises nothing."""


class Notes:
    """The ids of one partition, or of all, that have changed. Used by the thread that serves."""

    def __init__(self, store: Store, partition: int | None = None) -> None:
        self._store, self._partition = store, partition
        self._ids: dict[str, list[Ids]] = {}
        self._size, self._compact_at = 0, COMPACT_AT

    def add(self, table: str, ids: Ids) -> None:
        """These ids have changed, or may have."""
        if self._partition is not None:
            ids = ids[self._store.partitions_of(ids) == self._partition]
        elif ids.size:
            ids = ids.copy()  # the message that they came in is not kept for them
        if not ids.size:
            return
        self._ids.setdefault(table, []).append(ids)
        self._size += ids.size
        if self._size >= self._compact_at:
            self._ids = {t: [x] for t, x in self.ids().items()}
            self._size = sum(x[0].size for x in self._ids.values())
            self._compact_at = max(COMPACT_AT, 2 * self._size)

    def ids(self) -> dict[str, Ids]:
        """Table → ids [U], each once, ascending."""
        return {t: np.unique(np.concatenate(x)) for t, x in self._ids.items()}


def united(parts: Iterable[Ids | None]) -> Ids:
    """The ids in any of these, each once."""
    there = [p for p in parts if p is not None]
    return np.unique(np.concatenate(there)) if there else np.empty(0, np.uint64)


class NotingStore(Store):
    """A view of a store that tells watchers which ids a call changes, before it does: what fails may have changed some
    of them."""

    def __init__(self, store: Store, watchers: list[Watcher], guard: threading.Condition) -> None:
        """`watchers`: whom to tell; may be changed between calls. `guard`: held while they are told and the change is
        made."""
        self.__dict__ = dict(store.__dict__)
        self.plain = store
        self._watchers, self._guard = watchers, guard

    def _tell(self, table: str, ids: Ids) -> None:
        for watcher in tuple(self._watchers):  # who waits for room in one may meet its end
            watcher.add(table, ids)

    def push_many(self, ids: dict[str, Ids], *arguments: Any, **options: Any) -> Any:
        """See `Store.push_many`."""
        with self._guard:
            for t, x in ids.items():
                self._tell(t, x)
            return super().push_many(ids, *arguments, **options)

    def pull_flat(self, ids: dict[str, Ids], *, create: bool) -> Any:
        """See `Store.pull_flat`."""
        if not create:
            return super().pull_flat(ids, create=False)
        with self._guard:
            self._pulled(ids)
            return super().pull_flat(ids, create=True)

    def pull_many(self, ids: dict[str, Ids], *, create: bool) -> Any:
        """See `Store.pull_many`."""
        if not create:
            return super().pull_many(ids, create=False)
        with self._guard:
            self._pulled(ids)
            return super().pull_many(ids, create=True)

    def _pulled(self, ids: dict[str, Ids]) -> None:
        for t, x in ids.items():
            self._tell(t, x)

    def erase(self, table: str, ids: Ids) -> int:
        """See `Store.erase`."""
        with self._guard:
            self._tell(table, ids)
            return super().erase(table, ids)

    def import_rows(
        self,
        table: str,
        ids: Ids,
        values: Any,
        state: NDArray[np.float32],
        marks: NDArray[np.uint8] | None = None,
    ) -> None:
        """See `Store.import_rows`."""
        with self._guard:
            self._tell(table, ids)
            super().import_rows(table, ids, values, state, marks)

    def import_many(self, table: str, blocks: Sequence[Any]) -> None:
        """See `Store.import_many`."""
        for block in blocks:
            self.import_rows(table, *block)
