"""Samples for `python -m benchmarks capacity`: 8 ids each, zipf-distributed over R rows, in Parquet.

A rank's id is a fixed permutation of 0 … R - 1, so that the rows that come often lie anywhere in the table, and not one
behind the other as a fill has made them.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.synthetic import ZIPF_EXPONENT

FEATURES = tuple(f"C{i + 1}" for i in range(8))
GROUP_ROWS = 131_072


def ensure(folder: Path, rows: int, samples: int, *, seed: int = 7) -> Path:
    """The file of so many samples over so many rows, made where it is not there yet."""
    path = folder / f"capacity-{rows}-{samples}-{seed}.parquet"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    rng = np.random.default_rng([seed, rows])
    schema = pa.schema([("label", pa.int8()), *((n, pa.int64()) for n in FEATURES)])
    with pq.ParquetWriter(aside, schema) as writer:
        for at in range(0, samples, GROUP_ROWS):
            count = min(GROUP_ROWS, samples - at)
            columns = [pa.array((rng.random(count) < 0.25).astype(np.int8))]
            columns += [pa.array(ids_of(_ranks(rng, count, rows), rows)) for _ in FEATURES]
            writer.write_table(pa.table(columns, schema=schema))
    aside.rename(path)
    return path


def ids_of(ranks: NDArray[np.int64], rows: int) -> NDArray[np.int64]:
    """The ids that come at these places, from the most frequent (0) to the rarest (R - 1)."""
    step = next(n for n in range(int(rows * 0.618) | 1, 3 * rows, 2) if math.gcd(n, rows) == 1)
    return ranks * step % rows


def _ranks(rng: np.random.Generator, count: int, rows: int) -> NDArray[np.int64]:
    """P(k) ∝ (k + 1)^-a, by inverting the distribution function of its continuous form."""
    power = 1.0 - ZIPF_EXPONENT
    inverse = (rng.random(count) * ((rows + 1.0) ** power - 1.0) + 1.0) ** (1.0 / power)
    return np.clip(inverse.astype(np.int64) - 1, 0, rows - 1)
