"""The whole path against the plain reference: `nn.EmbeddingBag` and `torch.optim`, step by step, at staleness 0.

Both sides compute in fp32 and in different orders, so they agree to rounding: 2e-4 relative, 2e-5 absolute after up to
six steps with rows of about 0.3. The divisors of the adaptive optimizers get an epsilon that is not tiny: they would
otherwise blow a difference of 1e-9 in a gradient that cancels to zero up to a whole learning rate.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import random_batches
from torch.nn.functional import binary_cross_entropy_with_logits

from reference import ReferenceEngine, ReferenceService, torch_optimizer
from satrap import models
from satrap.embedding import EmbeddingEngine
from satrap.ps import LocalService, PullRequest
from satrap.schema import (
    MLP,
    SGD,
    Adagrad,
    Adam,
    AdamW,
    Categorical,
    Data,
    Ftrl,
    Job,
    Label,
    Numeric,
    Pooling,
    RowWiseAdagrad,
    Schedule,
    Sequence,
    Table,
    Train,
    Uniform,
    ValueFormat,
)
from satrap.train import Trainer
from satrap.train.pipeline import Feed, Leg
from satrap.train.results import StageSeconds
from satrap.train.schedule import LearningRate, StalenessSchedule
from satrap.train.step import DenseStep

RTOL, ATOL = 2e-4, 2e-5

TABLE_OPTIMIZERS = {
    "sgd": SGD(lr=0.3),
    "momentum": SGD(lr=0.2, momentum=0.9, weight_decay=0.02),
    "adagrad": Adagrad(lr=0.1, eps=1e-3, initial_accumulator=0.01, weight_decay=0.02),
    "rowwise_adagrad": RowWiseAdagrad(lr=0.1, eps=1e-3, initial_accumulator=0.01, weight_decay=0.02),
    "adam": Adam(lr=0.05, beta1=0.8, beta2=0.95, eps=1e-2, weight_decay=0.02),
    "adamw": AdamW(lr=0.05, beta1=0.8, beta2=0.95, eps=1e-2, weight_decay=0.1),
    "ftrl": Ftrl(lr=0.2, beta=0.5, l1=0.01, l2=0.02),
}
DENSE_OPTIMIZERS = [
    SGD(lr=0.1, momentum=0.9, weight_decay=0.01),
    Adagrad(lr=0.05, eps=1e-3, weight_decay=0.01),
    Adam(lr=0.01, eps=1e-3, weight_decay=0.01),
    AdamW(lr=0.01, eps=1e-3),
]


def job_of(features, tables, *, labels=1, weight=None, seed=0, **train) -> Job:
    return Job(
        data=Data(train=("none",), label=tuple(Label(column=f"y{t}") for t in range(labels)), weight=weight),
        features=features,
        tables=tables,
        model=MLP(hidden=(8,)),
        train=Train(**{"staleness": 0, **train}),
        seed=seed,
    )


def train_with_satrap(job, model, batches, service):
    """Losses of each step, through the pipeline, the engine and the native store."""
    engine, dense = EmbeddingEngine(job, service), DenseStep(job, model, torch.device("cpu"))
    rate, losses = LearningRate.plan(job.train.schedule, len(batches)), []
    feed = Feed(iter(batches), engine.prepare, StageSeconds())
    with Leg(engine, feed, StalenessSchedule(job.train.staleness), seconds=StageSeconds()) as leg:
        for step, lookup in enumerate(leg):
            outcome = dense.compute(lookup)
            leg.push(lookup, lr_factor=rate.factor(step))
            dense.apply(outcome, rate.factor(step))
            losses.append(outcome.loss)
    assert engine.ledger.balanced
    assert engine.ledger.applied == engine.ledger.sent
    return losses


def train_plainly(job, model, batches, service):
    """Losses of each step, as a textbook would have it."""
    engine = ReferenceEngine(job, service)
    optimizer = torch_optimizer(job.train.optimizer, list(model.parameters()))
    rate, losses = LearningRate.plan(job.train.schedule, len(batches)), []
    for step, batch in enumerate(batches):
        lookup = engine.lookup(batch, train=True)
        optimizer.zero_grad()
        logits = model(lookup.numeric, lookup.embeddings)
        each = binary_cross_entropy_with_logits(logits, lookup.labels, reduction="none").mean(1)
        w = torch.ones(batch.size) if lookup.weights is None else lookup.weights
        loss = (w * each).sum() / w.sum()
        loss.backward()
        engine.push(lookup, seq=step + 1, lr_factor=rate.factor(step))
        if job.train.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), job.train.clip_norm)
        optimizer.param_groups[0]["lr"] = job.train.optimizer.lr * rate.factor(step)
        optimizer.step()
        losses.append(loss.item())
    return losses


def assert_equivalent(job, batches, rtol=RTOL, atol=ATOL):
    """Trains both ways from the same start; every loss, dense weight and row must agree."""
    tables = job.resolved_tables()
    untouched = LocalService(tables, seed=job.seed, partitions=4, threads=1)
    real = LocalService(tables, seed=job.seed, partitions=4, threads=2)
    plain = ReferenceService(
        tables, lambda table, ids: untouched.pull(PullRequest(ids={table.name: ids}, create=False)).values[table.name]
    )
    torch.manual_seed(job.seed)
    model = models.build(job)
    model_of_plain = copy.deepcopy(model)
    losses = train_with_satrap(job, model, batches, real)
    expected = train_plainly(job, model_of_plain, batches, plain)
    np.testing.assert_allclose(losses, expected, rtol, atol)
    for (name, have), want in zip(model.state_dict().items(), model_of_plain.state_dict().values(), strict=True):
        np.testing.assert_allclose(have.numpy(), want.numpy(), rtol, atol, err_msg=name)
    for table in tables:
        want_rows = plain.values(table.name)
        assert real.stats()[table.name].rows == len(want_rows)
        ids = np.array(sorted(want_rows), np.uint64)
        have = real.pull(PullRequest(ids={table.name: ids}, create=False)).values[table.name]
        want = np.array([want_rows[int(i)] for i in ids]).reshape(have.shape)
        np.testing.assert_allclose(have, want, rtol, atol, err_msg=f"rows of {table.name}")


def table(name="t", dim=4, optimizer=None, **kw):
    return Table(name=name, dim=dim, optimizer=optimizer, initializer=Uniform(low=-0.5, high=0.5), **kw)


@pytest.mark.parametrize("optimizer", TABLE_OPTIMIZERS.values(), ids=TABLE_OPTIMIZERS)
@pytest.mark.parametrize("pooling", Pooling)
@pytest.mark.parametrize("weights", [None, "w"])
def test_every_table_optimizer_and_pooling_equals_torch(optimizer, pooling, weights):
    features = (Categorical(name="a", table="t", pooling=pooling, weights=weights),)
    job = job_of(features, (table(optimizer=optimizer),))
    assert_equivalent(job, random_batches(job, [7, 7, 7, 5], seed=11))


@pytest.mark.parametrize("optimizer", DENSE_OPTIMIZERS, ids=lambda o: type(o).__name__)
def test_every_dense_optimizer_with_schedule_and_clipping_equals_torch(optimizer):
    schedule = Schedule(kind="cosine", warmup_steps=2, end_factor=0.1)
    features = (Categorical(name="a", table="t"), Numeric(name="x", width=2))
    job = job_of(features, (table(),), optimizer=optimizer, schedule=schedule, clip_norm=0.05)
    assert_equivalent(job, random_batches(job, [9] * 6, seed=5))


@pytest.mark.parametrize("optimizer", TABLE_OPTIMIZERS.values(), ids=TABLE_OPTIMIZERS)
def test_half_precision_rows_equal_rounded_torch_rows(optimizer):
    # One unit in the last place of a half-precision 0.5 is 5e-4; a rounding may fall either way.
    job = job_of((Categorical(name="a", table="t"),), (table(optimizer=optimizer, format=ValueFormat.FP16),))
    assert_equivalent(job, random_batches(job, [6] * 4, seed=2), rtol=5e-3, atol=2e-3)


@st.composite
def jobs(draw):
    """Jobs of one to three tables shared by one to four features, any pooling, sequences, numbers, labels, weights."""
    tables = tuple(
        table(
            name=f"t{i}",
            dim=draw(st.integers(1, 9)),
            optimizer=draw(st.sampled_from(list(TABLE_OPTIMIZERS.values()))),
            max_gradient=draw(st.sampled_from([None, None, 0.01])),
        )
        for i in range(draw(st.integers(1, 3)))
    )
    features = []
    for i in range(draw(st.integers(len(tables), 4))):
        name = tables[i % len(tables)].name
        if draw(st.integers(0, 3)) == 0:
            features.append(Sequence(name=f"f{i}", table=name, max_length=4))
        else:
            pooling, weights = draw(st.sampled_from(list(Pooling))), draw(st.sampled_from([None, "w"]))
            features.append(Categorical(name=f"f{i}", table=name, pooling=pooling, weights=weights))
    features += [Numeric(name=f"x{i}", width=draw(st.integers(1, 3))) for i in range(draw(st.integers(0, 2)))]
    return job_of(
        tuple(features),
        tables,
        labels=draw(st.integers(1, 2)),
        weight=draw(st.sampled_from([None, "weight"])),
        seed=draw(st.integers(0, 1000)),
        optimizer=draw(st.sampled_from(DENSE_OPTIMIZERS)),
        micro_batch_size=draw(st.sampled_from([None, 1, 3])),
        clip_norm=draw(st.sampled_from([None, 0.1])),
    )


def test_fit_equals_the_plain_reference_step_by_step(tmp_path, monkeypatch):
    # Everything between the step and the pipeline: the schedule must reach both the tables and the network.
    features = (Categorical(name="a", table="t"), Numeric(name="x"))
    schedule = Schedule(kind="linear", warmup_steps=4, end_factor=0.1)
    job = job_of(features, (table(optimizer=SGD(lr=0.3)),), schedule=schedule, max_steps=9, clip_norm=0.5, threads=1)
    batches = random_batches(job, [8] * 9, seed=4)
    monkeypatch.setattr("satrap.train.trainer.Sources", lambda job, shard: FixedSources(batches))
    service, untouched = LocalService.of(job), LocalService.of(job)
    plain = ReferenceService(
        job.resolved_tables(),
        lambda t, ids: untouched.pull(PullRequest(ids={t.name: ids}, create=False)).values[t.name],
    )
    trainer = Trainer(job, service=service, run_dir=tmp_path / "run", progress=False, plots=False)
    model = copy.deepcopy(trainer.model)
    assert trainer.fit().steps == 9
    train_plainly(job, model, batches, plain)
    for have, want in zip(trainer.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(have, want, rtol=RTOL, atol=ATOL)
    for i, want in plain.values("t").items():
        ids = {"t": np.array([i], np.uint64)}
        np.testing.assert_allclose(service.pull(PullRequest(ids=ids, create=False)).values["t"][0], want, RTOL, ATOL)


class FixedSources:
    """Batches in place of files."""

    has_valid, fingerprint = False, {}

    def __init__(self, batches):
        self.batches, self.steps_total, self.samples_total = batches, len(batches), None

    def train(self, epoch, start):
        return iter(self.batches)


@settings(max_examples=60, deadline=None)
@given(
    job=jobs(),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    seed=st.integers(0, 1 << 20),
    vocabulary=st.integers(1, 12),
    longest=st.integers(0, 6),
)
def test_any_job_trains_as_the_plain_reference(job, sizes, seed, vocabulary, longest):
    # Shared tables, empty lists, uneven last batches, one id many times in a sample: where gradients go astray.
    assert_equivalent(job, random_batches(job, sizes, seed, vocabulary, longest))
