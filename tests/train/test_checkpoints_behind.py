"""Checkpoints that are written while training goes on: those of the moment at which they were due."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from samples import click_job
from workers import Workers

from satrap import checkpoint
from satrap.errors import StoreError, TrainingError
from satrap.observe import read_metrics
from satrap.ps.cut import RowCut
from satrap.schema import Checkpointing, Job, Store, override
from satrap.testing import Cluster
from satrap.train import Result, Trainer
from satrap.train.saving import Checkpoints
from satrap.train.writing import Writing

EVERY = 4


def job_of(folder: Path, **train: Any) -> Job:
    settings: dict[str, Any] = {"max_steps": 14, "checkpoint": Checkpointing(every_steps=EVERY, keep=9)}
    job = click_job(folder, **{**settings, **train})
    return msgspec.structs.replace(job, store=Store(partitions=8, threads=1))


def trainer_of(job: Job, run: Path, **options: Any) -> Trainer:
    return Trainer(job, run_dir=run, progress=False, plots=False, **options)


class Later:
    """Writes a checkpoint when training has gone on for some steps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, steps: int = EVERY - 2) -> None:
        self._write, self._steps = checkpoint.write, steps
        self.trainer: Trainer | None = None
        self.behind: list[int] = []
        """Steps of checkpoints that were written while training went on."""
        monkeypatch.setattr("satrap.checkpoint.write", self._later)

    def _later(self, folder: Path, contents: checkpoint.Contents, **options: Any) -> Path:
        if threading.current_thread().name == "satrap-checkpoint":
            assert self.trainer is not None
            while self.trainer.run is None or self.trainer.run.state.step < contents.step + self._steps:
                time.sleep(0.001)
            self.behind.append(contents.step)
        return self._write(folder, contents, **options)


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Later:
    return Later(monkeypatch)


def stopped_world(job: Job, run: Path, monkeypatch: pytest.MonkeyPatch) -> Result:
    """The same training, which waits while each checkpoint is written."""
    with monkeypatch.context() as m:
        m.setattr(Checkpoints, "_cut", lambda self: None)
        return trainer_of(job, run).fit()


def contents(run: Path) -> dict[int, Any]:
    """Step → digest of the content, and all else that a checkpoint says of its moment."""
    out = {}
    for path in checkpoint.checkpoints(run):
        loaded = checkpoint.load(path)
        extra = msgspec.json.encode(loaded.extra, order="deterministic")
        out[loaded.step] = checkpoint.digest(path), loaded.step, loaded.position, loaded.manifest.clients, extra
    return out


@pytest.mark.parametrize("staleness", [0, 3])
@pytest.mark.parametrize("servers", [0, 2])
def test_a_checkpoint_written_behind_is_the_one_of_a_stopped_world(
    tmp_path: Path, servers: int, staleness: int, later: Later, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(tmp_path, staleness=staleness)
    run = tmp_path / "run"
    if servers:
        with Cluster(job.resolved_tables(), servers=servers, partitions=8, seed=job.seed) as cluster:
            later.trainer = trainer_of(job, run, service=cluster.connect())
            result = later.trainer.fit()
    else:
        later.trainer = trainer_of(job, run)
        result = later.trainer.fit()
    assert later.behind == [4, 8, 12]
    stopped_world(job, tmp_path / "stopped", monkeypatch)
    have, want = contents(run), contents(tmp_path / "stopped")
    assert have == want
    assert list(have) == [4, 8, 12, 14]
    # Beside the same place in the data at the same step: what was trained by then.
    for path in checkpoint.checkpoints(run):
        loaded = checkpoint.load(path)
        assert loaded.extra["run"]["samples"] == loaded.step * 32
    assert result.checkpoint == run / "checkpoints" / "step-00000014"
    told = [r["step"] for r in read_metrics(run) if r["kind"] == "checkpoint"]
    assert told == [4, 8, 12, 14]


def test_several_workers_train_on_while_the_first_writes(
    tmp_path: Path, later: Later, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = override(job_of(tmp_path, staleness=2), ["model.dropout=0"])  # threads share torch's random numbers

    def watched(trainer: Trainer, rank: int) -> None:
        if rank == 0:
            later.trainer = trainer

    with Cluster(job.resolved_tables(), servers=2, partitions=8, seed=job.seed) as cluster:
        workers = Workers(job, 2, tmp_path / "run", services=cluster.connect, prepare=watched)
    assert later.behind == [4, 8, 12]
    assert {str(r.checkpoint) for r in workers.results} == {str(tmp_path / "run/checkpoints/step-00000014")}
    with monkeypatch.context() as m:
        m.setattr(Checkpoints, "_cut", lambda self: None)
        Workers(job, 2, tmp_path / "stopped")
    assert contents(tmp_path / "run") == contents(tmp_path / "stopped")


def test_a_run_goes_on_from_a_checkpoint_written_behind_as_if_it_had_never_stopped(
    tmp_path: Path, later: Later
) -> None:
    job = job_of(tmp_path, staleness=2)
    later.trainer = trainer_of(job, tmp_path / "whole")
    whole = later.trainer.fit()
    for path in checkpoint.checkpoints(tmp_path / "whole"):
        if checkpoint.load(path).step > 8:
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
    later.trainer = trainer_of(job, tmp_path / "whole")
    again = later.trainer.fit(resume=True)
    assert (again.steps, again.test) == (whole.steps, whole.test)


def test_rows_that_could_not_be_kept_fail_that_save_and_the_next_one_stops_training(
    tmp_path: Path, later: Later, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(tmp_path)
    export, lost = RowCut.export_rows, []

    def gone(self: RowCut, table: str, partition: int) -> Any:
        if not lost:
            lost.append(table)
            self.lose("no room")
        return export(self, table, partition)

    monkeypatch.setattr(RowCut, "export_rows", gone)
    later.trainer = trainer_of(job, tmp_path / "run")
    result = later.trainer.fit()
    assert (result.saves_failed, result.unsaved) == (1, None)
    (failed,) = (r for r in read_metrics(tmp_path / "run") if r["kind"] == "checkpoint_failed")
    assert failed["step"] == 4
    assert "cannot save the checkpoint of step 4: the rows of the checkpoint are not kept any more: no room" in str(
        failed["problem"]
    )
    assert later.behind == [4, 12]
    want = contents_of_stopped(job, tmp_path, monkeypatch)
    del want[4]
    assert contents(tmp_path / "run") == want
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))


def contents_of_stopped(job: Job, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[int, Any]:
    stopped_world(job, folder / "stopped", monkeypatch)
    return contents(folder / "stopped")


def test_training_that_fails_leaves_the_checkpoint_that_was_being_written(tmp_path: Path, later: Later) -> None:
    job = job_of(tmp_path)
    later.trainer = trainer = trainer_of(job, tmp_path / "run")
    compute = trainer._dense.compute

    def fails(*arguments: Any) -> Any:
        if trainer.run is not None and trainer.run.state.step == 7:
            raise TrainingError("no more")
        return compute(*arguments)

    trainer._dense.compute = fails  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match="no more"):
        trainer.fit()
    assert [p.name for p in checkpoint.checkpoints(tmp_path / "run")] == ["step-00000004"]
    checkpoint.verify(checkpoint.latest(tmp_path / "run"))


def test_who_stops_at_once_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_of(tmp_path)
    trainer = trainer_of(job, tmp_path / "run")
    at_export, go_on = threading.Event(), threading.Event()
    export = RowCut.export_rows

    def slow(self: RowCut, table: str, partition: int) -> Any:
        if partition == 5:
            at_export.set()
            go_on.wait()
        return export(self, table, partition)

    monkeypatch.setattr(RowCut, "export_rows", slow)
    end = Writing.end

    def ends(self: Writing, *, at_once: bool) -> None:
        assert at_once
        assert self._cut is not None
        self._cut.close()
        go_on.set()
        end(self, at_once=True)

    monkeypatch.setattr(Writing, "end", ends)
    step = trainer._dense.compute

    def interrupted(*arguments: Any) -> Any:
        if trainer.run is not None and trainer.run.state.step == 5:
            at_export.wait()
            raise KeyboardInterrupt
        return step(*arguments)

    trainer._dense.compute = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


def test_a_cut_that_is_refused_stops_training_while_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(tmp_path)

    def refuses(self: Any, **options: Any) -> Any:
        raise StoreError("no room")

    trainer = trainer_of(job, tmp_path / "run")
    monkeypatch.setattr(type(trainer.service), "cut", refuses)
    assert trainer.fit().saves_failed == 0
    assert list(contents(tmp_path / "run")) == [4, 8, 12, 14]
