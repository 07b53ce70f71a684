"""What has changed since the last snapshot: the ids that the records since then name. U ids of a table.

The records say which ids changed at no cost to whoever trains; they are read again by the thread that takes snapshots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from satrap import wire
from satrap.durable.files import Files
from satrap.durable.journal import Reading, read_journal
from satrap.durable.record import Kind
from satrap.durable.snapshot import BEGIN, Snapshot
from satrap.ps.noting import Ids
from satrap.ps.state import message_of
from satrap.store import Store, bound_partition


@dataclass(slots=True)
class Changes:
    """What may differ from a snapshot."""

    ids: dict[int, dict[str, Ids]] = field(default_factory=dict)
    """Partition → table → ids [U], each once."""
    whole: set[int] = field(default_factory=set)
    """Partitions of which any row may."""


def changes_since(snapshot: Snapshot, end: int, store: Store, limits: wire.Limits, files: Files) -> Changes | None:
    """What records behind the beginning of a snapshot, up to this one, have changed. None where they do not say.

    A push that waited for others when the snapshot began was recorded before, and is applied after: it counts too.
    Raises JournalError.
    """
    found: dict[str, list[Ids]] = {}
    changes = Changes()
    folder = snapshot.path.parent
    for record in snapshot.state(BEGIN):
        if record.kind is Kind.MESSAGE:
            message = message_of(record, limits, str(snapshot.path / BEGIN))
            if isinstance(message, wire.Push):
                _enter(found, store.names, message.sections, message.ids)
    reading = Reading(snapshot.manifest.identity, next=snapshot.manifest.begin + 1)
    if end > snapshot.manifest.begin:
        for record in read_journal(folder, reading, files):
            if record.kind is not Kind.PLACEMENT and not _take(
                message_of(record, limits, str(folder)), found, changes, store.names
            ):
                return None
            if record.sequence >= end:
                break
    for table, arrays in found.items():
        for partition, ids in by_partition(store, np.unique(np.concatenate(arrays))).items():
            if partition not in changes.whole:
                changes.ids.setdefault(partition, {})[table] = ids
    return changes


def _take(m: wire.Message, found: dict[str, list[Ids]], changes: Changes, names: Sequence[str]) -> bool:
    """Enters what a record has changed; False where that is not known."""
    match m:
        case wire.Push() | wire.Pull():
            _enter(found, names, m.sections, m.ids)
        case wire.ImportRows() if m.bound is not None:
            changes.whole.add(bound_partition(m.bound))  # whose clocks are now others
        case wire.Erase() | wire.ImportRows():
            found.setdefault(names[m.table], []).append(m.ids.copy())
        case wire.Forget():
            changes.whole.add(m.partition)
        case wire.ReserveRows() | wire.SetClients() | wire.Place() | wire.Release() | wire.Accept():
            pass
        case _:
            return False
    return True


def _enter(found: dict[str, list[Ids]], names: Sequence[str], sections: Sequence[wire.Section], ids: Ids) -> None:
    for s, part in zip(sections, wire.row_slices(sections), strict=True):
        # A copy: the frame it lies in holds the gradients as well.
        found.setdefault(names[s.table], []).append(ids[part].copy())


def by_partition(store: Store, ids: Ids) -> dict[int, Ids]:
    """Partition → those of these ids that are in it, in their order."""
    if not ids.size:
        return {}
    parts = store.partitions_of(ids)
    order = np.argsort(parts, kind="stable")
    found, starts = np.unique(parts[order], return_index=True)
    return {int(p): ids[x] for p, x in zip(found, np.split(order, starts[1:]), strict=True)}
