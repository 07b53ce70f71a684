"""Several workers are stopped and resumed: together, at one step, to the bit."""

from __future__ import annotations

import shutil

import pytest
from samples import click_job
from test_resume import copy_up_to
from workers import Workers

from satrap import checkpoint
from satrap.errors import CheckpointError, DataError
from satrap.schema import Checkpointing, Schedule, override
from satrap.train import Trainer
from satrap.train.run import Run

EVERY = {"eval_every_steps": 10, "log_every_steps": 3, "epochs": 2, "schedule": Schedule(kind="cosine", warmup_steps=5)}


def job_in(folder, **changes):
    return override(click_job(folder, **{**EVERY, **changes}), ["model.dropout=0"])


def digest(workers):
    return checkpoint.digest(workers.result.checkpoint)


@pytest.mark.parametrize("world", [2, 3])
def test_resume_from_any_checkpoint_equals_the_uninterrupted_run(tmp_path, world):
    job = job_in(tmp_path, checkpoint=Checkpointing(every_steps=7, keep=99))
    whole = Workers(job, world, tmp_path / "whole")
    steps = [int(p.name[5:]) for p in checkpoint.checkpoints(tmp_path / "whole")]
    assert len(steps) >= 4
    for step in steps[:-1]:
        copy_up_to(tmp_path / "whole", tmp_path / f"from{step}", step)
        resumed = Workers(job, world, tmp_path / f"from{step}", resume=True)
        assert digest(resumed) == digest(whole)
        for a, b in zip(resumed.results, whole.results, strict=True):
            assert (a.test, a.valid, a.steps, a.samples, a.loss) == (b.test, b.valid, b.steps, b.samples, b.loss)


@pytest.mark.parametrize("interrupted", [0, 1])
@pytest.mark.parametrize("staleness", [0, 2])
def test_interrupt_of_any_worker_stops_all_at_one_step_with_one_checkpoint(
    tmp_path, monkeypatch, interrupted, staleness
):
    job = job_in(tmp_path, staleness=staleness)
    whole = Workers(job, 2, tmp_path / "whole")
    step = Run._step

    def interrupt(run, lookup, leg, agreed):
        if run.state.step == 11 and run.group.rank == interrupted:
            run.interrupts.requested = True
        step(run, lookup, leg, agreed)

    monkeypatch.setattr(Run, "_step", interrupt)
    stopped = Workers(job, 2, tmp_path / "run")
    monkeypatch.setattr(Run, "_step", step)
    # It comes when the step has been agreed on, and is told with the next one.
    assert [(r.stopped, r.steps, r.test) for r in stopped.results] == [("interrupted", 13, None)] * 2
    assert checkpoint.latest(tmp_path / "run").name == "step-00000013"
    resumed = Workers(job, 2, tmp_path / "run", resume=True)
    assert [(r.stopped, r.steps) for r in resumed.results] == [("done", whole.result.steps)] * 2
    assert resumed.result.samples == whole.result.samples
    if staleness == 0:  # else the drain before the checkpoint has its place in the result
        assert digest(resumed) == digest(whole)


def test_interrupt_in_an_evaluation_leaves_it_due_for_all(tmp_path, monkeypatch):
    from satrap.train import run as module

    job = job_in(tmp_path)
    whole = Workers(job, 2, tmp_path / "whole")
    measure, calls = Run._measure, []

    def interrupted(run, batches):
        calls.append(run.group.rank)
        if run.group.rank == 1 and calls.count(1) == 2:
            run.interrupts.requested = True
        return measure(run, batches)

    monkeypatch.setattr(module.Run, "_measure", interrupted)
    stopped = Workers(job, 2, tmp_path / "run")
    monkeypatch.setattr(module.Run, "_measure", measure)
    assert {(r.stopped, r.test) for r in stopped.results} == {("interrupted", None)}
    resumed = Workers(job, 2, tmp_path / "run", resume=True)
    assert digest(resumed) == digest(whole)
    assert resumed.result.valid == whole.result.valid


def test_checkpoint_in_the_middle_of_an_epoch_is_for_as_many_workers(tmp_path):
    job = job_in(tmp_path, max_steps=5)
    Workers(job, 2, tmp_path / "run")
    longer = override(job, ["train.max_steps=8"])
    message = r"saved by 2 workers in the middle of an epoch, and there are {} now"
    for world in (3, 4):
        shutil.copytree(tmp_path / "run", tmp_path / f"by{world}")
        with pytest.raises(DataError, match=message.format(world)):
            Workers(longer, world, tmp_path / f"by{world}", resume=True)
    with pytest.raises(DataError, match=message.format(1)):
        Trainer(longer, run_dir=tmp_path / "run", progress=False, plots=False).fit(resume=True)
    assert Workers(longer, 2, tmp_path / "run", resume=True).result.steps == 8


@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 2), (1, 2), (2, 1)])
def test_checkpoint_between_epochs_is_for_any_number_of_workers(tmp_path, before, after):
    # A cluster that comes back with fewer machines must be able to go on.
    job = job_in(tmp_path, epochs=1)
    first = Workers(job, before, tmp_path / "run").result
    longer = override(job, ["train.epochs=2"])
    second = Workers(longer, after, tmp_path / "run", resume=True).result
    assert (second.epochs, second.samples) == (2, 2 * first.samples)
    assert second.steps > first.steps
    assert second.gradients["sent"] == second.gradients["applied"]


def test_checkpoint_of_several_workers_evaluates_in_one_process(tmp_path):
    job = job_in(tmp_path, max_steps=6)
    result = Workers(job, 2, tmp_path / "run").result
    assert checkpoint.inspect(result.checkpoint).step == 6
    assert Trainer.from_checkpoint(result.checkpoint).evaluate(job.data.test).auc == pytest.approx(result.test.auc)


def test_optimizer_of_another_kind_is_refused_for_all(tmp_path):
    job = job_in(tmp_path, max_steps=3)
    Workers(job, 2, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"holds the state of Adam, but train\.optimizer is SGD"):
        Workers(override(job, ["train.optimizer.kind=sgd", "train.max_steps=5"]), 2, tmp_path / "run", resume=True)
