"""Requests to answers: what a server does, without its socket. U unique ids of all tables of a request."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from satrap import wire
from satrap.errors import JournalError, ServiceError, StoreError
from satrap.ps.cutting import Cutting, of_cut, page_of
from satrap.ps.keys import Role
from satrap.ps.local import LocalService
from satrap.ps.meters import Meters
from satrap.ps.owning import COORDINATORS, NotNow, Owning, check_epoch
from satrap.ps.packing import LEAST_VALUE_SCALE, Directory, pack_fitted, unpack
from satrap.ps.protocol import Ack, PushRequest, RowBlock
from satrap.ps.pushes import MissingPush, Name
from satrap.schema import WireFormat
from satrap.store import SEAL_WORDS, bound_partition
from satrap.wire import Code, Failure, Message

_log = logging.getLogger("satrap.ps")

HINTS_KEPT = 64
"""Pulls of which the server remembers where it found the rows, for the pushes to come."""
DONE_KEPT = 4096
PULLS_KEPT = 4096
"""Pulls that bounded tables have counted, which must not be counted again when they come again."""
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
    wire.Cut: Role.ADMIN,
    wire.CutDone: Role.ADMIN,
    wire.Stop: Role.ADMIN,
    **dict.fromkeys(COORDINATORS, Role.ADMIN),
}
"""The least role that may ask. What is not here is no request."""
WITHOUT_HELLO = (wire.Hello, wire.Metrics, wire.Stop, wire.Tables)
"""What someone may ask who knows neither the tables nor the placement."""

RECORDED = (wire.Erase, wire.ImportRows, wire.ReserveRows, wire.Clear, wire.SetClients)
"""Requests that change what a server holds, whatever they find; of pushes and pulls only some do."""

MOVES = (wire.Place, wire.Release, wire.Accept, wire.Forget)
"""Of a coordinator's requests, those that are recorded where they change something."""

NOBODY = b""
"""Who waits for an answer to what was asked in an earlier life of the server, until it is asked again."""
CLEARED = "the rows were cleared or restored"

Answer = tuple[bytes, Message]
"""(to whom, what)"""


class Recorder(Protocol):
    """Is told of everything that changes state before the change. What it raises (JournalError) prevents it."""

    def record(self, request: Message) -> None:
        """A push that will be applied or held, or a request of RECORDED."""

    def before_creation(self) -> None:
        """A pull may now make rows."""

    def after_creation(self, pull: wire.Pull, *, counted: bool) -> None:
        """This one has, or has not: called before it is answered. `counted`: bounded tables have taken note of it."""

    def settle(self) -> None:
        """Whatever has happened is to be recorded, before what depends on it is answered."""

    def clock(self, seconds: int) -> None:
        """Rows that expire by the clock go by this time from here on."""

    def placement(self, epoch: int) -> None:
        """The server goes by another placement; what was held is dropped."""


@dataclass(slots=True)
class _Session:
    """What the server knows of a connection."""

    client: int
    who: str
    barrier: int = 0
    """Number of its last request that removed or replaced rows. An earlier pull that comes later makes no rows."""
    newest_push: int = 0
    """Highest number of its pushes so far."""
    reset: int = 0
    """Pushes up to this number came before the rows were cleared or restored: the filter that would know one again is
    gone, and it is refused."""


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
        service.watch(self.meters.heat)
        self.recorder: Recorder | None = None
        self.history_text: Callable[[], str] = str
        """Metrics of the history, where one is kept."""
        self.versions_known = True
        """False: rows have come back from a snapshot, which does not hold their versions."""
        self._index = index
        self._directory = Directory.of(service.tables())
        self.fingerprint = self._directory.fingerprint(seed)
        self.owning = Owning(service, self._directory, index)
        self._sessions: OrderedDict[bytes, _Session] = OrderedDict()
        self._waiting: dict[tuple[int, Name], tuple[bytes, int]] = {}
        """Held pushes: who waits for the answer, to which request."""
        self._hints: OrderedDict[int, dict[str, NDArray[np.uint32]]] = OrderedDict()
        self._done: OrderedDict[int, Message] = OrderedDict()
        self.counted: OrderedDict[int, None] = OrderedDict()
        """Requests that are pulls which bounded tables have taken note of."""
        self._page: tuple[int, int, RowBlock] | None = None
        self.cut = Cutting(service)
        self._actions: dict[type[Message], Callable[[bytes, Any], Message | None]] = {
            wire.Hello: self._hello,
            wire.Pull: self._pull,
            wire.Tables: lambda _, m: wire.TablesReply(text=msgspec.json.encode(self._directory.tables).decode()),
            wire.Stats: self._stats,
            wire.Metrics: lambda _, m: wire.MetricsReply(text=self.metrics_text()),
            wire.Clients: lambda _, m: wire.ClientsReply(clients=self.service.newest()),
            wire.ExportRows: self._export,
            wire.ReserveRows: self._reserve,
            wire.ImportRows: self._import,
            wire.Erase: self._erase,
            wire.Clear: self._clear,
            wire.SetClients: self._set_clients,
            wire.Cut: self._begin_cut,
            wire.CutDone: lambda _, m: self.cut.done(m),
            wire.Stop: self._stop,
        }

    def handle(self, sender: bytes, request: Message, role: Role) -> list[Answer]:
        """The answers that a request brings about, each with its receiver. Raises nothing: what fails is a Failure."""
        try:
            self._admit(sender, request, role)
            if request.request in self._done:
                return [(sender, self._done[request.request])]
            if isinstance(request, COORDINATORS):
                return self._coordinate(sender, request)
            if self.owning.stale(request.placement) and not isinstance(request, WITHOUT_HELLO) and not of_cut(request):
                return self._stale(sender, request)
            if isinstance(request, wire.Push):
                self._check_order(self._sessions[sender], request)
                return self._push(sender, request)
            if isinstance(request, wire.Clear | wire.Erase | wire.ImportRows):
                self._sessions[sender].barrier = request.request
            if self.recorder is not None and isinstance(request, RECORDED):
                self.recorder.record(request)
            answer = self._actions[type(request)](sender, request)
            if isinstance(request, wire.Clear | wire.SetClients):
                self._begin_anew(sender, request.request)
            answers = [] if answer is None else [(sender, self._sealed(answer, request.request))]
            if isinstance(request, wire.Clear | wire.SetClients):
                answers += self._dropped(CLEARED)
            return answers
        except Refusal as e:
            return [(sender, self.failure(request.request, e.code, str(e)))]
        except (StoreError, NotNow) as e:
            return [(sender, self.failure(request.request, Code.REFUSED, str(e)))]
        except JournalError as e:
            _log.error("%s", e)
            return [(sender, self.failure(request.request, Code.INTERNAL, str(e)))]
        except MissingPush as e:
            self.meters.gaps += 1
            return [(sender, self._sealed(wire.Gap(last=e.last), request.request))]
        except Exception as e:
            # One request must not end the server for everyone.
            _log.exception("request %s failed", type(request).__name__)
            return [(sender, self.failure(request.request, Code.INTERNAL, f"{type(e).__name__}: {e}"))]

    def replay(self, m: Message) -> None:
        """Does what a recorded request did, without an answer. Raises JournalError where it cannot have happened so."""
        try:
            if isinstance(m, wire.Push):
                self._push(NOBODY, m)
            elif isinstance(m, wire.Pull):
                ids = self._ids(m.sections, m.ids)
                self.service.store.pull_flat(ids, create=True)
                if not self.service.store.bounded.isdisjoint(ids):
                    self._count(m.request)
            elif isinstance(m, RECORDED):
                self._actions[type(m)](NOBODY, m)
                if isinstance(m, wire.Clear | wire.SetClients):
                    self._dropped(CLEARED)
            elif isinstance(m, MOVES):
                self._move(m)
            else:
                raise JournalError(f"a {type(m).__name__} changes nothing, and is in the journal")
        except (Refusal, StoreError):
            pass  # as it was then: recorded, then refused
        except MissingPush as e:
            raise JournalError(f"a push is in the journal without the one before it: {e}") from e

    def forget_waiting(self) -> None:
        """Nobody waits for an answer."""
        self._waiting.clear()

    def wait_for(self, push: wire.Push) -> None:
        """A push that is held waits for others; nobody has asked for its answer since the server began."""
        self._waiting[push.client, (push.epoch, push.seq)] = (NOBODY, push.request)

    @property
    def done(self) -> Mapping[int, Message]:
        """Request → answer, of requests without a name of their own that must not be done again."""
        return self._done

    @done.setter
    def done(self, answers: Mapping[int, Message]) -> None:
        self._done = OrderedDict(answers)

    def failure(self, request: int, code: Code, text: str) -> Message:
        """The answer to a request that was not done."""
        self.meters.failures[code.name.lower()] += 1
        return self._sealed(Failure(code=code, text=text), request)

    def advance(self, epoch: int) -> list[Answer]:
        """Goes by a placement of this epoch from now on: requests by an older one are refused."""
        if epoch < self.epoch:
            raise ServiceError(f"server {self._index} goes by placement {self.epoch}; {epoch} is older")
        if self.recorder is not None:
            self.recorder.placement(epoch)
        self.epoch = epoch
        self.cut.lose("the job has begun anew")
        self.owning.begin()
        self.service.drop_held()
        return self._dropped("the placement has changed")

    def renew(self, epoch: int) -> list[Answer]:
        """`advance`, and then without any rows and clients."""
        answers = self.advance(epoch)
        if self.recorder is not None:
            self.recorder.record(wire.Clear())
        self.service.clear()
        return answers

    def metrics_text(self) -> str:
        """The text format of Prometheus."""
        own = self.meters.text(self.service.stats(), held=self.service.held, clients=len(self._sessions))
        return own + self.history_text()

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
        wrong = check_epoch(request.placement, self.epoch, self._index)
        if wrong is not None:
            raise Refusal(Code.PLACEMENT, wrong)
        if sender not in self._sessions and kind is not wire.Hello:
            raise Refusal(Code.HELLO_FIRST, "who is it? Say hello first")

    def _begin_anew(self, sender: bytes, request: int) -> None:
        """The filter against applying a push twice has just been replaced: pushes of before it are over."""
        self._sessions[sender].newest_push = max(request, self._sessions[sender].newest_push)
        for session in self._sessions.values():
            session.reset = session.newest_push

    def _check_order(self, session: _Session, push: wire.Push) -> None:
        if push.request <= session.reset:
            text = f"push (epoch {push.epoch}, seq {push.seq}) of client {push.client} was sent before {CLEARED}"
            raise Refusal(Code.DROPPED, text)
        session.newest_push = max(session.newest_push, push.request)

    # ---- moves -----------------------------------------------------------------------------------------------------

    def _stale(self, sender: bytes, m: Message) -> list[Answer]:
        """The answer to who does not know of this server's last move."""
        if isinstance(m, wire.Push):
            # Only what was answered before is known to have been applied: a part of an older push may be one that was
            # divided by the move before this one, and has not come in time.
            ack = self.service.kept(m.client, (m.epoch, m.seq), m.request)
            if ack is not None:
                self.meters.duplicates += 1
                return [(sender, self._sealed(ack_reply(ack), m.request))]
        moved = self.owning.moved()
        if moved is None:
            self.owning.parked[sender, m.request] = None
            return []
        return [(sender, self._sealed(moved, m.request))]

    def _coordinate(self, sender: bytes, m: Message) -> list[Answer]:
        """Does a coordinator's part of a move."""
        owning = self.owning
        match m:
            case wire.Owned():
                answer = owning.owned()
            case wire.Track():
                answer = owning.track(m)
            case wire.ReadRows():
                answer = owning.read(self._table(m.table), m.table, m)
            case wire.Release():
                if owning.check_release(m):
                    self._record(m)
                    self._hand_back()
                answer = owning.release(m)
            case wire.Accept():
                if owning.check_accept(m):
                    self._record(m)
                    self._move(m)
                answer = wire.Done()
            case wire.Forget():
                owning.check_forget(m)
                self._record(m)
                # Once: coming again, late, it would remove what has been copied here since.
                answer = self._once(m.request, owning.forget(m))
            case wire.Place():
                self._record(m)
                answer = owning.place(m)
            case _:
                raise Refusal(Code.MALFORMED, f"{type(m).__name__} is no request")
        answers = [(sender, self._sealed(answer, m.request))]
        moved = owning.moved()
        if moved is not None and owning.parked:
            answers += [(to, self._sealed(moved, request)) for to, request in owning.parked if to != NOBODY]
            owning.parked.clear()
        return answers

    def _move(self, m: Message) -> None:
        """Changes what it owns, as recorded."""
        match m:
            case wire.Place():
                self.owning.place(m)
            case wire.Release() | wire.Accept():
                self._hand_back()
                self.owning.restore(m)
                # Of rows that came, it is not known how often they were updated.
                self.versions_known &= isinstance(m, wire.Release)
            case wire.Forget():
                self._once(m.request, self.owning.forget(m))

    def _hand_back(self) -> None:
        """What waits for others of its step waits for the new placement instead, to be divided by that."""
        for client, name, _ in self.service.hand_back():
            waiting = self._waiting.pop((client, name), None)
            if waiting is not None:
                self.owning.parked[waiting] = None

    def _record(self, m: Message) -> None:
        if self.recorder is not None:
            self.recorder.record(m)

    def _hello(self, sender: bytes, m: wire.Hello) -> Message:
        if m.protocol != wire.PROTOCOL:
            raise Refusal(Code.PROTOCOL, f"it speaks version {wire.PROTOCOL}, this client version {m.protocol}")
        if m.fingerprint != self.fingerprint:
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
        store = self.service.store
        counted = create and not store.bounded.isdisjoint(ids)
        if counted and m.request in self.counted:
            create = counted = False  # it has made its rows, and used those there are
            if self.recorder is not None:
                self.recorder.settle()  # a disk that was full may owe its record still
        if create and self.recorder is not None:
            self.recorder.before_creation()
        if counted and self.service.timed:
            self._set_clock(int(self.service.now()))
        had = self._rows_made(ids) if create else 0
        try:
            flat, versions, hints = store.pull_flat(ids, create=create)
        except StoreError:
            if create and self.recorder is not None:
                self.recorder.after_creation(m, counted=counted)  # some of it was done before memory ran out
            raise
        if create:
            self.meters.rows_made += self._rows_made(ids) - had
            if counted:
                self._count(m.request)
            if self.recorder is not None:
                self.recorder.after_creation(m, counted=counted)
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
        sections, values = pack_fitted(m.sections, rows, LEAST_VALUE_SCALE, [LEAST_VALUE_SCALE] * len(rows))
        return wire.RowsReply(sections=sections, values=values, versions=versions, **self._seal(m.request))

    def _rows_made(self, ids: Mapping[str, NDArray[np.uint64]]) -> int:
        """Rows of these tables, those that have gone again counted too."""
        store = self.service.store
        return sum(store.bound_counts(t)[0] if t in store.bounded else store.size(t)[0] for t in ids)

    def _count(self, request: int) -> None:
        self.counted[request] = None
        if len(self.counted) > PULLS_KEPT:
            self.counted.popitem(last=False)

    def _set_clock(self, seconds: int) -> None:
        if seconds == self.service.store.clock:
            return
        if self.recorder is not None:
            self.recorder.clock(seconds)
        self.service.store.clock = seconds

    def push_request(self, m: wire.Push) -> PushRequest:
        """What a push asks for, its gradients as numbers. Raises Refusal where it does not fit the tables."""
        ids = self._ids(m.sections, m.ids)
        slices = wire.row_slices(m.sections)
        hints = self._hints.pop(m.pulled, None)
        if hints is not None and any(t not in hints or hints[t].size != x.size + SEAL_WORDS for t, x in ids.items()):
            hints = None
        # A pull of before the snapshot saw versions that the rows have no more.
        known = self.versions_known or hints is not None
        return PushRequest(
            client=m.client,
            epoch=m.epoch,
            seq=m.seq,
            ids=ids,
            gradients=dict(zip(ids, unpack(m.sections, m.gradients), strict=True)),
            versions=None
            if m.versions is None or not known
            else {t: m.versions[part] for t, part in zip(ids, slices, strict=True)},
            hints=hints,
            lr_factor=m.lr_factor,
            distinct=True,
            merge=m.merge,
        )

    def _push(self, sender: bytes, m: wire.Push) -> list[Answer]:
        name = (m.epoch, m.seq)
        push = self.push_request(m)
        again = self._waiting.get((m.client, name))
        before = self.service.kept(m.client, name, m.request) is not None
        record = None if self.recorder is None else partial(self.recorder.record, m)
        acks = self.service.offer(push, m.previous, m.request, record)
        if not acks:
            self._waiting[m.client, name] = (sender, m.request)
            if again is None:
                return []
            there, merge = self.service.step_of(name)
            return [(sender, self._sealed(wire.Held(there=there, merge=merge), m.request))]
        answers = []
        for client, ack in acks.items():
            to = (sender, m.request) if client == m.client else self._waiting.pop((client, name), None)
            if before or ack.duplicate:
                self.meters.duplicates += 1
            else:
                self.meters.acknowledged(ack)
            if to is not None and to[0] != NOBODY:
                answers.append((to[0], self._sealed(ack_reply(ack), to[1])))
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
            sizes=tuple(wire.TableSize(*(getattr(s, f) for f in wire.TableSize._fields)) for s in sizes)
        )

    def _export(self, _: bytes, m: wire.ExportRows) -> Message:
        name = self._table(m.table)
        if m.cut:
            return page_of(self.cut.block(name, m), m)
        if m.bound_only:
            return self.owning.beside_rows(name, m)
        kept = self._page
        if kept is None or kept[:2] != (m.table, m.partition) or m.first_row == 0:
            kept = (m.table, m.partition, self.service.export_rows(name, m.partition))
        page = page_of(kept[2], m)
        # The rest of a partition is kept for the requests for it that follow.
        self._page = kept if page.first_row + page.ids.size < page.total_rows else None
        return page

    def _begin_cut(self, _: bytes, m: wire.Cut) -> Message:
        # Once: coming again, late, it would begin one that nobody ends.
        self.cut.begin(m.number)
        return self._once(m.request, wire.Done())

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
        name = self._table(m.table)
        self.service.import_rows(name, RowBlock(m.ids, m.values, m.state, m.marks, m.bound))
        return self._once(m.request, wire.Done(count=self._rows_beside(name, m)))

    def _rows_beside(self, name: str, m: wire.ImportRows) -> int:
        """Whoever gives a bounded table what it keeps for a partition is told how many rows that has then."""
        partition = self.service.partitions if m.bound is None else bound_partition(m.bound)
        return self.service.store.rows_of(name, partition) if partition < self.service.partitions else 0

    def _erase(self, _: bytes, m: wire.Erase) -> Message:
        return self._once(m.request, wire.Done(count=self.service.erase(self._table(m.table), m.ids)))

    def _clear(self, _: bytes, m: wire.Clear) -> Message:
        self.service.clear()
        self.owning.forget_notes()
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
            failure = self._once(request, self.failure(request, Code.DROPPED, text))
            if to != NOBODY:
                answers.append((to, failure))
        self._waiting.clear()
        return answers


def ack_reply(ack: Ack, request: int = 0) -> wire.AckReply:
    """An acknowledgement as a message."""
    return wire.AckReply(
        request=request,
        applied=ack.applied,
        refused={str(k): n for k, n in ack.refused.items()},
        duplicate=ack.duplicate,
        staleness=ack.staleness,
    )
