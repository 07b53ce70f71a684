"""What the types of a job cannot say: ranges, duplicates, names of nothing, settings that do not go together.

One function a part of the job. Every message begins with the dotted path of the setting, as an override would name it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import isfinite
from typing import TYPE_CHECKING, Any

import msgspec

from satrap.errors import JobError, did_you_mean
from satrap.schema.features import Categorical, Numeric, Sequence
from satrap.schema.models import DLRM, Custom, DCNv2, DeepFM, ModelSpec
from satrap.schema.optimizers import Ftrl, Optimizer, RowWiseAdagrad, StateFormat
from satrap.schema.tables import (
    DENSE_TABLE,
    Hashed,
    Normal,
    QuotientRemainder,
    Table,
    TruncatedNormal,
    Uniform,
    ValueFormat,
)

if TYPE_CHECKING:
    from satrap.schema.job import Data, Job, Store, Train

STALENESS_MAX = 255
DIM_MAX = 4096
THREADS_MAX = 1024
PARTITIONS_MAX = 65536


def check(job: Job) -> None:
    """Raises JobError for the first thing wrong."""
    _need(job.name.strip() != "" and "/" not in job.name, "name", f"must name a folder, got {job.name!r}")
    _need(0 <= job.seed < 2**63, "seed", f"must be 0 to 2^63 - 1, got {job.seed}")
    _finite(job, "")
    _data(job.data)
    _features(job)
    _tables(job)
    _model(job.model, job)
    _train(job.train)
    _store(job.store)
    for where, wanted in (
        ("train.early_stopping", job.train.early_stopping),
        ("train.checkpoint.best", job.train.checkpoint.best),
    ):
        needs = "needs validation rows; set data.valid to a fraction or to files"
        _need(wanted is None or bool(job.data.valid), where, needs)


def _need(ok: bool, where: str, message: str) -> None:
    if not ok:
        raise JobError(f"{where}: {message}")


def _least(where: str, value: float | None, least: int) -> None:
    _need(value is None or value >= least, where, f"must be {least} or more, got {value}")


def _above_zero(where: str, value: float | None) -> None:
    _need(value is None or value > 0, where, f"must be above 0, got {value}")


def _between(where: str, value: int | None, low: int, high: int) -> None:
    _need(value is None or low <= value <= high, where, f"must be {low} to {high}, got {value}")


def _unique(names: Iterable[str], where: str) -> None:
    seen: set[str] = set()
    for name in names:
        _need(name != "", where, "a name is empty")
        _need(name not in seen, where, f"the name '{name}' is used twice; names must be unique")
        seen.add(name)


def _finite(spec: msgspec.Struct, where: str) -> None:
    """Refuses NaN and infinity in every number of the job: no setting has a use for them."""
    for path, value in _numbers(spec, where):
        _need(isfinite(value), path, f"must be a finite number, got {value}")


def _numbers(value: Any, where: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, float):
        yield where, value
    elif isinstance(value, tuple):
        for i, item in enumerate(value):
            yield from _numbers(item, f"{where}.{getattr(item, 'name', i)}")
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield from _numbers(getattr(value, name), f"{where}.{name}" if where else name)


def _data(d: Data) -> None:
    _need(len(d.train) > 0, "data.train", "no files given")
    _need(len(d.label) > 0, "data.label", "no label given; name the column that holds 0 or 1")
    if isinstance(d.valid, float | int):
        _need(0 <= d.valid < 1, "data.valid", f"a fraction must be in [0, 1), got {d.valid}")
    _least("data.shuffle_rows", d.shuffle_rows, 0)
    labels = [x.column for x in d.label]
    _unique(labels, "data.label")
    _need(d.weight is None or d.weight not in labels, "data.weight", f"'{d.weight}' is the label")


def _features(job: Job) -> None:
    _need(len(job.features) > 0, "features", "no features given")
    _unique((f.name for f in job.features), "features")
    labels = {x.column for x in job.data.label}
    for f in job.features:
        where = f"features.{f.name}"
        _need((f.column or f.name) not in labels, where, "is the label; a feature must not be")
        if isinstance(f, Numeric):
            _numeric(f, where)
        else:
            _least(f"{where}.max_length", f.max_length, 1)
        if isinstance(f, Categorical):
            _categorical(f, where, labels)


def _numeric(f: Numeric, where: str) -> None:
    _least(f"{where}.width", f.width, 1)
    _above_zero(f"{where}.std", f.std)
    _need((f.mean is None) == (f.std is None), where, "give both mean and std, or neither")
    _need(f.mean is None or f.scale == "standard", f"{where}.mean", "is used with scale: standard only")
    filled = f.missing == "fill" or (f.fill == 0 and not f.indicator)
    _need(filled, f"{where}.missing", "with missing: error nothing is ever filled; fill and indicator have no use")


def _categorical(f: Categorical, where: str, labels: set[str]) -> None:
    _need(f.weights is None or f.weights not in labels, f"{where}.weights", f"'{f.weights}' is the label")
    if f.buckets is not None:
        _need(len(f.buckets) > 0, f"{where}.buckets", "no boundaries given")
        _need(list(f.buckets) == sorted(set(f.buckets)), f"{where}.buckets", "boundaries must ascend")


def _tables(job: Job) -> None:
    _between("default_dim", job.default_dim, 1, DIM_MAX)
    _unique((t.name for t in job.tables), "tables")
    used = {job.table_of(f) for f in job.id_features}
    _need(DENSE_TABLE not in used, "features", f"a table cannot be named '{DENSE_TABLE}': the dense weights' table is")
    for table in job.tables:
        where = f"tables.{table.name}"
        _need(table.name in used, where, f"no feature uses this table; {did_you_mean(table.name, used)}")
        _between(f"{where}.dim", table.dim, 1, DIM_MAX)
        _above_zero(f"{where}.max_gradient", table.max_gradient)
        rounded = table.rounding is None or table.format is not ValueFormat.FP32
        _need(rounded, f"{where}.rounding", "fp32 rounds nothing; set format to fp16, bf16 or int8")
        _initializer(table, f"{where}.initializer")
        if table.optimizer is not None:
            _optimizer(table.optimizer, f"{where}.optimizer")
        _bounds(table, where, job.store.partitions)
        _ids(table, where, job)


def _ids(table: Table, where: str, job: Job) -> None:
    if table.ids is None:
        return
    most = 2**32 - 1 if isinstance(table.ids, QuotientRemainder) else 2**63
    _between(f"{where}.ids.rows", table.ids.rows, 1, most)
    if isinstance(table.ids, Hashed):
        _between(f"{where}.ids.hashes", table.ids.hashes, 1, 8)
    message = "the table has a fixed size, and its rows are shared; leave out capacity, expire and admit"
    _need(not table.bounded, f"{where}.ids", message)
    one = [f.name for f in job.id_features if isinstance(f, Sequence) and job.table_of(f) == table.name]
    _need(
        table.rows_per_id == 1 or not one,
        f"{where}.ids",
        f"a sequence has one row an id, and '{one[0] if one else ''}' is one; use hashed with hashes: 1",
    )


def _bounds(table: Table, where: str, partitions: int) -> None:
    c, e, a = table.capacity, table.expire, table.admit
    if c is not None:
        at = f"{where}.capacity"
        _need((c.rows is None) != (c.bytes is None), at, "give rows or bytes, one of the two")
        _need(
            c.rows is None or c.rows >= partitions,
            f"{at}.rows",
            f"must be a row or more for each partition (store.partitions: {partitions}), got {c.rows}",
        )
        _above_zero(f"{at}.bytes", c.bytes)
    if table.cold is not None:
        at, k = f"{where}.cold", table.cold
        _need(
            (k.memory_rows is None) != (k.memory_bytes is None), at, "give memory_rows or memory_bytes, one of the two"
        )
        _need(
            k.memory_rows is None or k.memory_rows >= partitions,
            f"{at}.memory_rows",
            f"must be a row or more for each partition (store.partitions: {partitions}), got {k.memory_rows}",
        )
        _above_zero(f"{at}.memory_bytes", k.memory_bytes)
        _need(
            c is None, at, "rows beyond the memory go to disk, rows beyond a capacity for good; leave one of them out"
        )
        _need(e is None, at, "rows on disk do not expire; leave out cold or expire")
    if e is not None:
        _need((e.steps is None) != (e.seconds is None), f"{where}.expire", "give steps or seconds, one of the two")
        _least(f"{where}.expire.steps", e.steps, 1)
        _least(f"{where}.expire.seconds", e.seconds, 1)
    if a is not None:
        _between(f"{where}.admit.sightings", a.sightings, 2, 255)
        _between(f"{where}.admit.window", a.window, partitions, 1 << 40)


def _initializer(table: Table, where: str) -> None:
    made = table.initializer
    if isinstance(made, Uniform):
        _need(made.low <= made.high, where, f"low must not be above high, got {made.low} and {made.high}")
    elif isinstance(made, Normal | TruncatedNormal):
        _least(f"{where}.std", made.std, 0)


def _model(model: ModelSpec, job: Job) -> None:
    if isinstance(model, Custom):
        module, _, name = model.path.partition(":")
        _need(
            bool(module) and name.isidentifier(), "model.path", f"write it as package.module:Class, got '{model.path}'"
        )
        return
    for field in ("hidden", "numeric_hidden", "bottom", "top"):
        for i, width in enumerate(getattr(model, field, ())):
            _least(f"model.{field}.{i}", width, 1)
    _need(0 <= model.dropout < 1, "model.dropout", f"must be in [0, 1), got {model.dropout}")
    if isinstance(model, DCNv2):
        _least("model.cross_layers", model.cross_layers, 1)
        _least("model.low_rank", model.low_rank, 1)
    if isinstance(model, DLRM | DeepFM):
        dims = {t.name: t.dim for t in job.resolved_tables() if t.name != DENSE_TABLE}
        name = type(model).__name__
        _need(len(dims) > 0, "model", f"{name} needs features with embeddings, and all of this job's are numeric")
        _need(len(set(dims.values())) == 1, "model", f"{name} needs tables of one dim, got {dims}")
        smallest = min(dims.values())
        _need(
            not isinstance(model, DeepFM) or smallest >= 2, "model", f"{name} needs tables of dim 2 or more, got {dims}"
        )


def _train(t: Train) -> None:
    _least("train.batch_size", t.batch_size, 1)
    whole = f"must be 1 to batch_size ({t.batch_size}), got {t.micro_batch_size}"
    _need(t.micro_batch_size is None or 1 <= t.micro_batch_size <= t.batch_size, "train.micro_batch_size", whole)
    _between("train.staleness", t.staleness, 0, STALENESS_MAX)
    _least("train.sync_warmup_steps", t.sync_warmup_steps, 0)
    lockstep = t.dense_mode == "sync" or t.sync_warmup_steps == 0
    _need(lockstep, "train.sync_warmup_steps", "with dense_mode: async no step is synchronous; set it to 0")
    for name in ("epochs", "max_steps", "log_every_steps", "eval_every_steps"):
        _least(f"train.{name}", getattr(t, name), 1)
    _above_zero("train.clip_norm", t.clip_norm)
    _between("train.threads", t.threads, 1, THREADS_MAX)
    _least("train.checkpoint.keep", t.checkpoint.keep, 1)
    _least("train.checkpoint.every_steps", t.checkpoint.every_steps, 1)
    folder, best = t.checkpoint.folder, t.checkpoint.best
    _need(folder is None or folder.strip() != "", "train.checkpoint.folder", "must name a folder or a URL")
    judged = None if t.early_stopping is None else t.early_stopping.metric
    _need(
        judged is None or best in (None, judged),
        "train.checkpoint.best",
        f"is {best}, but train.early_stopping keeps the best by {judged}; leave one of them out",
    )
    tables_only = isinstance(t.optimizer, RowWiseAdagrad | Ftrl)
    tables_only_message = "rowwise_adagrad and ftrl are for tables; use adam, adamw, adagrad or sgd"
    _need(not tables_only, "train.optimizer", tables_only_message)
    narrow = getattr(t.optimizer, "state", StateFormat.FP32) is not StateFormat.FP32
    _need(not narrow, "train.optimizer.state", "int8 is for tables; the dense network's state is fp32")
    _optimizer(t.optimizer, "train.optimizer")
    _optimizer(t.embedding_optimizer, "train.embedding_optimizer")
    _schedule(t)
    if t.early_stopping is not None:
        _least("train.early_stopping.patience", t.early_stopping.patience, 1)
        _least("train.early_stopping.min_delta", t.early_stopping.min_delta, 0)


def _schedule(t: Train) -> None:
    s = t.schedule
    _least("train.schedule.warmup_steps", s.warmup_steps, 0)
    _least("train.schedule.decay_steps", s.decay_steps, 1)
    _need(0 <= s.end_factor <= 1, "train.schedule.end_factor", f"must be 0 to 1, got {s.end_factor}")
    decays = s.kind != "constant" or (s.decay_steps is None and s.end_factor == 0)
    _need(decays, "train.schedule", "decay_steps and end_factor have no use with kind: constant; set linear or cosine")


def _store(s: Store) -> None:
    _between("store.threads", s.threads, 1, THREADS_MAX)
    _above_zero("store.memory", s.memory)
    absolute = s.cold_folder is None or s.cold_folder.startswith("/")
    _need(absolute, "store.cold_folder", f"must be an absolute path, the same on every machine, got {s.cold_folder!r}")
    power = s.partitions > 0 and s.partitions & (s.partitions - 1) == 0
    _need(
        power and s.partitions <= PARTITIONS_MAX,
        "store.partitions",
        f"must be a power of 2, 1 to {PARTITIONS_MAX}, got {s.partitions}",
    )


def _optimizer(o: Optimizer, where: str) -> None:
    _above_zero(f"{where}.lr", o.lr)
    for field in ("momentum", "beta1", "beta2"):
        v = getattr(o, field, 0.0)
        _need(0 <= v < 1, f"{where}.{field}", f"must be in [0, 1), got {v}")
    for field in ("weight_decay", "eps", "initial_accumulator", "l1", "l2", "beta"):
        _least(f"{where}.{field}", getattr(o, field, 0.0), 0)
