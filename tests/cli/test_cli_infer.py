"""`satrap train FILES --label COLUMN`: the job is inferred, told, saved and trained."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from cli_command import Satrap, click_table

from satrap.schema import Categorical, Numeric, load_job


def test_what_was_inferred_is_said_and_can_be_saved(called: Satrap, clicks: Path, tmp_path: Path) -> None:
    said = called("train", clicks / "train.parquet", "--label", "click", "--save-job", "job.yaml", "--dry-run").out
    job = load_job(tmp_path / "job.yaml")
    kinds = {f.name: type(f) for f in job.features}
    assert kinds == {"user": Categorical, "item": Categorical, "price": Numeric, "genres": Categorical}
    assert all(f"  · {name}: " in said for name in kinds)
    assert "satrap train job.yaml" in said


def test_the_saved_job_trains_the_very_same_model(called: Satrap, clicks: Path, tmp_path: Path) -> None:
    words = ["train", clicks / "train.parquet", "--label", "click", "--test", clicks / "test.parquet", "--epochs", "2"]
    table = called(*words, "train.batch_size=200", "--save-job", "job.yaml", "--run-dir", "a").out
    assert "test AUC" in table
    called("train", "job.yaml", "--run-dir", "b")
    a, b = (called("inspect", x, "--digest").out for x in "ab")
    assert a == b


def test_overrides_and_options_shape_the_inferred_job(called: Satrap, clicks: Path, tmp_path: Path) -> None:
    words = [
        "train",
        clicks / "train.parquet",
        "--label",
        "click",
        "--exclude",
        "price",
        "--valid",
        "0.25",
        "--dry-run",
    ]
    called(*words, "features.item.kind=numeric", "tables.user.dim=4", "--save-job", "job.yaml")
    job = load_job(tmp_path / "job.yaml")
    assert [f.name for f in job.features] == ["user", "item", "genres"]
    assert isinstance(job.features[1], Numeric)
    assert [t.dim for t in job.resolved_tables()] == [4, 16]
    assert job.data.valid == 0.25


def test_a_validation_file_is_taken_as_one(called: Satrap, clicks: Path, tmp_path: Path) -> None:
    words = ["train", clicks / "train.parquet", "--label", "click", "--valid", clicks / "test.parquet", "--dry-run"]
    called(*words, "--save-job", "job.yaml")
    assert load_job(tmp_path / "job.yaml").data.valid == (str(clicks / "test.parquet"),)


def test_a_label_of_words_is_told_its_positive_value(called: Satrap, tmp_path: Path) -> None:
    table = click_table(400)
    incomes = pa.array([">50K" if x else "<=50K" for x in table["click"].to_pylist()])
    pq.write_table(table.drop_columns(["click"]).append_column("income", incomes), tmp_path / "a.parquet")
    called(
        "train", "a.parquet", "--label", "income", "--positive", ">50K", "--save-job", "job.yaml", "train.max_steps=1"
    )
    assert load_job(tmp_path / "job.yaml").data.label[0].positive == ">50K"


def test_a_label_of_numbers_is_told_its_positive_value(called: Satrap, tmp_path: Path) -> None:
    # On the command line everything is text; the column decides that this `2` is a number.
    table = click_table(400)
    numbers = pa.array([x + 1 for x in table["click"].to_pylist()])
    pq.write_table(table.drop_columns(["click"]).append_column("stars", numbers), tmp_path / "a.parquet")
    called("train", "a.parquet", "--label", "stars", "--positive", "2", "--save-job", "job.yaml", "train.max_steps=1")
    assert load_job(tmp_path / "job.yaml").data.label[0].positive == 2


def test_csv_trains_evaluates_and_predicts(called: Satrap, tmp_path: Path) -> None:
    table = click_table(600).drop_columns(["genres"])
    pacsv.write_csv(table, tmp_path / "a.csv")
    called("train", "a.csv", "--label", "click", "train.batch_size=100", "--run-dir", "run")
    assert "AUC" in called("evaluate", "run", "a.csv").out
    called("predict", "run", "a.csv", "--keep", "user", "--out", "scores.csv")
    scores = pacsv.read_csv(tmp_path / "scores.csv")
    assert scores["user"].to_pylist() == table["user"].to_pylist()


def test_several_files_and_a_glob_are_one_data_set(called: Satrap, tmp_path: Path) -> None:
    for day in (1, 2):
        pq.write_table(click_table(300, seed=day), tmp_path / f"day={day}.parquet")
    words = ["--label", "click", "--valid", "0", "train.batch_size=100"]
    assert "600 samples, 6 steps" in called("train", tmp_path / "day=*.parquet", *words).out
    assert "600 samples, 6 steps" in called("train", "day=1.parquet", "day=2.parquet", *words).out
