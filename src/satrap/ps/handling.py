"""Requests to answers: what a server does, without its socket. U unique ids of all tables of a request."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from satrap import wire
from satrap.errors import ServiceError, StoreError
from satrap.ps.keys import Role
from satrap.ps.local import LocalService
from satrap.ps.meters import Meters
from satrap.ps.packing import LEAST_VALUE_SCALE, Directory, pack, scale_for, unpack
from satrap.ps.protocol import Ack, PushRequest, RowBlock
from satrap.ps.pushes import MissingPush, Name
from satrap.schema import WireFormat
from satrap.wire import Code, Failure, Message

_log = logging.getLogger("satrap.ps")

HINTS_KEPT = 64
"""Pulls of which the server remembers where it found the rows, for the pushes to come."""
DONE_KEPT = 4096
"""Requests that change rows without a name, of which the answer is kept for when they come again."""
SESSIONS_MAX = 65_536

RIGHTS: Mapping[type[Message], Role] = {
    wire.Hello: Role.READER,
    wire.Pull: Role.READER,
    wire.Tables: Role.READER,
    wire.Stats: Role.READER,
    wire.Metrics: Role.READER,
    wire.Push: Role.WORKER,
    wire.Clients: Role.WORKER,
    wire.ExportRows: Role.ADMIN,
    wire.ReserveRows: Role.ADMIN,
    wire.ImportRows: Role.ADMIN,
    wire.Erase: Role.ADMIN,
    wire.Clear: Role.ADMIN,
    wire.SetClients: Role.ADMIN,
    wire.Stop: Role.ADMIN,
}
"""The least role that may ask. What is not here is no request."""
WITHOUT_HELLO = (wire.Hello, wire.Metrics, wire.Stop, wire.Tables)
"""What someone may ask who knows neither the tables nor the placement."""

Answer = tuple[bytes, Message]
"""(to whom, what)"""


@dataclass(slots=True)
class _Session:
    """What the server knows of a connection."""

    client: int
    who: str
    barrier: int = 0
    """Number of its last request that removed or replaced rows. An earlier pull that comes later makes no rows."""


class Refusal(Exception):  # noqa: N818
    """A request that gets a `Failure`."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.code = code


class Handler:
    """Answers requests, one at a time, from one thread.

    A request may have no answer yet (a push that waits for others) or bring several (the last push of a step).
    """

    def __init__(self, service: LocalService, *, seed: int, index: int, epoch: int) -> None:
        self.service, self.epoch = service, epoch
        self.stopping = False
        self.meters = Meters()
        self._index = index
        self._directory = Directory.of(service.tables())
        self._fingerprint = self._directory.fingerprint(seed)
        self._sessions: OrderedDict[bytes, _Session] = OrderedDict()
        self._waiting: dict[tuple[int, Name], tuple[bytes, int]] = {}
        """Held pushes: who waits for the answer, to which request."""
        self._hints: OrderedDict[int, dict[str, NDArray[np.uint32]]] = OrderedDict()
        self._done: OrderedDict[int, Message] = OrderedDict()
        self._page: tuple[int, int, RowBlock] | None = None
        self._actions: dict[type[Message], Callable[[bytes, Any], Message | None]] = {
            wire.Hello: self._hello,
            wire.Pull: self._pull,
            wire.Tables: lambda _, m: wire.TablesReply(text=msgspec.json.encode(self._directory.tables).decode()),
            wire.Stats: self._stats,
            wire.Metrics: lambda _, m: wire.MetricsReply(text=self.metrics_text()),
            wire.Clients: lambda _, m: wire.ClientsReply(clients=self.service.clients()),
            wire.ExportRows: self._export,
            wire.ReserveRows: self._reserve,
            wire.ImportRows: self._import,
            wire.Erase: self._erase,
            wire.Clear: self._clear,
            wire.SetClients: self._set_clients,
            wire.Stop: self._stop,
        }

    def handle(self, sender: bytes, request: Message, role: Role) -> list[Answer]:
        """The answers that a request brings about, each with its receiver. Raises nothing: what fails is a Failure."""
        try:
            self._admit(sender, request, role)
            if request.request in self._done:
                return [(sender, self._done[request.request])]
            if isinstance(request, wire.Push):
                return self._push(sender, request)
            if isinstance(request, wire.Clear | wire.Erase | wire.ImportRows):
                self._sessions[sender].barrier = request.request
            answer = self._actions[type(request)](sender, request)
            answers = [] if answer is None else [(sender, self._sealed(answer, request.request))]
            if isinstance(request, wire.Clear | wire.SetClients):
                answers += self._dropped("the rows were cleared or restored")
            return answers
        except Refusal as e:
            return [(sender, self.failure(request.request, e.code, str(e)))]
        except StoreError as e:
            return [(sender, self.failure(request.request, Code.REFUSED, str(e)))]
        except MissingPush as e:
            self.meters.gaps += 1
            return [(sender, self._sealed(wire.Gap(last=e.last), request.request))]
        except Exception as e:
            # One request must not end the server for everyone.
            _log.exception("request %s failed", type(request).__name__)
            return [(sender, self.failure(request.request, Code.INTERNAL, f"{type(e).__name__}: {e}"))]

    def failure(self, request: int, code: Code, text: str) -> Message:
        """The answer to a request that was not done."""
        self.meters.failures[code.name.lower()] += 1
        return self._sealed(Failure(code=code, text=text), request)

    def advance(self, epoch: int) -> list[Answer]:
        """Goes by a placement of this epoch from now on: requests by an older one are refused."""
        if epoch < self.epoch:
            raise ServiceError(f"server {self._index} goes by placement {self.epoch}; {epoch} is older")
        self.epoch = epoch
        self.service.drop_held()
        return self._dropped("the placement has changed")

    def metrics_text(self) -> str:
        """The text format of Prometheus."""
        return self.meters.text(self.service.stats(), held=self.service.held, clients=len(self._sessions))

    def _seal(self, request: int) -> dict[str, int]:
        """What every answer carries."""
        return {"request": request, "life": self.service.life, "placement": self.epoch}

    def _sealed(self, answer: Message, request: int) -> Message:
        return answer if answer.request else replace(answer, **self._seal(request))

    def _admit(self, sender: bytes, request: Message, role: Role) -> None:
        kind = type(request)
        needed = RIGHTS.get(kind)
        if needed is None:
            raise Refusal(Code.MALFORMED, f"{kind.__name__} is no request")
        if isinstance(request, wire.Pull) and request.create:
            needed = Role.WORKER
        if role < needed:
            raise Refusal(
                Code.FORBIDDEN,
                f"{kind.__name__} needs the role {needed.name.lower()}, this key has the role {role.name.lower()}",
            )
        if request.life not in (0, self.service.life):
            raise Refusal(Code.LIFE, "the rows this request speaks of are gone")
        if isinstance(request, WITHOUT_HELLO) and not isinstance(request, wire.Hello):
            return
        if request.placement != self.epoch:
            raise Refusal(
                Code.PLACEMENT,
                f"server {self._index} goes by placement {self.epoch}, the request by placement {request.placement}: "
                "this process belongs to an earlier or later start of the job",
            )
        if sender not in self._sessions and kind is not wire.Hello:
            raise Refusal(Code.HELLO_FIRST, "who is it? Say hello first")

    def _hello(self, sender: bytes, m: wire.Hello) -> Message:
        if m.protocol != wire.PROTOCOL:
            raise Refusal(Code.PROTOCOL, f"it speaks version {wire.PROTOCOL}, this client version {m.protocol}")
        if m.fingerprint != self._fingerprint:
            names = ", ".join(t.name for t in self._directory.tables)
            raise Refusal(
                Code.TABLES,
                f"its tables ({names}) are configured otherwise than the job's, or made with another seed; "
                "start servers and workers from one job",
            )
        if sender not in self._sessions:
            self._sessions[sender] = _Session(m.client, m.who)
        self._sessions.move_to_end(sender)
        while len(self._sessions) > SESSIONS_MAX:
            self._sessions.popitem(last=False)
        return wire.Welcome(server=self._index, partitions=self.service.partitions)

    # ---- rows ------------------------------------------------------------------------------------------------------

    def _ids(self, sections: tuple[wire.Section, ...], ids: NDArray[np.uint64]) -> dict[str, NDArray[np.uint64]]:
        out = {}
        for s, part in zip(sections, wire.row_slices(sections), strict=True):
            if s.table >= len(self._directory.tables):
                raise Refusal(Code.REFUSED, f"there is no table number {s.table}")
            table = self._directory.tables[s.table]
            if s.dim != table.dim:
                raise Refusal(Code.REFUSED, f"rows of table '{table.name}' have dim {table.dim}, not {s.dim}")
            out[table.name] = ids[part]
        return out

    def _pull(self, sender: bytes, m: wire.Pull) -> Message:
        if m.after is not None:
            self.service.need(self._sessions[sender].client, m.after)
        ids = self._ids(m.sections, m.ids)
        create = m.create and m.request >= self._sessions[sender].barrier
        flat, versions, hints = self.service.store.pull_flat(ids, create=create)
        if create:
            self._hints[m.request] = hints
            if len(self._hints) > HINTS_KEPT:
                self._hints.popitem(last=False)
        self.meters.rows_pulled += m.ids.size
        if all(s.format is WireFormat.FP32 for s in m.sections):
            return wire.RowsReply(
                sections=m.sections, values=flat.view(np.uint8), versions=versions, **self._seal(m.request)
            )
        rows, at = [], 0
        for s in m.sections:
            rows.append(flat[at : at + s.rows * s.dim].reshape(s.rows, s.dim))
            at += s.rows * s.dim
        sections = tuple(
            s._replace(scale=scale_for(s.format, x, LEAST_VALUE_SCALE)) for s, x in zip(m.sections, rows, strict=True)
        )
        values = pack(sections, rows, [None] * len(rows))
        return wire.RowsReply(sections=sections, values=values, versions=versions, **self._seal(m.request))

    def _push(self, sender: bytes, m: wire.Push) -> list[Answer]:
        name = (m.epoch, m.seq)
        ids = self._ids(m.sections, m.ids)
        slices = wire.row_slices(m.sections)
        hints = self._hints.pop(m.pulled, None)
        if hints is not None and any(t not in hints or hints[t].size != x.size + 1 for t, x in ids.items()):
            hints = None
        push = PushRequest(
            client=m.client,
            epoch=m.epoch,
            seq=m.seq,
            ids=ids,
            gradients=dict(zip(ids, unpack(m.sections, m.gradients), strict=True)),
            versions=None if m.versions is None else {t: m.versions[part] for t, part in zip(ids, slices, strict=True)},
            hints=hints,
            lr_factor=m.lr_factor,
            distinct=True,
            merge=m.merge,
        )
        again = self._waiting.get((m.client, name))
        before = self.service.has(m.client, name)
        acks = self.service.offer(push, m.previous, m.request)
        if not acks:
            self._waiting[m.client, name] = (sender, m.request)
            if again is None:
                return []
            there, merge = self.service.step_of(name)
            return [(sender, self._sealed(wire.Held(there=there, merge=merge), m.request))]
        answers = []
        for client, ack in acks.items():
            to = (sender, m.request) if client == m.client else self._waiting.pop((client, name), None)
            if before:
                self.meters.duplicates += 1
            else:
                self.meters.acknowledged(ack)
            if to is not None:
                answers.append((to[0], self._sealed(_reply(ack), to[1])))
        return answers

    # ---- row storage ----------------------------------------------------------------------------------------------

    def _table(self, number: int) -> str:
        if number >= len(self._directory.tables):
            raise Refusal(Code.REFUSED, f"there is no table number {number}")
        return self._directory.tables[number].name

    def _stats(self, _: bytes, m: wire.Stats) -> Message:
        stats = self.service.stats()
        sizes = (stats[t.name] for t in self._directory.tables)
        return wire.StatsReply(
            sizes=tuple(wire.TableSize(s.rows, s.value_bytes, s.state_bytes, s.overhead_bytes) for s in sizes)
        )

    def _export(self, _: bytes, m: wire.ExportRows) -> Message:
        name = self._table(m.table)
        kept = self._page
        if kept is None or kept[:2] != (m.table, m.partition) or m.first_row == 0:
            kept = (m.table, m.partition, self.service.export_rows(name, m.partition))
        block, total = kept[2], kept[2].ids.size
        end = min(total, m.first_row + m.rows_max) if m.rows_max else total
        # The rest of a partition is kept for the requests for it that follow.
        self._page = kept if end < total else None
        part = slice(min(m.first_row, total), end)
        return wire.BlockReply(
            table=m.table,
            ids=block.ids[part],
            values=block.values[part],
            state=block.state[part],
            first_row=part.start,
            total_rows=total,
        )

    def _reserve(self, _: bytes, m: wire.ReserveRows) -> Message:
        self.service.reserve_rows(self._table(m.table), m.rows, m.partitions)
        return wire.Done()

    def _once(self, request: int, answer: Message) -> Message:
        """Keeps the answer to a request that has no name of its own: should it come again, late, it must not be done
        again."""
        self._done[request] = answer = self._sealed(answer, request)
        if len(self._done) > DONE_KEPT:
            self._done.popitem(last=False)
        self._page = None
        return answer

    def _import(self, _: bytes, m: wire.ImportRows) -> Message:
        self.service.import_rows(self._table(m.table), RowBlock(m.ids, m.values, m.state))
        return self._once(m.request, wire.Done())

    def _erase(self, _: bytes, m: wire.Erase) -> Message:
        return self._once(m.request, wire.Done(count=self.service.erase(self._table(m.table), m.ids)))

    def _clear(self, _: bytes, m: wire.Clear) -> Message:
        self.service.clear()
        return self._once(m.request, wire.Done())

    def _set_clients(self, _: bytes, m: wire.SetClients) -> Message:
        self.service.set_clients(m.clients)
        return self._once(m.request, wire.Done())

    def _stop(self, _: bytes, m: wire.Stop) -> Message:
        self.stopping = True
        return wire.Done()

    def _dropped(self, why: str) -> list[Answer]:
        answers = []
        for (client, name), (to, request) in self._waiting.items():
            text = (
                f"push (epoch {name[0]}, seq {name[1]}) of client {client} waited for the others of its step "
                f"when {why}: it was not applied"
            )
            # Kept: the same request, coming again, must not begin to wait anew.
            answers.append((to, self._once(request, self.failure(request, Code.DROPPED, text))))
        self._waiting.clear()
        return answers


def _reply(ack: Ack) -> wire.AckReply:
    return wire.AckReply(
        applied=ack.applied,
        refused={str(k): n for k, n in ack.refused.items()},
        duplicate=ack.duplicate,
        staleness=ack.staleness,
    )
