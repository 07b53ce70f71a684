"""Tables whose rows are mostly on disk, behind the parameter service: nobody can tell, but for what it is told."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs
from numpy.typing import NDArray

from satrap.errors import JobError, ServiceError, StoreError
from satrap.ps import LocalService, PullRequest, PushRequest
from satrap.ps.packing import Directory
from satrap.schema import (
    SGD,
    Adam,
    Admission,
    Capacity,
    Categorical,
    Cold,
    Data,
    Expiry,
    Job,
    Label,
    RowWiseAdagrad,
    StateFormat,
    Store,
    Table,
    ValueFormat,
)
from satrap.testing import Cluster

PLAIN = [
    Table(name="exact", dim=16, optimizer=RowWiseAdagrad(lr=0.1)),
    Table(name="narrow", dim=9, format=ValueFormat.INT8, optimizer=Adam(lr=0.1, state=StateFormat.INT8)),
    Table(
        name="known", dim=3, format=ValueFormat.BF16, optimizer=SGD(lr=0.1), admit=Admission(sightings=2, window=512)
    ),
]
EVICT = {"exact": "recency", "narrow": "frequency", "known": "recency"}
COLD = [structs.replace(t, cold=Cold(memory_rows=64, evict=EVICT[t.name])) for t in PLAIN]


def train(service: Any, steps: int = 80, staleness: int = 2) -> list[bytes]:
    """Everything that is seen of a run whose pulls are ahead of its pushes, and all that is left at its end."""
    rng = np.random.default_rng(0)
    seen: list[bytes] = []
    under_way: list[tuple[dict[str, NDArray[np.uint64]], Any]] = []
    for seq in range(1, steps + 1):
        ids = {t.name: np.unique((3000 * rng.random(rng.integers(1, 300)) ** 3).astype(np.uint64)) for t in PLAIN}
        others = {t.name: rng.integers(0, 4000, 30, np.uint64) for t in PLAIN}
        others = {n: np.unique(x) for n, x in others.items()}
        seen += [x.tobytes() for x in service.pull(PullRequest(ids=others, create=False)).values.values()]
        rows = service.pull(PullRequest(ids=ids, create=True))
        evaluated = service.pull(PullRequest(ids=ids, create=False, versions=False))
        for name in ids:
            np.testing.assert_array_equal(evaluated.values[name], rows.values[name])
        seen += [x.tobytes() for x in rows.values.values()] + [x.tobytes() for x in rows.versions.values()]
        under_way.append((ids, rows))
        if len(under_way) <= staleness:
            continue
        ids, rows = under_way.pop(0)
        gradients = {t.name: rng.standard_normal((ids[t.name].size, t.dim)).astype(np.float32) for t in PLAIN}
        ack = service.push(PushRequest(0, 0, seq, ids, gradients, versions=rows.versions, hints=rows.hints))
        seen += [repr((ack.applied, sorted(ack.refused.items()))).encode(), ack.staleness.tobytes()]
    stats = service.stats()
    seen.append(repr([(n, s.rows, s.admitted, s.evicted, s.expired, s.refused) for n, s in stats.items()]).encode())
    for t in PLAIN:
        for p in range(service.partitions):
            b = service.export_rows(t.name, p)
            seen += [b"" if x is None else x.tobytes() for x in (b.ids, b.values, b.state, b.bound)]
            assert b.marks is None or b.marks.size == 0
    return seen


def test_rows_on_disk_train_to_the_bits_of_rows_in_memory_in_one_process_and_on_servers(tmp_path: Path) -> None:
    want = train(LocalService(PLAIN, seed=3, partitions=8, threads=1))
    for threads in (1, 3):
        service = LocalService(COLD, seed=3, partitions=8, threads=threads, cold_folder=str(tmp_path))
        got = train(service)
        assert len(got) == len(want)
        assert [i for i, (a, b) in enumerate(zip(got, want, strict=True)) if a != b] == []
        for t in PLAIN:
            cold = service.stats()[t.name].cold
            assert cold is not None
            assert min(cold.rows, cold.returned, cold.looked_up, cold.file_bytes, cold.index_bytes) > 0
    for servers in (1, 3):
        with Cluster(COLD, servers=servers, partitions=8, seed=3) as cluster:
            assert train(cluster.connect()) == want
    assert list(tmp_path.iterdir()) == []


def test_a_client_that_knows_nothing_of_the_disk_is_let_in() -> None:
    # Where rows lie changes none of them; a server may come back with more or less memory than it had.
    assert Directory.of(COLD).fingerprint(3) == Directory.of(PLAIN).fingerprint(3)


def filled(folder: Path, rows: int = 5000) -> LocalService:
    table = Table(name="user", dim=16, optimizer=SGD(lr=1.0), cold=Cold(memory_rows=64))
    service = LocalService([table], seed=0, partitions=4, threads=1, cold_folder=str(folder))
    service.pull(PullRequest(ids={"user": np.arange(rows, dtype=np.uint64)}, create=True))
    service.pull(PullRequest(ids={"user": np.arange(10**6, 10**6 + 64, dtype=np.uint64)}, create=True))
    return service


def pull_many(service: Any, batches: int) -> None:
    """The ids from 0 on, a thousand a batch."""
    for k in range(batches):
        service.pull(PullRequest(ids={"user": np.arange(1000 * k, 1000 * (k + 1), dtype=np.uint64)}, create=True))


def everything(service: Any) -> int:
    """Reads every row; returns how many there are."""
    return sum(service.export_rows("user", p).ids.size for p in range(service.partitions))


def cold_file(folder: Path) -> int:
    """The file of the rows in a folder: it has no name, and is found among what this process has open."""
    for fd in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{fd}").startswith(f"{folder}/"):
                return int(fd)
        except OSError:
            continue
    raise AssertionError("no such file is open")


def test_a_damaged_row_is_told_with_folder_and_offset_and_the_others_are_served(tmp_path: Path) -> None:
    service = filled(tmp_path)
    os.pwrite(cold_file(tmp_path), b"\xff\xff", 100)
    with pytest.raises(
        StoreError, match=rf"'user'.*{tmp_path} \(store.cold_folder\), offset 80: a record .* is damaged"
    ):
        everything(service)
    told = 0
    for first in range(0, 5000, 20):
        ids = {"user": np.arange(first, first + 20, dtype=np.uint64)}
        try:
            service.pull(PullRequest(ids=ids, create=True))
        except StoreError as e:
            told += "offset 80" in str(e)
    assert told == 1
    assert service.stats()["user"].rows == 5064


def test_a_full_disk_ends_no_more_than_the_call_and_every_row_stays(tmp_path: Path) -> None:
    service = filled(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(StoreError, match=r"cannot be written: File too large\. Rows are as they were"):
            pull_many(service, 40)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    ids = {"user": np.arange(5000, dtype=np.uint64)}
    assert service.push(PushRequest(0, 0, 1, ids, {"user": np.ones((5000, 16), np.float32)})).applied == 5000
    pull_many(service, 40)
    assert everything(service) == service.stats()["user"].rows == 40_064


def test_a_server_tells_a_full_disk_to_who_asks_and_goes_on(tmp_path: Path) -> None:
    table = Table(name="user", dim=16, optimizer=SGD(lr=1.0), cold=Cold(memory_rows=64))
    with Cluster([table], servers=1, partitions=4) as cluster:
        client = cluster.connect()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, hard))
        try:
            with pytest.raises((ServiceError, StoreError), match="cannot be written"):
                pull_many(client, 10)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        ids = {"user": np.arange(1000, dtype=np.uint64)}
        assert client.push(PushRequest(0, 0, 1, ids, {"user": np.ones((1000, 16), np.float32)})).applied == 1000


def test_metrics_tell_what_lies_on_disk() -> None:
    with Cluster(COLD, servers=1, partitions=8, seed=3) as cluster:
        train(cluster.connect(), steps=20)
        text = cluster.connect(1).server_metrics()[0]
        cold = cluster.servers[0].service.stats()["exact"].cold
        assert cold is not None
    assert f'satrap_cold_rows{{table="exact"}} {cold.rows}\n' in text
    assert f'satrap_cold_bytes{{table="exact",where="disk"}} {cold.file_bytes}\n' in text
    for event in ("written", "moved", "returned", "looked_up"):
        assert f'satrap_cold_rows_total{{table="exact",event="{event}"}} {getattr(cold, event)}\n' in text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cold": Cold()}, "tables.user.cold: give memory_rows or memory_bytes"),
        ({"cold": Cold(memory_rows=64, memory_bytes=1 << 20)}, "tables.user.cold: give memory_rows or memory_bytes"),
        ({"cold": Cold(memory_rows=63)}, "tables.user.cold.memory_rows: must be a row or more for each partition"),
        ({"cold": Cold(memory_bytes=0)}, "tables.user.cold.memory_bytes: must be above 0"),
        ({"cold": Cold(memory_rows=64), "capacity": Capacity(rows=100)}, "tables.user.cold: rows beyond the memory"),
        ({"cold": Cold(memory_rows=64), "expire": Expiry(steps=9)}, "tables.user.cold: rows on disk do not expire"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError, match=message):
        Job(
            data=Data(train=("x.parquet",), label=(Label(column="click"),)),
            features=(Categorical(name="user"),),
            tables=(Table(name="user", dim=4, **settings),),
        )


def test_a_folder_that_is_no_absolute_path_is_refused() -> None:
    with pytest.raises(JobError, match=r"store.cold_folder: must be an absolute path"):
        Job(
            data=Data(train=("x.parquet",), label=(Label(column="click"),)),
            features=(Categorical(name="user"),),
            store=Store(cold_folder="cold"),
        )
