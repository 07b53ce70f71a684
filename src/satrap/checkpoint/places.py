"""Where checkpoints are: a folder of a file system, or a URL of an object store.

A URL is a path as well, so that all that names, joins and lists checkpoints is written once. What it is not is a file
of this machine: handing it to the operating system is an error.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from satrap.checkpoint.objects import ObjectFiles
from satrap.durable.files import LOCAL, Files
from satrap.errors import CheckpointError

GCS_PATIENCE_S = 5.0
"""For which pyarrow tries a request to Google's storage again by itself."""
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://?(.*)", re.DOTALL)
_opened: dict[tuple[str, str], ObjectFiles] = {}


class RemotePath(type(Path())):  # type: ignore[misc]
    """A path whose first part is a scheme: `gs://bucket/models/step-00001200`. Joins and has parents as paths do.

    >>> folder = RemotePath("gs://bucket/models")
    >>> str(folder / "best"), (folder / "best").parent == folder, folder.name
    ('gs://bucket/models/best', True, 'models')
    """

    def __str__(self) -> str:
        # Paths drop the second of two slashes; the first part keeps its colon.
        scheme, rest = self.parts[0], self.parts[1:]
        return f"{scheme}//{'/'.join(rest)}"

    def __fspath__(self) -> str:
        raise TypeError(f"{self} is not a file of this machine")

    @property
    def scheme(self) -> str:
        """`gs`, `s3`, …"""
        return str(self.parts[0][:-1])


def place(path: str | Path) -> Path:
    """A path of this machine, or a RemotePath where it is a URL. `file://` is of this machine.

    >>> place("s3://bucket//models/"), place("file:///data/models"), place("runs/a")
    (RemotePath('s3://bucket/models'), PosixPath('/data/models'), PosixPath('runs/a'))

    Raises CheckpointError for a URL with settings (`?region=…`) in it: they would be lost where paths are joined.
    """
    if isinstance(path, RemotePath):
        return path
    match = _URL.fullmatch(str(path))
    if match is None or (isinstance(path, str) and "://" not in path):
        return Path(path)
    scheme, rest = match[1], match[2]
    if scheme == "file":
        return Path("/" + rest.lstrip("/"))
    if "?" in rest:
        raise CheckpointError(
            f"{path}: a URL of checkpoints has no settings behind a '?'; give them where the library of {scheme}:// "
            "looks for them (AWS_ENDPOINT_URL, fsspec's own configuration, …)"
        )
    if not rest.strip("/"):
        raise CheckpointError(f"{path}: it names no bucket")
    return RemotePath(f"{scheme}:", *(part for part in rest.split("/") if part))


def located(path: str | Path, files: Files | None = None) -> tuple[Path, Files]:
    """A path and the operations for what lies there: those given, or this machine's, or the scheme's."""
    where = place(path)
    if files is not None:
        return where, files
    return where, remote_files(where) if isinstance(where, RemotePath) else LOCAL


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """What a disk or an object store refuses to a reader is a CheckpointError that names it."""
    try:
        yield
    except OSError as e:
        raise CheckpointError(f"cannot read {e.filename or path}: {e.strerror or e}") from e


def remote_files(path: RemotePath) -> ObjectFiles:
    """The operations of a URL's object store. Opened once for each bucket. Raises CheckpointError where nothing that
    is installed serves the scheme."""
    key = (path.scheme, path.parts[1])
    if key not in _opened:
        _opened[key] = ObjectFiles(_open(path))
    return _opened[key]


def use_filesystem(url: str, filesystem: Any, *, attempts: int = 5, pause_s: float = 0.5) -> None:
    """Reads and writes checkpoints of a bucket through this fsspec file system from now on, in this process: for one
    that needs settings of its own. `attempts` of each request, `pause_s` between the first two, then twice as long.

    >>> import fsspec
    >>> use_filesystem("memory://models", fsspec.filesystem("memory"))
    """
    path = place(url)
    if not isinstance(path, RemotePath):
        raise CheckpointError(f"{url}: not the URL of a bucket")
    _opened[path.scheme, path.parts[1]] = ObjectFiles(filesystem, attempts=attempts, pause_s=pause_s)


def _open(path: RemotePath) -> Any:
    """The fsspec file system of a scheme: the package a user installed for it, else pyarrow's own."""
    import fsspec

    try:
        return fsspec.filesystem(path.scheme, use_listings_cache=False)
    except (ImportError, ValueError) as missing:
        try:
            return _arrow(path)
        except (ValueError, OSError, NotImplementedError, ImportError, AttributeError):
            raise CheckpointError(f"cannot open {path}: {missing}") from missing


def _arrow(path: RemotePath) -> Any:
    import pyarrow.fs as pafs
    from fsspec.implementations.arrow import ArrowFSWrapper

    class Arrow(ArrowFSWrapper):  # type: ignore[misc]
        def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
            # Its own opens a range from 0 as a stream, and then fails to seek in it.
            with self.fs.open_input_file(self._strip_protocol(path)) as file:
                begin, stop = start or 0, file.size() if end is None else end
                return bytes(file.read_at(stop - begin, begin))

    if path.scheme in ("s3", "s3a"):
        # By its name, not by the URL: a URL makes it ask Amazon for the bucket's region, whatever the endpoint is.
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        scheme, _, host = (endpoint or "").rpartition("://")
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        if endpoint is None and region is None:
            region = pafs.resolve_s3_region(path.parts[1])
        options = {"endpoint_override": host, "scheme": scheme or "https"} if host else {}
        return Arrow(pafs.S3FileSystem(region=region, **options))
    if path.scheme in ("gs", "gcs"):
        # Its own patience is 15 minutes, in which it hears no Ctrl-C; requests are tried again here (`ObjectFiles`).
        return Arrow(pafs.GcsFileSystem(retry_time_limit=timedelta(seconds=GCS_PATIENCE_S)))
    return Arrow(pafs.FileSystem.from_uri(str(path))[0])
