"""The job: data, features, tables, model and how to train them."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from satrap.schema.base import Spec
from satrap.schema.checks import check
from satrap.schema.features import Categorical, Feature, Label, Numeric, Sequence
from satrap.schema.models import MLP, ModelSpec
from satrap.schema.optimizers import Adam, Optimizer, RowWiseAdagrad, with_delay
from satrap.schema.strict import convert, plain
from satrap.schema.tables import DENSE_DIM, DENSE_TABLE, Table, ValueFormat, Zeros


class Data(Spec, frozen=True, kw_only=True):
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


class Schedule(Spec, frozen=True, kw_only=True):
    """Factor on every learning rate, dense and tables, by optimizer step."""

    kind: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = 0
    """Steps over which the factor rises linearly to 1."""
    decay_steps: int | None = None
    """Steps after warm-up over which it falls to `end_factor`. None: the rest of the run."""
    end_factor: float = 0.0


class EarlyStopping(Spec, frozen=True, kw_only=True):
    """Stops when the validation metric has not improved for `patience` evaluations, and keeps the best checkpoint."""

    metric: Literal["auc", "log_loss"] = "auc"
    patience: int = 2
    min_delta: float = 0.0


class Checkpointing(Spec, frozen=True, kw_only=True):
    """When checkpoints are saved, beside the one at the end and on Ctrl-C; where, and which are kept."""

    every_steps: int | None = None
    keep: int = 3
    """The newest kept, besides the best."""
    best: Literal["auc", "log_loss"] | None = None
    """Saves and keeps the checkpoint that validates best by this metric, and names it `best`. With `early_stopping`
    that happens by its metric in any case. The run itself still ends with its last model."""
    folder: str | None = None
    """A folder or URL (`gs://bucket/models`, `s3://…`, any scheme of fsspec or pyarrow) under which the run keeps its
    checkpoints, in a folder of the run's name. None: `checkpoints` in the run folder."""


class Train(Spec, frozen=True, kw_only=True):
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
    """First steps that run with staleness 0, at the speed of synchronous training. A few times `staleness` where a run
    has only some hundred steps in all; later on it makes no difference."""
    staleness_damping: bool = True
    """Divides that part of the rows' gradient which all samples of a batch share by 1 + the pushes outstanding, none of
    which sees the others push the same way: with batches of thousands it would overshoot and swing. And takes the
    delay off the momentum of rows stepped by Adam: `beta1` so much smaller that gradients are no older on average when
    they count (`schema.optimizers.with_delay`). No effect at staleness 0. Turn it off for a network that has no
    weights of its own to make up for the first (no biases)."""
    dense_mode: Literal["sync", "async"] = "sync"
    """sync: every worker steps the same dense weights by the sum of all workers' gradients. async: the dense weights
    are rows of a table on the servers too, up to `staleness` pushes old when a worker computes with them, and no worker
    waits for another. For comparison only: it costs accuracy."""
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


Durability = Literal["none", "process", "disk"]
"""What an acknowledged gradient survives."""


class Store(Spec, frozen=True, kw_only=True):
    """The memory of the tables."""

    partitions: int = 64
    """Parts each table is cut into by id, for files and servers; fixed for the life of a model. A power of 2."""
    threads: int | None = None
    """Threads of lookups and updates. None: the cores this process may use."""
    memory: int | None = None
    """Bytes of memory that a process which holds tables may use, all of it counted. Tables that would grow beyond it
    end the run with an error, their rows intact. None: what its container and machine have, less a margin of a 32nd."""
    cold_folder: str | None = None
    """A folder on a local SSD, on every machine that holds tables: where the rows lie that do not fit into the memory
    of tables with `cold`. Their files have no names and go with the process. None: the system's folder for temporary
    files, which is no place for many rows where it lies in memory itself."""
    durability: Durability = "none"
    """Of parameter servers. none: a server that dies takes its rows with it, and the job goes back to its last
    checkpoint. process: servers keep a journal, and one that is killed comes back with everything it has acknowledged.
    disk: each acknowledgement is on disk before it is given, and survives power loss."""


class Job(Spec, frozen=True, kw_only=True):
    """Everything that decides a training run. Equal jobs on equal data give equal models at staleness 0."""

    data: Data
    features: tuple[Feature, ...]
    tables: tuple[Table, ...] = ()
    """Tables to declare; a feature's table that is not listed is made with `default_dim` and `default_format`."""
    default_dim: int = 16
    default_format: ValueFormat = ValueFormat.FP32
    """How rows are stored; int8 for tables that are to take little memory."""
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
        """Every table of the job, each with its optimizer filled in, momentum damped by `staleness_damping`: those the
        features use, in order of first use, and with `dense_mode: async` that of the dense weights."""
        declared = {t.name: t for t in self.tables}
        used: dict[str, Table] = {}
        for f in self.id_features:
            name = self.table_of(f)
            table = declared.get(name) or Table(name=name, dim=self.default_dim, format=self.default_format)
            optimizer = table.optimizer or self.train.embedding_optimizer
            if self.train.staleness_damping:
                optimizer = with_delay(optimizer, self.train.staleness)
            used.setdefault(name, msgspec.structs.replace(table, optimizer=optimizer))
        if self.train.dense_mode == "async":
            optimizer, zeros = self.train.optimizer, Zeros()
            used[DENSE_TABLE] = Table(name=DENSE_TABLE, dim=DENSE_DIM, initializer=zeros, optimizer=optimizer)
        return tuple(used.values())

    def __post_init__(self) -> None:
        # Specs made in Python are as strict as YAML: each part is converted to its declared type, lists to tuples.
        for field in msgspec.structs.fields(type(self)):
            tree = plain(getattr(self, field.name))
            tree = short_forms(tree) if field.name == "data" else tree
            msgspec.structs.force_setattr(self, field.name, convert(tree, field.type, field.name))
        check(self)


def short_forms(data: Any) -> Any:
    """The `data` part with what a person may write short spelled out: one path or one label instead of a list."""
    if not isinstance(data, dict):
        return data
    data = dict(data)
    for key in ("train", "valid", "test"):
        if isinstance(data.get(key), str):
            data[key] = [data[key]]
    label = data.get("label")
    if isinstance(label, str | dict):
        label = [label]
    if isinstance(label, list | tuple):
        data["label"] = [{"column": x} if isinstance(x, str) else x for x in label]
    return data
