"""Messages to frames and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from satrap.errors import WireError
from satrap.wire import control, moving, pooled, rows
from satrap.wire import messages as m
from satrap.wire.body import Opened
from satrap.wire.layout import (
    ENTRY,
    FRAMES_MAX,
    HEADER,
    Head,
    Kind,
    as_bytes,
    over,
    read_directory,
    read_head,
    write_first,
)
from satrap.wire.limits import DEFAULT, Limits
from satrap.wire.parts import Parts, carried

if TYPE_CHECKING:
    from typing_extensions import Buffer


class _Codec(NamedTuple):
    """How one kind of message is written and read."""

    kind: Kind
    write: Callable[[Any], Parts]
    read: Callable[[Opened], m.Message]
    flags: int = 0
    """Those it may have."""
    frames: int = 1
    """With the first."""
    directory: bool = False


def _plain(cls: type[m.Message], kind: Kind) -> _Codec:
    return _Codec(kind, control.write_nothing, lambda o: cls(**carried(o)))


_BY_CLASS: dict[type[m.Message], _Codec] = {
    m.Hello: _Codec(Kind.HELLO, control.write_hello, control.read_hello),
    m.Welcome: _Codec(Kind.WELCOME, control.write_welcome, control.read_welcome),
    m.Pull: _Codec(Kind.PULL, rows.write_pull, rows.read_pull, rows.CREATE | rows.AFTER, 2, True),
    m.RowsReply: _Codec(Kind.ROWS_REPLY, rows.write_rows_reply, rows.read_rows_reply, 0, 3, True),
    m.Push: _Codec(Kind.PUSH, rows.write_push, rows.read_push, rows.VERSIONS | rows.PREVIOUS, 3, True),
    m.AckReply: _Codec(Kind.ACK_REPLY, control.write_ack_reply, control.read_ack_reply, control.DUPLICATE),
    m.Gap: _Codec(Kind.GAP, control.write_gap, control.read_gap, control.LAST),
    m.Held: _Codec(Kind.HELD, control.write_held, control.read_held),
    m.Failure: _Codec(Kind.FAILURE, control.write_failure, control.read_failure),
    m.Done: _Codec(Kind.DONE, control.write_done, control.read_done),
    m.Tables: _plain(m.Tables, Kind.TABLES),
    m.TablesReply: _Codec(Kind.TABLES_REPLY, control.write_text, control.read_tables_reply),
    m.Stats: _plain(m.Stats, Kind.STATS),
    m.StatsReply: _Codec(Kind.STATS_REPLY, control.write_stats_reply, control.read_stats_reply, control.BOUNDED),
    m.ExportRows: _Codec(
        Kind.EXPORT_ROWS, control.write_export_rows, control.read_export_rows, control.CUT | control.BOUND_ONLY
    ),
    m.BlockReply: _Codec(Kind.BLOCK_REPLY, rows.write_block, rows.read_block_reply, 0, 4, True),
    m.ReserveRows: _Codec(Kind.RESERVE_ROWS, control.write_reserve_rows, control.read_reserve_rows),
    m.ImportRows: _Codec(Kind.IMPORT_ROWS, rows.write_block, rows.read_import_rows, 0, 4, True),
    m.Erase: _Codec(Kind.ERASE, rows.write_erase, rows.read_erase, 0, 2, True),
    m.Clear: _plain(m.Clear, Kind.CLEAR),
    m.Clients: _plain(m.Clients, Kind.CLIENTS),
    m.ClientsReply: _Codec(Kind.CLIENTS_REPLY, control.write_clients, control.read_clients_reply),
    m.SetClients: _Codec(Kind.SET_CLIENTS, control.write_clients, control.read_set_clients),
    m.Cut: _Codec(Kind.CUT, control.write_cut, control.read_cut),
    m.CutDone: _Codec(Kind.CUT_DONE, control.write_cut_done, control.read_cut_done, control.ONE),
    m.Metrics: _plain(m.Metrics, Kind.METRICS),
    m.MetricsReply: _Codec(Kind.METRICS_REPLY, control.write_text, control.read_metrics_reply),
    m.Stop: _plain(m.Stop, Kind.STOP),
    moving.Place: _Codec(Kind.PLACE, moving.write_map, moving.read_place),
    moving.Moved: _Codec(Kind.MOVED, moving.write_map, moving.read_moved),
    moving.Owned: _plain(moving.Owned, Kind.OWNED),
    moving.OwnedReply: _Codec(Kind.OWNED_REPLY, moving.write_owned_reply, moving.read_owned_reply),
    moving.Track: _Codec(Kind.TRACK, moving.write_track, moving.read_track),
    moving.Touched: _Codec(
        Kind.TOUCHED, moving.write_touched, moving.read_touched, moving.CONTINUES | moving.GONE, 2, True
    ),
    moving.Release: _Codec(Kind.RELEASE, moving.write_release, moving.read_release),
    moving.Accept: _Codec(Kind.ACCEPT, moving.write_accept, moving.read_accept),
    moving.Forget: _Codec(Kind.FORGET, moving.write_forget, moving.read_forget),
    moving.ReadRows: _Codec(Kind.READ_ROWS, moving.write_read_rows, moving.read_read_rows, 0, 2, True),
    pooled.Join: _Codec(Kind.JOIN, pooled.write_join, pooled.read_join),
    pooled.Lookup: _Codec(Kind.LOOKUP, pooled.write_lookup, pooled.read_lookup, pooled.CREATE, 4, True),
    pooled.PooledReply: _Codec(Kind.POOLED_REPLY, pooled.write_pooled_reply, pooled.read_pooled_reply, 0, 2, True),
    pooled.PushPooled: _Codec(Kind.PUSH_POOLED, pooled.write_push_pooled, pooled.read_push_pooled, 0, 2, True),
    pooled.PooledAck: _Codec(Kind.POOLED_ACK, pooled.write_pooled_ack, pooled.read_pooled_ack, control.DUPLICATE),
}
_BY_KIND = {c.kind: c for c in _BY_CLASS.values()}


def encode(message: m.Message) -> list[bytes | memoryview]:
    """The frames of a message. Arrays become frames without a copy and must not change until they are sent.

    Raises WireError where a field does not fit, an array has another size than the directory says, or tables do not
    ascend. Thread-safe.

    >>> [len(frame) for frame in encode(m.Done(request=7))]
    [48]
    """
    codec = _BY_CLASS.get(type(message))
    if codec is None:
        raise WireError(f"{type(message).__name__} is not a message")
    parts = codec.write(message)
    numbers = (message.request, message.life, message.placement)
    first = write_first(codec.kind, parts.flags, numbers, parts.sections, parts.body, 1 + len(parts.frames))
    return [first, *parts.frames]


def decode(frames: Sequence[Buffer], limits: Limits = DEFAULT) -> m.Message:
    """The message in these frames: bytes, memoryviews or frames of a socket. Thread-safe.

    Arrays are views of the frames, except those of frames that lie at an odd address. Raises WireError, before
    anything is allocated for what the message claims, where it is malformed or above a limit.

    >>> decode(encode(m.Done(request=7, count=2)))
    Done(request=7, placement=0, life=0, count=2)
    """
    if not 1 <= len(frames) <= FRAMES_MAX:
        raise over("message", "frames", len(frames), FRAMES_MAX)
    views = [as_bytes(f) for f in frames]
    for i, view in enumerate(views):
        if view.nbytes > limits.frame_bytes:
            raise over("message", f"bytes of frame {i}", view.nbytes, limits.frame_bytes)
    head = read_head(views[0], len(views), limits)
    codec = _BY_KIND[head.kind]
    _check(head, codec, len(views))
    sections = read_directory(views[0], head, limits)
    opened = Opened(head, sections, views[0], views[1:], limits, HEADER.size + head.entries * ENTRY.size)
    message = codec.read(opened)
    opened.end()
    return message


def _check(head: Head, codec: _Codec, frames: int) -> None:
    """The header against what a message of its kind has."""
    where = head.kind.name
    if head.flags & ~codec.flags:
        raise WireError(f"{where}: unknown flags {head.flags & ~codec.flags:#x}")
    want = rows.frames_of_push(head.flags) if head.kind is Kind.PUSH else codec.frames
    if frames != want:
        raise WireError(f"{where}: {frames} frames, it has {want}")
    if head.entries and not codec.directory:
        raise WireError(f"{where}: it has no directory, got {head.entries} tables")
