"""The parameter service: what a trainer may ask of the memory that holds the rows, wherever it is.

One protocol, several implementations (in this process; over the network), one conformance suite. Arrays are numpy,
C-contiguous. U unique ids of a table in a request, D its dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from satrap.durable.rows import RowBlock as RowBlock
from satrap.schema import Table
from satrap.store import ColdCounts


@dataclass(frozen=True, slots=True)
class PullRequest:
    """Rows wanted. Ids of one table must be unique within a request."""

    ids: Mapping[str, NDArray[np.uint64]]
    """Table name → [U]."""
    create: bool
    """True (training): missing rows are made, as far as the table's bounds let them, and rows count as used. False
    (evaluation): a missing row reads as its initial value would be, and the table does not change."""
    distinct: bool = False
    """The caller knows that no id repeats (a ticket's do not); otherwise it is checked."""
    versions: bool = True
    """False: no push will follow, so nothing but values is needed, and reading nothing but values is cheaper."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The answer to a pull, in the order of the request."""

    values: Mapping[str, NDArray[np.float32]]
    """Table name → [U, D]."""
    versions: Mapping[str, NDArray[np.uint8]]
    """Table name → [U]: updates the row has had, modulo 256. Sent back with the push, it measures staleness. May
    be empty where the request did not ask for them."""
    hints: Mapping[str, NDArray[np.uint32]] | None = None
    """Where the service found the rows, in its own words. Sent back with the push it may save a search; it never
    changes a result, and a service may give and take none."""


class Refused(StrEnum):
    """Why a gradient was not applied. Every one is counted; none is silent."""

    MISSING_ROW = "missing_row"
    """There is no row: it was erased, evicted or has expired since the pull, or there was no room to make it."""
    NOT_FINITE = "not_finite"
    """The gradient of this row holds NaN or infinity."""
    NOT_ADMITTED = "not_admitted"
    """The id has no row, since it has not been seen often enough yet."""


@dataclass(frozen=True, slots=True)
class PushRequest:
    """Gradients of one batch: of the mean loss, one per unique id. (client, epoch, seq) names the push; a service
    applies each name once, however often it is sent."""

    client: int
    epoch: int
    seq: int
    ids: Mapping[str, NDArray[np.uint64]]
    """Table name → [U], unique."""
    gradients: Mapping[str, NDArray[np.float32]]
    """Table name → [U, D]."""
    versions: Mapping[str, NDArray[np.uint8]] | None = None
    """As pulled; None: staleness is not measured."""
    hints: Mapping[str, NDArray[np.uint32]] | None = None
    """As pulled, or None."""
    lr_factor: float = 1.0
    """The schedule's factor on the learning rate of every table."""
    distinct: bool = False
    """The caller knows that no id repeats (a ticket's do not); otherwise it is checked."""
    merge: int = 1
    """W: pushes of this (epoch, seq), one a client, that together make one optimizer step. The service holds them until
    all W are there, sums them per id in the order of the clients, steps once, and then answers each. A client without
    gradients pushes an empty one. 1: applied at once."""


STALENESS_BINS = 257
"""0 … 255, and 256 for unknown."""


@dataclass(slots=True)
class Ack:
    """What became of one push: applied + Σ refused + repeated = gradients sent; a duplicate applies nothing."""

    applied: int = 0
    refused: dict[Refused, int] = field(default_factory=dict)
    duplicate: bool = False
    repeated: int = 0
    """Gradients that only some of several servers had received before: the rest of this push was applied or refused.
    0 where `duplicate`, which holds for all of it."""
    staleness: NDArray[np.int64] = field(default_factory=lambda: np.zeros(STALENESS_BINS, np.int64))
    """[257] gradients by row updates between pull and apply."""


@dataclass(frozen=True, slots=True)
class TableStats:
    """Size of one table."""

    rows: int
    value_bytes: int
    """Values of the rows."""
    state_bytes: int
    """Optimizer state of the rows."""
    overhead_bytes: int
    """Ids, index and slack beside them."""
    admitted: int = 0
    """Rows made so far. This and what follows: of a bounded table; 0 for another."""
    evicted: int = 0
    """Rows removed for others."""
    expired: int = 0
    """Rows removed because they were not used."""
    refused: int = 0
    """Training pulls of an id that got no row: not seen often enough, or no room."""
    cold: ColdCounts | None = None
    """What lies on disk, of a table that has a cold tier and is in this process; its rows are among `rows`."""


class RowStorage(Protocol):
    """Where the rows are, as a checkpoint sees it: partitions out, blocks in.

    Thread-safe. Exports and imports of different partitions may run at once; whoever saves sees to it that no push
    runs meanwhile, so that all partitions belong to one cut.
    """

    @property
    def partitions(self) -> int:
        """P: parts each table is cut into."""

    def tables(self) -> Sequence[Table]:
        """The tables as configured, each with its optimizer filled in."""

    def stats(self) -> Mapping[str, TableStats]:
        """Size by table."""

    def export_rows(self, table: str, partition: int) -> RowBlock:
        """A copy of all rows of one partition; [0, D] and [0, K] where it has none. Raises StoreError for an unknown
        table or a partition outside 0 … P-1."""

    def reserve_rows(self, table: str, rows: int) -> None:
        """Makes room for this many rows of a table in all. Ask for it before importing rows in their exported order:
        they fill a hash index that grows as they come from its one end, in time that goes with their square."""

    def import_rows(self, table: str, block: RowBlock) -> None:
        """Adds rows, wherever in this service they belong: the block may come from a service with another P, in any
        order. A row that is already there is replaced. A bounded table takes over marks and what was kept for the
        partition, if it has as many partitions; rows beyond its capacity go as others do. Raises StoreError for an
        unknown table or a block of another D, K or value format, with no row changed."""

    def clear(self) -> None:
        """Removes all rows of all tables and forgets the clients; the configuration stays."""

    def clients(self) -> dict[int, tuple[int, int]]:
        """Client → (epoch, seq) of its last push that was applied. The filter against applying a push twice."""

    def set_clients(self, clients: Mapping[int, tuple[int, int]]) -> None:
        """Sets what `clients` returns, as a restore does: the pushes named there count as applied."""


class Cut(Protocol):
    """All rows as they were at one moment, while they go on changing: what a checkpoint reads that is written while
    training goes on. Thread-safe; `export_rows` may be asked again for what it has given, until `done`."""

    @property
    def partitions(self) -> int:
        """P: parts each table is cut into."""

    def tables(self) -> Sequence[Table]:
        """See `RowStorage.tables`."""

    def stats(self) -> Mapping[str, TableStats]:
        """See `RowStorage.stats`; as of the cut."""

    def clients(self) -> dict[int, tuple[int, int]]:
        """See `RowStorage.clients`; as of the cut."""

    def export_rows(self, table: str, partition: int) -> RowBlock:
        """See `RowStorage.export_rows`; as of the cut. Raises StoreError, or ServiceError, where the cut is gone: its
        server has come back, the rows were cleared, or what changed did not fit into memory."""

    def done(self, partition: int) -> None:
        """The partition will not be asked for any more: what was kept for it is freed."""

    def close(self) -> None:
        """Ends the cut. May be called at any time, and again."""


@runtime_checkable
class Cuttable(Protocol):
    """A service whose checkpoints can be written while it is trained."""

    def cut(self) -> Cut:
        """All rows as they are now. Nothing may change until it returns; a cut before it is ended. Raises StoreError
        where there is no memory for it."""


class ParameterService(Protocol):
    """Thread-safe: calls from several threads are ordered per table; each push is applied atomically per table."""

    def tables(self) -> Sequence[Table]:
        """The tables as configured, which never changes for the life of the service."""

    def pull(self, request: PullRequest) -> Rows:
        """Rows by id. Raises StoreError for an unknown table, a wrong dtype or repeated ids."""

    def push(self, request: PushRequest) -> Ack:
        """Applies gradients once. Raises StoreError for a wrong shape, with no row changed."""

    def stats(self) -> Mapping[str, TableStats]:
        """Size by table."""
