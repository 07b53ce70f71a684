"""The implementations of a parameter service that one suite holds to the same behaviour, and small helpers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from satrap.ps import Ack, LocalService, PullRequest, PushRequest, RemoteService
from satrap.schema import SGD, Cold, Table, Zeros
from satrap.testing import Cluster, Faults

Open = Callable[[int], Any]
"""client → the service as that client sees it."""
Deployment = Callable[[Sequence[Table], int], AbstractContextManager[Open]]
"""(tables, partitions) → rows somewhere, and doors to them."""
Deploy = Callable[..., Open]
"""A deployment that ends with the test."""


@contextmanager
def local(tables: Sequence[Table], partitions: int = 8) -> Iterator[Open]:
    service = LocalService(tables, seed=5, partitions=partitions, threads=1)
    yield lambda client: service


def remote(servers: int, faults: Faults | None = None, **options: Any) -> Deployment:
    @contextmanager
    def deployment(tables: Sequence[Table], partitions: int = 8) -> Iterator[Open]:
        with Cluster(tables, servers=servers, partitions=partitions, seed=5, faults=faults, **options) as cluster:
            clients: dict[int, RemoteService] = {}

            def door(client: int) -> RemoteService:
                if client not in clients:
                    clients[client] = cluster.connect(client)
                return clients[client]

            yield door

    return deployment


def cold(tables: Sequence[Table]) -> list[Table]:
    """The same tables with a few rows in memory and the others on disk."""
    return [structs.replace(t, cold=Cold(memory_rows=16)) for t in tables]


@contextmanager
def on_disk(tables: Sequence[Table], partitions: int = 8) -> Iterator[Open]:
    with local(cold(tables), partitions) as door:
        yield door


BAD = Faults(drop=0.1, duplicate=0.1, reorder=0.2)
DEPLOYMENTS: dict[str, Deployment] = {
    "local": local,
    "local, rows on disk": on_disk,
    "one server": remote(1),
    "three servers": remote(3),
    "two servers on local sockets": remote(2, bind=""),
    "two servers behind a bad network": remote(2, BAD),
}


def exact(name: str = "t", dim: int = 2) -> Table:
    """A table in which integer gradients add up without rounding: SGD with rate 1 from zeros."""
    return Table(name=name, dim=dim, optimizer=SGD(lr=1.0), initializer=Zeros())


def u64(*ids: int) -> NDArray[np.uint64]:
    return np.array(ids, np.uint64)


def pull(service: Any, table: str, ids: NDArray[np.uint64], *, create: bool = False) -> NDArray[np.float32]:
    values: NDArray[np.float32] = service.pull(PullRequest(ids={table: ids}, create=create)).values[table]
    return values


def push_of(seq: int, ids: NDArray[np.uint64], gradients: Any, *, client: int = 0, **options: Any) -> PushRequest:
    """A push of table `t`; a number stands for a gradient of that value everywhere, of dim 2."""
    if not isinstance(gradients, np.ndarray):
        gradients = np.full((ids.size, 2), gradients, np.float32)
    options = {"epoch": 0, **options}
    return PushRequest(client=client, seq=seq, ids={"t": ids}, gradients={"t": gradients}, **options)


def is_held(service: Any) -> bool:
    """Whether a push waits for the others of its step, on every server: one without rows gets a part without ids."""
    if isinstance(service, LocalService):
        return service.held > 0
    lines = "\n".join(service.server_metrics()).splitlines()
    found = [float(x.split()[1]) for x in lines if x.startswith("satrap_pushes_held ")]
    return min(found) > 0


def until(what: Callable[[], Any]) -> None:
    """Returns when it is so."""
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@contextmanager
def impatient(client: RemoteService, seconds: float = 0.3) -> Iterator[None]:
    """A client that waits no longer for an answer, for as long as one is waited for in vain: with such a deadline from
    the start, a busy machine would fail what must not."""
    exchange = client._exchange
    before, exchange._deadline_s = exchange._deadline_s, seconds
    try:
        yield
    finally:
        exchange._deadline_s = before


def outcome(ack: Ack) -> tuple[int, dict[str, int], bool]:
    return ack.applied, {str(k): n for k, n in ack.refused.items()}, ack.duplicate
