"""Embedding workers in threads of this process, on loopback, before a cluster of servers; and clients of them."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from satrap.pooling import EmbeddingWorker, Plan, RemotePooler
from satrap.ps import ClientKeys, ServerKeys
from satrap.testing.cluster import SOON, Cluster
from satrap.testing.proxy import FaultProxy, Faults


class EmbeddingWorkers:
    """N embedding workers, each behind a proxy where there are `faults`. A context manager.

    >>> from satrap.schema import Categorical, Data, Job, Label
    >>> job = Job(data=Data(train=("a.parquet",), label=(Label(column="y"),)), features=(Categorical(name="city"),))
    >>> plan = Plan.of(job)
    >>> with Cluster(plan.tables, seed=job.seed) as cluster, EmbeddingWorkers(plan, cluster) as workers:
    ...     workers.connect().overlaps
    True
    """

    def __init__(
        self,
        plan: Plan,
        cluster: Cluster,
        *,
        count: int = 1,
        faults: Faults | None = None,
        seed: int = 0,
        keys: ServerKeys | None = None,
        own_keys: ClientKeys | None = None,
        **options: Any,
    ) -> None:
        """`faults`: between clients and embedding workers; those behind are the cluster's. `options`: of
        `EmbeddingWorker`."""
        self._plan, self._cluster = plan, cluster
        self._options = {"threads": 1, "patience": SOON, "keys": keys, "own_keys": own_keys, **options}
        self._clients: list[RemotePooler] = []
        self.workers = [self._worker(i) for i in range(count)]
        self.proxies = (
            []
            if faults is None
            else [FaultProxy(w.address, faults, seed=1000 * seed + 500 + i) for i, w in enumerate(self.workers)]
        )

    def _worker(self, index: int, **options: Any) -> EmbeddingWorker:
        return EmbeddingWorker(self._plan, self._cluster.placement, index=index, **self._options, **options).start()

    def connect(self, client: int = 0, *, keys: ClientKeys | None = None, **options: Any) -> RemotePooler:
        """A new client of the embedding worker that is its own. Ends with them."""
        index = client % len(self.workers)
        doors = [p.address for p in self.proxies] or [w.address for w in self.workers]
        options = {"patience": SOON, "placement": self._cluster.placement.epoch, **options}
        pooler = RemotePooler(self._plan, doors[index], index=index, client=client, keys=keys, **options)
        self._clients.append(pooler)
        return pooler

    def restart(self, index: int) -> None:
        """Stops an embedding worker and starts another where clients look for it."""
        address = self.workers[index].address
        self.workers[index].stop()
        if self.proxies:
            self.workers[index] = self._worker(index)
            self.proxies[index].move(self.workers[index].address)
        else:
            self.workers[index] = self._worker(index, bind=address)

    def close(self) -> None:
        """Ends clients, proxies and embedding workers."""
        for client in self._clients:
            client.close()
        for proxy in self.proxies:
            proxy.stop()
        for worker in self.workers:
            worker.stop()

    def __enter__(self) -> EmbeddingWorkers:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None) -> None:
        self.close()
