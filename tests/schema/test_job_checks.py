"""Every rule that types cannot express: one line each breaks it, and the message names the setting and the limit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from satrap.errors import JobError
from satrap.schema import (
    DLRM,
    MLP,
    SGD,
    Adam,
    AdamW,
    Categorical,
    Data,
    DeepFM,
    Job,
    Label,
    Numeric,
    Table,
    Train,
    WideDeep,
    override,
)


@pytest.fixture
def job() -> Job:
    return Job(
        data=Data(train=("a.parquet",), label=(Label(column="click"),), weight="w"),
        features=(
            Categorical(name="user", weights="uw"),
            Categorical(name="hour", buckets=(1.0, 2.0)),
            Numeric(name="age", scale="standard", mean=1.0, std=2.0),
        ),
        tables=(Table(name="user", dim=8),),
    )


BROKEN = [
    ("name=''", "name: must name a folder"),
    ("name=a/b", "name: must name a folder, got 'a/b'"),
    ("seed=-1", "seed: must be 0 to 2^63 - 1, got -1"),
    ("seed=9223372036854775808", "seed: must be 0 to 2^63 - 1"),
    ("data.train=[]", "data.train: no files given"),
    ("data.label=[]", "data.label: no label given"),
    ("data.label=[click, click]", "data.label: the name 'click' is used twice"),
    ("data.valid=1.0", "data.valid: a fraction must be in [0, 1), got 1.0"),
    ("data.valid=-0.1", "data.valid: a fraction must be in [0, 1), got -0.1"),
    ("data.shuffle_rows=-1", "data.shuffle_rows: must be 0 or more, got -1"),
    ("data.weight=click", "data.weight: 'click' is the label"),
    ("features=[]", "features: no features given"),
    ("features.age.name=user", "features: the name 'user' is used twice"),
    ("features.age.name=''", "features: a name is empty"),
    ("features.age.column=click", "features.age: is the label; a feature must not be"),
    ("features.age.width=0", "features.age.width: must be 1 or more, got 0"),
    ("features.age.std=0", "features.age.std: must be above 0, got 0.0"),
    ("features.age.mean=null", "features.age: give both mean and std, or neither"),
    ("features.age.scale=none", "features.age.mean: is used with scale: standard only"),
    ("features=[{kind: numeric, name: a, missing: error, fill: 1}]", "features.a.missing: with missing: error nothing"),
    ("features=[{kind: numeric, name: a, missing: error, indicator: true}]", "features.a.missing: with missing: error"),
    ("features.user.max_length=0", "features.user.max_length: must be 1 or more, got 0"),
    ("features.user.weights=click", "features.user.weights: 'click' is the label"),
    ("features.hour.buckets=[]", "features.hour.buckets: no boundaries given"),
    ("features.hour.buckets=[2, 1]", "features.hour.buckets: boundaries must ascend"),
    ("features.hour.buckets=[1, 1]", "features.hour.buckets: boundaries must ascend"),
    ("features.hour.buckets=[1, .inf]", "features.hour.buckets.1: must be a finite number, got inf"),
    ("default_dim=0", "default_dim: must be 1 to 4096, got 0"),
    ("tables.user.dim=4097", "tables.user.dim: must be 1 to 4096, got 4097"),
    ("tables.user.name=usr", "tables.usr: no feature uses this table; did you mean 'user'?"),
    ("tables=[{name: user, dim: 1}, {name: user, dim: 1}]", "tables: the name 'user' is used twice"),
    ("tables.user.rounding=nearest", "tables.user.rounding: fp32 rounds nothing; set format to fp16, bf16 or int8"),
    ("tables.user.max_gradient=0", "tables.user.max_gradient: must be above 0, got 0.0"),
    ("tables.user.initializer={kind: uniform, low: 1, high: 0}", "tables.user.initializer: low must not be above high"),
    ("tables.user.initializer={kind: normal, std: -1}", "tables.user.initializer.std: must be 0 or more, got -1.0"),
    ("tables.user.optimizer={kind: sgd, lr: 0}", "tables.user.optimizer.lr: must be above 0, got 0.0"),
    ("tables.user.optimizer={kind: sgd, lr: .nan}", "tables.user.optimizer.lr: must be a finite number, got nan"),
    ("tables.user.optimizer={kind: sgd, momentum: 1}", "tables.user.optimizer.momentum: must be in [0, 1), got 1.0"),
    ("tables.user.optimizer={kind: adam, beta2: 1}", "tables.user.optimizer.beta2: must be in [0, 1), got 1.0"),
    ("tables.user.optimizer={kind: adam, eps: -1}", "tables.user.optimizer.eps: must be 0 or more, got -1.0"),
    ("tables.user.optimizer={kind: ftrl, l1: -1}", "tables.user.optimizer.l1: must be 0 or more, got -1.0"),
    ("train.embedding_optimizer.lr=-1", "train.embedding_optimizer.lr: must be above 0, got -1.0"),
    ("model.hidden=[8, 0]", "model.hidden.1: must be 1 or more, got 0"),
    ("model.dropout=1", "model.dropout: must be in [0, 1), got 1.0"),
    ("model={kind: dcnv2, cross_layers: 0}", "model.cross_layers: must be 1 or more, got 0"),
    ("model={kind: dcnv2, low_rank: 0}", "model.low_rank: must be 1 or more, got 0"),
    ("model={kind: dlrm}", "model: DLRM needs tables of one dim, got {'user': 8, 'hour': 16}"),
    ("model={kind: custom, path: net.Click}", "model.path: write it as package.module:Class, got 'net.Click'"),
    ("train.batch_size=0", "train.batch_size: must be 1 or more, got 0"),
    ("train.micro_batch_size=5000", "train.micro_batch_size: must be 1 to batch_size (4096), got 5000"),
    ("train.epochs=0", "train.epochs: must be 1 or more, got 0"),
    ("train.max_steps=0", "train.max_steps: must be 1 or more, got 0"),
    ("train.staleness=256", "train.staleness: must be 0 to 255, got 256"),
    ("train.sync_warmup_steps=-1", "train.sync_warmup_steps: must be 0 or more, got -1"),
    ("train.log_every_steps=0", "train.log_every_steps: must be 1 or more, got 0"),
    ("train.eval_every_steps=0", "train.eval_every_steps: must be 1 or more, got 0"),
    ("train.clip_norm=0", "train.clip_norm: must be above 0, got 0.0"),
    ("train.clip_norm=.inf", "train.clip_norm: must be a finite number, got inf"),
    ("train.threads=0", "train.threads: must be 1 to 1024, got 0"),
    ("train.optimizer.kind=ftrl", "train.optimizer: rowwise_adagrad and ftrl are for tables"),
    ("train.optimizer.kind=rowwise_adagrad", "train.optimizer: rowwise_adagrad and ftrl are for tables"),
    ("train.optimizer.state=int8", "train.optimizer.state: int8 is for tables"),
    ("train.optimizer.lr=0", "train.optimizer.lr: must be above 0, got 0.0"),
    ("train.checkpoint.keep=0", "train.checkpoint.keep: must be 1 or more, got 0"),
    ("train.checkpoint.every_steps=0", "train.checkpoint.every_steps: must be 1 or more, got 0"),
    ("train.schedule.warmup_steps=-1", "train.schedule.warmup_steps: must be 0 or more, got -1"),
    ("train.schedule={kind: cosine, decay_steps: 0}", "train.schedule.decay_steps: must be 1 or more, got 0"),
    ("train.schedule={kind: cosine, end_factor: 2}", "train.schedule.end_factor: must be 0 to 1, got 2.0"),
    # A constant schedule would leave these two without effect, silently.
    ("train.schedule.decay_steps=5", "train.schedule: decay_steps and end_factor have no use with kind: constant"),
    ("train.schedule.end_factor=0.5", "train.schedule: decay_steps and end_factor have no use with kind: constant"),
    ("train.early_stopping.patience=0", "train.early_stopping.patience: must be 1 or more, got 0"),
    ("train.early_stopping.min_delta=-1", "train.early_stopping.min_delta: must be 0 or more, got -1.0"),
    ("tables.user.capacity.evict=recency", "tables.user.capacity: give rows or bytes, one of the two"),
    ("tables.user.capacity.rows=63", "tables.user.capacity.rows: must be a row or more for each partition"),
    ("tables.user.capacity.bytes=0", "tables.user.capacity.bytes: must be above 0, got 0"),
    ("tables.user.expire.steps=0", "tables.user.expire.steps: must be 1 or more, got 0"),
    ("tables.user.expire.seconds=0", "tables.user.expire.seconds: must be 1 or more, got 0"),
    ("tables.user.admit.sightings=1", "tables.user.admit.sightings: must be 2 to 255, got 1"),
    ("tables.user.admit.window=10", "tables.user.admit.window: must be 64 to"),
    ("store.memory=0", "store.memory: must be above 0, got 0"),
    ("store.threads=0", "store.threads: must be 1 to 1024, got 0"),
    ("store.partitions=0", "store.partitions: must be a power of 2, 1 to 65536, got 0"),
    ("store.partitions=-2", "store.partitions: must be a power of 2, 1 to 65536, got -2"),
    ("store.partitions=12", "store.partitions: must be a power of 2, 1 to 65536, got 12"),
    ("store.partitions=131072", "store.partitions: must be a power of 2, 1 to 65536, got 131072"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN, ids=[change for change, _ in BROKEN])
def test_a_setting_outside_its_limits_is_refused_with_limit_and_value(change: str, message: str, job: Job) -> None:
    with pytest.raises(JobError) as caught:
        override(job, [change])
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "change",
    [
        "seed=9223372036854775807",
        "data.valid=0",
        "data.shuffle_rows=0",
        "default_dim=4096",
        "tables.user.initializer={kind: uniform, low: 1, high: 1}",
        "tables.user.initializer={kind: normal, std: 0}",
        "model.hidden=[]",
        "train.micro_batch_size=4096",
        "train.staleness=255",
        "train.staleness=0",
        "store.partitions=1",
        "store.partitions=65536",
    ],
)
def test_a_setting_at_its_limit_is_accepted(change: str, job: Job) -> None:
    override(job, [change])


def test_early_stopping_without_validation_is_refused(job: Job) -> None:
    # It would never stop, and `best` would never be chosen.
    for none in ("0", "[]"):
        with pytest.raises(JobError, match=r"train\.early_stopping: needs validation rows; set data\.valid"):
            override(job, ["train.early_stopping.patience=2", f"data.valid={none}"])


def test_models_that_multiply_embeddings_need_some(job: Job) -> None:
    numbers = (Numeric(name="x"),)
    for model in (DLRM(), DeepFM()):
        with pytest.raises(JobError, match="needs features with embeddings"):
            Job(data=job.data, features=numbers, model=model)
    assert Job(data=job.data, features=numbers, model=MLP()).resolved_tables() == ()


def test_deepfm_needs_a_factor_beside_the_linear_weight(job: Job) -> None:
    ids = (Categorical(name="user"),)
    with pytest.raises(JobError, match="DeepFM needs tables of dim 2 or more"):
        Job(data=job.data, features=ids, model=DeepFM(), default_dim=1)
    Job(data=job.data, features=ids, model=WideDeep(), default_dim=1)


class TestSpecsMadeInPython:
    """Typed structs are not checked when constructed; a Job checks all of its parts."""

    data = Data(train=("a",), label=(Label(column="y"),))
    features = (Numeric(name="x"),)

    @pytest.mark.parametrize(
        ("parts", "message"),
        [
            ({"data": Data(train=(1,), label=("y",))}, "data.train.0: text is expected, got the number 1"),  # type: ignore[arg-type]
            ({"train": Train(epochs="3")}, "train.epochs: a whole number is expected, got the text '3'"),  # type: ignore[arg-type]
            ({"features": (Categorical(name="u", pooling="avg"),)}, "features.u.pooling: unknown value 'avg'"),  # type: ignore[arg-type]
            ({"model": "mlp"}, "model: it has keys of its own (kind, which is one of mlp, "),
            ({"features": ("x",)}, "features.0: it has keys of its own (kind, "),
            ({"seed": 1.5}, "seed: a whole number is expected, got the number 1.5"),
            ({"model": MLP(hidden=(object(),))}, "a job holds text, numbers, lists and specs, not object"),  # type: ignore[arg-type]
        ],
    )
    def test_a_wrong_type_is_refused_when_the_job_is_made(self, parts: dict[str, Any], message: str) -> None:
        with pytest.raises(JobError) as caught:
            Job(**({"data": self.data, "features": self.features} | parts))
        assert str(caught.value).startswith(message)

    def test_lists_paths_and_short_forms_are_taken_and_become_what_yaml_would_give(self) -> None:
        loose: dict[str, Any] = {"data": Data(train=Path("a"), label="y"), "features": [Numeric(name="x")]}  # type: ignore[arg-type]
        job = Job(**loose, model=MLP(hidden=[4]))  # type: ignore[arg-type]
        assert job == Job(data=self.data, features=self.features, model=MLP(hidden=(4,)))
        # A path given as one string must not become a tuple of its letters.
        assert job.data.train == ("a",)

    def test_equal_jobs_are_equal_and_frozen(self) -> None:
        a, b = (Job(data=self.data, features=self.features) for _ in range(2))
        assert a == b
        with pytest.raises(AttributeError):
            a.seed = 3  # type: ignore[misc]


@pytest.mark.parametrize(("staleness", "damped", "beta1"), [(0, True, 0.9), (8, True, 0.5), (8, False, 0.9)])
def test_momentum_of_rows_makes_room_for_the_delay_of_their_gradients(staleness, damped, beta1):
    train = Train(embedding_optimizer=Adam(), optimizer=Adam(), staleness=staleness, staleness_damping=damped)
    tables = (Table(name="own", dim=8, optimizer=AdamW()), Table(name="plain", dim=8, optimizer=SGD()))
    features = tuple(Categorical(name=n) for n in ("any", "own", "plain"))
    job = Job(
        data=Data(train=("a.parquet",), label=(Label(column="y"),)), features=features, tables=tables, train=train
    )
    found = {t.name: t.optimizer for t in job.resolved_tables()}
    assert found == {"any": Adam(beta1=beta1), "own": AdamW(beta1=beta1), "plain": SGD()}
    assert job.train.optimizer == Adam(), "dense gradients are not late"
