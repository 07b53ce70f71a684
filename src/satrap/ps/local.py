"""The parameter service of one process: the native store behind the protocol."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from satrap.errors import ServiceError
from satrap.ps.cut import RowCut
from satrap.ps.heat import Heat
from satrap.ps.noting import Notes, NotingStore, Watcher
from satrap.ps.protocol import Ack, PullRequest, PushRequest, RowBlock, Rows, TableStats
from satrap.ps.pushes import MissingPush, Name, Pushes
from satrap.schema import Job, Table
from satrap.store import Store, blank_bound

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

    def __init__(
        self,
        tables: Sequence[Table],
        *,
        seed: int,
        partitions: int = 64,
        threads: int | None = None,
        memory: int | None = None,
        cold_folder: str | None = None,
    ) -> None:
        """`memory`, `cold_folder`: see `store` of the job."""
        self.store = Store(
            tables, seed=seed, partitions=partitions, threads=threads, memory=memory, cold_folder=cold_folder
        )
        self.timed = any(t.expire is not None and t.expire.seconds is not None for t in tables)
        """Whether rows go by the clock."""
        self.now: Callable[[], float] = time.time
        """Seconds since 1970, which they go by; tests have another."""
        self.life = secrets.randbits(63) | 1
        """Names these rows: another service, or the same one started anew and empty, has another number."""
        self._turn = threading.Condition()
        self.pushes = Pushes(self.store)
        self._waiting: dict[tuple[int, Name], Ack | None] = {}
        self._watchers: list[Watcher] = []
        self._guard = threading.Condition(threading.RLock())
        """Held while watchers are told of a change and it is made."""
        self._cut: RowCut | None = None

    @contextmanager
    def through(self, store: Store) -> Iterator[None]:
        """Reaches its rows through another view of its store meanwhile."""
        own = self.store
        self.store = self.pushes.store = store
        try:
            yield
        finally:
            self.store = self.pushes.store = own

    @classmethod
    def of(cls, job: Job) -> LocalService:
        """The tables of a job, empty."""
        own = job.store
        return cls(
            job.resolved_tables(),
            seed=job.seed,
            partitions=own.partitions,
            threads=own.threads,
            memory=own.memory,
            cold_folder=own.cold_folder,
        )

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
        if not (request.versions or request.create):
            return Rows(values=self.store.lookup_many(ids), versions={})
        if self.timed and request.create:
            self.store.clock = int(self.now())
        values, versions, hints = self.store.pull_many(ids, create=request.create)
        return Rows(values=values, versions=versions, hints=hints)

    def prefetch(self, ids: Mapping[str, np.ndarray[tuple[int], np.dtype[np.uint64]]]) -> None:
        """Says which rows will soon be pulled, so that a disk they may lie on begins to read them."""
        self.store.prefetch(dict(ids))

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

    def offer(
        self,
        push: PushRequest,
        previous: Name | None = None,
        request: int | None = None,
        before: Callable[[], None] | None = None,
    ) -> Mapping[int, Ack]:
        """`push` without waiting, for who serves many clients in one thread: see `Pushes.offer`."""
        name = (push.epoch, push.seq)
        with self._turn:
            acks = self.pushes.offer(push, previous, request, before)
            for client, ack in acks.items():
                if (client, name) in self._waiting:
                    self._waiting[client, name] = ack
                    self._turn.notify_all()
        return acks

    def kept(self, client: int, name: Name, request: int) -> Ack | None:
        """See `Pushes.kept`."""
        with self._turn:
            return self.pushes.kept(client, name, request)

    def hand_back(self) -> list[tuple[int, Name, int | None]]:
        """See `Pushes.hand_back`; who waits in this process is told that it was dropped."""
        with self._turn:
            back = self.pushes.hand_back()
            self._drop((client, name) for client, name, _ in back)
            return back

    def last_in(self, partition: int) -> dict[int, Name]:
        """See `Pushes.last_in`."""
        with self._turn:
            return self.pushes.last_in(partition)

    def take_in(self, partition: int, clients: Mapping[int, Name]) -> None:
        """See `Pushes.take_in`."""
        with self._turn:
            self.pushes.take_in(partition, clients)

    def late(self) -> set[int]:
        """See `Pushes.late`."""
        with self._turn:
            return self.pushes.late

    def note(self, partition: int | None = None) -> Notes:
        """Has the ids noted that change from now on, of one partition or of all, until `stop_noting`."""
        notes = Notes(self.store, partition)
        self._watch(notes)
        return notes

    def stop_noting(self, notes: Notes) -> None:
        """Ends `note`."""
        self._unwatch(notes)

    def _watch(self, watcher: Watcher) -> None:
        with self._turn, self._guard:
            if not isinstance(self.store, NotingStore):
                self.store = self.pushes.store = NotingStore(self.store, self._watchers, self._guard)
            self._watchers.append(watcher)

    def _unwatch(self, watcher: Watcher) -> None:
        with self._guard:
            if watcher in self._watchers:
                self._watchers.remove(watcher)

    def cut(self, *, waits: bool = True, aside_bytes: int | None = None) -> RowCut:
        """See `Cuttable.cut`. `waits`, `aside_bytes`: see `RowCut`."""
        if self._cut is not None:
            self._cut.close()
        cut = RowCut(
            self.store.plain if isinstance(self.store, NotingStore) else self.store,
            self._guard,
            stats=self.stats(),
            clients=self.clients(),
            export=self.export_rows,
            waits=waits,
            aside_bytes=aside_bytes,
            closed=self._unwatch,
        )
        self._watch(cut)
        self._cut = cut
        return cut

    def read_rows(self, table: str, ids: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> RowBlock:
        """Those of these ids that have a row, whole."""
        ids, values, state, marks = self.store.read_rows(table, ids)
        return RowBlock(ids, values, state, marks if table in self.store.bounded else None)

    def watch(self, heat: Heat) -> None:
        """Has every step told to a measure of staleness by heat."""
        with self._turn:
            self.pushes.heat = heat

    def need(self, client: int, name: Name) -> None:
        """Raises MissingPush unless this push of the client has come: it is applied, or waits for others."""
        with self._turn:
            last = self.pushes.received(client)
        if last is None or name > last:
            raise MissingPush(name, last)

    @property
    def held(self) -> int:
        """Pushes that wait for others of their step."""
        with self._turn:
            return self.pushes.held

    def step_of(self, name: Name) -> tuple[int, int]:
        """(pushes that are there, pushes of the step) of a held push; (0, 0) where none of this name is held."""
        with self._turn:
            return self.pushes.step_of(name)

    def drop_held(self) -> None:
        """Forgets the pushes that wait for others of their step; who waits for them in this process is told so."""
        with self._turn:
            self._reset(self.pushes.clients())

    def stats(self) -> Mapping[str, TableStats]:
        """Size by table."""
        store = self.store
        none = (0, 0, 0, 0)
        return {
            n: TableStats(
                *store.size(n),
                *(store.bound_counts(n) if n in store.bounded else none),
                store.cold_counts(n) if n in store.cold else None,
            )
            for n in store.names
        }

    def export_rows(self, table: str, partition: int) -> RowBlock:
        """See `RowStorage.export_rows`."""
        ids, values, state, marks = self.store.export_rows(table, partition)
        if table not in self.store.bounded:
            return RowBlock(ids, values, state)
        return RowBlock(ids, values, state, marks, self.store.export_bound(table, partition))

    def reserve_rows(self, table: str, rows: int, partitions: Sequence[int] | None = None) -> None:
        """See `RowStorage.reserve_rows`. `partitions`: only in these, which hold their share of the rows."""
        self.store.reserve_rows(table, rows, partitions)

    def import_rows(self, table: str, block: RowBlock) -> None:
        """See `RowStorage.import_rows`."""
        self.store.check_rows(table, block.ids, block.values, block.state)
        if block.bound is not None:
            self.store.import_bound(table, block.bound)
        self.store.import_rows(table, block.ids, block.values, block.state, block.marks)

    def import_many(self, table: str, blocks: Sequence[RowBlock], *, later: bool = False) -> None:
        """`import_rows` of one block after another, the faster where rows of several partitions are in them. What a
        bounded table keeps beside its rows must come with all rows of its partition, and with them alone.

        `later`: with what has changed since the blocks imported before, see `Store.advance_bound`.
        """
        if not blocks:
            return
        for block in blocks:
            self.store.check_rows(table, block.ids, block.values, block.state)
        for block in blocks:
            if block.bound is not None:
                (self.store.advance_bound if later else self.store.import_bound)(table, block.bound)
        self.store.import_many(table, [(b.ids, b.values, b.state, b.marks) for b in blocks])

    def erase(self, table: str, ids: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> int:
        """Removes rows for good; a gradient that comes for one later is refused as MISSING_ROW."""
        return self.store.erase(table, ids)

    def forget_bound(self, table: str, partition: int) -> None:
        """Has a bounded table keep nothing for a partition beside its rows, as when it began."""
        self.store.import_bound(table, blank_bound(self.store.export_bound(table, partition)))

    def clear(self) -> None:
        """See `RowStorage.clear`."""
        if self._cut is not None:
            self._cut.lose("the rows were cleared")
        with self._turn:
            self.store.clear()
            if self.pushes.heat is not None:
                self.pushes.heat.forget()
            self._reset({})

    def clients(self) -> dict[int, tuple[int, int]]:
        """See `RowStorage.clients`."""
        with self._turn:
            return self.pushes.clients()

    def newest(self) -> dict[int, tuple[int, int]]:
        """See `Pushes.newest`."""
        with self._turn:
            return self.pushes.newest()

    def set_clients(self, clients: Mapping[int, tuple[int, int]]) -> None:
        """See `RowStorage.set_clients`."""
        with self._turn:
            self._reset(clients)

    def _reset(self, clients: Mapping[int, Name]) -> None:
        self._drop(self.pushes.reset(clients))

    def _drop(self, pushes: Iterable[tuple[int, Name]]) -> None:
        for client, name in pushes:
            if (client, name) in self._waiting:
                self._waiting[client, name] = DROPPED
        self._turn.notify_all()
