"""Dotted overrides reach every setting, and nothing else."""

from __future__ import annotations

import msgspec
import pytest

from satrap.errors import JobError
from satrap.schema import (
    SGD,
    Adam,
    Categorical,
    Data,
    DCNv2,
    EarlyStopping,
    Job,
    Label,
    Numeric,
    Schedule,
    Sequence,
    Table,
    Train,
    ValueFormat,
    job_to_dict,
    override,
)
from satrap.schema.base import Spec
from satrap.schema.files import _PLAIN_KINDS


@pytest.fixture
def job() -> Job:
    return Job(
        data=Data(train=("a.parquet",), label=(Label(column="click"),)),
        features=(
            Categorical(name="user"),
            Categorical(name="friend", table="user"),
            Categorical(name="item.id"),
            Numeric(name="age"),
        ),
        tables=(Table(name="user", dim=8),),
        train=Train(optimizer=Adam(lr=0.5), schedule=Schedule(warmup_steps=100)),
    )


def test_a_plain_setting_changes_and_nothing_else(job: Job) -> None:
    changed = override(job, ["train.staleness=0"])
    assert changed.train.staleness == 0
    assert override(changed, ["train.staleness=4"]) == job


def test_the_last_of_two_overrides_counts(job: Job) -> None:
    assert override(job, ["seed=1", "seed=2"]).seed == 2


def test_a_list_item_is_named(job: Job) -> None:
    changed = override(job, ["features.age.scale=standard", "tables.user.dim=32", "data.label.click.positive=yes"])
    assert changed.numeric_features[0].scale == "standard"
    assert changed.tables[0].dim == 32
    assert changed.data.label[0].positive == "yes"


def test_a_name_with_a_dot_is_reached(job: Job) -> None:
    assert override(job, ["features.item.id.missing=error"]).id_features[2].missing == "error"


def test_a_table_in_use_but_not_declared_is_reached_with_the_default_dim(job: Job) -> None:
    # Most jobs declare no table at all; tables.NAME.dim=32 must still work.
    changed = override(job, ["tables.item.id.max_gradient=1", "default_dim=4", "default_format=int8"])
    assert changed.tables[1:] == (Table(name="item.id", dim=4, format=ValueFormat.INT8, max_gradient=1.0),)
    assert changed.tables[0] == job.tables[0]


def test_an_absent_optional_part_is_begun_with_its_defaults(job: Job) -> None:
    assert override(job, ["train.early_stopping.patience=5"]).train.early_stopping == EarlyStopping(patience=5)


def test_an_absent_optimizer_asks_for_its_kind(job: Job) -> None:
    with pytest.raises(JobError, match=r"tables\.user\.optimizer: the key 'kind' is missing; one of sgd"):
        override(job, ["tables.user.optimizer.lr=1"])
    changed = override(job, ["tables.user.optimizer.kind=sgd", "tables.user.optimizer.lr=1"])
    assert changed.tables[0].optimizer == SGD(lr=1.0)


def test_an_optional_part_can_be_taken_away(job: Job) -> None:
    with_stop = override(job, ["train.early_stopping.patience=5"])
    assert override(with_stop, ["train.early_stopping=null"]) == job
    assert override(with_stop, ["train.early_stopping="]) == job


def test_a_new_kind_starts_from_its_own_defaults(job: Job) -> None:
    # adam's lr of 0.5 would be a surprise in sgd, and its betas would be unknown keys.
    assert override(job, ["train.optimizer.kind=sgd"]).train.optimizer == SGD()
    assert override(job, ["model.kind=dcnv2", "model.cross_layers=2"]).model == DCNv2(cross_layers=2)


def test_the_kind_it_already_has_changes_nothing(job: Job) -> None:
    assert override(job, ["train.optimizer.kind=adam"]) == job


def test_a_feature_of_a_new_kind_keeps_name_column_and_table(job: Job) -> None:
    changed = override(job, ["features.friend.kind=sequence", "features.friend.max_length=9"])
    assert changed.features[1] == Sequence(name="friend", table="user", max_length=9)
    # A number has no table to keep.
    assert override(job, ["features.user.kind=numeric", "tables=[]", "features.user.scale=standard"]).features[0] == (
        Numeric(name="user", scale="standard")
    )


def test_the_kind_of_a_schedule_leaves_its_other_settings(job: Job) -> None:
    # Once `kind` was taken for a tag everywhere: choosing cosine forgot the warm-up.
    assert override(job, ["train.schedule.kind=cosine"]).train.schedule == Schedule(kind="cosine", warmup_steps=100)


def test_every_untagged_kind_is_known_to_overrides(job: Job) -> None:
    found = set()

    def walk(value: object, path: str) -> None:
        if isinstance(value, Spec):
            if "kind" in value.__struct_fields__:
                found.add(path)
            for f in msgspec.structs.fields(value):
                walk(getattr(value, f.name), f"{path}.{f.name}".lstrip("."))

    walk(job, "")
    assert found == _PLAIN_KINDS


@pytest.mark.parametrize("table", ["user", "item.id"])
def test_a_setting_of_a_part_that_a_table_has_not_begins_it_declared_or_not(table: str, job: Job) -> None:
    # In a table that the job does not declare, it was told to be an unknown key.
    changed = override(job, [f"tables.{table}.capacity.rows=500"])
    found = {t.name: t for t in changed.tables}[table]
    assert found.capacity is not None
    assert found.capacity.rows == 500
    before = {t.name: t for t in job.resolved_tables()}
    assert override(changed, [f"tables.{table}.capacity=null"]).resolved_tables() == tuple(before.values())


def test_a_whole_part_can_be_given_as_yaml(job: Job) -> None:
    changed = override(
        job, ["train.optimizer={kind: sgd, lr: 1e-3}", "data.train=b.csv", "data.valid=[v1.csv, v2.csv]"]
    )
    assert changed.train.optimizer == SGD(lr=0.001)
    assert changed.data.train == ("b.csv",)
    assert changed.data.valid == ("v1.csv", "v2.csv")


def test_a_value_may_hold_equals_signs_and_colons(job: Job) -> None:
    assert override(job, ["data.test=s3://b/day=1/x.parquet"]).data.test == ("s3://b/day=1/x.parquet",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train.stalenes=0", "train.stalenes: unknown key 'stalenes'; did you mean 'staleness'?"),
        ("trian.staleness=0", "override 'trian.staleness=0': unknown key 'trian'; did you mean 'train'?"),
        ("tables.usr.dim=3", "override 'tables.usr.dim=3': there is no 'usr'; did you mean 'user'?"),
        ("features.agee.width=3", "override 'features.agee.width=3': there is no 'agee'; did you mean 'age'?"),
        ("tables.user=3", "override 'tables.user=3': 'tables' is a list; name an item and a setting of it"),
        ("seed.x=3", "override 'seed.x=3': 'seed' is a plain value"),
        ("seed.x.y=3", "override 'seed.x.y=3': 'seed.x' is a plain value"),
        ("seed", "override 'seed': write it as key.subkey=value"),
        ("=3", "override '=3': write it as key.subkey=value"),
        ("seed=[", "override 'seed=[': the value is not valid YAML"),
        ("seed=abc", "seed: a whole number is expected, got the text 'abc'"),
        ("train.optimizer.lr=nan", "train.optimizer.lr: a number is expected, got the text 'nan'"),
        ("seed=1.5", "seed: a whole number is expected, got the number 1.5"),
        (
            "tables.user.capacity=0",
            "tables.user.capacity: it has keys of its own (rows, bytes, evict), got the number 0; ",
        ),
        ("model=mlp", "model: it has keys of its own (kind, which is one of mlp, dlrm, "),
        ("train.epochs=0", "train.epochs: must be 1 or more, got 0"),
    ],
)
def test_a_wrong_override_is_refused_in_its_own_words(text: str, message: str, job: Job) -> None:
    with pytest.raises(JobError) as caught:
        override(job, [text])
    assert str(caught.value).startswith(message)


def test_the_job_given_is_not_touched(job: Job) -> None:
    before = job_to_dict(job)
    override(job, ["features.age.scale=standard", "tables.item.id.dim=4", "train.early_stopping.patience=5"])
    assert job_to_dict(job) == before
