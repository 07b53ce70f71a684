"""Requests to servers and their answers: sent again until answered, in order, within a deadline. S servers.

There is no thread for this. Whoever waits for an answer moves the messages of everyone who waits, and hands the part
over when its own answer is there: one thread that asks and waits never has to be woken by another.

    send ──► outbox ──► socket ··········► server
                                             │
    wait ◄── answers by request number ◄─────┘     asked again after `resend_s`, 2, 4, 8 times that …
"""

from __future__ import annotations

import contextlib
import itertools
import math
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import zmq

from satrap.errors import ServerLost, ServerUnreachable, ServiceError, StoreError, WireError
from satrap.ps.handshake import Handshakes
from satrap.ps.keys import ClientKeys
from satrap.wire import Code, Failure, Gap, Held, Message, Push, Welcome, decode, encode
from satrap.wire.limits import Limits

RESEND_MAX = 8
"""Times `resend_s` that a request waits at most before it is sent again."""
GAP_PAUSE_S = 0.003
"""What is missing is not sent again sooner than this after the last time: it may be on its way."""
ORPHAN_RESENDS = 5
"""Times `resend_s` that a request may be told that a push is missing which has been acknowledged."""
HELD_TRIES = 4
"""Times that a push which is held is sent again within a deadline: each is answered as long as the server lives."""
HEARTBEATS, HEARTBEAT_S_MAX = 8, 5.0
"""Times within a deadline that an idle connection is tried, and at least so often."""
SILENCES, SILENCE_S_MAX = 2, 15.0
"""A connection that says nothing for this part of a deadline, and at most for so long, has died without a word: it is
made anew. Large messages must pass within it."""
RECONNECT_MS, RECONNECT_MS_MAX = 50, 250
"""How often an address is tried at which nobody answers: a server that has come back is not kept waiting."""


@dataclass(slots=True, eq=False)
class Call:
    """A request under way. Made by `Exchange.send`, owned by it until `done`."""

    server: int
    message: Message
    deadline_s: float
    expires_at: float
    wait_s: float
    begun: float = 0.0
    send_at: float = 0.0
    sent_at: float = 0.0
    orphan_at: float | None = None
    tries: int = 0
    gaps: int = 0
    held: Held | None = None
    step_ends_at: float = math.inf
    """Of a push that is held: until when those of other clients may come."""
    done: bool = False
    answer: Message | None = None
    error: Exception | None = None


@dataclass(slots=True, eq=False)
class _Link:
    """The connection to one server."""

    server: int
    address: str
    socket: Any
    handshakes: Handshakes
    pending: dict[int, Call] = field(default_factory=dict)
    """By request number, in the order in which they were first sent."""
    life: int = 0
    greeting: Call | None = None
    greeted: bool = False
    lost: ServiceError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a client waits. A deadline holds for one request, from when it is first sent."""

    transfer_deadline_s: float = 600.0
    """Until a server that does not answer a request that moves many rows is called unreachable. One whose connection
    is gone is not busy with it: that is not waited for longer than for any other answer."""
    step_deadline_s: float = 1800.0
    """How long a push may wait for those of other clients that make one step with it."""
    resend_s: float = 1.0
    """Until a request is sent again for the first time; then twice, four times, … that, up to eight."""


class Exchange:
    """Sends requests to S servers and finds their answers. Thread-safe.

    A server that has another life than at the first answer is lost for good: every request to it raises ServerLost.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        hello: Message,
        *,
        deadline_s: float,
        patience: Patience,
        limits: Limits,
        keys: ClientKeys | None = None,
        welcome: Callable[[int, Welcome], None],
        window: int = 64,
        name: str = "server {}",
    ) -> None:
        """`hello`: what introduces this client; a Welcome answers it. `name`: of who answers, by number, for people."""
        self._hello, self._deadline_s, self._patience = hello, deadline_s, patience
        self._limits, self._welcome = limits, welcome
        self._window, self._name = window, name
        self._numbers = itertools.count(secrets.randbits(62))
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self._poller = zmq.Poller()
        self._keys = keys
        self._number, self._addresses, self._rewire = -1, list(addresses), False
        self._links: list[_Link] = []
        self._by_socket: dict[Any, _Link] = {}
        self._by_monitor: dict[Any, _Link] = {}
        self._connect_all()
        self._woken, self._waker = socket.socketpair()
        self._woken.setblocking(False)
        self._waker.setblocking(False)
        self._poller.register(self._woken, zmq.POLLIN)
        self._turn = threading.Condition()
        self._driving = False
        self._outbox: deque[Call] = deque()
        self._closed = False
        self.resent = 0
        """Messages sent again so far."""
        self.on_answer: Callable[[int, str, float], None] | None = None
        """Told of each answer: server, kind of request, seconds from asking until the answer was taken."""

    def reach(self, number: int, addresses: Sequence[str]) -> None:
        """Goes by these addresses of servers from now on, old and new ones: those of the placement of this number. One
        that is older than what it goes by is left aside. Requests to a server that is elsewhere now are sent there."""
        with self._turn:
            if number > self._number:
                self._number, self._addresses, self._rewire = number, list(addresses), True
            alone = not self._driving and not self._closed
            if alone:
                self._driving = True
        if alone:
            self._drive(None)
        else:
            self._wake()

    def _connect_all(self) -> None:
        """Has a connection to each address, and none to another."""
        self._rewire = False
        for i, address in enumerate(self._addresses):
            if i == len(self._links):
                self._links.append(self._enter(self._connect(i, address, self._keys)))
            elif self._links[i].address != address:
                self._elsewhere(self._links[i], address)

    def _enter(self, link: _Link) -> _Link:
        self._by_socket[link.socket] = self._by_monitor[link.handshakes.monitor] = link
        return link

    def _elsewhere(self, link: _Link, address: str) -> None:
        """Connects to a server where it is now; what it has not answered is sent again."""
        for s in (link.socket, link.handshakes.monitor):
            self._poller.unregister(s)
        del self._by_socket[link.socket], self._by_monitor[link.handshakes.monitor]
        link.handshakes.close()
        link.socket.close()
        new = self._connect(link.server, address, self._keys)
        link.address, link.socket, link.handshakes = address, new.socket, new.handshakes
        self._enter(link)
        if link.greeting is not None:
            link.pending.pop(link.greeting.message.request, None)
        link.greeted, link.greeting = False, None
        if link.pending:
            self._greet(link)
        now = time.monotonic()
        for call in link.pending.values():
            call.send_at = min(call.send_at, now)
            call.wait_s = self._patience.resend_s

    def _connect(self, server: int, address: str, keys: ClientKeys | None) -> _Link:
        s = self._context.socket(zmq.DEALER)
        s.linger = 0
        s.set_hwm(0)
        s.setsockopt(zmq.MAXMSGSIZE, self._limits.frame_bytes)
        s.setsockopt(zmq.HEARTBEAT_IVL, _ms(min(self._deadline_s / HEARTBEATS, HEARTBEAT_S_MAX)))
        s.setsockopt(zmq.HEARTBEAT_TIMEOUT, _ms(min(self._deadline_s / SILENCES, SILENCE_S_MAX)))
        s.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        s.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MS_MAX)
        if keys is not None:
            s.curve_serverkey = keys.server.encode()
            s.curve_publickey, s.curve_secretkey = keys.own.public.encode(), keys.own.secret.encode()
        handshakes = Handshakes(s, keys is not None)
        try:
            s.connect(address)
        except zmq.ZMQError as e:
            where = self._name.format(server)
            raise ServiceError(f"{where}: {address} is no address to connect to: {e.strerror}") from e
        self._poller.register(s, zmq.POLLIN)
        self._poller.register(handshakes.monitor, zmq.POLLIN)
        return _Link(server, address, s, handshakes)

    def number(self) -> int:
        """A request number that no other request of this client has, nor is likely to have in another process."""
        return next(self._numbers)

    def send(self, server: int, message: Message, *, deadline_s: float | None = None) -> Call:
        """Sends a request and returns at once, unless `window` requests to this server wait for their answers already.

        Requests of one thread to one server are sent in order. What the message refers to must not change until it is
        answered.
        """
        if not message.request:
            message = replace(message, request=self.number())
        now, deadline_s = time.monotonic(), deadline_s or self._deadline_s
        call = Call(server, message, deadline_s, now + deadline_s, self._patience.resend_s, begun=now)
        while self.under_way(server) >= self._window:
            oldest = next(iter(self._links[server].pending.values()), None)
            if oldest is not None:
                self._wait(oldest)
        with self._turn:
            if self._closed:
                raise ServiceError("this client was closed")
            self._outbox.append(call)
            alone = not self._driving
            if alone:
                self._driving = True
        if alone:
            self._drive(None)
        else:
            self._wake()
        return call

    def wait(self, call: Call) -> Message:
        """The answer to a request.

        Raises:
            ServerUnreachable: it did not come in time.
            ServerLost: the server has lost the rows it had.
            StoreError: the server refused the request as not fitting its tables.
            ServiceError: it refused it for another reason.
        """
        self._wait(call)
        if call.error is not None:
            raise call.error
        assert call.answer is not None
        return call.answer

    def under_way(self, server: int) -> int:
        """Requests to a server that wait for their answers."""
        return len(self._links[server].pending) if server < len(self._links) else 0

    def life(self, server: int) -> int:
        """The life of a server, for requests; 0 before its first answer."""
        return self._links[server].life if server < len(self._links) else 0

    def where(self, server: int) -> str:
        """`server 1 (tcp://…)`, for messages to people."""
        return f"{self._name.format(server)} ({self._addresses[server]})"

    def close(self) -> None:
        """Ends all connections; requests under way fail in the threads that wait for them."""
        with self._turn:
            if self._closed:
                return
            self._closed = True
            self._wake()
            while self._driving:
                self._turn.wait()
            self._flush(closed=True)
            for link in self._links:
                self._fail_all(link, ServiceError("this client was closed"))
                link.handshakes.close()
                link.socket.close()
        self._context.term()
        self._woken.close()
        self._waker.close()

    def _wait(self, call: Call) -> None:
        while True:
            with self._turn:
                # Whoever closes answers every call.
                while not call.done and (self._driving or self._closed):
                    self._turn.wait()
                if call.done:
                    return
                self._driving = True
            self._drive(call)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it is full: whoever drives will wake
            self._waker.send(b"\0")

    # Below, only the thread that drives. ---------------------------------------------------------------------------

    def _drive(self, until: Call | None) -> None:
        """Moves messages until this call is done; None: sends what is to be sent. Gives the driving up at the end."""
        try:
            while True:
                self._flush()
                with self._turn:
                    behind = self._outbox or self._rewire
                    if not behind and (until is None or until.done or self._closed):
                        self._driving = False
                        self._turn.notify_all()
                        return
                if until is not None:
                    self._step()
        except BaseException:
            with self._turn:
                self._driving = False
                self._turn.notify_all()
            raise

    def _flush(self, *, closed: bool = False) -> None:
        if self._rewire and not closed:
            self._connect_all()
        while self._outbox:
            call = self._outbox.popleft()
            link = self._links[call.server]
            link.pending[call.message.request] = call
            if link.lost is not None:
                self._finish(link, call, error=link.lost)
                continue
            if closed:
                continue
            if not link.greeted and link.greeting is None:
                self._greet(link)
            self._transmit(link, call)

    def _greet(self, link: _Link) -> None:
        message = replace(self._hello, request=self.number())
        now, deadline_s = time.monotonic(), self._deadline_s
        link.greeting = Call(link.server, message, deadline_s, now + deadline_s, self._patience.resend_s, begun=now)
        link.pending[message.request] = link.greeting
        self._transmit(link, link.greeting)

    def _transmit(self, link: _Link, call: Call) -> None:
        if call.message.life != link.life:
            call.message = replace(call.message, life=link.life)
        message = call.message
        call.tries += 1
        self.resent += call.tries > 1
        call.sent_at = time.monotonic()
        call.send_at = call.sent_at + call.wait_s
        call.wait_s = min(2 * call.wait_s, RESEND_MAX * self._patience.resend_s)
        if call.held is not None:
            call.wait_s = min(call.wait_s, self._deadline_s / HELD_TRIES)
        try:
            link.socket.send_multipart(encode(message), zmq.NOBLOCK, copy=False)
        except zmq.Again:
            pass  # the connection is full; it will be sent again
        except WireError as e:
            self._finish(link, call, error=e)

    def _step(self) -> None:
        """Waits for the next answer, or until something is to be sent again or is over."""
        now = time.monotonic()
        pending = ((k, c) for k in self._links for c in k.pending.values())
        due = min((min(c.send_at, c.expires_at, self._cut_off_at(k, c)) for k, c in pending), default=now + 1.0)
        for ready, _ in self._poller.poll(int(max(0.0, (due - now) * 1000)) + 1):
            if (link := self._by_socket.get(ready)) is not None:
                self._receive(link)
            elif (link := self._by_monitor.get(ready)) is None:
                self._woken.recv(4096)
            elif (why := link.handshakes.refusal()) is not None:
                self._fail_all(link, ServiceError(f"{self.where(link.server)} takes no connection: {why}"))
        now = time.monotonic()
        if now < due:
            return
        for link in self._links:
            for call in list(link.pending.values()):
                if call.done:
                    continue
                if now >= min(call.expires_at, self._cut_off_at(link, call)):
                    self._expire(link, call)
                elif now >= call.send_at:
                    self._transmit(link, call)

    def _cut_off_at(self, link: _Link, call: Call) -> float:
        """When a request is given up however long its answer may take, because the server's connection is gone."""
        down = link.handshakes.down_since
        return math.inf if down is None else max(down, call.begun) + self._deadline_s

    def _receive(self, link: _Link) -> None:
        while True:
            try:
                frames = link.socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            try:
                answer = decode([f.buffer for f in frames], self._limits)
            except WireError:
                continue  # not from a satrap server of this version; it will be asked again, or be unreachable
            call = link.pending.get(answer.request)
            if call is not None:
                self._answered(link, call, answer)

    def _answered(self, link: _Link, call: Call, answer: Message) -> None:
        if link.life and answer.life and answer.life != link.life:
            self._lose(link, "it has started anew, without the rows it had")
            return
        match answer:
            case Welcome():
                link.life, link.greeted, link.greeting = answer.life, True, None
                try:
                    self._welcome(link.server, answer)
                except ServiceError as e:
                    self._fail_all(link, e)
                    return
                self._finish(link, call, answer)
            case Gap():
                self._fill_gap(link, call, answer)
            case Held():
                # The server lives, and others are to blame for the wait, up to a longer deadline. It is asked again
                # and again meanwhile, and must go on answering.
                now = time.monotonic()
                if call.held is None:
                    call.step_ends_at = now + self._patience.step_deadline_s
                    call.send_at = min(call.send_at, now + self._deadline_s / HELD_TRIES)
                call.held = answer
                call.expires_at = min(call.step_ends_at, now + self._deadline_s)
            case Failure():
                self._failed(link, call, answer)
            case _:
                self._finish(link, call, answer)

    def _fill_gap(self, link: _Link, call: Call, gap: Gap) -> None:
        """A push that must come before this request has not come: sends what is missing again, in order."""
        needed = call.message.previous if isinstance(call.message, Push) else getattr(call.message, "after", None)
        now, under_way = time.monotonic(), False
        for c in link.pending.values():
            if not isinstance(c.message, Push) or c is call:
                continue
            name = (c.message.epoch, c.message.seq)
            under_way |= name == needed
            missing = needed is not None and name <= needed and (gap.last is None or name > gap.last)
            if missing and now - c.sent_at > GAP_PAUSE_S:
                c.send_at = now
        call.gaps += 1
        call.send_at = now + GAP_PAUSE_S * 2 ** min(call.gaps, 7)
        if under_way:
            call.orphan_at = None
        elif call.orphan_at is None:
            # Answered meanwhile, and this gap is from before; or the server does not know it any more.
            call.orphan_at = now
        elif now - call.orphan_at > ORPHAN_RESENDS * self._patience.resend_s:
            self._lose(link, f"it has forgotten push {needed}, which it had acknowledged")

    def _failed(self, link: _Link, call: Call, failure: Failure) -> None:
        where = self.where(link.server)
        match failure.code:
            case Code.HELLO_FIRST:
                link.greeted = False
                if link.greeting is None:
                    self._greet(link)
                call.send_at = time.monotonic()
            case Code.BUSY | Code.STOPPING:
                pass  # asked again later, until the deadline
            case Code.LIFE:
                self._lose(link, "it has started anew, without the rows it had")
            case Code.REFUSED:
                self._finish(link, call, error=StoreError(failure.text))
            case Code.MALFORMED:
                self._finish(link, call, error=WireError(f"{where}: {failure.text}"))
            case Code.SERVER_LOST:
                self._fail_all(link, ServerLost(f"{where}: {failure.text}"))
            case Code.SERVER_UNREACHABLE:
                self._finish(link, call, error=ServerUnreachable(f"{where}: {failure.text}"))
            case Code.TABLES | Code.PROTOCOL:
                self._fail_all(link, ServiceError(f"{where}: {failure.text}"))
            case _:
                self._finish(link, call, error=ServiceError(f"{where}: {failure.text}"))

    def _lose(self, link: _Link, what: str) -> None:
        self._fail_all(link, ServerLost(f"{self.where(link.server)}: {what}; go back to the last checkpoint"))

    def _fail_all(self, link: _Link, error: ServiceError) -> None:
        link.lost = error
        for call in list(link.pending.values()):
            self._finish(link, call, error=error)

    def _expire(self, link: _Link, call: Call) -> None:
        where, seconds = self.where(link.server), self._patience.step_deadline_s
        if call.held is not None and time.monotonic() >= call.step_ends_at:
            there = f"{call.held.there} of the {call.held.merge} pushes of its step are there"
            error = ServiceError(f"{where}: a push has waited for those of other workers for {seconds:g} s; {there}")
        else:
            seconds = call.deadline_s if time.monotonic() >= call.expires_at else self._deadline_s
            error = ServerUnreachable(
                f"{where} has not answered for {seconds:g} s, asked {call.tries} times; "
                "see whether it runs, can be reached from here, and takes this client's key"
            )
        if call is link.greeting:
            # Nobody is there, so neither will the others be answered, however long they may take.
            link.greeting = None
            for waiting in list(link.pending.values()):
                self._finish(link, waiting, error=error)
            return
        self._finish(link, call, error=error)

    def _finish(self, link: _Link, call: Call, answer: Message | None = None, error: Exception | None = None) -> None:
        link.pending.pop(call.message.request, None)
        if self.on_answer is not None and answer is not None:
            self.on_answer(link.server, type(call.message).__name__, time.monotonic() - call.begun)
        with self._turn:
            call.answer, call.error, call.done = answer, error, True
            self._turn.notify_all()


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
