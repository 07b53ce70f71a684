"""What NN workers and embedding workers say to each other, and its bytes.

    request                         reply
    Join                            Welcome
    Lookup                          PooledReply, or Held
    PushPooled                      PooledAck, or Held
    Metrics, Stop                   MetricsReply, Done
    any                             Failure

B samples, N ids of a feature, F pooled features of a run, D a feature's values a row.

A *run* is F neighbouring pooled features of one D and one format: its part of the pooled tensor, [B, F·D], travels as
B·F rows of D values. In directories runs are numbered from 0, sequences behind them, both in the order of the job.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satrap.errors import WireError
from satrap.schema import WireFormat
from satrap.wire.body import Opened, text_bytes
from satrap.wire.control import ack_of, ack_parts
from satrap.wire.layout import over, pack, rows_of, values_bytes, view_of
from satrap.wire.messages import PROTOCOL, AckReply, Message, Section
from satrap.wire.parts import Parts, carried, frame_of

CREATE = 1
LISTS, WEIGHTS = 1, 2
"""Bits of a feature in a `Lookup`."""

_JOIN = struct.Struct("<QQ32sHHI")
_TURN = struct.Struct("<QQQ")
_LOOKUP = struct.Struct("<II")
_PUSH = struct.Struct("<QQQdII")
_SENT = struct.Struct("<QQ")
_MARKS = struct.Struct("<B")


@dataclass(frozen=True, slots=True, kw_only=True)
class Join(Message):
    """An NN worker opens a session, before anything else. Sent again, it changes nothing."""

    client: int
    """The number under which it pushes. An earlier session of this client ends."""
    session: int
    """A random number of its own."""
    fingerprint: bytes
    """32 bytes that name the features, the tables and the seed; an embedding worker with others refuses."""
    who: str = ""
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn(Message):
    """What every request of a session carries. Turns are performed once each, in order, whenever they come."""

    session: int
    turn: int
    """1, 2, 3, …"""
    seen: int
    """The client has the answers of all turns up to this one: they are not kept any longer."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lookup(Turn):
    """The ids of a batch, whose rows are wanted pooled."""

    sections: tuple[Section, ...]
    """One a feature that has ids or lists, by its place among the job's id features: `rows` is N; D is 1, fp32."""
    samples: int
    """B"""
    listed: tuple[bool, ...]
    """By section: whether samples have lists of ids. Otherwise each has one, and N is B."""
    weighted: tuple[bool, ...]
    """By section: whether ids have weights."""
    ids: NDArray[np.uint64]
    """One feature behind the other."""
    lengths: NDArray[np.uint32]
    """[B] for each listed feature, one behind the other: ids of each sample."""
    weights: NDArray[np.float32]
    """[N] for each weighted feature, one behind the other."""
    create: bool = False
    """Training: missing rows are made, and the way back is kept for the gradients."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PooledReply(Message):
    """Pooled features by run, and for each sequence the rows of its ids in the order of the batch."""

    sections: tuple[Section, ...]
    values: NDArray[np.uint8]
    """In the formats of the sections, one behind the other: see `value_slices`."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PushPooled(Turn):
    """Gradients of what a lookup answered. They go to the servers as the push (client, epoch, seq)."""

    epoch: int
    seq: int
    lookup: int
    """Its turn; 0: no batch, an empty push for the others of its step."""
    sections: tuple[Section, ...] = ()
    """As in the reply to the lookup; what is left out has a gradient of zeros."""
    gradients: NDArray[np.uint8]
    merge: int = 1
    lr_factor: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PooledAck(AckReply):
    """What became of a push, on all servers."""

    sent: int = 0
    """Gradients it consisted of, one a unique id."""
    repeated: int = 0
    """As `ps.Ack` has it."""


def write_join(m: Join) -> Parts:
    if len(m.fingerprint) != 32:
        raise WireError(f"JOIN: a fingerprint has 32 bytes, got {len(m.fingerprint)}")
    return Parts(
        body=pack(_JOIN, "JOIN", m.client, m.session, m.fingerprint, m.protocol, 0, 0) + text_bytes(m.who, "JOIN")
    )


def read_join(o: Opened) -> Join:
    client, session, fingerprint, protocol, *zeros = o.take(_JOIN)
    _need_zero(o, *zeros)
    return Join(**carried(o), client=client, session=session, fingerprint=fingerprint, protocol=protocol, who=o.text())


def write_lookup(m: Lookup) -> Parts:
    where = "LOOKUP"
    for s in m.sections:
        _check_feature(where, s)
    if not len(m.sections) == len(m.listed) == len(m.weighted):
        raise WireError(f"{where}: {len(m.sections)} features, {len(m.listed)} and {len(m.weighted)} marks")
    bits = bytes(LISTS * a + WEIGHTS * b for a, b in zip(m.listed, m.weighted, strict=True))
    body = pack(_TURN, where, m.session, m.turn, m.seen) + pack(_LOOKUP, where, m.samples, 0) + bits
    return Parts(
        CREATE if m.create else 0,
        m.sections,
        body,
        (
            frame_of(where, "ids", m.ids, np.uint64, rows_of(m.sections)),
            frame_of(where, "lengths", m.lengths, np.uint32, m.samples * sum(m.listed)),
            frame_of(where, "weights", m.weights, np.float32, _weights(m.sections, m.weighted)),
        ),
    )


def read_lookup(o: Opened) -> Lookup:
    session, turn, seen = _turn(o)
    samples, zero = o.take(_LOOKUP)
    _need_zero(o, zero)
    if samples > o.limits.rows:
        raise over(o.where, "samples", samples, o.limits.rows)
    for s in o.sections:
        _check_feature(o.where, s)
    bits = [int(b) for (b,) in (o.take(_MARKS) for _ in o.sections)]
    if any(b > LISTS + WEIGHTS for b in bits):
        raise WireError(f"{o.where}: a feature has unknown marks, of {max(bits):#x}")
    listed, weighted = tuple(bool(b & LISTS) for b in bits), tuple(bool(b & WEIGHTS) for b in bits)
    wrong = next((s for s, has in zip(o.sections, listed, strict=True) if not has and s.rows != samples), None)
    if wrong is not None:
        raise WireError(f"{o.where}: feature {wrong.table} has no lists and {wrong.rows} ids for {samples} samples")
    lengths = _array(o, 1, "lengths", np.uint32, samples * sum(listed))
    at = 0
    for s, has in zip(o.sections, listed, strict=True):
        if has:
            total = int(lengths[at : at + samples].sum(dtype=np.uint64))
            if total != s.rows:
                raise WireError(f"{o.where}: the lists of feature {s.table} have {total} ids, it has {s.rows}")
            at += samples
    return Lookup(
        **carried(o),
        session=session,
        turn=turn,
        seen=seen,
        sections=o.sections,
        samples=samples,
        listed=listed,
        weighted=weighted,
        ids=_array(o, 0, "ids", np.uint64, rows_of(o.sections)),
        lengths=lengths,
        weights=_array(o, 2, "weights", np.float32, _weights(o.sections, weighted)),
        create=o.flag(CREATE),
    )


def write_pooled_reply(m: PooledReply) -> Parts:
    size = values_bytes(m.sections)
    return Parts(sections=m.sections, frames=(frame_of("POOLED_REPLY", "values", m.values, np.uint8, size),))


def read_pooled_reply(o: Opened) -> PooledReply:
    values = _array(o, 0, "values", np.uint8, values_bytes(o.sections))
    return PooledReply(**carried(o), sections=o.sections, values=values)


def write_push_pooled(m: PushPooled) -> Parts:
    where = "PUSH_POOLED"
    body = pack(_TURN, where, m.session, m.turn, m.seen)
    body += pack(_PUSH, where, m.epoch, m.seq, m.lookup, m.lr_factor, m.merge, 0)
    frame = frame_of(where, "gradients", m.gradients, np.uint8, values_bytes(m.sections))
    return Parts(sections=m.sections, body=body, frames=(frame,))


def read_push_pooled(o: Opened) -> PushPooled:
    session, turn, seen = _turn(o)
    epoch, seq, lookup, lr_factor, merge, zero = o.take(_PUSH)
    _need_zero(o, zero)
    if lookup >= turn or (o.sections and not lookup):
        raise WireError(f"{o.where}: gradients of lookup {lookup} in turn {turn}; a lookup comes before them")
    return PushPooled(
        **carried(o),
        session=session,
        turn=turn,
        seen=seen,
        epoch=epoch,
        seq=seq,
        lookup=lookup,
        sections=o.sections,
        gradients=_array(o, 0, "gradients", np.uint8, values_bytes(o.sections)),
        merge=merge,
        lr_factor=lr_factor,
    )


def write_pooled_ack(m: PooledAck) -> Parts:
    parts = ack_parts(m, "POOLED_ACK")
    return Parts(parts.flags, body=pack(_SENT, "POOLED_ACK", m.sent, m.repeated) + parts.body)


def read_pooled_ack(o: Opened) -> PooledAck:
    sent, repeated = o.take(_SENT)
    return PooledAck(**carried(o), **ack_of(o), sent=sent, repeated=repeated)


def _turn(o: Opened) -> tuple[int, int, int]:
    session, turn, seen = o.take(_TURN)
    if not seen < turn:
        raise WireError(f"{o.where}: turn {turn} with the answers of turns up to {seen} seen")
    return session, turn, seen


def _check_feature(where: str, s: Section) -> None:
    if s[2:] != (1, WireFormat.FP32, 1.0):
        raise WireError(f"{where}: feature {s.table} must have dim 1 and format fp32")


def _weights(sections: tuple[Section, ...], weighted: tuple[bool, ...]) -> int:
    return sum(s.rows for s, has in zip(sections, weighted, strict=True) if has)


def _array(o: Opened, frame: int, what: str, dtype: Any, size: int) -> NDArray[Any]:
    got, want = o.frames[frame].nbytes, size * int(np.dtype(dtype).itemsize)
    if got != want:
        raise WireError(f"{o.where}: {got} bytes of {what}, its first frame speaks of {want}")
    return view_of(o.frames[frame], dtype, (size,))


def _need_zero(o: Opened, *values: int) -> None:
    if any(values):
        raise WireError(f"{o.where}: a field without a meaning must be zero, got {values}")
