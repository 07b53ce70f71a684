"""Tables of fixed size against torch: ids share rows, and the vector of an id is the sum of its rows.

B batch, N ids, k rows an id, D dimension.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from satrap.data.batch import Batch, Jagged, Position
from satrap.embedding import EmbeddingEngine
from satrap.errors import JobError
from satrap.ps import LocalService
from satrap.schema import (
    SGD,
    Capacity,
    Categorical,
    Data,
    Hashed,
    Job,
    Label,
    Normal,
    Pooling,
    QuotientRemainder,
    Sequence,
    Store,
    Table,
)
from satrap.schema.tables import IdSpace
from satrap.store import rows_of
from satrap.testing import Cluster

B, D, SEED = 24, 4, 11


def job_of(ids: IdSpace, pooling: Pooling = Pooling.SUM, weights: str | None = None) -> Job:
    return Job(
        data=Data(train=("x.parquet",), label=(Label(column="y"),)),
        features=(Categorical(name="f", table="t", pooling=pooling, weights=weights),),
        tables=(Table(name="t", dim=D, optimizer=SGD(lr=0.5), initializer=Normal(std=0.5), ids=ids),),
        store=Store(partitions=4, threads=1),
        seed=SEED,
    )


def batch_of(rng: np.random.Generator, *, weighted: bool) -> Batch:
    lengths = rng.integers(0, 6, B)
    n = int(lengths.sum())
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    weights = rng.uniform(0.5, 2.0, n).astype(np.float32) if weighted else None
    jagged = Jagged(rng.integers(0, 2**63, n, np.uint64), offsets, weights)
    return Batch(B, np.empty((B, 0), np.float32), {"f": jagged}, np.zeros((B, 1), np.float32), None, Position())


def pooled(table: torch.Tensor, rows: NDArray[np.uint64], jagged: Jagged, pooling: Pooling) -> torch.Tensor:
    """As the documentation says: the sum of an id's rows, then pooled with weights."""
    vectors = table[torch.from_numpy(rows.astype(np.int64))].sum(1)  # [N, D]
    out = []
    assert jagged.offsets is not None
    for a, b in zip(jagged.offsets[:-1], jagged.offsets[1:], strict=True):
        w = torch.ones(b - a) if jagged.weights is None else torch.from_numpy(jagged.weights[a:b])
        total = (w[:, None] * vectors[a:b]).sum(0)
        if b > a and pooling is Pooling.MEAN:
            total = total / w.sum()
        if b > a and pooling is Pooling.SQRTN:
            total = total / w.square().sum().sqrt()
        out.append(total)
    return torch.stack(out)


@pytest.mark.parametrize("pooling", list(Pooling))
@pytest.mark.parametrize("weights", [None, "w"])
@pytest.mark.parametrize(
    "ids", [Hashed(rows=20), Hashed(rows=30, hashes=3), QuotientRemainder(rows=9)], ids=lambda x: type(x).__name__
)
def test_a_table_of_fixed_size_is_an_embedding_of_torch_under_sgd(
    ids: IdSpace, pooling: Pooling, weights: str | None
) -> None:
    job, rng = job_of(ids, pooling, weights), np.random.default_rng(1)
    (table,) = job.resolved_tables()
    size = 2 * ids.rows if isinstance(ids, QuotientRemainder) else ids.rows
    service = LocalService.of(job)
    initial = service.store.lookup("t", np.arange(size, dtype=np.uint64))
    reference = torch.nn.Parameter(torch.from_numpy(initial.copy()))
    optimizer = torch.optim.SGD([reference], lr=0.5)
    engine = EmbeddingEngine(job, service)
    for seq in range(1, 6):
        batch = batch_of(rng, weighted=weights is not None)
        rows = rows_of(table, batch.ids["f"].values, SEED).reshape(-1, table.rows_per_id)
        assert rows.max() < size
        lookup = engine.lookup(batch, train=True)
        want = pooled(reference, rows, batch.ids["f"], pooling)
        got = lookup.embeddings.cat()
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
        scale = torch.linspace(0.5, 1.5, B * D).reshape(B, D)
        optimizer.zero_grad()
        (want * scale).sum().backward()
        optimizer.step()
        (got * scale).sum().backward()
        engine.push(lookup, seq=seq)
    after = service.store.lookup("t", np.arange(size, dtype=np.uint64))
    torch.testing.assert_close(torch.from_numpy(after), reference.detach(), rtol=1e-5, atol=1e-6)
    assert service.stats()["t"].rows <= size


def test_rows_of_an_id_are_the_same_on_servers_and_pinned() -> None:
    # Another hash would silently make other models of old checkpoints.
    table = job_of(Hashed(rows=1000, hashes=2)).resolved_tables()[0]
    ids = np.array([0, 1, 2**64 - 1], np.uint64)
    assert rows_of(table, ids, SEED).tolist() == PINNED
    split = job_of(QuotientRemainder(rows=1000)).resolved_tables()[0]
    assert rows_of(split, ids, SEED).tolist() == PINNED_SPLIT


PINNED = [157, 752, 14, 29, 364, 878]
PINNED_SPLIT = [785, 1157, 400, 1014, 145, 1364]


def test_no_two_numbers_below_the_square_share_both_rows() -> None:
    table = job_of(QuotientRemainder(rows=64)).resolved_tables()[0]
    pairs = rows_of(table, np.arange(20_000, dtype=np.uint64), SEED).reshape(-1, 2)
    assert pairs[:, 0].max() < 64
    assert pairs[:, 1].min() >= 64
    # As many pairs as 20,000 balls fill of 4,096 boxes, nearly all; and none much more often than chance has it.
    counts = Counter(map(tuple, pairs.tolist()))
    assert len(counts) > 4000
    assert max(counts.values()) < 20


def test_hashes_of_an_id_are_independent() -> None:
    table = job_of(Hashed(rows=50, hashes=2)).resolved_tables()[0]
    pairs = rows_of(table, np.arange(50_000, dtype=np.uint64), SEED).reshape(-1, 2)
    seen = np.bincount((pairs[:, 0] * 50 + pairs[:, 1]).astype(np.int64), minlength=2500)
    assert abs(seen - 20).max() < 30


def test_servers_and_one_process_train_the_same_rows() -> None:
    job = job_of(Hashed(rows=40, hashes=2), Pooling.MEAN)
    found = []
    with Cluster(job.resolved_tables(), servers=2, partitions=4, seed=SEED) as cluster:
        for service in (LocalService.of(job), cluster.connect()):
            engine, rng = EmbeddingEngine(job, service), np.random.default_rng(3)
            for seq in range(1, 5):
                lookup = engine.lookup(batch_of(rng, weighted=False), train=True)
                lookup.embeddings.cat().square().sum().backward()
                engine.push(lookup, seq=seq)
            found.append([service.export_rows("t", p).values.tobytes() for p in range(4)])
    assert found[0] == found[1]


def test_what_does_not_go_together_is_refused() -> None:
    job = job_of(Hashed(rows=40))
    table = job.tables[0]

    def changed(**fields: object) -> Table:
        return Table(**{f: getattr(table, f) for f in table.__struct_fields__} | fields)  # type: ignore[arg-type]

    def with_(table: Table, *features: object) -> Job:
        return Job(data=job.data, features=features or job.features, tables=(table,))  # type: ignore[arg-type]

    with pytest.raises(JobError, match="leave out capacity, expire and admit"):
        with_(changed(capacity=Capacity(rows=100)))
    with pytest.raises(JobError, match="a sequence has one row an id, and 's' is one"):
        with_(changed(ids=QuotientRemainder(rows=4)), Sequence(name="s", table="t", max_length=3))
    with_(table, Sequence(name="s", table="t", max_length=3))
    with pytest.raises(JobError, match=r"tables.t.ids.hashes: must be 1 to 8, got 9"):
        with_(changed(ids=Hashed(rows=4, hashes=9)))
    with pytest.raises(JobError, match=r"tables.t.ids.rows: must be 1 to"):
        with_(changed(ids=Hashed(rows=0)))
