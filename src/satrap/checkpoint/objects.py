"""The file operations of checkpoints on an object store, over any fsspec file system.

An object is there whole or not at all, a directory is what stands before a slash, and nothing is renamed: what is
written is a new name, and what publishes a checkpoint is its manifest, put last. What an object store refuses now it
may grant a second later, so requests are tried again; what cannot change by that is told at once.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from satrap.durable.files import Readable, Writable
from satrap.errors import SatrapError

T = TypeVar("T")

FINAL = frozenset(
    getattr(errno, name)
    for name in ("ENOENT", "EACCES", "EPERM", "EEXIST", "EISDIR", "ENOTDIR", "ENOSPC", "EDQUOT", "EROFS", "EFBIG")
)
"""Errors that another attempt would meet again."""
WHOLE_BYTES = 8 << 20
"""An object up to this is put by one request; a larger one in parts."""
RANGE_BYTES = 8 << 20
"""Read at a time."""


class Exhausted(OSError):  # noqa: N818
    """All attempts have failed: whoever tries the whole of which this is a part need not try it again."""


class ObjectFiles:
    """`Files` over an fsspec file system. Thread-safe where that is. Paths are URLs (`places.RemotePath`)."""

    def __init__(self, filesystem: Any, *, attempts: int = 5, pause_s: float = 0.5) -> None:
        """`attempts` of each request in all; between them `pause_s`, and each time twice as long."""
        self._fs, self._attempts, self._pause_s = filesystem, attempts, pause_s

    def again(self, path: Path, task: Callable[[], T]) -> T:
        """What the task returns, at the first attempt that succeeds. Raises OSError with errno, text and path."""
        pause = self._pause_s
        for attempt in range(1, self._attempts + 1):
            try:
                return task()
            except SatrapError:
                raise  # of the rows, not of the store
            except Exception as e:
                error = _told(e, path)
                if error.errno in FINAL or isinstance(e, Exhausted):
                    raise error from e
                if attempt == self._attempts:
                    raise Exhausted(*error.args, str(path)) from e
            time.sleep(pause)
            pause *= 2
        raise AssertionError("unreachable: the last attempt returns or raises")

    def names(self, directory: Path) -> list[str]:
        """Names of objects and of what stands before their slashes; a directory is there as long as one of them is."""
        key = self._key(directory)
        try:
            found = self.again(directory, lambda: self._fresh().ls(key, detail=False))
        except FileNotFoundError:
            return []
        inside = [str(name).rstrip("/").rpartition("/") for name in found]
        # Some list a file as the one entry of itself, and a directory's marker among its entries.
        return sorted({name for parent, _, name in inside if parent.strip("/") == key.strip("/") and name})

    def is_directory(self, path: Path) -> bool:
        """Whether anything is below it."""
        return bool(self.names(path))

    def size(self, path: Path) -> int:
        """Bytes of an object."""
        found = self.again(path, lambda: self._fresh().info(self._key(path)))
        if found.get("type") == "directory":
            raise FileNotFoundError(errno.ENOENT, "no such object", str(path))
        return int(found["size"])

    def open(self, path: Path) -> Readable:
        """Reads by ranges, so that one that fails can be asked for again."""
        return _Reader(self, self._fs, self._key(path), path, self.size(path))

    def open_once(self, path: Path) -> Readable:
        """As `open`: nothing is kept of what was read."""
        return self.open(path)

    def create(self, path: Path) -> Writable:
        """An object that is there from `sync` on."""
        return _Writer(self, self._fs, self._key(path), path)

    def make_directory(self, path: Path) -> None:
        """Nothing to do: a directory is the beginning of a name."""

    def sync_directory(self, path: Path) -> None:
        """Nothing to do: names are durable with their objects."""

    def rename(self, source: Path, target: Path) -> None:
        """Refused: it would be a copy, and not at once."""
        raise OSError(errno.ENOTSUP, "objects cannot be renamed", str(source))

    def remove_file(self, path: Path) -> None:
        """Removes an object; one that an attempt before has removed is no error."""
        with suppress(FileNotFoundError):
            self.again(path, lambda: self._fs.rm_file(self._key(path)))

    def remove_directory(self, path: Path) -> None:
        """Nothing to do, but for file systems that keep empty directories."""
        with suppress(Exception):
            self._fs.rmdir(self._key(path))

    def free_bytes(self, path: Path) -> int | None:
        """Nobody knows."""
        return None

    def _key(self, path: Path) -> str:
        return str(self._fs._strip_protocol(str(path)))

    def _fresh(self) -> Any:
        """The file system without what it remembers of listings: another process may have put something."""
        self._fs.invalidate_cache()
        return self._fs


class _Reader:
    def __init__(self, files: ObjectFiles, fs: Any, key: str, path: Path, size: int) -> None:
        self._files, self._fs, self._key, self._path, self._size = files, fs, key, path, size
        self._at, self._start, self._data = 0, 0, memoryview(b"")

    def readinto(self, buffer: memoryview) -> int:
        if not self._start <= self._at < self._start + len(self._data):
            end = min(self._size, self._at + max(RANGE_BYTES, len(buffer)))
            if end <= self._at:
                return 0
            self._start, self._data = self._at, memoryview(self._range(self._at, end))
        piece = self._data[self._at - self._start :][: len(buffer)]
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def _range(self, start: int, end: int) -> bytes:
        data = self._files.again(self._path, lambda: self._fs.cat_file(self._key, start=start, end=end))
        return bytes(data)

    def seek(self, offset: int) -> int:
        self._at = offset
        return offset

    def close(self) -> None:
        self._data = memoryview(b"")


class _Writer:
    """Keeps what is written until it is more than one request should carry. `sync` ends the object."""

    def __init__(self, files: ObjectFiles, fs: Any, key: str, path: Path) -> None:
        self._files, self._fs, self._key, self._path = files, fs, key, path
        self._kept: bytearray = bytearray()
        self._stream: Any = None
        self._done = False

    def write(self, data: memoryview) -> int:
        data = data.cast("B") if data.format != "B" or data.ndim != 1 else data
        if self._stream is None and len(self._kept) + len(data) <= WHOLE_BYTES:
            self._kept += data
            return len(data)
        try:
            if self._stream is None:
                self._stream = self._fs.open(self._key, "wb", block_size=WHOLE_BYTES)
            if self._kept:
                self._stream.write(bytes(self._kept))
                self._kept = bytearray()
            self._stream.write(data)
        except Exception as e:
            raise _told(e, self._path) from e
        return len(data)

    def sync(self) -> None:
        if self._done:
            return
        if self._stream is None:
            data = bytes(self._kept)
            self._files.again(self._path, lambda: self._fs.pipe_file(self._key, data))
        else:
            try:
                self._stream.close()
            except Exception as e:
                raise _told(e, self._path) from e
        self._done = True

    def close(self) -> None:
        self._kept = bytearray()
        if self._stream is None or self._done:
            return
        # Parts that were sent are given up. A file system that cannot may show an object that no manifest lists.
        with suppress(Exception):
            self._stream.discard()
        with suppress(Exception):
            self._stream.closed = True
        self._stream = None


def _told(error: Exception, path: Path) -> OSError:
    """Whatever a library of a file system raises, as an OSError that says what and where."""
    if isinstance(error, Exhausted):
        return error
    if isinstance(error, OSError) and error.errno is not None:
        return OSError(error.errno, error.strerror or str(error), str(path))
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(errno.ENOENT, "no such object", str(path))
    if isinstance(error, PermissionError):
        return PermissionError(errno.EACCES, str(error) or "permission denied", str(path))
    # Google's library says all of it a second time behind this.
    text = str(error).partition(" error_info=")[0]
    return OSError(errno.EIO, f"{type(error).__name__}: {text}", str(path))
