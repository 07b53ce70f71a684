"""What is in a checkpoint, at a glance: what `satrap inspect` prints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from satrap.checkpoint import manifest
from satrap.checkpoint.folder import best, checkpoints, step_of_path
from satrap.checkpoint.folder import home as folder_of
from satrap.checkpoint.load import load
from satrap.checkpoint.manifest import TableEntry
from satrap.checkpoint.places import reading
from satrap.checkpoint.tensors import leaves
from satrap.data.batch import Position
from satrap.durable.files import Files
from satrap.errors import CheckpointError
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


@dataclass(frozen=True, slots=True)
class Kept:
    """One checkpoint of a folder, by its manifest alone."""

    path: Path
    step: int
    created: str
    """UTC, ISO 8601."""
    rows: int
    bytes: int
    """Of all files but the manifest."""
    valid: dict[str, float]
    """Figures of the validation it belongs to, by name: `auc`, `log_loss`. Empty where it was saved between two."""
    best: bool
    """Named the best of its folder."""
    newest: bool
    problem: str | None = None
    """Why it cannot be read; the figures are empty then."""


def kept(folder: str | Path, *, files: Files | None = None) -> list[Kept]:
    """The checkpoints of a run folder, oldest step first. Of each only the manifest is read.

    Raises CheckpointError where the folder's own files cannot be read; a damaged checkpoint is listed with its problem.
    """
    _, own = folder_of(folder, files)
    paths = checkpoints(folder, files)
    try:
        named = best(folder, files)
    except CheckpointError:
        named = None  # it names one that is gone: none of these
    found = []
    for path in paths:
        is_best, newest = path == named, path == paths[-1]
        try:
            content = manifest.read(path, own)
        except CheckpointError as e:
            found.append(Kept(path, step_of_path(path), "", 0, 0, {}, best=is_best, newest=newest, problem=str(e)))
            continue
        rows, size = sum(t.rows for t in content.tables), sum(e.bytes for e in content.files.values())
        valid = _valid(content.extra, content.step)
        found.append(Kept(path, content.step, content.created, rows, size, valid, best=is_best, newest=newest))
    return found


def _valid(extra: Any, step: int) -> dict[str, float]:
    """The figures of a validation at this step: the mean over labels, where the trainer left some."""
    run = extra.get("run", {}) if isinstance(extra, dict) else {}
    if not isinstance(run, dict) or run.get("evaluated_at") != step or not isinstance(run.get("valid"), dict):
        return {}
    labels = list(run["valid"].values())
    figures = {}
    for name in ("auc", "log_loss"):
        values = [x.get(name) for x in labels if isinstance(x, dict)]
        numbers = [v for v in values if isinstance(v, float)]
        if numbers and len(numbers) == len(values):
            figures[name] = sum(numbers) / len(numbers)
    return figures


def inspect(path: str | Path, *, files: Files | None = None) -> Summary:
    """Summarises a checkpoint, or the newest of a run folder. Raises CheckpointError as `load` does."""
    loaded = load(path, files=files)
    content = loaded.manifest
    with reading(loaded.path):
        names = loaded.files.names(loaded.path)
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
