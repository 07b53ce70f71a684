"""A job from files alone: the rules of inference, what is said, and what is refused."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pytest
from data_reference import write

from satrap.data import Inference, Reader, infer_job, measure
from satrap.errors import DataError, JobError
from satrap.schema import Categorical, Label, Numeric, Pooling, Train, job_from_dict, job_to_dict

RNG = np.random.default_rng(0)
ROWS = 200
COLUMNS: dict[str, Any] = {
    "user": [i % 20 for i in range(ROWS)],
    "city": [None if i % 10 == 0 else f"c{i % 7}" for i in range(ROWS)],
    "flag": [i % 3 == 0 for i in range(ROWS)],
    "tags": [["a", "b"][: i % 3] for i in range(ROWS)],
    "seen": [[1, 2, 3][: i % 4] for i in range(ROWS)],
    "level": RNG.normal(size=ROWS),
    "amount": np.exp(RNG.normal(size=ROWS) * 2),
    "gaps": [None if i % 4 == 0 else i + 0.5 for i in range(ROWS)],
    "vector": [[0.5, 1.5, float(i)] for i in range(ROWS)],
    "y": [i % 4 == 0 for i in range(ROWS)],
}


def infer(tmp_path: Path, columns: dict[str, Any], label: Any = "y", **options: Any) -> Inference:
    return infer_job(write(tmp_path / "clicks.parquet", columns), label, **options)


def note(inference: Inference, column: str, start: str = "") -> str:
    (line,) = [n for n in inference.notes if n.startswith(f"{start}{column}: ")]
    return line


def test_every_kind_of_column_becomes_the_feature_that_the_rules_say(tmp_path: Path) -> None:
    inference = infer(tmp_path, COLUMNS)
    assert {f.name: f for f in inference.job.features} == {
        "user": Categorical(name="user"),
        "city": Categorical(name="city"),
        "flag": Categorical(name="flag"),
        "tags": Categorical(name="tags", pooling=Pooling.MEAN),
        "seen": Categorical(name="seen", pooling=Pooling.MEAN),
        "level": Numeric(name="level", scale="standard"),
        "amount": Numeric(name="amount", scale="standard", transform="log"),
        "gaps": Numeric(name="gaps", scale="standard", indicator=True),
        "vector": Numeric(name="vector", scale="standard", width=3),
    }
    assert inference.job.data.label == (Label(column="y"),)
    assert inference.job.name == "clicks"
    assert not [n for n in inference.notes if n.startswith("warning")]


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ("user", "integers, 20 distinct values → categorical"),
        ("city", "10.0% missing"),
        ("tags", "lists of text, 1.0 a row on average, 2 distinct values → categorical, mean pooling"),
        ("amount", "heavy-tailed and never negative → numeric, log, standardised"),
        ("gaps", "25.0% missing"),
        ("vector", "numeric of width 3"),
        ("y", "the label, 1 in 25.0% of the sample"),
    ],
)
def test_every_column_has_one_line_that_says_what_and_why(tmp_path: Path, column: str, said: str) -> None:
    assert said in note(infer(tmp_path, COLUMNS), column)


def test_inferred_job_reads_the_files_and_survives_yaml(tmp_path: Path) -> None:
    job = measure(infer(tmp_path, COLUMNS).job)
    assert job_from_dict(job_to_dict(job)) == job
    reader = Reader(job, job.data.train, seed=0, shuffle=True, split="train")
    assert sum(b.size for b in reader.epoch()) == reader.rows


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([7] * ROWS, "the same value in every row"),
        (["a"] * ROWS, "the same value in every row"),
        ([0.5] * ROWS, "the same value in every row"),
        (list(range(ROWS)), "a different value in every row of the sample, as a row number or key"),
        ([f"k{i}" for i in range(ROWS)], "a different value in every row"),
        ([i // 2 * 2 if i < 60 else i for i in range(ROWS)], "mostly different integers"),
        ([None if i % 9 == 0 else float(i % 20) for i in range(ROWS)], "whole numbers stored as floats"),
        (pa.nulls(ROWS), "left out, no value in the sample"),
        ([datetime.datetime(2024, 1, 1)] * ROWS, "left out, timestamp"),
        ([[0.5] * (i % 3) for i in range(ROWS)], "left out, lists of 0 to 2 floats"),
    ],
)
def test_odd_columns_get_a_warning(tmp_path: Path, values: Any, said: str) -> None:
    inference = infer(tmp_path, {"odd": values, "user": COLUMNS["user"], "y": COLUMNS["y"]})
    assert said in note(inference, "odd", "warning: ")
    assert ("left out" in said) == ("odd" not in {f.name for f in inference.job.features})


@pytest.mark.parametrize(
    ("values", "positive", "said"),
    [
        (["<=50K", ">50K", "<=50K"], ">50K", "by its name"),
        (["yes", "yes", "no"], "yes", "by its name"),
        (["0", "1", "1"], "1", "by its name"),
        (["True", "False", "True"], "True", "by its name"),
        (["other", "none", "other"], "other", "by its name"),
        (["cat", "dog", "cat"], "dog", "the rarer"),
        ([1, 2, 2], 2, "the larger"),
        ([-1, 1, -1], 1, "the larger"),
        ([1.0, 3.0, 1.0], 3, "the larger"),
    ],
)
def test_label_of_two_values_names_the_one_that_is_one_and_why(
    tmp_path: Path, values: list[Any], positive: Any, said: str
) -> None:
    inference = infer(tmp_path, {"x": [1, 2, 1], "y": values})
    assert inference.job.data.label == (Label(column="y", positive=positive),)
    assert f"{positive!r} is 1" in note(inference, "y").replace(".0 is 1", " is 1")
    assert said in note(inference, "y")
    # What was inferred must read: the types of `positive` and the column go together.
    batches = list(Reader(inference.job, inference.job.data.train, seed=0, shuffle=False).epoch())
    assert batches[0].labels[:, 0].tolist() == [float(v == positive) for v in values]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["a", "b", "c"], r"has 3 different values in the sample \('a', 'b', 'c'\); .* positive"),
        (["a", "a", "a"], r"has only one value .*: --positive VALUE \(in Python, positive=\)"),
        ([0, 1, None], "1 missing values"),
        ([[1], [0], [1]], "a label is one value a row"),
        ([0.25, 0.5, 0.25], "a label is 0 or 1"),
    ],
)
def test_label_that_cannot_be_one_is_refused(tmp_path: Path, values: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        infer(tmp_path, {"x": [1, 2, 1], "y": values})


@pytest.mark.parametrize(
    ("values", "given", "expected"),
    [(["a", "b", "c"], "b", "b"), ([1, 2, 3], "2", 2), ([True, False, True], "false", 0), ([0, 5, 9], 5, 5)],
)
def test_positive_that_is_given_is_brought_to_the_type_of_the_column(
    tmp_path: Path, values: list[Any], given: Any, expected: Any
) -> None:
    # A command line knows text only.
    inference = infer(tmp_path, {"x": [1, 2, 1], "y": values}, positive=given)
    assert inference.job.data.label == (Label(column="y", positive=expected),)


def test_positive_that_is_nowhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no row of the sample has y = 'z'; values there: 'a'"):
        infer(tmp_path, {"x": [1, 2, 1], "y": ["a", "b", "a"]}, positive="z")
    with pytest.raises(DataError, match="'y' holds integers; positive 'z' is none"):
        infer(tmp_path, {"x": [1, 2, 1], "y": [1, 2, 3]}, positive="z")


@pytest.mark.parametrize(
    ("label", "options", "message"),
    [
        ("yy", {}, "label: .*clicks.parquet has no column 'yy'; did you mean 'y'?"),
        ("y", {"weight": "usr"}, "weight: .* no column 'usr'; did you mean 'user'?"),
        ("y", {"exclude": ["citty"]}, "exclude: .* no column 'citty'; did you mean 'city'?"),
        ("y", {"exclude": [c for c in COLUMNS if c != "y"]}, "no column is left to learn from beside y"),
    ],
)
def test_column_that_is_not_there_is_named_with_the_nearest(
    tmp_path: Path, label: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(JobError, match=message):
        infer(tmp_path, COLUMNS, label, **options)


def test_options_reach_the_job(tmp_path: Path) -> None:
    columns = COLUMNS | {"w": [1.0] * ROWS, "z": [i % 2 for i in range(ROWS)]}
    inference = infer(
        tmp_path, columns, ["y", "z"], weight="w", exclude=["user"], valid=0.2, test=["t.parquet"], name="mine"
    )
    job = inference.job
    assert [x.column for x in job.data.label] == ["y", "z"]
    assert (job.data.weight, job.data.valid, job.data.test, job.name) == ("w", 0.2, ("t.parquet",), "mine")
    assert not {"user", "w", "y", "z"} & {f.name for f in job.features}
    assert "left out, as asked" in note(inference, "user")
    assert "sample weights" in note(inference, "w")


def test_sample_is_bounded_and_taken_from_several_places(tmp_path: Path) -> None:
    # A file sorted by its label has one label value in its first rows.
    rows = 10_000
    columns = {"x": [i % 7 for i in range(rows)], "y": ["no" if i < rows / 2 else "yes" for i in range(rows)]}
    path = write(tmp_path / "a.parquet", columns, row_group_size=500)
    inference = infer_job(path, "y", sample_rows=400)
    assert "50.0% of the sample" in note(inference, "y")


def test_csv_is_inferred_like_parquet_of_the_same_rows(tmp_path: Path) -> None:
    flat = {k: v for k, v in COLUMNS.items() if k not in ("tags", "seen", "vector", "flag")}
    parquet = infer(tmp_path, flat)
    pacsv.write_csv(pa.table(flat), tmp_path / "clicks.csv")
    text = infer_job(tmp_path / "clicks.csv", "y")
    assert text.job.features == parquet.job.features
    job = measure(text.job)
    read = measure(parquet.job)
    assert [f.mean for f in job.numeric_features] == pytest.approx([f.mean for f in read.numeric_features])
    assert sum(b.size for b in Reader(job, job.data.train, seed=0, shuffle=False).epoch()) == ROWS


def test_criteo_format_is_known(tmp_path: Path) -> None:
    line = "\t".join(["{y}", *["3"] * 13, *["12345678"] * 26])
    (tmp_path / "train.txt").write_text("".join(line.format(y=i % 2) + "\n" for i in range(10)))
    inference = infer_job(tmp_path / "train.txt", "label", format="criteo")
    assert inference.job.features[0] == Numeric(name="I1", transform="log", scale="standard", indicator=True)
    assert inference.job.features[13:] == tuple(Categorical(name=f"C{i}") for i in range(1, 27))
    reader = Reader(measure(inference.job), inference.job.data.train, seed=0, shuffle=False)
    assert sum(b.size for b in reader.epoch()) == 10


def test_files_without_rows_are_refused(tmp_path: Path) -> None:
    for columns in ({"x": pa.array([], pa.int64()), "y": pa.array([], pa.int64())}, {}):
        with pytest.raises(DataError, match="no rows to infer a job from"):
            infer(tmp_path, columns)
    (tmp_path / "a.csv").write_text("x,y\n")
    with pytest.raises(DataError, match="no rows to infer a job from"):
        infer_job(tmp_path / "a.csv", "y")


# Forty-five thousand rows in batches of 4,096 are eleven steps: a first AUC that says nothing of the data.
def test_few_rows_are_trained_on_in_small_batches_and_it_is_said(tmp_path: Path) -> None:
    small = infer(tmp_path, COLUMNS)
    assert small.job.train.batch_size == 64
    assert "200 rows → batches of 64, so that an epoch has steps enough" in small.notes


def test_many_rows_and_rows_nobody_counted_are_trained_on_in_default_batches(tmp_path: Path) -> None:
    many = {"user": np.arange(700_000) % 20, "y": np.arange(700_000) % 2}
    assert infer(tmp_path, many).job.train == Train()
    pacsv.write_csv(pa.table(COLUMNS).select(["user", "y"]), tmp_path / "clicks.csv")
    assert infer_job(tmp_path / "clicks.csv", "y", sample_rows=100).job.train == Train()
    assert infer_job(tmp_path / "clicks.csv", "y").job.train.batch_size == 64
