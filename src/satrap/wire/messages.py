"""What processes say to each other. Plain values: no sockets, no bytes of headers.

U rows of all tables of a message together, R rows of a block, D values a row, K words of optimizer state a row.
Arrays of a decoded message are read-only views of the frames it came in, and keep them alive.

    request                         reply
    Hello                           Welcome
    Pull                            RowsReply, or Gap
    Push                            AckReply, Held, or Gap
    Tables, Stats                   TablesReply, StatsReply
    ExportRows                      BlockReply
    Clients                         ClientsReply
    Metrics                         MetricsReply
    ReserveRows, ImportRows, Erase,
    Clear, SetClients, Cut, CutDone,
    Stop                            Done
    any                             Failure

Those that move partitions are in `moving.py`, those of embedding workers in `pooled.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from satrap.schema import WireFormat

PROTOCOL = 1
"""Version of the messages below. A change of their bytes raises it."""

STALENESS_BINS = 257
"""0 … 255 updates between pull and push, and 256 for unknown."""

REASONS = ("missing_row", "not_finite", "not_admitted")
"""Why a gradient was not applied. A reason's place in this list is its code on the wire: new ones go to the end."""

Name = tuple[int, int]
"""(epoch, seq) of a client's push."""


class Section(NamedTuple):
    """One table's part of a message. Tables are numbered as the servers hold them, and ascend within a message."""

    table: int
    rows: int
    dim: int
    format: WireFormat = WireFormat.FP32
    """Of the values in this message; in a `Pull`, of those wanted."""
    scale: float = 1.0
    """fp16: the power of two that its values are multiplied by when read. 1 in other formats and in a `Pull`."""

    @property
    def value_bytes(self) -> int:
        """Of this table's values in the message, with their padding."""
        return self.format.section_bytes(self.rows, self.dim)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What every message carries."""

    request: int = 0
    """Of the request; its reply repeats it. Unique among the requests a client has under way."""
    placement: int = 0
    """Epoch of the placement the sender goes by."""
    life: int = 0
    """Which rows: in a reply the server's life, in a request the life the client began with; 0: not known yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello(Message):
    """A client introduces itself, before anything else."""

    client: int
    fingerprint: bytes
    """32 bytes that name the tables, their configuration and the seed; a server with others refuses."""
    who: str = ""
    """For messages to people: `worker 3 (pid 4711 on node-2)`."""
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome(Message):
    """A server that has the client's tables. Its life is in `life`."""

    server: int
    partitions: int
    """P of the whole service."""
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pull(Message):
    """Asks for rows. The ids of a table are unique."""

    sections: tuple[Section, ...]
    ids: NDArray[np.uint64]
    """[U], one table behind the other."""
    create: bool = False
    """True: missing rows are made."""
    after: Name | None = None
    """The client's last push to this server that must have come before these rows are read; None: none."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowsReply(Message):
    """Rows, in the order of the ids of the pull."""

    sections: tuple[Section, ...]
    values: NDArray[np.uint8]
    """In the formats of the sections, one table behind the other: see `value_slices`."""
    versions: NDArray[np.uint8]
    """[U]"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Push(Message):
    """Gradients of one batch, named (client, epoch, seq)."""

    client: int
    epoch: int
    seq: int
    sections: tuple[Section, ...]
    ids: NDArray[np.uint64]
    """[U], unique for each table."""
    gradients: NDArray[np.uint8]
    """As the values of a `RowsReply`."""
    versions: NDArray[np.uint8] | None = None
    """[U] as pulled, or None: staleness is not measured."""
    previous: Name | None = None
    """The client's push to this server before this one; None: it is the first, or the client does not say."""
    merge: int = 1
    lr_factor: float = 1.0
    pulled: int = 0
    """Request number of the pull that these ids are of: where the server keeps what it found then, it need not search
    again. 0, or one it does not know any more: it searches."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AckReply(Message):
    """What became of a push."""

    applied: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)
    """Reason, one of `REASONS` → gradients. Reasons without gradients are left out."""
    duplicate: bool = False
    staleness: NDArray[np.int64] = field(default_factory=lambda: np.zeros(STALENESS_BINS, np.int64))
    """[257] gradients by updates between pull and push. Only what is not 0 travels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap(Message):
    """A push came before the one that precedes it, or a pull before a push it must see. Nothing was done: send what is
    missing, then this one again."""

    last: Name | None
    """The client's last push that did come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held(Message):
    """A push that was sent again waits for the others of its step. It will be answered when they are there."""

    there: int
    """Pushes of the step that are there."""
    merge: int
    """Pushes of the step."""


class Code(IntEnum):
    """Why a request failed."""

    MALFORMED = 1
    """The bytes are no message, or it is larger than the server takes."""
    PROTOCOL = 2
    """The message is of another version."""
    HELLO_FIRST = 3
    """The server does not know the client yet, or not any more."""
    TABLES = 4
    """The server has other tables."""
    PLACEMENT = 5
    """The server goes by another placement."""
    LIFE = 6
    """The rows the client means are gone."""
    FORBIDDEN = 7
    """The client's key does not allow it."""
    REFUSED = 8
    """The request does not fit the tables (StoreError)."""
    DROPPED = 9
    """A push that waited for the others of its step was dropped when the rows were cleared or restored."""
    BUSY = 10
    """The server has as many requests under way as it takes."""
    STOPPING = 11
    """The server ends."""
    INTERNAL = 12
    """A bug, or a full disk or memory."""
    SERVER_LOST = 13
    """Of an embedding worker: a parameter server has lost its rows, or a session has ended. The client goes back."""
    SERVER_UNREACHABLE = 14
    """Of an embedding worker: a parameter server does not answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure(Message):
    """A request was not done. Nothing has changed."""

    code: Code
    text: str
    """For people. Cut after `FAILURE_BYTES` bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done(Message):
    """A request that has nothing to return was done."""

    count: int = 0
    """Rows erased; 0 in answers to anything else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables(Message):
    """Asks for the tables as configured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TablesReply(Message):
    """The configuration of the tables, in their order, as JSON."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats(Message):
    """Asks for the size of every table."""


class TableSize(NamedTuple):
    """Size of one table, as `ps.TableStats`."""

    rows: int
    value_bytes: int
    state_bytes: int
    overhead_bytes: int
    admitted: int = 0
    evicted: int = 0
    expired: int = 0
    refused: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StatsReply(Message):
    """The size of every table, in the order of the tables."""

    sizes: tuple[TableSize, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRows(Message):
    """Asks for a page of a partition's rows, in ascending order of the mixed id."""

    table: int
    partition: int
    first_row: int = 0
    rows_max: int = 0
    """0: as many as there are."""
    cut: int = 0
    """As of this `Cut`; 0: as they are."""
    bound_only: bool = False
    """No rows: what a bounded table keeps beside them, for who has been given them by `ReadRows`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut(Message):
    """Has a server keep all rows as they are now, for `ExportRows`, while they go on changing. The cut before ends,
    unless it has the same number."""

    number: int
    """Not 0; the client's choice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CutDone(Message):
    """A partition of a cut is not asked for any more; or none of it is."""

    number: int
    partition: int | None
    """None: all of them. The cut ends."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BlockReply(Message):
    """R rows, whole, from `first_row` on, out of the partition's `total_rows`."""

    table: int
    ids: NDArray[np.uint64]
    """[R]"""
    values: NDArray[np.float32] | NDArray[np.float16] | NDArray[np.uint16] | NDArray[np.uint8]
    """As stored: float32, float16 or uint16 (bf16) [R, D]; or uint8 (int8) [R, 4 + D], a row's scale and its codes."""
    state: NDArray[np.float32]
    """[R, K], bits."""
    marks: NDArray[np.uint8] | None = None
    """[R, M] of a bounded table, M 1 or 2; None: none."""
    bound: NDArray[np.uint8] | None = None
    """[B] of a bounded table: what it keeps for the partition beside its rows. In the first page alone."""
    first_row: int = 0
    total_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReserveRows(Message):
    """Asks for room for this many rows of a table, over all servers."""

    table: int
    rows: int
    partitions: tuple[int, ...] = ()
    """Those whose share of the room is wanted here: the ones this server owns."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImportRows(Message):
    """R rows to add or replace, as a `BlockReply` gave them."""

    table: int
    ids: NDArray[np.uint64]
    """[R]"""
    values: NDArray[np.float32] | NDArray[np.float16] | NDArray[np.uint16] | NDArray[np.uint8]
    """As stored: float32, float16 or uint16 (bf16) [R, D]; or uint8 (int8) [R, 4 + D], a row's scale and its codes."""
    state: NDArray[np.float32]
    """[R, K], bits."""
    marks: NDArray[np.uint8] | None = None
    bound: NDArray[np.uint8] | None = None
    """As in a `BlockReply`; of a partition that the server owns."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Erase(Message):
    """Removes rows."""

    table: int
    ids: NDArray[np.uint64]
    """[U]"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clear(Message):
    """Removes all rows of all tables and forgets the clients."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clients(Message):
    """Asks for each client's last push that was applied."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientsReply(Message):
    """Client → its last push that was applied."""

    clients: Mapping[int, Name]


@dataclass(frozen=True, slots=True, kw_only=True)
class SetClients(Message):
    """Sets what `Clients` asks for."""

    clients: Mapping[int, Name]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics(Message):
    """Asks for the server's metrics."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsReply(Message):
    """The server's metrics, in the text format of Prometheus."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop(Message):
    """Ends the server, after the requests it has begun."""
