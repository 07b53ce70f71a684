"""Memory of one table, as the resident set of this process: `python -m benchmarks.store_memory DIM FORMAT ROWS`.

Rows are made by training pulls of random ids, as a run makes them. From half the rows on, at twenty points of the
growth, the overhead is what the resident set has grown by beyond values and optimizer state, so the index at every
fill, the headers, the slack of blocks and the allocator's own waste are all in it. Prints one JSON line.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import statistics
import sys

import numpy as np

from benchmarks.harness import emit, rss_mib
from satrap.schema import RowWiseAdagrad, Table, ValueFormat
from satrap.store import Store

POINTS = 20


def main(argv: list[str]) -> int:
    """Grows the table, prints the line."""
    dim, form, total = int(argv[0]), argv[1], int(argv[2])
    table = Table(name="t", dim=dim, format=ValueFormat(form), optimizer=RowWiseAdagrad())
    value_bytes, state_bytes = table.format.row_bytes(dim), 4
    rng = np.random.default_rng(3)
    warm = Store([table], seed=1, threads=1)
    warm.pull("t", np.arange(1, 4096, dtype=np.uint64), create=True)
    del warm
    store = Store([table], seed=1, threads=1)
    before = _settled_mib()
    overhead: list[float] = []
    rows = 0
    for point in range(1, POINTS + 1):
        goal = total // 2 + (total - total // 2) * point // POINTS
        while rows < goal:
            count = min(16_384, goal - rows)
            store.pull("t", rng.integers(1, 2**64 - 1, count, np.uint64), create=True)
            rows = store.size("t")[0]
        grown = (_settled_mib() - before) * 2**20
        overhead.append(grown / rows - value_bytes - state_bytes)
    counted = store.size("t")
    emit(
        memory={"dim": dim, "format": form, "rows": rows, "value_bytes": value_bytes, "state_bytes": state_bytes},
        overhead_bytes_per_row_max=max(overhead),
        overhead_bytes_per_row_median=statistics.median(overhead),
        overhead_bytes_per_row_at_end=overhead[-1],
        overhead_bytes_per_row_as_counted=counted[3] / rows,
    )
    return 0


def _settled_mib() -> float:
    """Resident memory after the allocator has given back what it can: freed batches are not the table's."""
    gc.collect()
    with contextlib.suppress(OSError):  # another libc has no such call, and gives back what it likes
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return rss_mib()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
