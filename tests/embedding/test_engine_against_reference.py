"""The embedding engine against plain torch, for any job: shared tables, lists, weights, sequences, empty batches.

B batch, N ids of a feature in the batch, L padded length, D dimension.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from reference import ReferenceEngine, ReferenceService
from satrap.data.batch import Batch, Jagged, Position
from satrap.embedding import EmbeddingEngine
from satrap.ps import LocalService
from satrap.schema import SGD, Adam, Categorical, Data, Job, Label, Pooling, RowWiseAdagrad, Sequence, Store, Table
from satrap.testing import Cluster

EDGES = [0, 2**63, 2**64 - 1]


@st.composite
def jobs(draw: st.DrawFn) -> Job:
    """One to four features on one to three tables."""
    tables = [
        Table(
            name=f"t{i}",
            dim=draw(st.sampled_from([1, 3, 8, 16])),
            optimizer=draw(st.sampled_from([SGD(lr=0.1), Adam(lr=0.02), RowWiseAdagrad(lr=0.1)])),
        )
        for i in range(draw(st.integers(1, 3)))
    ]
    features: list[Any] = []
    for i in range(draw(st.integers(1, 4))):
        table = draw(st.sampled_from(tables)).name
        if draw(st.booleans()) and i:
            features.append(Sequence(name=f"f{i}", table=table, max_length=5))
        else:
            weights = f"w{i}" if draw(st.booleans()) else None
            features.append(
                Categorical(name=f"f{i}", table=table, pooling=draw(st.sampled_from(Pooling)), weights=weights)
            )
    used = {f.table for f in features}
    return Job(
        data=Data(train=("x.parquet",), label=(Label(column="y"),)),
        features=tuple(features),
        tables=tuple(t for t in tables if t.name in used),
        store=Store(partitions=4, threads=1),
        seed=11,
    )


def batch_of(job: Job, size: int, rng: np.random.Generator) -> Batch:
    ids = {}
    for f in job.id_features:
        is_list = isinstance(f, Sequence) or f.weights is not None or bool(rng.random() < 0.5)
        lengths = rng.integers(0, 6, size) if is_list else np.ones(size, np.int64)
        n = int(lengths.sum())
        values = np.array([*EDGES, *range(1, 12)], np.uint64)[rng.integers(0, 14, n)]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]) if is_list else None
        weighted = isinstance(f, Categorical) and f.weights is not None
        weights = rng.uniform(0.5, 2.0, n).astype(np.float32) if weighted else None
        ids[f.name] = Jagged(values, offsets, weights)
    labels = rng.integers(0, 2, (size, 1)).astype(np.float32)
    return Batch(size, np.empty((size, 0), np.float32), ids, labels, None, Position())


def loss_of(seen: list[torch.Tensor]) -> torch.Tensor:
    """Some function with a gradient that differs by place."""
    return torch.stack([(x * torch.linspace(0.5, 1.5, x.numel()).reshape(x.shape)).sin().sum() for x in seen]).sum()


@contextmanager
def service_of(job: Job, servers: int) -> Iterator[Any]:
    if servers == 0:
        yield LocalService.of(job)
        return
    with Cluster(job.resolved_tables(), servers=servers, partitions=4, seed=job.seed) as cluster:
        yield cluster.connect()


def check(job: Job, sizes: list[int], seed: int, servers: int) -> None:
    store = LocalService.of(job).store

    def initial(table: Table, ids: NDArray[np.uint64]) -> NDArray[np.float32]:
        return np.array([store.initial_values(table.name, int(i)) for i in ids], np.float32).reshape(-1, table.dim)

    plain = ReferenceEngine(job, ReferenceService(job.resolved_tables(), initial))
    with service_of(job, servers) as service:
        engine = EmbeddingEngine(job, service, threads=1)
        for seq, size in enumerate(sizes, 1):
            batch = batch_of(job, size, np.random.default_rng([seed, seq]))
            lookup, want = engine.lookup(batch, train=True), plain.lookup(batch, train=True)
            names = [f.name for f in job.id_features]
            for name in names:
                have, expected = lookup.embeddings[name], want.leaves[name]
                if torch.is_tensor(have):
                    torch.testing.assert_close(have, expected, rtol=1e-4, atol=1e-5)
                    continue
                length = expected.shape[1]
                torch.testing.assert_close(have.values[:, :length], expected[:, : have.values.shape[1]])
                assert not have.values[:, length:].any()
            loss_of([x if torch.is_tensor(x) else x.values for x in (lookup.embeddings[n] for n in names)]).backward()
            give_gradients(lookup, want, names)
            engine.push(lookup, seq=seq)
            plain.push(want, seq=seq, lr_factor=1.0)
        assert engine.ledger.balanced
        assert engine.ledger.applied == plain.ledger.applied
        for t in job.resolved_tables():
            rows = plain.service.values(t.name)
            blocks = [service.export_rows(t.name, p) for p in range(service.partitions)]
            have = {int(i): v for b in blocks for i, v in zip(b.ids, b.values, strict=True)}
            assert have.keys() == rows.keys()
            for i, value in rows.items():
                np.testing.assert_allclose(have[i], value, rtol=1e-3, atol=2e-4)


def give_gradients(lookup: Any, want: Any, names: list[str]) -> None:
    """The reference's leaves get the gradients of the same function."""
    parts = []
    for name in names:
        have, leaf = lookup.embeddings[name], want.leaves[name]
        if torch.is_tensor(have):
            parts.append(leaf)
            continue
        # The engine pads to at least one and to the longest list within max_length.
        length = have.values.shape[1]
        pad = torch.zeros(leaf.shape[0], max(0, length - leaf.shape[1]), leaf.shape[2])
        parts.append(torch.cat([leaf[:, :length], pad], dim=1))
    loss_of(parts).backward()


@settings(max_examples=60, deadline=None)
@given(job=jobs(), sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4), seed=st.integers(0, 2**32 - 1))
def test_any_job_in_one_process_equals_plain_torch(job: Job, sizes: list[int], seed: int) -> None:
    check(job, sizes, seed, servers=0)


@pytest.mark.parametrize("servers", [1, 3])
@settings(max_examples=12, deadline=None)
@given(job=jobs(), sizes=st.lists(st.integers(1, 40), min_size=1, max_size=3), seed=st.integers(0, 2**32 - 1))
def test_any_job_over_servers_equals_plain_torch(job: Job, sizes: list[int], seed: int, servers: int) -> None:
    check(job, sizes, seed, servers)
