"""Tables in native memory, and the tickets of batches.

B batch, N ids of a feature in the batch, U unique ids of a table, D its dim, K floats of optimizer state a row.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from satrap.errors import StoreError, did_you_mean
from satrap.schema import Capacity, Hashed, Pooling, QuotientRemainder, Table
from satrap.store import _native
from satrap.store.formats import DTYPES, StoredValues, columns
from satrap.store.limit import MemoryRoom
from satrap.store.spec import row_key, table_spec

T = TypeVar("T")

MISSING, NOT_FINITE, NOT_ADMITTED = 256, 257, 258
"""Outcomes of a gradient that was not applied; any other is the version its row had before the step."""

SEAL_WORDS: int = _native.seal_words
"""What the hints of N rows are longer than N: the seal that ties them to their ids."""

LOOK_BYTES_LEAST, LOOK_BYTES = 64 << 20, 256 << 20
"""How much tables take before it is looked again how much there is left."""

_POOLINGS = {Pooling.SUM: 0, Pooling.MEAN: 1, Pooling.SQRTN: 2}


@dataclass(frozen=True, slots=True)
class ColdCounts:
    """The cold tier of a table. Rows are those of this process, so far."""

    rows: int = 0
    """On disk now."""
    file_bytes: int = 0
    """Of the disk, now."""
    index_bytes: int = 0
    """Of memory, to know where they are."""
    written: int = 0
    """Rows that went to disk."""
    moved: int = 0
    """Rows written again, so that the file does not grow: `1 + moved / written` is the write amplification."""
    returned: int = 0
    """Rows that came back for a batch of training."""
    looked_up: int = 0
    """Rows read where they are, by evaluation."""


@dataclass(frozen=True, slots=True)
class TicketFeature:
    """The ids of one feature of one batch, and where its vectors go."""

    table: str
    ids: NDArray[np.uint64]
    """[N]"""
    offsets: NDArray[np.int64] | None
    """[B + 1], or None: one id a sample."""
    weights: NDArray[np.float32] | None
    """[N], or None: all 1."""
    pooling: Pooling = Pooling.SUM
    column: int = 0
    """First column in the packed tensor of all pooled features."""
    length: int | None = None
    """L: a sequence, padded to this. None: pooled."""


class Ticket:
    """Unique ids of a batch by table, and the way back from each of its ids to them. Immutable, thread-safe."""

    def __init__(self, native: _native.Ticket, tables: Sequence[str]) -> None:
        self._native = native
        self._tables = tables

    def unique(self) -> dict[str, NDArray[np.uint64]]:
        """Table → [U], without the tables the batch has no id of. Views of the ticket's memory, read-only."""
        found = ((name, self._native.unique(i)) for i, name in enumerate(self._tables))
        return {name: ids for name, ids in found if ids.size}

    def positions(self, feature: int) -> NDArray[np.int32]:
        """[N] of each id of a feature, its place among its table's unique ids. A view of the ticket's memory."""
        return self._native.positions(feature)

    @property
    def ids(self) -> int:
        """All ids of the batch, repeated ones counted."""
        return self._native.ids


class Store:
    """All tables of one process.

    Thread-safe: a call holds its tables' locks from beginning to end. Results do not depend on `threads`.
    Raises StoreError for wrong arrays or unknown tables, with no row changed.

    >>> from satrap.schema import SGD
    >>> store = Store([Table(name="user", dim=4, optimizer=SGD(lr=1.0))], seed=7, threads=1)
    >>> ids = np.array([3, 2**63], np.uint64)
    >>> values, versions = store.pull("user", ids, create=True)
    >>> store.push("user", ids, np.ones((2, 4), np.float32))[0]
    2
    >>> after, _ = store.pull("user", ids)
    >>> bool(np.all(after == values - 1))
    True
    """

    def __init__(
        self,
        tables: Sequence[Table],
        *,
        seed: int,
        partitions: int = 64,
        threads: int | None = None,
        memory: int | None = None,
        cold_folder: str | None = None,
    ) -> None:
        """`memory`: bytes that this process may use (`store.memory`); beyond that tables do not grow. `cold_folder`: of
        rows that go to disk (`store.cold_folder`)."""
        if partitions < 1 or partitions & (partitions - 1) or partitions > 65536:
            raise StoreError(f"partitions must be a power of 2, 1 to 65536, got {partitions}")
        if threads is not None and threads < 1:
            raise StoreError(f"threads must be 1 or more, got {threads}")
        self.partitions = partitions
        self.configuration = tuple(tables)
        self.names = tuple(t.name for t in tables)
        for name in self.names:
            if self.names.count(name) > 1:
                raise StoreError(
                    f"there are {self.names.count(name)} tables named '{name}'; give each a name of its own"
                )
        self.specs = [table_spec(t, seed) for t in tables]
        self._index = {name: i for i, name in enumerate(self.names)}
        self.bounded = frozenset(t.name for t in tables if t.bounded)
        """Names of the tables that training pulls change beyond making rows."""
        self.admitting = frozenset(t.name for t in tables if t.admit is not None)
        """Names of those where an id may have to wait for its row."""
        try:
            self._native = _native.Store(self.specs, partitions.bit_length() - 1, threads or available_cores())
        except ValueError as e:
            sizes = ", ".join(f"'{t.name}' {_capacity_text(t)}" for t in tables if t.capacity or t.cold)
            raise StoreError(f"{e}: {sizes}, over {partitions} partitions (store.partitions)") from e
        self.cold = frozenset(t.name for t in tables if t.cold is not None)
        """Names of the tables of which rows may lie on disk."""
        for name in self.cold:
            folder = cold_folder or tempfile.gettempdir()
            self._call(partial(self._native.open_cold, self._index[name], folder, name))

        self.room = MemoryRoom(memory)
        """What is asked how much tables may still take, before they grow."""
        self._look_at = 0

    @property
    def threads(self) -> int:
        """Threads of one call, the caller's included."""
        return self._native.threads

    def pull(
        self, table: str, ids: NDArray[np.uint64], *, create: bool = False
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Values [N, D] and versions [N] of rows. Ids may repeat.

        create=False: a missing row reads as its initial values and the table does not change.
        """
        values, versions, _ = self.pull_many({table: ids}, create=create)
        return values[table], versions[table]

    def pull_many(
        self, ids: dict[str, NDArray[np.uint64]], *, create: bool
    ) -> tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[np.uint8]], dict[str, NDArray[np.uint32]]]:
        """`pull` of several tables in one call, which shares the work of all of them out to the threads.

        The third result, hints [N + 2], says where the rows were found. Given to the push of the same ids it saves
        the search for them; it never changes the result: hints of other ids, or of rows since removed, are left aside.
        """
        return self._pull(ids, create)[2:]

    def lookup(
        self, table: str, ids: NDArray[np.uint64], out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Values [N, D] alone, as evaluation and serving read them: nothing of a row but its values is touched.

        `out` [N, D] is filled and returned where it is given. Ids may repeat; a missing row reads as its initial
        values, and the table does not change.
        """
        if out is None:
            return self.lookup_many({table: ids})[table]
        self._lookup({table: ids}, {table: out})
        return out

    def lookup_many(self, ids: dict[str, NDArray[np.uint64]]) -> dict[str, NDArray[np.float32]]:
        """`lookup` of several tables in one call."""
        out = self._values(ids)[1]
        self._lookup(ids, out)
        return out

    def _lookup(self, ids: dict[str, NDArray[np.uint64]], out: dict[str, NDArray[np.float32]]) -> None:
        index = [self.index(t) for t in ids]
        for name, x in ids.items():
            _need_array(x, np.uint64, 1, f"ids of table '{name}'")
            _need_array(out[name], np.float32, 2, f"values of table '{name}'")
        arrays = list(ids.values()), list(out.values())
        self._call(lambda: self._native.pull(index, *arrays, [None] * len(index), [None] * len(index), False))

    def _values(self, ids: dict[str, NDArray[np.uint64]]) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]:
        """Room for values: one allocation for all tables, and the slice of each [N, D]."""
        for name, x in ids.items():
            _need_array(x, np.uint64, 1, f"ids of table '{name}'")
        dims = [self.specs[self.index(t)].dim for t in ids]
        flat = _aligned(sum(x.size * d for x, d in zip(ids.values(), dims, strict=True)))
        values: dict[str, NDArray[np.float32]] = {}
        at = 0
        for (name, x), d in zip(ids.items(), dims, strict=True):
            values[name] = flat[at : at + x.size * d].reshape(x.size, d)
            at += x.size * d
        return flat, values

    def pull_flat(
        self, ids: dict[str, NDArray[np.uint64]], *, create: bool
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8], dict[str, NDArray[np.uint32]]]:
        """`pull_many` with the values of all tables one behind the other, and their versions."""
        values, versions, _, _, hints = self._pull(ids, create)
        return values, versions, hints

    def _pull(
        self, ids: dict[str, NDArray[np.uint64]], create: bool
    ) -> tuple[
        NDArray[np.float32],
        NDArray[np.uint8],
        dict[str, NDArray[np.float32]],
        dict[str, NDArray[np.uint8]],
        dict[str, NDArray[np.uint32]],
    ]:
        flat, values = self._values(ids)
        index = [self.index(t) for t in ids]
        flat_versions = np.empty(sum(x.size for x in ids.values()), np.uint8)
        versions: dict[str, NDArray[np.uint8]] = {}
        hints = {name: np.empty(x.size + SEAL_WORDS, np.uint32) for name, x in ids.items()}
        if create:
            self._look()
        row = 0
        for name, x in ids.items():
            versions[name] = flat_versions[row : row + x.size]
            row += x.size
        self._call(
            lambda: self._native.pull(
                index, list(ids.values()), list(values.values()), list(versions.values()), list(hints.values()), create
            )
        )
        return flat, flat_versions, values, versions, hints

    def push(
        self,
        table: str,
        ids: NDArray[np.uint64],
        gradients: NDArray[np.float32],
        versions: NDArray[np.uint8] | None = None,
        *,
        lr_factor: float = 1.0,
    ) -> tuple[int, int, int, NDArray[np.int64]]:
        """One optimizer step of the rows of distinct `ids` [U] with `gradients` [U, D].

        Returns rows applied, missing, refused for a gradient that is not finite, and the staleness histogram [257].
        """
        return self.push_many(
            {table: ids}, {table: gradients}, None if versions is None else {table: versions}, lr_factor=lr_factor
        )

    def push_many(
        self,
        ids: dict[str, NDArray[np.uint64]],
        gradients: dict[str, NDArray[np.float32]],
        versions: dict[str, NDArray[np.uint8]] | None = None,
        hints: dict[str, NDArray[np.uint32]] | None = None,
        *,
        lr_factor: float = 1.0,
        distinct: bool = False,
        outcomes: dict[str, NDArray[np.uint16]] | None = None,
        checked: bool = False,
        step: int = 0,
    ) -> tuple[int, int, int, NDArray[np.int64]]:
        """`push` of several tables in one call. `distinct`: the caller knows that ids do not repeat (a ticket's).
        `checked`: `check_push` has said that it fits.

        `outcomes` [U] by table are filled in: the version a row had before the step, or MISSING, NOT_FINITE or
        NOT_ADMITTED (which count as missing in what is returned). `step`: which one it is, for rows that expire by
        steps.
        """
        if not checked:
            self.check_push(ids, gradients, versions, hints, lr_factor=lr_factor, distinct=distinct)
        order = list(ids)
        return self._call(
            lambda: self._native.push(
                [self._index[t] for t in order],
                list(ids.values()),
                [gradients[t] for t in order],
                [None if versions is None else versions[t] for t in order],
                [None if hints is None else hints[t] for t in order],
                lr_factor,
                None if outcomes is None else [outcomes[t] for t in order],
                step,
            )
        )

    def check_push(
        self,
        ids: dict[str, NDArray[np.uint64]],
        gradients: dict[str, NDArray[np.float32]],
        versions: dict[str, NDArray[np.uint8]] | None = None,
        hints: dict[str, NDArray[np.uint32]] | None = None,
        *,
        lr_factor: float = 1.0,
        distinct: bool = False,
    ) -> None:
        """Raises StoreError where `push_many` would, and changes nothing."""
        for t in ids:
            self.index(t)
        if not (isfinite(lr_factor) and lr_factor >= 0):
            raise StoreError(f"lr_factor must be a finite number, 0 or more, got {lr_factor}")
        for name in gradients:
            if name not in ids:
                raise StoreError(f"gradients for table '{name}' come without ids; {did_you_mean(name, ids)}")
        for name, x in ids.items():
            for what, arrays in (("gradients", gradients), ("versions", versions), ("hints", hints)):
                if arrays is not None and name not in arrays:
                    raise StoreError(f"no {what} for table '{name}'")
            g = gradients[name]
            _need_array(x, np.uint64, 1, f"ids of table '{name}'")
            _need_array(g, np.float32, 2, f"gradients of table '{name}'")
            dim = self.specs[self._index[name]].dim
            if g.shape != (x.size, dim):
                raise StoreError(f"gradients of table '{name}' must be [{x.size}, {dim}], got {list(g.shape)}")
            if not distinct and _native.has_duplicates(x):
                raise StoreError(f"ids of table '{name}' repeat; sum their gradients first (a ticket does)")
            if versions is not None:
                _need_array(versions[name], np.uint8, 1, f"versions of table '{name}'")
                if versions[name].size != x.size:
                    raise StoreError(f"versions of table '{name}' must be [{x.size}], got [{versions[name].size}]")
            if hints is not None:
                _need_array(hints[name], np.uint32, 1, f"hints of table '{name}'")
                if hints[name].size != x.size + SEAL_WORDS:
                    raise StoreError(
                        f"hints of table '{name}' must be [{x.size + SEAL_WORDS}], got [{hints[name].size}]"
                    )

    def check_ids(self, ids: dict[str, NDArray[np.uint64]], *, distinct: bool) -> None:
        """Raises StoreError for an unknown table, an array that holds no ids, or, unless `distinct`, repeated ids."""
        for name, x in ids.items():
            self.index(name)
            _need_array(x, np.uint64, 1, f"ids of table '{name}'")
            if not distinct and _native.has_duplicates(x):
                raise StoreError(f"ids of table '{name}' repeat in one pull; ask for each once")

    def ticket(self, features: Sequence[TicketFeature], samples: int) -> Ticket:
        """Finds the unique ids of a batch, table by table in order of first occurrence.

        The arrays of the features are kept alive by the ticket and must not change while it lives.
        """
        parts = []
        for f in features:
            i = self.index(f.table)
            _need_array(f.ids, np.uint64, 1, f"ids for table '{f.table}'")
            if f.offsets is not None:
                _need_array(f.offsets, np.int64, 1, f"offsets for table '{f.table}'")
            if f.weights is not None:
                _need_array(f.weights, np.float32, 1, f"weights for table '{f.table}'")
            pooling = _POOLINGS[f.pooling]
            parts.append((i, f.ids, f.offsets, f.weights, pooling, self.specs[i].dim, f.column, f.length or 0))
        return Ticket(self._call(lambda: self._native.ticket(parts, samples)), self.names)

    def pool(
        self,
        ticket: Ticket,
        rows: dict[str, NDArray[np.float32]],
        out: NDArray[np.float32],
        sequences: Sequence[NDArray[np.float32]] = (),
        masks: Sequence[NDArray[np.bool_]] = (),
    ) -> None:
        """Pools rows [U, D] by table into `out` [B, Σ]; pads sequences into [B, L, D] with masks [B, L].

        Sequences and masks are those of the ticket's sequence features, in order. Every element of the features'
        columns is written.
        """
        _need_array(out, np.float32, 2, "the packed tensor")
        for x in sequences:
            _need_array(x, np.float32, 3, "a sequence")
        for m in masks:
            _need_array(m, np.bool_, 2, "a mask")
        every = [rows.get(name, _none(s.dim)) for name, s in zip(self.names, self.specs, strict=True)]
        self._call(lambda: self._native.pool(ticket._native, every, out, list(sequences), list(masks)))

    def unpool(
        self,
        ticket: Ticket,
        gradient: NDArray[np.float32] | None,
        sequences: Sequence[NDArray[np.float32] | None] = (),
    ) -> dict[str, NDArray[np.float32]]:
        """The gradient of `pool`: one [U, D] a table, summed over occurrences in the order of the batch.

        None stands for a gradient of zeros.
        """
        if gradient is not None:
            _need_array(gradient, np.float32, 2, "the gradient")
        unique = ticket.unique()
        dims = {name: s.dim for name, s in zip(self.names, self.specs, strict=True)}
        flat = _aligned(sum(x.size * dims[t] for t, x in unique.items()))
        out: dict[str, NDArray[np.float32]] = {}
        at = 0
        for t, x in unique.items():
            out[t] = flat[at : at + x.size * dims[t]].reshape(x.size, dims[t])
            at += x.size * dims[t]
        every = [out.get(name, _none(dims[name])) for name in self.names]
        self._call(lambda: self._native.unpool(ticket._native, gradient, list(sequences), every))
        return out

    def erase(self, table: str, ids: NDArray[np.uint64]) -> int:
        """Removes rows; returns how many were there."""
        _need_array(ids, np.uint64, 1, f"ids of table '{table}'")
        i = self.index(table)
        return self._call(lambda: self._native.erase(i, ids))

    def reserve_rows(self, table: str, rows: int, partitions: Sequence[int] | None = None) -> None:
        """Makes the index of a table large enough for `rows` rows in all, before many are imported.

        `partitions`: room in these alone, as much as each has where all of them share the rows.
        """
        i = self.index(table)
        self._look()
        self._call(lambda: self._native.reserve_rows(i, rows, None if partitions is None else list(partitions)))

    def fill(self, table: str, ids: NDArray[np.uint64]) -> int:
        """Makes the rows of those of these ids [N] that have none, and returns how many that were: what a training pull
        makes, without reading them back and without waiting for sightings. Ids may repeat.

        Where a bounded table's partition is full, rows go as they do for new ones. Out of memory, the rows made so far
        stay.
        """
        _need_array(ids, np.uint64, 1, f"ids of table '{table}'")
        i = self.index(table)
        self._look()
        return self._call(lambda: self._native.fill(i, ids))

    def clear(self) -> None:
        """Removes every row of every table. Memory is kept for new ones."""
        self._native.clear()

    def size(self, table: str) -> tuple[int, int, int, int]:
        """Rows, and bytes of values, of optimizer state, and of everything beside them (ids, index, slack)."""
        return self._native.size(self.index(table))

    @property
    def clock(self) -> int:
        """Seconds that rows which expire by seconds go by. Set it before each pull of such a table."""
        return self._native.clock()

    @clock.setter
    def clock(self, seconds: int) -> None:
        self._native.set_clock(seconds)

    def bound_counts(self, table: str) -> tuple[int, int, int, int]:
        """What a bounded table has admitted (rows made), evicted, expired and refused (pulls of an id that got no
        row) so far; zeros for another."""
        return self._native.bound_counts(self.index(table))

    def prefetch(self, ids: dict[str, NDArray[np.uint64]]) -> None:
        """Has the disk begin to read the rows of ids that will soon be pulled, where they are cold, and does not wait
        for it. Changes nothing."""
        for name in self.cold.intersection(ids):
            _need_array(ids[name], np.uint64, 1, f"ids of table '{name}'")
            self._native.prefetch(self.index(name), ids[name])

    def cold_counts(self, table: str) -> ColdCounts:
        """What lies on disk of a table with a cold tier, and what came and went; zeros for another."""
        return ColdCounts(*self._native.cold_counts(self.index(table)))

    def export_bound(self, table: str, partition: int) -> NDArray[np.uint8]:
        """[B] what a bounded table keeps for a partition beside its rows: clocks, counts, the sketch of sightings."""
        return np.frombuffer(self._native.export_bound(self.index(table), partition), np.uint8)

    def import_bound(self, table: str, state: NDArray[np.uint8]) -> bool:
        """Takes what `export_bound` gave, before the rows it was exported with. False: it is of a table cut into
        another number of partitions, and nothing was taken."""
        return self._native.import_bound(self.index(table), bound_partition(state), state.tobytes())

    def keep_removals(self) -> None:
        """Has bounded tables keep the ids of rows that go by their rules, 8 bytes each, until `take_removals`. Of a
        partition, at most half as many as it has rows."""
        for table in self.bounded:
            self._native.keep_removals(self.index(table))

    def take_removals(self, table: str, partition: int) -> tuple[NDArray[np.uint64] | None, NDArray[np.uint8]]:
        """The ids that have gone from a partition of a bounded table since the last call, some of which may have a row
        again; None: there were too many to keep. And what `export_bound` gives, for `advance_bound`."""
        lost, ids, state = self._native.take_removals(self.index(table), partition)
        return None if lost else ids, np.frombuffer(state, np.uint8)

    def removals_lost(self, table: str, partition: int) -> bool:
        """Whether there are too many for `take_removals`."""
        return self._native.removals_lost(self.index(table), partition)

    def advance_bound(self, table: str, state: NDArray[np.uint8]) -> bool:
        """Takes what a later `take_removals` gave, with the rows of the one before in place: those that were not used
        meanwhile have aged. Import the others then. False as of `import_bound`."""
        return self._native.advance_bound(self.index(table), bound_partition(state), state.tobytes())

    def follow(self, table: str, partition: int, *, on: bool = True) -> None:
        """A bounded table remembers for `take_followed` and `export_clocks` what its rules do in a partition from here
        on; what it remembered before is forgotten. `on=False`: it does not any more."""
        self._native.follow(self.index(table), partition, on)

    def take_followed(self, table: str, partition: int) -> NDArray[np.uint64] | None:
        """The ids that rules have removed since the last call or `follow`, some of which may have a row again; None:
        they are not known."""
        lost, ids = self._native.take_followed(self.index(table), partition)
        return None if lost else ids

    def export_clocks(self, table: str, partition: int, *, whole: bool = False) -> NDArray[np.uint8]:
        """[B] for `import_bound` in a table that is given the partition's rows little by little, before those that are
        as of now: rows that are there and were not used since `follow`, or since they were read, age as they did here.
        The clocks alone, or with `whole` all that `export_bound` gives."""
        return np.frombuffer(self._native.export_clocks(self.index(table), partition, whole), np.uint8)

    def rows_of(self, table: str, partition: int) -> int:
        """How many rows a partition has."""
        return self._native.rows_of(self.index(table), partition)

    def export_ids(self, table: str, partition: int) -> NDArray[np.uint64]:
        """The ids [R] of `export_rows`."""
        i = self.index(table)
        return self._call(lambda: self._native.export_ids(i, partition))

    def in_memory(self, table: str, ids: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """[N] which of these ids have a row that is not on disk."""
        _need_array(ids, np.uint64, 1, f"ids of table '{table}'")
        there: NDArray[np.bool_] = self._native.in_memory(self.index(table), ids).view(np.bool_)
        return there

    def open_cut(self, table: str) -> int:
        """A bounded table remembers from here on what `cut_marks`, `cut_bound` and `take_cut_rows` give, of every
        partition until its `close_cut`; again: from the last time on. Copies marks when they first age, and counters of
        sightings in blocks of 4 KiB before they change; returns the bytes that all of them take."""
        i = self.index(table)
        return self._call(lambda: self._native.open_cut(i))

    def close_cut(self, table: str, partition: int) -> int:
        """Ends it for a partition, if it was open. Returns the bytes of the marks of the others."""
        return self._native.close_cut(self.index(table), partition)

    def cut_bound(self, table: str, partition: int) -> NDArray[np.uint8]:
        """[B] what `export_bound` gave at `open_cut`."""
        return np.frombuffer(self._native.cut_bound(self.index(table), partition), np.uint8)

    def cut_marks(self, table: str, ids: NDArray[np.uint64]) -> NDArray[np.uint8]:
        """[N, M] the marks at `open_cut` of rows that were there then and that no call has named since; of other ids
        anything."""
        _need_array(ids, np.uint64, 1, f"ids of table '{table}'")
        return self._native.cut_marks(self.index(table), ids)

    def take_cut_rows(
        self, table: str
    ) -> tuple[NDArray[np.uint64], StoredValues, NDArray[np.float32], NDArray[np.uint8]]:
        """The rows that rules have removed since the last call or `open_cut`, as `export_rows` gives them, with marks
        as of the latter; those made or named since among them, and some perhaps twice.

        Raises StoreError where there was no memory for some.
        """
        i = self.index(table)
        whole, ids, values, state, marks = self._call(lambda: self._native.take_cut_rows(i))
        if not whole:
            raise StoreError(f"table '{table}': there was no memory for rows that were removed")
        return ids, self._stored(i, ids.size, values), state, marks

    def export_rows(
        self, table: str, partition: int
    ) -> tuple[NDArray[np.uint64], StoredValues, NDArray[np.float32], NDArray[np.uint8]]:
        """Ids [R], values as stored (see StoredValues), state [R, K], marks [R, M] of one partition, in ascending order
        of the mixed id."""
        if not 0 <= partition < self.partitions:
            raise StoreError(f"table '{table}' has partitions 0 to {self.partitions - 1}, not {partition}")
        i = self.index(table)
        ids, values, state, marks = self._call(lambda: self._native.export_rows(i, partition))
        return ids, self._stored(i, ids.size, values), state, marks

    def read_rows(
        self, table: str, ids: NDArray[np.uint64]
    ) -> tuple[NDArray[np.uint64], StoredValues, NDArray[np.float32], NDArray[np.uint8]]:
        """Those of these ids [U] that have a row, in their order, with their rows, as `export_rows` gives them."""
        _need_array(ids, np.uint64, 1, f"ids of table '{table}'")
        i = self.index(table)
        found, values, state, marks = self._call(lambda: self._native.read_rows(i, ids))
        return found, self._stored(i, found.size, values), state, marks

    def _stored(self, table: int, rows: int, values: NDArray[np.uint8]) -> StoredValues:
        form = self.configuration[table].format
        stored: StoredValues = values.view(DTYPES[form]).reshape(rows, columns(form, self.specs[table].dim))
        return stored

    def import_rows(
        self,
        table: str,
        ids: NDArray[np.uint64],
        values: StoredValues,
        state: NDArray[np.float32],
        marks: NDArray[np.uint8] | None = None,
    ) -> None:
        """Adds or replaces rows, of any partition, as `export_rows` gave them. Their versions start at 0, or, where
        updates draw random bits, go on from the one in their state.

        `marks` [R, M] of a table bounded in the same way; without them rows count as just made. Where a bounded
        table's partition is full, rows go as they do for new ones.
        """
        self._import(table, [(ids, values, state, marks)])

    def import_many(
        self,
        table: str,
        blocks: Sequence[tuple[NDArray[np.uint64], StoredValues, NDArray[np.float32], NDArray[np.uint8] | None]],
    ) -> None:
        """`import_rows` of one block after another, in one call: partitions are filled by as many threads as there are,
        the faster where all rows of one lie one behind the other."""
        self._import(table, blocks)

    def _import(
        self,
        table: str,
        blocks: Sequence[tuple[NDArray[np.uint64], StoredValues, NDArray[np.float32], NDArray[np.uint8] | None]],
    ) -> None:
        i = self.index(table)
        row_bytes, own_marks = self.specs[i].value_bytes, 0 if table in self.cold else self.specs[i].marks
        stored = []
        for ids, values, state, marks in blocks:
            self.check_rows(table, ids, values, state)
            fit = marks is not None and marks.shape == (ids.size, own_marks)
            stored.append((ids, values.view(np.uint8).reshape(ids.size, row_bytes), state, marks if fit else None))
        self._look()
        self._call(lambda: self._native.import_rows(i, stored))

    def check_rows(
        self,
        table: str,
        ids: NDArray[np.uint64],
        values: StoredValues,
        state: NDArray[np.float32],
    ) -> None:
        """Raises StoreError where `import_rows` would, and changes nothing."""
        i = self.index(table)
        form = self.configuration[i].format
        dim, width = columns(form, self.specs[i].dim), self.specs[i].state_words
        _need_array(ids, np.uint64, 1, f"ids of table '{table}'")
        _need_array(values, DTYPES[form], 2, f"values of table '{table}'")
        _need_array(state, np.float32, 2, f"state of table '{table}'")
        if values.shape != (ids.size, dim) or state.shape != (ids.size, width):
            raise StoreError(
                f"rows of table '{table}' must be values [{ids.size}, {dim}] and state [{ids.size}, {width}], "
                f"got {list(values.shape)} and {list(state.shape)}"
            )

    def initial_values(self, table: str, row_id: int) -> NDArray[np.float32]:
        """What the row of an id starts as, in fp32: a function of (seed, table name, id) alone."""
        return _native.initial_values(self.specs[self.index(table)], row_id)

    def partitions_of(self, ids: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """[N] the partition of each id, in every table."""
        bits = self.partitions.bit_length() - 1
        return _native.mix(ids) >> np.uint64(64 - bits) if bits else np.zeros(ids.size, np.uint64)

    def index(self, table: str) -> int:
        """Place of a table in the configuration. Raises StoreError for an unknown one."""
        if table not in self._index:
            raise StoreError(f"there is no table '{table}'; {did_you_mean(table, self.names)}")
        return self._index[table]

    def _look(self) -> None:
        """Limits what tables may take to what there is, as soon as they have taken some of it."""
        held = self._native.held_bytes()
        if held >= self._look_at:
            left = self.room.left_bytes()
            self._native.set_limit(held + left)
            # Where little is left it is looked each time: others may have given some back.
            self._look_at = held + min(left // 4, LOOK_BYTES) if left > LOOK_BYTES_LEAST else 0

    def _call(self, call: Callable[[], T]) -> T:
        """Maps what native code raises to satrap's errors: the one place where it enters."""
        try:
            return call()
        except MemoryError as e:
            self._look_at = 0
            held = {t: (sum(size[1:]), size[0]) for t in self.names if (size := self.size(t))[0]}
            largest = sorted(held, key=held.__getitem__, reverse=True)[:3]
            tables = ", ".join(f"'{t}' {held[t][0] / 2**30:.2f} GiB ({held[t][1]:,} rows)" for t in largest)
            total = sum(n for n, _ in held.values())
            raise StoreError(
                f"out of memory: {self.room.text()}. Its tables hold {total / 2**30:.2f} GiB{', ' if tables else ''}"
                f"{tables}, and asked for more. Bound a table (tables.NAME.capacity), store its rows in fewer bytes "
                "(format, dim), use more servers, or raise the limit. All rows are as they were: a checkpoint can "
                "still be saved"
            ) from e
        except (ValueError, TypeError, RuntimeError) as e:
            raise StoreError(str(e)) from e


def rows_of(table: Table, ids: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """[N·k] the row numbers of ids [N] in a table of fixed size, k (`rows_per_id`) an id, one id behind the other.

    A function of (seed, table name, id) alone.
    """
    _need_array(ids, np.uint64, 1, f"ids of table '{table.name}'")
    match table.ids:
        case Hashed(rows=rows, hashes=hashes):
            return _native.hash_ids(ids, row_key(table, seed), rows, hashes)
        case QuotientRemainder(rows=rows):
            return _native.split_ids(ids, row_key(table, seed), rows)
        case None:
            return ids


def mixed(ids: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """[N] the mixed ids, whose upper bits are the partition and in whose order rows are exported."""
    return _native.mix(ids)


def bound_partition(state: NDArray[np.uint8]) -> int:
    """Of which partition a bound state is."""
    return int.from_bytes(state[4:8].tobytes(), "little")


def blank_bound(state: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The bound state of the same partition before anything has happened (docs/formats/rows.md)."""
    blank = np.zeros_like(state)
    blank[:16], blank[32:40], blank[72:80] = state[:16], 255, state[72:80]
    return blank


def available_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _capacity_text(table: Table) -> str:
    c, k = table.capacity, table.cold
    if k is not None:
        c = Capacity(rows=k.memory_rows, bytes=k.memory_bytes)
    assert c is not None
    return f"{c.rows} rows" if c.bytes is None else f"{c.bytes} bytes"


def _none(dim: int) -> NDArray[np.float32]:
    return np.empty((0, dim), np.float32)


def _aligned(n: int) -> NDArray[np.float32]:
    """[n] floats that begin on a cache line, so that rows of 16 floats never straddle two."""
    raw = np.empty(n + 16, np.float32)
    skip = -(raw.ctypes.data // 4) % 16
    return raw[skip : skip + n]


def _need_array(x: object, dtype: type[np.generic], dims: int, what: str) -> None:
    """Refuses what the native core would otherwise convert to a copy behind the caller's back."""
    if not isinstance(x, np.ndarray) or x.dtype != dtype or x.ndim != dims or not x.flags.c_contiguous:
        got = f"{x.dtype} of {x.ndim} dimensions" if isinstance(x, np.ndarray) else type(x).__name__
        raise StoreError(f"{what} must be a contiguous {np.dtype(dtype).name} array of {dims} dimensions, got {got}")
