"""From a folder back to a server's rows and state: the newest snapshot, and the records behind it.

snapshot ─ units, each at a position of its own ─► rows
           state at its beginning ─► replay, of what each unit lacks ─► state at its end ─► replay of the rest
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from satrap import wire
from satrap.durable.files import LOCAL, Files
from satrap.durable.journal import Reading, read_journal
from satrap.durable.record import Kind, Record
from satrap.durable.rows import RowBlock, Scratch
from satrap.durable.segment import REPAIR, Identity, Torn
from satrap.durable.snapshot import BEGIN, END, GONE, Snapshot, rows_name
from satrap.errors import JournalError
from satrap.ps.changes import by_partition
from satrap.ps.handling import Handler
from satrap.ps.meters import Meters
from satrap.ps.noting import Ids
from satrap.ps.partial import PartialStore
from satrap.ps.state import epoch_of, message_of, restore_state
from satrap.schema import Table


@dataclass(slots=True)
class Recovered:
    """What was brought back."""

    identity: Identity
    next: int = 1
    """Sequence number of the next record."""
    records: int = 0
    """Replayed."""
    journal_bytes: int = 0
    snapshot_bytes: int = 0
    torn: list[Torn] = field(default_factory=list)
    """What crashes left half written: nothing of it was acknowledged."""
    seconds: float = 0.0
    behind: bool = False
    """The server is started under a newer placement than it went by."""


def recover(folder: Path, handler: Handler, own: Identity, limits: wire.Limits, files: Files = LOCAL) -> Recovered:
    """Brings back what a server has kept in a folder; a server that has kept nothing begins as `own`.

    Raises JournalError where it is another's, or anything of it is damaged or missing.
    """
    chain = Snapshot.chain(folder, files)
    snapshot = chain[-1] if chain else None
    # The placement is what the records say, until the end; there whoever starts the server may be further on.
    present, handler.epoch = handler.epoch, 0
    reading = Reading(None if snapshot is None else snapshot.manifest.identity)
    found = Recovered(own)
    player = _Player(handler, limits, str(folder))
    if snapshot is not None:
        _check(snapshot, handler, own)
        reading.next = snapshot.manifest.begin + 1
        found.snapshot_bytes = load_rows(chain, handler, limits)
        handler.versions_known = False
        restore_state(handler, snapshot.state(BEGIN), limits, str(snapshot.path / BEGIN))
    records = _checked(read_journal(folder, reading, files), reading, own, folder, handler)
    if snapshot is not None:
        end = snapshot.manifest.end
        if end > snapshot.manifest.begin:
            partial = PartialStore(handler.service.store, np.array(snapshot.manifest.positions, np.int64))
            with handler.service.through(partial):
                for record in records:
                    partial.sequence = record.sequence
                    player.play(record)
                    if record.sequence == end:
                        break
        if reading.next <= end:
            raise JournalError(
                f"{folder}: records {reading.next} to {end} are missing, and {snapshot.path.name} needs them. Restore "
                f"the journal from a copy, or {REPAIR}"
            )
        restore_state(handler, snapshot.state(END), limits, str(snapshot.path / END))
    for record in records:
        player.play(record)
    handler.meters.heat.counts[:] = 0
    handler.meters = Meters(heat=handler.meters.heat)  # which rows are hot, the pushes of before tell
    if reading.next == 1:
        handler.epoch = present
    found.behind = present > handler.epoch
    found.identity = reading.identity or own
    found.next, found.records = reading.next, player.played
    found.journal_bytes, found.torn = reading.bytes, reading.torn
    return found


def _checked(
    records: Iterator[Record], reading: Reading, own: Identity, folder: Path, handler: Handler
) -> Iterator[Record]:
    for record in records:
        check_owner(reading.identity, own, folder)
        if reading.identity is not None:
            # Answers that are kept carry it.
            handler.service.life = reading.identity.life
        yield record
    check_owner(reading.identity, own, folder)


def check_owner(found: Identity | None, own: Identity, where: Path) -> None:
    """Raises JournalError where a history is of another server, or of other tables. Its life is taken over."""
    if found is None:
        return
    if found.fingerprint != own.fingerprint:
        raise JournalError(
            f"{where}: the history there is of other tables, or of tables made with another seed; give this job "
            "another run folder, or start it with the job that it was made with"
        )
    if found.server != own.server:
        raise JournalError(f"{where}: the history there is of server {found.server}, not {own.server}")


def _check(snapshot: Snapshot, handler: Handler, own: Identity) -> None:
    check_owner(snapshot.manifest.identity, own, snapshot.path)
    have, want = snapshot.manifest.partitions, handler.service.partitions
    if have != want:
        raise JournalError(
            f"{snapshot.path}: its tables are cut into {have} partitions, this server's into {want}; set "
            f"store.partitions={have}"
        )


def load_rows(chain: Sequence[Snapshot], handler: Handler, limits: wire.Limits) -> int:
    """All rows of a chain of snapshots into a service that is empty. Returns the bytes read.

    As many partitions as there are threads are read at once, while those read before are filled at once.
    """
    service = handler.service
    gone = [gone_rows(snapshot, handler, limits) for snapshot in chain]
    tables, threads = {t.name: t for t in service.tables()}, service.store.threads

    def first_of(partition: int) -> int:
        # Where all rows of a partition are in a snapshot, those before it have nothing to say about it.
        return max(i for i, s in enumerate(chain) if s.manifest.base is None or partition in s.manifest.whole)

    steps: list[tuple[int, list[int]]] = []
    for start in range(0, service.partitions, threads):
        group = [(p, first_of(p)) for p in range(start, min(start + threads, service.partitions))]
        steps += [(i, [p for p, first in group if first <= i]) for i in range(len(chain))]
    rooms = [[Scratch() for _ in range(threads)] for _ in range(2)]
    size = 0
    with ThreadPoolExecutor(threads, thread_name_prefix="satrap-recovery") as pool:

        def begin(step: int) -> list[Future[tuple[dict[str, RowBlock], int]]]:
            i, here = steps[step]
            spare = rooms[step % 2]
            return [pool.submit(_read, chain[i], tables, p, spare[k]) for k, p in enumerate(here)]

        reading = begin(0)
        for step, (i, here) in enumerate(steps):
            read = [r.result() for r in reading]
            reading = begin(step + 1) if step + 1 < len(steps) else []
            for p in here:
                for name, ids in gone[i].get(p, {}).items():
                    service.erase(name, ids)
            changed = chain[i].manifest.base is not None
            for later in (False, True):
                # Of a partition that is whole here, the rows of before are gone, and do not age.
                which = [k for k, p in enumerate(here) if later == (changed and p not in chain[i].manifest.whole)]
                for name in tables:
                    blocks = [read[k][0][name] for k in which if name in read[k][0]]
                    service.import_many(name, blocks, later=later)
            size += sum(n for _, n in read)
    return size


def _read(
    snapshot: Snapshot, tables: Mapping[str, Table], partition: int, scratch: Scratch
) -> tuple[dict[str, RowBlock], int]:
    """The rows of a partition by table, in the scratch, and their bytes in the snapshot."""
    entry = snapshot.manifest.files.get(rows_name(partition))
    return dict(snapshot.rows(partition, tables, scratch)), 0 if entry is None else entry.bytes


def gone_rows(snapshot: Snapshot, handler: Handler, limits: wire.Limits) -> dict[int, dict[str, Ids]]:
    """Partition → table → ids that have no row any more, though the snapshot before may have one."""
    out: dict[int, dict[str, Ids]] = {}
    where = str(snapshot.path / GONE)
    names = [t.name for t in handler.service.tables()]
    for record in snapshot.state(GONE):
        m = message_of(record, limits, where)
        if not isinstance(m, wire.Erase) or m.table >= len(names):
            raise JournalError(f"{where}: record {record.sequence}: a {type(m).__name__} is no list of rows")
        for partition, ids in by_partition(handler.service.store, m.ids).items():
            out.setdefault(partition, {})[names[m.table]] = ids
    return out


@dataclass(slots=True)
class _Player:
    """Has a handler do again what records say it did."""

    handler: Handler
    limits: wire.Limits
    where: str
    played: int = 0

    def play(self, record: Record) -> None:
        """One record. Raises JournalError where it cannot be of this history."""
        self.played += 1
        if record.kind is Kind.PLACEMENT:
            self.handler.advance(epoch_of(record, self.where))
        elif record.kind is Kind.CLOCK:
            self.handler.service.store.clock = epoch_of(record, self.where)
        elif record.kind is Kind.MESSAGE:
            message = message_of(record, self.limits, self.where)
            try:
                self.handler.replay(message)
            except JournalError as e:
                raise JournalError(f"{self.where}: record {record.sequence}: {e}. {REPAIR}") from e
        else:
            raise JournalError(
                f"{self.where}: record {record.sequence} is of kind {record.kind.name}, which only states have"
            )
