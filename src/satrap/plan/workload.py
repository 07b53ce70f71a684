"""What a job asks of a cluster: its tables by rows and ids, its network by parameters.

B samples of a step, W workers, R rows of a table, U distinct ids of a batch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from satrap.errors import JobError, did_you_mean
from satrap.plan.constants import JobCost
from satrap.plan.layout import NO_BOUNDS, Bounds, bounds_of
from satrap.schema import MLP, Categorical, DCNv2, DeepFM, Job, Optimizer, RowWiseAdagrad, Table, WideDeep, WireFormat
from satrap.schema import Sequence as SequenceFeature
from satrap.schema.models import DLRM

ZIPF = 1.05
"""Exponent of how often ids come, where nothing was measured."""
FLOP_PER_PARAMETER = 6
"""Of a sample: a multiplication and an addition forward, twice as many backward."""
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12, "P": 10**15}


def quantity(text: str) -> float:
    """A number with a unit of thousands: k, M, B (or G), T, P. Raises JobError.

    >>> quantity("100T"), quantity("6.25T"), quantity("2e9"), quantity("12k")
    (100000000000000.0, 6250000000000.0, 2000000000.0, 12000.0)
    """
    match = re.fullmatch(r"([0-9][0-9_]*(?:\.[0-9]+)?(?:e\+?[0-9]+)?)([kMBGTP]?)", text.strip())
    if match is None:
        raise JobError(f"'{text}' is no quantity; write 100T, 6.25T, 2e9 or 800M")
    return float(match[1].replace("_", "")) * _UNITS[match[2]]


@dataclass(frozen=True, slots=True)
class TableLoad:
    """A table, as large as it is planned."""

    name: str
    dim: int
    row_format: str
    wire: WireFormat
    optimizer: Optimizer
    rows: float
    """Materialised: that exist once training has seen them."""
    addressable_rows: float
    """That its ids can name."""
    ids_per_sample: float
    bounds: Bounds = NO_BOUNDS
    """What limits it, and what that costs."""
    hashed: bool = True
    """Ids are 64-bit hashes of text, which may collide; integers do not."""
    zipf: float = ZIPF
    measured_unique: float | None = None
    """Distinct ids of a batch of `measured_batch`."""
    measured_batch: int = 0
    rows_measured: int = 0
    """The table in which finding a row was measured had so many."""

    def unique(self, samples: float) -> float:
        """U of a batch of so many samples: the mean. What was measured is carried to other batches in proportion."""
        modelled = expected_unique(samples * self.ids_per_sample, self.rows, self.zipf)
        if not self.measured_unique:
            return modelled
        at = expected_unique(self.measured_batch * self.ids_per_sample, self.rows, self.zipf)
        return min(self.measured_unique * modelled / at, samples * self.ids_per_sample)


@dataclass(frozen=True, slots=True)
class Workload:
    """What is trained."""

    name: str
    tables: tuple[TableLoad, ...]
    batch_size: int
    """B, of all workers together."""
    staleness: int
    columns: int
    """Values of all pooled features of a sample."""
    other_bytes: int
    """Numbers and labels of a sample."""
    dense_parameters: int | None
    """None: a network of the user's own that was not measured."""
    partitions: int
    store_threads: int | None = None
    """Of a server's lookups and updates, where one machine is for all. None: the server's share of its cores."""

    @property
    def parameters(self) -> float:
        """Materialised: rows that exist, times dim."""
        return sum(t.rows * t.dim for t in self.tables)

    @property
    def addressable_parameters(self) -> float:
        """What ids can name, times dim."""
        return sum(t.addressable_rows * t.dim for t in self.tables)

    @property
    def ids_per_sample(self) -> float:
        """Over all tables."""
        return sum(t.ids_per_sample for t in self.tables)

    @property
    def dense_flop(self) -> float:
        """Of a sample, forward and backward."""
        return float(FLOP_PER_PARAMETER * (self.dense_parameters or 0))


def workload_of(
    job: Job,
    *,
    rows: Mapping[str, float] | None = None,
    parameters: float | None = None,
    materialised: float = 1.0,
    row_format: str | None = None,
    zipf: float = ZIPF,
    measured: JobCost | None = None,
) -> Workload:
    """A job with the size of its tables: `rows` by table name ("" for all others), or `parameters` in all, divided
    among the tables by their measured or else equal rows; or, of a measured job, the rows that its data had; or else
    what the table is bounded to. No table is planned with more rows than its capacity or its fixed size.

    `materialised`: share of the rows that will exist. `row_format`: of all tables, instead of their own.
    Raises JobError where a table's size is not known.
    """
    tables = job.resolved_tables()
    seen = {t.name: t for t in measured.tables} if measured else {}
    known = {t.name: bounds_of(t, row_format or t.format.value, job.store.partitions) for t in tables}
    most = {n: b.capacity for n, b in known.items() if math.isfinite(b.capacity)}
    sizes = _sizes(tables, rows or {}, parameters, {**most, **{n: float(t.rows_seen) for n, t in seen.items()}})
    loads = []
    for t in tables:
        s = seen.get(t.name)
        load = TableLoad(
            name=t.name,
            dim=t.dim,
            row_format=row_format or t.format.value,
            wire=t.wire,
            optimizer=t.optimizer or RowWiseAdagrad(),
            rows=min(sizes[t.name] * materialised, known[t.name].capacity),
            addressable_rows=sizes[t.name],
            ids_per_sample=s.ids_per_sample if s else t.rows_per_id * _ids_per_sample(job, t.name),
            zipf=zipf,
            bounds=known[t.name],
        )
        if s and measured:
            load = replace(
                load, measured_unique=s.unique_per_batch, measured_batch=measured.batch_size, rows_measured=s.rows_seen
            )
        loads.append(load)
    numbers = sum(f.width * (2 if f.indicator else 1) for f in job.numeric_features)
    dims = {t.name: t.dim for t in tables}
    return Workload(
        name=job.name,
        tables=tuple(loads),
        batch_size=job.train.batch_size,
        staleness=job.train.staleness,
        columns=sum(dims[job.table_of(f)] * _slots(f) for f in job.id_features),
        other_bytes=4 * (numbers + len(job.data.label)),
        dense_parameters=measured.dense_parameters if measured else dense_parameters(job),
        partitions=job.store.partitions,
        store_threads=job.store.threads,
    )


def target(
    parameters: float,
    *,
    dim: int,
    row_format: str,
    ids_per_sample: float = 26,
    batch_size: int = 65_536,
    materialised: float = 1.0,
    wire: WireFormat = WireFormat.FP16,
    zipf: float = ZIPF,
    dense_parameters: int = 12_000_000,
    staleness: int = 8,
) -> Workload:
    """A size without a job: one table of so many parameters, a click model of Criteo's shape above it."""
    rows = parameters / dim
    table = TableLoad(
        "all", dim, row_format, wire, RowWiseAdagrad(), rows * materialised, rows, ids_per_sample, zipf=zipf
    )
    return Workload(
        name=f"{parameters / 1e12:g} trillion parameters" if parameters >= 1e12 else f"{parameters:.3g} parameters",
        tables=(table,),
        batch_size=batch_size,
        staleness=staleness,
        columns=round(dim * ids_per_sample),
        other_bytes=4 * 14,
        dense_parameters=dense_parameters,
        partitions=1 << max(6, math.ceil(math.log2(rows / 2**30))),
    )


def _sizes(
    tables: Sequence[Table], rows: Mapping[str, float], parameters: float | None, seen: Mapping[str, float]
) -> dict[str, float]:
    names = [t.name for t in tables]
    for name in rows:
        if name and name not in names:
            raise JobError(f"--rows {name}=…: the job has no table '{name}'; {did_you_mean(name, names)}")
    if parameters is not None:
        if rows:
            raise JobError("--parameters and --rows both say how large the tables are; give one of them")
        weight = {t.name: seen.get(t.name, 1.0) for t in tables}
        unit = parameters / sum(weight[t.name] * t.dim for t in tables)
        return {name: weight[name] * unit for name in names}
    sizes = {}
    for name in names:
        size = rows.get(name, rows.get("", seen.get(name)))
        if size is None:
            raise JobError(
                f"how many rows will table '{name}' have? Give --rows {name}=2e9 (or --rows 2e9 for every table), "
                "--parameters 100T for all together, or --constants FILE of `satrap calibrate JOB.YAML`, which counts "
                "the ids of the job's data"
            )
        sizes[name] = size
    return sizes


def _ids_per_sample(job: Job, table: str) -> float:
    """One a feature; a list counts as its `max_length`, or as one where it has none."""
    return float(sum(_slots(f) or 1 for f in job.id_features if job.table_of(f) == table) or 1)


def _slots(feature: Categorical | SequenceFeature) -> int:
    return feature.max_length if isinstance(feature, SequenceFeature) else 1


def dense_parameters(job: Job) -> int | None:
    """Weights of a built-in network, biases and norms left out; None for the user's own.

    >>> from satrap.schema import Categorical, Data, Label, Numeric
    >>> job = Job(data=Data(train=("a.csv",), label=(Label(column="y"),)),
    ...           features=(Categorical(name="u"), Numeric(name="x")), default_dim=15, model=MLP(hidden=(8,)))
    >>> dense_parameters(job)
    136
    """
    dims = {t.name: t.dim for t in job.resolved_tables()}
    pooled = sum(dims[job.table_of(f)] for f in job.id_features)
    numbers = sum(f.width * (2 if f.indicator else 1) for f in job.numeric_features)
    labels, model = len(job.data.label), job.model
    match model:
        case MLP():
            arm = (numbers, *model.numeric_hidden)
            return _layers(arm) + _layers((pooled + arm[-1], *model.hidden, labels))
        case DeepFM() | WideDeep():
            return _layers((pooled + numbers, *model.hidden, labels)) + numbers
        case DCNv2():
            width = pooled + numbers
            cross = model.cross_layers * (2 * width * model.low_rank if model.low_rank else width * width)
            stacked = model.structure == "stacked"
            return cross + _layers((width, *model.hidden)) + labels * (model.hidden[-1] + (0 if stacked else width))
        case DLRM():
            dim, vectors = next(iter(dims.values())), len(job.id_features) + (1 if numbers else 0)
            pairs = vectors * (vectors - 1) // 2
            return (
                _layers((numbers, *model.bottom, dim)) + _layers((pairs + dim, *model.top, labels)) + pairs * dim // 2
            )
        case _:
            return None


def _layers(widths: Sequence[int]) -> int:
    return sum(a * b for a, b in pairwise(widths))


def expected_unique(ids: float, rows: float, zipf: float) -> float:
    """Mean number of distinct ids among so many, drawn from so many rows with P(k) ∝ k^-zipf.

    Σ_k 1 - (1 - p_k)^n, the first thousand ranks one by one, the others in runs of a twentieth of their rank.

    >>> round(expected_unique(1, 1e9, 1.05), 1), expected_unique(1e9, 10, 1.0)
    (1.0, 10.0)
    """
    if ids <= 0 or rows < 1:
        return 0.0
    runs = _runs(rows)
    weight = sum(width * rank**-zipf for rank, width in runs)
    return float(sum(-width * math.expm1(-ids * rank**-zipf / weight) for rank, width in runs))


def _runs(rows: float) -> list[tuple[float, float]]:
    """(rank in the middle, ranks) of runs of ranks."""
    head = int(min(rows, 1000))
    runs = [(float(k), 1.0) for k in range(1, head + 1)]
    at = float(head)
    while at < rows:
        width = min(max(1.0, at / 20), rows - at)
        runs.append((at + (width + 1) / 2, width))
        at += width
    return runs
