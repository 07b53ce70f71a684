"""What is done with the ids of every batch of a job, worked out once. B samples, N ids of a feature, D its dim."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from satrap.errors import DataError
from satrap.ps.packing import Directory
from satrap.schema import Job, Pooling, Sequence, Table, WireFormat
from satrap.store import TicketFeature, rows_of


class Ids(Protocol):
    """The ids of one feature of a batch: `data.Jagged`, or what has the same."""

    @property
    def values(self) -> NDArray[np.uint64]:
        """[N]"""

    @property
    def offsets(self) -> NDArray[np.int64] | None:
        """[B + 1], or None: one id a sample."""

    @property
    def weights(self) -> NDArray[np.float32] | None:
        """[N], or None: all 1."""


@dataclass(frozen=True, slots=True)
class Feature:
    """An id feature of a job."""

    name: str
    table: str
    dim: int
    format: WireFormat
    """How its vectors travel."""
    pooling: Pooling
    max_length: int | None
    """L at most, of a sequence; None: pooled."""
    column: int
    """First column of a pooled feature in the packed tensor."""


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring columns of the packed tensor that hold F features of one D and one format."""

    column: int
    features: int
    """F"""
    dim: int
    """D"""
    format: WireFormat

    @property
    def columns(self) -> slice:
        """[F·D] of the packed tensor."""
        return slice(self.column, self.column + self.features * self.dim)


@dataclass(frozen=True, slots=True)
class Plan:
    """The id features of a job, in its order. Immutable, thread-safe."""

    tables: tuple[Table, ...]
    seed: int
    features: tuple[Feature, ...]
    columns: int
    """Σ: of the packed tensor of all pooled features."""

    @classmethod
    def of(cls, job: Job) -> Plan:
        """That of a job."""
        tables = {t.name: t for t in job.resolved_tables()}
        features: list[Feature] = []
        column = 0
        for f in job.id_features:
            t = tables[job.table_of(f)]
            if isinstance(f, Sequence):
                features.append(Feature(f.name, t.name, t.dim, t.wire, Pooling.SUM, f.max_length, 0))
            else:
                features.append(Feature(f.name, t.name, t.dim, t.wire, f.pooling, None, column))
                column += t.dim
        return cls(tuple(tables.values()), job.seed, tuple(features), column)

    @property
    def sequences(self) -> tuple[Feature, ...]:
        """Features that are not pooled."""
        return tuple(f for f in self.features if f.max_length is not None)

    @property
    def runs(self) -> tuple[Run, ...]:
        """The packed tensor's columns, as they travel."""
        out: list[Run] = []
        for f in self.features:
            if f.max_length is not None:
                continue
            if out and (out[-1].dim, out[-1].format) == (f.dim, f.format):
                out[-1] = Run(out[-1].column, out[-1].features + 1, f.dim, f.format)
            else:
                out.append(Run(f.column, 1, f.dim, f.format))
        return tuple(out)

    def fingerprint(self) -> bytes:
        """32 bytes that differ where pooled vectors would, or how they travel."""
        rows = Directory.of(self.tables).fingerprint(self.seed).hex()
        features = [[f.name, f.table, f.format, f.pooling, f.max_length] for f in self.features]
        return hashlib.sha256(msgspec.json.encode([rows, features])).digest()

    def lengths(self, ids: Mapping[str, Ids], samples: int) -> tuple[int, ...]:
        """L of each sequence in a batch: its longest list, at least 1. Raises DataError where a feature is missing."""
        missing = next((f.name for f in self.features if f.name not in ids), None)
        if missing is not None:
            raise DataError(f"the batch has no ids of feature '{missing}'")
        return tuple(_longest(ids[f.name].offsets, samples, f.max_length or 1) for f in self.sequences)

    def parts(self, ids: Mapping[str, Ids], lengths: tuple[int, ...]) -> list[TicketFeature]:
        """What the ticket of a batch is made of."""
        parts: list[TicketFeature] = []
        number = 0
        for f in self.features:
            x = ids[f.name]
            shared = self._fixed.get(f.table)
            values = x.values if shared is None else rows_of(shared, x.values, self.seed)
            if f.max_length is not None:
                parts.append(TicketFeature(f.table, values, x.offsets, None, length=lengths[number]))
                number += 1
            elif shared is None or shared.rows_per_id == 1:
                parts.append(TicketFeature(f.table, values, x.offsets, x.weights, f.pooling, f.column))
            else:
                parts.append(_several(f, values, x, shared.rows_per_id))
        return parts

    @property
    def _fixed(self) -> dict[str, Table]:
        """Tables whose rows ids share, by name."""
        return {t.name: t for t in self.tables if t.ids is not None}


def _several(f: Feature, values: NDArray[np.uint64], x: Ids, k: int) -> TicketFeature:
    """A feature whose ids have k rows each, `values` [N·k]: their sum is an id's vector, and pooled as any other.

    To the ticket they are a list of k times as many ids, summed with weights that say what pooling says.
    """
    n = values.size // k
    offsets = np.arange(n + 1) if x.offsets is None else x.offsets
    weights = x.weights
    if f.pooling is not Pooling.SUM:
        w = np.ones(n, np.float32) if weights is None else weights
        sums = np.concatenate([[0.0], np.cumsum(w if f.pooling is Pooling.MEAN else w.astype(np.float64) ** 2)])
        whole = sums[offsets[1:]] - sums[offsets[:-1]]
        whole = whole if f.pooling is Pooling.MEAN else np.sqrt(whole)
        weights = (w / np.repeat(whole, np.diff(offsets))).astype(np.float32)
    repeated = None if weights is None else np.repeat(weights, k)
    return TicketFeature(f.table, values, np.ascontiguousarray(offsets * k, np.int64), repeated, Pooling.SUM, f.column)


def masks(plan: Plan, ids: Mapping[str, Ids], samples: int, lengths: tuple[int, ...]) -> list[NDArray[np.bool_]]:
    """[B, L] of each sequence: where it has an id."""
    out = []
    for f, length in zip(plan.sequences, lengths, strict=True):
        offsets = ids[f.name].offsets
        have = np.ones(samples, np.int64) if offsets is None else np.diff(offsets)
        out.append(np.arange(length) < have[:, None])
    return out


def _longest(offsets: NDArray[np.int64] | None, samples: int, limit: int) -> int:
    if offsets is None or samples == 0:
        return 1
    return max(1, min(limit, int(np.diff(offsets).max())))
