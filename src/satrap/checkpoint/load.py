"""Loading: nothing is used before it has been verified, and no row is removed for a checkpoint that does not fit."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from msgspec import structs
from torch import Tensor

from satrap.checkpoint import manifest, tensors
from satrap.checkpoint.folder import find
from satrap.checkpoint.manifest import FileEntry, Manifest
from satrap.checkpoint.places import located, reading
from satrap.checkpoint.save import default_threads, parallel
from satrap.data.batch import Position
from satrap.durable.files import LOCAL, Files, read_file
from satrap.durable.rows import ADVICE, RowReader, Scratch, Section, Source, kind_of
from satrap.errors import CheckpointError, JobError, StoreError
from satrap.ps.local import LocalService
from satrap.ps.protocol import RowBlock, RowStorage
from satrap.schema import Adam, AdamW, Job, Table, job_from_dict
from satrap.store import converter, state_words


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checkpoint whose manifest, file sizes and tensors are verified; its rows will be as they are restored."""

    path: Path
    manifest: Manifest
    job: Job
    dense: dict[str, Tensor]
    """As `model.load_state_dict` takes it; on the CPU."""
    optimizer: Any
    """As the dense optimizer's `load_state_dict` takes it; None where none was saved."""
    rng: Any
    """As it was given to `save`."""
    extra: dict[str, Any]
    """As it was given to `save`."""
    files: Files = LOCAL

    @property
    def step(self) -> int:
        """Steps of the dense optimizer."""
        return self.manifest.step

    @property
    def position(self) -> Position:
        """Where the data goes on."""
        return self.manifest.position

    def restore_rows(self, service: RowStorage, *, threads: int | None = None) -> tuple[str, ...]:
        """Replaces all rows of the service, and its clients' sequences, by the checkpoint's. Returns notes: settings
        that differ and do not change what the rows mean (a learning rate, say).

        The service may have any number of partitions. Rows saved in another format, or with moments in another, become
        those of the service's, rounded to the nearest where that has fewer bits; the notes say so. Refused with no row
        touched: tables, dims or optimizers that differ. A service that has rows keeps them when a row file is damaged
        (all are verified first); an empty one is left empty.

        Raises CheckpointError.
        """
        notes = fit(self.manifest, service)
        ours = {t.name: t for t in service.tables()}
        converters = {t.spec.name: converter(t.spec, ours[t.spec.name]) for t in self.manifest.tables}

        alike = {t.spec.name for t in self.manifest.tables if same_marks(t.spec, ours[t.spec.name])}

        def take(section: Section, block: RowBlock) -> None:
            convert = converters[section.name]
            if convert is not None:
                values, state = convert(block.values, block.state)
                block = replace(block, values=values, state=state)
            if section.name not in alike:
                block = replace(block, marks=None, bound=None)
            service.import_rows(section.name, block)

        threads = threads or default_threads()
        if any(s.rows for s in service.stats().values()):
            _each_file(self, threads, lambda section, block: None, kept=False)
        service.clear()
        try:
            for table in self.manifest.tables:
                service.reserve_rows(table.spec.name, table.rows)
            # What goes to servers may be on its way still when it has been taken.
            _each_file(self, threads, take, kept=not isinstance(service, LocalService))
            stats = service.stats()
            for table in self.manifest.tables:
                have = stats[table.spec.name].rows
                if have < table.rows and ours[table.spec.name].capacity is not None:
                    notes += (f"table '{table.spec.name}': {table.rows - have} of {table.rows} rows had no room",)
                elif have != table.rows:
                    raise CheckpointError(
                        f"{self.path}: table '{table.spec.name}' has {table.rows} rows in the files, but {have} after "
                        f"the restore: an id is there twice. {ADVICE}"
                    )
        except BaseException as e:
            service.clear()
            if isinstance(e, StoreError):
                raise CheckpointError(f"{self.path}: its rows do not fit the tables: {e}") from e
            raise
        service.set_clients(self.manifest.clients)
        return notes


def load(path: str | Path, *, files: Files | None = None) -> Loaded:
    """Opens a checkpoint, or the newest of a run folder; the path may be a URL. Raises CheckpointError naming the file
    that is damaged, missing or of another version."""
    directory, files = located(find(path, files), files)
    content = manifest.read(directory, files)
    check_files(directory, content, files)
    where = str(directory / manifest.NAME)
    try:
        job = job_from_dict(content.job)
    except JobError as e:
        raise CheckpointError(f"{where}: the job in it cannot be read: {e}") from e
    blobs = {
        name: tensors.decode(_verified(directory, name, content.files[name], files), str(directory / name))
        for name in (manifest.DENSE, manifest.OPTIMIZER, manifest.RNG)
    }
    return Loaded(
        path=directory,
        manifest=content,
        job=job,
        dense=blobs[manifest.DENSE],
        optimizer=tensors.unpack(content.optimizer, blobs[manifest.OPTIMIZER], f"{where}: optimizer"),
        rng=tensors.unpack(content.rng, blobs[manifest.RNG], f"{where}: rng"),
        extra=tensors.unpack(content.extra, {}, f"{where}: extra"),
        files=files,
    )


def verify(path: str | Path, *, threads: int | None = None, files: Files | None = None) -> Manifest:
    """Reads every byte of a checkpoint and compares every checksum. Raises CheckpointError at the first damage, naming
    file and, in row files, offset."""
    loaded = load(path, files=files)
    _each_file(loaded, threads or default_threads(), lambda section, block: None, kept=False)
    return loaded.manifest


def check_files(directory: Path, content: Manifest, files: Files = LOCAL) -> None:
    """Every listed file is there with its size. (Files that are not listed are nobody's business.)"""
    with reading(directory):
        present = set(files.names(directory))
    for name, entry in content.files.items():
        if name not in present:
            raise CheckpointError(
                f"{directory / name}: missing; the manifest lists it with {entry.bytes} bytes. {ADVICE}"
            )
        try:
            size = files.size(directory / name)
        except OSError as e:
            raise CheckpointError(f"cannot read {directory / name}: {e.strerror}") from e
        if size != entry.bytes:
            cut = f"truncated at byte offset {size}" if size < entry.bytes else f"{size - entry.bytes} bytes too long"
            raise CheckpointError(f"{directory / name}: {size} bytes, the manifest says {entry.bytes}: {cut}. {ADVICE}")


def fit(content: Manifest, service: RowStorage) -> tuple[str, ...]:
    """Raises CheckpointError unless the rows mean the same in this service; returns the differences that do no harm."""
    have = {t.name: t for t in service.tables()}
    saved = {t.spec.name: t for t in content.tables}
    if have.keys() != saved.keys():
        raise CheckpointError(
            f"the checkpoint has the tables {sorted(saved)}, the job has {sorted(have)}; "
            "load it with the job it was saved with"
        )
    notes = []
    for name, entry in saved.items():
        ours, theirs = have[name], entry.spec
        for what, a, b in (
            ("dim", theirs.dim, ours.dim),
            ("optimizer", kind_of(theirs), kind_of(ours)),
            ("ids", theirs.ids, ours.ids),
        ):
            if a != b:
                raise CheckpointError(
                    f"table '{name}': the checkpoint has {what} {a}, the job has {what} {b}; set {what} to {a}"
                )
        notes += _differences(name, theirs, ours)
        # Settings of one optimizer can change what it keeps: momentum 0 keeps nothing. Formats alone can be converted.
        width = state_words(_stored_as(ours, theirs))
        if width != entry.state_width:
            raise CheckpointError(
                f"table '{name}': the checkpoint has {entry.state_width} words of optimizer state a row, the job's "
                f"{kind_of(ours)} has {width}: {'; '.join(_differences(name, theirs, ours))}"
            )
    return tuple(notes)


def _stored_as(ours: Table, theirs: Table) -> Table:
    """Our table with the formats of theirs: what its rows are converted from."""
    optimizer = ours.optimizer
    if isinstance(optimizer, Adam | AdamW) and isinstance(theirs.optimizer, Adam | AdamW):
        optimizer = structs.replace(optimizer, state=theirs.optimizer.state)
    return structs.replace(ours, format=theirs.format, rounding=theirs.rounding, optimizer=optimizer)


def _differences(name: str, theirs: Table, ours: Table) -> list[str]:
    a, b = theirs.optimizer, ours.optimizer
    assert a is not None
    pairs = [(f"optimizer.{field}", getattr(a, field), getattr(b, field, None)) for field in a.__struct_fields__]
    fields = ("format", "rounding", "initializer", "max_gradient", "wire", "capacity", "expire", "admit")
    pairs += [(field, getattr(theirs, field), getattr(ours, field)) for field in fields]
    return [f"table '{name}': {field} was {was} and is {now}" for field, was, now in pairs if was != now]


def same_marks(theirs: Table, ours: Table) -> bool:
    """Whether marks of one table mean the same in the other: its rows go for the same reasons, at the same age."""
    evict = [None if t.capacity is None else t.capacity.evict for t in (theirs, ours)]
    return ours.bounded and evict[0] == evict[1] and theirs.expire == ours.expire


def _verified(directory: Path, name: str, entry: FileEntry, files: Files) -> bytearray:
    """A whole small file that matches its SHA-256."""
    path = directory / name
    try:
        data = read_file(path, files)
    except OSError as e:
        raise CheckpointError(f"cannot read {path}: {e.strerror}") from e
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise CheckpointError(f"{path}: damaged: its content does not match its SHA-256 in the manifest. {ADVICE}")
    return data


@contextmanager
def open_rows(
    directory: Path, name: str, content: Manifest, files: Files, *, whole: bool, scratch: Scratch | None = None
) -> Iterator[RowReader]:
    """Reads one row file; when the block ends and it is read `whole`, its SHA-256 must match. `scratch`: see
    `RowReader`."""
    path, entry = directory / name, content.files[name]
    sha = hashlib.sha256()
    try:
        file = files.open(path)
    except OSError as e:
        raise CheckpointError(f"cannot read {path}: {e.strerror}") from e
    try:
        reader = RowReader(Source(file, str(path), entry.bytes, sha.update if whole else None), scratch)
        if (reader.partition, reader.partitions) != (entry.partition, content.partitions):
            raise CheckpointError(
                f"{path}: holds partition {reader.partition} of {reader.partitions}, the manifest says "
                f"{entry.partition} of {content.partitions} (byte offset 16). {ADVICE}"
            )
        yield reader
    finally:
        file.close()
    if whole and sha.hexdigest() != entry.sha256:
        raise CheckpointError(
            f"{path}: intact in itself, but not the file this manifest lists (SHA-256): of another checkpoint? {ADVICE}"
        )


def expect(content: Manifest) -> Callable[[Section], bool]:
    """A check of each section against the manifest, before memory is taken for its rows."""
    tables = {t.spec.name: t for t in content.tables}

    def wanted(section: Section) -> bool:
        entry = tables.get(section.name)
        have = (section.dim, section.format, section.optimizer, section.state_width)
        if entry is None or have != (entry.spec.dim, entry.spec.format, kind_of(entry.spec), entry.state_width):
            raise CheckpointError(f"table '{section.name}' is not as the manifest lists it: {section}")
        return True

    return wanted


def row_files(content: Manifest) -> list[str]:
    """Names of the row files, by partition: their rows one after another are in the global order."""
    files: Mapping[str, FileEntry] = content.files
    return sorted((n for n, e in files.items() if e.kind == "rows"), key=lambda n: files[n].partition or 0)


def _each_file(loaded: Loaded, threads: int, take: Callable[[Section, RowBlock], None], *, kept: bool) -> None:
    """Verifies every row file, handing out its blocks, and compares the rows of each table with the manifest. Blocks
    that are not `kept` are overwritten by later ones."""
    names = row_files(loaded.manifest)
    rows: Counter[str] = Counter()
    lock = threading.Lock()

    idle: list[Scratch] = []

    def one(number: int) -> None:
        name = names[number]
        scratch = None if kept else idle.pop() if idle else Scratch()
        with open_rows(loaded.path, name, loaded.manifest, loaded.files, whole=True, scratch=scratch) as reader:
            try:
                for section, block in reader.sections(expect(loaded.manifest)):
                    assert block is not None
                    take(section, block)
                    with lock:
                        rows[section.name] += section.rows
            except (CheckpointError, StoreError) as e:
                if str(loaded.path) in str(e):
                    raise
                raise CheckpointError(f"{loaded.path / name}: {e}") from e
        if scratch is not None:
            idle.append(scratch)

    parallel(one, list(range(len(names))), threads)
    for table in loaded.manifest.tables:
        if rows[table.spec.name] != table.rows:
            raise CheckpointError(
                f"{loaded.path}: the manifest lists {table.rows} rows of table '{table.spec.name}', the files hold "
                f"{rows[table.spec.name]}. {ADVICE}"
            )
