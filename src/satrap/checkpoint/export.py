"""Rows for use elsewhere: Parquet or safetensors files, one a partition of a table (docs/formats/export.md).

    out/
      export.json            what it is; rows, bytes and SHA-256 of every file; written last
      dense.safetensors      the dense weights, as they are in the checkpoint
      TABLE/00017.parquet    id, values, state: rows of partition 17
      TABLE/00017.safetensors    ids [R], values [R, D], state [R, K]

Memory: the rows of one partition of one table for each thread. R rows of a file, D dim, K words of optimizer state.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from satrap import __version__
from satrap.checkpoint import manifest
from satrap.checkpoint.load import Loaded, expect, load, open_rows, row_files
from satrap.checkpoint.objects import ObjectFiles
from satrap.checkpoint.places import located
from satrap.checkpoint.save import _HashedFile, default_threads, parallel
from satrap.checkpoint.sealed import TRAILER_BYTES, seal, unseal
from satrap.durable.files import Files, make_directories, read_file, remove_tree
from satrap.durable.rows import ADVICE, RowBlock
from satrap.errors import CheckpointError, SaveError, did_you_mean
from satrap.schema import Table, ValueFormat
from satrap.store import DTYPES, converter, state_words

NAME, FORMAT, VERSION = "export.json", "satrap-export", 1
Form = Literal["parquet", "safetensors"]
PLAIN = (ValueFormat.FP32, ValueFormat.FP16)
"""Formats whose values are numbers to other programs; rows of others are exported as fp32."""
GROUP_ROWS = 1 << 17
"""Rows of a Parquet row group."""


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class ExportedFile(_Part, frozen=True):
    """One file of a table; its name follows from table, partition and form."""

    partition: int
    rows: int
    bytes: int
    sha256: str


class ExportedTable(_Part, frozen=True):
    """One table."""

    spec: Table
    """As its rows are in the files."""
    state_width: int
    """K words of optimizer state a row; 0 where it was left out."""
    rows: int
    files: tuple[ExportedFile, ...]
    """By partition, so that their rows one after another are in the global order of docs/formats/rows.md."""


class Contents(_Part, frozen=True):
    """What an export holds."""

    format: str
    version: int
    satrap: str
    created: str
    step: int
    """Of the checkpoint."""
    form: Form
    tables: tuple[ExportedTable, ...]
    dense_bytes: int
    dense_sha256: str


def folder_of(table: str) -> str:
    """The folder of a table, whatever its name is.

    >>> folder_of("user"), folder_of("../a b")
    ('user', '%2E.%2Fa%20b')
    """
    name = quote(table, safe="")
    return "%2E" + name[1:] if name.startswith(".") else name


def file_of(table: str, partition: int, form: Form) -> tuple[str, str]:
    """Folder and name of a file."""
    return folder_of(table), f"{partition:05d}.{form}"


def plain_table(table: Table) -> Table:
    """The table that the rows of a table are exported as.

    >>> plain_table(Table(name="t", dim=4, format=ValueFormat.INT8)).format
    <ValueFormat.FP32: 'fp32'>
    """
    return table if table.format in PLAIN else msgspec.structs.replace(table, format=ValueFormat.FP32, rounding=None)


def export(
    checkpoint: str | Path,
    out: str | Path,
    *,
    form: Form = "parquet",
    state: bool = False,
    tables: Sequence[str] | None = None,
    threads: int | None = None,
    files: Files | None = None,
    out_files: Files | None = None,
) -> Contents:
    """Writes the rows of a checkpoint, or of a run's newest, into a folder that is not there yet or empty; both may be
    URLs. `state` takes the optimizer's state along, `tables` only some. `files`, `out_files`: None by the paths.

    Raises CheckpointError where the checkpoint is damaged or a table is not in it, and SaveError where the folder
    cannot be written; nothing is left of it then. An export without `export.json`, which is written last, is not whole.
    """
    loaded = load(checkpoint, files=files)
    known = [t.spec.name for t in loaded.manifest.tables]
    wanted = known if tables is None else list(tables)
    for name in wanted:
        if name not in known:
            raise CheckpointError(f"{loaded.path}: it has no table '{name}'; {did_you_mean(name, known)}")
    home, out_files = located(out, out_files)
    try:
        if out_files.names(home):
            raise CheckpointError(f"{home}: it is there and not empty; choose a folder of the export's own")
        was_there = out_files.is_directory(home)
        try:
            return _Export(loaded, home, out_files, form, state, frozenset(wanted)).write(threads or default_threads())
        except BaseException:
            _take_back(home, out_files, folder_too=not was_there)
            raise
    except OSError as e:
        raise SaveError(f"cannot write the export {home}: {e.strerror} ({e.filename or home})") from e


def _take_back(home: Path, files: Files, *, folder_too: bool) -> None:
    """Removes what a failed export has made, which is all there is in its folder: the same command will work again."""
    # What cannot be removed stays; the error that ended the export is the one to tell.
    with suppress(OSError):
        for name in files.names(home):
            remove_tree(home / name, files)
        if folder_too:
            files.remove_directory(home)


class _Export:
    def __init__(
        self, loaded: Loaded, home: Path, files: Files, form: Form, state: bool, wanted: frozenset[str]
    ) -> None:
        self._loaded, self._home, self._files = loaded, home, files
        self._form, self._state, self._wanted = form, state, wanted
        self._specs = {t.spec.name: t.spec for t in loaded.manifest.tables if t.spec.name in wanted}
        self._plain = {name: plain_table(spec) for name, spec in self._specs.items()}
        self._converters = {name: converter(spec, self._plain[name]) for name, spec in self._specs.items()}

    def write(self, threads: int) -> Contents:
        if not isinstance(self._files, ObjectFiles):
            make_directories(self._home, self._files)
            for name in self._specs:
                make_directories(self._home / folder_of(name), self._files)
        dense = bytes(read_file(self._loaded.path / manifest.DENSE, self._loaded.files))
        self._small("dense.safetensors", dense)
        names = row_files(self._loaded.manifest)
        by_file = parallel(lambda i: self._partition(names[i]), range(len(names)), threads)
        tables = []
        for entry in self._loaded.manifest.tables:
            if entry.spec.name not in self._wanted:
                continue
            found = tuple(f for part in by_file for name, f in part if name == entry.spec.name)
            rows = sum(f.rows for f in found)
            if rows != entry.rows:
                raise CheckpointError(
                    f"{self._loaded.path}: the manifest lists {entry.rows} rows of table '{entry.spec.name}', the "
                    f"files hold {rows}. {ADVICE}"
                )
            name, width = entry.spec.name, 0
            if self._state:
                width = entry.state_width if self._converters[name] is None else state_words(self._plain[name])
            tables.append(ExportedTable(spec=self._plain[name], state_width=width, rows=rows, files=found))
        contents = Contents(
            format=FORMAT,
            version=VERSION,
            satrap=__version__,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            step=self._loaded.step,
            form=self._form,
            tables=tuple(tables),
            dense_bytes=len(dense),
            dense_sha256=hashlib.sha256(dense).hexdigest(),
        )
        for folder in (*(self._home / folder_of(name) for name in self._specs), self._home):
            self._files.sync_directory(folder)
        self._small(NAME, seal(msgspec.to_builtins(contents)))
        self._files.sync_directory(self._home)
        return contents

    def _partition(self, name: str) -> list[tuple[str, ExportedFile]]:
        """The files of one partition, by table. The partition's own file is verified to its end."""
        loaded = self._loaded
        out: list[tuple[str, ExportedFile]] = []
        with open_rows(loaded.path, name, loaded.manifest, loaded.files, whole=True) as reader:
            check = expect(loaded.manifest)
            for section, block in reader.sections(lambda s: check(s) and s.name in self._wanted):
                if block is not None:
                    partition, table = reader.partition, section.name
                    path = self._home.joinpath(*file_of(table, partition, self._form))
                    convert = self._converters[table]
                    if convert is not None:
                        block = RowBlock(block.ids, *convert(block.values, block.state))
                    out.append((table, self._file(path, partition, block)))
        return out

    def _file(self, path: Path, partition: int, block: RowBlock) -> ExportedFile:
        def write() -> ExportedFile:
            with _HashedFile(path, self._files) as file:
                (_parquet if self._form == "parquet" else _safetensors)(block, self._state, file.write)
                file.sync()
            entry = file.entry("rows")
            return ExportedFile(partition=partition, rows=len(block.ids), bytes=entry.bytes, sha256=entry.sha256)

        return self._files.again(path, write) if isinstance(self._files, ObjectFiles) else write()

    def _small(self, name: str, data: bytes) -> None:
        with _HashedFile(self._home / name, self._files) as file:
            file.write(memoryview(data))
            file.sync()


class _Sink(io.RawIOBase):
    """What pyarrow writes to."""

    def __init__(self, write: Callable[[memoryview], None]) -> None:
        self._write, self._at = write, 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if view:
            self._write(view)
        self._at += len(view)
        return len(view)

    def tell(self) -> int:
        return self._at


def _parquet(block: RowBlock, state: bool, write: Callable[[memoryview], None]) -> None:
    columns = {"id": pa.array(block.ids), "values": _lists(block.values)}
    if state and block.state.shape[1]:
        columns["state"] = _lists(block.state)
    schema = pa.schema([pa.field(n, c.type, nullable=False) for n, c in columns.items()])
    table = pa.Table.from_arrays(list(columns.values()), schema=schema)
    # A dictionary holds each value once, and takes one NaN for another; statistics of vectors tell nothing.
    options = {"use_dictionary": False, "write_statistics": False, "compression": "zstd"}
    with pq.ParquetWriter(_Sink(write), schema, **options) as writer:
        writer.write_table(table, row_group_size=GROUP_ROWS)


def _lists(values: Any) -> pa.Array:
    item = pa.field("item", pa.float16() if values.dtype == np.float16 else pa.float32(), nullable=False)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=pa.list_(item, values.shape[1]))


_NAMES = {"uint64": "U64", "float32": "F32", "float16": "F16"}


def _safetensors(block: RowBlock, state: bool, write: Callable[[memoryview], None]) -> None:
    """As the safetensors library would, without a copy of the rows."""
    columns: dict[str, Any] = {"ids": block.ids, "values": block.values}
    if state and block.state.shape[1]:
        columns["state"] = block.state
    head: dict[str, Any] = {}
    at = 0
    for name, column in columns.items():
        end = at + column.nbytes
        head[name] = {"dtype": _NAMES[column.dtype.name], "shape": list(column.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    write(memoryview(struct.pack("<Q", len(text)) + text))
    for column in columns.values():
        write(np.ascontiguousarray(column).reshape(-1).view(np.uint8).data)


def decode_contents(data: bytes, where: str) -> Contents:
    """`export.json` from its bytes. Raises CheckpointError naming `where`."""
    body, intact = unseal(data)
    if not intact:
        raise CheckpointError(
            f"{where}: damaged or edited: its content does not match the SHA-256 in its last line (byte offset "
            f"{max(0, len(data) - TRAILER_BYTES)}). Export the rows again"
        )
    try:
        tree = msgspec.json.decode(body)
        if not isinstance(tree, dict) or tree.get("format") != FORMAT:
            raise CheckpointError(f"{where} is not of a satrap export")
        if tree.get("version") != VERSION:
            raise CheckpointError(
                f"{where}: export version {tree.get('version')} (written by satrap {tree.get('satrap')}), this satrap "
                f"reads version {VERSION}; use a newer satrap"
            )
        contents = msgspec.json.decode(body, type=Contents)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise CheckpointError(f"{where}: {e}") from e
    for table in contents.tables:
        name = table.spec.name
        if table.spec.optimizer is None or table.state_width < 0:
            raise CheckpointError(f"{where}: table '{name}' is listed without its optimizer")
        if sum(f.rows for f in table.files) != table.rows or any(f.rows < 1 or f.bytes < 0 for f in table.files):
            raise CheckpointError(f"{where}: table '{name}' has {table.rows} rows, its files list others")
        if [f.partition for f in table.files] != sorted({f.partition for f in table.files if f.partition >= 0}):
            raise CheckpointError(f"{where}: the files of table '{name}' are not in order")
    names = [t.spec.name for t in contents.tables]
    if len(set(names)) < len(names):
        raise CheckpointError(f"{where}: a table is listed twice: {names}")
    return contents


@dataclass(frozen=True, slots=True)
class Exported:
    """An export that is being read. Every file is verified before anything of it is used."""

    path: Path
    contents: Contents
    files: Files

    @classmethod
    def open(cls, path: str | Path) -> Exported:
        """Opens the folder of an export, which may be a URL. Raises CheckpointError."""
        home, files = located(path)
        try:
            data = bytes(read_file(home / NAME, files))
        except FileNotFoundError as e:
            raise CheckpointError(f"{home}: it has no {NAME}, so it is no export, or one that was not finished") from e
        except OSError as e:
            raise CheckpointError(f"cannot read {home / NAME}: {e.strerror}") from e
        return cls(home, decode_contents(data, str(home / NAME)), files)

    def tables(self) -> Mapping[str, ExportedTable]:
        """By name."""
        return {t.spec.name: t for t in self.contents.tables}

    def blocks(self, table: str) -> Iterator[RowBlock]:
        """All rows of a table, a file at a time; the state is [R, 0] where it was left out. Raises CheckpointError."""
        entry = self.tables()[table]
        for file in entry.files:
            path = self.path.joinpath(*file_of(table, file.partition, self.contents.form))
            data = self._verified(path, file.bytes, file.sha256)
            try:
                block = (_read_parquet if self.contents.form == "parquet" else _read_safetensors)(data)
            except (pa.ArrowException, ValueError, KeyError, TypeError) as e:
                raise CheckpointError(f"{path}: cannot be read: {e}") from e
            shape = (len(block.ids), *block.values.shape, *block.state.shape)
            want = (file.rows, file.rows, entry.spec.dim, file.rows, entry.state_width)
            if shape != want or block.values.dtype != DTYPES[entry.spec.format]:
                raise CheckpointError(
                    f"{path}: {len(block.ids)} rows of {block.values.shape[1]} {block.values.dtype} and "
                    f"{block.state.shape[1]} of state; {NAME} lists {file.rows} of {entry.spec.dim} "
                    f"{entry.spec.format.value} and {entry.state_width}"
                )
            yield block

    def dense(self) -> bytes:
        """The dense weights, a safetensors file. Raises CheckpointError."""
        return self._verified(self.path / manifest.DENSE, self.contents.dense_bytes, self.contents.dense_sha256)

    def _verified(self, path: Path, size: int, sha256: str) -> bytes:
        try:
            have = self.files.size(path)
            if have != size:
                raise CheckpointError(f"{path}: {have} bytes, {NAME} says {size}. Export the rows again")
            data = bytes(read_file(path, self.files))
        except FileNotFoundError as e:
            raise CheckpointError(f"{path}: missing; {NAME} lists it with {size} bytes. Export the rows again") from e
        except OSError as e:
            raise CheckpointError(f"cannot read {path}: {e.strerror}") from e
        if hashlib.sha256(data).hexdigest() != sha256:
            raise CheckpointError(f"{path}: damaged: its content does not match its SHA-256 in {NAME}")
        return data


def _read_parquet(data: bytes) -> RowBlock:
    table = pq.read_table(pa.BufferReader(data), use_threads=False)
    ids = table["id"].combine_chunks()
    columns = {n: table[n].combine_chunks() for n in ("values", "state") if n in table.column_names}
    plain = {n: _plain(c) for n, c in columns.items()}
    return RowBlock(ids.to_numpy(), plain["values"], plain.get("state", np.empty((len(ids), 0), np.float32)))


def _plain(column: pa.Array) -> Any:
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), column.type.list_size)


def _read_safetensors(data: bytes) -> RowBlock:
    from safetensors import SafetensorError
    from safetensors.numpy import load as parse

    try:
        found = parse(data)
    except SafetensorError as e:
        raise ValueError(str(e)) from e
    ids = found["ids"]
    return RowBlock(ids, found["values"], found.get("state", np.empty((len(ids), 0), np.float32)))
