"""What is in a checkpoint, at a glance: what `satrap inspect` prints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from satrap.checkpoint import manifest
from satrap.checkpoint.files import LOCAL, Files
from satrap.checkpoint.load import load
from satrap.checkpoint.manifest import TableEntry
from satrap.checkpoint.tensors import leaves
from satrap.data.batch import Position
from satrap.schema import Job


@dataclass(frozen=True, slots=True)
class Summary:
    """A checkpoint at a glance. Rows are not read: `verify` does that."""

    path: Path
    satrap: str
    """Version of satrap that wrote it."""
    created: str
    """UTC, ISO 8601."""
    step: int
    position: Position
    """Where the data goes on."""
    job: Job
    tables: tuple[TableEntry, ...]
    """In job order: `.spec` (name, dim, format, optimizer), `.state_width`, `.rows`, `.bytes`."""
    partitions: int
    row_files: int
    clients: dict[int, tuple[int, int]]
    dense_tensors: int
    dense_values: int
    """Numbers in the dense tensors: weights and buffers."""
    optimizer_values: int
    """Numbers in the dense optimizer's state."""
    bytes_total: int
    """Of all files."""
    extra: dict[str, Any]
    ignored: tuple[str, ...]
    """Files in the directory that the manifest does not list; nothing reads them."""

    @property
    def rows(self) -> int:
        """Of all tables."""
        return sum(t.rows for t in self.tables)


def inspect(path: str | Path, *, files: Files = LOCAL) -> Summary:
    """Summarises a checkpoint, or the newest of a run folder. Raises CheckpointError as `load` does."""
    loaded = load(path, files=files)
    content = loaded.manifest
    names = files.names(loaded.path)
    own = len(manifest.encode(content))
    return Summary(
        path=loaded.path,
        satrap=content.satrap,
        created=content.created,
        step=content.step,
        position=content.position,
        job=loaded.job,
        tables=content.tables,
        partitions=content.partitions,
        row_files=sum(e.kind == "rows" for e in content.files.values()),
        clients=content.clients,
        dense_tensors=len(loaded.dense),
        dense_values=sum(t.numel() for t in loaded.dense.values()),
        optimizer_values=sum(x.numel() for _, x in leaves(loaded.optimizer) if isinstance(x, Tensor)),
        bytes_total=own + sum(e.bytes for e in content.files.values()),
        extra=loaded.extra,
        ignored=tuple(n for n in names if n not in content.files and n != manifest.NAME),
    )
