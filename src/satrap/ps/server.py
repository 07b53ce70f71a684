"""A parameter server: one socket, one thread, one store.

clients ──► ROUTER socket ──► decode ──► Handler ──► native store ──► encode ──► ROUTER socket ──► clients
                   libzmq's thread      the thread that serves           libzmq's thread
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import zmq

from satrap.errors import ServiceError, WireError
from satrap.ps.handling import Answer, Handler
from satrap.ps.keys import Role, ServerKeys
from satrap.ps.local import LocalService
from satrap.ps.zap import Admission, role_of
from satrap.schema import Table
from satrap.store import keep_freed_memory
from satrap.wire import Code, Limits, decode, encode, request_of


class Server:
    """Serves the rows that it owns under a placement to clients (`RemoteService`).

    It listens on this machine alone unless it is given keys. All methods may be called from any thread.

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
        bind: str = "tcp://127.0.0.1:*",
        index: int = 0,
        epoch: int = 0,
        keys: ServerKeys | None = None,
        insecure: bool = False,
        store: LocalService | None = None,
        limits: Limits | None = None,
    ) -> None:
        """Binds the socket; requests wait until `start` or `serve_forever`.

        Args:
            tables: with their optimizers filled in (`Job.resolved_tables`). seed, partitions: the job's.
            threads: of one lookup or update. None: the cores this process may use.
            bind: ZeroMQ address; `*` for the port takes a free one, see `address`.
            index: this server's number in the placement. epoch: the placement's.
            keys: clients must prove one of its roles. None: whoever reaches the address may do everything.
            insecure: takes an address that other machines reach without keys.
            store: rows of an earlier server to go on with, of the same tables. None: a new, empty one.
            limits: how large a message may be.

        Raises:
            ServiceError: the address is in use, is no address, or asks for keys; or `store` has other tables.
        """
        if keys is None and not insecure and not is_loopback(bind):
            raise ServiceError(
                f"{bind} can be reached from other machines: give the server keys (`satrap keys new`), or say that "
                "everyone there may read and change the model (insecure)"
            )
        if store is not None and (tuple(store.tables()) != tuple(tables) or store.partitions != partitions):
            raise ServiceError(f"server {index}: the rows to go on with are of other tables or partitions")
        self.service = store or LocalService(tables, seed=seed, partitions=partitions, threads=threads)
        """The rows. May be used in this process beside the clients."""
        self._handler = Handler(self.service, seed=seed, index=index, epoch=epoch)
        self._limits = limits or Limits()
        self._keys, self._index = keys, index
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
            try:
                while True:
                    self._run_commands()
                    if self._handler.stopping:
                        break
                    if not self._receive():
                        poller.poll()
                        self._drain_wakes()
            finally:
                self._ended.set()
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
        begun = time.perf_counter()
        answers = handler.handle(sender, request, role)
        handler.meters.took(type(request).__name__, time.perf_counter() - begun, sum(len(f) for f in frames))
        self._send(answers)

    def _send(self, answers: list[Answer]) -> None:
        for receiver, message in answers:
            frames = encode(message)
            self._handler.meters.bytes_out += sum(memoryview(f).nbytes for f in frames)
            self._socket.send_multipart([receiver, *frames], copy=False)


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
