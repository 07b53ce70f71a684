"""Pooling in an embedding worker: its client. B samples."""

from __future__ import annotations

import os
import secrets
import socket
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satrap.errors import ServiceError, WireError
from satrap.observe.stages import StageSeconds
from satrap.pooling.packing import batch_fields, pack_gradients, unpack_arrays
from satrap.pooling.plan import Ids, Plan, masks
from satrap.pooling.protocol import Gradients, Pooled, Pushed
from satrap.ps import Ack, ClientKeys, Patience, Refused
from satrap.ps.exchange import Call, Exchange
from satrap.ps.server import is_loopback
from satrap.wire import Join, Limits, Lookup, PooledAck, PooledReply, PushPooled, Welcome

RESEND_S = 5.0
"""Until a request is sent again. Longer than to a server: a batch of long lists takes a while and is large, and a
connection loses what is under way only when it breaks."""
ASKED = {"Lookup": "Pull", "PushPooled": "Push"}
"""What its requests are to who watches them, as those of `RemoteService` are called."""


@dataclass(frozen=True, slots=True)
class Packed:
    """A batch, ready to be sent."""

    samples: int
    masks: Sequence[NDArray[np.bool_]]
    fields: dict[str, Any]


class RemotePooler:
    """Implements `Pooler` by an `EmbeddingWorker`, in one session. Thread-safe.

    It begins to connect at once, and joins with the first request. Raises also ServiceError and its kinds: those of
    the servers, by the embedding worker's name, and its own.
    """

    def __init__(
        self,
        plan: Plan,
        address: str,
        *,
        index: int = 0,
        client: int = 0,
        placement: int = 0,
        deadline_s: float = 60.0,
        patience: Patience | None = None,
        keys: ClientKeys | None = None,
        insecure: bool = False,
        limits: Limits | None = None,
    ) -> None:
        """Args:
            address: of the embedding worker, whose number is `index`.
            client: the number under which this process pushes. placement: the epoch it goes by.
            deadline_s: how long the embedding worker may be silent before it is called unreachable; longer than it
                waits for a server itself, so that who is to blame is named. patience: all other waiting.
            keys: of the role this process has. insecure: connects to another machine without keys.
            limits: how large an answer may be.

        Raises:
            ServiceError: the address is none, or asks for keys.
        """
        if keys is None and not insecure and not is_loopback(address):
            raise ServiceError(
                f"embedding worker {index} ({address}) is on another machine: give the client keys (`satrap keys new`),"
                " or say that vectors and gradients may travel unprotected (insecure)"
            )
        self._plan, self._placement, self._index = plan, placement, index
        self._session = secrets.randbits(63) | 1
        self._turn = self._seen = 0
        self._calls: deque[Call] = deque()
        self._order = threading.Lock()
        self.seconds, self._uncounted = StageSeconds(), StageSeconds()
        self._exchange = Exchange(
            [address],
            Join(
                client=client,
                session=self._session,
                fingerprint=plan.fingerprint(),
                who=f"client {client} (pid {os.getpid()} on {socket.gethostname()})",
                placement=placement,
            ),
            deadline_s=deadline_s,
            patience=patience or Patience(resend_s=RESEND_S),
            limits=limits or Limits(),
            keys=keys,
            welcome=self._check_welcome,
            name=f"embedding worker {index}",
        )

    @property
    def overlaps(self) -> bool:
        """See `Pooler`."""
        return True

    @property
    def name(self) -> str:
        """Of its embedding worker, for people."""
        return f"embedding worker {self._index}"

    @property
    def resent(self) -> int:
        """Requests sent again so far, because no answer came in time."""
        return self._exchange.resent

    @property
    def under_way(self) -> int:
        """Requests that wait for their answers."""
        return self._exchange.under_way(0)

    def watch(self, on_answer: Callable[[str, str, float], None]) -> None:
        """Has each answer told to a function: by whom, `Pull` or `Push`, seconds. It is called by whichever thread
        takes the answer, and must neither wait nor ask this pooler anything."""
        self._exchange.on_answer = lambda _, kind, seconds: on_answer(self.name, ASKED.get(kind, kind), seconds)

    def prepare(self, ids: Mapping[str, Ids], samples: int) -> Packed:
        """Packs the ids of a batch."""
        lengths = self._plan.lengths(ids, samples)
        return Packed(samples, masks(self._plan, ids, samples, lengths), batch_fields(self._plan, ids, samples))

    def begin_lookup(self, prepared: Packed, *, train: bool) -> Callable[[], Pooled]:
        """See `Pooler`."""
        seconds = self.seconds if train else self._uncounted
        with seconds.time("pull"):
            turn, call = self._send(Lookup, **prepared.fields, create=train)

        def finish() -> Pooled:
            with seconds.waiting("pull", "server_wait"):
                reply = self._answer(call, PooledReply)
            found = unpack_arrays(self._plan, reply.sections, reply.values, prepared.samples, prepared.masks, copy=True)
            if found.pooled is None or any(s is None for s in found.sequences):
                raise WireError(f"{self._exchange.where(0)} left out some of a batch's vectors")
            return Pooled(found.pooled, [s for s in found.sequences if s is not None], prepared.masks, turn)

        return finish

    def begin_push(
        self,
        looked_up: Pooled | None,
        gradients: Gradients | None,
        *,
        epoch: int,
        seq: int,
        lr_factor: float = 1.0,
        merge: int = 1,
    ) -> Callable[[], Pushed]:
        """See `Pooler`. Its arrays must not change until it is answered."""
        has = looked_up is not None and gradients is not None
        with self.seconds.time("push"):
            _, call = self._send(
                PushPooled,
                epoch=epoch,
                seq=seq,
                lookup=looked_up.kept if looked_up is not None and has else 0,
                **pack_gradients(self._plan, gradients if has else None, () if looked_up is None else looked_up.masks),
                merge=merge,
                lr_factor=lr_factor,
            )

        def finish() -> Pushed:
            with self.seconds.waiting("push", "server_wait"):
                m = self._answer(call, PooledAck)
            refused = {Refused(reason): n for reason, n in m.refused.items()}
            return Pushed(m.sent, Ack(m.applied, refused, m.duplicate, m.repeated, m.staleness))

        return finish

    def close(self) -> None:
        """See `Pooler`. What the embedding worker keeps is freed when this client number opens another session, when
        the placement moves on, or after a while."""
        self._exchange.close()

    def _send(self, kind: type[Lookup] | type[PushPooled], **fields: Any) -> tuple[int, Call]:
        with self._order:
            while self._calls and self._calls[0].done:
                self._calls.popleft()
                self._seen += 1
            self._turn += 1
            message = kind(session=self._session, turn=self._turn, seen=self._seen, placement=self._placement, **fields)
            call = self._exchange.send(0, message)
            self._calls.append(call)
            return self._turn, call

    def _answer(self, call: Call, kind: type[Any]) -> Any:
        answer = self._exchange.wait(call)
        if not isinstance(answer, kind):
            raise ServiceError(
                f"{self._exchange.where(0)} answered with {type(answer).__name__} instead of {kind.__name__}"
            )
        return answer

    def _check_welcome(self, _: int, welcome: Welcome) -> None:
        if welcome.server != self._index:
            raise ServiceError(
                f"{self._exchange.where(0)} says it is embedding worker {welcome.server}: addresses are mixed up"
            )
