"""Rows as they were at one moment, read while they go on changing (docs/decisions/0019-checkpoints-behind.md).

first change of a row ──► the row as it is: set aside ──┐
                                                        ├─► a partition as of the cut
reading a partition   ──► its rows now, but for those ──┘

Of bounded tables rows also go by a rule, and marks age, without anybody naming them: the native table remembers the
marks, and hands over the rows (`Store.open_cut`).

T tables, P partitions, U ids of a table, R rows of a partition.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from satrap.durable.rows import RowBlock
from satrap.errors import StoreError
from satrap.ps.aside import Aside, bytes_of, joined, part_of
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
    `aside_bytes`; 24 bytes for each of them; and of bounded tables the marks as soon as they age, and of the sketches
    what changes.
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

        Raises StoreError where sketches and marks do not fit.
        """
        self._store, self._guard, self._export, self._waits, self._closed = store, guard, export, waits, closed
        self._stats, self._clients = dict(stats), dict(clients)
        self.partitions = store.partitions
        self._pending = np.ones(self.partitions, np.bool_)
        self.lost: str | None = None
        """Why there is no such cut any more."""
        self._most = max(ASIDE_LEAST, store.room.left_bytes() // 2) if aside_bytes is None else aside_bytes
        self._marks = 0
        """Bytes that marks and sketches of bounded tables may take, once all have changed."""
        self._aside = {t.name: Aside(store) for t in store.configuration}
        self._bytes = 0
        """Set aside."""
        self._done = np.zeros(self.partitions, np.bool_)
        """Partitions that are not asked for any more, and of which rows are still here."""
        self._touched = self._membership(min(self.partitions, PARTS_MOST))
        self._open_bounded()

    def _membership(self, partitions: int) -> Store:
        """Tables of the same names, where a row says that its id was touched."""
        tables = [Table(name=name, dim=1, optimizer=SGD(lr=1.0), initializer=Zeros()) for name in self._aside]
        return Store(tables, seed=0, partitions=partitions, threads=1)

    def _open_bounded(self) -> None:
        try:
            for table in sorted(self._store.bounded):
                self._marks += self._store.open_cut(table)
                if self._marks > self._most:
                    raise StoreError(
                        f"what tells the age of rows in the bounded tables up to '{table}' takes {self._marks:,} "
                        f"bytes, and there is room for a copy of {self._most:,}; give servers more memory to have "
                        "their checkpoints written behind"
                    )
        except BaseException:
            self.lose("it did not fit into memory")
            raise

    # ---- those who change rows -------------------------------------------------------------------------------------

    def add(self, table: str, ids: Ids) -> None:
        """See `Watcher.add`: sets aside the rows of ids [U] that have not been touched since the cut."""
        while self._waits and self.full:
            self._guard.wait(WAIT_S)
        if self.lost is not None or table not in self._aside or not ids.size:
            return
        waiting = self._pending[self._store.partitions_of(ids)]
        try:
            self._set_gone_aside(table)
            self._set_aside(table, ids if waiting.all() else ids[waiting])
        except (StoreError, MemoryError) as e:
            self.lose(f"rows could not be set aside: {e}")

    def _set_aside(self, table: str, ids: Ids) -> None:
        fresh = ids[self._touched.lookup(table, ids)[:, 0] == 0] if ids.size else ids
        if not fresh.size:
            return
        found, values, state, _ = self._store.read_rows(table, fresh)
        marks = self._store.cut_marks(table, found) if table in self._store.bounded else None
        self._keep(table, fresh, RowBlock(found, values, state, marks))

    def _set_gone_aside(self, table: str) -> None:
        """Sets aside what a rule has removed since the last time. Before anybody names one of these ids: who finds none
        of them in the table must find them here."""
        if table not in self._store.bounded:
            return
        block = RowBlock(*self._store.take_cut_rows(table))
        if not block.ids.size:
            return
        # Of one that went twice, the first is of before it was made again; that one is known to be touched.
        first = np.sort(np.unique(block.ids, return_index=True)[1])
        fresh = first[self._touched.lookup(table, block.ids[first])[:, 0] == 0]
        fresh = fresh[self._pending[self._store.partitions_of(block.ids[fresh])]]
        if fresh.size:
            self._keep(table, block.ids[fresh], part_of(block, fresh))

    def _keep(self, table: str, touched: Ids, rows: RowBlock) -> None:
        if rows.ids.size:
            self._aside[table].add(rows)
            self._bytes += bytes_of(rows)
        ones = np.ones((touched.size, 1), np.float32)
        self._touched.import_rows(table, touched, ones, np.empty((touched.size, 0), np.float32))

    @property
    def full(self) -> bool:
        """Whether no more rows should be changed for now."""
        return self.lost is None and bool(self._pending.any()) and self._bytes + self._marks > self._most

    def lose(self, why: str) -> None:
        """Gives the cut up: who reads it is told why."""
        with self._guard:
            if self.lost is not None:
                return
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
            self._set_gone_aside(table)
            now = self._export(table, partition)
            bound = None
            if table in self._store.bounded:
                bound = self._store.cut_bound(table, partition)
                now = replace(now, marks=self._store.cut_marks(table, now.ids), bound=None)
            touched = self._touched.export_rows(table, partition * self._touched.partitions // self.partitions)[0]
            # Should it be given up meanwhile, its rows are here all the same.
            aside = self._aside[table]
        # What is touched from here on is none of `touched`, and left aside below.
        touched = touched[self._store.partitions_of(touched) == partition]
        if not touched.size:
            return replace(now, bound=bound)
        blocks = [part_of(now, ~_among(now.ids, touched))]
        before = aside.of(partition)
        if before is not None:
            blocks.append(_of(before, touched))
        whole = joined(blocks)
        place = mixed(whole.ids)
        order = np.argsort(place, kind="stable")
        # One that was named twice by who changed it was set aside twice.
        order = order[np.diff(place[order], prepend=~place[order[:1]]) != 0]
        return replace(part_of(whole, order), bound=bound)

    def done(self, partition: int) -> None:
        """See `Cut.done`."""
        with self._guard:
            if self.lost is not None or not self._pending[partition]:
                return
            self._pending[partition] = False
            self._done[partition] = True
            self._marks = 0
            for table in self._store.bounded:
                self._marks += self._store.close_cut(table, partition)
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
        for table in self._store.bounded:
            for partition in range(self.partitions):
                self._store.close_cut(table, partition)
        self._aside = {name: Aside(self._store) for name in self._aside}
        self._bytes = 0
        self._touched = self._membership(1)
        self._guard.notify_all()


def _of(block: RowBlock, ids: Ids) -> RowBlock:
    """Those rows of a block that have one of these ids, which ascend by the mixed id."""
    order = np.argsort(mixed(block.ids))
    mine = order[_among(block.ids[order], ids)]
    return part_of(block, mine)


def _among(ids: Ids, some: Ids) -> NDArray[np.bool_]:
    """[R] which of these ids are among some others. Both ascend by the mixed id."""
    out = np.zeros(ids.size, np.bool_)
    if ids.size:
        all_mixed, some_mixed = mixed(ids), mixed(some)
        at = np.minimum(np.searchsorted(all_mixed, some_mixed), ids.size - 1)
        out[at[all_mixed[at] == some_mixed]] = True
    return out
