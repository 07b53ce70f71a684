"""Which files a list of paths means: local files, globs, folders, and URLs of any pyarrow or fsspec file system."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import pyarrow.fs as pafs

from satrap.errors import DataError, did_you_mean

Format = Literal["parquet", "csv", "tsv", "criteo"]
AnyFormat = Literal["auto", "parquet", "csv", "tsv", "criteo"]
Paths = str | Path | Sequence[str | Path]

_ENDINGS: dict[str, Format] = {".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".tsv": "tsv"}
_COMPRESSED = (".gz", ".bz2", ".zst", ".lz4", ".br")
_WILD = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class File:
    """One file of the data."""

    filesystem: pafs.FileSystem
    path: str
    """Within the file system."""
    name: str
    """As the user would write it: for messages and the fingerprint."""
    size_bytes: int
    format: Format


def find_files(paths: Paths, format: AnyFormat = "auto", filesystem: Any = None) -> list[File]:
    """The files that paths, globs and folders mean: in the order given, each glob or folder sorted by name.

    In globs `*` and `?` stay within one folder level and `**` crosses levels. A folder means every data file below
    it; names that begin with `_` or `.` are left out. `filesystem` is a pyarrow or fsspec file system that paths
    are within; None: the local one, or for `scheme://…` the scheme's.
    Raises DataError for a path that matches nothing, a file matched twice, or a format that cannot be told.
    """
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    if not given:
        raise DataError("no data files given")
    found: dict[tuple[str, str], tuple[File, str]] = {}
    for item in given:
        text = os.fspath(item)
        for file in _expand(text, format, filesystem):
            here = (file.filesystem.type_name, file.path)
            if here in found:
                raise DataError(
                    f"{file.name}: matched twice, by '{found[here][1]}' and '{text}'; its rows would count double, "
                    "so name each file once"
                )
            found[here] = (file, text)
    files = [file for file, _ in found.values()]
    formats = {f.format: f for f in files}
    if len(formats) > 1:
        named = ", ".join(f"{f.name} is {kind}" for kind, f in formats.items())
        raise DataError(f"the files are of different formats ({named}); give files of one format")
    return files


def _expand(text: str, format: AnyFormat, filesystem: Any) -> Iterable[File]:
    fs, path, prefix = _locate(text, filesystem)

    def file(info: pafs.FileInfo) -> File:
        path = info.path if text.startswith("./") else info.path.removeprefix("./")
        name = prefix + path
        return File(fs, path, name, int(info.size or 0), _format_of(fs, path, name, format))

    try:
        if _WILD.search(path) and fs.get_file_info(path).type == pafs.FileType.NotFound:
            matches = _glob(fs, path)
            if not matches:
                raise DataError(f"no file matches '{text}'")
            return [file(info) for info in matches]
        info = fs.get_file_info(path)
        if info.type == pafs.FileType.Directory:
            infos = _below(fs, path, format)
            if not infos:
                raise DataError(f"the folder '{text}' holds no data files ({', '.join(_ENDINGS)}, also compressed)")
            return [file(info) for info in infos]
        if info.type == pafs.FileType.NotFound:
            raise DataError(f"there is no file '{text}'{_nearest(fs, path)}")
        return [file(info)]
    except OSError as e:
        raise DataError(f"cannot read '{text}': {e}") from e


def _locate(text: str, filesystem: Any) -> tuple[pafs.FileSystem, str, str]:
    """The file system, the path within it, and what stands before the path in messages."""
    if filesystem is not None:
        if isinstance(filesystem, pafs.FileSystem):
            return filesystem, text, ""
        return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), text, ""
    if "://" not in text:
        return pafs.LocalFileSystem(), os.path.expanduser(text), ""
    scheme = urlsplit(text).scheme
    if scheme == "file":
        return pafs.LocalFileSystem(), text.removeprefix("file://"), ""
    import fsspec

    try:
        # The package a user installed for a scheme is the one they configured; pyarrow's own serves without any.
        fs, path = fsspec.core.url_to_fs(text)
        return pafs.PyFileSystem(pafs.FSSpecHandler(fs)), path, f"{scheme}://"
    except (ImportError, ValueError) as missing:
        try:
            fs, path = pafs.FileSystem.from_uri(text)
            return fs, path, f"{scheme}://"
        except (ValueError, OSError, NotImplementedError):
            raise DataError(f"cannot open '{text}': {missing}") from missing


def _glob(fs: pafs.FileSystem, pattern: str) -> list[pafs.FileInfo]:
    fixed = pattern[: _WILD.search(pattern).start()]  # type: ignore[union-attr]
    base = fixed.rpartition("/")[0] or ("/" if pattern.startswith("/") else "")
    deep = "**" in pattern or "/" in pattern[len(base) :].lstrip("/")
    here = "." if not base and isinstance(fs, pafs.LocalFileSystem) else base  # elsewhere, "" is the root
    infos = fs.get_file_info(pafs.FileSelector(here, recursive=deep, allow_not_found=True))
    wanted = re.compile(_glob_regex(os.path.normpath(pattern)))
    dotted = pattern.rpartition("/")[2].startswith(".")  # as in a shell, hidden files are matched when asked for
    files = [i for i in infos if i.type == pafs.FileType.File and (dotted or not i.base_name.startswith("."))]
    return sorted((i for i in files if wanted.fullmatch(os.path.normpath(i.path))), key=lambda i: i.path)


def _glob_regex(pattern: str) -> str:
    """A glob as a regular expression in which `*` stays within a folder.

    >>> bool(re.fullmatch(_glob_regex("a/**/*.csv"), "a/b/c.csv")), bool(re.fullmatch(_glob_regex("a/*.csv"), "a/b/c"))
    (True, False)
    """
    out, i = "", 0
    while i < len(pattern):
        if pattern.startswith("**/", i):
            out, i = out + "(?:[^/]+/)*", i + 3
        elif pattern.startswith("**", i):
            out, i = out + ".*", i + 2
        elif pattern[i] == "*":
            out, i = out + "[^/]*", i + 1
        elif pattern[i] == "?":
            out, i = out + "[^/]", i + 1
        elif pattern[i] == "[" and (end := pattern.find("]", i + 2)) > 0:
            body = pattern[i + 1 : end].replace("\\", "\\\\")
            out, i = out + "[" + ("^" + body[1:] if body[0] == "!" else body) + "]", end + 1
        else:
            out, i = out + re.escape(pattern[i]), i + 1
    return out


def _below(fs: pafs.FileSystem, folder: str, format: AnyFormat) -> list[pafs.FileInfo]:
    infos = fs.get_file_info(pafs.FileSelector(folder, recursive=True))
    depth = len(folder.rstrip("/").split("/"))

    def wanted(info: pafs.FileInfo) -> bool:
        hidden = any(part[:1] in "_." for part in info.path.split("/")[depth:] if part)
        known = format != "auto" or _ending(info.path) is not None
        return info.type == pafs.FileType.File and not hidden and known

    return sorted((i for i in infos if wanted(i)), key=lambda i: i.path)


def _ending(path: str) -> Format | None:
    stem, ending = os.path.splitext(path.lower())
    if ending in _COMPRESSED:
        ending = os.path.splitext(stem)[1]
    return _ENDINGS.get(ending)


def _format_of(fs: pafs.FileSystem, path: str, name: str, format: AnyFormat) -> Format:
    if format != "auto":
        return format
    known = _ending(path)
    if known is not None:
        return known
    with fs.open_input_file(path) as f:
        if f.read(4) == b"PAR1":
            return "parquet"
    raise DataError(f"{name}: cannot tell the format by the name; set data.format to parquet, csv, tsv or criteo")


def _nearest(fs: pafs.FileSystem, path: str) -> str:
    folder, _, name = path.rpartition("/")
    infos = fs.get_file_info(pafs.FileSelector(folder or ".", allow_not_found=True))
    names = [i.base_name for i in infos]
    hint = did_you_mean(name, names) if names else ""
    return f"; {hint}" if hint.startswith("did you mean") else ""
