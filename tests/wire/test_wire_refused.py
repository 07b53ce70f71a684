"""What is no message is refused, by name, with the limit beside the value; and what cannot be sent is not sent."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from wire_messages import EACH, frames_of

from satrap.errors import ServiceError, WireError
from satrap.schema import WireFormat
from satrap.wire import (
    AckReply,
    BlockReply,
    ClientsReply,
    Done,
    Failure,
    Hello,
    ImportRows,
    Limits,
    Message,
    Pull,
    Push,
    RowsReply,
    Section,
    TablesReply,
    decode,
    encode,
    request_of,
)
from satrap.wire.messages import Code

U64 = np.uint64


def put(frames: list[bytes], form: str, at: int, value: int, frame: int = 0) -> list[bytes]:
    """The frames with a number written into one of them."""
    changed = bytearray(frames[frame])
    struct.pack_into(f"<{form}", changed, at, value)
    return [*frames[:frame], bytes(changed), *frames[frame + 1 :]]


def refused(frames: list[bytes], message: str, limits: Limits | None = None) -> None:
    with pytest.raises(WireError, match=message):
        decode(frames, limits or Limits())


def of(name: str) -> list[bytes]:
    return frames_of(EACH[name])


# Offsets: header of 40 bytes (magic, version, kind, flags, request, life, placement, body, tables, frames, zero), then
# directory entries of 16 (table, dim, format, zero, zero, rows, scale), then the body.
@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([], "frames 0, the limit is 4"),
        ([b"", b"", b"", b"", b""], "frames 5, the limit is 4"),
        ([b""], "a header of 40 bytes, got 0"),
        (put(of("done"), "I", 0, 0), "begins with 00000000, a satrap message with 53545250"),
        (put(of("done"), "B", 4, 2), "version 2, this satrap speaks version 1"),
        (put(of("done"), "B", 5, 0), "unknown kind 0"),
        (put(of("done"), "B", 5, 69), "unknown kind 69"),
        (put(of("done"), "H", 6, 4), "DONE: unknown flags 0x4"),
        (put(of("pull"), "H", 6, 5), "PULL: unknown flags 0x4"),
        (put(of("done"), "I", 36, 1), "bytes 36 to 39 of the header must be zero"),
        (put(of("done"), "I", 28, 9), "DONE: first frame of 48 bytes, its header speaks of 49"),
        (put(of("done"), "I", 28, 2**32 - 1), "its header speaks of 4294967335"),
        (put(of("done"), "H", 32, 4097), "DONE: tables in the directory 4097, the limit is 4096"),
        (put(put(of("done"), "H", 32, 1), "I", 28, 0)[:1], "first frame of 48 bytes, its header speaks of 56"),
        ([of("done")[0] + bytes(8)], "first frame of 56 bytes"),
        ([*of("done"), b""], "2 frames came, the header says 1"),
        (of("pull")[:1], "1 frames came, the header says 2"),
        (put([*of("pull"), b""], "H", 34, 3), "PULL: 3 frames, it has 2"),
        (put(of("push_with_all"), "H", 6, 2), "PUSH: 4 frames, it has 3"),
        (put(of("push"), "H", 6, 1), "PUSH: 3 frames, it has 4"),
    ],
)
def test_a_header_that_is_not_what_came(frames: list[bytes], message: str) -> None:
    refused(frames, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: put(f, "H", 56, 0), "table 0 comes after table 0; tables ascend, each named once"),
        (lambda f: put(f, "H", 42, 0), "dim of table 0 must be 1 or more, got 0"),
        (lambda f: put(f, "B", 44, 3), "table 0 has the unknown format 3"),
        (lambda f: put(f, "B", 45, 1), "bytes 5 to 7 of the directory's entry for table 0"),
        (lambda f: put(f, "H", 46, 1), "bytes 5 to 7 of the directory's entry for table 0"),
        (lambda f: put(f, "f", 52, 2.0), r"scale 2.0 of table 0 \(fp32\)"),
        (lambda f: put(f, "f", 68, 3.0), r"scale 3.0 of table 3 \(fp16\); fp16 has a power of two"),
        (lambda f: put(f, "f", 68, 0.0), "scale 0.0 of table 3"),
        (lambda f: put(f, "f", 68, -1.0), "scale -1.0 of table 3"),
        (lambda f: put(f, "f", 68, float("inf")), "scale inf of table 3"),
        (lambda f: put(f, "f", 68, float("nan")), "scale nan of table 3"),
        (lambda f: put(f, "f", 68, 2.0**-130), "scale .* of table 3"),
        (lambda f: put(f, "I", 48, 3), "ROWS_REPLY: 16 bytes of values, the directory speaks of 20"),
        (lambda f: put(f, "I", 48, 2**32 - 1), "rows 4294967295, the limit is 16777216"),
        (lambda f: put(put(f, "I", 48, 2**24), "I", 64, 1), "rows 16777217, the limit is 16777216"),
        (lambda f: put(f, "H", 42, 4097), "dim of table 0 4097, the limit is 4096"),
        (lambda f: [*f[:2], f[2] + b"x"], "ROWS_REPLY: 4 bytes of versions, the directory speaks of 3"),
        (lambda f: [f[0], f[1][:-1], f[2]], "15 bytes of values, the directory speaks of 16"),
    ],
)
def test_a_directory_that_does_not_describe_the_frames(change: Callable[..., list[bytes]], message: str) -> None:
    # Flaw 1 of earlier systems: ids and a flat array of floats, and no dims to hold them together.
    refused(change(of("rows_reply")), message)


# A lookup of three features: its body begins at 88 (session, turn, seen, samples, zero, a mark a feature).
@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (put(of("lookup"), "H", 42, 2), "LOOKUP: feature 0 must have dim 1 and format fp32"),
        (put(of("lookup"), "Q", 104, 6), "LOOKUP: turn 6 with the answers of turns up to 6 seen"),
        (put(of("lookup"), "I", 112, 2**24 + 1), "samples 16777217, the limit is 16777216"),
        (put(of("lookup"), "I", 112, 3), "feature 0 has no lists and 2 ids for 3 samples"),
        (put(of("lookup"), "I", 116, 1), "LOOKUP: a field without a meaning must be zero"),
        (put(of("lookup"), "B", 120, 4), "a feature has unknown marks, of 0x4"),
        (put(of("lookup"), "I", 0, 2, frame=2), "the lists of feature 1 have 2 ids, it has 3"),
        (put(of("lookup"), "I", 0, 2**32 - 1, frame=2), "the lists of feature 1 have 4294967295 ids, it has 3"),
        ([*of("lookup")[:2], of("lookup")[2][:-4], of("lookup")[3]], "12 bytes of lengths, its first frame speaks of"),
        ([*of("lookup")[:3], of("lookup")[3][:-4]], "8 bytes of weights, its first frame speaks of 12"),
        (put(of("push_pooled"), "Q", 112, 6), "gradients of lookup 6 in turn 6; a lookup comes before them"),
        (put(of("push_pooled"), "Q", 112, 0), "gradients of lookup 0 in turn 6"),
        (put(of("push_pooled"), "I", 132, 1), "PUSH_POOLED: a field without a meaning must be zero"),
        (put(of("join"), "H", 90, 1), "JOIN: a field without a meaning must be zero"),
        (put(of("pooled_ack"), "I", 64, 4), "POOLED_ACK: 4 reasons and 3 bins"),
    ],
)
def test_a_message_of_embedding_workers_that_contradicts_itself(frames: list[bytes], message: str) -> None:
    # A list that is longer than its ids would make the ticket read behind them.
    refused(frames, message)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (put(of("pull"), "f", 68, 0.5), "table 3 has scale 0.5; who answers chooses it"),
        (put(of("pull"), "Q", 72, 1), "PULL: a field without a meaning must be zero"),
        (put(of("push"), "Q", 96, 1), "PUSH: a field without a meaning must be zero"),
        (put(of("push"), "I", 124, 1), "PUSH: a field without a meaning must be zero"),
        (put(of("gap_before_the_first"), "Q", 40, 1), "GAP: a field without a meaning must be zero"),
        (put(of("hello"), "H", 82, 1), "HELLO: a field without a meaning must be zero"),
        (put(of("hello"), "I", 88, 3), "HELLO: 3 bytes expected at offset 92, the body has 2 left"),
        (put(of("hello"), "I", 88, 1), "HELLO: the text at offset 92 is not UTF-8"),
        (put(of("hello"), "I", 88, 0), "HELLO: 2 bytes behind the end of the body"),
        (put(of("tables_reply"), "I", 40, 2**32 - 1), "bytes of text 4294967295, the limit is 1048576"),
        (put(of("failure"), "Q", 40, 0), "FAILURE: unknown code 0"),
        (put(of("stats_reply"), "Q", 40, 2**64 - 1), "18446744073709551615 tables, the limit is 4096"),
        (put(of("stats_reply"), "Q", 40, 3), "STATS_REPLY: 96 bytes expected at offset 48, the body has 64 left"),
        (put(of("ack_reply"), "I", 48, 4), "4 reasons and 3 bins, there are 3 and 257"),
        (put(of("ack_reply"), "I", 52, 258), "1 reasons and 258 bins, there are 3 and 257"),
        (put(of("ack_reply"), "I", 56, 3), "tally 3 of 1 after tally -1; there are 3"),
        (put(of("ack_reply"), "Q", 64, 0), "tally 1 of 0 after tally -1"),
        (put(of("ack_reply"), "Q", 80, 2**63), "tally 0 of 9223372036854775808"),
        (put(of("ack_reply"), "I", 88, 0), "tally 0 of 1 after tally 0"),
        (put(of("clients_reply"), "I", 40, 65537), "clients 65537, the limit is 65536"),
        (put(of("clients_reply"), "I", 40, 3), "72 bytes expected at offset 44, the body has 48 left"),
        (put(of("clients_reply"), "Q", 44, 1), "client 1 comes after client 1; clients ascend"),
        (put(of("reserve_rows"), "I", 52, 65537), "RESERVE_ROWS: 65537 partitions, the limit is 65536"),
        (put(of("reserve_rows"), "I", 52, 3), "6 bytes expected at offset 56, the body has 4 left"),
        (put(of("block_reply"), "Q", 64, 5), "BLOCK_REPLY: rows 4 to 6 of 5"),
        (put(of("block_reply"), "I", 72, 16385), "words of state a row 16385, the limit is 16384"),
        (put(of("block_reply"), "B", 44, 2), "no rows are stored as int8 with code 0 and scale 1.0"),
        (put(of("block_reply"), "f", 52, 0.5), "no rows are stored as fp16 with code 0 and scale 0.5"),
        (put(of("block_reply_bf16"), "I", 76, 2), "no rows are stored as fp16 with code 2 and scale 1.0"),
        (put(of("block_reply_int8"), "I", 76, 3), "no rows are stored as int8 with code 3 and scale 1.0"),
        (put(of("block_reply_int8"), "H", 42, 2), "10 bytes of values, the directory speaks of 12"),
        (put(of("import_rows"), "Q", 56, 1), "IMPORT_ROWS: a field without a meaning must be zero"),
        (put(of("erase"), "H", 42, 2), "ERASE: its table has dim 1 and format fp32"),
    ],
)
def test_a_body_that_says_what_it_cannot_mean(frames: list[bytes], message: str) -> None:
    refused(frames, message)


@pytest.mark.parametrize(
    ("name", "limits", "message"),
    [
        ("pull", Limits(frame_bytes=23), "bytes of frame 0 88, the limit is 23"),
        ("push", Limits(frame_bytes=23), "bytes of frame 0 136, the limit is 23"),
        ("tables_reply", Limits(body_bytes=5, tables=0), "first frame: bytes 46, the limit is 45"),
        ("tables_reply", Limits(text_bytes=1), "bytes of text 2, the limit is 1"),
        ("pull", Limits(tables=1), "tables in the directory 2, the limit is 1"),
        ("stats_reply", Limits(tables=1), "2 tables, the limit is 1"),
        ("pull", Limits(rows=2), "rows 3, the limit is 2"),
        ("pull", Limits(dim=2), "dim of table 3 3, the limit is 2"),
        ("block_reply", Limits(state_width=0), "words of state a row 1, the limit is 0"),
        ("clients_reply", Limits(clients=1), "clients 2, the limit is 1"),
    ],
)
def test_every_limit_is_kept(name: str, limits: Limits, message: str) -> None:
    refused(of(name), message, limits)


def test_there_is_a_test_of_every_limit() -> None:
    cases = test_every_limit_is_kept.pytestmark[0].args[1]  # type: ignore[attr-defined]
    changed = {
        f.name for _, limits, _ in cases for f in dataclasses.fields(Limits) if getattr(limits, f.name) != f.default
    }
    assert changed == {f.name for f in dataclasses.fields(Limits)}


def section(**fields: Any) -> tuple[Section, ...]:
    return (Section(**{"table": 0, "rows": 2, "dim": 3, **fields}),)


IDS, VALUES, VERSIONS = np.zeros(2, U64), np.zeros(24, np.uint8), np.zeros(2, np.uint8)


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (Done(request=2**64), "DONE: a number does not fit its field"),
        (Done(placement=-1), "DONE: a number does not fit its field"),
        (Done(count=-1), "DONE: a number does not fit its field"),
        (Hello(client=1, fingerprint=b"x"), "a fingerprint has 32 bytes, got 1"),
        (TablesReply(text="\ud800"), "a text that is not Unicode"),
        (ClientsReply(clients={-1: (0, 0)}), "ClientsReply: a number does not fit its field"),
        (AckReply(refused={"tired": 1}), "unknown reason 'tired', known: missing_row, not_finite"),
        (AckReply(staleness=np.zeros(256, np.int64)), r"staleness must be \[257\], got \[256\]"),
        (AckReply(staleness=np.full(257, -1)), "ACK_REPLY: a number does not fit its field"),
        (Pull(sections=section(), ids=IDS[:1]), "ids must be a contiguous uint64 array of 2, got uint64 of 1"),
        (Pull(sections=section(), ids=IDS.astype(np.int64)), "ids must be a contiguous uint64 array of 2, got int64"),
        (Pull(sections=section(), ids=np.zeros(4, U64)[::2]), "ids must be a contiguous uint64 array"),
        (Pull(sections=section(table=65536), ids=IDS), "PULL: a number does not fit its field"),
        (Pull(sections=section(format=WireFormat.FP16, scale=2.0), ids=IDS), "who answers chooses it"),
        (Pull(sections=(*section(), *section()), ids=np.zeros(4, U64)), "table 0 comes after table 0"),
        (Pull(sections=section(dim=0), ids=IDS), "dim of table 0 must be 1 or more"),
        (
            RowsReply(sections=section(), values=VALUES[1:], versions=VERSIONS),
            "values must be a contiguous uint8 array",
        ),
        (RowsReply(sections=section(), values=VALUES, versions=VERSIONS[1:]), "versions must be a contiguous uint8"),
        (
            RowsReply(sections=section(format=WireFormat.INT8, scale=2.0), values=VALUES[:16], versions=VERSIONS),
            r"scale 2.0 of table 0 \(int8\)",
        ),
        (
            Push(client=0, epoch=0, seq=2**64, sections=section(), ids=IDS, gradients=VALUES),
            "PUSH: a number does not fit its field",
        ),
        (
            ImportRows(table=0, ids=IDS, values=np.zeros((2, 3)), state=np.zeros((2, 0), np.float32)),  # type: ignore[arg-type]
            r"values must be \[R, D\] of float32, float16 or uint16, or",
        ),
        (
            BlockReply(
                table=0, ids=IDS, values=np.zeros((3, 3), np.float32), state=np.zeros((2, 0), np.float32), total_rows=2
            ),
            "values must be a contiguous float32 array of 6, got float32 of 9",
        ),
        (Message(), "Message is not a message"),
    ],
)
def test_what_cannot_be_sent_is_refused_before_it_is(message: Message, told: str) -> None:
    with pytest.raises(WireError, match=told):
        encode(message)


def test_a_failure_is_cut_so_that_it_can_always_be_sent() -> None:
    text = "é" * 10_000 + "\ud800"
    back = decode(encode(Failure(code=Code.INTERNAL, text=text)))
    assert isinstance(back, Failure)
    assert back.text == "é" * 4096
    longer = TablesReply(text="x" * 8200)
    body = struct.pack("<Q", Code.BUSY) + frames_of(longer)[0][40:]
    head = frames_of(Failure(code=Code.BUSY, text=""))[0][:40]
    refused(put([head + body], "I", 28, len(body)), "FAILURE: bytes of text 8200, the limit is 8192")


def test_the_request_of_a_malformed_message_is_told_where_it_can_be_seen() -> None:
    # So that a failure reaches who waits for it, whatever else was wrong with the message.
    assert request_of(put(of("pull"), "B", 5, 64)[0]) == 5
    assert [request_of(first) for first in (b"", of("pull")[0][:39], bytes(40))] == [0, 0, 0]


def test_an_error_of_the_wire_is_one_of_the_service() -> None:
    assert issubclass(WireError, ServiceError)
