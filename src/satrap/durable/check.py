"""Looking at a history, and making one of what is left of a damaged one."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from satrap.durable.files import LOCAL, Files
from satrap.durable.journal import Place, Reading, read_journal, segments
from satrap.durable.segment import SegmentReader, write_segment
from satrap.durable.snapshot import BEGIN, END, GONE, Snapshot, snapshots
from satrap.errors import JournalError

ASIDE = "damaged-"
"""Begins the name of a file that repair has put aside."""


@dataclass(slots=True)
class Report:
    """What is in the folder of a server's history."""

    folder: Path
    snapshot: Path | None = None
    records: tuple[int, int] = (0, 0)
    """Numbers of the first and the last that can be read behind the snapshot; (1, 0): none."""
    needed: int = 0
    """The last record without which the snapshot is of no use."""
    bytes: int = 0
    torn: list[str] = field(default_factory=list)
    """What crashes left half written: no damage, nothing of it was acknowledged."""
    damage: str | None = None
    """What a server would refuse."""
    segment: Path | None = None
    """Where the damage is, when it is in the journal."""


def check(folder: Path, files: Files = LOCAL) -> Report:
    """Reads all of a history, as a server would, but for what its records mean. Raises JournalError where there is
    none."""
    report = Report(folder)
    if not segments(folder, files) and not snapshots(folder, files):
        raise JournalError(f"{folder} holds no server's history: it has neither journal nor snapshot")
    reading = Reading(None)
    end = 0
    try:
        for snapshot in Snapshot.chain(folder, files):
            report.snapshot = snapshot.path
            reading.identity, reading.next = snapshot.manifest.identity, snapshot.manifest.begin + 1
            report.needed = end = snapshot.manifest.end
            for name in (BEGIN, END, GONE):
                snapshot.state(name)
            for partition in range(snapshot.manifest.partitions):
                snapshot.verify_rows(partition)
    except JournalError as e:
        report.damage = str(e)
        return report
    first = reading.next
    try:
        for _ in read_journal(folder, reading, files):
            pass
        if reading.next <= end:
            report.damage = f"{folder}: records {reading.next} to {end} are missing, and {report.snapshot} needs them"
    except JournalError as e:
        report.damage = str(e)
        report.segment = folder / _holding(folder, reading.next, files).name
    report.records = (first, reading.next - 1)
    report.bytes = reading.bytes
    report.torn = [str(t) for t in reading.torn]
    return report


def _holding(folder: Path, number: int, files: Files) -> Place:
    """The segment in which a record would be."""
    places = segments(folder, files)
    return max((p for p in places if p.first <= number), default=places[0])


def repair(folder: Path, files: Files = LOCAL) -> list[Path]:
    """Puts aside what lies behind the last record that can be read, so that a server begins with what is before it.
    Acknowledged gradients behind it are lost: whoever asks for this has been told. Returns the files put aside, copies
    under other names; the readable part of a damaged segment is written anew.

    Raises JournalError where the snapshot is damaged or needs what is missing: only a checkpoint helps then.
    """
    report = check(folder, files)
    if report.damage is None:
        return []
    if report.segment is None or report.records[1] < report.needed:
        raise JournalError(f"{report.damage}. A snapshot cannot be repaired: go back to a checkpoint of the job")
    last = report.records[1]
    aside: list[Path] = []
    try:
        for place in [p for p in segments(folder, files) if folder / p.name >= report.segment]:
            path = folder / place.name
            kept = folder / f"{ASIDE}{place.name}"
            reader = SegmentReader(path, place.first, files)
            records = []
            if path == report.segment and place.first <= last:
                for record in reader.records():
                    records.append((record.kind, record.frames))
                    if record.sequence == last:
                        break
            files.rename(path, kept)
            aside.append(kept)
            if records and reader.identity is not None:
                file = files.create(path)
                try:
                    write_segment(file, reader.identity, place.first, records)
                    file.sync()
                finally:
                    file.close()
        files.sync_directory(folder)
    except OSError as e:
        raise JournalError(f"{folder}: cannot be repaired: {e.strerror}") from e
    return aside
