"""Messages that carry rows. U rows of all tables, R rows of a block, D values and K words of state a row."""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from satrap.errors import WireError
from satrap.schema import WireFormat
from satrap.wire.body import Opened
from satrap.wire.layout import Kind, over, pack, rows_of, values_bytes, view_of
from satrap.wire.messages import BlockReply, Erase, ImportRows, Pull, Push, RowsReply, Section
from satrap.wire.parts import Parts, carried, frame_of

CREATE, AFTER = 1, 2
VERSIONS, PREVIOUS = 1, 2

_PULL = struct.Struct("<QQ")
_PUSH = struct.Struct("<QQQQQdIIQ")
_BLOCK = struct.Struct("<QQIHH")
_BOUND = struct.Struct("<Q")
MARKS_MAX = 2


class _Stored(NamedTuple):
    """How the values of a block are stored. Their bytes are those that the directory's format would have."""

    dtype: Any
    format: WireFormat
    """In the directory."""
    code: int
    """In the body; 0: as the directory says."""
    head: int = 0
    """Elements of a row before its D values."""


_STORED = (
    _Stored(np.float32, WireFormat.FP32, 0),
    _Stored(np.float16, WireFormat.FP16, 0),
    _Stored(np.uint16, WireFormat.FP16, 1),
    _Stored(np.uint8, WireFormat.INT8, 2, head=4),
)
"""fp32, fp16, bf16 and int8 rows."""


def write_pull(m: Pull) -> Parts:
    rows = rows_of(m.sections)
    _check_wanted("PULL", m.sections)
    flags = (CREATE if m.create else 0) | (AFTER if m.after is not None else 0)
    body = pack(_PULL, "PULL", *(m.after or (0, 0)))
    return Parts(flags, m.sections, body, (frame_of("PULL", "ids", m.ids, np.uint64, rows),))


def read_pull(o: Opened) -> Pull:
    _check_wanted(o.where, o.sections)
    after = o.take(_PULL)
    if after != (0, 0) and not o.flag(AFTER):
        raise WireError("PULL: a field without a meaning must be zero")
    return Pull(
        **carried(o),
        sections=o.sections,
        ids=_ids(o),
        create=o.flag(CREATE),
        after=(after[0], after[1]) if o.flag(AFTER) else None,
    )


def write_rows_reply(m: RowsReply) -> Parts:
    rows = rows_of(m.sections)
    return Parts(
        sections=m.sections,
        frames=(
            frame_of("ROWS_REPLY", "values", m.values, np.uint8, values_bytes(m.sections)),
            frame_of("ROWS_REPLY", "versions", m.versions, np.uint8, rows),
        ),
    )


def read_rows_reply(o: Opened) -> RowsReply:
    values = _array(o, 0, "values", np.uint8, values_bytes(o.sections))
    versions = _array(o, 1, "versions", np.uint8, rows_of(o.sections))
    return RowsReply(**carried(o), sections=o.sections, values=values, versions=versions)


def write_push(m: Push) -> Parts:
    rows = rows_of(m.sections)
    previous = m.previous or (0, 0)
    frames = [
        frame_of("PUSH", "ids", m.ids, np.uint64, rows),
        frame_of("PUSH", "gradients", m.gradients, np.uint8, values_bytes(m.sections)),
    ]
    flags = PREVIOUS if m.previous is not None else 0
    if m.versions is not None:
        flags |= VERSIONS
        frames.append(frame_of("PUSH", "versions", m.versions, np.uint8, rows))
    body = pack(_PUSH, "PUSH", m.client, m.epoch, m.seq, *previous, m.lr_factor, m.merge, 0, m.pulled)
    return Parts(flags, m.sections, body, tuple(frames))


def read_push(o: Opened) -> Push:
    client, epoch, seq, before_epoch, before_seq, lr_factor, merge, zero, pulled = o.take(_PUSH)
    previous = (before_epoch, before_seq)
    if zero != 0 or (previous != (0, 0) and not o.flag(PREVIOUS)):
        raise WireError("PUSH: a field without a meaning must be zero")
    versions = _array(o, 2, "versions", np.uint8, rows_of(o.sections)) if o.flag(VERSIONS) else None
    return Push(
        **carried(o),
        client=client,
        epoch=epoch,
        seq=seq,
        sections=o.sections,
        ids=_ids(o),
        gradients=_array(o, 1, "gradients", np.uint8, values_bytes(o.sections)),
        versions=versions,
        previous=previous if o.flag(PREVIOUS) else None,
        merge=merge,
        lr_factor=lr_factor,
        pulled=pulled,
    )


def frames_of_push(flags: int) -> int:
    """Frames of a push, the first included."""
    return 4 if flags & VERSIONS else 3


def write_block(m: BlockReply | ImportRows) -> Parts:
    kind = Kind.BLOCK_REPLY if isinstance(m, BlockReply) else Kind.IMPORT_ROWS
    first, total = (m.first_row, m.total_rows) if isinstance(m, BlockReply) else (0, 0)
    where, rows = kind.name, m.ids.size
    stored = next((s for s in _STORED if s.dtype == m.values.dtype), None)
    if stored is None or m.values.ndim != 2 or m.state.ndim != 2:
        raise WireError(
            f"{where}: values must be [R, D] of float32, float16 or uint16, or [R, 4 + D] of uint8, state [R, K] of "
            f"float32; got {m.values.dtype} {list(m.values.shape)} and {list(m.state.shape)}"
        )
    columns, width = m.values.shape[1], m.state.shape[1]
    state = frame_of(where, "state", m.state, np.float32, rows * width)
    body = pack(_BLOCK, where, first, total, width, stored.code, 0)
    if m.marks is not None or m.bound is not None:
        marks = np.zeros((rows, 0), np.uint8) if m.marks is None else m.marks
        bound = np.zeros(0, np.uint8) if m.bound is None else m.bound
        if marks.ndim != 2 or marks.shape[1] > MARKS_MAX:
            raise WireError(f"{where}: marks must be [R, M], M at most {MARKS_MAX}, got {list(marks.shape)}")
        # 1 and the marks of a row: that there is a bound. Marks and bound state go behind the optimizer's.
        body = pack(_BLOCK, where, first, total, width, stored.code, 1 + marks.shape[1])
        body += pack(_BOUND, where, bound.size)
        more = frame_of(where, "marks", marks, np.uint8, marks.shape[1] * rows)
        state = memoryview(b"".join((state, more, frame_of(where, "bound", bound, np.uint8, bound.size))))
    return Parts(
        sections=(Section(m.table, rows, columns - stored.head, stored.format),),
        body=body,
        frames=(
            frame_of(where, "ids", m.ids, np.uint64, rows),
            frame_of(where, "values", m.values, m.values.dtype, rows * columns),
            state,
        ),
    )


def read_block_reply(o: Opened) -> BlockReply:
    first, total, block = _block(o)
    if first + block["ids"].size > total:
        raise WireError(f"BLOCK_REPLY: rows {first} to {first + block['ids'].size} of {total}")
    return BlockReply(**carried(o), **block, first_row=first, total_rows=total)


def read_import_rows(o: Opened) -> ImportRows:
    first, total, block = _block(o)
    if first or total:
        raise WireError("IMPORT_ROWS: a field without a meaning must be zero")
    return ImportRows(**carried(o), **block)


def write_erase(m: Erase) -> Parts:
    sections = (Section(m.table, m.ids.size, 1),)
    return Parts(sections=sections, frames=(frame_of("ERASE", "ids", m.ids, np.uint64, m.ids.size),))


def read_erase(o: Opened) -> Erase:
    section = _one(o)
    if section[2:] != (1, WireFormat.FP32, 1.0):
        raise WireError("ERASE: its table has dim 1 and format fp32")
    return Erase(**carried(o), table=section.table, ids=_ids(o))


def _block(o: Opened) -> tuple[int, int, dict[str, Any]]:
    s = _one(o)
    first, total, width, code, marked = o.take(_BLOCK)
    stored = next((x for x in _STORED if (x.format, x.code) == (s.format, code)), None)
    if stored is None or s.scale != 1.0:
        raise WireError(
            f"{o.where}: no rows are stored as {s.format.value} with code {code} and scale {s.scale}; fp32 and fp16 "
            "have code 0, bf16 is fp16 with code 1, int8 has code 2, and all have scale 1"
        )
    if width > o.limits.state_width:
        raise over(o.where, "words of state a row", width, o.limits.state_width)
    if marked > 1 + MARKS_MAX:
        raise over(o.where, "marks a row", marked - 1, MARKS_MAX)
    marks, bound = (marked - 1, *o.take(_BOUND)) if marked else (0, 0)
    state_bytes, marks_bytes = 4 * s.rows * width, s.rows * marks
    got = o.frames[2].nbytes
    if got != state_bytes + marks_bytes + bound:
        raise WireError(f"{o.where}: {got} bytes of state, {state_bytes + marks_bytes + bound} are spoken of")
    behind = o.frames[2][state_bytes:]
    block = {
        "table": s.table,
        "ids": _ids(o),
        "values": _array(o, 1, "values", stored.dtype, s.rows, stored.head + s.dim),
        "state": view_of(o.frames[2][:state_bytes], np.float32, (s.rows, width)),
        "marks": view_of(behind[:marks_bytes], np.uint8, (s.rows, marks)) if marks else None,
        "bound": view_of(behind[marks_bytes:], np.uint8, (bound,)) if bound else None,
    }
    return first, total, block


def _one(o: Opened) -> Section:
    if len(o.sections) != 1:
        raise WireError(f"{o.where}: it is of one table, its directory has {len(o.sections)}")
    return o.sections[0]


def _check_wanted(where: str, sections: tuple[Section, ...]) -> None:
    wrong = next((s for s in sections if s.scale != 1.0), None)
    if wrong is not None:
        raise WireError(f"{where}: table {wrong.table} has scale {wrong.scale}; who answers chooses it")


def _ids(o: Opened) -> NDArray[np.uint64]:
    return _array(o, 0, "ids", np.uint64, rows_of(o.sections))


def _array(o: Opened, frame: int, what: str, dtype: Any, *shape: int) -> NDArray[Any]:
    """A frame whose length must be just that of the array."""
    size = int(np.dtype(dtype).itemsize)
    for n in shape:
        size *= n
    got = o.frames[frame].nbytes
    if got != size:
        raise WireError(f"{o.where}: {got} bytes of {what}, the directory speaks of {size}")
    return view_of(o.frames[frame], dtype, shape)
