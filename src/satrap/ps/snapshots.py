"""Snapshots while the server serves: units are copied between requests, and written by a thread of their own.

serving thread   request  copy units (≤ SLICE_S)  request  request  copy units …
this thread                       └──► written ◄── checksummed, synced, published; old segments removed
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from satrap import wire
from satrap.durable.files import LOCAL
from satrap.durable.record import Kind
from satrap.durable.rows import RowBlock
from satrap.durable.snapshot import BEGIN, END, GONE, Snapshot, SnapshotWriter, remove_others, snapshot_path, snapshots
from satrap.errors import JournalError
from satrap.ps.changes import Changes, by_partition, changes_since
from satrap.ps.handling import Handler
from satrap.ps.keeper import Keeper
from satrap.ps.noting import Ids, Notes, united
from satrap.ps.state import State

_log = logging.getLogger("satrap.ps")

T = TypeVar("T")

CHAIN_MAX = 32
"""Snapshots that build on each other; with so many, or when the others have more bytes than the first, the next one
holds all rows."""

SLICE_S = 0.002
"""How long the serving thread copies units before it looks at requests again; at least one unit."""


class Run(Protocol):
    """Has the thread that serves run something, and returns what that returns. Raises Stopped where it has ended."""

    def __call__(self, work: Callable[[], T], /) -> T: ...


class Stopped(Exception):  # noqa: N818
    """The server has ended."""


class _TooMany(Exception):  # noqa: N818
    """More rows went than it is known which."""


@dataclass(slots=True)
class SnapshotMeters:
    """What snapshots have cost so far."""

    taken: int = 0
    increments: int = 0
    """Of those taken, the ones without the rows that had not changed."""
    failed: int = 0
    bytes: int = 0
    seconds: float = 0.0
    pause_s_max: float = 0.0
    """The longest time that requests waited for a copy."""


class Snapshots:
    """Takes snapshots when they are due. `take` by one thread at a time."""

    def __init__(self, keeper: Keeper, handler: Handler, run: Run) -> None:
        self._keeper, self._handler, self._run = keeper, handler, run
        self._all_rows = False
        """The next one holds all rows: what it might build on is of no use."""
        keeper.chained = bool(snapshots(keeper.folder, keeper.files))
        self._notes: Notes | None = None
        """What changes while one is taken that holds only changes."""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.meters = SnapshotMeters()

    def start(self) -> None:
        """Takes snapshots in a thread of their own, until `stop`."""
        self._thread = threading.Thread(target=self._loop, name="satrap-snapshots", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; a snapshot under way is given up."""
        self._stop.set()
        self._keeper.snapshot_due.set()
        if self._thread is not None:
            self._thread.join()

    def _loop(self) -> None:
        while True:
            self._keeper.snapshot_due.wait()
            if self._stop.is_set():
                return
            try:
                self.take()
            except Stopped:
                return
            except (JournalError, OSError) as e:
                self.meters.failed += 1
                where = getattr(e, "filename", None) or self._keeper.folder
                _log.error("a snapshot failed: %s: %s. The journal goes on, and the last snapshot is intact", where, e)

    def take(self) -> Path | None:
        """Takes a snapshot and removes what it makes superfluous. None where rows were cleared meanwhile.

        Raises JournalError or OSError; the last snapshot and the journal are then as they were.
        """
        try:
            return self._take()
        except _TooMany as e:
            _log.info("%s: the snapshot begins anew, with all rows", e)
            return self._take()

    def _take(self) -> Path | None:
        begun = time.perf_counter()
        keeper = self._keeper
        chain = self._chain()
        begin, generation, state, lost = self._run(lambda: self._begin(noting=bool(chain)))
        path: Path | None = None
        all_rows = self._all_rows
        try:
            if begin in snapshots(keeper.folder, keeper.files):
                return snapshot_path(keeper.folder, begin)  # nothing has changed
            all_rows = True  # units that were copied, and are in no snapshot, do not know any more what went from them
            base, changes = self._changes(chain, begin)
            if changes is not None:
                changes.whole |= lost
            writer = SnapshotWriter(
                keeper.folder,
                keeper.journal.identity,
                begin,
                self._handler.service.tables(),
                self._handler.service.partitions,
                keeper.files,
                base=base,
                whole=() if changes is None else sorted(changes.whole),
                # Other file layers are those of tests, which count what happens.
                beside=keeper.files is LOCAL,
            )
            try:
                path = self._write(writer, begin, generation, state, changes)
            except BaseException:
                writer.discard()
                raise
        finally:
            with suppress(Stopped):
                self._run(self._stop_noting)
            self._all_rows = all_rows and path is None
        if path is None:
            return None
        self.meters.taken += 1
        self.meters.increments += base is not None
        self.meters.bytes += writer.bytes
        self.meters.seconds += time.perf_counter() - begun
        keeper.chained = True
        kept = {begin} if base is None else {begin, *(s.manifest.begin for s in chain)}
        with suppress(OSError):  # what stays goes with the next one
            remove_others(keeper.folder, kept, keeper.files)
            keeper.journal.remove_up_to(begin)
        return path

    def _write(
        self, writer: SnapshotWriter, begin: int, generation: int, state: State, changes: Changes | None
    ) -> Path | None:
        """Writes it whole and publishes it. None where rows were cleared meanwhile."""
        service, keeper = self._handler.service, self._keeper
        writer.state(BEGIN, begin, state.records())
        gone: dict[int, list[Ids]] = {}
        units = self._units(changes, gone)
        for _ in range(service.partitions):
            writer.partition(next(units) for _ in service.tables())
        if gone:
            erased = ((t, np.concatenate(x)) for t, x in sorted(gone.items()))
            writer.state(GONE, begin, [(Kind.MESSAGE, wire.encode(wire.Erase(table=t, ids=ids))) for t, ids in erased])
        end, now, state = self._run(self._end)
        if now != generation:
            writer.discard()
            return None
        writer.state(END, end, state.records())
        keeper.journal.sync()
        return writer.publish(end)

    def _chain(self) -> list[Snapshot]:
        """The snapshots on which the next one may build; none where it is to hold all rows."""
        if self._all_rows:
            return []
        try:
            chain = Snapshot.chain(self._keeper.folder, self._keeper.files)
        except JournalError as e:
            _log.warning("the next snapshot holds all rows: %s", e)
            return []
        if len(chain) >= CHAIN_MAX or sum(s.bytes for s in chain[1:]) > sum(s.bytes for s in chain[:1]):
            return []
        return chain

    def _changes(self, chain: list[Snapshot], begin: int) -> tuple[int | None, Changes | None]:
        """On which snapshot the next one builds, and what has changed since; (None, None): it holds all rows."""
        if not chain:
            return None, None
        keeper, store = self._keeper, self._handler.service.store
        changes = changes_since(chain[-1], begin, store, keeper.limits, keeper.files)
        return (None, None) if changes is None else (chain[-1].manifest.begin, changes)

    def _stop_noting(self) -> None:
        notes, self._notes = self._notes, None
        if notes is not None:
            self._handler.service.stop_noting(notes)

    def metrics_text(self) -> str:
        """What the history is and costs, in the text format of Prometheus."""
        m, keeper = self.meters, self._keeper
        recovered = keeper.recovered
        outcomes = {'{outcome="taken"}': m.taken, '{outcome="increment"}': m.increments, '{outcome="failed"}': m.failed}
        read = {'{part="snapshot"}': recovered.snapshot_bytes, '{part="journal"}': recovered.journal_bytes}
        total, now = "counter", "gauge"
        lines = []
        for name, kind, what, values in (
            ("journal_bytes_total", total, "Bytes written to the journal.", {"": keeper.journal.bytes}),
            ("journal_records_total", total, "Records since the journal began.", {"": keeper.journal.position}),
            ("snapshots_total", total, "Snapshots.", outcomes),
            ("snapshot_seconds_total", total, "Time that snapshots took.", {"": m.seconds}),
            ("snapshot_pause_seconds_max", now, "The longest that requests waited for one.", {"": m.pause_s_max}),
            ("history_bytes", now, "What the server read when it began.", read),
            ("recovery_seconds", now, "How long that took.", {"": recovered.seconds}),
        ):
            lines += [f"# HELP satrap_{name} {what}", f"# TYPE satrap_{name} {kind}"]
            lines += [f"satrap_{name}{label} {value}" for label, value in values.items()]
        return "\n".join(lines) + "\n"

    def _begin(self, *, noting: bool) -> tuple[int, int, State, set[int]]:
        """`_end`, and the partitions of which it is not known which rows have gone."""
        self._keeper.snapshot_began()
        service, lost = self._handler.service, set[int]()
        if noting:
            # What changes before its unit is copied is in no record that was read by then.
            self._notes = service.note()
            units = product(service.store.bounded, range(service.partitions))
            lost = {p for t, p in units if service.store.removals_lost(t, p)}
        return *self._end(), lost

    def _end(self) -> tuple[int, int, State]:
        begun = time.perf_counter()
        self._keeper.settle()
        state = State.of(self._handler)
        self.meters.pause_s_max = max(self.meters.pause_s_max, time.perf_counter() - begun)
        return self._keeper.journal.position, self._keeper.generation, state

    def _units(self, changes: Changes | None, gone: dict[int, list[Ids]]) -> Iterator[tuple[int, RowBlock]]:
        """Position and rows of every unit, partition by partition: all of them, or those that have changed, and then
        in `gone` by table those that are there no more."""
        service = self._handler.service
        wanted = deque(product(range(service.partitions), enumerate(t.name for t in service.tables())))
        while wanted:
            yield from self._run(lambda: self._slice(wanted, changes, gone))

    def _slice(
        self, wanted: deque[tuple[int, tuple[int, str]]], changes: Changes | None, gone: dict[int, list[Ids]]
    ) -> list[tuple[int, RowBlock]]:
        if self._stop.is_set():
            raise Stopped
        begun = time.perf_counter()
        self._keeper.settle()
        service, copied = self._handler.service, []
        late: dict[str, dict[int, Ids]] = {}
        if changes is not None and self._notes is not None:
            late = {t: by_partition(service.store, ids) for t, ids in self._notes.ids().items()}
        while wanted:
            partition, (number, table) = wanted.popleft()
            removed, bound = None, None
            if table in service.store.bounded:
                removed, bound = service.store.take_removals(table, partition)
            if changes is None or partition in changes.whole:
                block = service.export_rows(table, partition)
            elif bound is not None and removed is None:
                raise _TooMany(f"most rows of partition {partition} of table '{table}' went while it was taken")
            else:
                named = changes.ids.get(partition, {}).get(table)
                ids = united((named, late.get(table, {}).get(partition), removed))
                block = service.read_rows(table, ids)
                if block.ids.size < ids.size:
                    gone.setdefault(number, []).append(np.setdiff1d(ids, block.ids, assume_unique=True))
                if ids.size:
                    block = replace(block, bound=bound)
            copied.append((self._keeper.journal.position, block))
            if time.perf_counter() - begun >= SLICE_S:
                break
        self.meters.pause_s_max = max(self.meters.pause_s_max, time.perf_counter() - begun)
        return copied
