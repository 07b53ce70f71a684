"""Saves that fail: training goes on, everyone is told, the last good checkpoint stays; and where they are kept."""

from __future__ import annotations

import errno
import logging
import time
from pathlib import Path

import pytest
from samples import click_job
from workers import Workers

from satrap import checkpoint
from satrap.errors import JobError
from satrap.observe import read_metrics
from satrap.schema import Checkpointing, EarlyStopping, Job, load_job, override
from satrap.testing.faulty_objects import FaultyObjects, unavailable
from satrap.train import Result, Trainer

URL = "faulty://trained/models"


@pytest.fixture
def objects() -> FaultyObjects:
    fs = FaultyObjects()
    checkpoint.use_filesystem("faulty://trained", fs, pause_s=0)
    return fs


def job_of(folder: Path, **checkpointing: object) -> Job:
    return click_job(folder, max_steps=12, checkpoint=Checkpointing(every_steps=4, folder=URL, **checkpointing))


def trainer(job: Job, run: Path, **options: object) -> Trainer:
    return Trainer(job, run_dir=run, progress=False, plots=False, **options)


def fit(job: Job, run: Path, resume: bool = False) -> Result:
    return trainer(job, run).fit(resume=resume)


def records(run: Path, kind: str) -> list[dict[str, object]]:
    return [r for r in read_metrics(run) if r["kind"] == kind]


def digest(path: object) -> str:
    return checkpoint.digest(path)  # type: ignore[arg-type]


def test_checkpoints_in_an_object_store_are_those_of_a_disk_and_go_on_from_there(
    tmp_path: Path, objects: FaultyObjects
) -> None:
    job = job_of(tmp_path)
    local = fit(override(job, ["train.checkpoint.folder=null"]), tmp_path / "local")
    half = fit(override(job, ["train.max_steps=8"]), tmp_path / "run")
    assert str(half.checkpoint) == f"{URL}/run/step-00000008"
    # Another machine, another disk: the bucket and the name of the run are enough.
    went_on = fit(job, tmp_path / "elsewhere" / "run", resume=True)
    assert digest(went_on.checkpoint) == digest(local.checkpoint)
    assert load_job(tmp_path / "run" / "job.yaml").train.checkpoint.folder == URL
    again = Trainer.from_checkpoint(f"{URL}/run")
    assert again.evaluate(job.data.test) == local.test
    with pytest.raises(JobError, match="faulty://trained/models/run already holds the checkpoints of a run"):
        fit(job, tmp_path / "third" / "run")


def test_training_goes_on_after_a_failed_save_and_everyone_is_told(
    tmp_path: Path, objects: FaultyObjects, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"

    def fails_at_8(request: str, name: str, count: int) -> None:
        if "step-00000008" in name and request == "put":
            raise unavailable(request, name)

    objects.fail = fails_at_8
    with caplog.at_level(logging.ERROR):
        result = fit(job_of(tmp_path), run)
    assert (result.steps, result.saves_failed, result.unsaved) == (12, 1, None)
    assert [p.name for p in checkpoint.checkpoints(run)] == ["step-00000004", "step-00000012"]
    (failed,) = records(run, "checkpoint_failed")
    assert failed["step"] == 8
    for told in (str(failed["problem"]), caplog.text):
        assert "503 Slow Down" in told
        assert f"{URL}/run/step-00000008" in told
        assert f"The last good checkpoint is {URL}/run/step-00000004" in told
    objects.fail = None
    undisturbed = fit(job_of(tmp_path), tmp_path / "undisturbed")
    assert digest(result.checkpoint) == digest(undisturbed.checkpoint)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_run_whose_last_save_failed_says_so_and_keeps_the_last_good_one(
    tmp_path: Path, objects: FaultyObjects, code: int
) -> None:
    def fails_late(request: str, name: str, count: int) -> None:
        if "step-00000012" in name:
            raise OSError(code, "no more", name)

    objects.fail = fails_late
    result = fit(job_of(tmp_path), tmp_path / "run")
    assert result.unsaved is not None
    assert "no more" in result.unsaved
    assert result.test is not None
    assert str(result.checkpoint).endswith("step-00000008")
    objects.fail = None
    whole = fit(job_of(tmp_path), tmp_path / "run", resume=True)
    assert (whole.unsaved, whole.test) == (None, result.test)


def test_a_store_that_never_answers_leaves_the_run_without_a_checkpoint_and_with_a_model(
    tmp_path: Path, objects: FaultyObjects
) -> None:
    def put_fails(request: str, name: str, count: int) -> None:
        if request == "put":
            raise ConnectionError("connection refused")

    objects.fail = put_fails
    result = fit(job_of(tmp_path), tmp_path / "run")
    assert (result.checkpoint, result.saves_failed) == (None, 3)
    assert "ConnectionError: connection refused" in str(result.unsaved)
    assert "There is no earlier checkpoint" in str(result.unsaved)


def test_a_slow_store_changes_nothing_but_the_time(tmp_path: Path, objects: FaultyObjects) -> None:
    objects.fail = lambda request, name, count: time.sleep(0.002)
    slow = fit(job_of(tmp_path), tmp_path / "run")
    objects.fail = None
    fast = fit(job_of(tmp_path), tmp_path / "other")
    assert digest(slow.checkpoint) == digest(fast.checkpoint)
    assert slow.saves_failed == 0


def test_what_cannot_be_removed_is_told_and_the_new_checkpoint_counts(tmp_path: Path, objects: FaultyObjects) -> None:
    def keeps(request: str, name: str, count: int) -> None:
        if request == "delete":
            raise PermissionError(errno.EACCES, "no deletions here", name)

    objects.fail = keeps
    result = fit(job_of(tmp_path, keep=1), tmp_path / "run")
    assert (result.saves_failed, result.unsaved) == (0, None)
    problems = [str(r["problem"]) for r in records(tmp_path / "run", "checkpoint_failed")]
    assert len(problems) == 2
    assert "is saved; cannot remove old checkpoints" in problems[0]


def test_early_stopping_whose_best_could_not_be_saved_ends_with_the_last(
    tmp_path: Path, objects: FaultyObjects
) -> None:
    job = click_job(
        tmp_path, epochs=3, checkpoint=Checkpointing(folder=URL), early_stopping=EarlyStopping(min_delta=0.9)
    )
    steps = 15  # of the first epoch, which is the best one: nothing is better by 0.9

    def fails(request: str, name: str, count: int) -> None:
        if f"step-{steps:08d}" in name and request == "put":
            raise unavailable(request, name)

    first = fit(override(job, ["train.epochs=1"]), tmp_path / "first")
    assert first.steps == steps
    objects.fail = fails
    result = fit(job, tmp_path / "run")
    assert result.steps == 3 * steps
    assert str(result.checkpoint).endswith(f"step-{3 * steps:08d}")
    assert any(
        "the best model, of step 15" in str(r["problem"]) for r in records(tmp_path / "run", "checkpoint_failed")
    )
    assert Trainer.from_checkpoint(result.checkpoint).evaluate(job.data.test) == result.test


def test_every_worker_goes_on_when_the_first_could_not_save(tmp_path: Path, objects: FaultyObjects) -> None:
    def fails_at_8(request: str, name: str, count: int) -> None:
        if "step-00000008" in name and request == "put":
            raise unavailable(request, name)

    objects.fail = fails_at_8
    workers = Workers(job_of(tmp_path), 2, tmp_path / "run")
    assert {(r.steps, r.saves_failed, str(r.checkpoint)) for r in workers.results} == {
        (12, 1, f"{URL}/run/step-00000012")
    }


@pytest.mark.parametrize("metric", ["auc", "log_loss"])
def test_best_is_kept_by_the_metric_asked_for_without_early_stopping(tmp_path: Path, metric: str) -> None:
    job = click_job(tmp_path, epochs=4, checkpoint=Checkpointing(keep=1, best=metric))
    run = tmp_path / "run"
    result = fit(override(job, ["train.embedding_optimizer.lr=0.5", "train.optimizer.lr=0.05"]), run)
    found = [(r[metric] if metric == "log_loss" else -r[metric], r["step"]) for r in records(run, "eval")
             if r["split"] == "valid"]  # fmt: skip
    best = min(found)[1]
    assert checkpoint.find(run / "best") == run / "checkpoints" / f"step-{best:08d}"
    assert result.checkpoint == checkpoint.find(run / "latest") == run / "checkpoints" / f"step-{result.steps:08d}"
    assert result.steps == found[-1][1]
    assert result.valid is not None
    assert len(checkpoint.checkpoints(run)) == len({best, result.steps})
