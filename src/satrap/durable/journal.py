"""A server's journal: the records of everything that changed its state, in segments (docs/formats/journal.md).

    folder/journal-00000000000000000001-0000.satrap     records 1 …
    folder/journal-00000000000000004096-0000.satrap     records 4096 …

Records are only ever added, at the end of the newest segment, by the process that began it. Whoever comes after a
crash begins another.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from satrap.durable.files import LOCAL, Files, Writable
from satrap.durable.record import Kind, Record, record_parts
from satrap.durable.segment import REPAIR, Identity, SegmentReader, Torn, close_quietly, segment_header, write_parts
from satrap.errors import JournalError

if TYPE_CHECKING:
    from typing_extensions import Buffer

SEGMENT_BYTES = 64 << 20
_NAME = re.compile(r"journal-(\d{20})-(\d{4})\.satrap")


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a segment is in its journal, as its name has it."""

    first: int
    """Sequence number of its first record."""
    attempt: int = 0
    """Segments of one first number: all but the last came to nothing."""

    @property
    def name(self) -> str:
        """Of the file."""
        return f"journal-{self.first:020d}-{self.attempt:04d}.satrap"


def segments(folder: Path, files: Files = LOCAL) -> list[Place]:
    """The segments in a folder, in order."""
    found = (_NAME.fullmatch(name) for name in files.names(folder))
    return sorted(Place(int(m[1]), int(m[2])) for m in found if m is not None)


@dataclass(slots=True)
class Reading:
    """A journal being read."""

    identity: Identity | None
    """Whose it must be; None: whoever's it is, which is then filled in."""
    next: int = 1
    """Sequence number that the next record must have: the last one read, plus 1."""
    torn: list[Torn] = field(default_factory=list)
    """What crashes left half written."""
    bytes: int = 0


def read_journal(folder: Path, reading: Reading, files: Files = LOCAL) -> Iterator[Record]:
    """Every record from `reading.next` on.

    Raises JournalError where one is missing or damaged, or belongs to another.
    """
    places = segments(folder, files)
    # The last segment that can hold the first one wanted, and all behind it.
    start = max((i for i, p in enumerate(places) if p.first <= reading.next), default=0)
    while start > 0 and places[start - 1].first == places[start].first:
        start -= 1
    places = places[start:]
    if places and places[0].first > reading.next:
        raise JournalError(
            f"{folder}: records {reading.next} to {places[0].first - 1} are missing; the oldest segment is "
            f"{places[0].name}. Restore it from a copy, or {REPAIR}"
        )
    wanted = reading.next
    for place, following in zip_longest(places, places[1:]):
        reader = SegmentReader(folder / place.name, place.first, files)
        for record in reader.records():
            _check_identity(reader, reading)
            if record.sequence >= wanted:
                reading.next = record.sequence + 1
                yield record
        _check_identity(reader, reading)
        reading.bytes += reader.size
        if following is not None and following.first != reader.next:
            at = f"byte offset {reader.torn.offset}: {reader.torn.why}" if reader.torn else f"record {reader.next - 1}"
            raise JournalError(
                f"{reader.path}: it ends at {at}, and {following.name} follows: records {reader.next} to "
                f"{following.first - 1} are missing. Restore it from a copy, or {REPAIR}"
            )
        if reader.torn is not None:
            reading.torn.append(reader.torn)
        reading.next = max(reading.next, reader.next)


def _check_identity(reader: SegmentReader, reading: Reading) -> None:
    if reader.identity is None or reader.identity == reading.identity:
        return
    if reading.identity is None:
        reading.identity = reader.identity
        return
    have, want = reader.identity, reading.identity
    if have.fingerprint != want.fingerprint:
        what = "of other tables, or made with another seed"
    elif have.server != want.server:
        what = f"of server {have.server}, not {want.server}"
    else:
        what = f"of other rows: of life {have.life}, not {want.life}"
    raise JournalError(f"{reader.path}: it is the journal {what}; give this server its own folder")


class Journal:
    """Adds records. `append` and `rotate` by one thread, `sync` by any others beside it.

    A failed append leaves the journal as it was; a failed sync ends it, since what is on disk is then not known.
    """

    def __init__(
        self,
        folder: Path,
        identity: Identity,
        next_sequence: int = 1,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        files: Files = LOCAL,
    ) -> None:
        """Begins no file before the first record. `next_sequence`: of that record."""
        self.folder, self.identity = folder, identity
        self._files, self._segment_bytes = files, segment_bytes
        self._position = self._synced = next_sequence - 1
        self._file: Writable | None = None
        self._size = 0
        self._retired: list[Writable] = []
        """Full segments that were not synced since."""
        self._new_names = False
        self._lock = threading.Lock()
        self._sync_turn = threading.Lock()
        self._failed: JournalError | None = None
        self.bytes = self.last_bytes = 0
        """Written by this process; of its last record."""

    @property
    def position(self) -> int:
        """Sequence number of the last record."""
        return self._position

    @property
    def synced(self) -> int:
        """Sequence number of the last record that survives power loss."""
        return self._synced

    def append(self, kind: Kind, frames: Sequence[Buffer]) -> int:
        """Adds a record, which then survives the end of this process; returns its sequence number.

        Raises JournalError where that fails; then there is no such record.
        """
        self.check()
        parts = record_parts(kind, self._position + 1, frames)
        try:
            if self._file is not None and self._size >= self._segment_bytes:
                self.rotate()
            if self._file is None:
                self._begin()
            assert self._file is not None
            size = write_parts(self._file, parts)
        except OSError as e:
            # What was written of it stays behind as the torn end of this segment.
            self.rotate()
            raise JournalError(
                f"{self.folder}: the journal cannot be written: {e.strerror}. What was asked was not done; what was "
                "acknowledged before is safe. Free some space, or give the job another folder"
            ) from e
        with self._lock:
            self._size += size
            self._position += 1
        self.bytes += size
        self.last_bytes = size
        return self._position

    def check(self) -> None:
        """Raises JournalError where it takes no more records."""
        if self._failed is not None:
            raise self._failed

    def rotate(self) -> None:
        """The next record begins a new segment."""
        with self._lock:
            if self._file is not None:
                self._retired.append(self._file)
            self._file = None

    def _begin(self) -> None:
        first = self._position + 1
        attempt = max((p.attempt + 1 for p in segments(self.folder, self._files) if p.first == first), default=0)
        file = self._files.create(self.folder / Place(first, attempt).name)
        with self._lock:
            self._file, self._new_names = file, True
        self._size = write_parts(file, [segment_header(self.identity, first)])

    def sync(self) -> int:
        """Returns when every record so far survives power loss, with the last one's number.

        Raises JournalError; the journal then takes no more.
        """
        with self._sync_turn:
            with self._lock:
                position, retired, names = self._position, self._retired, self._new_names
                current = [] if self._file is None else [self._file]
                self._retired, self._new_names = [], False
            self.check()
            try:
                for file in (*retired, *current):
                    file.sync()
                if names:
                    self._files.sync_directory(self.folder)
            except OSError as e:
                self._failed = JournalError(
                    f"{self.folder}: the journal cannot be synced: {e.strerror}. It takes no more records, and nothing "
                    "more is acknowledged: see to the disk, and start the server again"
                )
                raise self._failed from e
            for file in retired:
                close_quietly(file)
            self._synced = max(self._synced, position)
            return position

    def remove_up_to(self, position: int) -> None:
        """Removes the segments that hold no record behind this one. Raises OSError."""
        places = segments(self.folder, self._files)
        for place, following in pairwise(places):
            if following.first <= position + 1:
                self._files.remove_file(self.folder / place.name)

    def close(self) -> None:
        """Ends writing, without a sync."""
        self.rotate()
        for file in self._retired:
            close_quietly(file)
        self._retired = []
