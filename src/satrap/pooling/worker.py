"""An embedding worker: one socket, a session for each NN worker, and the servers behind them.

NN workers ──► ROUTER socket ──► Session of each: dedup → pull → pool, unpool → push ──► RemoteService ──► servers
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Any

import zmq

from satrap import wire
from satrap.errors import ServiceError, WireError
from satrap.pooling.local import LocalPooler
from satrap.pooling.meters import PoolingMeters
from satrap.pooling.plan import Plan
from satrap.pooling.session import Answered, Session
from satrap.ps import ClientKeys, Patience, Placement, RemoteService, Role, ServerKeys
from satrap.ps.server import endpoint_of, is_loopback
from satrap.ps.zap import Admission, role_of
from satrap.store import Store, keep_freed_memory
from satrap.wire import Code, Failure, Join, Limits, Lookup, Message, PushPooled, decode, encode, request_of

IDLE_S = 3600.0
"""A session without a request for so long has ended: its client died without a word to anyone."""
SESSIONS_MAX = 4096
ENDED_KEPT = 4096
"""Sessions that have ended, of which the reason is kept for who comes back."""

RIGHTS: dict[type[Message], Role] = {
    wire.Metrics: Role.READER,
    Join: Role.WORKER,
    Lookup: Role.WORKER,
    PushPooled: Role.WORKER,
    wire.Stop: Role.ADMIN,
}
"""The least role that may ask. What is not here is no request."""

Answers = list[tuple[bytes, Message]]


class EmbeddingWorker:
    """Looks batches up for NN workers (`RemotePooler`) and pushes their gradients to the servers, under their names.

    To NN workers it is a server, to servers a client for each of them. It listens on this machine alone unless it is
    given keys. All methods may be called from any thread.

    >>> from satrap.ps import Server
    >>> from satrap.schema import Categorical, Data, Job, Label
    >>> job = Job(data=Data(train=("a.parquet",), label=(Label(column="y"),)), features=(Categorical(name="city"),))
    >>> plan = Plan.of(job)
    >>> with Server(plan.tables, seed=job.seed, partitions=8, threads=1) as server:
    ...     with EmbeddingWorker(plan, Placement.even([server.address], 8), threads=1) as worker:
    ...         worker.address.startswith("tcp://127.0.0.1:")
    True
    """

    def __init__(
        self,
        plan: Plan,
        placement: Placement,
        *,
        threads: int | None = None,
        bind: str = "tcp://127.0.0.1:*",
        index: int = 0,
        keys: ServerKeys | None = None,
        own_keys: ClientKeys | None = None,
        insecure: bool = False,
        deadline_s: float = 30.0,
        patience: Patience | None = None,
        limits: Limits | None = None,
        idle_s: float = IDLE_S,
    ) -> None:
        """Binds the socket; requests wait until `start` or `serve_forever`.

        Args:
            placement: where the servers are.
            threads: of one ticket, pooling or unpooling. None: the cores this process may use.
            bind: ZeroMQ address; `*` for the port takes a free one, see `address`.
            index: this embedding worker's number.
            keys: NN workers must prove one of its roles. own_keys: of the role of a worker, for the servers.
            insecure: takes an address that other machines reach, and servers on them, without keys.
            deadline_s, patience: towards servers, as `RemoteService` has them.
            limits: how large a message may be. idle_s: until a session without a request is taken to have ended.

        Raises:
            ServiceError: the address is in use, is no address, or asks for keys.
        """
        if keys is None and not insecure and not is_loopback(bind):
            raise ServiceError(
                f"{bind} can be reached from other machines: give embedding worker {index} keys (`satrap keys new`), "
                "or say that everyone there may read and change the model (insecure)"
            )
        self._plan, self._placement, self._index = plan, placement, index
        self._fingerprint = plan.fingerprint()
        self._kernels = Store(plan.tables, seed=plan.seed, partitions=1, threads=threads)
        self._service: dict[str, Any] = {
            "seed": plan.seed,
            "deadline_s": deadline_s,
            "patience": patience,
            "keys": own_keys,
            "insecure": insecure,
            "limits": limits,
        }
        self._limits, self._keys, self._idle_s = limits or Limits(), keys, idle_s
        self.life = secrets.randbits(63) | 1
        """Names what it keeps: an embedding worker started anew has another number."""
        self.meters = PoolingMeters()
        self._sessions: dict[int, Session] = {}
        self._ended: OrderedDict[int, str] = OrderedDict()
        self._stopping = False
        self._out: deque[Answered | Callable[[], Answers]] = deque()
        self._woken, self._waker = socket.socketpair()
        self._woken.setblocking(False)
        self._waker.setblocking(False)
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self._admission = None if keys is None else Admission(self._context, keys)
        try:
            self._socket = self._bound(bind)
        except zmq.ZMQError as e:
            self._context.destroy(linger=0)
            raise ServiceError(f"embedding worker {index} cannot listen on {bind}: {e.strerror}") from e
        self.address = endpoint_of(self._socket)
        """Where NN workers connect, with the port filled in."""

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

    def start(self) -> EmbeddingWorker:
        """Answers requests in a thread of its own until `stop`. Returns itself."""
        self._thread = threading.Thread(
            target=self.serve_forever, name=f"satrap-embedding-worker-{self._index}", daemon=True
        )
        self._thread.start()
        return self

    def stop(self) -> None:
        """Ends it; requests under way fail. Returns when it has ended."""

        def stop() -> Answers:
            self._stopping = True
            return []

        if self._thread is None:
            self._stopping = True
            self.serve_forever()
            return
        self._later(stop)
        self._thread.join()

    def renew(self, placement: Placement) -> None:
        """Goes by another placement from now on: all sessions end, and requests of an earlier start of the job are
        refused. Raises ServiceError for an epoch before the present one."""
        if placement.epoch < self._placement.epoch:
            raise ServiceError(
                f"embedding worker {self._index} goes by placement {self._placement.epoch}; {placement.epoch} is older"
            )

        def renew() -> Answers:
            self._placement = placement
            return [a for number in list(self._sessions) for a in self._end(number, "the job has begun anew")]

        if self._thread is None:
            renew()
        else:
            self._later(renew)

    def relocate(self, placement: Placement) -> None:
        """Reaches servers where this placement of the same start has them: one has come back elsewhere."""
        self._placement = placement
        for session in list(self._sessions.values()):
            session.relocate(placement)

    def metrics(self) -> str:
        """What it has done so far, in the text format of Prometheus."""
        sessions = list(self._sessions.values())
        return self.meters.text(
            kept=sum(s.kept for s in sessions), under_way=sum(s.under_way for s in sessions), sessions=len(sessions)
        )

    def __enter__(self) -> EmbeddingWorker:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def serve_forever(self) -> None:
        """Answers requests in this thread until `stop`, or until an admin asks it to stop."""
        keep_freed_memory()
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._woken, zmq.POLLIN)
        try:
            while not self._stopping:
                self._send_all()
                if not self._stopping and not self._receive():
                    poller.poll(int(1000 * min(60.0, self._idle_s)))
                    with contextlib.suppress(BlockingIOError):
                        self._woken.recv(4096)
                    self._end_idle()
        finally:
            ended = list(self._sessions.values())
            for number in list(self._sessions):
                self._send(self._end(number, "it was stopped"))
            for s in ended:
                s.join()
            self._socket.close()
            self._context.term()
            if self._admission is not None:
                self._admission.join()
            self._over.set()

    # ---- the socket's thread ---------------------------------------------------------------------------------------

    def _later(self, item: Answered | Callable[[], Answers]) -> None:
        """Has the socket's thread send an answer, or run something. From any thread."""
        self._out.append(item)
        with contextlib.suppress(OSError):  # it is full, and will wake; or it has ended
            self._waker.send(b"\0")

    def _send_all(self) -> None:
        while self._out:
            item = self._out.popleft()
            if isinstance(item, Answered):
                self.meters.answered(item)
                self._send([(item.sender, item.message)])
            else:
                self._send(item())

    def _send(self, answers: Answers) -> None:
        for receiver, message in answers:
            if isinstance(message, Failure):
                self.meters.common.failures[message.code.name.lower()] += 1
            frames = encode(message)
            self.meters.common.bytes_out += sum(memoryview(f).nbytes for f in frames)
            self._socket.send_multipart([receiver, *frames], copy=False)

    def _receive(self) -> bool:
        """Takes one request; False where there is none."""
        try:
            sender, *frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False
        self.meters.common.bytes_in += sum(len(f) for f in frames)
        try:
            request = decode([f.buffer for f in frames], self._limits)
        except WireError as e:
            number = request_of(frames[0].buffer) if frames else 0
            self._send([(sender.bytes, self._seal(Failure(code=Code.MALFORMED, text=str(e)), number))])
            return True
        role = Role.ADMIN if self._keys is None else role_of(frames[0])
        if role is not None:  # no connection comes this far without one
            self._send(self._handle(sender.bytes, request, role))
        return True

    def _seal(self, answer: Message, request: int) -> Message:
        return replace(answer, request=request, life=self.life, placement=self._placement.epoch)

    def _refused(self, request: Message, code: Code, text: str) -> Message:
        return self._seal(Failure(code=code, text=text), request.request)

    def _handle(self, sender: bytes, m: Message, role: Role) -> Answers:
        refusal = self._refusal(m, role)
        if refusal is not None:
            return [(sender, refusal)]
        if isinstance(m, wire.Metrics):
            return [(sender, self._seal(wire.MetricsReply(text=self.metrics()), m.request))]
        if isinstance(m, wire.Stop):
            self._stopping = True
            return [(sender, self._seal(wire.Done(), m.request))]
        assert isinstance(m, Join | Lookup | PushPooled)
        ended = self._ended.get(m.session)
        if ended is not None:
            text = f"the session of this client has ended: {ended}; go back to the last checkpoint"
            return [(sender, self._refused(m, Code.SERVER_LOST, text))]
        if isinstance(m, Join):
            return self._join(sender, m)
        session = self._sessions.get(m.session)
        if session is None:
            return [(sender, self._refused(m, Code.HELLO_FIRST, "who is it? Join first"))]
        answers = session.take(sender, m)
        self.meters.again += len(answers)
        return answers

    def _refusal(self, m: Message, role: Role) -> Message | None:
        """Why a request is not even looked at."""
        kind, needed = type(m), RIGHTS.get(type(m))
        if needed is None:
            return self._refused(m, Code.MALFORMED, f"{kind.__name__} is no request to an embedding worker")
        if role < needed:
            names = (needed.name.lower(), role.name.lower())
            text = f"{kind.__name__} needs the role {names[0]}, this key has the role {names[1]}"
            return self._refused(m, Code.FORBIDDEN, text)
        if m.life not in (0, self.life):
            return self._refused(m, Code.LIFE, "what this request speaks of is gone")
        if isinstance(m, Join | Lookup | PushPooled) and m.placement != self._placement.epoch:
            text = (
                f"embedding worker {self._index} goes by placement {self._placement.epoch}, the request by placement "
                f"{m.placement}: this process belongs to an earlier or later start of the job"
            )
            return self._refused(m, Code.PLACEMENT, text)
        return None

    def _join(self, sender: bytes, m: Join) -> Answers:
        if m.protocol != wire.PROTOCOL:
            text = f"it speaks version {wire.PROTOCOL}, this client version {m.protocol}"
            return [(sender, self._refused(m, Code.PROTOCOL, text))]
        if m.fingerprint != self._fingerprint:
            text = "its features or tables are not those of the job; start embedding workers and workers from one job"
            return [(sender, self._refused(m, Code.TABLES, text))]
        answers: Answers = []
        if m.session not in self._sessions:
            for number in [n for n, s in self._sessions.items() if s.client == m.client]:
                answers += self._end(number, f"client {m.client} has begun another")
            if len(self._sessions) >= SESSIONS_MAX:
                return [(sender, self._refused(m, Code.BUSY, f"it has {SESSIONS_MAX} sessions already"))]
            self._sessions[m.session] = self._session(m.client)
        welcome = wire.Welcome(server=self._index, partitions=self._placement.partitions)
        return [*answers, (sender, self._seal(welcome, m.request))]

    def _session(self, client: int) -> Session:
        service = RemoteService(self._plan.tables, self._placement, client=client, **self._service)
        pooler = LocalPooler(self._plan, service, client=client, kernels=self._kernels)
        pooler.seconds = self.meters.seconds
        return Session(
            client,
            self._plan,
            pooler,
            close=service.close,
            relocate=service.relocate,
            seal=self._seal,
            out=self._later,
            answer_bytes=self._limits.frame_bytes,
        )

    def _end(self, number: int, why: str) -> Answers:
        self._ended[number] = why
        while len(self._ended) > ENDED_KEPT:
            self._ended.popitem(last=False)
        return self._sessions.pop(number).end(why)

    def _end_idle(self) -> None:
        late = time.monotonic() - self._idle_s
        for number in [n for n, s in self._sessions.items() if s.heard_at < late and not s.under_way]:
            self._send(self._end(number, f"no request has come for {self._idle_s:g} s"))
