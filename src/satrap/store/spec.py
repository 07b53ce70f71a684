"""What the native core is told of a table."""

from __future__ import annotations

import xxhash

from satrap.errors import StoreError
from satrap.schema import (
    SGD,
    Adagrad,
    Adam,
    AdamW,
    Capacity,
    Constant,
    Ftrl,
    Initializer,
    Normal,
    Optimizer,
    Rounding,
    RowWiseAdagrad,
    StateFormat,
    Table,
    TruncatedNormal,
    Uniform,
    ValueFormat,
    Zeros,
)
from satrap.store import _native

_FORMATS = {ValueFormat.FP32: 0, ValueFormat.FP16: 1, ValueFormat.BF16: 2, ValueFormat.INT8: 3}


def table_spec(table: Table, seed: int) -> _native.TableSpec:
    """Raises StoreError for a table without an optimizer, or of a dim that rows cannot have."""
    if not 1 <= table.dim <= 4096:
        raise StoreError(f"table '{table.name}': dim must be 1 to 4096, got {table.dim}")
    kind, o = _optimizer(table.optimizer, table.name)
    initializer, a, b = _initializer(table.initializer)
    key = row_key(table, seed)
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
        table.dim,
        _FORMATS[table.format],
        int(table.rounds is Rounding.STOCHASTIC),
        kind,
        settings,
        int(getattr(table.optimizer, "state", None) is StateFormat.INT8),
        initializer,
        a,
        b,
        table.max_gradient or 0.0,
        key,
        _bound(table),
    )


def row_key(table: Table, seed: int) -> int:
    """Of the random numbers of a table's rows: a function of seed and name alone."""
    return xxhash.xxh3_64_intdigest(table.name.encode(), seed=seed & (2**64 - 1))


def _bound(table: Table) -> tuple[int, int, int, int, bool, int, int]:
    c, e, a = table.capacity, table.expire, table.admit
    if table.cold is not None:
        c = Capacity(rows=table.cold.memory_rows, bytes=table.cold.memory_bytes, evict=table.cold.evict)
    capacity = (0, 0, 0) if c is None else (1 if c.evict == "recency" else 2, c.rows or 0, c.bytes or 0)
    expiry = (0, False) if e is None else (e.steps or e.seconds or 0, e.seconds is not None)
    return (*capacity, *expiry, *((0, 0) if a is None else (a.sightings, a.window)))


def _optimizer(optimizer: Optimizer | None, table: str) -> tuple[int, dict[str, float]]:
    kinds: dict[type, int] = {SGD: 0, Adagrad: 1, RowWiseAdagrad: 2, Adam: 3, AdamW: 4, Ftrl: 5}
    if optimizer is None:
        raise StoreError(f"table '{table}' has no optimizer; use Job.resolved_tables(), which fills it in")
    numbers = {f: getattr(optimizer, f) for f in optimizer.__struct_fields__ if f != "state"}
    return kinds[type(optimizer)], numbers


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
