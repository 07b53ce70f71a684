"""A file layer that fails or dies at any operation, and then loses what was not synced.

What a crash does to a disk, as assumed here: the bytes of a file that were not synced are gone; names (files made,
renamed, removed) of a directory that was not synced since are undone from the last one backwards, as far as `keep`
says. A process that is killed without power loss keeps everything.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from satrap.durable.files import LocalFiles, Readable, Writable


class Killed(BaseException):
    """The process is no more. Not an Exception: nothing may catch it and go on."""


@dataclass
class _Change:
    """A change of names that is not durable yet."""

    kind: str
    path: Path
    source: Path | None = None
    kept: Path | None = None
    """Where what was replaced or removed is kept, in case the change is undone."""


class FaultyFiles(LocalFiles):
    """Counts operations that change the disk; the `kill_at`-th dies, `fail` may raise an OSError for any."""

    def __init__(
        self, kill_at: int | None = None, fail: Callable[[str, Path, int], None] | None = None, free: int | None = None
    ) -> None:
        self.count, self._kill_at, self._fail, self._free = 0, kill_at, fail, free
        self.log: list[str] = []
        self._dead = False
        self._synced: dict[Path, int] = {}
        self._changes: list[_Change] = []
        self._attic = Path(tempfile.mkdtemp(prefix="attic-"))

    def step(self, operation: str, path: Path) -> None:
        if self._dead:
            raise Killed
        self.count += 1
        self.log.append(f"{operation} {path.name}")
        if self.count == self._kill_at:
            self._dead = True
            raise Killed
        if self._fail:
            self._fail(operation, path, self.count)

    def create(self, path: Path) -> Writable:
        self.step("create", path)
        file = _Writer(self, path, super().create(path))
        self._synced[path] = 0
        self._changes.append(_Change("create", path))
        return file

    def make_directory(self, path: Path) -> None:
        self.step("make_directory", path)
        super().make_directory(path)
        self._changes.append(_Change("make_directory", path))

    def sync_directory(self, path: Path) -> None:
        self.step("sync_directory", path)
        # What is in a directory that is gone for good goes with it.
        gone = {c.path for c in self._changes if c.kind == "remove_directory" and c.path.parent == path}
        self._changes = [
            c for c in self._changes if c.path.parent != path and gone.isdisjoint((c.path, *c.path.parents))
        ]

    def rename(self, source: Path, target: Path) -> None:
        self.step("rename", source)
        kept = None
        if target.is_file():
            kept = self._attic / str(self.count)
            shutil.copy(target, kept)
        super().rename(source, target)
        self._rebase(source, target)
        self._changes.append(_Change("rename", target, source, kept))

    def remove_file(self, path: Path) -> None:
        self.step("remove_file", path)
        kept = self._attic / str(self.count)
        shutil.move(path, kept)
        self._changes.append(_Change("remove", path, kept=kept))

    def remove_directory(self, path: Path) -> None:
        self.step("remove_directory", path)
        super().remove_directory(path)
        self._changes.append(_Change("remove_directory", path))

    def free_bytes(self, path: Path) -> int | None:
        return super().free_bytes(path) if self._free is None else self._free

    def lose_power(self, keep: float) -> None:
        """Undoes what was not synced: of the names the last ones, all but the fraction `keep`; of the bytes all."""
        for path, size in self._synced.items():
            if path.is_file() and path.stat().st_size > size:
                os.truncate(path, size)
        for _ in range(len(self._changes) - round(keep * len(self._changes))):
            change = self._changes.pop()
            match change.kind:
                case "create":
                    change.path.unlink(missing_ok=True)
                case "make_directory":
                    shutil.rmtree(change.path, ignore_errors=True)
                case "remove_directory":
                    change.path.mkdir()
                case "remove":
                    assert change.kept is not None
                    shutil.move(change.kept, change.path)
                case "rename":
                    assert change.source is not None
                    os.rename(change.path, change.source)
                    self._rebase(change.path, change.source)
                    if change.kept is not None:
                        shutil.move(change.kept, change.path)

    def close(self) -> None:
        shutil.rmtree(self._attic)

    def _rebase(self, source: Path, target: Path) -> None:
        def moved(path: Path) -> Path:
            return target / path.relative_to(source) if path == source or source in path.parents else path

        self._synced = {moved(p): n for p, n in self._synced.items()}
        for change in self._changes:
            change.path = moved(change.path)

    def synced(self, path: Path, size: int) -> None:
        self._synced[path] = size


class _Writer:
    def __init__(self, files: FaultyFiles, path: Path, file: Writable) -> None:
        self._files, self._path, self._file, self._size = files, path, file, 0

    def write(self, data: memoryview) -> int:
        try:
            self._files.step("write", self._path)
        except Killed:
            self._file.write(data[: len(data) // 2])
            raise
        n = self._file.write(data)
        self._size += n
        return n

    def sync(self) -> None:
        self._files.step("sync", self._path)
        self._files.synced(self._path, self._size)

    def close(self) -> None:
        self._file.close()


class StingyFiles(LocalFiles):
    """Reads and writes at most `most` bytes a call, as a system does with 2 GiB and more."""

    def __init__(self, most: int) -> None:
        self._most = most

    def open(self, path: Path) -> Readable:
        return _StingyReader(super().open(path), self._most)

    def create(self, path: Path) -> Writable:
        return _StingyWriter(super().create(path), self._most)


class _StingyReader:
    def __init__(self, file: Readable, most: int) -> None:
        self._file, self._most = file, most
        self.seek, self.close = file.seek, file.close

    def readinto(self, buffer: memoryview) -> int | None:
        return self._file.readinto(buffer[: self._most])


class _StingyWriter:
    def __init__(self, file: Writable, most: int) -> None:
        self._file, self._most = file, most
        self.sync, self.close = file.sync, file.close

    def write(self, data: memoryview) -> int:
        return self._file.write(data[: self._most])
