"""Any job's id features, batches of them, and a step of training on numpy alone.

B samples, N ids of a feature.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from satrap.data.batch import Jagged
from satrap.pooling import Gradients, Pooled, Pooler
from satrap.schema import (
    SGD,
    Adam,
    Categorical,
    Data,
    Job,
    Label,
    Pooling,
    RowWiseAdagrad,
    Sequence,
    Store,
    Table,
    WireFormat,
)

EDGES = [0, 2**63, 2**64 - 1]


def job_with(features: list[Any], tables: list[Table]) -> Job:
    used = {f.table for f in features}
    return Job(
        data=Data(train=("x.parquet",), label=(Label(column="y"),)),
        features=tuple(features),
        tables=tuple(t for t in tables if t.name in used),
        store=Store(partitions=8, threads=1),
        seed=11,
    )


@st.composite
def jobs(draw: st.DrawFn, wire: WireFormat = WireFormat.FP32) -> Job:
    """One to five features, pooled and sequences mixed, on one to three tables of different dims."""
    tables = [
        Table(
            name=f"t{i}",
            dim=draw(st.sampled_from([1, 3, 8, 16])),
            optimizer=draw(st.sampled_from([SGD(lr=0.1), Adam(lr=0.02), RowWiseAdagrad(lr=0.1)])),
            wire=wire,
        )
        for i in range(draw(st.integers(1, 3)))
    ]
    features: list[Any] = []
    for i in range(draw(st.integers(1, 5))):
        table = draw(st.sampled_from(tables)).name
        if draw(st.booleans()):
            features.append(Sequence(name=f"f{i}", table=table, max_length=4))
        else:
            weights = f"w{i}" if draw(st.booleans()) else None
            pooling = draw(st.sampled_from(Pooling))
            features.append(Categorical(name=f"f{i}", table=table, pooling=pooling, weights=weights))
    return job_with(features, tables)


def batch_of(job: Job, size: int, rng: np.random.Generator) -> dict[str, Jagged]:
    """The ids of a batch. Lists may be longer than a sequence keeps, and empty."""
    ids = {}
    for f in job.id_features:
        is_list = isinstance(f, Sequence) or f.weights is not None or bool(rng.random() < 0.5)
        lengths = rng.integers(0, 7, size) if is_list else np.ones(size, np.int64)
        n = int(lengths.sum())
        values = np.array([*EDGES, *range(1, 30)], np.uint64)[rng.integers(0, 32, n)]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]) if is_list else None
        weighted = isinstance(f, Categorical) and f.weights is not None
        ids[f.name] = Jagged(values, offsets, rng.uniform(0.5, 2.0, n).astype(np.float32) if weighted else None)
    return ids


def gradients_of(found: Pooled, rng: np.random.Generator) -> Gradients:
    """Some gradients; now and then none of some part."""
    pooled = rng.standard_normal(found.pooled.shape).astype(np.float32)
    sequences = [
        None if rng.random() < 0.2 else rng.standard_normal(s.shape).astype(np.float32) for s in found.sequences
    ]
    return Gradients(pooled if rng.random() < 0.9 else None, sequences)


def train(job: Job, pooler: Pooler, sizes: list[int], seed: int) -> list[Any]:
    """Everything that is seen of some steps: vectors, masks and acknowledgements."""
    seen: list[Any] = []
    for seq, size in enumerate(sizes, 1):
        rng = np.random.default_rng([seed, seq])
        prepared = pooler.prepare(batch_of(job, size, rng), size)
        read = pooler.begin_lookup(prepared, train=False)()
        found = pooler.begin_lookup(prepared, train=True)()
        sent, ack = pooler.begin_push(found, gradients_of(found, rng), epoch=0, seq=seq, lr_factor=1 / seq)()
        for f in (read, found):
            seen += [f.pooled, *f.sequences, *f.masks]
        seen += [np.array([sent, ack.applied, ack.duplicate, ack.repeated, *ack.refused.values()]), ack.staleness]
    return seen


def rows_of(job: Job, service: Any) -> list[NDArray[Any]]:
    """All rows of all tables, with their optimizer state."""
    blocks = [service.export_rows(t.name, p) for t in job.resolved_tables() for p in range(service.partitions)]
    return [getattr(b, part) for b in blocks for part in ("ids", "values", "state")]


def assert_same_bits(a: list[Any], b: list[Any]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        assert x.tobytes() == y.tobytes()
