"""The parameter service of one process: the native store behind the protocol."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import numpy as np

from satrap.errors import StoreError
from satrap.ps.protocol import Ack, PullRequest, PushRequest, Refused, RowBlock, Rows, TableStats
from satrap.schema import Job, Table
from satrap.store import Store
from satrap.store._native import has_duplicates


class LocalService:
    """Implements `ParameterService` and `RowStorage` on a store in this process.

    Thread-safe. A push is applied whole before another one starts, so that what a client is told about its last push
    is true of every table.

    >>> from satrap.schema import SGD
    >>> service = LocalService([Table(name="user", dim=2, optimizer=SGD(lr=0.5))], seed=0)
    >>> ids = {"user": np.array([5], np.uint64)}
    >>> rows = service.pull(PullRequest(ids=ids, create=True))
    >>> push = PushRequest(client=0, epoch=0, seq=1, ids=ids, gradients={"user": np.ones((1, 2), np.float32)})
    >>> service.push(push).applied, service.push(push).duplicate
    (1, True)
    """

    def __init__(self, tables: Sequence[Table], *, seed: int, partitions: int = 64, threads: int | None = None) -> None:
        self.store = Store(tables, seed=seed, partitions=partitions, threads=threads)
        self._pushing = threading.Lock()
        self._clients: dict[int, tuple[int, int]] = {}

    @classmethod
    def of(cls, job: Job) -> LocalService:
        """The tables of a job, empty."""
        return cls(job.resolved_tables(), seed=job.seed, partitions=job.store.partitions, threads=job.store.threads)

    def tables(self) -> Sequence[Table]:
        """The tables as configured."""
        return self.store.configuration

    @property
    def partitions(self) -> int:
        """P: parts each table is cut into."""
        return self.store.partitions

    def pull(self, request: PullRequest) -> Rows:
        """See `ParameterService.pull`."""
        if not request.distinct:
            for name, ids in request.ids.items():
                if isinstance(ids, np.ndarray) and ids.dtype == np.uint64 and ids.ndim == 1 and has_duplicates(ids):
                    raise StoreError(f"ids of table '{name}' repeat in one pull; ask for each once")
        values, versions, hints = self.store.pull_many(dict(request.ids), create=request.create)
        return Rows(values=values, versions=versions, hints=hints)

    def push(self, request: PushRequest) -> Ack:
        """See `ParameterService.push`."""
        name = (request.epoch, request.seq)
        with self._pushing:
            last = self._clients.get(request.client)
            if last is not None and name <= last:
                return Ack(duplicate=True)
            applied, missing, not_finite, staleness = self.store.push_many(
                dict(request.ids),
                dict(request.gradients),
                None if request.versions is None else dict(request.versions),
                None if request.hints is None else dict(request.hints),
                lr_factor=request.lr_factor,
                distinct=request.distinct,
            )
            self._clients[request.client] = name
        refused = {Refused.MISSING_ROW: missing, Refused.NOT_FINITE: not_finite}
        return Ack(applied=applied, refused={k: n for k, n in refused.items() if n}, staleness=staleness)

    def stats(self) -> Mapping[str, TableStats]:
        """Size by table."""
        return {t.name: TableStats(*self.store.size(t.name)) for t in self.tables()}

    def export_rows(self, table: str, partition: int) -> RowBlock:
        """See `RowStorage.export_rows`."""
        return RowBlock(*self.store.export_rows(table, partition))

    def reserve_rows(self, table: str, rows: int) -> None:
        """See `RowStorage.reserve_rows`."""
        self.store.reserve_rows(table, rows)

    def import_rows(self, table: str, block: RowBlock) -> None:
        """See `RowStorage.import_rows`."""
        self.store.import_rows(table, block.ids, block.values, block.state)

    def erase(self, table: str, ids: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> int:
        """Removes rows for good; a gradient that comes for one later is refused as MISSING_ROW."""
        return self.store.erase(table, ids)

    def clear(self) -> None:
        """See `RowStorage.clear`."""
        with self._pushing:
            self.store.clear()
            self._clients.clear()

    def clients(self) -> dict[int, tuple[int, int]]:
        """See `RowStorage.clients`."""
        with self._pushing:
            return dict(self._clients)

    def set_clients(self, clients: Mapping[int, tuple[int, int]]) -> None:
        """See `RowStorage.set_clients`."""
        with self._pushing:
            self._clients = dict(clients)
