"""A hash of the model's content that does not depend on how it is laid out.

Covered: dense weights, the dense optimizer's state, and for every table its dim, format and kind of optimizer and its
rows in the global order of their ids' mix, each with values and optimizer state. Not covered: settings (learning rates,
initializers), steps, clients, the job, times, paths, threads, and the number of partitions and files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from satrap.checkpoint import tensors
from satrap.checkpoint.load import expect, load, open_rows, row_files
from satrap.durable.files import Files
from satrap.durable.rows import kind_of
from satrap.ps.protocol import RowBlock, RowStorage
from satrap.schema import Table


class _TableHash:
    """Running hashes of one table's columns. Columns apart, so that it does not matter where blocks are cut."""

    def __init__(self, table: Table) -> None:
        self._table, self._rows, self._width = table, 0, 0
        self._columns = {name: hashlib.sha256() for name in ("ids", "values", "state")}

    def add(self, block: RowBlock) -> None:
        self._rows += len(block.ids)
        self._width = block.state.shape[1]
        for name, column in (("ids", block.ids), ("values", block.values), ("state", block.state)):
            if column.size:
                self._columns[name].update(column.data.cast("B"))

    def part(self) -> dict[str, Any]:
        return {
            "dim": self._table.dim,
            "format": self._table.format.value,
            "optimizer": kind_of(self._table),
            "state_width": self._width,
            "rows": self._rows,
            **{name: h.hexdigest() for name, h in self._columns.items()},
        }


def digest(path: str | Path, *, files: Files | None = None) -> str:
    """SHA-256 (hex) of the content of a checkpoint. Equal for equal models, however they were trained or saved.

    Raises CheckpointError where the checkpoint is damaged.
    """
    loaded = load(path, files=files)
    hashes = {t.spec.name: _TableHash(t.spec) for t in loaded.manifest.tables}
    for name in row_files(loaded.manifest):
        with open_rows(loaded.path, name, loaded.manifest, loaded.files, whole=True) as reader:
            for section, block in reader.sections(expect(loaded.manifest)):
                assert block is not None
                hashes[section.name].add(block)
    return _combine(loaded.dense, loaded.optimizer, hashes)


def content_digest(service: RowStorage, dense: Mapping[str, Tensor], optimizer: Mapping[str, Any] | None) -> str:
    """What `digest` of a checkpoint saved now would be. Nothing may train meanwhile."""
    hashes = {t.name: _TableHash(t) for t in service.tables()}
    for partition in range(service.partitions):
        for name, table in hashes.items():
            table.add(service.export_rows(name, partition))
    return _combine(dense, optimizer, hashes)


def _combine(dense: Mapping[str, Tensor], optimizer: Any, tables: Mapping[str, _TableHash]) -> str:
    state = optimizer.get("state", {}) if isinstance(optimizer, Mapping) else {}
    content = {
        "version": 1,
        "dense": {name: _leaf(tensor) for name, tensor in dense.items()},
        "optimizer": {name: _leaf(leaf) for name, leaf in tensors.leaves(state)},
        "tables": {name: table.part() for name, table in tables.items()},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _leaf(leaf: Any) -> Sequence[Any]:
    if isinstance(leaf, Tensor):
        return [str(leaf.dtype), list(leaf.shape), hashlib.sha256(tensors.raw_bytes(leaf)).hexdigest()]
    return [type(leaf).__name__, str(leaf)]
