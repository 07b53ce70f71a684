"""What a server owns, as partitions come and go: its part of a move (docs/decisions/0016-moving-partitions.md).

Requests by a placement that is older than the server's last move are answered `Moved`; between the move and the new
placement they wait for it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from satrap import wire
from satrap.ps.local import LocalService
from satrap.ps.noting import Ids, Notes, united
from satrap.ps.packing import Directory, joined
from satrap.ps.placement import epoch_of, moves_of
from satrap.wire import Message

COORDINATORS = (wire.Place, wire.Owned, wire.Track, wire.Release, wire.Accept, wire.Forget, wire.ReadRows)
"""What a coordinator asks, whatever placement it goes by."""


class NotNow(Exception):  # noqa: N818
    """A request about a move that does not fit what the server knows."""


class Owning:
    """Used by the thread that serves."""

    def __init__(self, service: LocalService, directory: Directory, index: int) -> None:
        self._service, self._directory, self._index = service, directory, index
        self.placed: wire.Place | None = None
        """The newest placement it was told."""
        self.changed = 0
        """Moves, when it last took part in one."""
        self.released: dict[int, int] = {}
        """Partition → number, of those it gave up and that no placement it was told of says so yet."""
        self.accepted: dict[int, int] = {}
        self.parked: dict[tuple[bytes, int], None] = {}
        """Who waits for the next placement, and with which request."""
        self._tracked: dict[int, Notes] = {}
        self._followed: set[int] = set()
        """Partitions that are copied."""
        self._told: dict[int, tuple[int, Message]] = {}
        """Partition → the last request that asked what had changed, and its answer."""

    def begin(self) -> None:
        """A new start of the job: all that was known of moves is over."""
        self.placed, self.changed = None, 0
        self.released.clear()
        self.accepted.clear()
        self.parked.clear()
        self.forget_notes()

    def stale(self, number: int) -> bool:
        """Whether a request goes by a placement older than the last move of this server."""
        return moves_of(number) < self.changed

    def moved(self) -> Message | None:
        """The answer to it; None where it must wait."""
        if self.placed is None or moves_of(self.placed.number) < self.changed:
            return None
        return wire.Moved(number=self.placed.number, addresses=self.placed.addresses, owners=self.placed.owners)

    def place(self, m: wire.Place) -> Message:
        """Goes by this placement, unless it knows a newer one."""
        if len(m.owners) != self._service.partitions:
            raise NotNow(f"a placement of {len(m.owners)} partitions, this server has {self._service.partitions}")
        if self.placed is None or m.number > self.placed.number:
            self.placed = m
            self.released = {p: n for p, n in self.released.items() if n > m.number}
            self.accepted = {p: n for p, n in self.accepted.items() if n > m.number}
        return wire.Done()

    def owned(self) -> Message:
        """What it knows of moves."""
        placed = self.placed
        return wire.OwnedReply(
            number=0 if placed is None else placed.number,
            addresses=() if placed is None else placed.addresses,
            owners=() if placed is None else placed.owners,
            changed=self.changed,
            released=tuple(sorted(self.released.items())),
            accepted=tuple(sorted(self.accepted.items())),
        )

    def track(self, m: wire.Track) -> Message:
        """The ids of a partition that have changed since it was last asked."""
        self._check(m.partition)
        if m.partition in self.released:
            raise NotNow(f"partition {m.partition} was given up: its rows do not change")
        last = self._told.get(m.partition)
        if last is None or last[0] != m.request:
            # Kept: done once more, it would take from the notes what only the first answer told.
            last = self._told[m.partition] = (m.request, self._touched(m.partition, m.after, {}, again=True))
        return last[1]

    def check_release(self, m: wire.Release) -> bool:
        """Whether it is to be done; False: it was done. Raises NotNow."""
        self._check(m.partition)
        if self.released.get(m.partition) == m.number:
            return False
        if m.partition in self.released or not self._owns(m.partition):
            raise NotNow(f"partition {m.partition} is not here to be given up, or not known to be")
        self._check_number(m.number)
        return True

    def release(self, m: wire.Release) -> Message:
        """Gives a partition up. Its rows stay as they are until they are forgotten."""
        if self.released.get(m.partition) != m.number:
            self.restore(m)
        return self._touched(m.partition, m.after, self._service.last_in(m.partition), again=False)

    def check_accept(self, m: wire.Accept) -> bool:
        """See `check_release`."""
        self._check(m.partition)
        if self.accepted.get(m.partition) == m.number:
            return False
        self._check_number(m.number)
        return True

    def check_forget(self, m: wire.Forget) -> None:
        """Raises NotNow for a partition that is its own."""
        self._check(m.partition)
        if self.placed is None or m.partition in self.released or self._owns(m.partition):
            raise NotNow(f"partition {m.partition} is not another's, or not known to be")

    def forget(self, m: wire.Forget) -> Message:
        """Removes the rows of a partition."""
        count = 0
        for t in self._directory.tables:
            count += self._service.erase(t.name, self._service.store.export_ids(t.name, m.partition))
            if t.bounded:
                self._service.forget_bound(t.name, m.partition)
        self._untrack(m.partition)
        return wire.Done(count=count)

    def read(self, table: str, number: int, m: wire.ReadRows) -> Message:
        """Rows by id; of a bounded table, where all are of one partition, with their marks and its clocks."""
        block, store, bound = self._service.read_rows(table, m.ids), self._service.store, None
        if table in store.bounded and m.ids.size:
            bound = store.export_clocks(table, int(store.partitions_of(m.ids[:1])[0]))
        return wire.BlockReply(
            table=number,
            ids=block.ids,
            values=block.values,
            state=block.state,
            marks=block.marks,
            bound=bound,
            total_rows=block.ids.size,
        )

    def beside_rows(self, table: str, m: wire.ExportRows) -> Message:
        """What a bounded table keeps for a partition, and how many rows."""
        if table not in self._service.store.bounded:
            raise NotNow(f"table '{table}' keeps nothing beside its rows")
        self._check(m.partition)
        none = self._service.read_rows(table, np.empty(0, np.uint64))
        return wire.BlockReply(
            table=m.table,
            ids=none.ids,
            values=none.values,
            state=none.state,
            bound=self._service.store.export_clocks(table, m.partition, whole=True),
            total_rows=self._service.store.rows_of(table, m.partition),
        )

    def records(self) -> Iterator[Message]:
        """What brings this back, in order, behind the clients."""
        if self.placed is not None:
            yield self.placed
        for partition, number in self.released.items():
            yield wire.Release(partition=partition, number=number)
        for partition in sorted(self._service.late() | self.accepted.keys()):
            # One that is only late was accepted long ago: a number of 0 says so.
            number = self.accepted.get(partition, 0)
            yield wire.Accept(partition=partition, number=number, clients=self._service.last_in(partition))

    def restore(self, m: wire.Place | wire.Release | wire.Accept) -> None:
        """Enters one of `records`, or a move that is done now."""
        if isinstance(m, wire.Place):
            # Of whether it took part in the last move, not more is known than that: then older requests are too old.
            self.placed, self.changed = m, moves_of(m.number)
            return
        self.changed = max(self.changed, moves_of(m.number))
        if isinstance(m, wire.Release):
            self.released[m.partition] = m.number
            self.accepted.pop(m.partition, None)
            return
        if m.number:
            self.released.pop(m.partition, None)
            self.accepted[m.partition] = m.number
        self._untrack(m.partition)  # of a move that was not ended
        self._service.take_in(m.partition, m.clients)

    def forget_notes(self) -> None:
        """Nothing is noted any more: rows have gone, or come back from elsewhere."""
        for partition in list(self._followed):
            self._untrack(partition)

    def _owns(self, partition: int) -> bool:
        if partition in self.accepted:
            return True
        return self.placed is not None and self.placed.owners[partition] == self._index

    def _check(self, partition: int) -> None:
        if partition >= self._service.partitions:
            raise NotNow(f"there are partitions 0 to {self._service.partitions - 1}, not {partition}")

    def _check_number(self, number: int) -> None:
        known = max(self.changed, 0 if self.placed is None else moves_of(self.placed.number))
        if moves_of(number) <= known:
            raise NotNow(f"it knows of {known} moves, this one would be number {moves_of(number)}: it is out of date")

    def _touched(self, partition: int, after: int, clients: dict[int, tuple[int, int]], *, again: bool) -> Message:
        notes, last = self._tracked.get(partition), self._told.get(partition)
        if last is None or last[0] != after:
            notes = None  # whoever asks has not had all answers: another coordinator's, or a message from before
        changed = None if notes is None else self._changed(partition, notes)
        self._stop_noting(partition)
        if again:
            self._tracked[partition] = self._service.note(partition)
            if changed is None:
                self._follow(partition)
        ids, gone = changed or (self._all(partition), {})
        names = self._directory.ordered(ids)
        return wire.Touched(
            sections=tuple(wire.Section(self._directory.numbers[n], ids[n].size, 1) for n in names),
            ids=joined([ids[n] for n in names]) if names else np.empty(0, np.uint64),
            continues=changed is not None,
            clients=clients,
            gone=tuple(gone.get(n, 0) for n in names) if any(gone.values()) else (),
        )

    def _all(self, partition: int) -> dict[str, Ids]:
        found = {t.name: self._service.store.export_ids(t.name, partition) for t in self._directory.tables}
        return {t: ids for t, ids in found.items() if ids.size}

    def _changed(self, partition: int, notes: Notes) -> tuple[dict[str, Ids], dict[str, int]] | None:
        """Table → ids that calls have named and rules have removed, and how many of them, the first, have no row.
        None: rules have removed too many to know."""
        ids, gone, store = notes.ids(), dict[str, int](), self._service.store
        for t in sorted(store.bounded):
            removed = store.take_followed(t, partition)
            if removed is None:
                return None
            if t in store.cold:
                continue  # what is not in memory is on disk
            named = united((ids.get(t), removed))
            there = store.in_memory(t, named)
            if named.size:
                ids[t] = np.concatenate((named[~there], named[there]))
                gone[t] = named.size - int(np.count_nonzero(there))
        return ids, gone

    def _follow(self, partition: int) -> None:
        self._followed.add(partition)
        for t in self._service.store.bounded:
            self._service.store.follow(t, partition)

    def _stop_noting(self, partition: int) -> None:
        self._told.pop(partition, None)
        notes = self._tracked.pop(partition, None)
        if notes is not None:
            self._service.stop_noting(notes)

    def _untrack(self, partition: int) -> None:
        self._stop_noting(partition)
        if partition in self._followed:
            self._followed.remove(partition)
            for t in self._service.store.bounded:
                self._service.store.follow(t, partition, on=False)


def check_epoch(number: int, epoch: int, index: int) -> str | None:
    """What is wrong with a request's placement; None: it is of this start."""
    if epoch_of(number) == epoch:
        return None
    return (
        f"server {index} goes by placement {epoch}, the request by placement {epoch_of(number)}: "
        "this process belongs to an earlier or later start of the job"
    )
