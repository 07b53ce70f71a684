"""Several workers train the model that one process trains on their batches taken together."""

from __future__ import annotations

import copy

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import click_job, random_batches
from test_equivalence import ATOL, RTOL, FixedSources, job_of, jobs, table, train_with_satrap
from thread_group import in_threads
from torch import nn
from workers import Workers, divided

from satrap import checkpoint, models
from satrap.embedding import EmbeddingEngine
from satrap.errors import TrainingError
from satrap.ps import LocalService, PullRequest
from satrap.schema import SGD, Adam, AdamW, Categorical, Numeric, override
from satrap.train import Trainer
from satrap.train.pipeline import Feed, Leg
from satrap.train.results import StageSeconds
from satrap.train.schedule import StalenessSchedule
from satrap.train.step import DenseStep, weight_of
from satrap.train.summing import GradientSum


def train_in_group(job, models_, batches, service):
    """Each worker's losses, of steps that it does with its own batches until nobody has one."""

    def work(group):
        engine = EmbeddingEngine(job, service, client=group.rank)
        dense = DenseStep(job, models_[group.rank], torch.device("cpu"), group)
        feed, losses = Feed(iter(batches[group.rank]), engine.prepare, StageSeconds()), []
        schedule = StalenessSchedule(job.train.staleness, job.train.sync_warmup_steps)
        with Leg(engine, feed, schedule, world=group.world, seconds=StageSeconds()) as leg:
            for lookup in leg:
                agreed = group.agree(weight_of(lookup), lookup is not None, False)
                if not agreed.with_data:
                    break
                outcome = dense.compute(lookup, agreed)
                leg.push(lookup, lr_factor=1.0)
                dense.apply(outcome, 1.0)
                losses.append(outcome.loss)
        assert engine.ledger.balanced
        return losses

    return in_threads(len(models_), work)


def assert_same_rows(tables, have, want, rtol=RTOL, atol=ATOL):
    for t in tables:
        blocks = [want.export_rows(t.name, p) for p in range(want.partitions)]
        ids = np.concatenate([b.ids for b in blocks])
        assert have.stats()[t.name].rows == len(ids)
        rows = have.pull(PullRequest(ids={t.name: ids}, create=False)).values[t.name]
        np.testing.assert_allclose(rows, np.concatenate([b.values for b in blocks]), rtol, atol, err_msg=t.name)


@st.composite
def divisions(draw, world):
    """[step][worker] samples: each worker's data ends where it likes, nobody's before the first step."""
    steps = draw(st.integers(1, 4))
    ends = [draw(st.integers(0, steps)) for _ in range(world)]
    ends[draw(st.integers(0, world - 1))] = steps
    return [[draw(st.integers(1, 6)) if t < end else 0 for end in ends] for t in range(steps)]


@settings(max_examples=40, deadline=None)
@given(
    data=st.data(),
    job=jobs(),
    world=st.sampled_from([2, 3, 4]),
    staleness=st.sampled_from([0, 0, 1, 2]),
    seed=st.integers(0, 1 << 20),
)
def test_any_job_trains_on_several_workers_as_on_one_with_all_their_samples(data, job, world, staleness, seed):
    # Weighted samples, several labels, pieces, clipping, shared rows, uneven ends: where a mean of means goes wrong.
    # With staleness: a step of a row for each worker's push, or a lookup that sees what another was quick to push.
    job = msgspec.structs.replace(job, train=msgspec.structs.replace(job.train, staleness=staleness))
    sizes = data.draw(divisions(world))
    batches = random_batches(job, [sum(s) for s in sizes], seed)
    torch.manual_seed(job.seed)
    model = models.build(job)
    replicas = [copy.deepcopy(model) for _ in range(world)]
    one, several = (LocalService(job.resolved_tables(), seed=job.seed, partitions=4, threads=1) for _ in range(2))
    expected = train_with_satrap(job, model, batches, one)
    for losses in train_in_group(job, replicas, divided(batches, sizes), several):
        np.testing.assert_allclose(losses, expected, RTOL, ATOL)
    for replica in replicas:
        for (name, have), want in zip(replica.state_dict().items(), model.state_dict().values(), strict=True):
            np.testing.assert_allclose(have.numpy(), want.numpy(), RTOL, ATOL, err_msg=name)
    assert_same_rows(job.resolved_tables(), several, one)
    for first, *others in zip(*(r.parameters() for r in replicas), strict=True):
        assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize(
    "optimizer", [Adam(lr=0.05, eps=1e-3), AdamW(lr=0.05, weight_decay=0.1), SGD(lr=0.3, momentum=0.9)]
)
def test_fit_of_several_workers_equals_one_process_on_the_global_batches(tmp_path, monkeypatch, world, optimizer):
    features = (Categorical(name="a", table="t"), Numeric(name="x", width=2))
    job = job_of(features, (table(optimizer=SGD(lr=0.3)),), labels=2, weight="w", threads=1, optimizer=optimizer)
    sizes = [[3 + (r + t) % 3 if t < 6 or r == 0 else 0 for r in range(world)] for t in range(8)]
    batches = random_batches(job, [sum(s) for s in sizes], seed=4)
    each = divided(batches, sizes)
    monkeypatch.setattr("satrap.train.trainer.Sources", lambda job, shard: FixedSources(each[shard[0]]))
    workers = Workers(job, world, tmp_path / "several")
    monkeypatch.setattr("satrap.train.trainer.Sources", lambda job, shard: FixedSources(batches))
    one = Trainer(job, run_dir=tmp_path / "one", progress=False, plots=False)
    result = one.fit()
    assert {(r.steps, r.samples, r.stopped) for r in workers.results} == {(8, result.samples, "done")}
    for trainer in workers.trainers:
        for have, want in zip(trainer.model.parameters(), one.model.parameters(), strict=True):
            torch.testing.assert_close(have, want, rtol=RTOL, atol=ATOL)
    assert_same_rows(job.resolved_tables(), workers.service, one.service)


@pytest.mark.parametrize("staleness", [0, 3])
@pytest.mark.parametrize("world", [2, 3])
def test_uneven_data_ends_cleanly_for_all_with_every_sample_used_once(tmp_path, staleness, world):
    # Flaw 14 of the original Persia: uneven data across workers hangs the all-reduce.
    job = override(click_job(tmp_path, rows=607, staleness=staleness, epochs=2), ["model.dropout=0"])
    workers = Workers(job, world, tmp_path / "run")
    one = Trainer(job, run_dir=tmp_path / "one", progress=False, plots=False).fit()
    assert {(r.samples, r.epochs, r.stopped) for r in workers.results} == {(one.samples, 2, "done")}
    # Row groups are dealt evenly, but how many of a worker's rows are held out for validation is chance.
    assert one.steps <= workers.result.steps <= one.steps + 4
    assert {r.steps for r in workers.results} == {workers.result.steps}
    assert all(t.engine.ledger.balanced for t in workers.trainers)
    ledgers = [t.engine.ledger for t in workers.trainers]
    assert workers.result.gradients["sent"] == sum(x.sent for x in ledgers) > max(x.sent for x in ledgers)
    assert workers.result.gradients["applied"] == workers.result.gradients["sent"]
    assert workers.result.staleness_max > 0 or staleness == 0
    for first, *others in zip(*(t.model.parameters() for t in workers.trainers), strict=True):
        assert all(torch.equal(first, other) for other in others)
    checkpoint.verify(workers.result.checkpoint)


def test_worker_without_a_single_row_takes_part_to_the_end(tmp_path):
    job = override(click_job(tmp_path, rows=3, batch_size=8), ["model.dropout=0", "data.valid=0", "data.test=[]"])
    workers = Workers(job, 4, tmp_path / "run")
    assert [(r.steps, r.samples) for r in workers.results] == [(1, 3)] * 4
    assert sum(t.engine.ledger.sent == 0 for t in workers.trainers) == 1


def test_synchronous_workers_give_the_same_bits_again(tmp_path):
    job = override(click_job(tmp_path), ["model.dropout=0"])
    digests = {checkpoint.digest(Workers(job, 3, tmp_path / f"run{i}").result.checkpoint) for i in range(2)}
    assert len(digests) == 1


@pytest.mark.parametrize(("mode", "merge"), [("sync", 2), ("async", 1)])
def test_pushes_of_a_step_are_merged_but_in_asynchronous_mode(tmp_path, mode, merge):
    # Adam would step a row once for each worker, twice as far in all, and what a lookup sees would be a race.
    job = override(click_job(tmp_path, staleness=2, max_steps=6, dense_mode=mode), ["model.dropout=0"])
    merges = []

    def watch(trainer, rank):
        push = trainer.service.push
        if rank == 0:
            trainer.service.push = lambda request: merges.append((request.seq, request.merge)) or push(request)

    Workers(job, 2, tmp_path / "run", prepare=watch)
    assert set(merges) == {(step, merge) for step in range(1, 7)}


@pytest.mark.parametrize("staleness", [1, 3])
def test_hybrid_training_of_several_workers_has_the_same_bits_every_time(tmp_path, staleness):
    job = override(click_job(tmp_path, rows=407, staleness=staleness, epochs=2), ["model.dropout=0"])
    digests = {checkpoint.digest(Workers(job, 3, tmp_path / str(i)).result.checkpoint) for i in range(3)}
    assert len(digests) == 1


def test_evaluation_shared_by_workers_is_that_of_the_model(tmp_path):
    job = override(click_job(tmp_path, eval_every_steps=5, max_steps=10), ["model.dropout=0"])
    workers = Workers(job, 3, tmp_path / "run")
    again = Trainer.from_checkpoint(workers.result.checkpoint).evaluate(job.data.test)
    for result in workers.results:
        assert result.test.samples == again.samples == 200
        assert result.test.auc == pytest.approx(again.auc, abs=1e-12)
        assert result.test.log_loss == pytest.approx(again.log_loss, rel=1e-6)
        assert result.valid == workers.result.valid


def test_early_stopping_takes_all_workers_back_to_the_best_model(tmp_path):
    options = ["model.dropout=0", "train.early_stopping={patience: 1, min_delta: 0.02}", "train.epochs=6"]
    job = override(click_job(tmp_path), options)
    workers = Workers(job, 2, tmp_path / "run")
    assert {r.stopped for r in workers.results} == {"early_stopping"}
    best = checkpoint.load(workers.result.checkpoint)
    assert best.step < workers.result.steps
    for trainer in workers.trainers:
        for name, tensor in trainer.model.state_dict().items():
            assert torch.equal(tensor, best.dense[name])


def test_only_worker_0_writes(tmp_path):
    job = override(click_job(tmp_path, max_steps=4), ["model.dropout=0"])
    lines = Workers(job, 2, tmp_path / "run").result
    written = sorted(p.name for p in lines.run_dir.iterdir() if not p.name.startswith("."))
    assert written == ["checkpoints", "events", "job.yaml", "metrics.jsonl"]
    from satrap.observe.runlog import read_metrics

    assert [r["kind"] for r in read_metrics(lines.run_dir)].count("start") == 1


def test_weights_that_differ_at_the_start_are_made_worker_0s(tmp_path):
    # A module of the user's own, made by each worker from its own random numbers.
    job = override(click_job(tmp_path, max_steps=3), ["model.dropout=0"])

    def scramble(trainer, rank):
        with torch.no_grad():
            for p in trainer.model.parameters():
                p.add_(rank * 0.1)

    workers = Workers(job, 2, tmp_path / "run", prepare=scramble)
    for a, b in zip(*(t.model.parameters() for t in workers.trainers), strict=True):
        assert torch.equal(a, b)


def test_loss_that_is_not_finite_ends_all_workers_and_the_culprit_says_why(tmp_path, monkeypatch):
    features = (Categorical(name="a", table="t"), Numeric(name="x"))
    job = job_of(features, (table(),), threads=1)
    each = divided(random_batches(job, [6, 6, 6], seed=1), [[3, 3]] * 3)
    each[1][1].numeric[0, 0] = np.nan
    errors = {}
    fit = Trainer.fit

    def kept(trainer, **options):
        try:
            return fit(trainer, **options)
        except TrainingError as e:
            errors[trainer._group.rank] = str(e)
            raise

    monkeypatch.setattr(Trainer, "fit", kept)
    monkeypatch.setattr("satrap.train.trainer.Sources", lambda job, shard: FixedSources(each[shard[0]]))
    with pytest.raises(TrainingError):
        Workers(job, 2, tmp_path / "run")
    assert "the numeric feature 'x' is not finite" in errors[1]
    assert "step 2: the loss or gradient of another worker is not finite" in errors[0]


def test_error_of_one_worker_ends_the_others(tmp_path, monkeypatch):
    from satrap.train.run import Run

    step = Run._step

    def failing(run, lookup, leg, agreed):
        if run.group.rank == 1 and run.state.step == 2:
            raise ZeroDivisionError
        step(run, lookup, leg, agreed)

    monkeypatch.setattr(Run, "_step", failing)
    job = override(click_job(tmp_path), ["model.dropout=0"])
    with pytest.raises(ZeroDivisionError):
        Workers(job, 3, tmp_path / "run")


def test_workers_without_shared_rows_are_refused(tmp_path):
    from thread_group import Meeting, ThreadGroup

    with pytest.raises(TrainingError, match="2 workers need rows that they share"):
        Trainer(click_job(tmp_path), group=ThreadGroup(0, Meeting(2)))


class Branches(nn.Module):
    """One parameter that some batches use, one that none does, and a batch norm."""

    def __init__(self):
        super().__init__()
        self.used, self.sometimes, self.never = (nn.Parameter(torch.full((2, 3), float(i))) for i in range(3))
        self.norm = nn.BatchNorm1d(3)


@pytest.mark.parametrize("world", [2, 3])
def test_gradients_are_summed_and_a_parameter_without_one_anywhere_is_left_without(world):
    # An optimizer skips a parameter without a gradient; with one of zero, its moments and weight decay would move it.
    def work(group):
        torch.manual_seed(group.rank)
        model = Branches()
        parameters = list(model.parameters())
        model.used.grad = torch.full((2, 3), 1.0 + group.rank)
        if group.rank == 1:
            model.sometimes.grad = torch.full((2, 3), 7.0)
        model.norm.running_mean += group.rank  # as a batch would
        model.norm.num_batches_tracked += 1
        total = GradientSum(group, model, parameters, torch.device("cpu"))(0.25, 10 * (group.rank + 1), world)
        return total, model

    results = in_threads(world, work)
    for total, model in results:
        assert (total.loss, total.samples, total.bad) == (0.25 * world, sum(10 * (r + 1) for r in range(world)), 0)
        assert torch.equal(model.used.grad, torch.full((2, 3), sum(1.0 + r for r in range(world))))
        assert torch.equal(model.sometimes.grad, torch.full((2, 3), 7.0))
        assert model.never.grad is None
        torch.testing.assert_close(model.norm.running_mean, torch.full((3,), (world - 1) / 2))
        assert int(model.norm.num_batches_tracked) == 1


def test_running_statistics_are_the_mean_over_the_workers_that_had_samples():
    def work(group):
        model = Branches()
        samples = 0
        if group.rank < 2:
            model.norm.running_var *= 3.0 + group.rank
            samples = 5
        GradientSum(group, model, list(model.parameters()), torch.device("cpu"))(0.0, samples, 2)
        return model.norm.running_var.tolist()

    assert in_threads(3, work) == [[3.5] * 3] * 3
