"""What `python -m benchmarks modes` trains: data sets, and a case of each run. No training here."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.harness import REPOSITORY
from benchmarks.peers.loop import DENSE_LR, EMBEDDING_EPS, EMBEDDING_LR
from benchmarks.synthetic import CATEGORICAL, NUMERIC, Dataset
from satrap.schema import (
    MLP,
    Adagrad,
    Adam,
    Admission,
    Capacity,
    Categorical,
    Data,
    Hashed,
    Job,
    Label,
    Numeric,
    QuotientRemainder,
    Rounding,
    RowWiseAdagrad,
    StateFormat,
    Table,
    Train,
    ValueFormat,
    WireFormat,
    load_job,
    override,
)
from satrap.schema import Sequence as SequenceFeature
from satrap.schema import Store as StoreSpec

REAL = {"ml-1m": ("examples/ml-1m/job.yaml", "ml-1m"), "criteo_80k": ("examples/criteo-80k/job.yaml", "criteo_80k")}
"""Data set → its example job, and the folder of its files."""

LEAST_IDS = 512
"""A table of fewer is left as it is: bounds are for what is large."""


def _share(ids: int, part: int) -> int:
    return max(64, ids // part)


BOUNDS: dict[str, Callable[[int], dict[str, Any]]] = {
    "recency 1/2": lambda n: {"capacity": Capacity(rows=_share(n, 2))},
    "recency 1/4": lambda n: {"capacity": Capacity(rows=_share(n, 4))},
    "frequency 1/2": lambda n: {"capacity": Capacity(rows=_share(n, 2), evict="frequency")},
    "frequency 1/4": lambda n: {"capacity": Capacity(rows=_share(n, 4), evict="frequency")},
    "admit 2": lambda n: {"admit": Admission(sightings=2, window=max(4096, n))},
    "admit 4": lambda n: {"admit": Admission(sightings=4, window=max(4096, n))},
    "admit 2, frequency 1/4": lambda n: {
        "admit": Admission(sightings=2, window=max(4096, n)),
        "capacity": Capacity(rows=_share(n, 4), evict="frequency"),
    },
    "hash 1/4": lambda n: {"ids": Hashed(rows=_share(n, 4))},
    "2 hashes 1/4": lambda n: {"ids": Hashed(rows=_share(n, 4), hashes=2)},
    "quotient-remainder": lambda n: {"ids": QuotientRemainder(rows=4 * math.isqrt(n))},
}
"""What bounds the tables of a case, by the distinct ids n of its training data: a part of n rows, kept by eviction,
waited for, or shared."""

OPTIMIZERS = {
    "rowwise": RowWiseAdagrad(lr=EMBEDDING_LR, eps=EMBEDDING_EPS),
    # The original's Adagrad, as it was measured: its accumulators start at 0.01, so its first steps are short.
    "original": Adagrad(lr=EMBEDDING_LR, initial_accumulator=0.01),
}


@dataclass(frozen=True, slots=True)
class Case:
    """One training run. Equal cases are the same run."""

    data: str
    """"synthetic", or a key of `REAL`."""
    seed: int
    """Of weights, rows and order; for synthetic data also which of its files is trained on."""
    staleness: int
    dense_mode: str = "sync"
    workers: int = 1
    wire: str = "fp32"
    batch: int | None = None
    """None: the example job's."""
    rows: str = "rowwise"
    """For synthetic data: a key of `OPTIMIZERS`."""
    overrides: tuple[str, ...] = ()
    """More settings of the job, as on the command line."""
    format: str = "fp32"
    """Of rows."""
    rounding: str | None = None
    """Of their updates; None: the format's."""
    state: str = "fp32"
    """Of Adam's moments of rows."""
    bounds: str | None = None
    """A key of `BOUNDS`: what keeps its tables small. None: nothing does."""

    @property
    def key(self) -> str:
        """Names the run in a file of results. What came later is left out at its default: older files still hold."""
        later = {"format": "fp32", "rounding": None, "state": "fp32", "bounds": None}
        return json.dumps({k: v for k, v in asdict(self).items() if k not in later or v != later[k]}, sort_keys=True)

    @property
    def paired(self) -> tuple[Any, ...]:
        """Equal for the cases of one side of a comparison: all but the seed."""
        return tuple(v for k, v in asdict(self).items() if k != "seed")

    @property
    def mode(self) -> str:
        """What it is called in tables."""
        if self.stored != "fp32":
            return self.stored
        if self.dense_mode == "async":
            return f"asynchronous {self.staleness}"
        return "synchronous" if self.staleness == 0 else f"hybrid {self.staleness}"

    @property
    def stored(self) -> str:
        """How rows are kept."""
        text = " ".join(filter(None, (self.format, self.rounding)))
        text += "" if self.state == "fp32" else f", moments {self.state}"
        return text if self.bounds is None else self.bounds if text == "fp32" else f"{text}, {self.bounds}"


def missing(data: str, real: Path | None) -> str | None:
    """Why a data set cannot be trained on here; None where it can."""
    if data not in REAL:
        return None
    if real is None:
        return "its files may not be passed on: give the folder that holds them with --real-data"
    absent = [p for p in (real / REAL[data][1] / f"{s}.parquet" for s in ("train", "valid", "test")) if not p.exists()]
    return f"{absent[0]} is not there" if absent else None


def job_of(case: Case, synthetic: Dataset | None, real: Path | None) -> Job:
    """The job of a case."""
    job = _synthetic(case, synthetic) if case.data == "synthetic" and synthetic is not None else _real(case, real)
    train: dict[str, Any] = {"staleness": case.staleness, "dense_mode": case.dense_mode, "threads": 1}
    if case.batch is not None:
        train["batch_size"] = case.batch
    if case.state != "fp32":
        train["embedding_optimizer"] = msgspec.structs.replace(
            job.train.embedding_optimizer, state=StateFormat(case.state)
        )
    rows: dict[str, Any] = {
        "dim": job.default_dim,
        "wire": WireFormat(case.wire),
        "format": ValueFormat(case.format),
        "rounding": None if case.rounding is None else Rounding(case.rounding),
    }
    job = msgspec.structs.replace(
        job,
        train=msgspec.structs.replace(job.train, **train),
        store=StoreSpec(threads=1, partitions=64),
        tables=tuple(Table(name=f.name, **rows, **_bounded(case, job, f)) for f in job.id_features),
        seed=case.seed,
    )
    return override(job, list(case.overrides)) if case.overrides else job


def _bounded(case: Case, job: Job, feature: Categorical | SequenceFeature) -> dict[str, Any]:
    """The settings that bound a feature's table; none where it has few ids."""
    if case.bounds is None:
        return {}
    ids = distinct(tuple(job.data.train), feature.column or feature.name)
    return BOUNDS[case.bounds](ids) if ids >= LEAST_IDS else {}


@cache
def distinct(files: tuple[str, ...], column: str) -> int:
    """Different ids of a column, of lists too, in some files."""
    found: set[Any] = set()
    for file in files:
        values = pq.read_table(file, columns=[column])[column].combine_chunks()
        while pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
            values = values.flatten()
        found |= set(values.unique().to_pylist())
    return len(found - {None})


def _synthetic(case: Case, data: Dataset) -> Job:
    """The network of the speed comparisons; seed s trains on the s-th file, in its order."""
    file = data.train[case.seed % len(data.train)]
    return Job(
        name="synthetic",
        data=Data(
            train=(str(file),),
            test=tuple(map(str, data.test)),
            label=(Label(column="label"),),
            valid=0.0,
            shuffle_rows=0,
        ),
        features=(*(Numeric(name=n) for n in NUMERIC), *(Categorical(name=n) for n in CATEGORICAL)),
        model=MLP(hidden=(256, 64), numeric_hidden=(64,)),
        train=Train(optimizer=Adam(lr=DENSE_LR), embedding_optimizer=OPTIMIZERS[case.rows], device="cpu"),
    )


def _real(case: Case, real: Path | None) -> Job:
    assert real is not None
    job, folder = REAL[case.data]
    files = [f"data.{s}={real / folder / f'{s}.parquet'}" for s in ("train", "valid", "test")]
    return override(load_job(REPOSITORY / job), [*files, "train.device=cpu"])


def seeds(cases: Sequence[Case]) -> list[int]:
    """The seeds of some cases, each once, in order."""
    return list(dict.fromkeys(c.seed for c in cases))
