"""Fills tables of every format and optimizer, and prints what this process has grown by: a JSON line each.

    python tests/plan/fill_tables.py MEGABYTES [all]

Tables of about so many megabytes each, with every format also one whose index is given its size before, and a bounded
one. Without `all` bf16, laid out as fp16, is filled with one optimizer only.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import sys
from collections.abc import Iterator

import numpy as np
from msgspec import structs

from satrap.observe import rss_bytes
from satrap.plan import row_bytes
from satrap.schema import (
    SGD,
    Adagrad,
    Adam,
    AdamW,
    Capacity,
    Expiry,
    Ftrl,
    Optimizer,
    RowWiseAdagrad,
    StateFormat,
    Table,
    ValueFormat,
)
from satrap.schema.strict import plain
from satrap.store import Store

OPTIMIZERS: tuple[Optimizer, ...] = (
    SGD(),
    SGD(momentum=0.9),
    Adagrad(),
    RowWiseAdagrad(),
    Adam(),
    AdamW(state=StateFormat.INT8),
    Ftrl(),
)
BATCH, PARTITIONS = 65_536, 64


def settled() -> int:
    """Resident memory after the allocator has given back what it can."""
    gc.collect()
    with contextlib.suppress(OSError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return rss_bytes()


def grown(table: Table, rows: int, *, reserved: bool = False) -> tuple[int, float]:
    """(rows, bytes) of a table filled with random ids, in an index that grows as in training, or `reserved` before."""
    rng = np.random.default_rng(3)
    store = Store([table], seed=1, partitions=PARTITIONS, threads=1)
    before = settled()
    if reserved:
        store.reserve_rows("t", rows)
    made = 0
    while made < rows:
        made += store.fill("t", rng.integers(1, 2**64 - 1, min(BATCH, rows - made), np.uint64))
    return store.size("t")[0], float(settled() - before)


def cases(form: ValueFormat, every: bool) -> Iterator[tuple[Table, bool]]:
    """Tables, and whether their index is given its size before. Bounded ones at `Capacity(rows=1)`, to be replaced."""
    for optimizer in OPTIMIZERS if every or form is not ValueFormat.BF16 else (RowWiseAdagrad(),):
        for dim in (16, 65) if isinstance(optimizer, RowWiseAdagrad) else (33,):
            yield Table(name="t", dim=dim, format=form, optimizer=optimizer), False
    yield Table(name="t", dim=64, format=form, optimizer=RowWiseAdagrad()), True
    bounds = {"capacity": Capacity(rows=1), "expire": Expiry(steps=1000)}
    yield Table(name="t", dim=64, format=form, optimizer=RowWiseAdagrad(), **bounds), False  # type: ignore[arg-type]


def main(megabytes: int, every: bool = False) -> None:
    """Tables of about so many megabytes each."""
    grown(Table(name="t", dim=64, optimizer=SGD()), 100_000)
    for form in ValueFormat:
        for table, reserved in cases(form, every):
            assert table.optimizer is not None
            about = row_bytes(table.dim, form.value, table.optimizer, rows=1e6, partitions=PARTITIONS).total
            rows = int(megabytes * 2**20 / about)
            if table.capacity is not None:
                # Rows are not divided among partitions to the row: none of them is full.
                table = structs.replace(table, capacity=Capacity(rows=rows * 21 // 20))
            rows, size = grown(table, rows, reserved=reserved)
            line = {"table": plain(table), "rows": rows, "bytes": size, "reserved": reserved}
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:] == ["all"])
