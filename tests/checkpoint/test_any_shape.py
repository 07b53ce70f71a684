"""A checkpoint knows nothing of the shape it came from or goes to: partitions, servers, clients, threads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from memory_rows import POSITION, dense_parts, job_of, push

from satrap import checkpoint
from satrap.ps import LocalService, PullRequest
from satrap.schema import Adam, Ftrl, Job, RowWiseAdagrad, Table, ValueFormat
from satrap.testing import Cluster

TABLES = (
    Table(name="user", dim=4, optimizer=Adam()),
    Table(name="item", dim=3, format=ValueFormat.FP16, optimizer=RowWiseAdagrad()),
    Table(name="few", dim=2, optimizer=Ftrl()),
)


def saved_from(service: object, job: Job, folder: Path) -> Path:
    model, optimizer = dense_parts(3)
    return checkpoint.save(
        folder, job=job, service=service, dense=model.state_dict(), optimizer=optimizer.state_dict(), step=1,
        position=POSITION,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained() -> LocalService:
    """Rows after three pushes, a few of one table: with many partitions some are empty."""
    service = LocalService(TABLES, seed=0, partitions=8)
    for seq in range(1, 4):
        push(service, seq, rows=200)
    few = {"user": np.empty(0, np.uint64), "item": np.empty(0, np.uint64), "few": np.arange(3, dtype=np.uint64)}
    service.pull(PullRequest(ids=few, create=True))
    return service


powers = st.sampled_from([1, 2, 4, 16])


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=powers, second=powers, servers=st.integers(1, 3), threads=st.integers(1, 4))
def test_any_partitions_servers_and_threads_hold_the_same_rows(
    first: int, second: int, servers: int, threads: int, trained: LocalService, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("shapes")
    job = job_of(*TABLES, partitions=8)
    original = saved_from(trained, job, folder / "original")
    digest = checkpoint.digest(original)
    # From the files of 8 partitions into another number of them, in this process …
    one = LocalService(TABLES, seed=0, partitions=first)
    checkpoint.load(original).restore_rows(one, threads=threads)
    again = saved_from(one, job, folder / "again")
    assert checkpoint.digest(again) == digest
    # … and from those onto servers with yet another, over sockets; any client of them sees all.
    second = max(second, 1 << (servers - 1).bit_length())
    with Cluster(TABLES, servers=servers, partitions=second) as cluster:
        checkpoint.load(again).restore_rows(cluster.connect(0), threads=threads)
        other = cluster.connect(1)
        assert other.clients() == trained.clients()
        assert checkpoint.digest(saved_from(other, job, folder / "servers")) == digest
