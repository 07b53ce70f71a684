"""The few file operations that checkpoints, journals and snapshots are made of, behind one small interface.

Everything durable that is done to a disk goes through `Files`, so that a test can stop the world at any single
operation, and so that an object store can take the disk's place: there a directory is a prefix and the manifest,
written last, is what publishes.
"""

from __future__ import annotations

import errno
import io
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Protocol

PASSED_BYTES = 4 << 20
"""Read of a file that is read once, before its memory is given back."""


class Writable(Protocol):
    """A new file being written. Not thread-safe."""

    def write(self, data: memoryview) -> int:
        """Appends some of `data` (at least a byte) and returns how many bytes. Raises OSError."""

    def sync(self) -> None:
        """Returns when everything written survives power loss. Raises OSError."""

    def close(self) -> None:
        """Ends writing; unsynced bytes may be lost by a crash."""


class Readable(Protocol):
    """A file being read. Not thread-safe."""

    def readinto(self, buffer: memoryview) -> int | None:
        """Fills some of `buffer` and returns how many bytes; 0 at the end of the file. Raises OSError."""

    def seek(self, offset: int) -> int:
        """Goes on reading at `offset` bytes from the start."""

    def close(self) -> None:
        """Ends reading."""


class Files(Protocol):
    """File operations. Thread-safe as long as no two threads work on one path. Each may raise OSError."""

    def names(self, directory: Path) -> list[str]:
        """Names in a directory, sorted; empty where there is no such directory."""

    def is_directory(self, path: Path) -> bool:
        """Whether the path is a directory."""

    def size(self, path: Path) -> int:
        """Bytes of a file."""

    def open(self, path: Path) -> Readable:
        """Opens a file for reading."""

    def open_once(self, path: Path) -> Readable:
        """Opens a file that is read front to back and then not again: no memory is kept for it."""

    def create(self, path: Path) -> Writable:
        """Makes a file that must not exist yet."""

    def make_directory(self, path: Path) -> None:
        """Makes one directory, in one that exists."""

    def sync_directory(self, path: Path) -> None:
        """Returns when the directory's names (files made, renamed, removed) survive power loss."""

    def rename(self, source: Path, target: Path) -> None:
        """Gives a file or directory another name at once. An existing file is replaced."""

    def remove_file(self, path: Path) -> None:
        """Removes a file."""

    def remove_directory(self, path: Path) -> None:
        """Removes an empty directory."""

    def free_bytes(self, path: Path) -> int | None:
        """Bytes this user may still write there; None where the file system does not say."""


class _LocalWriter:
    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o644)

    def write(self, data: memoryview) -> int:
        return os.write(self._fd, data)

    def sync(self) -> None:
        # Times of the file do not matter, its size and bytes do.
        (os.fdatasync if hasattr(os, "fdatasync") else os.fsync)(self._fd)

    def close(self) -> None:
        os.close(self._fd)


class _PassingReader:
    """Has the system give back, as it is read, the memory that it holds of a file. What is made of the file then takes
    that, which is at hand, in place of memory that nobody has touched yet."""

    def __init__(self, file: io.FileIO) -> None:
        self._file, self._at, self._passed = file, 0, 0

    def readinto(self, buffer: memoryview) -> int | None:
        n = self._file.readinto(buffer)
        self._at += n or 0
        if self._at - self._passed >= PASSED_BYTES:
            self._pass()
        return n

    def seek(self, offset: int) -> int:
        self._at = self._file.seek(offset)
        return self._at

    def close(self) -> None:
        self._pass()
        self._file.close()

    def _pass(self) -> None:
        # From the start: pages are kept in groups, and a group of which only a part is named stays.
        self._passed = self._at
        with suppress(OSError):  # advice
            os.posix_fadvise(self._file.fileno(), 0, self._at, os.POSIX_FADV_DONTNEED)


class LocalFiles:
    """`Files` on this machine's file systems."""

    def names(self, directory: Path) -> list[str]:
        try:
            return sorted(os.listdir(directory))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def is_directory(self, path: Path) -> bool:
        return path.is_dir()

    def size(self, path: Path) -> int:
        return path.stat().st_size

    def open(self, path: Path) -> Readable:
        return open(path, "rb", buffering=0)

    def open_once(self, path: Path) -> Readable:
        file = self.open(path)
        return _PassingReader(file) if isinstance(file, io.FileIO) and hasattr(os, "posix_fadvise") else file

    def create(self, path: Path) -> Writable:
        return _LocalWriter(path)

    def make_directory(self, path: Path) -> None:
        path.mkdir()

    def sync_directory(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def rename(self, source: Path, target: Path) -> None:
        os.replace(source, target)

    def remove_file(self, path: Path) -> None:
        path.unlink()

    def remove_directory(self, path: Path) -> None:
        path.rmdir()

    def free_bytes(self, path: Path) -> int | None:
        stat = os.statvfs(path)
        # Some network and FUSE file systems report no sizes at all; that is not the same as being full.
        return stat.f_bavail * stat.f_frsize if stat.f_blocks else None


LOCAL: Files = LocalFiles()


def write_all(file: Writable, data: memoryview) -> None:
    """Writes every byte. One system call takes at most 2 GiB, and less on a whim of the file system."""
    while data:
        data = data[file.write(data) :]


def read_file(path: Path, files: Files = LOCAL) -> bytearray:
    """A whole small file. Raises OSError."""
    size = files.size(path)
    data = bytearray(size)
    file = files.open(path)
    try:
        filled = 0
        while filled < size:
            n = file.readinto(memoryview(data)[filled:])
            if not n:
                break
            filled += n
    finally:
        file.close()
    return data[:filled]


def make_directories(path: Path, files: Files = LOCAL) -> None:
    """Makes a directory and those above it that are missing, each durable in its parent; others may be making the same
    ones. Raises OSError."""
    if files.is_directory(path):
        return
    make_directories(path.parent, files)
    try:
        files.make_directory(path)
    except FileExistsError:
        if not files.is_directory(path):
            raise
    files.sync_directory(path.parent)


def remove_tree(path: Path, files: Files = LOCAL) -> None:
    """Removes a file, or a directory with all in it, one operation after another. Raises OSError."""
    if not files.is_directory(path):
        files.remove_file(path)
        return
    for name in files.names(path):
        remove_tree(path / name, files)
    files.remove_directory(path)


def write_small(path: str | Path, data: bytes, files: Files = LOCAL) -> None:
    """Writes a small file whole or not at all: aside, synced, renamed into place. Raises OSError.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_small(f"{folder}/best", b"step-00000010")
    ...     write_small(f"{folder}/best", b"step-00000020")
    ...     print(Path(folder, "best").read_text(), os.listdir(folder))
    step-00000020 ['best']
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.tmp-{secrets.token_hex(4)}")
    file = files.create(aside)
    try:
        try:
            write_all(file, memoryview(data))
            file.sync()
        finally:
            file.close()
        files.rename(aside, path)
    except OSError:
        with suppress(OSError):
            files.remove_file(aside)
        raise
    files.sync_directory(path.parent)


def try_lock(fd: int) -> bool:
    """Takes the lock of an open file, which the system drops when this process ends, however it ends. False where
    another process has it; True as well where locks do not exist."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        return e.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True
