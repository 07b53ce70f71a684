"""`Trainer` as a user sees it: from files to results, and every option of `Train` with its effect."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import threading
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from samples import click_file, click_job
from torch import nn

from reference import ReferenceService
from satrap import checkpoint
from satrap.errors import CheckpointError, DataError, JobError, TrainingError
from satrap.models import Named
from satrap.observe import read_metrics
from satrap.ps import LocalService
from satrap.schema import (
    SGD,
    Adam,
    AdamW,
    Checkpointing,
    EarlyStopping,
    Label,
    Numeric,
    Schedule,
    Train,
    load_job,
    override,
)
from satrap.train import Trainer
from satrap.train.run import Run


def trainer_of(job, run_dir, **kw) -> Trainer:
    return Trainer(job, run_dir=run_dir, progress=False, plots=False, **kw)


def fit(job, run_dir, **kw):
    return trainer_of(job, run_dir, **kw).fit()


def digest_of(job, run_dir) -> str:
    return checkpoint.digest(fit(job, run_dir).checkpoint)


def kinds(run_dir, kind):
    return [r for r in read_metrics(run_dir) if r["kind"] == kind]


def test_fit_learns_saves_and_accounts_for_every_gradient(tmp_path):
    job = click_job(tmp_path, rows=3000, epochs=4, staleness=3, log_every_steps=7)
    trainer = trainer_of(job, tmp_path / "run")
    result = trainer.fit()
    assert result.test.auc > 0.60  # by chance 0.50, give or take 0.04
    assert (result.stopped, result.epochs, result.steps) == ("done", 4, 4 * math.ceil(result.samples / 4 / 32))
    assert trainer.engine.ledger.balanced
    assert result.gradients["sent"] == result.gradients["applied"] == trainer.engine.ledger.sent > 0
    assert (result.staleness_max, result.rows) == (3, sum(s.rows for s in trainer.service.stats().values()))
    assert 0 < result.staleness_mean <= 3
    assert result.size.bytes_per_row > 16
    assert result.checkpoint.name == f"step-{result.steps:08d}"
    assert checkpoint.verify(result.checkpoint).step == result.steps
    assert load_job(tmp_path / "run" / "job.yaml") == job
    logged = kinds(tmp_path / "run", "train")
    assert [r["step"] for r in logged] == list(range(7, result.steps + 1, 7))
    assert result.loss == logged[-1]["loss"] < logged[0]["loss"]
    json.dumps(result.figures())
    assert (result.samples_per_s > 0, result.stages.dense > 0) == (True, True)


def test_plots_are_drawn_at_the_end_from_the_log(tmp_path):
    job = click_job(tmp_path, max_steps=4, log_every_steps=1)
    result = Trainer(job, run_dir=tmp_path / "run", progress=False).fit()
    names = {p.name for p in result.plots}
    assert {"loss.png", "roc.png", "calibration.png"} <= names
    assert all(p.stat().st_size > 1000 for p in result.plots)


def test_results_do_not_depend_on_what_ran_in_the_process_before(tmp_path):
    job = click_job(tmp_path, max_steps=8)
    first = digest_of(job, tmp_path / "a")
    torch.rand(100)
    assert digest_of(job, tmp_path / "b") == first


def test_short_last_batch_is_trained_with_its_own_mean(tmp_path):
    # Dropping it loses rows; dividing by the full batch size shrinks its gradient.
    job = click_job(tmp_path, rows=100, changes={})
    job = override(job, ["data.valid=0", "train.batch_size=30"])
    result = fit(job, tmp_path / "run")
    assert (result.steps, result.samples) == (4, 100)


def test_evaluation_in_the_middle_changes_nothing(tmp_path, monkeypatch):
    # Flaw 2 of the original Persia: evaluating reset the servers' hyper-parameters. Here rows, dropout's random
    # numbers, batch norm and the schedule must all be as if no evaluation had happened.
    job = click_job(tmp_path, epochs=2, schedule=Schedule(kind="linear", warmup_steps=3))
    job = override(job, ["model.norm=batch", "model.hidden=[16]", "model.dropout=0.3"])
    plain = digest_of(job, tmp_path / "plain")
    often = override(job, ["train.eval_every_steps=3"])
    assert digest_of(often, tmp_path / "often") == plain
    assert len(kinds(tmp_path / "often", "eval")) > len(kinds(tmp_path / "plain", "eval"))


def test_evaluation_makes_no_row_and_draws_from_no_generator_that_training_uses(tmp_path):
    class Noisy(nn.Module):
        """Draws from both global generators, in evaluation too."""

        def __init__(self):
            super().__init__()
            self.out = nn.Linear(13, 1)

        def forward(self, numeric: Named, embeddings: Named) -> torch.Tensor:
            noise = torch.rand(()) + np.random.random()
            return self.out(torch.cat([numeric.cat(), embeddings.pooled().cat()], 1)) * noise

    def run(name, *changes):
        torch.manual_seed(0)
        np.random.seed(0)
        job = override(click_job(tmp_path, max_steps=9), list(changes))
        trainer = trainer_of(job, tmp_path / name, model=Noisy())
        result = trainer.fit()
        rows = {t: s.rows for t, s in trainer.service.stats().items()}
        trainer.evaluate(job.data.test)
        assert {t: s.rows for t, s in trainer.service.stats().items()} == rows
        return checkpoint.digest(result.checkpoint)

    assert run("plain") == run("often", "train.eval_every_steps=2")


def test_checkpoints_and_evaluations_happen_with_the_pipeline_drained(tmp_path, monkeypatch):
    # A checkpoint with pushes in flight is no cut: a resume would lose or repeat them.
    operations = []
    from satrap.embedding import EmbeddingEngine

    for name in ("lookup", "push"):
        real = getattr(EmbeddingEngine, name)

        def recorded(self, x, _real=real, _name=name, **kw):
            if kw.get("train", True):
                operations.append(_name)
            return _real(self, x, **kw)

        monkeypatch.setattr(EmbeddingEngine, name, recorded)
    for name in ("_measure", "_save_if_due"):
        real_stop = getattr(Run, name)

        def watched(self, *args, _real=real_stop, **kw):
            assert operations.count("lookup") == operations.count("push") == self.state.step
            return _real(self, *args, **kw)

        monkeypatch.setattr(Run, name, watched)
    job = click_job(tmp_path, staleness=5, eval_every_steps=6, checkpoint=Checkpointing(every_steps=4))
    result = fit(job, tmp_path / "run")
    assert result.steps == operations.count("push")
    assert operations[:5] == ["lookup"] * 4 + ["push"]


def test_early_stopping_keeps_tests_and_reports_the_best_model(tmp_path):
    # With a learning rate this high the model soon gets worse on what it has not seen.
    job = click_job(
        tmp_path, epochs=50, optimizer=Adam(lr=0.05), early_stopping=EarlyStopping(metric="log_loss", patience=2)
    )
    trainer = trainer_of(override(job, ["train.embedding_optimizer.lr=0.5"]), tmp_path / "run")
    result = trainer.fit()
    history = [(r["log_loss"], r["step"]) for r in kinds(tmp_path / "run", "eval") if r["split"] == "valid"]
    best_loss, best_step = min(history)
    assert (result.stopped, len(history)) == ("early_stopping", history.index((best_loss, best_step)) + 3)
    assert result.epochs < 50
    assert result.checkpoint.name == f"step-{best_step:08d}" == checkpoint.best(tmp_path / "run").name
    assert result.valid.log_loss == best_loss
    assert trainer.evaluate(job.data.test) == result.test
    assert Trainer.from_checkpoint(result.checkpoint).evaluate(job.data.test) == result.test


def test_early_stopping_by_auc_and_min_delta_decides_what_counts_as_better(tmp_path):
    base = click_job(tmp_path, epochs=6, early_stopping=EarlyStopping(patience=2, min_delta=0.9))
    result = fit(base, tmp_path / "run")
    assert (result.stopped, result.epochs) == ("early_stopping", 3)


def test_keep_leaves_the_newest_checkpoints_and_the_best(tmp_path):
    job = click_job(
        tmp_path, epochs=3, early_stopping=EarlyStopping(patience=9), checkpoint=Checkpointing(every_steps=3, keep=2)
    )
    last = fit(job, tmp_path / "run").steps
    steps = [int(p.name[5:]) for p in checkpoint.checkpoints(tmp_path / "run")]
    best = int(checkpoint.best(tmp_path / "run").name[5:])
    assert set(steps) == {best, *sorted({best, *range(3, last, 3), last})[-2:]}
    assert steps[-1] == last


def test_checkpoint_period_that_meets_the_end_of_an_epoch_keeps_its_evaluation(tmp_path):
    # Saved before it was known that the epoch had ended, the checkpoint knew of no evaluation, and none was the best.
    job = override(click_job(tmp_path, early_stopping=EarlyStopping()), ["data.shuffle_rows=0"])
    steps = fit(job, tmp_path / "plain").steps
    job = override(job, [f"train.checkpoint.every_steps={steps}", "train.epochs=2"])
    fit(job, tmp_path / "run")
    first = checkpoint.load(tmp_path / "run" / "checkpoints" / f"step-{steps:08d}")
    assert (first.extra["run"]["evaluated_at"], first.extra["run"]["epoch"]) == (steps, 1)
    assert checkpoint.best(tmp_path / "run") is not None


def test_unreadable_batch_is_told_after_the_checkpoint_before_it_is_saved(tmp_path, monkeypatch):
    from satrap.train.sources import Sources

    real = Sources.train

    def broken(self, epoch, start):
        for n, batch in enumerate(real(self, epoch, start)):
            if n == 6:
                raise DataError("row group 9 is damaged")
            yield batch

    monkeypatch.setattr(Sources, "train", broken)
    with pytest.raises(DataError, match="row group 9"):
        fit(click_job(tmp_path, checkpoint=Checkpointing(every_steps=6)), tmp_path / "run")
    assert checkpoint.latest(tmp_path / "run").name == "step-00000006"


def test_loss_that_is_not_finite_stops_with_the_last_good_checkpoint_intact(tmp_path):
    path = click_file(tmp_path / "train.parquet", 400, seed=1, bad_price_at=250)
    click_file(tmp_path / "test.parquet", 50, seed=2)
    job = click_job(tmp_path, checkpoint=Checkpointing(every_steps=1))
    job = override(job, ["data.shuffle_rows=0", "data.valid=0"])

    class Steep(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(13, 1)

        def forward(self, numeric: Named, embeddings: Named) -> torch.Tensor:
            return self.out(torch.cat([numeric.cat() * 10, embeddings.pooled().cat()], 1))

    trainer = trainer_of(job, tmp_path / "run", model=Steep())
    with pytest.raises(TrainingError, match=r"step 8: .* the largest number is 3e\+38, in feature 'price'") as e:
        trainer.fit()
    assert "32 samples, from epoch 0, window 0, row 224 to epoch 0, window 0, row 256" in str(e.value)
    assert path in job.data.train
    newest = checkpoint.latest(tmp_path / "run")
    assert newest.name == "step-00000007"
    assert checkpoint.verify(newest).step == 7
    # Nothing of the bad batch reached the tables: they are those of the checkpoint.
    assert trainer.engine.ledger.pushes == 7


def test_dense_weight_that_is_not_finite_is_never_saved(tmp_path, monkeypatch):
    from satrap.train.step import DenseStep

    real = DenseStep.apply

    def poisoned(self, outcome, lr_factor):
        real(self, outcome, lr_factor)
        if self.model.training and not hasattr(self, "count"):
            self.count = 0
        self.count += 1
        if self.count == 6:
            with torch.no_grad():
                self.parameters[0].view(-1)[0] = float("nan")

    monkeypatch.setattr(DenseStep, "apply", poisoned)
    job = click_job(tmp_path, checkpoint=Checkpointing(every_steps=3))
    with pytest.raises(TrainingError, match=r"the dense weight \S+ is not finite after step 6: no checkpoint"):
        fit(job, tmp_path / "run")
    assert [p.name for p in checkpoint.checkpoints(tmp_path / "run")] == ["step-00000003"]


def test_two_labels_are_trained_and_measured_by_name(tmp_path):
    job = click_job(tmp_path, staleness=2)
    job = msgspec.structs.replace(
        job, data=msgspec.structs.replace(job.data, label=(Label(column="click"), Label(column="buy")))
    )
    trainer = trainer_of(job, tmp_path / "run")
    result = trainer.fit()
    assert list(result.test.by_label) == ["click", "buy"]
    assert result.test.auc == pytest.approx(np.mean([m.auc for m in result.test.by_label.values()]))
    assert {r["label"] for r in kinds(tmp_path / "run", "eval")} == {"click", "buy"}
    assert next(trainer.predict(job.data.test)).shape == (32, 2)


def test_standard_scaling_is_measured_once_and_kept_in_the_run_and_the_checkpoint(tmp_path):
    job = click_job(tmp_path, max_steps=4)
    scaled = tuple(msgspec.structs.replace(f, scale="standard") if isinstance(f, Numeric) else f for f in job.features)
    job = msgspec.structs.replace(job, features=scaled)
    result = fit(job, tmp_path / "run")
    for kept in (load_job(tmp_path / "run" / "job.yaml"), checkpoint.load(result.checkpoint).job):
        (price,) = kept.numeric_features
        assert price.mean == pytest.approx(0, abs=0.2)
        assert price.std == pytest.approx(1, abs=0.2)
    longer = override(job, ["train.max_steps=6"])
    assert trainer_of(longer, tmp_path / "run").fit(resume=True).steps == 6


def test_job_without_validation_or_test_rows_trains_all_rows(tmp_path):
    job = override(click_job(tmp_path), ["data.valid=0", "data.test=[]"])
    result = fit(job, tmp_path / "run")
    assert (result.samples, result.valid, result.test) == (600, None, None)


def test_validation_files_are_used_as_they_are(tmp_path):
    job = click_job(tmp_path)
    valid = click_file(tmp_path / "valid.parquet", 77, seed=9)
    result = fit(override(job, [f"data.valid=[{valid}]"]), tmp_path / "run")
    assert (result.samples, result.valid.samples) == (600, 77)


def test_files_without_rows_are_a_data_error(tmp_path):
    job = click_job(tmp_path)
    click_file(tmp_path / "train.parquet", 0)
    with pytest.raises(DataError, match="no rows"):
        fit(job, tmp_path / "run")


def test_tables_trained_further_than_the_run_are_refused_not_ignored(tmp_path):
    # Every push would count as a repetition: training would seem to run and change nothing.
    job = click_job(tmp_path)
    service = LocalService.of(job)
    service.set_clients({0: (0, 1000)})
    with pytest.raises(TrainingError, match="trained further than this run"):
        fit(job, tmp_path / "run", service=service)


def test_checkpoint_of_another_module_is_refused_before_a_row_is_touched(tmp_path):
    job = click_job(tmp_path, max_steps=3)
    result = fit(job, tmp_path / "run")
    with pytest.raises(CheckpointError, match="has no weights for"):
        Trainer.from_checkpoint(result.checkpoint, model=nn.ModuleDict({"other": nn.Linear(2, 1)}))


def test_falling_schedule_needs_the_length_of_the_run_where_the_rows_are_not_known(tmp_path):
    (tmp_path / "rows.csv").write_text("x,click\n" + "\n".join(f"{i % 7},{i % 2}" for i in range(99)))
    job = override(click_job(tmp_path, schedule=Schedule(kind="cosine")), ["data.valid=0", "data.test=[]"])
    data = msgspec.structs.replace(job.data, train=(str(tmp_path / "rows.csv"),))
    job = msgspec.structs.replace(job, data=data, features=(Numeric(name="x"),), tables=())
    with pytest.raises(JobError, match=r"train.schedule.decay_steps"):
        fit(job, tmp_path / "run")
    result = fit(override(job, ["train.max_steps=3"]), tmp_path / "known")
    assert result.steps == 3


def test_any_parameter_service_can_stand_in_for_the_tables(tmp_path, monkeypatch):
    # The whole path on the plain reference's rows gives the same model to rounding.
    job = override(click_job(tmp_path, max_steps=10), ["model.dropout=0"])
    untouched = LocalService.of(job)
    from satrap.ps import PullRequest

    def initial(table, ids):
        return untouched.pull(PullRequest(ids={table.name: ids}, create=False)).values[table.name]

    native = trainer_of(job, tmp_path / "native")
    plain = trainer_of(job, tmp_path / "plain", service=ReferenceService(job.resolved_tables(), initial))
    # The reference has no way to give its rows away, so nothing is saved.
    monkeypatch.setattr("satrap.train.run.Checkpoints.begin", lambda self, state, report, *, behind: None)
    native.fit()
    plain.fit()
    assert plain.engine.ledger.balanced
    for have, want in zip(native.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(have, want, rtol=1e-3, atol=1e-5)


# Every option of Train: (settings before, settings after, what must differ between the two runs).
OPTIONS = {
    "batch_size": ([], ["train.batch_size=16"], "steps"),
    "micro_batch_size": ([], ["train.micro_batch_size=5"], "pieces"),
    "epochs": ([], ["train.epochs=2"], "steps"),
    "max_steps": ([], ["train.max_steps=5"], "steps"),
    "optimizer": ([], ["train.optimizer.lr=0.1"], "model"),
    "embedding_optimizer": ([], ["train.embedding_optimizer.lr=0.5"], "model"),
    "schedule": ([], ["train.schedule.warmup_steps=9"], "model"),
    "clip_norm": ([], ["train.clip_norm=0.01"], "model"),
    "staleness": ([], ["train.staleness=2"], "model"),
    "sync_warmup_steps": (["train.staleness=2"], ["train.sync_warmup_steps=6"], "model"),
    "staleness_damping": (["train.staleness=2"], ["train.staleness_damping=false"], "model"),
    "dense_mode": ([], ["train.dense_mode=async"], "model"),
    "precision": ([], ["train.precision=bf16"], "model"),
    "compile": ([], ["train.compile=true"], "compiled"),
    "device": ([], ["train.device=cuda"], "refused"),
    "threads": ([], ["train.threads=2"], "threads"),
    "eval_every_steps": ([], ["train.eval_every_steps=5"], "evaluations"),
    "early_stopping": (["train.epochs=4"], ["train.early_stopping={patience: 1, min_delta: 0.9}"], "steps"),
    "checkpoint": ([], ["train.checkpoint.every_steps=5"], "checkpoints"),
    "log_every_steps": ([], ["train.log_every_steps=4"], "log lines"),
}


def test_every_option_of_train_is_in_the_table_of_effects():
    assert set(OPTIONS) == set(Train.__struct_fields__)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_of_train_changes_what_it_says_or_is_refused(tmp_path, monkeypatch, option):
    # Flaw 8 of the original Persia: arguments that are accepted and ignored.
    before, after, effect = OPTIONS[option]
    base = override(click_job(tmp_path), before)
    changed = override(base, after)
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or model)
    if effect == "refused" and not torch.cuda.is_available():
        with pytest.raises(TrainingError, match="torch finds no CUDA device"):
            fit(changed, tmp_path / "b")
        return
    forwards = []
    real = nn.Module.__call__
    monkeypatch.setattr(nn.Linear, "__call__", lambda self, x: forwards.append(len(x)) or real(self, x))
    effects = []
    for job, name in ((base, "a"), (changed, "b")):
        run = tmp_path / name
        result = fit(job, run)
        effects.append(
            {
                "steps": result.steps,
                "model": checkpoint.digest(result.checkpoint),
                "threads": torch.get_num_threads(),
                "compiled": len(compiled),
                "evaluations": len(kinds(run, "eval")),
                "checkpoints": len(kinds(run, "checkpoint")),
                "log lines": len(kinds(run, "train")),
                "pieces": len(forwards),
            }[effect]
        )
        forwards.clear()
    assert effects[0] != effects[1]


def test_weight_decay_of_the_dense_optimizer_has_its_effect(tmp_path):
    for kind in ("adamw", "sgd"):
        spec = {"adamw": AdamW(lr=0.01), "sgd": SGD(lr=0.01)}[kind]
        job = click_job(tmp_path, max_steps=6, optimizer=spec)
        decayed = override(job, ["train.optimizer.weight_decay=0.5"])
        assert digest_of(job, tmp_path / kind) != digest_of(decayed, tmp_path / f"{kind}-decayed")


def test_training_in_another_thread_works_and_leaves_the_signals_alone(tmp_path):
    # Python lets only the main thread set signal handlers; notebooks and servers train in others.
    results, before = [], signal.getsignal(signal.SIGINT)
    job = click_job(tmp_path, max_steps=3)
    thread = threading.Thread(target=lambda: results.append(fit(job, tmp_path / "run")))
    thread.start()
    thread.join()
    assert [r.stopped for r in results] == ["done"]
    assert signal.getsignal(signal.SIGINT) is before


def test_default_run_folder_is_named_after_job_and_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainers = [Trainer(click_job(tmp_path, max_steps=2), progress=False, plots=False) for _ in range(1)]
    result = trainers[0].fit()
    assert result.run_dir.parent == Path("runs")
    assert result.run_dir.name.startswith("clicks-")
    second = Trainer(click_job(tmp_path, max_steps=2), progress=False, plots=False)
    assert second.run_dir != result.run_dir


def test_result_is_plain_and_frozen(tmp_path):
    result = fit(click_job(tmp_path, max_steps=2), tmp_path / "run")
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.steps = 3
