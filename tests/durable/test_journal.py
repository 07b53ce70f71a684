"""The journal: what is written is read, what is torn is told, what is damaged is refused by file and offset."""

from __future__ import annotations

import shutil
import struct
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from satrap.durable.check import check, repair
from satrap.durable.journal import Journal, Reading, read_journal, segments
from satrap.durable.record import RECORD, Kind
from satrap.durable.segment import SEGMENT, Identity
from satrap.errors import JournalError

ME = Identity(server=3, fingerprint=bytes(range(32)), life=0x1122334455667788)


def written(folder: Path, payloads: list[list[bytes]], *, segment_bytes: int = 1 << 20) -> None:
    journal = Journal(folder, ME, segment_bytes=segment_bytes)
    for frames in payloads:
        journal.append(Kind.MESSAGE, frames)
    journal.close()


def read(folder: Path, first: int = 1) -> tuple[list[list[bytes]], Reading]:
    reading = Reading(ME, first)
    return [[bytes(f) for f in r.frames] for r in read_journal(folder, reading)], reading


SOME = [[b"a"], [b"", b"bc" * 40], [b"d" * 9, b"e" * 16, b"", b"f"], [b"g" * 100], [b"h"]]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.binary(max_size=40), min_size=1, max_size=4), max_size=12),
    st.integers(80, 400),
    st.data(),
)
def test_what_is_appended_is_read_in_order_from_any_record_on(
    payloads: list[list[bytes]], segment_bytes: int, data: st.DataObject
) -> None:
    folder = Path(tempfile.mkdtemp())
    written(folder, payloads, segment_bytes=segment_bytes)
    first = data.draw(st.integers(1, len(payloads) + 1))
    records, reading = read(folder, first)
    assert records == payloads[first - 1 :]
    assert reading.torn == []
    assert reading.next == len(payloads) + 1
    shutil.rmtree(folder)


def test_the_bytes_are_those_of_the_format_page(tmp_path: Path) -> None:
    # A change of the format that nobody meant, or that the page does not tell.
    written(tmp_path, [[b"satrap", b"journal!"]])
    data = (tmp_path / "journal-00000000000000000001-0000.satrap").read_bytes()
    page = (Path(__file__).parents[2] / "docs" / "formats" / "journal.md").read_text()
    golden = page.split("<!-- golden -->")[1]
    shown = b"".join(
        bytes.fromhex("".join(line[10:].split("  ")[0].split())) for line in golden.splitlines() if line[4:8].isalnum()
    )
    assert data == shown


def test_a_record_cut_at_any_byte_is_told_as_torn_and_all_before_it_is_read(tmp_path: Path) -> None:
    written(tmp_path, SOME)
    (path,) = tmp_path.iterdir()
    data = path.read_bytes()
    _, reading = read(tmp_path)
    whole = len(data)
    for size in range(whole):
        path.write_bytes(data[:size])
        records, reading = read(tmp_path)
        assert records == SOME[: len(records)]
        at_an_end = size in ends(data)
        assert bool(reading.torn) != at_an_end
        if reading.torn:
            assert str(path) in str(reading.torn[0])
            assert reading.torn[0].offset + reading.torn[0].size == size


def ends(data: bytes) -> set[int]:
    """Where records, and the header, end."""
    at, out = SEGMENT.size, {SEGMENT.size}
    while at < len(data):
        lengths = RECORD.unpack_from(data, at)[5:9]
        at += RECORD.size + sum(n + -n % 8 for n in lengths)
        out.add(at)
    return out


def test_a_bit_flipped_anywhere_but_in_the_last_record_is_refused_by_file_and_offset(tmp_path: Path) -> None:
    written(tmp_path, SOME)
    (path,) = tmp_path.iterdir()
    data = path.read_bytes()
    last = sorted(ends(data))[-2]
    for at in range(last):
        damaged = bytearray(data)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        with pytest.raises(JournalError, match=r"version|damaged at byte offset") as told:
            read(tmp_path)
        assert str(path) in str(told.value)


def test_a_torn_end_is_forgiven_only_where_the_next_segment_goes_on_with_the_number_expected(tmp_path: Path) -> None:
    written(tmp_path, SOME[:3])
    (first,) = tmp_path.iterdir()
    first.write_bytes(first.read_bytes() + b"torn")
    journal = Journal(tmp_path, ME, 4)
    journal.append(Kind.MESSAGE, [b"next"])
    journal.close()
    records, reading = read(tmp_path)
    assert records == [*SOME[:3], [b"next"]]
    assert len(reading.torn) == 1
    # The last record of the first segment gone: the same torn end, but a number is missing.
    data = first.read_bytes()[:-4]
    first.write_bytes(data[: sorted(ends(data))[-2] + 7])
    with pytest.raises(JournalError, match="records 3 to 3 are missing"):
        read(tmp_path)


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_segment_that_is_gone_is_noticed(lost: int, tmp_path: Path) -> None:
    written(tmp_path, SOME, segment_bytes=100)
    places = segments(tmp_path)
    assert len(places) > 3
    (tmp_path / places[lost].name).unlink()
    with pytest.raises(JournalError, match="missing"):
        read(tmp_path)


def test_segments_exchanged_or_renamed_are_refused(tmp_path: Path) -> None:
    written(tmp_path, SOME, segment_bytes=100)
    one, two = (tmp_path / p.name for p in segments(tmp_path)[1:3])
    data = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(data)
    with pytest.raises(JournalError, match="renamed or exchanged"):
        read(tmp_path)


def test_the_journal_of_another_is_refused(tmp_path: Path) -> None:
    written(tmp_path, SOME)
    for other, says in (
        (Identity(3, bytes(32), ME.life), "other tables"),
        (Identity(4, ME.fingerprint, ME.life), "server 3, not 4"),
        (Identity(3, ME.fingerprint, 5), "other rows"),
    ):
        with pytest.raises(JournalError, match=says):
            list(read_journal(tmp_path, Reading(other)))


def test_a_newer_version_and_an_unknown_kind_say_so(tmp_path: Path) -> None:
    # Taken for torn, they would be dropped without a word by an older satrap.
    from satrap.store import crc32c

    written(tmp_path, SOME[:1])
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    newer = bytearray(data)
    newer[8] = 9
    newer[SEGMENT.size - 4 : SEGMENT.size] = struct.pack("<I", crc32c([newer[: SEGMENT.size - 4]]))
    path.write_bytes(newer)
    with pytest.raises(JournalError, match="journal version 9"):
        read(tmp_path)
    at = SEGMENT.size
    data[at + 4] = 99
    data[at + RECORD.size - 4 : at + RECORD.size] = struct.pack("<I", crc32c([data[at : at + RECORD.size - 4]]))
    path.write_bytes(data)
    with pytest.raises(JournalError, match="a kind that this satrap does not know"):
        read(tmp_path)


def test_check_names_the_damage_and_repair_cuts_before_it(tmp_path: Path) -> None:
    written(tmp_path, SOME, segment_bytes=100)
    places = segments(tmp_path)
    assert check(tmp_path).damage is None
    assert repair(tmp_path) == []
    path = tmp_path / places[-2].name
    data = bytearray(path.read_bytes())
    data[SEGMENT.size + RECORD.size] ^= 1
    path.write_bytes(data)
    (tmp_path / "more").mkdir()
    report = check(tmp_path)
    assert report.damage is not None
    assert report.segment == path
    last = report.records[1]
    assert 0 < last < len(SOME)
    aside = repair(tmp_path)
    assert len(aside) == 2
    assert read(tmp_path)[0] == SOME[:last]
    assert check(tmp_path).damage is None


def test_records_of_more_than_four_frames_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 to 4 frames"):
        Journal(tmp_path, ME).append(Kind.MESSAGE, [b""] * 5)
