"""The words of a command line become what the user meant, or are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from satrap.cli.failures import UsageError
from satrap.cli.sources import check_resumed_job, find_checkpoint, find_run, sort_words
from satrap.errors import CheckpointError, JobError
from satrap.schema import Categorical, Data, Job, Label, Table, override


@pytest.fixture
def job() -> Job:
    return Job(
        data=Data(train=("a.csv",), label=(Label(column="y"),)),
        features=(Categorical(name="u"), Categorical(name="v")),
        tables=(Table(name="u", dim=4),),
    )


def test_a_job_file_and_overrides_are_told_apart() -> None:
    words = sort_words(["train.lr=1", "jobs/a.yml", "data.train=x=y.parquet"])
    assert words.job_file == Path("jobs/a.yml")
    assert words.overrides == ["train.lr=1", "data.train=x=y.parquet"]
    assert words.data == []


@pytest.mark.parametrize(
    "path", ["day=1/a.parquet", "s3://logs/day=1/a.parquet", "x=*.parquet", "x=1.csv.gz", "a b/c=d"]
)
def test_a_data_path_with_an_equals_sign_is_no_override(path: str) -> None:
    # Partitioned data sets name their folders so.
    assert sort_words([path]).data == [path]


def test_a_word_that_names_an_existing_file_is_no_override(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("seed=1").touch()
    assert sort_words(["seed=1"]).data == ["seed=1"]
    assert sort_words(["seed=2"]).overrides == ["seed=2"]


def test_an_override_of_a_feature_with_a_dash_or_a_space_is_one() -> None:
    assert len(sort_words(["features.hours-per-week.scale=standard", "features.hours per week.width=1"]).overrides) == 2


@pytest.mark.parametrize("words", [["a.yaml", "b.yaml"], ["a.yaml", "data.parquet"]])
def test_two_jobs_or_a_job_and_data_are_refused(words: list[str]) -> None:
    with pytest.raises(UsageError, match=r"a\.yaml"):
        sort_words(words)


@pytest.mark.parametrize(
    "change",
    ["train.epochs=9", "train.optimizer.lr=0.5", "tables.u.optimizer.kind=sgd", "store.threads=1", "data.test=b.csv"],
)
def test_a_resumed_run_may_change_how_it_trains(change: str, job: Job) -> None:
    check_resumed_job(job, override(job, [change]))


@pytest.mark.parametrize(
    "change",
    [
        "seed=1",
        "tables.u.dim=8",
        "tables.u.initializer.low=0",
        "tables.v.dim=2",
        "tables=[]",
        "features.u.pooling=mean",
        "model.hidden=[1]",
        "model.kind=dcnv2",
        "data.train=b.csv",
        "data.valid=0.2",
        "data.shuffle_rows=1",
        "store.partitions=2",
    ],
)
def test_a_resumed_run_may_not_change_what_its_model_is_or_has_seen(change: str, job: Job) -> None:
    # Rows of dim 4 do not fit a table of dim 8, and an epoch that goes on in other data has not seen each row once.
    with pytest.raises(JobError, match=r"a resumed run keeps its data, features, tables and model"):
        check_resumed_job(job, override(job, [change]))


def test_a_run_that_is_not_there_is_refused_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "adult-1").mkdir()
    with pytest.raises(CheckpointError, match="did you mean 'adult-1'"):
        find_run(tmp_path / "adult-2")


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"it has no job\.yaml"):
        find_run(tmp_path)


def test_a_run_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").touch()
    with pytest.raises(CheckpointError, match="no checkpoint"):
        find_checkpoint(tmp_path)
