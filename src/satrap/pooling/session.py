"""What an embedding worker does for one NN worker: turns performed once, in order; their answers and tickets kept.

    take (the socket's thread) ──► begin: unpack, dedup, ask ──► settle: wait, pool, answer ──► the socket's thread

Two threads a session, so that several lookups and pushes are under way at the servers at once, in the order of turns.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from queue import SimpleQueue
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from satrap import wire
from satrap.errors import ServerLost, ServerUnreachable, ServiceError, StoreError, WireError
from satrap.pooling.local import LocalPooler
from satrap.pooling.packing import batch_of, pack_values, unpack_arrays
from satrap.pooling.plan import Plan
from satrap.pooling.protocol import Pooled
from satrap.ps import Placement
from satrap.wire import Code, Failure, Lookup, Message, PooledAck, PooledReply, PushPooled

_log = logging.getLogger("satrap.pooling")

TURNS_MAX = 256
"""Turns of a session that have come and whose answers have not been seen."""
KEPT_MAX = 1024
"""Lookups of a session that wait for their gradients."""

_NOTHING = np.empty((0, 0), np.float32)


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer, and what it took."""

    sender: bytes
    message: Message
    kind: str = ""
    """Of the request; empty: it was answered before."""
    seconds: float = 0.0
    """From when its turn came until it was answered."""
    samples: int = 0
    ids: int = 0
    rows: int = 0
    """Unique ids pulled."""


@dataclass(frozen=True, slots=True)
class _Way:
    """Back from the gradients of a lookup."""

    samples: int
    looked_up: Pooled
    """Without its vectors."""


class Session:
    """Of one NN worker. `take` and `end` are called by the socket's thread; `out` is told of answers by another."""

    def __init__(
        self,
        client: int,
        plan: Plan,
        pooler: LocalPooler,
        *,
        close: Callable[[], None],
        relocate: Callable[[Placement], None],
        seal: Callable[[Message, int], Message],
        out: Callable[[Answered], None],
        answer_bytes: int,
    ) -> None:
        """`close` ends the connections to the servers, `relocate` has them go elsewhere. `seal` makes a message the
        answer to a request."""
        self.relocate = relocate
        self.client = client
        self.heard_at = time.monotonic()
        """When the last request came."""
        self._plan, self._pooler, self._close, self._seal, self._out = plan, pooler, close, seal, out
        self._bytes_max = answer_bytes
        self._lock = threading.Lock()
        self._next = 1
        self._early: dict[int, tuple[bytes, Lookup | PushPooled]] = {}
        self._waiting: dict[int, tuple[bytes, int]] = {}
        """Turns that are performed: who waits for the answer, to which request."""
        self._answers: dict[int, Message] = {}
        self._kept: dict[int, _Way] = {}
        self._rows = 0
        """Pulled for the lookup that is being answered."""
        self._ended = ""
        self._begun: SimpleQueue[tuple[Lookup | PushPooled, float] | None] = SimpleQueue()
        self._asked: SimpleQueue[tuple[Lookup | PushPooled, float, Callable[[], Message]] | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=target, name=f"satrap-{what}-{client}", daemon=True)
            for what, target in (("begin", self._begin_all), ("settle", self._settle_all))
        ]
        for t in self._threads:
            t.start()

    @property
    def kept(self) -> int:
        """Lookups that wait for their gradients."""
        return len(self._kept)

    @property
    def under_way(self) -> int:
        """Turns that are performed."""
        return len(self._waiting)

    def take(self, sender: bytes, m: Lookup | PushPooled) -> list[tuple[bytes, Message]]:
        """Performs a turn, when those before it have come. Returns what is to be answered at once."""
        self.heard_at = time.monotonic()
        with self._lock:
            for turn in [t for t in self._answers if t <= m.seen]:
                del self._answers[turn]
            if m.turn < self._next:
                return self._again(sender, m)
            if m.turn - m.seen > TURNS_MAX or len(self._waiting) + len(self._answers) >= TURNS_MAX:
                text = f"turn {m.turn} while answers from turn {m.seen + 1} on have not been seen; {TURNS_MAX} are kept"
                return [(sender, self._seal(Failure(code=Code.BUSY, text=text), m.request))]
            self._early[m.turn] = (sender, m)
            while self._next in self._early:
                sender, m = self._early.pop(self._next)
                self._waiting[self._next] = (sender, m.request)
                self._next += 1
                self._begun.put((m, perf_counter()))
        return []

    def _again(self, sender: bytes, m: Lookup | PushPooled) -> list[tuple[bytes, Message]]:
        if m.turn in self._answers:
            return [(sender, self._answers[m.turn])]
        if m.turn in self._waiting:
            self._waiting[m.turn] = (sender, m.request)
            return [(sender, self._seal(wire.Held(there=1, merge=getattr(m, "merge", 1)), m.request))]
        return []  # its answer has been seen: this copy is late

    def end(self, why: str) -> list[tuple[bytes, Message]]:
        """Frees everything. Returns the failures of the requests under way."""
        with self._lock:
            self._ended = why
            waiting = [*self._waiting.values(), *((sender, m.request) for sender, m in self._early.values())]
            self._early.clear()
            self._waiting.clear()
            self._answers.clear()
            self._kept.clear()
        self._begun.put(None)
        self._close()
        failure = Failure(code=Code.SERVER_LOST, text=why)
        return [(sender, self._seal(failure, request)) for sender, request in waiting]

    def join(self) -> None:
        """Waits for its threads, after `end`."""
        for t in self._threads:
            t.join()

    # ---- its own threads -------------------------------------------------------------------------------------------

    def _begin_all(self) -> None:
        while (item := self._begun.get()) is not None:
            m, at = item
            try:
                finish = self._look_up(m) if isinstance(m, Lookup) else self._push(m)
            except Exception as e:
                finish = _failing(e)
            self._asked.put((m, at, finish))
        self._asked.put(None)

    def _settle_all(self) -> None:
        while (item := self._asked.get()) is not None:
            m, at, finish = item
            try:
                answer = finish()
            except Exception as e:
                answer = failure_of(e, type(m).__name__)
            self._answer(m, answer, perf_counter() - at)

    def _answer(self, m: Lookup | PushPooled, answer: Message, seconds: float) -> None:
        with self._lock:
            to = self._waiting.pop(m.turn, None)
            if to is None:
                return  # the session has ended
            sender, request = to
            answer = self._answers[m.turn] = self._seal(answer, request)
        samples, ids, rows = 0, 0, 0
        if isinstance(m, Lookup) and isinstance(answer, PooledReply):
            samples, ids, rows = m.samples, m.ids.size, self._rows
        self._out(Answered(sender, answer, type(m).__name__, seconds, samples, ids, rows))

    def _look_up(self, m: Lookup) -> Callable[[], Message]:
        batch = batch_of(self._plan, m)
        lengths = self._plan.lengths(batch, m.samples)
        padded = sum(length * f.dim for length, f in zip(lengths, self._plan.sequences, strict=True))
        size = 4 * m.samples * (self._plan.columns + padded)
        if size > self._bytes_max:
            raise StoreError(
                f"the vectors of {m.samples} samples have {size} bytes, the limit of a message is {self._bytes_max}: "
                "make train.batch_size smaller"
            )
        if m.create and len(self._kept) >= KEPT_MAX:
            raise StoreError(f"{KEPT_MAX} batches of client {self.client} wait for their gradients already")
        with self._pooler.seconds.time("dedup") if m.create else nullcontext():
            prepared = self._pooler.prepare(batch, m.samples)
        finish = self._pooler.begin_lookup(prepared, train=m.create)

        def answer() -> Message:
            found = finish()
            self._rows = sum(x.size for x in found.kept.ids.values())
            if m.create:
                way = _Way(m.samples, Pooled(_NOTHING, (), found.masks, found.kept))
                with self._lock:
                    if not self._ended:
                        self._kept[m.turn] = way
            return PooledReply(**pack_values(self._plan, found.pooled, found.sequences, found.masks))

        return answer

    def _push(self, m: PushPooled) -> Callable[[], Message]:
        way, gradients = None, None
        if m.lookup:
            way = self._take_way(m.lookup)
            masks: Sequence[NDArray[np.bool_]] = way.looked_up.masks
            gradients = unpack_arrays(self._plan, m.sections, m.gradients, way.samples, masks, copy=False)
        finish = self._pooler.begin_push(
            None if way is None else way.looked_up,
            gradients,
            epoch=m.epoch,
            seq=m.seq,
            lr_factor=m.lr_factor,
            merge=m.merge,
        )

        def answer() -> Message:
            sent, ack = finish()
            return PooledAck(
                applied=ack.applied,
                refused={str(k): n for k, n in ack.refused.items()},
                duplicate=ack.duplicate,
                staleness=ack.staleness,
                sent=sent,
                repeated=ack.repeated,
            )

        return answer

    def _take_way(self, lookup: int) -> _Way:
        """That of a lookup. Frees it, and those of the lookups before it, whose gradients come no more."""
        with self._lock:
            way = self._kept.get(lookup)
            if way is None:
                raise StoreError(
                    f"gradients of lookup {lookup} of client {self.client}, which is not kept: they come once, and in "
                    "the order of the lookups"
                )
            for turn in [t for t in self._kept if t <= lookup]:
                del self._kept[turn]
        return way


def _failing(error: Exception) -> Callable[[], Message]:
    def finish() -> Message:
        raise error

    return finish


def failure_of(error: Exception, what: str) -> Failure:
    """The answer to a request that failed."""
    match error:
        case ServerLost():
            return Failure(code=Code.SERVER_LOST, text=str(error))
        case ServerUnreachable():
            return Failure(code=Code.SERVER_UNREACHABLE, text=str(error))
        case StoreError():
            return Failure(code=Code.REFUSED, text=str(error))
        case WireError():
            return Failure(code=Code.MALFORMED, text=str(error))
        case ServiceError():
            return Failure(code=Code.INTERNAL, text=str(error))
    _log.error("request %s failed", what, exc_info=error)
    return Failure(code=Code.INTERNAL, text=f"{type(error).__name__}: {error}")
