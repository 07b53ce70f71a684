"""The part of a server's state that is not rows, as journal records: who pushed what, what waits, what was answered.

PLACEMENT epoch
MESSAGE SetClients                 client → its last push that was applied
MESSAGE Push …                     those that wait for others of their step, with their requests
ACK …                              acknowledgements that may be asked for again
MESSAGE Done or Failure …          answers to requests that must not be done again
MESSAGE Touched                    client → its last push elsewhere in partitions that came here
MESSAGE Place, Release …, Accept … what is known of moves; an Accept of number 0: the partition's filter alone
CLOCK seconds                      where rows expire by the clock
PULLS numbers                      where tables are bounded: pulls that they have counted
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from satrap import wire
from satrap.durable.record import Kind, Record
from satrap.errors import JournalError, WireError
from satrap.ps.handling import Handler, ack_reply
from satrap.ps.packing import Directory, joined
from satrap.ps.protocol import Ack, PushRequest, Refused

if TYPE_CHECKING:
    from typing_extensions import Buffer

EPOCH = struct.Struct("<Q")
_WHOSE = struct.Struct("<QQQ")


@dataclass(frozen=True, slots=True)
class State:
    """The state of a server between two requests. What it refers to is not changed any more, so taking it costs no
    copies, and it may be written by another thread."""

    directory: Directory
    epoch: int
    clients: dict[int, tuple[int, int]]
    held: list[tuple[PushRequest, int | None]]
    acks: list[tuple[int, tuple[int, int], int, Ack]]
    done: list[wire.Message]
    elsewhere: dict[int, tuple[int, int]]
    moves: list[wire.Message]
    clock: int
    counted: NDArray[np.uint64]

    @classmethod
    def of(cls, handler: Handler) -> State:
        """As it is now. By the thread that serves."""
        service = handler.service
        return cls(
            directory=Directory.of(service.tables()),
            epoch=handler.epoch,
            clients=service.clients(),
            held=service.pushes.held_pushes(),
            acks=list(service.pushes.kept_acks()),
            done=list(handler.done.values()),
            elsewhere=service.pushes.elsewhere,
            moves=list(handler.owning.records()),
            clock=service.store.clock,
            counted=np.fromiter(handler.counted, np.uint64, len(handler.counted)),
        )

    def records(self) -> Iterator[tuple[Kind, Sequence[Buffer]]]:
        """As records."""
        yield Kind.PLACEMENT, [EPOCH.pack(self.epoch)]
        yield Kind.MESSAGE, wire.encode(wire.SetClients(clients=self.clients))
        for push, request in self.held:
            yield Kind.MESSAGE, wire.encode(_message(self.directory, push, request or 0))
        for client, (epoch, seq), request, ack in self.acks:
            (frame,) = wire.encode(ack_reply(ack, request=request))
            yield Kind.ACK, [frame, _WHOSE.pack(client, epoch, seq)]
        for answer in self.done:
            yield Kind.MESSAGE, wire.encode(answer)
        if self.elsewhere:
            nothing = np.empty(0, np.uint64)
            yield (
                Kind.MESSAGE,
                wire.encode(wire.Touched(sections=(), ids=nothing, continues=True, clients=self.elsewhere)),
            )
        for move in self.moves:
            yield Kind.MESSAGE, wire.encode(move)
        if self.clock:
            yield Kind.CLOCK, [EPOCH.pack(self.clock)]
        if self.counted.size:
            yield Kind.PULLS, [self.counted.view(np.uint8).data]


def _message(directory: Directory, push: PushRequest, request: int) -> wire.Push:
    """A push as a message, its gradients in fp32, which every format on the wire widens to."""
    names = [n for n in directory.ordered(push.ids) if push.ids[n].size]
    numbers = directory.numbers
    versions = None
    if push.versions is not None:
        versions = joined([push.versions[n] for n in names]) if names else np.empty(0, np.uint8)
    return wire.Push(
        request=request,
        client=push.client,
        epoch=push.epoch,
        seq=push.seq,
        sections=tuple(wire.Section(numbers[n], push.ids[n].size, directory.tables[numbers[n]].dim) for n in names),
        ids=joined([push.ids[n] for n in names]) if names else np.empty(0, np.uint64),
        gradients=joined([push.gradients[n] for n in names]).view(np.uint8) if names else np.empty(0, np.uint8),
        versions=versions,
        merge=push.merge,
        lr_factor=push.lr_factor,
    )


def restore_state(handler: Handler, records: Iterable[Record], limits: wire.Limits, where: str) -> None:
    """Gives a server the state in these records, whatever it had. Raises JournalError."""
    held: list[tuple[PushRequest, int | None]] = []
    waiting: list[wire.Push] = []
    clients: dict[int, tuple[int, int]] = {}
    acks: list[tuple[int, tuple[int, int], int, Ack]] = []
    done: dict[int, wire.Message] = {}
    elsewhere: dict[int, tuple[int, int]] = {}
    moves: list[wire.Place | wire.Release | wire.Accept] = []
    counted = np.zeros(0, np.uint64)
    for record in records:
        if record.kind is Kind.PLACEMENT:
            handler.epoch = epoch_of(record, where)
            continue
        if record.kind is Kind.CLOCK:
            handler.service.store.clock = epoch_of(record, where)
            continue
        if record.kind is Kind.PULLS:
            counted = np.frombuffer(record.frames[0], np.uint64)
            continue
        message = message_of(record, limits, where)
        match message:
            case wire.SetClients():
                clients = dict(message.clients)
            case wire.Push():
                held.append((handler.push_request(message), message.request or None))
                waiting.append(message)
            case wire.AckReply() if record.kind is Kind.ACK and len(record.frames) == 2:
                client, epoch, seq = _WHOSE.unpack(record.frames[1])
                acks.append((client, (epoch, seq), message.request, _ack(message)))
            case wire.Done() | wire.Failure():
                done[message.request] = message
            case wire.Touched():
                elsewhere = dict(message.clients)
            case wire.Place() | wire.Release() | wire.Accept():
                moves.append(message)
            case _:
                raise JournalError(f"{where}: a {type(message).__name__}, at byte offset {record.offset}, is no state")
    handler.service.pushes.restore(clients, held)
    for client, name, request, ack in acks:
        handler.service.pushes.keep_ack(client, name, request, ack)
    handler.done = done
    handler.counted = OrderedDict.fromkeys(counted.tolist())
    handler.forget_waiting()
    for push in waiting:
        handler.wait_for(push)
    handler.owning.begin()
    for move in moves:
        handler.owning.restore(move)
    handler.service.pushes.elsewhere = elsewhere


def message_of(record: Record, limits: wire.Limits, where: str) -> wire.Message:
    """The message in a record. Raises JournalError."""
    frames = record.frames[:1] if record.kind is Kind.ACK else record.frames
    try:
        return wire.decode(frames, limits)
    except WireError as e:
        raise JournalError(f"{where}: record {record.sequence}, at byte offset {record.offset}: {e}") from e


def epoch_of(record: Record, where: str) -> int:
    """The number in a record of a placement or a clock. Raises JournalError."""
    if len(record.frames) != 1 or record.frames[0].nbytes != EPOCH.size:
        raise JournalError(f"{where}: record {record.sequence}, at byte offset {record.offset}, holds no number")
    (epoch,) = EPOCH.unpack(record.frames[0])
    return int(epoch)


def _ack(m: wire.AckReply) -> Ack:
    return Ack(
        applied=m.applied,
        refused={Refused(k): n for k, n in m.refused.items()},
        duplicate=m.duplicate,
        staleness=m.staleness,
    )
