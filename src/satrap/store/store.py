"""Tables in native memory, and the tickets of batches.

B batch, N ids of a feature in the batch, U unique ids of a table, D its dim, K floats of optimizer state a row.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TypeVar

import numpy as np
import xxhash
from numpy.typing import NDArray

from satrap.errors import StoreError, did_you_mean
from satrap.schema import (
    SGD,
    Adagrad,
    Adam,
    AdamW,
    Constant,
    Ftrl,
    Initializer,
    Normal,
    Optimizer,
    Pooling,
    RowWiseAdagrad,
    Table,
    TruncatedNormal,
    Uniform,
    ValueFormat,
    Zeros,
)
from satrap.store import _native

T = TypeVar("T")

MISSING, NOT_FINITE = 256, 257
"""Outcomes of a gradient that was not applied; any other is the version its row had before the step."""

_FORMATS = {ValueFormat.FP32: 0, ValueFormat.FP16: 1}
_POOLINGS = {Pooling.SUM: 0, Pooling.MEAN: 1, Pooling.SQRTN: 2}
_DTYPES: dict[ValueFormat, type[np.float32] | type[np.float16]] = {
    ValueFormat.FP32: np.float32,
    ValueFormat.FP16: np.float16,
}


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

    >>> store = Store([Table(name="user", dim=4, optimizer=SGD(lr=1.0))], seed=7, threads=1)
    >>> ids = np.array([3, 2**63], np.uint64)
    >>> values, versions = store.pull("user", ids, create=True)
    >>> store.push("user", ids, np.ones((2, 4), np.float32))[0]
    2
    >>> after, _ = store.pull("user", ids)
    >>> bool(np.all(after == values - 1))
    True
    """

    def __init__(self, tables: Sequence[Table], *, seed: int, partitions: int = 64, threads: int | None = None) -> None:
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
        self.specs = [_spec(t, seed) for t in tables]
        self._index = {name: i for i, name in enumerate(self.names)}
        self._native = _native.Store(self.specs, partitions.bit_length() - 1, threads or available_cores())

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

        The third result, hints [N + 1], says where the rows were found. Given to the push of the same ids it saves
        the search for them; it never changes the result.
        """
        return self._pull(ids, create)[2:]

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
        index = [self.index(t) for t in ids]
        for name, x in ids.items():
            _need_array(x, np.uint64, 1, f"ids of table '{name}'")
        # One allocation for all tables; each gets its slice.
        dims = [self.specs[i].dim for i in index]
        flat = _aligned(sum(x.size * d for x, d in zip(ids.values(), dims, strict=True)))
        flat_versions = np.empty(sum(x.size for x in ids.values()), np.uint8)
        values: dict[str, NDArray[np.float32]] = {}
        versions: dict[str, NDArray[np.uint8]] = {}
        hints = {name: np.empty(x.size + 1, np.uint32) for name, x in ids.items()}
        at = row = 0
        for (name, x), d in zip(ids.items(), dims, strict=True):
            values[name] = flat[at : at + x.size * d].reshape(x.size, d)
            versions[name] = flat_versions[row : row + x.size]
            at += x.size * d
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
    ) -> tuple[int, int, int, NDArray[np.int64]]:
        """`push` of several tables in one call. `distinct`: the caller knows that ids do not repeat (a ticket's).

        `outcomes` [U] by table are filled in: the version a row had before the step, MISSING or NOT_FINITE.
        """
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
                if hints[name].size != x.size + 1:
                    raise StoreError(f"hints of table '{name}' must be [{x.size + 1}], got [{hints[name].size}]")

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
        return self._native.erase(self.index(table), ids)

    def reserve_rows(self, table: str, rows: int, partitions: Sequence[int] | None = None) -> None:
        """Makes the index of a table large enough for `rows` rows in all, before many are imported.

        `partitions`: room in these alone, as much as each has where all of them share the rows.
        """
        i = self.index(table)
        self._call(lambda: self._native.reserve_rows(i, rows, None if partitions is None else list(partitions)))

    def clear(self) -> None:
        """Removes every row of every table. Memory is kept for new ones."""
        self._native.clear()

    def size(self, table: str) -> tuple[int, int, int, int]:
        """Rows, and bytes of values, of optimizer state, and of everything beside them (ids, index, slack)."""
        return self._native.size(self.index(table))

    def export_rows(
        self, table: str, partition: int
    ) -> tuple[NDArray[np.uint64], NDArray[np.float32] | NDArray[np.float16], NDArray[np.float32]]:
        """Ids [R], values [R, D] as stored, state [R, K] of one partition, in ascending order of the mixed id."""
        if not 0 <= partition < self.partitions:
            raise StoreError(f"table '{table}' has partitions 0 to {self.partitions - 1}, not {partition}")
        i = self.index(table)
        ids, values, state = self._call(lambda: self._native.export_rows(i, partition))
        shape = (ids.size, self.specs[i].dim)
        if self.configuration[i].format is ValueFormat.FP32:
            return ids, values.view(np.float32).reshape(shape), state
        return ids, values.view(np.float16).reshape(shape), state

    def import_rows(
        self,
        table: str,
        ids: NDArray[np.uint64],
        values: NDArray[np.float32] | NDArray[np.float16],
        state: NDArray[np.float32],
    ) -> None:
        """Adds or replaces rows, of any partition, as `export_rows` gave them. Their versions start at 0."""
        self.check_rows(table, ids, values, state)
        row_bytes = self.specs[self.index(table)].dim * values.itemsize
        self._call(
            lambda: self._native.import_rows(
                self.index(table), ids, values.view(np.uint8).reshape(ids.size, row_bytes), state
            )
        )

    def check_rows(
        self,
        table: str,
        ids: NDArray[np.uint64],
        values: NDArray[np.float32] | NDArray[np.float16],
        state: NDArray[np.float32],
    ) -> None:
        """Raises StoreError where `import_rows` would, and changes nothing."""
        i = self.index(table)
        dim, width = self.specs[i].dim, self.specs[i].state_floats
        _need_array(ids, np.uint64, 1, f"ids of table '{table}'")
        _need_array(values, _DTYPES[self.configuration[i].format], 2, f"values of table '{table}'")
        _need_array(state, np.float32, 2, f"state of table '{table}'")
        if values.shape != (ids.size, dim) or state.shape != (ids.size, width):
            raise StoreError(
                f"rows of table '{table}' must be values [{ids.size}, {dim}] and state [{ids.size}, {width}], "
                f"got {list(values.shape)} and {list(state.shape)}"
            )

    def initial_values(self, table: str, row_id: int) -> NDArray[np.float32]:
        """What the row of an id starts as, in fp32: a function of (seed, table name, id) alone."""
        return _native.initial_values(self.specs[self.index(table)], row_id)

    def index(self, table: str) -> int:
        """Place of a table in the configuration. Raises StoreError for an unknown one."""
        if table not in self._index:
            raise StoreError(f"there is no table '{table}'; {did_you_mean(table, self.names)}")
        return self._index[table]

    def _call(self, call: Callable[[], T]) -> T:
        """Maps what native code raises to satrap's errors: the one place where it enters."""
        try:
            return call()
        except MemoryError as e:
            held = sum(sum(self.size(t)[1:]) for t in self.names)
            raise StoreError(
                f"out of memory: the tables hold {held / 2**30:.2f} GiB; use a smaller dim or format, "
                "or a machine with more memory"
            ) from e
        except (ValueError, TypeError) as e:
            raise StoreError(str(e)) from e


def available_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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


def _spec(table: Table, seed: int) -> _native.TableSpec:
    if not 1 <= table.dim <= 4096:
        raise StoreError(f"table '{table.name}': dim must be 1 to 4096, got {table.dim}")
    kind, o = _optimizer(table.optimizer, table.name)
    initializer, a, b = _initializer(table.initializer)
    key = xxhash.xxh3_64_intdigest(table.name.encode(), seed=seed & (2**64 - 1))
    settings = [
        o.get("lr", 0.0),
        o.get("momentum", 0.0),
        o.get("beta1", 0.0),
        o.get("beta2", 0.0),
        o.get("eps", 0.0),
        o.get("weight_decay", 0.0),
        o.get("initial_accumulator", 0.0),
        o.get("beta", 0.0),
        o.get("l1", 0.0),
        o.get("l2", 0.0),
    ]
    return _native.table_spec(
        table.dim, _FORMATS[table.format], kind, settings, initializer, a, b, table.max_gradient or 0.0, key
    )


def _optimizer(optimizer: Optimizer | None, table: str) -> tuple[int, dict[str, float]]:
    kinds: dict[type, int] = {SGD: 0, Adagrad: 1, RowWiseAdagrad: 2, Adam: 3, AdamW: 4, Ftrl: 5}
    if optimizer is None:
        raise StoreError(f"table '{table}' has no optimizer; use Job.resolved_tables(), which fills it in")
    return kinds[type(optimizer)], {f: getattr(optimizer, f) for f in optimizer.__struct_fields__}


def _initializer(spec: Initializer) -> tuple[int, float, float]:
    match spec:
        case Uniform():
            return 0, spec.low, spec.high
        case Normal():
            return 1, spec.mean, spec.std
        case TruncatedNormal():
            return 2, spec.mean, spec.std
        case Constant():
            return 3, spec.value, 0.0
        case Zeros():
            return 3, 0.0, 0.0
