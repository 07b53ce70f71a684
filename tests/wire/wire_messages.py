"""Any message, for hypothesis; and one of each kind, pinned byte for byte in `test_wire_golden.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from satrap import wire
from satrap.schema import WireFormat
from satrap.wire import (
    REASONS,
    STALENESS_BINS,
    AckReply,
    BlockReply,
    Clear,
    Clients,
    ClientsReply,
    Code,
    Done,
    Erase,
    ExportRows,
    Failure,
    Gap,
    Held,
    Hello,
    ImportRows,
    Message,
    Metrics,
    MetricsReply,
    Pull,
    Push,
    ReserveRows,
    RowsReply,
    Section,
    SetClients,
    Stats,
    StatsReply,
    Stop,
    Tables,
    TableSize,
    TablesReply,
    Welcome,
    values_bytes,
)

U16, U32, U64 = (st.integers(0, 2**bits - 1) for bits in (16, 32, 64))
BOOL = st.booleans()
NAMES = st.tuples(U64, U64)
CARRIED: dict[str, Any] = {"request": U64, "placement": U32, "life": U64}
CLIENTS = st.dictionaries(U64, NAMES, max_size=5)


@st.composite
def sections(draw: st.DrawFn, *, scaled: bool = True) -> tuple[Section, ...]:
    tables = sorted(draw(st.sets(U16, max_size=4)))
    out = []
    for table in tables:
        form = draw(st.sampled_from(WireFormat))
        scale = 2.0 ** draw(st.integers(-126, 127)) if scaled and form is WireFormat.FP16 else 1.0
        out.append(Section(table, draw(st.integers(0, 5)), draw(st.integers(1, 9)), form, scale))
    return tuple(out)


def bytes_of(count: int, dtype: Any) -> st.SearchStrategy[NDArray[Any]]:
    size = count * np.dtype(dtype).itemsize
    return st.binary(min_size=size, max_size=size).map(lambda raw: np.frombuffer(raw, dtype))


@st.composite
def pulls(draw: st.DrawFn) -> Pull:
    s = draw(sections(scaled=False))
    rows = wire.rows_of(s)
    fields = draw(st.fixed_dictionaries({**CARRIED, "create": BOOL, "after": st.none() | NAMES}))
    return Pull(**fields, sections=s, ids=draw(bytes_of(rows, "u8")))


@st.composite
def rows_replies(draw: st.DrawFn) -> RowsReply:
    s = draw(sections())
    return RowsReply(
        **draw(st.fixed_dictionaries(CARRIED)),
        sections=s,
        values=draw(bytes_of(values_bytes(s), "u1")),
        versions=draw(bytes_of(wire.rows_of(s), "u1")),
    )


@st.composite
def pushes(draw: st.DrawFn) -> Push:
    s = draw(sections())
    rows = wire.rows_of(s)
    return Push(
        **draw(st.fixed_dictionaries({**CARRIED, **{f: U64 for f in ("client", "epoch", "seq", "pulled")}})),
        sections=s,
        ids=draw(bytes_of(rows, "u8")),
        gradients=draw(bytes_of(values_bytes(s), "u1")),
        versions=draw(st.none() | bytes_of(rows, "u1")),
        previous=draw(st.none() | NAMES),
        merge=draw(U32),
        lr_factor=draw(st.floats()),
    )


@st.composite
def blocks(draw: st.DrawFn) -> dict[str, Any]:
    rows, dim, width = draw(st.integers(0, 5)), draw(st.integers(1, 9)), draw(st.integers(0, 9))
    form = draw(st.sampled_from(["f4", "f2"]))
    return {
        **draw(st.fixed_dictionaries({**CARRIED, "table": U16})),
        "ids": draw(bytes_of(rows, "u8")),
        "values": draw(bytes_of(rows * dim, form)).reshape(rows, dim),
        "state": draw(bytes_of(rows * width, "f4")).reshape(rows, width),
    }


@st.composite
def block_replies(draw: st.DrawFn) -> BlockReply:
    block = draw(blocks())
    first = draw(st.integers(0, 2**63))
    return BlockReply(**block, first_row=first, total_rows=first + block["ids"].size + draw(st.integers(0, 2**60)))


@st.composite
def acks(draw: st.DrawFn) -> AckReply:
    staleness = np.zeros(STALENESS_BINS, np.int64)
    for b, n in draw(st.dictionaries(st.integers(0, STALENESS_BINS - 1), st.integers(1, 2**63 - 1))).items():
        staleness[b] = n
    refused = draw(st.dictionaries(st.sampled_from(REASONS), st.integers(1, 2**63 - 1)))
    carried = draw(st.fixed_dictionaries({**CARRIED, "applied": U64, "duplicate": BOOL}))
    return AckReply(**carried, refused=refused, staleness=staleness)


TEXT = st.text(max_size=40)
SIZES = st.lists(st.builds(TableSize, U64, U64, U64, U64), max_size=3).map(tuple)


def any_of(cls: type[Message]) -> st.SearchStrategy[Any]:
    """Any message of a kind."""
    return ANY[cls]


def _built(cls: type[Message], **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.builds(cls, **CARRIED, **fields)


_ERASES = U16.flatmap(
    lambda t: _built(Erase, table=st.just(t), ids=st.integers(0, 6).flatmap(lambda n: bytes_of(n, "u8")))
)

ANY: dict[type[Message], st.SearchStrategy[Any]] = {
    Hello: _built(Hello, client=U64, fingerprint=st.binary(min_size=32, max_size=32), who=TEXT, protocol=U16),
    Welcome: _built(Welcome, server=U32, partitions=U32, protocol=U16),
    Pull: pulls(),
    RowsReply: rows_replies(),
    Push: pushes(),
    AckReply: acks(),
    Held: _built(Held, there=U32, merge=U32),
    Gap: _built(Gap, last=st.none() | NAMES),
    Failure: _built(Failure, code=st.sampled_from(Code), text=TEXT),
    Done: _built(Done, count=U64),
    Tables: _built(Tables),
    TablesReply: _built(TablesReply, text=TEXT),
    Stats: _built(Stats),
    StatsReply: _built(StatsReply, sizes=SIZES),
    ExportRows: _built(ExportRows, table=U32, partition=U32, first_row=U64, rows_max=U64),
    BlockReply: block_replies(),
    ReserveRows: _built(ReserveRows, table=U32, rows=U64, partitions=st.lists(U16, max_size=4).map(tuple)),
    ImportRows: blocks().map(lambda b: ImportRows(**b)),
    Erase: _built(Erase, table=U16, ids=st.integers(0, 6).flatmap(lambda n: bytes_of(n, "u8"))),
    Clear: _built(Clear),
    Clients: _built(Clients),
    ClientsReply: _built(ClientsReply, clients=CLIENTS),
    SetClients: _built(SetClients, clients=CLIENTS),
    Metrics: _built(Metrics),
    MetricsReply: _built(MetricsReply, text=TEXT),
    Stop: _built(Stop),
}

_TWO = (Section(0, rows=2, dim=1), Section(3, rows=1, dim=3, format=WireFormat.FP16))
_SCALED = (_TWO[0], _TWO[1]._replace(scale=0.25))
_IDS = np.array([7, 2**63, 1], np.uint64)
_VALUES = np.frombuffer(bytes.fromhex("0000803f000000c0 003c00c000340000"), np.uint8)
_VERSIONS = np.array([0, 255, 1], np.uint8)
_BLOCK: dict[str, Any] = {
    "table": 3,
    "ids": _IDS[:2],
    "values": np.array([[1.0], [-2.0]], np.float16),
    "state": np.array([[3.0], [0.5]], np.float32),
}
_AT: dict[str, Any] = {"request": 5, "placement": 2, "life": 9}


def _staleness() -> NDArray[np.int64]:
    out = np.zeros(STALENESS_BINS, np.int64)
    out[[0, 3, 256]] = (4, 1, 2)
    return out


EACH: dict[str, Message] = {
    "hello": Hello(**_AT, client=1, fingerprint=bytes(range(32)), who="é"),
    "welcome": Welcome(**_AT, server=1, partitions=64),
    "pull": Pull(**_AT, sections=_TWO, ids=_IDS, create=True),
    "pull_after": Pull(**_AT, sections=_TWO, ids=_IDS, after=(2, 1)),
    "rows_reply": RowsReply(**_AT, sections=_SCALED, values=_VALUES, versions=_VERSIONS),
    "push": Push(**_AT, client=1, epoch=2, seq=3, sections=_SCALED, ids=_IDS, gradients=_VALUES),
    "push_with_all": Push(
        **_AT,
        client=1,
        epoch=2,
        seq=3,
        sections=_SCALED,
        ids=_IDS,
        gradients=_VALUES,
        versions=_VERSIONS,
        previous=(2, 1),
        merge=4,
        lr_factor=0.5,
        pulled=4,
    ),
    "ack_reply": AckReply(**_AT, applied=7, refused={"not_finite": 1}, duplicate=True, staleness=_staleness()),
    "held": Held(**_AT, there=1, merge=4),
    "gap": Gap(**_AT, last=(2, 1)),
    "gap_before_the_first": Gap(**_AT, last=None),
    "failure": Failure(**_AT, code=Code.BUSY, text="later"),
    "done": Done(**_AT, count=3),
    "tables": Tables(**_AT),
    "tables_reply": TablesReply(**_AT, text="[]"),
    "stats": Stats(**_AT),
    "stats_reply": StatsReply(**_AT, sizes=(TableSize(1, 2, 3, 4), TableSize(0, 0, 0, 5))),
    "export_rows": ExportRows(**_AT, table=3, partition=17, first_row=4, rows_max=100),
    "block_reply": BlockReply(**_AT, **_BLOCK, first_row=4, total_rows=6),
    "reserve_rows": ReserveRows(**_AT, table=3, rows=10**9, partitions=(0, 2)),
    "import_rows": ImportRows(**_AT, **_BLOCK),
    "erase": Erase(**_AT, table=3, ids=_IDS),
    "clear": Clear(**_AT),
    "clients": Clients(**_AT),
    "clients_reply": ClientsReply(**_AT, clients={1: (2, 3), 0: (0, 4)}),
    "set_clients": SetClients(**_AT, clients={}),
    "metrics": Metrics(**_AT),
    "metrics_reply": MetricsReply(**_AT, text="x 1\n"),
    "stop": Stop(**_AT),
}
"""One message of every kind, and more where a kind has forms."""


def frames_of(message: Message) -> list[bytes]:
    """The frames as a socket would hand them over."""
    return [bytes(f) for f in wire.encode(message)]


def same(a: object, b: object) -> bool:
    """Equal in every bit, floats included."""
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    if isinstance(a, float) and isinstance(b, float):
        return np.float64(a).tobytes() == np.float64(b).tobytes()
    return type(a) is type(b) and a == b


def fields(message: Message) -> Sequence[str]:
    return [f for cls in type(message).__mro__ for f in getattr(cls, "__slots__", ())]
