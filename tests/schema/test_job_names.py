"""Unknown keys, kinds and choices are refused, with the path and the nearest known name, wherever they stand.

Flaw 19 of the original system: unknown config keys were ignored, so a misspelt setting silently kept its default.
"""

from __future__ import annotations

from typing import Any

import pytest

from satrap.errors import JobError
from satrap.schema import Job, job_from_dict


def tree(**parts: Any) -> dict[str, Any]:
    job: dict[str, Any] = {
        "data": {"train": "a.parquet", "label": "click"},
        "features": [
            {"kind": "categorical", "name": "user"},
            {"kind": "sequence", "name": "seen", "max_length": 5},
            {"kind": "numeric", "name": "age"},
        ],
        "tables": [{"name": "user", "dim": 8}],
    }
    return job | parts


MISSPELT = [
    (tree(trian={}), "trian: unknown key 'trian'; did you mean 'train'?"),
    (tree(data={"train": "a", "label": "y", "tets": "b"}), "data.tets: unknown key 'tets'; did you mean 'test'?"),
    (
        tree(data={"train": "a", "label": [{"column": "y", "positiv": 1}]}),
        "data.label.y.positiv: unknown key 'positiv'; did you mean 'positive'?",
    ),
    (
        tree(features=[{"kind": "numeric", "name": "age", "scal": "standard"}]),
        "features.age.scal: unknown key 'scal'; did you mean 'scale'?",
    ),
    (tree(tables=[{"name": "user", "dimm": 8}]), "tables.user.dimm: unknown key 'dimm'; did you mean 'dim'?"),
    (
        tree(tables=[{"name": "user", "dim": 8, "optimizer": {"kind": "adam", "beta3": 0.9}}]),
        "tables.user.optimizer.beta3: unknown key 'beta3'; did you mean 'beta2'?",
    ),
    (
        tree(tables=[{"name": "user", "dim": 8, "initializer": {"kind": "normal", "sdt": 1}}]),
        "tables.user.initializer.sdt: unknown key 'sdt'; did you mean 'std'?",
    ),
    (tree(model={"kind": "mlp", "hiden": [8]}), "model.hiden: unknown key 'hiden'; did you mean 'hidden'?"),
    (tree(train={"stalenes": 1}), "train.stalenes: unknown key 'stalenes'; did you mean 'staleness'?"),
    (
        tree(train={"schedule": {"warm_up": 1}}),
        "train.schedule.warm_up: unknown key 'warm_up'; did you mean 'warmup_steps'?",
    ),
    (
        tree(train={"early_stopping": {"patiense": 1}}),
        "train.early_stopping.patiense: unknown key 'patiense'; did you mean 'patience'?",
    ),
    (tree(train={"checkpoint": {"keeep": 1}}), "train.checkpoint.keeep: unknown key 'keeep'; did you mean 'keep'?"),
    (tree(store={"partition": 1}), "store.partition: unknown key 'partition'; did you mean 'partitions'?"),
]


@pytest.mark.parametrize(("job", "message"), MISSPELT, ids=[m.partition(":")[0] for _, m in MISSPELT])
def test_an_unknown_key_is_refused_with_its_path_and_the_nearest_known_one(job: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError) as caught:
        job_from_dict(job)
    assert str(caught.value) == message


def test_a_key_of_another_kind_is_unknown_to_this_one() -> None:
    # `momentum` is a setting of sgd; with adam it would do nothing.
    with pytest.raises(JobError, match=r"train\.optimizer\.momentum: unknown key 'momentum'"):
        job_from_dict(tree(train={"optimizer": {"kind": "adam", "momentum": 0.9}}))


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (tree(model={"kind": "dnc2"}), "model.kind: unknown kind 'dnc2'; did you mean 'dcnv2'?"),
        (tree(model={"hidden": [8]}), "model: the key 'kind' is missing; one of mlp, dlrm, dcnv2"),
        (tree(features=[{"name": "user"}]), "features.user: the key 'kind' is missing; one of categorical, sequence"),
        (
            tree(features=[{"kind": "numerc", "name": "x"}]),
            "features.x.kind: unknown kind 'numerc'; did you mean",
        ),
        (
            tree(features=[{"kind": "categorical", "name": "x", "pooling": "man"}]),
            "features.x.pooling: unknown value 'man'; did you mean 'mean'?",
        ),
        (
            tree(features=[{"kind": "numeric", "name": "x", "transform": "lgo"}]),
            "features.x.transform: unknown value 'lgo'; did you mean 'log'?",
        ),
        (
            tree(tables=[{"name": "user", "dim": 8, "format": "fp61"}]),
            "tables.user.format: unknown value 'fp61'",
        ),
        (
            tree(tables=[{"name": "user", "dim": 8, "wire": "int4"}]),
            "tables.user.wire: unknown value 'int4'; did you mean 'int8'?",
        ),
        (tree(train={"precision": "half"}), "train.precision: unknown value 'half'; known: bf16, fp32"),
    ],
)
def test_an_unknown_kind_or_choice_is_refused_with_the_nearest_known_one(job: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError) as caught:
        job_from_dict(job)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (tree(train={"epochs": "three"}), "train.epochs: a whole number is expected, got the text 'three'"),
        (tree(train={"epochs": 1.5}), "train.epochs: a whole number is expected, got the number 1.5"),
        (tree(train={"compile": "yes"}), "train.compile: true or false is expected, got the text 'yes'"),
        (tree(features=[{"kind": "numeric", "name": "age", "width": "2"}]), "features.age.width: a whole number"),
        (tree(tables=[{"name": "user"}]), "tables.user: Object missing required field `dim`"),
        (tree(features=[{"kind": "numeric"}]), "features.0: Object missing required field `name`"),
        (tree(features={"user": 1}), "features: a list is expected, got a mapping"),
        (tree(data={"label": "y"}), "data: Object missing required field `train`"),
        (tree(data=None), "data: it has keys of its own (train, label, "),
        ({}, "job: Object missing required field `data`"),
        ([], "a job is a mapping"),
        (None, "a job is a mapping"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_its_path(job: Any, message: str) -> None:
    with pytest.raises(JobError) as caught:
        job_from_dict(job)
    assert str(caught.value).startswith(message)


def test_short_forms_mean_the_long_ones() -> None:
    long = tree(data={"train": ["a.parquet"], "label": [{"column": "click"}], "valid": ["v"], "test": ["t"]})
    short = tree(data={"train": "a.parquet", "label": "click", "valid": "v", "test": "t"})
    assert job_from_dict(short) == job_from_dict(long)


def test_no_key_of_a_job_is_unknown_to_the_walk_beside_the_types() -> None:
    # The walk that finds nearest names and msgspec's own conversion must agree on what is known.
    job = job_from_dict(tree())
    assert isinstance(job, Job)
    assert [t.dim for t in job.resolved_tables()] == [8, 16]
