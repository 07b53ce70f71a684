"""The parameter service of one process: the native store behind the protocol."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Mapping, Sequence

import numpy as np

from satrap.errors import ServiceError
from satrap.ps.protocol import Ack, PullRequest, PushRequest, RowBlock, Rows, TableStats
from satrap.ps.pushes import MissingPush, Name, Pushes
from satrap.schema import Job, Table
from satrap.store import Store

DROPPED = Ack()
"""Stands for the acknowledgement of a push that waited and was dropped."""


class LocalService:
    """Implements `ParameterService` and `RowStorage` on a store in this process.

    Thread-safe. A push is applied whole before another one starts, so that what a client is told about its last push
    is true of every table. A push that merges with others waits in its caller's thread until they are there.

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
        self.life = secrets.randbits(63) | 1
        """Names these rows: another service, or the same one started anew and empty, has another number."""
        self._turn = threading.Condition()
        self._pushes = Pushes(self.store)
        self._waiting: dict[tuple[int, Name], Ack | None] = {}

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
        ids = dict(request.ids)
        self.store.check_ids(ids, distinct=request.distinct)
        values, versions, hints = self.store.pull_many(ids, create=request.create)
        return Rows(values=values, versions=versions, hints=hints)

    def push(self, request: PushRequest) -> Ack:
        """See `ParameterService.push`."""
        key = (request.client, (request.epoch, request.seq))
        with self._turn:
            acks = self.offer(request)
            if request.client in acks:
                return acks[request.client]
            self._waiting[key] = None
            ack: Ack | None = None
            while ack is None:
                self._turn.wait()
                ack = self._waiting[key]
            del self._waiting[key]
        if ack is DROPPED:
            raise ServiceError(
                f"push (epoch {request.epoch}, seq {request.seq}) of client {request.client} waited for the others of "
                "its step when the rows were cleared or restored: it was not applied"
            )
        return ack

    def offer(self, push: PushRequest, previous: Name | None = None, request: int | None = None) -> Mapping[int, Ack]:
        """`push` without waiting, for who serves many clients in one thread: see `Pushes.offer`."""
        name = (push.epoch, push.seq)
        with self._turn:
            acks = self._pushes.offer(push, previous, request)
            for client, ack in acks.items():
                if (client, name) in self._waiting:
                    self._waiting[client, name] = ack
                    self._turn.notify_all()
        return acks

    def has(self, client: int, name: Name) -> bool:
        """Whether this push, or a later one of the client, was applied."""
        with self._turn:
            last = self._pushes.clients().get(client)
        return last is not None and name <= last

    def need(self, client: int, name: Name) -> None:
        """Raises MissingPush unless this push of the client has come: it is applied, or waits for others."""
        with self._turn:
            last = self._pushes.received(client)
        if last is None or name > last:
            raise MissingPush(name, last)

    @property
    def held(self) -> int:
        """Pushes that wait for others of their step."""
        with self._turn:
            return self._pushes.held

    def step_of(self, name: Name) -> tuple[int, int]:
        """(pushes that are there, pushes of the step) of a held push; (0, 0) where none of this name is held."""
        with self._turn:
            return self._pushes.step_of(name)

    def drop_held(self) -> None:
        """Forgets the pushes that wait for others of their step; who waits for them in this process is told so."""
        with self._turn:
            self._reset(self._pushes.clients())

    def stats(self) -> Mapping[str, TableStats]:
        """Size by table."""
        return {t.name: TableStats(*self.store.size(t.name)) for t in self.tables()}

    def export_rows(self, table: str, partition: int) -> RowBlock:
        """See `RowStorage.export_rows`."""
        return RowBlock(*self.store.export_rows(table, partition))

    def reserve_rows(self, table: str, rows: int, partitions: Sequence[int] | None = None) -> None:
        """See `RowStorage.reserve_rows`. `partitions`: only in these, which hold their share of the rows."""
        self.store.reserve_rows(table, rows, partitions)

    def import_rows(self, table: str, block: RowBlock) -> None:
        """See `RowStorage.import_rows`."""
        self.store.import_rows(table, block.ids, block.values, block.state)

    def erase(self, table: str, ids: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> int:
        """Removes rows for good; a gradient that comes for one later is refused as MISSING_ROW."""
        return self.store.erase(table, ids)

    def clear(self) -> None:
        """See `RowStorage.clear`."""
        with self._turn:
            self.store.clear()
            self._reset({})

    def clients(self) -> dict[int, tuple[int, int]]:
        """See `RowStorage.clients`."""
        with self._turn:
            return self._pushes.clients()

    def set_clients(self, clients: Mapping[int, tuple[int, int]]) -> None:
        """See `RowStorage.set_clients`."""
        with self._turn:
            self._reset(clients)

    def _reset(self, clients: Mapping[int, Name]) -> None:
        for client, name in self._pushes.reset(clients):
            if (client, name) in self._waiting:
                self._waiting[client, name] = DROPPED
        self._turn.notify_all()
