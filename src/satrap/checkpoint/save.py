"""Saving: one cut of the job, written aside, synced, and renamed into place."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from satrap import __version__
from satrap.checkpoint import folder, manifest, tensors
from satrap.checkpoint.manifest import BoundCounts, FileEntry, Manifest, TableEntry
from satrap.checkpoint.objects import ObjectFiles
from satrap.checkpoint.places import located
from satrap.data.batch import Position
from satrap.durable.files import Files, make_directories, remove_tree, write_all
from satrap.durable.rows import RowWriter
from satrap.errors import CheckpointError, SaveError
from satrap.ps.protocol import Cut, RowStorage
from satrap.schema import Job, Table, job_to_dict
from satrap.store import state_words

T = TypeVar("T")


def save(
    directory: str | Path,
    *,
    job: Job,
    service: RowStorage,
    dense: Mapping[str, Tensor],
    optimizer: Mapping[str, Any] | None,
    step: int,
    position: Position,
    rng: Any = None,
    extra: Mapping[str, Any] | None = None,
    threads: int | None = None,
    files: Files | None = None,
) -> Path:
    """Saves a checkpoint as `directory/step-00001234` and returns that path. The directory may be a URL.

    The caller sees to it that nothing trains meanwhile: rows, dense weights and position belong to one cut. Memory
    beside the model: one partition of one table per thread, and a copy of the dense weights and optimizer state.
    `rng` and `extra` may be nested dicts and lists of numbers, strings and (`rng` only) tensors.

    A checkpoint of the same step is replaced, and stays until the new one is whole. Whatever goes wrong, the
    checkpoints that were there are there still, and nothing half-written is left behind.

    Raises SaveError: the disk is full or not writable (with bytes needed and free), or the object store refuses; and
    CheckpointError where a value has no plain form.
    """
    contents = Contents(
        job=job,
        service=service,
        dense=dense,
        optimizer=optimizer,
        step=step,
        position=position,
        rng=rng,
        extra=extra,
    )
    return write(directory, contents, threads=threads, files=files)


def write(
    directory: str | Path,
    contents: Contents,
    *,
    threads: int | None = None,
    files: Files | None = None,
    written: Callable[[int], None] = lambda partition: None,
) -> Path:
    """Writes what `save` would. `written`: told of each partition that will not be read again."""
    home, files = located(directory, files)
    step = contents.step
    target = home / folder.step_name(step)
    needed: int | None = None
    try:
        contents.written = written
        if isinstance(files, ObjectFiles):
            return _put(contents, home, step, threads or default_threads(), files)
        draft = home / folder.aside(target.name, "tmp")
        needed = contents.bytes_at_most
        make_directories(home, files)
        folder.clean(home, files)
        _require_room(target, needed, files)
        files.make_directory(draft)
        try:
            contents.write(draft, threads or default_threads(), files)
            files.sync_directory(draft)
            _publish(draft, target, files)
        except BaseException:
            # The draft may be gone already (published) or unremovable (the disk is gone): the first error is told.
            with suppress(OSError):
                remove_tree(draft, files)
            raise
    except OSError as e:
        raise _failed(e, target, needed, files) from e
    return target


def _put(contents: Contents, home: Path, step: int, threads: int, files: ObjectFiles) -> Path:
    """Saves to an object store: under a name that nothing has, the manifest last. Raises OSError."""
    folder.clean(home, files)
    target = folder.free_name(home, step, files)
    try:
        contents.write(target, threads, files)
    except BaseException:
        with suppress(OSError):
            folder.discard(target, files)
        raise
    with suppress(OSError):  # the new one is there; what stays of one of the same step goes at the next save
        folder.clean(home, files)
    return target


def default_threads() -> int:
    """Threads that save and restore use: hashing, copying and writing run without the interpreter lock."""
    return min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


class Contents:
    """What goes into one checkpoint, ready to be written. Tensors are encoded at once, rows read as they are written:
    of a `Cut` they are those of one moment, however long that takes."""

    def __init__(
        self,
        *,
        job: Job,
        service: RowStorage | Cut,
        dense: Mapping[str, Tensor],
        optimizer: Mapping[str, Any] | None,
        step: int,
        position: Position,
        rng: Any = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """See `save`. Raises CheckpointError where a value has no plain form."""
        self._job, self._service, self.step, self._position = job, service, step, position
        self.written: Callable[[int], None] = lambda partition: None
        optimizer_tensors: dict[str, Tensor] = {}
        rng_tensors: dict[str, Tensor] = {}
        extra_tensors: dict[str, Tensor] = {}
        self._trees = {
            "optimizer": tensors.pack(optimizer, optimizer_tensors),
            "rng": tensors.pack(rng, rng_tensors),
            "extra": tensors.pack(dict(extra or {}), extra_tensors),
        }
        if extra_tensors:
            raise CheckpointError(f"extra holds a tensor at '{next(iter(extra_tensors))}'; keep plain numbers there")
        self._blobs = {
            "dense": tensors.encode(dense, "the dense weights"),
            "optimizer": tensors.encode(optimizer_tensors, "the dense optimizer's state"),
            "rng": tensors.encode(rng_tensors, "the state of the random generators"),
        }
        self._tables: Sequence[Table] = service.tables()
        self._rows = {t.name: 0 for t in self._tables}
        self._bytes = {t.name: 0 for t in self._tables}
        self._widths: dict[str, int] = {}
        self._lock = threading.Lock()

    @property
    def bytes_at_most(self) -> int:
        """What the files will take, about a percent on the safe side."""
        stats = self._service.stats()
        rows = sum(s.value_bytes + s.state_bytes + 8 * s.rows for s in stats.values())
        # Of rows on disk, what is in memory says nothing.
        cold = (t for t in self._tables if t.cold is not None)
        rows += sum(stats[t.name].rows * (t.format.row_bytes(t.dim) + 4 * state_words(t)) for t in cold)
        # Marks, clocks and sketches.
        rows += sum(
            2 * stats[t.name].rows + _bound_bytes(t, self._service.partitions) for t in self._tables if t.bounded
        )
        blobs = sum(len(b) for b in self._blobs.values())
        parts = self._service.partitions * (len(self._tables) + 1)
        return rows + rows // 1000 + blobs + min(parts * 1024, rows) + (1 << 16)

    def write(self, draft: Path, threads: int, files: Files) -> None:
        """Writes and syncs every file, the manifest last."""
        entries: dict[str, FileEntry] = {}
        for kind, blob in self._blobs.items():
            file = _HashedFile(draft / manifest.file_name(kind), files)
            with file:
                file.write(memoryview(blob))
                file.sync()
            entries[manifest.file_name(kind)] = file.entry(kind)

        def write_partition(partition: int) -> FileEntry | None:
            if not isinstance(files, ObjectFiles):
                entry = self._write_rows(draft, partition, files)
            else:
                # An object that was put in parts cannot go on after one that failed: it is put anew.
                path = draft / manifest.file_name("rows", partition)
                entry = files.again(path, lambda: self._write_rows(draft, partition, files))
            self.written(partition)
            return entry

        for entry in parallel(write_partition, range(self._service.partitions), threads):
            if entry is not None:
                entries[manifest.file_name("rows", entry.partition)] = entry
        if isinstance(files, ObjectFiles):
            _require_all(draft, entries, files)
        file = _HashedFile(draft / manifest.NAME, files)
        with file:
            file.write(memoryview(self._manifest(entries)))
            file.sync()

    def _write_rows(self, draft: Path, partition: int, files: Files) -> FileEntry | None:
        """One partition's file: no file where the partition has no rows, so size follows what is there."""
        file: _HashedFile | None = None
        writer: RowWriter | None = None
        sizes: list[tuple[str, int, int]] = []
        try:
            for table in self._tables:
                block = self._service.export_rows(table.name, partition)
                self._widths[table.name] = block.state.shape[1]
                sizes.append((table.name, len(block.ids), block.ids.nbytes + block.values.nbytes + block.state.nbytes))
                if len(block.ids) == 0 and block.bound is None:
                    continue
                if file is None or writer is None:
                    file = _HashedFile(draft / manifest.file_name("rows", partition), files)
                    bounded, partitions = any(t.bounded for t in self._tables), self._service.partitions
                    writer = RowWriter(file.write, partition=partition, partitions=partitions, bounded=bounded)
                writer.add(table, block)
            if file is None or writer is None:
                return None
            writer.close()
            file.sync()
            with self._lock:
                for name, rows, size in sizes:
                    self._rows[name] += rows
                    self._bytes[name] += size
            return file.entry("rows", partition)
        finally:
            if file is not None:
                file.close()

    def _bounds(self) -> dict[str, BoundCounts]:
        stats, bounded = self._service.stats(), (t.name for t in self._tables if t.bounded)
        return {n: BoundCounts(**{f: getattr(stats[n], f) for f in BoundCounts.__struct_fields__}) for n in bounded}

    def _manifest(self, entries: Mapping[str, FileEntry]) -> bytes:
        bounds = self._bounds()
        body = Manifest(
            format=manifest.FORMAT,
            version=manifest.VERSION,
            satrap=__version__,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            step=self.step,
            position=self._position,
            clients=self._service.clients(),
            partitions=self._service.partitions,
            tables=tuple(
                TableEntry(
                    spec=t,
                    state_width=self._widths[t.name],
                    rows=self._rows[t.name],
                    bytes=self._bytes[t.name],
                    bound=bounds.get(t.name),
                )
                for t in self._tables
            ),
            files=dict(sorted(entries.items())),
            job=job_to_dict(self._job),
            **self._trees,
        )
        try:
            return manifest.encode(body)
        except (ValueError, TypeError) as e:
            raise CheckpointError(f"the job or the trainer's extra values cannot be written as JSON: {e}") from e


class _HashedFile:
    """A new file with a running SHA-256 of what is written. Closes on leaving a `with`."""

    def __init__(self, path: Path, files: Files) -> None:
        self._file, self._sha, self._bytes = files.create(path), hashlib.sha256(), 0

    def write(self, data: memoryview) -> None:
        self._sha.update(data)
        write_all(self._file, data)
        self._bytes += data.nbytes

    def sync(self) -> None:
        self._file.sync()

    def close(self) -> None:
        self._file.close()

    def entry(self, kind: Any, partition: int | None = None) -> FileEntry:
        return FileEntry(bytes=self._bytes, sha256=self._sha.hexdigest(), kind=kind, partition=partition)

    def __enter__(self) -> _HashedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def parallel(task: Callable[[int], T], numbers: Iterable[int], threads: int) -> list[T]:
    """`task` of each number, in order, on some threads. After the first failure no further task starts, and it is
    raised when those under way have ended."""
    numbers = list(numbers)
    if threads <= 1 or len(numbers) <= 1:
        return [task(n) for n in numbers]
    stop = threading.Event()

    def guarded(number: int) -> T | None:
        if stop.is_set():
            return None
        try:
            return task(number)
        except BaseException:
            stop.set()
            raise

    with ThreadPoolExecutor(min(threads, len(numbers)), thread_name_prefix="satrap-checkpoint") as pool:
        futures = [pool.submit(guarded, n) for n in numbers]
    # A task skipped after a failure has no result; the failure itself is raised here before anyone sees that.
    for future in futures:
        if (error := future.exception()) is not None:
            raise error
    return [future.result() for future in futures]  # type: ignore[misc]


def _publish(draft: Path, target: Path, files: Files) -> None:
    """Gives the draft its name; a checkpoint that has the name goes only after its successor is durable."""
    home = target.parent
    if not files.is_directory(target):
        files.rename(draft, target)
        files.sync_directory(home)
        return
    old = home / folder.aside(target.name, "old")
    files.rename(target, old)
    try:
        files.sync_directory(home)
        files.rename(draft, target)
    except OSError:
        files.rename(old, target)
        raise
    files.sync_directory(home)
    with suppress(OSError):  # the new one is safe; what stays of the old one goes at the next save
        folder.discard(old, files)


def _require_all(target: Path, entries: Mapping[str, FileEntry], files: Files) -> None:
    """Raises OSError unless every object that the manifest will list is there, with its size."""
    there = set(files.names(target))
    for name, entry in entries.items():
        size = files.size(target / name) if name in there else None
        if size != entry.bytes:
            have = "missing" if size is None else f"{size} bytes"
            raise OSError(errno.EIO, f"was put with {entry.bytes} bytes, and is {have}", str(target / name))


def _bound_bytes(table: Table, partitions: int) -> int:
    return 256 * partitions + (0 if table.admit is None else 8 * table.admit.window + 128 * partitions)


def _require_room(target: Path, needed: int, files: Files) -> None:
    free = files.free_bytes(target.parent)
    if free is not None and free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target.parent))


def _failed(error: OSError, target: Path, needed: int | None, files: Files) -> SaveError:
    """One message for whatever the disk said: what, where, how much, what next."""
    free, last, asked = None, None, False
    with suppress(OSError):
        free = files.free_bytes(target.parent)
    with suppress(OSError, CheckpointError):
        last, asked = folder.latest(target.parent, files), True
    where = f" ({error.filename})" if error.filename else ""
    what = f"cannot save the checkpoint {target}: {error.strerror}{where}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        what += f"; it needs {_size(needed)}, free there: {_size(free)}. Free some space"
        what += ", or keep fewer checkpoints (train.checkpoint.keep)"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        what += ". Make the folder writable, or choose another run folder"
    if not asked:
        return SaveError(f"{what}. Which checkpoints are there cannot be asked now")
    what += f". The last good checkpoint is {last}" if last else ". There is no earlier checkpoint"
    return SaveError(what)


def _size(count: int | None) -> str:
    return "unknown" if count is None else f"{count:,} bytes"
