"""Messages that move partitions between servers, and those that tell clients where they are.

P partitions, S servers, U ids of all tables of a message. A number is that of a placement: its epoch in the low 16
bits, in the high ones the partitions that have moved since it began.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from satrap.errors import WireError
from satrap.schema import WireFormat
from satrap.wire.body import Opened, clients_bytes, text_bytes
from satrap.wire.layout import pack, rows_of, view_of
from satrap.wire.messages import Message, Name, Section
from satrap.wire.parts import Parts, carried, frame_of

CONTINUES, GONE = 1, 2
SERVERS_MAX = 65536
PARTITIONS_MAX = 65536

_MAP = struct.Struct("<III")
_OWNER = struct.Struct("<H")
_GONE = struct.Struct("<Q")
_MOVE = struct.Struct("<II")
_TRACK = struct.Struct("<IIQ")
_ONE = struct.Struct("<II")
_OWNED = struct.Struct("<III")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place(Message):
    """A placement, for a server to go by and to tell clients that go by an older one."""

    number: int
    addresses: tuple[str, ...]
    """[S]"""
    owners: tuple[int, ...]
    """[P]"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved(Message):
    """The request was not done: partitions have moved since the placement it goes by. This is the newest one."""

    number: int
    addresses: tuple[str, ...]
    owners: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Owned(Message):
    """Asks what a server has given up and taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnedReply(Message):
    """What a server knows of moves."""

    number: int
    """Of the newest placement that it was told."""
    addresses: tuple[str, ...] = ()
    """Of that placement; [0] where it was told none."""
    owners: tuple[int, ...] = ()
    changed: int
    """Of the last move that it took part in; 0: none."""
    released: tuple[tuple[int, int], ...] = ()
    """(partition, number) that it has given up, and that no placement it was told of says so yet."""
    accepted: tuple[tuple[int, int], ...] = ()
    """The same of those that it has taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Track(Message):
    """Asks for the ids of a partition that have changed since an earlier answer, and has them noted from now on."""

    partition: int
    after: int = 0
    """The request of that answer. 0, or another than the last one: all ids are asked for."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Touched(Message):
    """Ids of a partition that have changed: rows made, stepped, replaced or removed."""

    sections: tuple[Section, ...]
    """Of dim 1."""
    ids: NDArray[np.uint64]
    """[U]"""
    continues: bool
    """False: nothing was noted before, so these are all ids of the partition."""
    clients: Mapping[int, Name] = field(default_factory=dict)
    """In the answer to a `Release`: client → its last push whose rows of the partition were applied."""
    gone: tuple[int, ...] = ()
    """By section, how many of its ids, the first, have no row any more; empty: that is not told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Release(Message):
    """Has a server give up a partition, as of a number, and asks for the ids that have changed, as a `Track`."""

    partition: int
    number: int
    after: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Accept(Message):
    """Has a server own a partition whose rows it was given, as of a number."""

    partition: int
    number: int
    clients: Mapping[int, Name] = field(default_factory=dict)
    """As in the answer to the `Release`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forget(Message):
    """Has a server remove the rows of a partition that it does not own."""

    partition: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReadRows(Message):
    """Asks for rows by id, whole. A `BlockReply` has those that are there."""

    table: int
    ids: NDArray[np.uint64]
    """[U]"""


def write_map(m: Place | Moved) -> Parts:
    return Parts(body=_map_bytes(type(m).__name__, m.number, m.addresses, m.owners))


def _map_bytes(where: str, number: int, addresses: tuple[str, ...], owners: tuple[int, ...]) -> bytes:
    body = pack(_MAP, where, number, len(addresses), len(owners))
    body += b"".join(text_bytes(a, where) for a in addresses)
    return body + b"".join(pack(_OWNER, where, o) for o in owners)


def read_place(o: Opened) -> Place:
    number, addresses, owners = _map(o)
    return Place(**carried(o), number=number, addresses=addresses, owners=owners)


def read_moved(o: Opened) -> Moved:
    number, addresses, owners = _map(o)
    return Moved(**carried(o), number=number, addresses=addresses, owners=owners)


def _map(o: Opened) -> tuple[int, tuple[str, ...], tuple[int, ...]]:
    number, servers, partitions = o.take(_MAP)
    if servers > SERVERS_MAX or partitions > PARTITIONS_MAX:
        raise WireError(f"{o.where}: {servers} servers and {partitions} partitions, the limit is {SERVERS_MAX} of each")
    o.need(4 * servers + _OWNER.size * partitions)
    addresses = tuple(o.text() for _ in range(servers))
    return number, addresses, tuple(o.take(_OWNER)[0] for _ in range(partitions))


def write_owned_reply(m: OwnedReply) -> Parts:
    body = _map_bytes("OWNED_REPLY", m.number, m.addresses, m.owners)
    body += pack(_OWNED, "OWNED_REPLY", m.changed, len(m.released), len(m.accepted))
    return Parts(body=body + b"".join(pack(_MOVE, "OWNED_REPLY", *move) for move in (*m.released, *m.accepted)))


def read_owned_reply(o: Opened) -> OwnedReply:
    number, addresses, owners = _map(o)
    changed, released, accepted = o.take(_OWNED)
    if released > PARTITIONS_MAX or accepted > PARTITIONS_MAX:
        raise WireError(f"{o.where}: {released} and {accepted} partitions, the limit is {PARTITIONS_MAX}")
    o.need((released + accepted) * _MOVE.size)
    moves = [o.take(_MOVE) for _ in range(released + accepted)]
    return OwnedReply(
        **carried(o),
        number=number,
        addresses=addresses,
        owners=owners,
        changed=changed,
        released=tuple((p, n) for p, n in moves[:released]),
        accepted=tuple((p, n) for p, n in moves[released:]),
    )


def write_track(m: Track) -> Parts:
    return Parts(body=pack(_TRACK, "TRACK", m.partition, 0, m.after))


def read_track(o: Opened) -> Track:
    partition, zero, after = o.take(_TRACK)
    if zero:
        raise WireError(f"{o.where}: a field without a meaning must be zero")
    return Track(**carried(o), partition=partition, after=after)


def write_forget(m: Forget) -> Parts:
    return Parts(body=pack(_ONE, "FORGET", m.partition, 0))


def read_forget(o: Opened) -> Forget:
    partition, zero = o.take(_ONE)
    if zero:
        raise WireError(f"{o.where}: a field without a meaning must be zero")
    return Forget(**carried(o), partition=partition)


def write_touched(m: Touched) -> Parts:
    _check_ids("TOUCHED", m.sections)
    _check_gone("TOUCHED", m.gone, m.sections)
    return Parts(
        (CONTINUES if m.continues else 0) | (GONE if m.gone else 0),
        m.sections,
        clients_bytes(m.clients, "TOUCHED") + b"".join(pack(_GONE, "TOUCHED", n) for n in m.gone),
        (frame_of("TOUCHED", "ids", m.ids, np.uint64, rows_of(m.sections)),),
    )


def read_touched(o: Opened) -> Touched:
    _check_ids(o.where, o.sections)
    clients = o.clients()
    gone = tuple(o.take(_GONE)[0] for _ in o.sections) if o.flag(GONE) else ()
    if o.flag(GONE):
        _check_gone(o.where, gone, o.sections)
    return Touched(
        **carried(o), sections=o.sections, ids=_ids(o), continues=o.flag(CONTINUES), clients=clients, gone=gone
    )


def write_release(m: Release) -> Parts:
    return Parts(body=pack(_TRACK, "RELEASE", m.partition, m.number, m.after))


def read_release(o: Opened) -> Release:
    partition, number, after = o.take(_TRACK)
    return Release(**carried(o), partition=partition, number=number, after=after)


def write_accept(m: Accept) -> Parts:
    return Parts(body=pack(_MOVE, "ACCEPT", m.partition, m.number) + clients_bytes(m.clients, "ACCEPT"))


def read_accept(o: Opened) -> Accept:
    partition, number = o.take(_MOVE)
    return Accept(**carried(o), partition=partition, number=number, clients=o.clients())


def write_read_rows(m: ReadRows) -> Parts:
    sections = (Section(m.table, m.ids.size, 1),)
    return Parts(sections=sections, frames=(frame_of("READ_ROWS", "ids", m.ids, np.uint64, m.ids.size),))


def read_read_rows(o: Opened) -> ReadRows:
    _check_ids(o.where, o.sections)
    if len(o.sections) != 1:
        raise WireError(f"{o.where}: it is of one table, its directory has {len(o.sections)}")
    return ReadRows(**carried(o), table=o.sections[0].table, ids=_ids(o))


def _check_ids(where: str, sections: tuple[Section, ...]) -> None:
    wrong = next((s for s in sections if s[2:] != (1, WireFormat.FP32, 1.0)), None)
    if wrong is not None:
        raise WireError(f"{where}: an entry for ids has dim 1 and format fp32; table {wrong.table} has another")


def _check_gone(where: str, gone: tuple[int, ...], sections: tuple[Section, ...]) -> None:
    if gone and (len(gone) != len(sections) or any(n > s.rows for n, s in zip(gone, sections, strict=True))):
        raise WireError(f"{where}: of {[s.rows for s in sections]} ids, {list(gone)} have no row any more")


def _ids(o: Opened) -> NDArray[np.uint64]:
    rows, got = rows_of(o.sections), o.frames[0].nbytes
    if got != 8 * rows:
        raise WireError(f"{o.where}: {got} bytes of ids, the directory speaks of {8 * rows}")
    ids: NDArray[np.uint64] = view_of(o.frames[0], np.uint64, (rows,))
    return ids
