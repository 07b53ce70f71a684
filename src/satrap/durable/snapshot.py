"""A snapshot of a server: rows by partition, and the state of its filter, published whole (docs/formats/journal.md).

    folder/snapshot-00000000000000004095/     begins after record 4095
        rows-00017.satrap                     all rows of partition 17 (docs/formats/rows.md)
        begin.satrap, end.satrap              the state after its first and its last record, as journal records
        gone.satrap                           rows of the snapshot before that are there no more, as journal records
        manifest.json                         positions, sizes, checksums

Written in a folder of another name, synced, renamed. A unit, one partition of one table, was copied between two
records; its position is the number of the one before.

A snapshot that has a base holds only the rows that have changed since that one: a chain, from one without a base to the
newest, has them all.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from satrap.durable.files import LOCAL, Files, Readable, Writable, read_file, remove_tree, write_all
from satrap.durable.record import Kind, Record
from satrap.durable.rows import RowBlock, RowReader, RowWriter, Scratch, Section, Source, kind_of
from satrap.durable.segment import Identity, SegmentReader, close_quietly, write_segment
from satrap.errors import CheckpointError, JournalError
from satrap.schema import Table
from satrap.store import crc32c

if TYPE_CHECKING:
    from typing_extensions import Buffer

FORMAT, VERSION, READS = "satrap-snapshot", 3, (1, 2, 3)
PLAIN = 2
"""Version of what has no changes of bounded tables: all else is the same."""
MANIFEST, BEGIN, END, GONE = "manifest.json", "begin.satrap", "end.satrap", "gone.satrap"
ADVICE = "Restore the folder from a copy, or go back to a checkpoint of the job"
_NAME = re.compile(r"snapshot-(\d{20})")
_DRAFT = re.compile(r"\.snapshot-\d{20}")
_TRAILER = re.compile(rb',\n  "crc32c": "([0-9a-f]{8})"\n}\n')
_TRAILER_BYTES = len(b',\n  "crc32c": ""\n}\n') + 8

SYNCS_MAX = 4
"""Files that may wait to be synced while others are written."""

PIECE_BYTES = 1 << 18
"""What is smaller waits to be written with what follows."""

Records = Iterable[tuple[Kind, "Sequence[Buffer]"]]


class FileEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file beside the manifest."""

    bytes: int
    crc32c: str
    """Of the whole file, 8 hexadecimal digits."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a snapshot is."""

    format: str
    version: int
    server: int
    life: str
    """In hexadecimal: more digits than JSON's numbers are sure to keep."""
    fingerprint: str
    begin: int
    """Records up to this one are in every unit, and in the state with which replay begins."""
    end: int
    """At this one the state of `end.satrap` takes over."""
    base: int | None = None
    """Where the snapshot begins whose rows these change; None: these are all rows."""
    whole: tuple[int, ...] = ()
    """With a base: partitions whose rows are all here, whatever there was before."""
    partitions: int
    tables: tuple[str, ...]
    positions: tuple[tuple[int, ...], ...]
    """[P][tables] the last record that is in the unit."""
    files: dict[str, FileEntry]
    """A partition without rows has no file."""

    @property
    def identity(self) -> Identity:
        """Whose it is."""
        return Identity(self.server, bytes.fromhex(self.fingerprint), int(self.life, 16))


def encode_manifest(manifest: Manifest) -> bytes:
    """The bytes of `manifest.json`: JSON, and as its last member the CRC32C of all bytes before it."""
    body = json.dumps(msgspec.to_builtins(manifest), indent=1).encode()[:-2]
    return body + f',\n  "crc32c": "{crc32c([body]):08x}"\n}}\n'.encode()


def decode_manifest(data: bytes, where: str) -> Manifest:
    """A manifest from its bytes. Raises JournalError naming `where`."""
    trailer = _TRAILER.fullmatch(data[-_TRAILER_BYTES:])
    body = data[:-_TRAILER_BYTES]
    if trailer is None or int(trailer.group(1), 16) != crc32c([body]):
        raise JournalError(
            f"{where}: damaged: its content does not match the checksum in its last line (byte offset "
            f"{max(0, len(data) - _TRAILER_BYTES)}). {ADVICE}"
        )
    try:
        tree = msgspec.json.decode(body + b"\n}")
        if not isinstance(tree, dict) or tree.get("format") != FORMAT:
            raise JournalError(f"{where} is not the manifest of a snapshot")
        if tree.get("version") not in READS:
            raise JournalError(
                f"{where}: snapshot version {tree.get('version')}, this satrap reads versions {READS[0]} to {VERSION}; "
                "use a newer satrap"
            )
        manifest = msgspec.convert(tree, Manifest, strict=True)
        manifest.identity  # noqa: B018  its numbers must be numbers
    except (msgspec.MsgspecError, ValueError, RecursionError) as e:
        raise JournalError(f"{where}: {e}. {ADVICE}") from e
    shape = {len(p) for p in manifest.positions}
    if len(manifest.positions) != manifest.partitions or shape - {len(manifest.tables)}:
        raise JournalError(f"{where}: positions of {len(manifest.positions)} partitions by {shape} tables. {ADVICE}")
    if manifest.base is not None and not 0 <= manifest.base < manifest.begin:
        raise JournalError(f"{where}: its base begins at {manifest.base}, it itself at {manifest.begin}. {ADVICE}")
    allowed = {BEGIN, END, GONE, *(rows_name(p) for p in range(manifest.partitions))}
    strange = next((n for n in manifest.files if n not in allowed), None)
    if strange is not None or not {BEGIN, END} <= manifest.files.keys():
        raise JournalError(f"{where}: it lists {strange or 'no states'} among its files. {ADVICE}")
    inside = all(manifest.begin <= x <= manifest.end for p in manifest.positions for x in p)
    if not inside or manifest.begin < 0:
        raise JournalError(f"{where}: positions outside {manifest.begin} to {manifest.end}. {ADVICE}")
    return manifest


def rows_name(partition: int) -> str:
    """Name of the file of a partition's rows."""
    return f"rows-{partition:05d}.satrap"


def snapshots(folder: Path, files: Files = LOCAL) -> list[int]:
    """Where the snapshots in a folder begin, ascending. What was not published is none."""
    return sorted(int(m[1]) for m in map(_NAME.fullmatch, files.names(folder)) if m is not None)


def snapshot_path(folder: Path, begin: int) -> Path:
    """Where a snapshot is."""
    return folder / f"snapshot-{begin:020d}"


class SnapshotWriter:
    """Writes one snapshot aside, and publishes it. Any step may raise OSError; `discard` then removes what there is."""

    def __init__(
        self,
        folder: Path,
        identity: Identity,
        begin: int,
        tables: Sequence[Table],
        partitions: int,
        files: Files = LOCAL,
        *,
        base: int | None = None,
        whole: Sequence[int] = (),
        beside: bool = False,
    ) -> None:
        """`base`, `whole`: as in the manifest. `beside`: files are synced by a thread while the next ones are
        written."""
        self._base, self._whole = base, tuple(whole)
        self._folder, self._identity, self._begin, self._files = folder, identity, begin, files
        self._tables, self._partitions = tuple(tables), partitions
        self._draft = folder / f".{snapshot_path(folder, begin).name}"
        self._positions: list[tuple[int, ...]] = []
        self._entries: dict[str, FileEntry] = {}
        self.bytes = 0
        self._syncs = ThreadPoolExecutor(1, thread_name_prefix="satrap-sync") if beside else None
        self._under_way: deque[Future[None]] = deque()
        if files.is_directory(self._draft):
            remove_tree(self._draft, files)
        files.make_directory(self._draft)

    def state(self, name: str, position: int, records: Records) -> None:
        """Writes records: a state, BEGIN or END, or GONE."""
        file = _Summed(self._files.create(self._draft / name))
        try:
            write_segment(file, self._identity, position, records)
            file.sync()
        finally:
            file.close()
        self._enter(name, file)

    def partition(self, blocks: Iterable[tuple[int, RowBlock]]) -> None:
        """Writes the next partition: position and rows of each table, in the order of the tables."""
        number = len(self._positions)
        name = rows_name(number)
        positions: list[int] = []
        file: _Summed | None = None
        writer: RowWriter | None = None
        try:
            for table, (position, block) in zip(self._tables, blocks, strict=True):
                positions.append(position)
                if not block.ids.size and block.bound is None:
                    continue
                if file is None or writer is None:
                    file = _Summed(self._files.create(self._draft / name))
                    bounded = any(t.bounded for t in self._tables)
                    writer = RowWriter(file.put, partition=number, partitions=self._partitions, bounded=bounded)
                writer.add(table, block)
            if writer is not None and file is not None:
                writer.close()
                self._enter(name, file)
        except BaseException:
            if file is not None:
                close_quietly(file)
            raise
        if file is not None:
            self._sync(file)
        self._positions.append(tuple(positions))

    def _sync(self, file: Writable) -> None:
        """Syncs a file that is whole, and closes it; what fails may be raised by a later step."""

        def sync() -> None:
            try:
                file.sync()
            finally:
                file.close()

        if self._syncs is None:
            sync()
            return
        while len(self._under_way) >= SYNCS_MAX:
            self._under_way.popleft().result()
        self._under_way.append(self._syncs.submit(sync))

    def _settle(self) -> None:
        """Waits for all syncs, and raises what one of them raised."""
        while self._under_way:
            self._under_way.popleft().result()
        if self._syncs is not None:
            self._syncs.shutdown()

    def publish(self, end: int) -> Path:
        """Makes it the newest snapshot. The journal must have been synced up to `end` before."""
        self._settle()
        manifest = Manifest(
            format=FORMAT,
            version=VERSION if self._base is not None and any(t.bounded for t in self._tables) else PLAIN,
            server=self._identity.server,
            life=f"{self._identity.life:016x}",
            fingerprint=self._identity.fingerprint.hex(),
            begin=self._begin,
            end=end,
            base=self._base,
            whole=self._whole,
            partitions=self._partitions,
            tables=tuple(t.name for t in self._tables),
            positions=tuple(self._positions),
            files=self._entries,
        )
        file = self._files.create(self._draft / MANIFEST)
        try:
            write_all(file, memoryview(encode_manifest(manifest)))
            file.sync()
        finally:
            file.close()
        self._files.sync_directory(self._draft)
        target = snapshot_path(self._folder, self._begin)
        self._files.rename(self._draft, target)
        self._files.sync_directory(self._folder)
        return target

    def discard(self) -> None:
        """Removes what was written, as far as the disk allows."""
        if self._syncs is not None:
            self._syncs.shutdown()
        with suppress(OSError):
            if self._files.is_directory(self._draft):
                remove_tree(self._draft, self._files)

    def _enter(self, name: str, file: _Summed) -> None:
        file.flush()
        self._entries[name] = FileEntry(bytes=file.size, crc32c=f"{file.crc:08x}")
        self.bytes += file.size


class _Summed:
    """A file being written, and the checksum of all of it. Small pieces, of which a row file has many, are written
    together."""

    def __init__(self, file: Writable) -> None:
        self._file, self._waiting = file, bytearray()
        self.size = self.crc = 0

    def write(self, data: memoryview) -> int:
        if len(data) < PIECE_BYTES:
            self._waiting += data
        else:
            self.flush()
            self._put(data)
        if len(self._waiting) >= PIECE_BYTES:
            self.flush()
        self.size += len(data)
        return len(data)

    def put(self, data: memoryview) -> None:
        self.write(data)

    def flush(self) -> None:
        """After it `crc` is of all that was written."""
        if self._waiting:
            self._put(memoryview(self._waiting))
            self._waiting = bytearray()

    def sync(self) -> None:
        self.flush()
        self._file.sync()

    def close(self) -> None:
        self._file.close()

    def _put(self, data: memoryview) -> None:
        self.crc = crc32c([data], self.crc)
        write_all(self._file, data)


def remove_others(folder: Path, keep: Collection[int], files: Files = LOCAL) -> None:
    """Removes every snapshot but these, and what was never published. Raises OSError."""
    for name in files.names(folder):
        found = _NAME.fullmatch(name)
        if (found is not None and int(found[1]) not in keep) or _DRAFT.fullmatch(name) or name.startswith(".old-"):
            path = folder / name
            if found is not None:
                # A snapshot that is removed only in part must not be taken for one.
                files.rename(path, folder / f".old-{name}")
                path = folder / f".old-{name}"
            remove_tree(path, files)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A published snapshot, being read. Thread-safe."""

    path: Path
    manifest: Manifest
    files: Files

    @classmethod
    def newest(cls, folder: Path, files: Files = LOCAL) -> Snapshot | None:
        """The newest one; None where there is none. Raises JournalError where it is damaged."""
        found = snapshots(folder, files)
        return cls.at(folder, found[-1], files) if found else None

    @classmethod
    def chain(cls, folder: Path, files: Files = LOCAL) -> list[Snapshot]:
        """The newest one and those it builds on, the oldest first: each changes the rows of the one before it. Empty
        where there is none. Raises JournalError where one is damaged or missing."""
        newest = cls.newest(folder, files)
        chain = [] if newest is None else [newest]
        while chain and (base := chain[0].manifest.base) is not None:
            if base not in snapshots(folder, files):
                where = snapshot_path(folder, base)
                raise JournalError(f"{chain[0].path} changes the rows of {where.name}, which is missing. {ADVICE}")
            before, after = cls.at(folder, base, files), chain[0].manifest
            if (before.manifest.identity, before.manifest.tables, before.manifest.partitions) != (
                after.identity, after.tables, after.partitions,
            ):  # fmt: skip
                what = f"{chain[0].path} builds on {before.path.name}, which is of another server"
                raise JournalError(f"{what}. {ADVICE}")
            chain.insert(0, before)
        return chain

    @property
    def bytes(self) -> int:
        """Of its files."""
        return sum(f.bytes for f in self.manifest.files.values())

    @classmethod
    def at(cls, folder: Path, begin: int, files: Files = LOCAL) -> Snapshot:
        """The one that begins there. Raises JournalError where it is damaged."""
        path = snapshot_path(folder, begin)
        try:
            data = bytes(read_file(path / MANIFEST, files))
        except OSError as e:
            raise JournalError(f"{path / MANIFEST}: cannot be read: {e.strerror}. {ADVICE}") from e
        manifest = decode_manifest(data, str(path / MANIFEST))
        if manifest.begin != begin:
            raise JournalError(f"{path}: its manifest is of the snapshot that begins at {manifest.begin}. {ADVICE}")
        return cls(path, manifest, files)

    def state(self, name: str) -> list[Record]:
        """The records of BEGIN, END, or GONE, which need not be there. Raises JournalError."""
        if name not in self.manifest.files:
            return []
        entry, path = self.manifest.files[name], self.path / name
        reader = SegmentReader(path, self.manifest.end if name == END else self.manifest.begin, self.files)
        records = list(reader.records())
        if reader.torn is not None:
            raise JournalError(f"{path}: damaged at byte offset {reader.torn.offset}: {reader.torn.why}. {ADVICE}")
        if reader.identity != self.manifest.identity:
            raise JournalError(f"{path}: it is of another server than {self.path / MANIFEST}. {ADVICE}")
        self._compare(path, entry, reader.size, crc32c([read_file(path, self.files)]))
        return records

    def rows(
        self, partition: int, tables: Mapping[str, Table], scratch: Scratch | None = None
    ) -> Iterable[tuple[str, RowBlock]]:
        """The rows of a partition by table; the file as a whole is verified at the end. Raises JournalError.

        `scratch`: where they lie, until that is used for another partition.
        """

        def wanted(section: Section) -> bool:
            table = tables.get(section.name)
            if table is None or (section.dim, section.format, section.optimizer) != (
                table.dim, table.format, kind_of(table),
            ):  # fmt: skip
                name = rows_name(partition)
                raise JournalError(
                    f"{self.path / name}: table '{section.name}' is not as this server has it: {section}. {ADVICE}"
                )
            return True

        return self._rows(partition, wanted, self.files.open_once, scratch)

    def verify_rows(self, partition: int) -> None:
        """Reads the rows of a partition and compares all checksums. Raises JournalError."""
        for _ in self._rows(partition, lambda _: True, self.files.open, Scratch()):
            pass

    def _rows(
        self,
        partition: int,
        wanted: Callable[[Section], bool],
        open_: Callable[[Path], Readable],
        scratch: Scratch | None,
    ) -> Iterator[tuple[str, RowBlock]]:
        entry = self.manifest.files.get(rows_name(partition))
        if entry is None:
            return
        path = self.path / rows_name(partition)
        crc = 0

        def seen(data: memoryview) -> None:
            nonlocal crc
            crc = crc32c([data], crc)

        try:
            size = self.files.size(path)
            file = open_(path)
        except OSError as e:
            raise JournalError(f"{path}: cannot be read: {e.strerror}. {ADVICE}") from e
        try:
            reader = RowReader(Source(file, str(path), size, seen), scratch)
            if (reader.partition, reader.partitions) != (partition, self.manifest.partitions):
                raise JournalError(f"{path}: it is of partition {reader.partition} of {reader.partitions}. {ADVICE}")
            for section, block in reader.sections(wanted):
                assert block is not None
                yield section.name, block
        except CheckpointError as e:
            raise JournalError(str(e)) from e
        finally:
            file.close()
        self._compare(path, entry, size, crc)

    def _compare(self, path: Path, entry: FileEntry, size: int, crc: int) -> None:
        if (size, f"{crc:08x}") != (entry.bytes, entry.crc32c):
            raise JournalError(
                f"{path}: {size} bytes with checksum {crc:08x}; the manifest lists {entry.bytes} bytes with "
                f"{entry.crc32c}: another file has its name. {ADVICE}"
            )
