"""Lookup and update of one row, by dim and format, in a table that no cache holds."""

from __future__ import annotations

import numpy as np

from satrap.calibrate.meter import Stopwatch
from satrap.plan.constants import RowCost
from satrap.schema import RowWiseAdagrad, Table, ValueFormat
from satrap.store import Store

DIMS = (16, 64, 128)
TABLE_BYTES = 256 << 20
"""Memory of the table: far beyond the caches."""
BATCH, ROUNDS, FILL = 65_536, 7, 262_144


def row_costs(*, table_bytes: int = TABLE_BYTES, dims: tuple[int, ...] = DIMS, rounds: int = ROUNDS) -> list[RowCost]:
    """Measures every format that tables have."""
    return [_row_cost(dim, form, table_bytes, rounds) for dim in dims for form in ValueFormat]


def _row_cost(dim: int, form: ValueFormat, table_bytes: int, rounds: int) -> RowCost:
    rows = max(BATCH, table_bytes // (form.row_bytes(dim) + 24))
    store = Store([Table(name="t", dim=dim, format=form, optimizer=RowWiseAdagrad())], seed=1, threads=1)
    rng = np.random.default_rng(7)
    ids = rng.permutation(np.arange(1, rows + 1, dtype=np.uint64))
    for at in range(0, rows, FILL):
        store.pull("t", ids[at : at + FILL], create=True)
    batch = min(BATCH, rows // 2)
    lookups, updates = [], []
    for _ in range(rounds):
        some, other = ({"t": rng.choice(ids, batch, replace=False)} for _ in range(2))
        with (lookup := Stopwatch()):
            store.pull_many(some, create=False)
        _, versions, hints = store.pull_many(some, create=True)
        store.pull_many(other, create=False)  # what the pull left in the caches is gone, as in training
        gradients = {"t": rng.standard_normal((batch, dim), np.float32) * np.float32(1e-3)}
        with (update := Stopwatch()):
            store.push_many(some, gradients, versions, hints)
        lookups.append(lookup.cpu)
        updates.append(update.cpu)
    return RowCost(
        dim=dim,
        format=form.value,
        rows=rows,
        lookup_ns=float(np.median(lookups)) / batch * 1e9,
        update_ns=float(np.median(updates)) / batch * 1e9,
    )
