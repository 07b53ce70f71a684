"""Jobs, batches and files for the tests of training: small, random, from a seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from satrap.data.batch import Batch, Jagged, Position
from satrap.schema import (
    MLP,
    Adam,
    Categorical,
    Data,
    Job,
    Label,
    Numeric,
    RowWiseAdagrad,
    Sequence,
    Store,
    Table,
    Train,
    Uniform,
)


def random_batches(job: Job, sizes: list[int], seed: int, vocabulary: int = 6, longest: int = 4) -> list[Batch]:
    """Batches that fit a job: few distinct ids, so that rows repeat within and across batches; empty lists too."""
    rng = np.random.default_rng(seed)
    batches, row = [], 0
    for size in sizes:
        row += size
        n = sum(f.width + int(f.indicator) for f in job.numeric_features)
        ids = {}
        for f in job.id_features:
            single = isinstance(f, Categorical) and f.weights is None and rng.random() < 0.3
            # The reader has cut lists to a feature's max_length.
            limit = min(longest, f.max_length or longest)
            lengths = np.ones(size, np.int64) if single else rng.integers(0, limit + 1, size)
            values = rng.integers(0, vocabulary, lengths.sum()).astype(np.uint64)
            weights = None
            if isinstance(f, Categorical) and f.weights is not None:
                weights = rng.uniform(0.2, 2.0, len(values)).astype(np.float32)
            offsets = None if single else np.concatenate([[0], np.cumsum(lengths)])
            ids[f.name] = Jagged(values, offsets, weights)
        batches.append(
            Batch(
                size=size,
                numeric=rng.standard_normal((size, n)).astype(np.float32),
                ids=ids,
                labels=(rng.random((size, len(job.data.label))) < 0.4).astype(np.float32),
                weights=rng.uniform(0.1, 3.0, size).astype(np.float32) if job.data.weight else None,
                position=Position(0, 0, row),
            )
        )
    return batches


def click_file(path: Path, rows: int, seed: int = 0, *, bad_price_at: int | None = None) -> str:
    """A Parquet file with a single id, a weighted list of ids, a history, a number, a sample weight and two labels."""
    rng = np.random.default_rng(seed)
    user, price = rng.integers(0, 50, rows), rng.standard_normal(rows).astype(np.float32)
    lengths = rng.integers(0, 4, rows)
    tags = [rng.integers(0, 20, n).tolist() for n in lengths]
    history = [rng.integers(0, 30, n).tolist() for n in rng.integers(0, 6, rows)]
    score = np.sin(user) + 0.5 * price + np.array([0.3 * sum(1 if t < 5 else -1 for t in ts) for ts in tags])
    click = (rng.random(rows) < 1 / (1 + np.exp(-score))).astype(np.int64)
    if bad_price_at is not None:
        price[bad_price_at] = np.float32(3e38)
    table = pa.table(
        {
            "user": user,
            "tags": tags,
            "tag_weights": [rng.uniform(0.5, 1.5, n).astype(np.float32).tolist() for n in lengths],
            "history": history,
            "price": price,
            "weight": rng.uniform(0.5, 2.0, rows).astype(np.float32),
            "click": click,
            "buy": (click * (rng.random(rows) < 0.5)).astype(np.int64),
        }
    )
    pq.write_table(table, path, row_group_size=100)
    return str(path)


def click_job(folder: Path, rows: int = 600, *, changes: dict[str, Any] | None = None, **train: Any) -> Job:
    """A job on `click_file`s made in `folder`, in synchronous mode unless told otherwise."""
    train_file, test_file = folder / "train.parquet", folder / "test.parquet"
    if not train_file.exists():
        click_file(train_file, rows, seed=1)
        click_file(test_file, 200, seed=2)
    settings: dict[str, Any] = {
        "batch_size": 32,
        "staleness": 0,
        "threads": 1,
        "optimizer": Adam(lr=0.01),
        "embedding_optimizer": RowWiseAdagrad(lr=0.05),
        **train,
    }
    data = Data(train=(str(train_file),), test=(str(test_file),), label=(Label(column="click"),), valid=0.2)
    small = Uniform(low=-0.1, high=0.1)
    job = Job(
        name="clicks",
        data=msgspec.structs.replace(data, shuffle_rows=128),
        features=(
            Categorical(name="user"),
            Categorical(name="tags", weights="tag_weights"),
            Sequence(name="history", max_length=4),
            Numeric(name="price"),
        ),
        tables=tuple(Table(name=n, dim=4, initializer=small) for n in ("user", "tags", "history")),
        model=MLP(hidden=(16,), dropout=0.2),
        train=Train(**settings),
        store=Store(partitions=4),
        seed=3,
    )
    return msgspec.structs.replace(job, **(changes or {}))
