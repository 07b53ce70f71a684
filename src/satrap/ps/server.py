"""A parameter server: one socket, one thread, one store.

clients ──► ROUTER socket ──► decode ──► Handler ──► native store ──► encode ──► ROUTER socket ──► clients
                   libzmq's thread      the thread that serves           libzmq's thread
"""

from __future__ import annotations

import contextlib
import ipaddress
import secrets
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, TypeVar

import zmq

from satrap.errors import ServiceError, WireError
from satrap.ps.handling import MOVES, RECORDED, Answer, Handler
from satrap.ps.keeper import Commits, Keeper, Keeping
from satrap.ps.keys import Role, ServerKeys
from satrap.ps.local import LocalService
from satrap.ps.recovery import Recovered
from satrap.ps.snapshots import Snapshots, Stopped
from satrap.ps.zap import Admission, role_of
from satrap.schema import Table
from satrap.store import keep_freed_memory
from satrap.wire import Code, Limits, Message, Pull, Push, decode, encode, request_of

T = TypeVar("T")

TEND_MS = 200
"""How often a cut is looked after while no requests come."""


class Server:
    """Serves the rows that it owns under a placement to clients (`RemoteService`).

    It listens on this machine alone unless it is given keys; `bind_at` names the fastest way to. All methods
    may be called from any thread.

    >>> from satrap.schema import SGD
    >>> with Server([Table(name="user", dim=4, optimizer=SGD())], seed=0, partitions=8, threads=1) as server:
    ...     server.address.startswith("tcp://127.0.0.1:")
    True
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
        bind: str = "tcp://127.0.0.1:*",
        index: int = 0,
        epoch: int = 0,
        keys: ServerKeys | None = None,
        insecure: bool = False,
        store: LocalService | None = None,
        limits: Limits | None = None,
        keeping: Keeping | None = None,
    ) -> None:
        """Binds the socket; requests wait until `start` or `serve_forever`.

        Args:
            tables: with their optimizers filled in (`Job.resolved_tables`). seed, partitions: the job's.
            threads: of one lookup or update. None: the cores this process may use.
            cold_folder: of rows that go to disk. None: the system's folder for temporary files.
            memory: bytes this process may use; tables do not grow beyond it. None: what there is, less a margin.
            bind: ZeroMQ address; `*` for the port takes a free one, see `address`.
            index: this server's number in the placement. epoch: the placement's.
            keys: clients must prove one of its roles. None: whoever reaches the address may do everything.
            insecure: takes an address that other machines reach without keys.
            store: rows of an earlier server to go on with, of the same tables. None: a new, empty one.
            limits: how large a message may be.
            keeping: where its history is kept, and brought back from: a server that was killed goes on with everything
                it had acknowledged, under the life it had. `service` must then not be changed beside the clients.

        Raises:
            ServiceError: the address is in use, is no address, or asks for keys; or `store` has other tables.
            JournalError: the history is another's, in use or damaged, or cannot be kept there.
        """
        if keys is None and not insecure and not is_loopback(bind):
            raise ServiceError(
                f"{bind} can be reached from other machines: give the server keys (`satrap keys new`), or say that "
                "everyone there may read and change the model (insecure)"
            )
        if store is not None and (tuple(store.tables()) != tuple(tables) or store.partitions != partitions):
            raise ServiceError(f"server {index}: the rows to go on with are of other tables or partitions")
        self.service = store or LocalService(
            tables, seed=seed, partitions=partitions, threads=threads, memory=memory, cold_folder=cold_folder
        )
        """The rows. May be used in this process beside the clients."""
        self._handler = Handler(self.service, seed=seed, index=index, epoch=epoch)
        self._limits = limits or Limits()
        self._keeper: Keeper | None = None
        self._later: deque[tuple[int, list[Answer]]] = deque()
        """Answers that wait until the journal is on disk up to a position."""
        if keeping is not None:
            if store is not None:
                raise ServiceError(f"server {index}: rows come from the history in {keeping.folder}, or from `store`")
            keep_freed_memory()  # each record that is replayed is read into as much as the one before
            self._keeper = Keeper(keeping, self._handler, index, self._limits)
        self._commits: Commits | None = None
        self._snapshots: Snapshots | None = None
        self._keys, self._index = keys, index
        self._held_up: deque[tuple[bytes, Message, Role, int]] = deque()
        """What would change rows while there is no room to keep them for a cut."""
        self._commands: deque[Callable[[], list[Answer]]] = deque()
        self._woken, self._waker = socket.socketpair()
        self._woken.setblocking(False)
        self._waker.setblocking(False)
        self._ended = threading.Event()
        self._serving = threading.Lock()
        self._thread: threading.Thread | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self._admission = None if keys is None else Admission(self._context, keys)
        try:
            self._socket = self._bound(bind)
        except zmq.ZMQError as e:
            self._context.destroy(linger=0)
            if self._keeper is not None:
                self._keeper.close()
            raise ServiceError(f"server {index} cannot listen on {bind}: {e.strerror}") from e
        self.address = endpoint_of(self._socket)
        """Where clients connect, with the port filled in."""

    def _bound(self, bind: str) -> Any:
        s = self._context.socket(zmq.ROUTER)
        s.linger = 2000  # answers that are under way when it stops
        s.set_hwm(0)
        s.setsockopt(zmq.MAXMSGSIZE, self._limits.frame_bytes)
        if self._admission is not None and self._keys is not None:
            self._admission.start()
            s.curve_server = True
            s.curve_publickey, s.curve_secretkey = self._keys.own.public.encode(), self._keys.own.secret.encode()
            s.zap_domain = b"satrap"
        s.bind(bind)
        return s

    def serve_forever(self) -> None:
        """Answers requests in this thread until `stop`, or until an admin asks it to stop. The process keeps the memory
        that requests free for those to come."""
        keep_freed_memory()
        with self._serving:
            if self._ended.is_set():
                return
            poller = zmq.Poller()
            poller.register(self._socket, zmq.POLLIN)
            poller.register(self._woken, zmq.POLLIN)
            self._start_keeping()
            try:
                while True:
                    self._run_commands()
                    if self._handler.stopping:
                        break
                    if not self._receive():
                        poller.poll(TEND_MS if self._handler.cut.open else None)
                        self._drain_wakes()
                    self._tend_cut()
            finally:
                self._ended.set()
                self._stop_keeping()
                self._socket.close()
                self._context.term()
                if self._admission is not None:
                    self._admission.join()

    def start(self) -> Server:
        """Answers requests in a thread of its own until `stop`. Returns itself."""
        self._thread = threading.Thread(target=self.serve_forever, name=f"satrap-server-{self._index}", daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Ends the server after the request it is at; its rows stay in `service`. Returns when it has ended."""

        def stop() -> list[Answer]:
            self._handler.stopping = True
            return []

        if self._thread is None and not self._serving.locked():
            # Nobody serves: the socket is closed here.
            self._handler.stopping = True
            self.serve_forever()
            return
        self._command(stop)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        else:
            self._ended.wait()

    def advance(self, epoch: int) -> None:
        """Goes by the placement of this epoch from now on: requests of an earlier start of the job are refused, and
        their pushes that wait for others are dropped. Raises ServiceError for an epoch before the present one."""
        if epoch < self._handler.epoch:
            raise ServiceError(f"server {self._index} goes by placement {self._handler.epoch}; {epoch} is older")
        if self._thread is None and not self._serving.locked():
            self._handler.advance(epoch)
            return
        self._command(lambda: self._handler.advance(epoch))

    def renew(self, epoch: int) -> None:
        """`advance`, and then without any rows: they are to come back from elsewhere."""
        if self._thread is None and not self._serving.locked():
            self._handler.renew(epoch)
            return
        answers = self._ask(lambda: self._handler.renew(epoch))
        self._command(lambda: answers)

    @property
    def epoch(self) -> int:
        """Of the placement it goes by."""
        return self._handler.epoch

    @property
    def life(self) -> int:
        """Names the rows: a server that lost them has another number."""
        return self.service.life

    def metrics(self) -> str:
        """What it has done so far, in the text format of Prometheus."""
        return self._handler.metrics_text()

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _command(self, command: Callable[[], list[Answer]]) -> None:
        """Has the serving thread run something."""
        self._commands.append(command)
        with contextlib.suppress(OSError):  # it is full, and will wake; or it has ended
            self._waker.send(b"\0")

    def _run_commands(self) -> None:
        while self._commands:
            self._send(self._commands.popleft()())

    def _drain_wakes(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._woken.recv(4096)

    def _receive(self) -> bool:
        """Answers one request; False where there is none."""
        try:
            sender, *frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False
        self._answer(sender.bytes, frames)
        return True

    def _answer(self, sender: bytes, frames: list[zmq.Frame]) -> None:
        handler = self._handler
        try:
            request = decode([f.buffer for f in frames], self._limits)
        except WireError as e:
            number = request_of(frames[0].buffer) if frames else 0
            self._send([(sender, handler.failure(number, Code.MALFORMED, str(e)))])
            return
        role = Role.ADMIN if self._keys is None else role_of(frames[0])
        if role is None:
            return  # no connection comes this far without a role; should one, it gets no answer
        size = sum(len(f) for f in frames)
        if isinstance(request, Pull | Push) and (self._held_up or handler.cut.full):
            handler.cut.hold_up(time.monotonic())
            self._held_up.append((sender, request, role, size))
            return
        self._handle(sender, request, role, size)

    def _tend_cut(self) -> None:
        """Ends a cut that keeps others waiting, or that nobody asks for, and does what waited for room."""
        cut = self._handler.cut
        if cut.open:
            cut.tend(time.monotonic())
        while self._held_up and not cut.full:
            self._handle(*self._held_up.popleft())
            if not self._held_up:
                cut.goes_on()

    def _handle(self, sender: bytes, request: Message, role: Role, size: int) -> None:
        handler = self._handler
        begun = time.perf_counter()
        recorded = 0 if self._keeper is None else self._keeper.journal.position
        answers = handler.handle(sender, request, role)
        handler.meters.took(type(request).__name__, time.perf_counter() - begun, size)
        if self._keeper is not None and self._keeper.waits and self._must_wait(request, recorded):
            self._later.append((self._keeper.journal.position, answers))
            assert self._commits is not None
            self._commits.want()
            return
        self._send(answers)

    # ---- history ---------------------------------------------------------------------------------------------------

    @property
    def recovered(self) -> Recovered | None:
        """What it brought back when it began; None without a history."""
        return None if self._keeper is None else self._keeper.recovered

    def snapshot(self) -> None:
        """Takes a snapshot now, in the caller's thread, which must not be the one that serves. Raises JournalError and
        OSError where it fails, with the last one intact."""
        if self._snapshots is not None:
            self._snapshots.take()

    def _start_keeping(self) -> None:
        if self._keeper is None:
            return
        self._snapshots = Snapshots(self._keeper, self._handler, self._ask)
        self._snapshots.start()
        self._handler.history_text = self._snapshots.metrics_text
        if self._keeper.keeping.level == "disk":
            self._commits = Commits(self._keeper.journal, lambda: self._command(self._synced))

    def _stop_keeping(self) -> None:
        """Ends what keeps the history, and sends the answers that waited for it."""
        if self._keeper is None or self._snapshots is None:
            return
        self._snapshots.stop()
        if self._commits is not None:
            self._commits.stop()
            self._send(self._synced())
        self._keeper.close()

    def _must_wait(self, request: Message, recorded: int) -> bool:
        """Whether the answer to a request says something that is not on disk yet: what it changed itself, or, where it
        came again, what it changed the first time."""
        assert self._keeper is not None
        return self._keeper.journal.position > recorded or isinstance(request, (Push, *RECORDED, *MOVES))

    def _synced(self) -> list[Answer]:
        """The answers that need not wait any more: as failures where the journal cannot be synced."""
        assert self._keeper is not None
        assert self._commits is not None
        answers: list[Answer] = []
        while self._later and self._later[0][0] <= self._keeper.journal.synced:
            answers += self._later.popleft()[1]
        if self._commits.error is not None:
            text = str(self._commits.error)
            for _, waiting in self._later:
                answers += [(to, self._handler.failure(m.request, Code.INTERNAL, text)) for to, m in waiting]
            self._later.clear()
        return answers

    def _ask(self, work: Callable[[], T], /) -> T:
        """Has the serving thread run something between two requests, and waits for what it returns."""
        answer: Future[T] = Future()

        def run() -> list[Answer]:
            try:
                answer.set_result(work())
            except BaseException as e:
                answer.set_exception(e)
            return []

        self._command(run)
        while True:
            with contextlib.suppress(TimeoutError):
                return answer.result(timeout=0.1)
            if self._ended.is_set():
                raise Stopped

    def _send(self, answers: list[Answer]) -> None:
        for receiver, message in answers:
            frames = encode(message)
            self._handler.meters.bytes_out += sum(memoryview(f).nbytes for f in frames)
            self._socket.send_multipart([receiver, *frames], copy=False)


def bind_at(host: str) -> str:
    """What to bind for clients that reach this machine as `host`: where that is loopback, a local socket, which moves
    the same bytes with a third less CPU time than TCP does; else TCP. A port or name is chosen that is free.

    >>> bind_at("10.0.0.1")
    'tcp://10.0.0.1:*'
    """
    if is_loopback(f"tcp://{host}:*") and sys.platform == "linux":
        # In the abstract namespace: seen by who sees the loopback device, and nothing is left of it by a process that
        # is killed.
        return f"ipc://@satrap-{secrets.token_hex(16)}"
    return f"tcp://{host}:*"


def endpoint_of(bound: Any) -> str:
    """The address of a bound ZeroMQ socket, with the port filled in."""
    endpoint: bytes = bound.last_endpoint
    return endpoint.rstrip(b"\0").decode()


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches a ZeroMQ address.

    >>> [is_loopback(a) for a in ("tcp://127.0.0.1:*", "tcp://[::1]:5", "ipc:///tmp/x", "tcp://*:5", "tcp://10.0.0.1:5")]
    [True, True, True, False, False]
    """
    scheme, _, rest = address.partition("://")
    if scheme in ("ipc", "inproc"):
        return True
    host = rest.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
