"""Messages that carry rows. U rows of all tables, R rows of a block, D values and K words of state a row."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satrap.errors import WireError
from satrap.schema import WireFormat
from satrap.wire.body import Opened
from satrap.wire.layout import Kind, over, pack, rows_of, values_bytes, view_of
from satrap.wire.messages import BlockReply, Erase, ImportRows, Pull, Push, RowsReply, Section
from satrap.wire.parts import Parts, carried

CREATE, AFTER = 1, 2
VERSIONS, PREVIOUS = 1, 2

_PULL = struct.Struct("<QQ")
_PUSH = struct.Struct("<QQQQQdIIQ")
_BLOCK = struct.Struct("<QQII")
_DTYPES: dict[WireFormat, Any] = {WireFormat.FP32: np.float32, WireFormat.FP16: np.float16}
_FORMATS = {np.dtype(np.float32): WireFormat.FP32, np.dtype(np.float16): WireFormat.FP16}


def write_pull(m: Pull) -> Parts:
    rows = rows_of(m.sections)
    _check_wanted("PULL", m.sections)
    flags = (CREATE if m.create else 0) | (AFTER if m.after is not None else 0)
    body = pack(_PULL, "PULL", *(m.after or (0, 0)))
    return Parts(flags, m.sections, body, (_frame("PULL", "ids", m.ids, np.uint64, rows),))


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
            _frame("ROWS_REPLY", "values", m.values, np.uint8, values_bytes(m.sections)),
            _frame("ROWS_REPLY", "versions", m.versions, np.uint8, rows),
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
        _frame("PUSH", "ids", m.ids, np.uint64, rows),
        _frame("PUSH", "gradients", m.gradients, np.uint8, values_bytes(m.sections)),
    ]
    flags = PREVIOUS if m.previous is not None else 0
    if m.versions is not None:
        flags |= VERSIONS
        frames.append(_frame("PUSH", "versions", m.versions, np.uint8, rows))
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
    if m.values.ndim != 2 or m.values.dtype not in _FORMATS or m.state.ndim != 2:
        raise WireError(f"{where}: values must be [R, D] of float32 or float16, state [R, K] of float32")
    dim, width = m.values.shape[1], m.state.shape[1]
    return Parts(
        sections=(Section(m.table, rows, dim, _FORMATS[m.values.dtype]),),
        body=pack(_BLOCK, where, first, total, width, 0),
        frames=(
            _frame(where, "ids", m.ids, np.uint64, rows),
            _frame(where, "values", m.values, m.values.dtype, rows * dim),
            _frame(where, "state", m.state, np.float32, rows * width),
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
    return Parts(sections=sections, frames=(_frame("ERASE", "ids", m.ids, np.uint64, m.ids.size),))


def read_erase(o: Opened) -> Erase:
    section = _one(o)
    if section[2:] != (1, WireFormat.FP32, 1.0):
        raise WireError("ERASE: its table has dim 1 and format fp32")
    return Erase(**carried(o), table=section.table, ids=_ids(o))


def _block(o: Opened) -> tuple[int, int, dict[str, Any]]:
    s = _one(o)
    if s.format not in _DTYPES or s.scale != 1.0:
        raise WireError(f"{o.where}: rows are stored as fp32 or fp16, unscaled; got {s.format.value} at {s.scale}")
    first, total, width, zero = o.take(_BLOCK)
    if width > o.limits.state_width:
        raise over(o.where, "words of state a row", width, o.limits.state_width)
    if zero != 0:
        raise WireError(f"{o.where}: a field without a meaning must be zero")
    block = {
        "table": s.table,
        "ids": _ids(o),
        "values": _array(o, 1, "values", _DTYPES[s.format], s.rows, s.dim),
        "state": _array(o, 2, "state", np.float32, s.rows, width),
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


def _frame(where: str, what: str, array: NDArray[Any], dtype: Any, size: int) -> memoryview:
    """An array as a frame, without a copy."""
    if array.dtype != dtype or array.size != size or not array.flags.c_contiguous:
        raise WireError(
            f"{where}: {what} must be a contiguous {np.dtype(dtype).name} array of {size}, "
            f"got {array.dtype} of {array.size}"
        )
    return array.reshape(-1).view(np.uint8).data
