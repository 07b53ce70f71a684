"""The manifest: what a checkpoint is, and the name, size and SHA-256 of every other file (docs/formats/checkpoint.md).

`manifest.json` is JSON for people and programs alike. Its last member is the SHA-256 of all the bytes before it, so
that damage to the manifest itself does not pass either.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from satrap.checkpoint.sealed import TRAILER_BYTES, seal, unseal
from satrap.data.batch import Position
from satrap.durable.files import LOCAL, Files, read_file
from satrap.durable.rows import ADVICE
from satrap.errors import CheckpointError, did_you_mean
from satrap.schema import Table

NAME = "manifest.json"
FORMAT = "satrap-checkpoint"
VERSION = 1

DENSE, OPTIMIZER, RNG = "dense.safetensors", "optimizer.safetensors", "rng.safetensors"


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class FileEntry(_Part, frozen=True, omit_defaults=True):
    """One file beside the manifest."""

    bytes: int
    sha256: str
    kind: Literal["dense", "optimizer", "rng", "rows"]
    partition: int | None = None
    """Of a row file."""


class BoundCounts(_Part, frozen=True):
    """What a bounded table has admitted, evicted, expired and refused, as `ps.TableStats`."""

    admitted: int
    evicted: int
    expired: int
    refused: int


class TableEntry(_Part, frozen=True):
    """One table: its configuration when saved, and its size."""

    spec: Table
    """With its optimizer filled in."""
    state_width: int
    """K: words of 32 bits of optimizer state a row, step count included."""
    rows: int
    bytes: int
    """Of all its rows: ids, values, state."""
    bound: BoundCounts | None = None
    """What a bounded table has done so far; None: it is not."""


class Manifest(_Part, frozen=True):
    """A checkpoint's table of contents. `step` is of the dense optimizer; `position` is where the data goes on."""

    format: str
    version: int
    satrap: str
    """Version of satrap that wrote it."""
    created: str
    """UTC, ISO 8601."""
    step: int
    position: Position
    clients: dict[int, tuple[int, int]]
    """Client → last (epoch, seq) whose push is in these rows: sent again, it is not applied again."""
    partitions: int
    """P when saved. A restore may use any other."""
    tables: tuple[TableEntry, ...]
    files: dict[str, FileEntry]
    """A partition without rows has no file."""
    job: dict[str, Any]
    optimizer: Any
    """Tree of the dense optimizer's state (`satrap.checkpoint.tensors`)."""
    rng: Any
    """Tree of the random generators' state."""
    extra: Any
    """Tree of whatever the trainer adds: metrics, schedule, …"""


def encode(manifest: Manifest) -> bytes:
    """The bytes of `manifest.json`."""
    tree = msgspec.to_builtins(manifest)
    # JSON's object keys are strings; everything else in the tree is JSON already.
    tree["clients"] = {str(k): v for k, v in tree["clients"].items()}
    return seal(tree)


def decode(data: bytes, where: str) -> Manifest:
    """A manifest from its bytes. Raises CheckpointError naming `where`: damaged, of another format, or of a newer
    version."""
    body, intact = unseal(data)
    try:
        tree = msgspec.json.decode(body)
        if not isinstance(tree, dict) or tree.get("format") != FORMAT:
            raise CheckpointError(f"{where} is not the manifest of a satrap checkpoint")
        if intact and tree.get("version") != VERSION:
            raise CheckpointError(
                f"{where}: checkpoint version {tree.get('version')} (written by satrap {tree.get('satrap')}), "
                f"this satrap reads version {VERSION}; use a newer satrap"
            )
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise CheckpointError(f"{where}: damaged: {e}. {ADVICE}") from e
    if not intact:
        raise CheckpointError(
            f"{where}: damaged or edited: its content does not match the SHA-256 in its last line "
            f"(byte offset {max(0, len(data) - TRAILER_BYTES)}). {ADVICE}"
        )
    for key in tree:
        if key not in Manifest.__struct_fields__:
            raise CheckpointError(f"{where}: unknown key '{key}'; {did_you_mean(key, Manifest.__struct_fields__)}")
    try:
        manifest = msgspec.json.decode(body, type=Manifest)
    except (msgspec.ValidationError, RecursionError) as e:
        raise CheckpointError(f"{where}: {e}") from e
    _check(manifest, where)
    return manifest


def _check(manifest: Manifest, where: str) -> None:
    """What types alone do not say. A name in a manifest must never lead out of the checkpoint's directory."""
    for name, entry in manifest.files.items():
        if name != file_name(entry.kind, entry.partition):
            raise CheckpointError(f"{where}: a {entry.kind} file of partition {entry.partition} is named '{name}'")
        if entry.bytes < 0 or (entry.partition is not None and not 0 <= entry.partition < manifest.partitions):
            raise CheckpointError(f"{where}: '{name}': partition {entry.partition} of {manifest.partitions}")
    for name in (DENSE, OPTIMIZER, RNG):
        if name not in manifest.files:
            raise CheckpointError(f"{where}: no entry for '{name}'")
    for table in manifest.tables:
        if table.spec.optimizer is None:
            raise CheckpointError(f"{where}: table '{table.spec.name}' is listed without its optimizer")
    names = [t.spec.name for t in manifest.tables]
    if len(set(names)) < len(names):
        raise CheckpointError(f"{where}: a table is listed twice: {names}")


def file_name(kind: str, partition: int | None = None) -> str:
    """Name of a file by what it holds.

    >>> file_name("rows", 17), file_name("dense")
    ('rows-00017.satrap', 'dense.safetensors')
    """
    return f"{kind}.safetensors" if partition is None else f"{kind}-{partition:05d}.satrap"


def read(directory: Path, files: Files = LOCAL) -> Manifest:
    """The manifest of a checkpoint directory. Raises CheckpointError."""
    path = directory / NAME
    try:
        data = read_file(path, files)
    except FileNotFoundError as e:
        hint = "it holds no manifest.json" if files.is_directory(directory) else "there is no such directory"
        raise CheckpointError(f"{directory} is not a checkpoint: {hint}") from e
    except OSError as e:
        raise CheckpointError(f"cannot read {path}: {e.strerror}") from e
    return decode(bytes(data), str(path))
