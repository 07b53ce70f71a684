"""A plain reader for comparison: python dicts and lists, one row at a time, with nothing of satrap's but the spec."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from xxhash import xxh3_64_intdigest

from satrap.data import Batch, Reader
from satrap.schema import Categorical, Data, Feature, Job, Label, Numeric, Train
from satrap.schema import Sequence as SequenceFeature

Row = dict[str, Any]
MISSING = 0x22D7703BFDABFDF9


def job_of(*features: Feature, batch: int = 4, data: dict[str, Any] | None = None) -> Job:
    """A job with label `y` over the features."""
    settings: dict[str, Any] = {"train": ("unused",), "label": (Label(column="y"),), "valid": 0.0, "shuffle_rows": 8}
    return Job(data=Data(**(settings | (data or {}))), features=features, train=Train(batch_size=batch))


def write(path: Path, table: pa.Table | dict[str, Any], **options: Any) -> Path:
    pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), path, **options)
    return path


def whole_epoch(job: Job, path: Any, **options: Any) -> Batch:
    """All rows in file order as one batch."""
    big = job_of(*job.features, batch=1_000_000, data={f: getattr(job.data, f) for f in Data.__struct_fields__})
    (batch,) = Reader(big, path, **({"seed": 0, "shuffle": False} | options)).epoch()
    return batch


def rows_in(batches: Iterable[Batch]) -> list[tuple[Any, ...]]:
    """Every row of the batches as plain values that compare: ids and weights by feature, numbers, labels, weight."""
    rows = []
    for batch in batches:
        for i in range(batch.size):
            ids = []
            for jagged in batch.ids.values():
                a, b = (i, i + 1) if jagged.offsets is None else jagged.offsets[i : i + 2].tolist()
                weights = None if jagged.weights is None else tuple(jagged.weights[a:b].tolist())
                ids.append((tuple(jagged.values[a:b].tolist()), weights))
            weight = None if batch.weights is None else float(batch.weights[i])
            rows.append((tuple(ids), tuple(batch.numeric[i].tolist()), tuple(batch.labels[i].tolist()), weight))
    return rows


def expected_row(job: Job, row: Row) -> tuple[Any, ...]:
    """What `rows_in` should hold for one row of plain values."""
    ids = tuple(expected_ids(f, row) for f in job.id_features)
    numbers = [x for f in job.numeric_features for x in expected_numbers(f, row)]
    labels = tuple(float(row[x.column]) for x in job.data.label)
    weight = None if job.data.weight is None else float(np.float32(row[job.data.weight]))
    return (ids, tuple(numbers), labels, weight)


def expected_id(value: Any) -> int:
    if isinstance(value, str | bytes):
        return xxh3_64_intdigest(value.encode() if isinstance(value, str) else value)
    return int(value) % 2**64


def expected_ids(feature: Categorical | SequenceFeature, row: Row) -> tuple[tuple[int, ...], tuple[float, ...] | None]:
    value = row[feature.column or feature.name]
    weight_column = feature.weights if isinstance(feature, Categorical) else None
    given = row[weight_column] if weight_column is not None else None
    if value is None:
        pairs = [(MISSING, 1.0 if isinstance(given, list) or given is None else given)]
        pairs = pairs if feature.missing == "id" else []
    elif isinstance(value, list):
        pairs = list(zip(value, given if given is not None else [1.0] * len(value), strict=True))
        if feature.missing == "empty":
            pairs = [(v, w) for v, w in pairs if v is not None]
        pairs = [(MISSING if v is None else expected_id(v), w) for v, w in pairs]
    else:
        pairs = [(expected_id(value), given)]
    if feature.max_length is not None:
        pairs = pairs[-feature.max_length :] if isinstance(feature, SequenceFeature) else pairs[: feature.max_length]
    weights = None if weight_column is None else tuple(float(np.float32(w)) for _, w in pairs)
    return tuple(v for v, _ in pairs), weights


def expected_numbers(feature: Numeric, row: Row) -> list[float]:
    value = row[feature.column or feature.name]
    values = value if isinstance(value, list) else [value] * feature.width
    out, missing = [], False
    for v in values:
        if v is None or not math.isfinite(v):
            missing = True
            out.append(feature.fill)
            continue
        if feature.transform == "log":
            v = math.copysign(math.log1p(abs(v)), v)
        elif feature.transform == "sqrt":
            v = math.copysign(math.sqrt(abs(v)), v)
        if feature.scale == "standard":
            assert feature.mean is not None
            assert feature.std is not None
            v = (v - feature.mean) / feature.std
        out.append(v)
    numbers = [float(np.float32(v)) for v in out]
    return [*numbers, float(missing)] if feature.indicator else numbers


def same_bits(a: Sequence[Batch], b: Sequence[Batch]) -> bool:
    """Whether two runs of batches are the same bit for bit, positions and the presence of offsets included."""
    return len(a) == len(b) and all(_same_batch(x, y) for x, y in zip(a, b, strict=True))


def _same_batch(a: Batch, b: Batch) -> bool:
    ids = a.ids.keys() == b.ids.keys() and all(
        _same(getattr(a.ids[n], part), getattr(b.ids[n], part))
        for n in a.ids
        for part in ("values", "offsets", "weights")
    )
    arrays = _same(a.numeric, b.numeric) and _same(a.labels, b.labels) and _same(a.weights, b.weights)
    return a.size == b.size and a.position == b.position and ids and arrays


def _same(a: Any, b: Any) -> bool:
    if a is None or b is None:
        return a is b
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
