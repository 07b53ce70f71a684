"""A `RowStorage` that is nothing but dicts, as reference; and what tests save. R rows, D dim, K state words a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from satrap import checkpoint
from satrap.data.batch import Position
from satrap.errors import StoreError
from satrap.ps import LocalService, PullRequest, PushRequest
from satrap.ps.protocol import RowBlock, TableStats
from satrap.schema import SGD, Adagrad, Adam, AdamW, Categorical, Data, Ftrl, Job, Label, Rounding, Store, Table
from satrap.store import DTYPES, columns

M64 = 2**64 - 1


def mix(row_id: int) -> int:
    """A bijection of 64-bit numbers, standing in for the store's."""
    h = (row_id ^ (row_id >> 31)) * 0x9E3779B97F4A7C15 & M64
    return (h ^ (h >> 29)) * 0xBF58476D1CE4E5B9 & M64


def state_width(table: Table) -> int:
    version = 1 if table.rounds is Rounding.STOCHASTIC else 0
    match table.optimizer:
        case SGD(momentum=m):
            return (table.dim if m else 0) + version
        case Adagrad():
            return table.dim + version
        case Adam() | AdamW() | Ftrl():
            return 2 * table.dim + 1 + version
        case _:
            return 1 + version


class MemoryRows:
    """Table → id → (values bytes, state bytes)."""

    def __init__(self, tables: Sequence[Table], partitions: int = 4) -> None:
        self._tables, self.partitions = tuple(tables), partitions
        self.rows: dict[str, dict[int, tuple[bytes, bytes]]] = {t.name: {} for t in tables}
        self._clients: dict[int, tuple[int, int]] = {}

    def tables(self) -> Sequence[Table]:
        return self._tables

    def stats(self) -> Mapping[str, TableStats]:
        out = {}
        for t in self._tables:
            n = len(self.rows[t.name])
            out[t.name] = TableStats(n, n * t.format.row_bytes(t.dim), n * 4 * state_width(t), 0)
        return out

    def export_rows(self, table: str, partition: int) -> RowBlock:
        t = self._table(table)
        found = sorted((mix(i), i) for i in self.rows[table] if mix(i) * self.partitions >> 64 == partition)
        ids = np.array([i for _, i in found], np.uint64)
        values = b"".join(self.rows[table][i][0] for _, i in found)
        state = b"".join(self.rows[table][i][1] for _, i in found)
        shape = len(ids), columns(t.format, t.dim)
        width = len(ids), state_width(t)
        return RowBlock(
            ids, np.frombuffer(values, DTYPES[t.format]).reshape(shape), np.frombuffer(state, np.float32).reshape(width)
        )

    def import_rows(self, table: str, block: RowBlock) -> None:
        t = self._table(table)
        if (block.values.shape[1], block.values.dtype, block.state.shape[1]) != (
            columns(t.format, t.dim),
            DTYPES[t.format],
            state_width(t),
        ):
            raise StoreError(f"rows of table '{table}' of another shape")
        for i, v, s in zip(block.ids.tolist(), block.values, block.state, strict=True):
            self.rows[table][i] = v.tobytes(), s.tobytes()

    def reserve_rows(self, table: str, rows: int) -> None:
        """A dict needs no room made for it."""

    def clear(self) -> None:
        for rows in self.rows.values():
            rows.clear()
        self._clients.clear()

    def clients(self) -> dict[int, tuple[int, int]]:
        return dict(self._clients)

    def set_clients(self, clients: Mapping[int, tuple[int, int]]) -> None:
        self._clients = dict(clients)

    def _table(self, name: str) -> Table:
        return next(t for t in self._tables if t.name == name)


def random_block(table: Table, rows: int, seed: int = 0) -> RowBlock:
    """Rows of arbitrary bits: a checkpoint keeps bits, so NaNs of every kind are among them."""
    rng = np.random.default_rng(seed)
    ids = np.unique(rng.integers(0, M64, rows, np.uint64, endpoint=True))
    size = table.format.row_bytes(table.dim)
    values = rng.integers(0, 255, (len(ids), size), np.uint8, endpoint=True).view(DTYPES[table.format])
    state = rng.integers(0, 255, (len(ids), state_width(table) * 4), np.uint8, endpoint=True).view(np.float32)
    return RowBlock(ids, values, state.reshape(len(ids), state_width(table)))


def global_rows(service: object, table: str) -> tuple[bytes, bytes, bytes]:
    """The whole table as bytes, in the order of partitions: equal for equal rows, whatever P is."""
    blocks = [service.export_rows(table, p) for p in range(service.partitions)]  # type: ignore[attr-defined]
    return (
        b"".join(b.ids.tobytes() for b in blocks),
        b"".join(b.values.tobytes() for b in blocks),
        b"".join(b.state.tobytes() for b in blocks),
    )


def job_of(*tables: Table, partitions: int = 4, seed: int = 0) -> Job:
    """A job whose features are the tables."""
    return Job(
        data=Data(train=("clicks.parquet",), label=(Label(column="click"),)),
        features=tuple(Categorical(name=t.name) for t in tables),
        tables=tables,
        store=Store(partitions=partitions, threads=1),
        seed=seed,
    )


def filled(job: Job, rows: int, seed: int = 0) -> MemoryRows:
    """The job's tables with random rows."""
    service = MemoryRows(job.resolved_tables(), job.store.partitions)
    for i, t in enumerate(service.tables()):
        service.import_rows(t.name, random_block(t, rows, seed + i))
    service.set_clients({0: (0, 17), 3: (2, 5)})
    return service


def push(service: LocalService, seq: int, rows: int = 300, span: int = 2000) -> None:
    """One training step of random ids and gradients, the same for the same seq."""
    rng = np.random.default_rng(seq)
    ids: dict[str, NDArray[np.uint64]] = {
        t.name: np.unique(rng.integers(0, span, rows, np.uint64)) * np.uint64(0x123456789ABCDEF)
        for t in service.tables()
    }
    gradients = {t.name: rng.normal(size=(len(ids[t.name]), t.dim)).astype(np.float32) for t in service.tables()}
    service.pull(PullRequest(ids=ids, create=True))
    service.push(PushRequest(client=1, epoch=0, seq=seq, ids=ids, gradients=gradients))


def dense_parts(seed: int = 0) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A small network and its Adam after two steps."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(2):
        dense_step(model, optimizer)
    return model, optimizer


def dense_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    x = torch.linspace(-1, 1, 24).reshape(8, 3)
    model(x).square().sum().backward()
    optimizer.step()


POSITION = Position(epoch=1, window=2, row=3)


def save_step(folder: Path, job: Job, service: Any, step: int, **options: Any) -> Path:
    """Saves with a small dense network whose weights tell the step."""
    dense, optimizer = _dense(step)
    settings: dict[str, Any] = {
        "dense": dense,
        "optimizer": optimizer,
        "position": POSITION,
        "rng": {"torch": torch.tensor([step])},
        "extra": {"step": step},
        "threads": 1,
    }
    return checkpoint.save(folder, job=job, service=service, step=step, **{**settings, **options})


@cache
def _dense(seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    model, optimizer = dense_parts(seed)
    return model.state_dict(), optimizer.state_dict()
