"""The parameter service over S servers: each batch divided among them, every part sent before an answer is awaited.

U unique ids of a table in a request, D its dimension, P partitions, S servers.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from satrap.errors import ServiceError, StoreError
from satrap.ps.exchange import Exchange, Patience
from satrap.ps.keys import ClientKeys
from satrap.ps.packing import Directory
from satrap.ps.placement import Placement
from satrap.ps.protocol import Ack, PullRequest, PushRequest, Rows
from satrap.ps.remote_pull import PendingPull, Pulling
from satrap.ps.remote_push import Pushing
from satrap.ps.remote_rows import RemoteRows
from satrap.ps.routing import Routes
from satrap.ps.server import is_loopback
from satrap.schema import Job, Table
from satrap.store import Store
from satrap.wire import Hello, Limits, Moved, Welcome

T_co = TypeVar("T_co", covariant=True)


class Pending(Protocol[T_co]):
    """A request under way. `result` waits for the answer; ask for it once, from any thread."""

    def result(self) -> T_co:
        """The answer, or the error."""


class RemoteService(RemoteRows):
    """Implements `ParameterService` and `RowStorage` on servers (`Server`).

    Thread-safe; `pull` and `push` may be called from several threads, but the pushes of one client in the order of
    their names. It begins to connect at once, and says hello with the first request.

    >>> import numpy as np
    >>> from satrap.ps import Server
    >>> from satrap.schema import SGD
    >>> tables = [Table(name="user", dim=2, optimizer=SGD(lr=0.5))]
    >>> with Server(tables, seed=0, partitions=8, threads=1) as server:
    ...     with RemoteService(tables, Placement.even([server.address], 8), seed=0) as service:
    ...         ids = {"user": np.array([5], np.uint64)}
    ...         rows = service.pull(PullRequest(ids=ids, create=True))
    ...         push = PushRequest(client=0, epoch=0, seq=1, ids=ids, gradients={"user": np.ones((1, 2), np.float32)})
    ...         service.push(push).applied, service.push(push).duplicate
    (1, True)
    """

    def __init__(
        self,
        tables: Sequence[Table],
        placement: Placement,
        *,
        seed: int,
        client: int = 0,
        deadline_s: float = 30.0,
        patience: Patience | None = None,
        keys: ClientKeys | None = None,
        insecure: bool = False,
        limits: Limits | None = None,
    ) -> None:
        """Args:
            tables: with their optimizers filled in (`Job.resolved_tables`); those of the servers. seed: the job's.
            client: the number under which this process pushes.
            deadline_s: how long a server may take to answer before it is called unreachable. patience: all other
                waiting.
            keys: of the role this process has.
            insecure: connects to other machines without keys.
            limits: how large an answer may be.

        Raises:
            ServiceError: an address is none, or asks for keys.
        """
        open_ones = [a for a in placement.addresses if not is_loopback(a)]
        if keys is None and open_ones and not insecure:
            raise ServiceError(
                f"{open_ones[0]} is another machine: give the client keys (`satrap keys new`), or say that rows and "
                "gradients may travel unprotected (insecure)"
            )
        directory = Directory.of(tables)
        # Shapes and dtypes are checked before anything is sent, by the checks the store itself would make.
        self._shapes = Store(tables, seed=seed, partitions=1, threads=1)
        self._client = client
        self._routes = Routes(directory, placement)
        self._order = threading.RLock()
        who = f"client {client} (pid {os.getpid()} on {socket.gethostname()})"
        exchange = Exchange(
            placement.addresses,
            Hello(client=client, fingerprint=directory.fingerprint(seed), who=who, placement=placement.number),
            deadline_s=deadline_s,
            patience=patience or Patience(),
            limits=limits or Limits(),
            keys=keys,
            welcome=self._check_welcome,
        )
        super().__init__(exchange, directory, self._routes, self._shapes, patience or Patience(), self._go_by)
        self._pulling = Pulling(exchange, directory, self._routes)
        self._pushing = Pushing(exchange, directory, self._routes, self._go_by)

    @classmethod
    def of(cls, job: Job, placement: Placement, *, client: int = 0, keys: ClientKeys | None = None) -> RemoteService:
        """A client of the servers of a job."""
        return cls(job.resolved_tables(), placement, seed=job.seed, client=client, keys=keys)

    @property
    def placement(self) -> Placement:
        """Which server owns which partition, as far as it knows."""
        return self._routes.placement

    def relocate(self, placement: Placement) -> None:
        """Reaches servers where this placement has them: one is back elsewhere, with all it had acknowledged. What
        it has not answered yet is asked there again. Does not wait."""
        self._exchange.reach(placement.number, placement.addresses)

    def _go_by(self, moved: Moved) -> None:
        """Goes by a newer placement, once all that was sent by the one before is settled. Nothing is sent meanwhile."""
        with self._order:
            if self._routes.follow(moved):
                self._exchange.reach(moved.number, moved.addresses)
            self._pushing.settle_all()

    def watch(self, on_answer: Callable[[int, str, float], None]) -> None:
        """Has each answer told to a function: server, kind of request, seconds. It is called by whichever thread takes
        the answer, and must neither wait nor ask this service anything."""
        self._exchange.on_answer = on_answer

    def under_way(self, server: int) -> int:
        """Requests to a server that wait for their answers."""
        return self._exchange.under_way(server)

    @property
    def resent(self) -> int:
        """Requests sent again so far, because no answer came in time."""
        return self._exchange.resent

    def pull(self, request: PullRequest) -> Rows:
        """See `ParameterService.pull`. Raises also ServiceError and its kinds; values may be read-only."""
        return self.submit_pull(request).result()

    def push(self, request: PushRequest) -> Ack:
        """See `ParameterService.push`. Raises also ServiceError and its kinds; after ServerUnreachable the same push
        may be tried again, and is applied once all the same."""
        return self.submit_push(request).result()

    def submit_pull(self, request: PullRequest) -> Pending[Rows]:
        """Sends a pull and returns at once. Its rows have seen every push that this object sent before."""
        ids = dict(request.ids)
        self._shapes.check_ids(ids, distinct=request.distinct)
        return self._send_pull(ids, request.create)

    def _send_pull(self, ids: dict[str, NDArray[np.uint64]], create: bool) -> PendingPull:
        def again(moved: Moved, rest: Mapping[str, NDArray[np.uint64]]) -> PendingPull:
            self._go_by(moved)
            return self._send_pull(dict(rest), create)

        with self._order:
            return self._pulling.submit(ids, create, self._pushing.unanswered(self._client), again)

    def submit_push(self, request: PushRequest) -> Pending[Ack]:
        """Sends a push and returns at once. Its arrays must not change until it is answered."""
        if request.merge < 1:
            raise StoreError(f"a push merges 1 or more, got {request.merge}")
        self._shapes.check_push(
            dict(request.ids),
            dict(request.gradients),
            None if request.versions is None else dict(request.versions),
            lr_factor=request.lr_factor,
            distinct=request.distinct,
        )
        with self._order:
            return self._pushing.submit(request)

    def clear(self) -> None:
        """See `RowStorage.clear`."""
        super().clear()
        with self._order:
            self._pushing.forget()

    def set_clients(self, clients: Mapping[int, tuple[int, int]]) -> None:
        """See `RowStorage.set_clients`."""
        super().set_clients(clients)
        with self._order:
            self._pushing.forget()

    def close(self) -> None:
        """Ends the connections. Requests under way fail; the servers go on."""
        self._exchange.close()

    def __enter__(self) -> RemoteService:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _check_welcome(self, server: int, welcome: Welcome) -> None:
        where = self._exchange.where(server)
        if welcome.server != server:
            raise ServiceError(f"{where} says it is server {welcome.server}: the placement has the addresses mixed up")
        if welcome.partitions != self._routes.placement.partitions:
            raise ServiceError(
                f"{where} cuts tables into {welcome.partitions} partitions, the placement into "
                f"{self._routes.placement.partitions}; start both from one job (store.partitions)"
            )
