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
    Accept,
    AckReply,
    BlockReply,
    Clear,
    Clients,
    ClientsReply,
    Code,
    Cut,
    CutDone,
    Done,
    Erase,
    ExportRows,
    Failure,
    Forget,
    Gap,
    Held,
    Hello,
    ImportRows,
    Join,
    Lookup,
    Message,
    Metrics,
    MetricsReply,
    Moved,
    Owned,
    OwnedReply,
    Place,
    PooledAck,
    PooledReply,
    Pull,
    Push,
    PushPooled,
    ReadRows,
    Release,
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
    Touched,
    Track,
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
    form, head = draw(st.sampled_from([("f4", 0), ("f2", 0), ("u2", 0), ("u1", 4)]))
    marks = draw(st.integers(0, 2))
    return {
        **draw(st.fixed_dictionaries({**CARRIED, "table": U16})),
        "ids": draw(bytes_of(rows, "u8")),
        "values": draw(bytes_of(rows * (head + dim), form)).reshape(rows, head + dim),
        "state": draw(bytes_of(rows * width, "f4")).reshape(rows, width),
        "marks": draw(bytes_of(rows * marks, "u1")).reshape(rows, marks) if marks else None,
        "bound": draw(st.none() | bytes_of(draw(st.integers(1, 40)), "u1")),
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


@st.composite
def pooled_acks(draw: st.DrawFn) -> PooledAck:
    ack = draw(acks())
    told = {
        f: getattr(ack, f) for f in ("request", "placement", "life", "applied", "refused", "duplicate", "staleness")
    }
    return PooledAck(**told, sent=draw(U64), repeated=draw(U64))


@st.composite
def turns(draw: st.DrawFn) -> dict[str, Any]:
    turn = draw(st.integers(1, 2**64 - 1))
    seen = draw(st.integers(0, turn - 1))
    return {**draw(st.fixed_dictionaries({**CARRIED, "session": U64})), "turn": turn, "seen": seen}


@st.composite
def lookups(draw: st.DrawFn) -> Lookup:
    samples = draw(st.integers(0, 4))
    made, listed, weighted, lengths = [], [], [], []
    for feature in sorted(draw(st.sets(U16, max_size=4))):
        listed.append(draw(BOOL))
        weighted.append(draw(BOOL))
        of_each = draw(st.lists(st.integers(0, 3), min_size=samples, max_size=samples)) if listed[-1] else []
        lengths += of_each
        made.append(Section(feature, sum(of_each) if listed[-1] else samples, 1))
    weights = sum(s.rows for s, w in zip(made, weighted, strict=True) if w)
    return Lookup(
        **draw(turns()),
        sections=tuple(made),
        samples=samples,
        listed=tuple(listed),
        weighted=tuple(weighted),
        ids=draw(bytes_of(wire.rows_of(made), "u8")),
        lengths=np.array(lengths, np.uint32),
        weights=draw(bytes_of(weights, "f4")),
        create=draw(BOOL),
    )


@st.composite
def pooled_pushes(draw: st.DrawFn) -> PushPooled:
    carried = draw(turns())
    lookup = draw(st.integers(0, carried["turn"] - 1))
    s = draw(sections()) if lookup else ()
    return PushPooled(
        **carried,
        **draw(st.fixed_dictionaries({"epoch": U64, "seq": U64, "merge": U32, "lr_factor": st.floats()})),
        lookup=lookup,
        sections=s,
        gradients=draw(bytes_of(values_bytes(s), "u1")),
    )


@st.composite
def pooled_replies(draw: st.DrawFn) -> PooledReply:
    s = draw(sections())
    values = draw(bytes_of(values_bytes(s), "u1"))
    return PooledReply(**draw(st.fixed_dictionaries(CARRIED)), sections=s, values=values)


@st.composite
def touched(draw: st.DrawFn) -> Touched:
    made = tuple(Section(t, draw(st.integers(0, 5)), 1) for t in sorted(draw(st.sets(U16, max_size=4))))
    told = draw(st.fixed_dictionaries({**CARRIED, "continues": BOOL, "clients": CLIENTS}))
    gone = tuple(draw(st.integers(0, s.rows)) for s in made) if draw(BOOL) else ()
    return Touched(**told, gone=gone, sections=made, ids=draw(bytes_of(wire.rows_of(made), "u8")))


TEXT = st.text(max_size=40)
MAP: dict[str, Any] = {
    "number": U32,
    "addresses": st.lists(TEXT, max_size=3).map(tuple),
    "owners": st.lists(U16, max_size=4).map(tuple),
}
MOVES = st.lists(st.tuples(U32, U32), max_size=3).map(tuple)
SIZES = st.lists(st.builds(TableSize, *[U64] * 8), max_size=3).map(tuple)


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
    ExportRows: st.one_of(
        _built(ExportRows, table=U32, partition=U32, first_row=U64, rows_max=U64, cut=U64),
        _built(ExportRows, table=U32, partition=U32, bound_only=st.just(True)),
    ),
    BlockReply: block_replies(),
    ReserveRows: _built(ReserveRows, table=U32, rows=U64, partitions=st.lists(U16, max_size=4).map(tuple)),
    ImportRows: blocks().map(lambda b: ImportRows(**b)),
    Erase: _built(Erase, table=U16, ids=st.integers(0, 6).flatmap(lambda n: bytes_of(n, "u8"))),
    Clear: _built(Clear),
    Clients: _built(Clients),
    ClientsReply: _built(ClientsReply, clients=CLIENTS),
    SetClients: _built(SetClients, clients=CLIENTS),
    Cut: _built(Cut, number=st.integers(1, 2**64 - 1)),
    CutDone: _built(CutDone, number=U64, partition=st.none() | U32),
    Metrics: _built(Metrics),
    MetricsReply: _built(MetricsReply, text=TEXT),
    Stop: _built(Stop),
    Place: _built(Place, **MAP),
    Moved: _built(Moved, **MAP),
    Owned: _built(Owned),
    OwnedReply: _built(OwnedReply, **MAP, changed=U32, released=MOVES, accepted=MOVES),
    Track: _built(Track, partition=U32, after=U64),
    Touched: touched(),
    Release: _built(Release, partition=U32, number=U32, after=U64),
    Accept: _built(Accept, partition=U32, number=U32, clients=CLIENTS),
    Forget: _built(Forget, partition=U32),
    ReadRows: _built(ReadRows, table=U16, ids=st.integers(0, 6).flatmap(lambda n: bytes_of(n, "u8"))),
    Join: _built(
        Join, client=U64, session=U64, fingerprint=st.binary(min_size=32, max_size=32), who=TEXT, protocol=U16
    ),
    Lookup: lookups(),
    PooledReply: pooled_replies(),
    PushPooled: pooled_pushes(),
    PooledAck: pooled_acks(),
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
_BF16: dict[str, Any] = {**_BLOCK, "values": np.array([[0x3F80], [0xC000]], np.uint16)}
_INT8: dict[str, Any] = {**_BLOCK, "values": np.array([[0, 0, 0, 60, 127], [0, 0, 128, 60, 130]], np.uint8)}
_BOUNDED: dict[str, Any] = {
    "marks": np.array([[1, 2], [3, 255]], np.uint8),
    "bound": np.array([9, 8, 7], np.uint8),
}
_AT: dict[str, Any] = {"request": 5, "placement": 2, "life": 9}
_TURN: dict[str, Any] = {**_AT, "session": 77, "turn": 6, "seen": 3}


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
    "stats_reply_bounded": StatsReply(**_AT, sizes=(TableSize(1, 2, 3, 4, 5, 6, 7, 8), TableSize(0, 0, 0, 5))),
    "export_rows": ExportRows(**_AT, table=3, partition=17, first_row=4, rows_max=100),
    "block_reply": BlockReply(**_AT, **_BLOCK, first_row=4, total_rows=6),
    "block_reply_bf16": BlockReply(**_AT, **_BF16, first_row=4, total_rows=6),
    "block_reply_int8": BlockReply(**_AT, **_INT8, first_row=4, total_rows=6),
    "block_reply_bounded": BlockReply(**_AT, **_BLOCK, **_BOUNDED, first_row=4, total_rows=6),
    "reserve_rows": ReserveRows(**_AT, table=3, rows=10**9, partitions=(0, 2)),
    "import_rows": ImportRows(**_AT, **_BLOCK),
    "import_rows_bounded": ImportRows(**_AT, **_BLOCK, **_BOUNDED),
    "erase": Erase(**_AT, table=3, ids=_IDS),
    "clear": Clear(**_AT),
    "clients": Clients(**_AT),
    "clients_reply": ClientsReply(**_AT, clients={1: (2, 3), 0: (0, 4)}),
    "set_clients": SetClients(**_AT, clients={}),
    "export_rows_of_a_cut": ExportRows(**_AT, table=3, partition=17, first_row=4, rows_max=100, cut=77),
    "export_rows_bound_only": ExportRows(**_AT, table=3, partition=17, bound_only=True),
    "cut": Cut(**_AT, number=77),
    "cut_done": CutDone(**_AT, number=77, partition=None),
    "cut_done_of_a_partition": CutDone(**_AT, number=77, partition=17),
    "metrics": Metrics(**_AT),
    "metrics_reply": MetricsReply(**_AT, text="x 1\n"),
    "stop": Stop(**_AT),
    "place": Place(**_AT, number=0x10002, addresses=("tcp://a:1", "é"), owners=(0, 1, 1, 0)),
    "moved": Moved(**_AT, number=0x10002, addresses=("tcp://a:1",), owners=(0, 0)),
    "owned": Owned(**_AT),
    "owned_reply": OwnedReply(
        **_AT,
        number=0x10002,
        addresses=("a",),
        owners=(0,),
        changed=1,
        released=((3, 0x20002),),
        accepted=((4, 5), (6, 7)),
    ),
    "track": Track(**_AT, partition=17, after=4),
    "touched": Touched(
        **_AT, sections=(Section(0, 2, 1), Section(3, 1, 1)), ids=_IDS, continues=True, clients={1: (2, 3), 0: (0, 4)}
    ),
    "touched_and_gone": Touched(
        **_AT, sections=(Section(0, 2, 1), Section(3, 1, 1)), ids=_IDS, continues=True, gone=(2, 0)
    ),
    "release": Release(**_AT, partition=17, number=0x10002, after=4),
    "accept": Accept(**_AT, partition=17, number=0x10002, clients={1: (2, 3)}),
    "forget": Forget(**_AT, partition=17),
    "read_rows": ReadRows(**_AT, table=3, ids=_IDS),
    "join": Join(**_AT, client=1, session=77, fingerprint=bytes(range(32)), who="é"),
    "lookup": Lookup(
        **_TURN,
        sections=(Section(0, 2, 1), Section(1, 3, 1), Section(2, 0, 1)),
        samples=2,
        listed=(False, True, True),
        weighted=(False, True, False),
        ids=np.array([7, 2**63, 1, 1, 4], np.uint64),
        lengths=np.array([3, 0, 0, 0], np.uint32),
        weights=np.array([1.0, 0.5, 2.0], np.float32),
        create=True,
    ),
    "lookup_to_read": Lookup(
        **_TURN,
        sections=(Section(0, 2, 1),),
        samples=2,
        listed=(False,),
        weighted=(False,),
        ids=np.array([7, 2**63], np.uint64),
        lengths=np.empty(0, np.uint32),
        weights=np.empty(0, np.float32),
    ),
    "pooled_reply": PooledReply(**_AT, sections=_SCALED, values=_VALUES),
    "push_pooled": PushPooled(
        **_TURN, epoch=2, seq=3, lookup=4, sections=_SCALED, gradients=_VALUES, merge=4, lr_factor=0.5
    ),
    "push_pooled_of_nothing": PushPooled(**_TURN, epoch=2, seq=3, lookup=0, gradients=np.empty(0, np.uint8), merge=4),
    "pooled_ack": PooledAck(
        **_AT, applied=7, refused={"not_finite": 1}, duplicate=False, staleness=_staleness(), sent=9, repeated=1
    ),
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
