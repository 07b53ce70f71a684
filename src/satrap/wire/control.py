"""Messages that carry no rows: who is who, what became of a push, sizes, clients, failures."""

from __future__ import annotations

import struct
from typing import Any, TypeVar

import numpy as np

from satrap.errors import WireError
from satrap.wire.body import Opened, clients_bytes, text_bytes
from satrap.wire.layout import over, pack
from satrap.wire.messages import (
    REASONS,
    STALENESS_BINS,
    AckReply,
    ClientsReply,
    Code,
    Cut,
    CutDone,
    Done,
    ExportRows,
    Failure,
    Gap,
    Held,
    Hello,
    Message,
    MetricsReply,
    ReserveRows,
    SetClients,
    StatsReply,
    TableSize,
    TablesReply,
    Welcome,
)
from satrap.wire.parts import Parts, carried

DUPLICATE = 1
LAST = 1
BOUNDED = 1
CUT, BOUND_ONLY = 1, 2
ONE = 1
FAILURE_BYTES = 8192
"""Of a failure's text: what is longer is cut, so that a failure can always be sent."""

_HELLO = struct.Struct("<Q32sHHI")
_WELCOME = struct.Struct("<IIHHI")
_ACK = struct.Struct("<QII")
_TALLY = struct.Struct("<IIQ")
_NAME = struct.Struct("<QQ")
_NUMBER = struct.Struct("<Q")
_SIZE, _COUNTS = struct.Struct("<QQQQ"), struct.Struct("<QQQQ")
_EXPORT = struct.Struct("<QQII")
_RESERVE = struct.Struct("<QII")
_CUT_DONE = struct.Struct("<QII")
_HELD = struct.Struct("<II")
_PARTITION = struct.Struct("<H")
PARTITIONS_MAX = 65536

M = TypeVar("M", bound=Message)


def write_hello(m: Hello) -> Parts:
    if len(m.fingerprint) != 32:
        raise WireError(f"HELLO: a fingerprint has 32 bytes, got {len(m.fingerprint)}")
    return Parts(body=pack(_HELLO, "HELLO", m.client, m.fingerprint, m.protocol, 0, 0) + text_bytes(m.who, "HELLO"))


def read_hello(o: Opened) -> Hello:
    client, fingerprint, protocol, *zeros = o.take(_HELLO)
    _need_zero(o, *zeros)
    return Hello(**carried(o), client=client, fingerprint=fingerprint, protocol=protocol, who=o.text())


def write_welcome(m: Welcome) -> Parts:
    return Parts(body=pack(_WELCOME, "WELCOME", m.server, m.partitions, m.protocol, 0, 0))


def read_welcome(o: Opened) -> Welcome:
    server, partitions, protocol, *zeros = o.take(_WELCOME)
    _need_zero(o, *zeros)
    return Welcome(**carried(o), server=server, partitions=partitions, protocol=protocol)


def write_ack_reply(m: AckReply) -> Parts:
    return ack_parts(m, "ACK_REPLY")


def read_ack_reply(o: Opened) -> AckReply:
    return AckReply(**carried(o), **ack_of(o))


def ack_parts(m: AckReply, where: str) -> Parts:
    """Tallies: the reasons first, then the bins, each ascending and without those that are 0."""
    if m.staleness.shape != (STALENESS_BINS,):
        raise WireError(f"{where}: staleness must be [{STALENESS_BINS}], got {list(m.staleness.shape)}")
    unknown = next((r for r in m.refused if r not in REASONS), None)
    if unknown is not None:
        raise WireError(f"{where}: unknown reason '{unknown}', known: {', '.join(REASONS)}")
    reasons = [(k, m.refused[r]) for k, r in enumerate(REASONS) if m.refused.get(r)]
    bins = [(int(b), int(m.staleness[b])) for b in np.flatnonzero(m.staleness)]
    body = pack(_ACK, where, m.applied, len(reasons), len(bins))
    body += b"".join(pack(_TALLY, where, k, 0, n) for k, n in reasons + bins)
    return Parts(DUPLICATE if m.duplicate else 0, body=body)


def ack_of(o: Opened) -> dict[str, Any]:
    """The fields that `ack_parts` wrote."""
    applied, reasons, bins = o.take(_ACK)
    if reasons > len(REASONS) or bins > STALENESS_BINS:
        raise WireError(f"{o.where}: {reasons} reasons and {bins} bins, there are {len(REASONS)} and {STALENESS_BINS}")
    refused = {REASONS[k]: n for k, n in _tallies(o, reasons, len(REASONS))}
    staleness = np.zeros(STALENESS_BINS, np.int64)
    for b, n in _tallies(o, bins, STALENESS_BINS):
        staleness[b] = n
    return {"applied": applied, "refused": refused, "duplicate": o.flag(DUPLICATE), "staleness": staleness}


def _tallies(o: Opened, count: int, kinds: int) -> list[tuple[int, int]]:
    out: list[tuple[int, int]] = []
    last = -1
    for _ in range(count):
        k, zero, n = o.take(_TALLY)
        _need_zero(o, zero)
        if not last < k < kinds or not 0 < n < 1 << 63:
            raise WireError(f"{o.where}: tally {k} of {n} after tally {last}; there are {kinds}, ascending, from 1 on")
        out.append((k, n))
        last = k
    return out


def write_gap(m: Gap) -> Parts:
    return Parts(0 if m.last is None else LAST, body=pack(_NAME, "GAP", *(m.last or (0, 0))))


def read_gap(o: Opened) -> Gap:
    epoch, seq = o.take(_NAME)
    if not o.flag(LAST):
        _need_zero(o, epoch, seq)
    return Gap(**carried(o), last=(epoch, seq) if o.flag(LAST) else None)


def write_held(m: Held) -> Parts:
    return Parts(body=pack(_HELD, "HELD", m.there, m.merge))


def read_held(o: Opened) -> Held:
    there, merge = o.take(_HELD)
    return Held(**carried(o), there=there, merge=merge)


def write_failure(m: Failure) -> Parts:
    text = m.text.encode("utf-8", "replace")[:FAILURE_BYTES].decode("utf-8", "ignore")
    return Parts(body=pack(_NUMBER, "FAILURE", m.code) + text_bytes(text, "FAILURE"))


def read_failure(o: Opened) -> Failure:
    (number,) = o.take(_NUMBER)
    try:
        code = Code(number)
    except ValueError as e:
        raise WireError(f"FAILURE: unknown code {number}") from e
    text = o.text()
    if len(text.encode()) > FAILURE_BYTES:
        raise over("FAILURE", "bytes of text", len(text.encode()), FAILURE_BYTES)
    return Failure(**carried(o), code=code, text=text)


def write_done(m: Done) -> Parts:
    return Parts(body=pack(_NUMBER, "DONE", m.count))


def read_done(o: Opened) -> Done:
    return Done(**carried(o), count=o.take(_NUMBER)[0])


def write_text(m: TablesReply | MetricsReply) -> Parts:
    return Parts(body=text_bytes(m.text, type(m).__name__))


def read_tables_reply(o: Opened) -> TablesReply:
    return TablesReply(**carried(o), text=o.text())


def read_metrics_reply(o: Opened) -> MetricsReply:
    return MetricsReply(**carried(o), text=o.text())


def write_stats_reply(m: StatsReply) -> Parts:
    sizes = [pack(_SIZE, "STATS_REPLY", *s[:4]) for s in m.sizes]
    bounded = any(any(s[4:]) for s in m.sizes)
    if bounded:
        sizes += [pack(_COUNTS, "STATS_REPLY", *s[4:]) for s in m.sizes]
    return Parts(BOUNDED if bounded else 0, body=pack(_NUMBER, "STATS_REPLY", len(m.sizes)) + b"".join(sizes))


def read_stats_reply(o: Opened) -> StatsReply:
    (n,) = o.take(_NUMBER)
    if n > o.limits.tables:
        raise WireError(f"STATS_REPLY: {n} tables, the limit is {o.limits.tables}")
    o.need(n * _SIZE.size)
    sizes = [o.take(_SIZE) for _ in range(n)]
    if not o.flag(BOUNDED):
        return StatsReply(**carried(o), sizes=tuple(TableSize(*s) for s in sizes))
    o.need(n * _COUNTS.size)
    counts = [o.take(_COUNTS) for _ in range(n)]
    if not any(map(any, counts)):
        raise WireError("STATS_REPLY: counts of bounds that are all zero are left out")
    return StatsReply(**carried(o), sizes=tuple(TableSize(*s, *more) for s, more in zip(sizes, counts, strict=True)))


def write_export_rows(m: ExportRows) -> Parts:
    body = pack(_EXPORT, "EXPORT_ROWS", m.first_row, m.rows_max, m.table, m.partition)
    bound = BOUND_ONLY if m.bound_only else 0
    return Parts(CUT | bound, body=body + pack(_NUMBER, "EXPORT_ROWS", m.cut)) if m.cut else Parts(bound, body=body)


def read_export_rows(o: Opened) -> ExportRows:
    first_row, rows_max, table, partition = o.take(_EXPORT)
    (cut,) = o.take(_NUMBER) if o.flag(CUT) else (0,)
    if o.flag(CUT) and not cut:
        raise WireError("EXPORT_ROWS: a cut has a number that is not 0")
    bound = o.flag(BOUND_ONLY)
    if bound and (cut or first_row or rows_max):
        raise WireError("EXPORT_ROWS: what is kept beside rows is asked for alone, as it is")
    page = {"first_row": first_row, "rows_max": rows_max, "cut": cut, "bound_only": bound}
    return ExportRows(**carried(o), table=table, partition=partition, **page)


def write_cut(m: Cut) -> Parts:
    if not m.number:
        raise WireError("CUT: a cut has a number that is not 0")
    return Parts(body=pack(_NUMBER, "CUT", m.number))


def read_cut(o: Opened) -> Cut:
    (number,) = o.take(_NUMBER)
    if not number:
        raise WireError("CUT: a cut has a number that is not 0")
    return Cut(**carried(o), number=number)


def write_cut_done(m: CutDone) -> Parts:
    one = m.partition is not None
    return Parts(ONE if one else 0, body=pack(_CUT_DONE, "CUT_DONE", m.number, m.partition or 0, 0))


def read_cut_done(o: Opened) -> CutDone:
    number, partition, zero = o.take(_CUT_DONE)
    _need_zero(o, zero)
    if not o.flag(ONE):
        _need_zero(o, partition)
    return CutDone(**carried(o), number=number, partition=partition if o.flag(ONE) else None)


def write_reserve_rows(m: ReserveRows) -> Parts:
    body = pack(_RESERVE, "RESERVE_ROWS", m.rows, m.table, len(m.partitions))
    return Parts(body=body + b"".join(pack(_PARTITION, "RESERVE_ROWS", p) for p in m.partitions))


def read_reserve_rows(o: Opened) -> ReserveRows:
    rows, table, n = o.take(_RESERVE)
    if n > PARTITIONS_MAX:
        raise WireError(f"RESERVE_ROWS: {n} partitions, the limit is {PARTITIONS_MAX}")
    o.need(n * _PARTITION.size)
    partitions = tuple(o.take(_PARTITION)[0] for _ in range(n))
    return ReserveRows(**carried(o), table=table, rows=rows, partitions=partitions)


def write_clients(m: ClientsReply | SetClients) -> Parts:
    return Parts(body=clients_bytes(m.clients, type(m).__name__))


def read_clients_reply(o: Opened) -> ClientsReply:
    return ClientsReply(**carried(o), clients=o.clients())


def read_set_clients(o: Opened) -> SetClients:
    return SetClients(**carried(o), clients=o.clients())


def write_nothing(_: Message) -> Parts:
    return Parts()


def _need_zero(o: Opened, *values: int) -> None:
    if any(values):
        raise WireError(f"{o.where}: a field without a meaning must be zero, got {values}")
