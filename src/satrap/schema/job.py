"""The job: data, features, tables, model and how to train them."""

from __future__ import annotations

from typing import Literal

from satrap.errors import JobError, did_you_mean
from satrap.schema.base import Spec
from satrap.schema.features import Categorical, Feature, Label, Numeric, Sequence
from satrap.schema.models import MLP, DeepFM, DLRM, ModelSpec, WideDeep
from satrap.schema.optimizers import Adam, Ftrl, Optimizer, RowWiseAdagrad
from satrap.schema.tables import Table


class Data(Spec):
    """Where rows come from. Paths are local or any fsspec URL, globs and folders allowed."""

    train: tuple[str, ...]
    label: tuple[Label, ...]
    """One label, or several for a multi-task model (T labels: logits [B, T])."""
    valid: tuple[str, ...] | float = 0.1
    """Files, or the fraction of the training rows held out by a hash of (seed, row number). 0: no validation."""
    test: tuple[str, ...] = ()
    format: Literal["auto", "parquet", "csv", "tsv", "criteo"] = "auto"
    """auto: by file ending. criteo: the original tab-separated format, columns label, I1-I13, C1-C26."""
    weight: str | None = None
    """Column of sample weights. None: all 1."""
    shuffle_rows: int = 262_144
    """Rows of the shuffle window. Memory follows it; larger mixes better. 0: in file order."""


class Schedule(Spec):
    """Factor on every learning rate, dense and tables, by optimizer step."""

    kind: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = 0
    """Steps over which the factor rises linearly to 1."""
    decay_steps: int | None = None
    """Steps after warm-up over which it falls to `end_factor`. None: the rest of the run."""
    end_factor: float = 0.0


class EarlyStopping(Spec):
    """Stops when the validation metric has not improved for `patience` evaluations, and keeps the best checkpoint."""

    metric: Literal["auc", "log_loss"] = "auc"
    patience: int = 2
    min_delta: float = 0.0


class Checkpointing(Spec):
    """When checkpoints are saved, beside the one at the end and on Ctrl-C."""

    every_steps: int | None = None
    keep: int = 3
    """The newest kept, besides the best."""


class Train(Spec):
    """How the job is trained."""

    batch_size: int = 4096
    """Samples of one optimizer step."""
    micro_batch_size: int | None = None
    """Gradient accumulation: the dense network sees the batch in pieces of this size. None: whole."""
    epochs: int = 1
    max_steps: int | None = None
    """Ends training after this many steps. None: after `epochs`."""
    optimizer: Optimizer = Adam()
    """Of the dense network."""
    embedding_optimizer: Optimizer = RowWiseAdagrad()
    """Of the tables that name none."""
    schedule: Schedule = Schedule()
    clip_norm: float | None = None
    """Clips the dense gradient to this global L2 norm. (Tables: `max_gradient`.)"""
    staleness: int = 4
    """Pushes that may be outstanding when a batch is pulled. 0: synchronous, the result of a single process."""
    sync_warmup_steps: int = 0
    """First steps that run with staleness 0."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: the dense network under autocast; master weights, embeddings and optimizers stay fp32."""
    compile: bool = False
    """torch.compile of the dense network."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = None
    """Threads of torch's dense compute on the CPU. None: the cores this process may use."""
    eval_every_steps: int | None = None
    """Validation besides the one after each epoch."""
    early_stopping: EarlyStopping | None = None
    checkpoint: Checkpointing = Checkpointing()
    log_every_steps: int = 20


class Store(Spec):
    """The memory of the tables."""

    partitions: int = 64
    """Parts each table is cut into by id, for files and servers; fixed for the life of a model. A power of 2."""
    threads: int | None = None
    """Threads of lookups and updates. None: the cores this process may use."""


class Job(Spec):
    """Everything that decides a training run. Equal jobs on equal data give equal models at staleness 0."""

    data: Data
    features: tuple[Feature, ...]
    tables: tuple[Table, ...] = ()
    """Tables to declare; a feature's table that is not listed is made with `default_dim`."""
    default_dim: int = 16
    model: ModelSpec = MLP()
    train: Train = Train()
    store: Store = Store()
    seed: int = 0
    name: str = "job"

    @property
    def id_features(self) -> tuple[Categorical | Sequence, ...]:
        """Features that look rows up, in job order."""
        return tuple(f for f in self.features if not isinstance(f, Numeric))

    @property
    def numeric_features(self) -> tuple[Numeric, ...]:
        """Features that are numbers, in job order."""
        return tuple(f for f in self.features if isinstance(f, Numeric))

    def table_of(self, feature: Categorical | Sequence) -> str:
        """Name of the table a feature looks up."""
        return feature.table or feature.name

    def resolved_tables(self) -> tuple[Table, ...]:
        """Every table the features use, in order of first use, each with its optimizer filled in."""
        declared = {t.name: t for t in self.tables}
        used: dict[str, Table] = {}
        for f in self.id_features:
            name = self.table_of(f)
            table = declared.get(name) or Table(name=name, dim=self.default_dim)
            if table.optimizer is None:
                table = _replace(table, optimizer=self.train.embedding_optimizer)
            used.setdefault(name, table)
        return tuple(used.values())

    def __post_init__(self) -> None:
        check(self)


def _replace(table: Table, *, optimizer: Optimizer) -> Table:
    import msgspec

    return msgspec.structs.replace(table, optimizer=optimizer)


def check(job: Job) -> None:
    """Raises JobError for what types alone cannot say: ranges, duplicates, names that refer to nothing."""

    def need(ok: bool, where: str, message: str) -> None:
        if not ok:
            raise JobError(f"{where}: {message}")

    def unique(names: list[str], where: str) -> None:
        seen: set[str] = set()
        for n in names:
            need(n not in seen, where, f"the name '{n}' is used twice; names must be unique")
            seen.add(n)

    d, t, s = job.data, job.train, job.store
    need(len(d.train) > 0, "data.train", "no files given")
    need(len(d.label) > 0, "data.label", "no label given; name the column that holds 0 or 1")
    if isinstance(d.valid, float | int):
        need(0 <= d.valid < 1, "data.valid", f"a fraction must be in [0, 1), got {d.valid}")
    need(d.shuffle_rows >= 0, "data.shuffle_rows", f"must be 0 (no shuffling) or more, got {d.shuffle_rows}")
    unique([x.column for x in d.label], "data.label")
    unique([f.name for f in job.features], "features")
    unique([x.name for x in job.tables], "tables")
    need(len(job.features) > 0, "features", "no features given")
    for f in job.features:
        where = f"features.{f.name}"
        if isinstance(f, Numeric):
            need(f.width >= 1, f"{where}.width", f"must be 1 or more, got {f.width}")
            need(f.std is None or f.std > 0, f"{where}.std", f"must be above 0, got {f.std}")
            need((f.mean is None) == (f.std is None), where, "give both mean and std, or neither")
            need(f.mean is None or f.scale == "standard", f"{where}.mean", "is used with scale: standard only")
        else:
            need(f.max_length is None or f.max_length >= 1, f"{where}.max_length", f"must be 1 or more, got {f.max_length}")
        if isinstance(f, Categorical) and f.buckets is not None:
            need(len(f.buckets) > 0, f"{where}.buckets", "no boundaries given")
            need(list(f.buckets) == sorted(set(f.buckets)), f"{where}.buckets", "boundaries must ascend")
    labels = {x.column for x in d.label}
    for f in job.features:
        need((f.column or f.name) not in labels, f"features.{f.name}", "is the label; a feature must not be")
    used = {job.table_of(f) for f in job.id_features}
    for table in job.tables:
        where = f"tables.{table.name}"
        need(1 <= table.dim <= 4096, f"{where}.dim", f"must be 1 to 4096, got {table.dim}")
        need(table.name in used, where, f"no feature uses this table; {did_you_mean(table.name, used)}")
        need(table.max_gradient is None or table.max_gradient > 0, f"{where}.max_gradient", f"must be above 0, got {table.max_gradient}")
    need(1 <= job.default_dim <= 4096, "default_dim", f"must be 1 to 4096, got {job.default_dim}")
    if isinstance(job.model, DLRM | DeepFM | WideDeep) and not isinstance(job.model, WideDeep):
        dims = {x.name: x.dim for x in job.resolved_tables()}
        need(len(set(dims.values())) <= 1, "model", f"{type(job.model).__name__} needs tables of one dim, got {dims}")
    need(t.batch_size >= 1, "train.batch_size", f"must be 1 or more, got {t.batch_size}")
    need(t.micro_batch_size is None or 1 <= t.micro_batch_size <= t.batch_size, "train.micro_batch_size", f"must be 1 to batch_size ({t.batch_size}), got {t.micro_batch_size}")
    need(t.epochs >= 1, "train.epochs", f"must be 1 or more, got {t.epochs}")
    need(t.max_steps is None or t.max_steps >= 1, "train.max_steps", f"must be 1 or more, got {t.max_steps}")
    need(0 <= t.staleness <= 255, "train.staleness", f"must be 0 to 255, got {t.staleness}")
    need(t.sync_warmup_steps >= 0, "train.sync_warmup_steps", f"must be 0 or more, got {t.sync_warmup_steps}")
    need(t.log_every_steps >= 1, "train.log_every_steps", f"must be 1 or more, got {t.log_every_steps}")
    need(t.eval_every_steps is None or t.eval_every_steps >= 1, "train.eval_every_steps", f"must be 1 or more, got {t.eval_every_steps}")
    need(t.clip_norm is None or t.clip_norm > 0, "train.clip_norm", f"must be above 0, got {t.clip_norm}")
    need(not isinstance(t.optimizer, RowWiseAdagrad | Ftrl), "train.optimizer", "rowwise_adagrad and ftrl are for tables; use adam, adamw, adagrad or sgd")
    need(t.checkpoint.keep >= 1, "train.checkpoint.keep", f"must be 1 or more, got {t.checkpoint.keep}")
    need(t.checkpoint.every_steps is None or t.checkpoint.every_steps >= 1, "train.checkpoint.every_steps", f"must be 1 or more, got {t.checkpoint.every_steps}")
    for where, n in (("train.threads", t.threads), ("store.threads", s.threads)):
        need(n is None or 1 <= n <= 1024, where, f"must be 1 to 1024, got {n}")
    need(1 <= s.partitions <= 65536 and s.partitions & (s.partitions - 1) == 0, "store.partitions", f"must be a power of 2, 1 to 65536, got {s.partitions}")
    sch = t.schedule
    need(sch.warmup_steps >= 0, "train.schedule.warmup_steps", f"must be 0 or more, got {sch.warmup_steps}")
    need(sch.decay_steps is None or sch.decay_steps >= 1, "train.schedule.decay_steps", f"must be 1 or more, got {sch.decay_steps}")
    need(0 <= sch.end_factor <= 1, "train.schedule.end_factor", f"must be 0 to 1, got {sch.end_factor}")
    need(t.early_stopping is None or t.early_stopping.patience >= 1, "train.early_stopping.patience", "must be 1 or more")
    for where, o in [("train.optimizer", t.optimizer), *((f"tables.{x.name}.optimizer", x.optimizer) for x in job.resolved_tables())]:
        need(o is None or o.lr > 0, f"{where}.lr", f"must be above 0, got {getattr(o, 'lr', None)}")
        for field in ("momentum", "beta1", "beta2"):
            v = getattr(o, field, 0.0)
            need(0 <= v < 1, f"{where}.{field}", f"must be in [0, 1), got {v}")
        for field in ("weight_decay", "eps", "initial_accumulator", "l1", "l2", "beta"):
            v = getattr(o, field, 0.0)
            need(v >= 0, f"{where}.{field}", f"must be 0 or more, got {v}")
