"""Rows as they were at one moment, read while they go on changing (docs/decisions/0019-checkpoints-behind.md).

first change of a row ──► the row as it is: set aside ──┐
                                                        ├─► a partition as of the cut
reading a partition   ──► its rows now, but for those ──┘

T tables, P partitions, U ids of a table, R rows of a partition.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from satrap.durable.rows import RowBlock
from satrap.errors import StoreError
from satrap.ps.aside import Aside, bytes_of, joined
from satrap.ps.protocol import TableStats
from satrap.schema import SGD, Table, Zeros
from satrap.store import Store, mixed

Ids = NDArray[np.uint64]

GROUPS = 8
"""Rows aside are freed when so many parts of all partitions are written, or there is no room left."""
PARTS_MOST = 64
"""Of the tables that know what was touched: partitions have a least size."""
ASIDE_LEAST = 64 << 20
"""Bytes of rows that may be set aside, however little memory is left."""
WAIT_S = 1.0
"""After which who waits for room looks whether there is some, should nobody have said so."""


class RowCut:
    """Implements `Cut` on a store in this process. A `Watcher` of its changes; thread-safe.

    Nothing may change while it is made. Memory: the rows that change before they are written, as they were, at most
    `aside_bytes`; 24 bytes for each of them; and the bounded tables, whole.
    """

    def __init__(
        self,
        store: Store,
        guard: threading.Condition,
        *,
        stats: Mapping[str, TableStats],
        clients: Mapping[int, tuple[int, int]],
        export: Callable[[str, int], RowBlock],
        waits: bool,
        aside_bytes: int | None = None,
        closed: Callable[[RowCut], None] = lambda cut: None,
    ) -> None:
        """`guard`: held by who changes rows, around telling the cut and the change. `export`: of a partition, as it is.
        `waits`: who changes rows waits here while there is no room to set them aside; else somebody looks at `full`.
        `aside_bytes`: None: half of what is left.

        Raises StoreError where bounded tables do not fit.
        """
        self._store, self._guard, self._export, self._waits, self._closed = store, guard, export, waits, closed
        self._stats, self._clients = dict(stats), dict(clients)
        self.partitions = store.partitions
        self._pending = np.ones(self.partitions, np.bool_)
        self.lost: str | None = None
        """Why there is no such cut any more."""
        self._most = max(ASIDE_LEAST, store.room.left_bytes() // 2) if aside_bytes is None else aside_bytes
        self._whole: dict[tuple[str, int], RowBlock] = {}
        self._aside = {t.name: Aside(store) for t in store.configuration if not t.bounded}
        self._bytes = 0
        """Set aside, and of the bounded tables."""
        self._done = np.zeros(self.partitions, np.bool_)
        """Partitions that are not asked for any more, and of which rows are still here."""
        self._touched = self._membership(min(self.partitions, PARTS_MOST))
        self._copy_bounded()

    def _membership(self, partitions: int) -> Store:
        """Tables of the same names, where a row says that its id was touched."""
        tables = [Table(name=name, dim=1, optimizer=SGD(lr=1.0), initializer=Zeros()) for name in self._aside]
        return Store(tables, seed=0, partitions=partitions, threads=1)

    def _copy_bounded(self) -> None:
        bounded = sorted(self._store.bounded)
        size = sum(self._stats[t].value_bytes + self._stats[t].state_bytes + 16 * self._stats[t].rows for t in bounded)
        if size > self._most:
            names = ", ".join(f"'{t}'" for t in bounded)
            raise StoreError(
                f"the bounded tables {names} hold {size:,} bytes, and there is room for a copy of {self._most:,}; give "
                "servers more memory to have their checkpoints written behind"
            )
        for table in bounded:
            for partition in range(self.partitions):
                block = self._whole[table, partition] = self._export(table, partition)
                self._bytes += bytes_of(block)

    # ---- those who change rows -------------------------------------------------------------------------------------

    def add(self, table: str, ids: Ids) -> None:
        """See `Watcher.add`: sets aside the rows of ids [U] that have not been touched since the cut."""
        while self._waits and self.full:
            self._guard.wait(WAIT_S)
        if self.lost is not None or table not in self._aside or not ids.size:
            return
        waiting = self._pending[self._store.partitions_of(ids)]
        try:
            self._set_aside(table, ids if waiting.all() else ids[waiting])
        except (StoreError, MemoryError) as e:
            self.lose(f"rows could not be set aside: {e}")

    def _set_aside(self, table: str, ids: Ids) -> None:
        if not ids.size:
            return
        fresh = ids[self._touched.lookup(table, ids)[:, 0] == 0]
        if not fresh.size:
            return
        block = RowBlock(*self._store.read_rows(table, fresh)[:3])
        if block.ids.size:
            self._aside[table].add(block)
            self._bytes += bytes_of(block)
        ones = np.ones((fresh.size, 1), np.float32)
        self._touched.import_rows(table, fresh, ones, np.empty((fresh.size, 0), np.float32))

    @property
    def full(self) -> bool:
        """Whether no more rows should be changed for now."""
        return self.lost is None and bool(self._pending.any()) and self._bytes > self._most

    def lose(self, why: str) -> None:
        """Gives the cut up: who reads it is told why."""
        with self._guard:
            if self.lost is None:
                self.lost = why
            self._free()

    # ---- who reads it ----------------------------------------------------------------------------------------------

    def tables(self) -> Sequence[Table]:
        """The tables as configured."""
        return self._store.configuration

    def stats(self) -> Mapping[str, TableStats]:
        """Size by table, as of the cut."""
        return self._stats

    def clients(self) -> dict[int, tuple[int, int]]:
        """Client → its last push that is in the cut."""
        return dict(self._clients)

    def export_rows(self, table: str, partition: int) -> RowBlock:
        """See `Cut.export_rows`."""
        with self._guard:
            if self.lost is not None:
                raise StoreError(f"the rows of the checkpoint are not kept any more: {self.lost}")
            if not 0 <= partition < self.partitions or not self._pending[partition]:
                raise StoreError(f"partition {partition} of the checkpoint was read before, or there is none")
            if table in self._store.bounded:
                return self._whole[table, partition]
            now = self._export(table, partition)
            touched = self._touched.export_rows(table, partition * self._touched.partitions // self.partitions)[0]
            # Should it be given up meanwhile, its rows are here all the same.
            aside = self._aside[table]
        # What is touched from here on is none of `touched`, and left aside below.
        touched = touched[self._store.partitions_of(touched) == partition]
        if not touched.size:
            return now
        kept = ~_among(now.ids, touched)
        blocks = [RowBlock(now.ids[kept], now.values[kept], now.state[kept])]
        before = aside.of(partition)
        if before is not None:
            blocks.append(_of(before, touched))
        whole = joined(blocks)
        place = mixed(whole.ids)
        order = np.argsort(place, kind="stable")
        # One that was named twice by who changed it was set aside twice.
        order = order[np.diff(place[order], prepend=~place[order[:1]]) != 0]
        return RowBlock(whole.ids[order], whole.values[order], whole.state[order])

    def done(self, partition: int) -> None:
        """See `Cut.done`."""
        with self._guard:
            if self.lost is not None or not self._pending[partition]:
                return
            self._pending[partition] = False
            self._done[partition] = True
            for table in self._store.bounded:
                self._bytes -= bytes_of(self._whole.pop((table, partition)))
            self._guard.notify_all()
            if self._done.sum() * GROUPS < self.partitions and self._pending.any() and not self.full:
                return
            done, self._done = self._done, np.zeros(self.partitions, np.bool_)
            held = self._aside
        freed = sum(aside.drop(done) for aside in held.values())
        with self._guard:
            if self.lost is None:
                self._bytes -= freed
            self._guard.notify_all()

    def close(self) -> None:
        """See `Cut.close`."""
        self.lose("it was closed")
        self._closed(self)

    def _free(self) -> None:
        self._whole.clear()
        self._aside = {name: Aside(self._store) for name in self._aside}
        self._bytes = 0
        self._touched = self._membership(1)
        self._guard.notify_all()


def _of(block: RowBlock, ids: Ids) -> RowBlock:
    """Those rows of a block that have one of these ids, which ascend by the mixed id."""
    order = np.argsort(mixed(block.ids))
    mine = order[_among(block.ids[order], ids)]
    return RowBlock(block.ids[mine], block.values[mine], block.state[mine])


def _among(ids: Ids, some: Ids) -> NDArray[np.bool_]:
    """[R] which of these ids are among some others. Both ascend by the mixed id."""
    out = np.zeros(ids.size, np.bool_)
    if ids.size:
        all_mixed, some_mixed = mixed(ids), mixed(some)
        at = np.minimum(np.searchsorted(all_mixed, some_mixed), ids.size - 1)
        out[at[all_mixed[at] == some_mixed]] = True
    return out
