"""What is built on the protocol works alike over servers: the embedding engine, and checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from satrap import checkpoint
from satrap.data.batch import Batch, Jagged, Position
from satrap.embedding import EmbeddingEngine
from satrap.ps import LocalService, Placement, RemoteService, RowBlock
from satrap.ps import remote_rows as pages
from satrap.schema import Adam, Categorical, Data, Job, Label, RowWiseAdagrad, Sequence, Store, Table, ValueFormat
from satrap.store import Store as NativeStore
from satrap.testing import Cluster


def job_of(partitions: int = 8) -> Job:
    """Two features on one table (one with many values), a sequence, and a table of its own in fp16."""
    return Job(
        data=Data(train=("x.parquet",), label=(Label(column="y"),)),
        features=(
            Categorical(name="user", table="people"),
            Categorical(name="friends", table="people"),
            Sequence(name="seen", table="items", max_length=6),
        ),
        tables=(
            Table(name="people", dim=8, optimizer=Adam(lr=0.05)),
            Table(name="items", dim=5, format=ValueFormat.FP16, optimizer=RowWiseAdagrad(lr=0.1)),
        ),
        store=Store(partitions=partitions, threads=1),
        seed=3,
    )


def batch(rng: np.random.Generator, size: int = 64) -> Batch:
    def jagged(longest: int) -> Jagged:
        lengths = rng.integers(0, longest + 1, size)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        return Jagged(rng.integers(0, 90, int(offsets[-1])).astype(np.uint64), offsets, None)

    ids = {
        "user": Jagged(rng.integers(0, 90, size).astype(np.uint64), None, None),
        "friends": jagged(4),
        "seen": jagged(8),
    }
    labels = rng.integers(0, 2, (size, 1)).astype(np.float32)
    return Batch(size, np.empty((size, 0), np.float32), ids, labels, None, Position())


def train(job: Job, service: Any, steps: int, *, first: int = 1) -> tuple[list[bytes], EmbeddingEngine]:
    """Steps with a fixed network; the pooled tensors seen."""
    engine = EmbeddingEngine(job, service, threads=1)
    seen = []
    for seq in range(first, first + steps):
        lookup = engine.lookup(batch(np.random.default_rng(seq)), train=True)
        seen.append(lookup.pooled.detach().numpy().tobytes())
        loss = (lookup.pooled.sin().sum() + sum(s.cos().sum() for s in lookup.sequences)) / 64
        loss.backward()  # type: ignore[no-untyped-call]
        engine.push(lookup, seq=seq)
    return seen, engine


def digest(service: Any) -> str:
    return checkpoint.content_digest(service, {}, None)


def test_the_engine_over_servers_sees_and_leaves_the_bits_of_one_process() -> None:
    job = job_of()
    local = LocalService.of(job)
    want, one = train(job, local, 6)
    for servers in (1, 3):
        with Cluster(job.resolved_tables(), servers=servers, partitions=8, seed=3) as cluster:
            service = cluster.connect()
            seen, engine = train(job, service, 6)
            assert seen == want
            assert digest(service) == digest(local)
            assert str(engine.ledger) == str(one.ledger)
            np.testing.assert_array_equal(engine.ledger.staleness, one.ledger.staleness)


def test_the_engine_of_a_remote_service_has_kernels_of_its_own_that_hold_no_rows() -> None:
    job = job_of()
    with Cluster(job.resolved_tables(), servers=2, partitions=8, seed=3) as cluster:
        _, engine = train(job, cluster.connect(), 2)
        kernels = engine.pooler.kernels
        assert isinstance(kernels, NativeStore)
        assert all(kernels.size(t.name)[0] == 0 for t in job.resolved_tables())
        assert sum(kernels.size(t.name)[3] for t in job.resolved_tables()) == 0


def save(folder: Path, job: Job, service: Any) -> Path:
    dense = {"w": torch.zeros(2)}
    return checkpoint.save(folder, job=job, service=service, step=4, dense=dense, optimizer=None, position=Position())


def test_a_checkpoint_of_servers_is_that_of_one_process_and_restores_into_any_number(tmp_path: Path) -> None:
    job = job_of()
    local = LocalService.of(job)
    train(job, local, 4)
    with Cluster(job.resolved_tables(), servers=3, partitions=8, seed=3) as cluster:
        service = cluster.connect()
        train(job, service, 4)
        saved = save(tmp_path / "three", job, service)
        want = digest(service)
    assert want == digest(local)
    for servers, partitions in ((1, 8), (2, 4), (5, 16)):
        with Cluster(job.resolved_tables(), servers=servers, partitions=partitions, seed=3) as cluster:
            service = cluster.connect()
            checkpoint.load(saved).restore_rows(service)
            assert digest(service) == want
            assert service.clients() == {0: (0, 4)}
            # And it goes on as the one process does.
            go_on = LocalService(job.resolved_tables(), seed=3, partitions=partitions, threads=1)
            checkpoint.load(saved).restore_rows(go_on)
            assert train(job, service, 2, first=5)[0] == train(job, go_on, 2, first=5)[0]
            assert digest(service) == digest(go_on)


def test_a_partition_larger_than_a_message_travels_in_pages(monkeypatch: Any) -> None:
    monkeypatch.setattr(pages, "PAGE_BYTES", 1000)
    tables = job_of().resolved_tables()
    local = LocalService(tables, seed=3, partitions=4, threads=1)
    ids = np.arange(700, dtype=np.uint64)
    rng = np.random.default_rng(0)
    state = local.export_rows("people", 0).state.shape[1]
    block = RowBlock(ids, rng.standard_normal((700, 8)).astype(np.float32), rng.random((700, state)).astype(np.float32))
    local.import_rows("people", block)
    with Cluster(tables, servers=2, partitions=4, seed=3) as cluster:
        service = cluster.connect()
        service.import_rows("people", block)
        for p in range(4):
            have, want = service.export_rows("people", p), local.export_rows("people", p)
            for part in ("ids", "values", "state"):
                np.testing.assert_array_equal(getattr(have, part), getattr(want, part))
        assert service.server_metrics()[0].count("ExportRows") > 1


def test_room_is_made_on_each_server_for_its_own_partitions_alone() -> None:
    tables = job_of().resolved_tables()
    with Cluster(tables, servers=4, partitions=8, seed=3) as cluster:
        service = cluster.connect()
        service.reserve_rows("people", 1_000_000)
        sizes = [s.service.store.size("people")[3] for s in cluster.servers]
    alone = LocalService(tables, seed=3, partitions=8, threads=1)
    alone.reserve_rows("people", 1_000_000)
    assert sum(sizes) <= 1.2 * alone.store.size("people")[3]


def test_a_client_of_a_job_finds_the_servers_of_that_job() -> None:
    job = job_of()
    with Cluster(job.resolved_tables(), servers=2, partitions=8, seed=3) as cluster:
        placement = Placement.even(cluster.placement.addresses, 8)
        with RemoteService.of(job, placement) as service:
            assert train(job, service, 2)[0] == train(job, LocalService.of(job), 2)[0]
