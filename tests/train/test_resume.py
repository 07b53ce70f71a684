"""A run that is stopped and resumed equals, to the bit, the one that was never stopped."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from samples import click_job

from satrap import checkpoint
from satrap.errors import CheckpointError, DataError, JobError, TrainingError
from satrap.observe.runlog import read_metrics
from satrap.schema import Checkpointing, EarlyStopping, Schedule, override
from satrap.train import Trainer

EVERY = {"eval_every_steps": 10, "log_every_steps": 3, "epochs": 2, "schedule": Schedule(kind="cosine", warmup_steps=5)}


def fit(job, run_dir, **kw):
    """Trains quietly; returns the result and the digest of the model it ends with."""
    result = Trainer(job, run_dir=run_dir, progress=False, plots=False).fit(**kw)
    return result, checkpoint.digest(result.checkpoint)


def figures(run_dir):
    """What the log says that does not depend on time or memory (`rows` counts those of lookups ahead, too), by step: a
    checkpoint is told when it is written, some steps later."""
    timed = {"time", "samples_per_s", "rss_bytes", "rows", "stages_s", "stages_cpu_s"}
    records = [
        {k: v for k, v in r.items() if k not in timed}
        for r in read_metrics(run_dir)
        if r["kind"] in ("train", "eval", "checkpoint")
    ]
    return sorted(records, key=lambda r: r["step"])


def copy_up_to(run_dir: Path, target: Path, step: int) -> None:
    """The run folder as a crash after this step's checkpoint would have left it."""
    shutil.copytree(run_dir, target)
    for path in checkpoint.checkpoints(target):
        if int(path.name[5:]) > step:
            shutil.rmtree(path)


@pytest.mark.parametrize("staleness", [0, 3])
def test_resume_from_any_checkpoint_equals_the_uninterrupted_run(tmp_path, staleness):
    # Dropout, cosine schedule, Adam moments, shuffled windows, metrics so far: anything forgotten shows in the bits.
    job = click_job(
        tmp_path, staleness=staleness, sync_warmup_steps=4, checkpoint=Checkpointing(every_steps=7, keep=99), **EVERY
    )
    whole, expected = fit(job, tmp_path / "whole")
    assert whole.steps == 2 * -(-(whole.samples // 2) // 32) > 28
    for step in (7, 14, 21, 28):
        copy_up_to(tmp_path / "whole", tmp_path / f"from{step}", step)
        resumed, digest = fit(job, tmp_path / f"from{step}", resume=True)
        assert digest == expected
        assert (resumed.test, resumed.valid, resumed.steps) == (whole.test, whole.valid, whole.steps)
        assert figures(tmp_path / f"from{step}") == figures(tmp_path / "whole")


def test_staleness_changes_the_model_so_that_the_tests_above_mean_something(tmp_path):
    digests = {fit(click_job(tmp_path, staleness=k, epochs=2), tmp_path / f"k{k}")[1] for k in (0, 1, 3)}
    assert len(digests) == 3


def test_synchronous_resume_does_not_depend_on_where_checkpoints_were_saved(tmp_path):
    plain = fit(click_job(tmp_path, **EVERY), tmp_path / "plain")[1]
    often = click_job(tmp_path, checkpoint=Checkpointing(every_steps=5), **EVERY)
    assert fit(often, tmp_path / "often")[1] == plain


def test_same_seed_gives_the_same_bits_on_one_and_two_store_threads(tmp_path):
    import msgspec

    from satrap.schema import Store

    job = click_job(tmp_path, staleness=2)
    jobs = [msgspec.structs.replace(job, store=Store(partitions=4, threads=n)) for n in (1, 2)]
    assert len({fit(j, tmp_path / f"t{j.store.threads}")[1] for j in jobs}) == 1


SCRIPT = """
    import os, signal, sys
    sys.path[:0] = [{tests!r}, {room!r}]
    from pathlib import Path
    from samples import click_job
    from satrap.schema import Adam, Schedule
    from satrap.train import Trainer
    from satrap.train.run import Run

    step, ctrl_c_at = Run._step, {at}

    def counted(run, lookup, leg, agreed):
        if run.state.step == ctrl_c_at:
            os.kill(os.getpid(), signal.SIGINT)
        step(run, lookup, leg, agreed)

    Run._step = counted
    job = click_job(Path({folder!r}), staleness={staleness}, **{options})
    result = Trainer(job, run_dir={run!r}, progress=False, plots=False).fit()
    print(result.stopped, result.steps, result.checkpoint.name)
"""


def run_with_ctrl_c(folder: Path, run_dir: Path, at: int, options: str, staleness: int = 0):
    script = textwrap.dedent(SCRIPT).format(
        tests=str(Path(__file__).parent.parent),
        room=str(Path(__file__).parent),
        folder=str(folder),
        run=str(run_dir),
        at=at,
        options=options,
        staleness=staleness,
    )
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600, env=os.environ)


@pytest.mark.parametrize("staleness", [0, 3])
def test_ctrl_c_saves_a_checkpoint_from_which_training_goes_on_at_the_exact_row(tmp_path, staleness):
    job = click_job(tmp_path, staleness=staleness, epochs=2)
    done = run_with_ctrl_c(tmp_path, tmp_path / "stopped", 11, "dict(epochs=2)", staleness)
    assert (done.returncode, done.stdout.split()) == (0, ["interrupted", "12", "step-00000012"]), done.stderr
    resumed, digest = fit(job, tmp_path / "stopped", resume=True)
    assert (resumed.stopped, resumed.epochs) == ("done", 2)
    # In hybrid mode the drain at Ctrl-C is part of the schedule: the run to compare with drains there too.
    changes = {} if staleness == 0 else {"checkpoint": Checkpointing(every_steps=12, keep=9)}
    at_12 = click_job(tmp_path, staleness=staleness, epochs=2, **changes)
    if staleness:
        fit(at_12, tmp_path / "whole12")
        copy_up_to(tmp_path / "whole12", tmp_path / "whole", 12)
        assert checkpoint.digest(tmp_path / "whole" / "checkpoints" / "step-00000012") != digest
        assert fit(job, tmp_path / "whole", resume=True)[1] == digest
    else:
        assert fit(at_12, tmp_path / "whole")[1] == digest


def test_ctrl_c_in_an_evaluation_leaves_it_due_for_the_resumed_run(tmp_path, monkeypatch):
    # The evaluation decides early stopping: skipped for good, a resumed run stops elsewhere.
    options = {"epochs": 2, "eval_every_steps": 6, "early_stopping": EarlyStopping(patience=9)}
    job = click_job(tmp_path, **options)
    whole, expected = fit(job, tmp_path / "whole")

    from satrap.train import run as module

    real, calls = module.evaluate, []

    def interrupted(*args, **kw):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*args, **kw)

    monkeypatch.setattr(module, "evaluate", interrupted)
    stopped, _ = fit(job, tmp_path / "stopped")
    assert (stopped.stopped, stopped.steps, stopped.test) == ("interrupted", 12, None)
    monkeypatch.setattr(module, "evaluate", real)
    resumed, digest = fit(job, tmp_path / "stopped", resume=True)
    assert digest == expected
    evaluations = [r for r in figures(tmp_path / "stopped") if r["kind"] == "eval"]
    assert evaluations == [r for r in figures(tmp_path / "whole") if r["kind"] == "eval"]
    assert resumed.valid == whole.valid


def test_second_ctrl_c_stops_at_once_and_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    from satrap.train.run import Run

    step = Run._step

    def twice(run, lookup, leg, agreed):
        if run.state.step == 9:
            while checkpoint.latest(tmp_path / "run") is None:  # it is written meanwhile
                time.sleep(0.001)
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
        step(run, lookup, leg, agreed)

    monkeypatch.setattr(Run, "_step", twice)
    job = click_job(tmp_path, checkpoint=Checkpointing(every_steps=6))
    before = signal.getsignal(signal.SIGINT)  # a shell starts its background jobs with the signal ignored
    with pytest.raises(KeyboardInterrupt):
        Trainer(job, run_dir=tmp_path / "run", progress=False, plots=False).fit()
    assert checkpoint.latest(tmp_path / "run").name == "step-00000006"
    checkpoint.verify(checkpoint.latest(tmp_path / "run"))
    assert signal.getsignal(signal.SIGINT) is before


def test_resume_without_a_checkpoint_starts_from_the_beginning(tmp_path):
    job = click_job(tmp_path)
    expected = fit(job, tmp_path / "plain")[1]
    assert fit(job, tmp_path / "fresh", resume=True)[1] == expected


def test_fit_into_a_folder_that_holds_a_run_is_refused(tmp_path):
    # Two runs in one folder: `latest` would pick the longer of them.
    job = click_job(tmp_path, max_steps=3)
    fit(job, tmp_path / "run")
    with pytest.raises(JobError, match="already holds the checkpoints of a run"):
        fit(job, tmp_path / "run")


def test_second_fit_of_one_trainer_is_refused(tmp_path):
    # Rows and moments of the first training would leak into the second, and its pushes count as repetitions.
    trainer = Trainer(click_job(tmp_path, max_steps=3), run_dir=tmp_path / "run", progress=False, plots=False)
    trainer.fit()
    with pytest.raises(TrainingError, match="this trainer has been used"):
        trainer.fit(resume=True)


def test_resume_on_other_data_is_refused(tmp_path):
    # A position in other files is a place in nothing: rows would be trained twice or never.
    job = click_job(tmp_path, max_steps=5)
    fit(job, tmp_path / "run")
    (tmp_path / "train.parquet").unlink()
    longer = click_job(tmp_path, rows=700, max_steps=9)
    with pytest.raises(DataError):
        fit(longer, tmp_path / "run", resume=True)


def test_resume_of_a_finished_run_gives_its_result_again(tmp_path):
    job = click_job(tmp_path)
    first, digest = fit(job, tmp_path / "run")
    again, same = fit(job, tmp_path / "run", resume=True)
    assert (again.test, again.steps, same) == (first.test, first.steps, digest)
    # Validating again would count against the patience of early stopping.
    assert sum(r["kind"] == "eval" and r["split"] == "valid" for r in figures(tmp_path / "run")) == 1


def test_a_checkpoint_evaluates_and_predicts_as_the_trainer_that_saved_it(tmp_path):
    job = click_job(tmp_path, staleness=2)
    trainer = Trainer(job, run_dir=tmp_path / "run", progress=False, plots=False)
    result = trainer.fit()
    loaded = Trainer.from_checkpoint(result.checkpoint)
    assert loaded.evaluate(job.data.test) == result.test == trainer.evaluate(job.data.test)
    ours, theirs = (np.concatenate(list(t.predict(job.data.test[0]))) for t in (trainer, loaded))
    assert ours.shape == (200, 1)
    assert np.array_equal(ours, theirs)
    with pytest.raises(TrainingError, match="this trainer has been used"):
        loaded.fit()


def test_settings_of_the_optimizer_that_are_changed_for_a_resume_take_effect(tmp_path):
    # torch's load_state_dict brings the saved betas, eps and weight decay back, over those the user has just changed.
    for name, change in (("same", []), ("decayed", ["train.optimizer.weight_decay=0.5"])):
        fit(click_job(tmp_path, max_steps=5), tmp_path / name)
        job = override(click_job(tmp_path, max_steps=9), change)
        trainer = Trainer(job, run_dir=tmp_path / name, progress=False, plots=False)
        trainer.fit(resume=True)
    assert len({checkpoint.digest(checkpoint.latest(tmp_path / n)) for n in ("same", "decayed")}) == 2


def test_resume_with_another_optimizer_is_refused(tmp_path):
    # Its state would be read as something else, or crash in the first step.
    fit(click_job(tmp_path, max_steps=5), tmp_path / "run")
    other = override(click_job(tmp_path, max_steps=9), ["train.optimizer.kind=sgd"])
    with pytest.raises(CheckpointError, match=r"holds the state of Adam, but train\.optimizer is SGD"):
        fit(other, tmp_path / "run", resume=True)


def test_files_that_are_not_there_leave_no_run_folder_behind(tmp_path):
    job = override(click_job(tmp_path), [f"data.train=[{tmp_path}/nowhere.parquet]"])
    with pytest.raises(DataError):
        fit(job, tmp_path / "run")
    assert not (tmp_path / "run").exists()
