"""The row file alone: its bytes as documented, every bit guarded, and a reader that nothing it is fed can hurt."""

from __future__ import annotations

import io
import re
import struct
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_rows import random_block

from satrap.durable.rows import BLOCK_BYTES, RowReader, RowWriter, Scratch, Section, Source, checksum
from satrap.errors import CheckpointError
from satrap.ps.protocol import RowBlock
from satrap.schema import SGD, Adagrad, Adam, Capacity, Optimizer, RowWiseAdagrad, Table, ValueFormat

PAGE = Path(__file__).parents[2] / "docs" / "formats" / "rows.md"


def written(parts: Sequence[tuple[Table, RowBlock]], block_bytes: int = BLOCK_BYTES) -> bytes:
    out = bytearray()
    writer = RowWriter(out.extend, partition=3, partitions=4, block_bytes=block_bytes)
    for table, block in parts:
        writer.add(table, block)
    assert writer.close() == len(out)
    return bytes(out)


def read(data: bytes) -> list[tuple[Section, RowBlock]]:
    reader = RowReader(Source(io.BytesIO(data), "rows-00003.satrap", len(data)))
    return [(section, block) for section, block in reader.sections() if block is not None]


def example() -> bytes:
    """Two rows of dim 2 with one word of state each, as on the format's page."""
    table = Table(name="user", dim=2, optimizer=RowWiseAdagrad())
    block = RowBlock(
        np.array([7, 2**63], np.uint64),
        np.array([[1.0, -2.0], [0.5, 0.25]], np.float32),
        np.array([[3.0], [0.125]], np.float32),
    )
    return written([(table, block)])


def narrow_example() -> bytes:
    """One row of int8, as on the format's page: what 1.0 and -0.5 are stored as, after five updates."""
    table = Table(name="user", dim=2, format=ValueFormat.INT8, optimizer=SGD())
    scale = np.array([1.125 / 128], np.float32).view(np.uint8)
    codes = np.array([114, -57], np.int8).view(np.uint8)
    block = RowBlock(
        np.array([7], np.uint64), np.concatenate([scale, codes])[None, :], np.array([[5]], np.uint32).view(np.float32)
    )
    return written([(table, block)])


@pytest.mark.parametrize(("title", "example"), [("## Worked example", example), ("## An int8 row", narrow_example)])
def test_the_worked_examples_of_the_page_are_what_is_written(title: str, example: Callable[[], bytes]) -> None:
    part = PAGE.read_text(encoding="utf-8").split(title)[1].split("\n## ")[0]
    rows = re.findall(r"^    ([0-9a-f]{4})  ((?:[0-9a-f]{2} ?){1,16})  ", part, re.MULTILINE)
    data = example()
    shown = bytearray(len(data))  # parts left out of the page are zero bytes
    for offset, line in rows:
        piece = bytes.fromhex(line)
        shown[int(offset, 16) : int(offset, 16) + len(piece)] = piece
    assert len(rows) > 10
    assert bytes(shown) == data


@st.composite
def parts(draw: st.DrawFn) -> list[tuple[Table, RowBlock]]:
    optimizers: list[Optimizer] = [SGD(), SGD(momentum=0.5), Adagrad(), RowWiseAdagrad(), Adam()]
    out = []
    for i in range(draw(st.integers(0, 3))):
        table = Table(
            name=draw(st.text(max_size=70)) + str(i),
            dim=draw(st.integers(1, 40)),
            format=draw(st.sampled_from(ValueFormat)),
            optimizer=draw(st.sampled_from(optimizers)),
        )
        out.append((table, random_block(table, draw(st.integers(1, 40)), seed=i)))
    return out


@settings(max_examples=60, deadline=None)
@given(parts(), st.sampled_from([64, 128, 1024, BLOCK_BYTES]))
def test_any_tables_come_back_to_the_bit_with_any_block_size(
    parts: list[tuple[Table, RowBlock]], block_bytes: int
) -> None:
    data = written(parts, block_bytes)
    assert len(data) % 64 == 0
    back = read(data)
    assert len(back) == len(parts)
    for (table, block), (section, copy) in zip(parts, back, strict=True):
        assert (section.name, section.dim, section.format) == (table.name, table.dim, table.format)
        for a, b in ((block.ids, copy.ids), (block.values, copy.values), (block.state, copy.state)):
            assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


@settings(max_examples=30, deadline=None)
@given(st.lists(parts(), min_size=2, max_size=4))
def test_files_read_into_one_memory_one_after_another_come_back_to_the_bit(
    files: list[list[tuple[Table, RowBlock]]],
) -> None:
    scratch = Scratch()
    for parts in files:
        data = written(parts, 128)
        reader = RowReader(Source(io.BytesIO(data), "rows-00003.satrap", len(data)), scratch)
        back = [block for _, block in reader.sections()]
        for (_, block), copy in zip(parts, back, strict=True):
            assert copy is not None
            for a, b in ((block.ids, copy.ids), (block.values, copy.values), (block.state, copy.state)):
                assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


@pytest.mark.parametrize("rows", [0, 3, 40])
@pytest.mark.parametrize("marks", [0, 1, 2])
def test_marks_and_bound_state_come_back_and_are_guarded(rows: int, marks: int) -> None:
    table = Table(name="user", dim=3, optimizer=SGD(), capacity=Capacity(rows=100))
    plain = random_block(table, max(rows, 1))
    rng = np.random.default_rng(0)
    block = RowBlock(
        plain.ids[:rows],
        plain.values[:rows],
        plain.state[:rows],
        rng.integers(0, 256, (rows, marks)).astype(np.uint8) if marks else None,
        rng.integers(0, 256, 1000).astype(np.uint8),
    )
    out = bytearray()
    writer = RowWriter(out.extend, partition=3, partitions=4, block_bytes=64, bounded=True)
    writer.add(table, block)
    writer.close()
    assert out[8] == 2
    ((_, got),) = read(bytes(out))
    for part in ("ids", "values", "state", "marks", "bound"):
        a, b = getattr(got, part), getattr(block, part)
        assert (None if a is None else (a.shape, a.tobytes())) == (None if b is None else (b.shape, b.tobytes()))
    for at in range(64, len(out), 7):
        out[at] ^= 4
        with pytest.raises(CheckpointError, match="byte offset"):
            read(bytes(out))
        out[at] ^= 4


def test_a_section_that_is_not_wanted_is_skipped_without_reading_it() -> None:
    tables = [Table(name=n, dim=3, optimizer=Adagrad()) for n in "abc"]
    data = written([(t, random_block(t, 50, i)) for i, t in enumerate(tables)], 64)
    source = Source(io.BytesIO(data), "rows", len(data))
    found = {s.name: b for s, b in RowReader(source).sections(lambda s: s.name == "b")}
    assert found["a"] is None
    assert found["c"] is None
    assert found["b"] is not None
    assert found["b"].ids.tobytes() == random_block(tables[1], 50, 1).ids.tobytes()


def test_every_single_bit_is_guarded_and_named_by_offset() -> None:
    data = example()
    for at in range(len(data)):
        for bit in (0, 3, 7):
            bad = bytearray(data)
            bad[at] ^= 1 << bit
            with pytest.raises(CheckpointError, match="rows-00003") as told:
                read(bytes(bad))
            # The offset told is of the block or header that the bit is in, or that its checksum is about.
            named = re.search(r"offset (\d+)", str(told.value))
            assert named, told.value
            assert abs(at - int(named.group(1))) <= 128


def test_damage_is_named_by_the_block_it_is_in() -> None:
    table = Table(name="user", dim=16, optimizer=SGD())
    data = bytearray(written([(table, random_block(table, 400))], block_bytes=1024))
    values_at = 64 + 128 + 3200 + 64
    data[values_at + 5000] ^= 1
    block = values_at + 4096
    with pytest.raises(CheckpointError, match=rf"offset {block}: .* bytes {block} to {block + 1024}, .*'user'"):
        read(bytes(data))


def test_a_block_moved_within_its_file_does_not_pass() -> None:
    # Two blocks exchanged together with their checksums: a plain checksum of the content would accept it.
    table = Table(name="user", dim=8, optimizer=SGD())
    data = bytearray(written([(table, random_block(table, 16))], block_bytes=64))
    ids = 64 + 128
    data[ids : ids + 64], data[ids + 64 : ids + 128] = data[ids + 64 : ids + 128], data[ids : ids + 64]
    sums = ids + 128
    data[sums : sums + 8], data[sums + 8 : sums + 16] = data[sums + 8 : sums + 16], data[sums : sums + 8]
    with pytest.raises(CheckpointError, match=f"offset {ids}:"):
        read(bytes(data))


@pytest.mark.parametrize("size", [0, 1, 63, 64, 127, 128, 200, 300, 575, 639])
def test_a_truncated_file_is_refused_where_it_ends(size: int) -> None:
    with pytest.raises(CheckpointError, match=f"offset {size}:"):
        read(example()[:size])


def test_bytes_behind_the_end_are_refused() -> None:
    with pytest.raises(CheckpointError, match="64 bytes follow the end part"):
        read(example() + bytes(64))


def reseal(data: bytearray, at: int, size: int) -> None:
    """Makes the header at `at` valid again after it was changed, as an attacker or a bug in a writer would."""
    data[at + 56 : at + 64] = bytes(8)
    data[at + 56 : at + 64] = struct.pack("<Q", checksum(bytes(data[at : at + size]), at))


@pytest.mark.parametrize(
    ("field", "at", "form", "value"),
    [
        ("rows", 64 + 24, "<Q", 2**63),
        ("rows", 64 + 24, "<Q", 2**64 - 1),
        ("dim", 64 + 12, "<I", 2**32 - 1),
        ("state words", 64 + 20, "<I", 2**32 - 1),
        ("value bytes", 64 + 16, "<I", 2**31),
        ("no rows", 64 + 24, "<Q", 0),
        ("length of name", 64 + 32, "<H", 65535),
    ],
)
def test_a_length_beyond_the_file_is_refused_before_memory_is_taken(field: str, at: int, form: str, value: int) -> None:
    data = bytearray(example())
    struct.pack_into(form, data, at, value)
    reseal(data, 64, 128)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=r"offset (64|72)|header is at 64"):
            read(bytes(data))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_newer_version_is_told_apart_from_damage() -> None:
    data = bytearray(example())
    struct.pack_into("<I", data, 8, 3)
    reseal(data, 0, 64)
    with pytest.raises(CheckpointError, match="version 3, this satrap reads versions 1 and 2; use a newer satrap"):
        read(bytes(data))


TABLES = [Table(name=n, dim=d, optimizer=o) for n, d, o in (("a", 3, Adagrad()), ("bc", 5, SGD()))]
BASE = written([(t, random_block(t, 20, i)) for i, t in enumerate(TABLES)], 64)
STARTS = [0, *(m.start() for m in re.finditer(b"SATRTABL|SATRDONE", BASE))]
SIZES = [64, 128, 128, 64]


@settings(max_examples=400, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("set"), st.integers(0, len(BASE) - 1), st.binary(min_size=1, max_size=8)),
            st.tuples(st.just("cut"), st.integers(0, len(BASE)), st.binary(max_size=0)),
            st.tuples(st.just("insert"), st.integers(0, len(BASE)), st.binary(min_size=1, max_size=200)),
            st.tuples(st.just("delete"), st.integers(0, len(BASE) - 1), st.binary(min_size=1, max_size=200)),
            st.tuples(st.just("header"), st.integers(0, 3 * 64 + 55), st.binary(min_size=1, max_size=8)),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_no_bytes_whatever_crash_the_reader_or_make_it_take_memory(changes: list[tuple[str, int, bytes]]) -> None:
    # "header" changes a field and makes the checksum right again, so that the code behind the checksums is reached.
    data = bytearray(BASE)
    for kind, at, piece in changes:
        if kind == "set":
            data[at : at + len(piece)] = piece
        elif kind == "cut":
            del data[at:]
        elif kind == "insert":
            data[at:at] = piece
        elif kind == "delete":
            del data[at : at + len(piece)]
        elif len(data) == len(BASE):
            start = STARTS[at // 64]
            data[start + at % 64 : start + at % 64 + len(piece)] = piece
            reseal(data, start, SIZES[at // 64])
    tracemalloc.start()
    try:
        back = read(bytes(data))
        assert sum(b.ids.nbytes + b.values.nbytes + b.state.nbytes for _, b in back) <= len(data)
    except CheckpointError as e:
        refusal = str(e)
    else:
        refusal = ""
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert not refusal or "rows-00003" in refusal
    assert peak < 4 * len(data) + (1 << 18)
