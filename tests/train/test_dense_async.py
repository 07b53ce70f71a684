"""Fully asynchronous training, for comparison: the dense weights are rows of a table, stepped by whoever pushes."""

from __future__ import annotations

import copy

import msgspec
import numpy as np
import pytest
import torch
from samples import click_job, random_batches
from test_equivalence import ATOL, DENSE_OPTIMIZERS, RTOL, job_of, table, train_plainly
from torch import nn
from workers import Workers

from reference import ReferenceService
from satrap import checkpoint, models
from satrap.embedding import EmbeddingEngine
from satrap.errors import JobError, TrainingError
from satrap.pooling import LocalPooler, Plan
from satrap.ps import LocalService, PullRequest
from satrap.schema import DENSE_DIM, DENSE_TABLE, MLP, SGD, Adam, Categorical, Checkpointing, Numeric, override
from satrap.testing import Cluster
from satrap.train import Trainer
from satrap.train.dense_rows import DenseRows
from satrap.train.pipeline import Feed, Leg
from satrap.train.results import StageSeconds
from satrap.train.schedule import StalenessSchedule
from satrap.train.step import DenseStep

FEATURES = (Categorical(name="a", table="t"), Numeric(name="x", width=2))


def train_async(job, model, batches, service):
    """Losses of each step of one worker; the model is left with the weights that the pushes led to."""
    dense = DenseStep(job, model, torch.device("cpu"))
    dense.rows.write(service)
    engine, losses = EmbeddingEngine(job, service, along={DENSE_TABLE: dense.rows.ids}), []
    feed = Feed(iter(batches), engine.prepare, StageSeconds())
    with Leg(engine, feed, StalenessSchedule(job.train.staleness), seconds=StageSeconds()) as leg:
        for lookup in leg:
            outcome = dense.compute(lookup)
            leg.push(lookup, lr_factor=1.0)
            dense.apply(outcome, 1.0)
            losses.append(outcome.loss)
    dense.rows.pull(service)
    assert engine.ledger.balanced
    return losses, engine.ledger


def plain_service(job):
    untouched = LocalService(job.resolved_tables(), seed=job.seed, partitions=4, threads=1)
    return ReferenceService(
        job.resolved_tables(),
        lambda t, ids: untouched.pull(PullRequest(ids={t.name: ids}, create=False)).values[t.name],
    )


@pytest.mark.parametrize("optimizer", DENSE_OPTIMIZERS, ids=lambda o: type(o).__name__)
def test_with_nothing_outstanding_the_dense_rows_are_what_the_torch_optimizer_makes(optimizer):
    # A tensor cut at the wrong place, a state that starts anew, clipping after the push instead of before it.
    job = job_of(FEATURES, (table(optimizer=SGD(lr=0.3)),), optimizer=optimizer, clip_norm=0.05, dense_mode="async")
    batches = random_batches(job, [9] * 6, seed=5)
    torch.manual_seed(0)
    model = models.build(job)
    plain = copy.deepcopy(model)
    losses, _ = train_async(job, model, batches, LocalService.of(job))
    assert np.allclose(losses, train_plainly(job, plain, batches, plain_service(job)), RTOL, ATOL)
    for have, want in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(have, want, rtol=RTOL, atol=ATOL)


def test_dense_weights_are_exactly_as_many_pushes_old_as_the_schedule_says():
    # Weights loaded late (or a fresh copy kept beside) would make this mode synchronous in secret.
    job = job_of(FEATURES, (table(optimizer=SGD(lr=1e-12)),), optimizer=SGD(lr=0.5), staleness=2, dense_mode="async")
    batches = random_batches(job, [8] * 7, seed=3)
    torch.manual_seed(0)
    model = models.build(job)
    plain = copy.deepcopy(model)
    losses, ledger = train_async(job, model, batches, LocalService.of(job))
    engine = EmbeddingEngine(job, LocalService.of(job))
    states, expected = [copy.deepcopy(plain.state_dict())], []
    for t, batch in enumerate(batches):
        lookup = engine.lookup(batch, train=True)
        plain.load_state_dict(states[max(0, t - 2)])
        plain.zero_grad()
        logits = plain(lookup.numeric, lookup.embeddings)
        loss = nn.functional.binary_cross_entropy_with_logits(logits.view(-1, 1), lookup.labels)
        loss.backward()
        expected.append(loss.item())
        after = {k: v - 0.5 * p.grad for (k, v), p in zip(states[-1].items(), plain.parameters(), strict=True)}
        states.append(after)
    assert np.allclose(losses, expected, RTOL, ATOL)
    for have, want in zip(model.state_dict().values(), states[-1].values(), strict=True):
        torch.testing.assert_close(have, want, rtol=RTOL, atol=ATOL)
    dense = len(DenseRows(list(plain.parameters())).ids)
    assert ledger.staleness[2] >= dense * 5
    assert (
        ledger.applied == ledger.sent == sum(len(engine.prepare(b).work.ticket.unique()["t"]) + dense for b in batches)
    )


def test_parameter_that_a_step_does_not_use_is_left_alone():
    # Adam's moments would go on moving a weight that no batch has touched.
    used, unused = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(DENSE_DIM + 1))
    rows = DenseRows([unused, used])
    used.grad = torch.full((3,), 2.0)
    which, gradients = rows.gradients()
    assert which.tolist() == [2]
    assert gradients.shape == (1, DENSE_DIM)
    assert gradients[0, :4].tolist() == [2, 2, 2, 0]


def test_model_is_the_same_to_the_bit_on_servers_and_resumes_to_the_same_bits(tmp_path):
    options = {"staleness": 3, "epochs": 2, "dense_mode": "async", "checkpoint": Checkpointing(every_steps=11)}
    job = click_job(tmp_path, **options)
    trainer = Trainer(job, run_dir=tmp_path / "local", progress=False, plots=False)
    expected = trainer.fit()
    with Cluster(job.resolved_tables(), servers=2, partitions=4, seed=job.seed) as cluster:
        service = cluster.connect()
        result = Trainer(job, run_dir=tmp_path / "s2", service=service, progress=False, plots=False).fit()
        assert checkpoint.digest(result.checkpoint) == checkpoint.digest(expected.checkpoint)
        assert result.gradients == expected.gradients
    short = override(job, ["train.max_steps=22"])
    Trainer(short, run_dir=tmp_path / "again", progress=False, plots=False).fit()
    result = Trainer(job, run_dir=tmp_path / "again", progress=False, plots=False).fit(resume=True)
    assert checkpoint.digest(result.checkpoint) == checkpoint.digest(expected.checkpoint)
    assert result.test.auc == expected.test.auc
    assert Trainer.from_checkpoint(result.checkpoint).evaluate(job.data.test[0]).auc == expected.test.auc


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("staleness", [0, 3])
def test_workers_at_their_own_pace_use_every_sample_and_lose_no_gradient(tmp_path, world, staleness):
    # 607 rows do not divide: one worker has a step more, and must neither wait for the others in it nor hang them.
    model = MLP(hidden=(16,), norm="batch")
    changes = {"model": model}
    options = {"staleness": staleness, "epochs": 3, "eval_every_steps": 7, "dense_mode": "async"}
    job = click_job(tmp_path, 607, changes=changes, **options)
    workers = Workers(job, world, tmp_path / "run")
    result = workers.result
    assert result.samples == 3 * sum(1 for _ in range(607)) - 3 * result.valid.samples
    assert result.gradients["applied"] == result.gradients["sent"] > 0
    assert all(r.test.auc == result.test.auc for r in workers.results)
    assert {r.steps for r in workers.results} == {result.steps}
    held = DenseRows([p for p in workers.trainers[0].model.parameters()])
    for trainer in workers.trainers[1:]:
        for a, b in zip(
            workers.trainers[0].model.state_dict().values(), trainer.model.state_dict().values(), strict=True
        ):
            assert torch.equal(a, b)
    table = workers.service.pull(PullRequest(ids={DENSE_TABLE: held.ids}, create=False)).values[DENSE_TABLE]
    assert np.array_equal(table, held.values())


def test_workers_of_an_asynchronous_step_exchange_nothing(tmp_path, monkeypatch):
    from thread_group import ThreadGroup

    calls = []
    exchange = ThreadGroup._exchange

    def watched(self, what, value):
        calls.append((self.rank, what))
        return exchange(self, what, value)

    monkeypatch.setattr(ThreadGroup, "_exchange", watched)
    counts = {}
    for rows in (300, 600):
        folder = tmp_path / str(rows)
        folder.mkdir()
        calls.clear()
        Workers(click_job(folder, rows, staleness=2, dense_mode="async"), 2, folder / "run")
        counts[rows] = len(calls)
    assert counts[300] == counts[600], "what is exchanged goes with the steps"


def test_engine_that_does_not_bring_the_dense_weights_is_refused():
    # Weights never loaded would train the first ones for ever, without a word.
    job = job_of(FEATURES, (table(),), dense_mode="async")
    service = LocalService.of(job)
    lookup = EmbeddingEngine(job, service).lookup(random_batches(job, [4], seed=0)[0], train=True)
    with pytest.raises(TrainingError, match="embedding workers"):
        DenseStep(job, models.build(job), torch.device("cpu")).compute(lookup)


def test_embedding_workers_are_refused_before_anything_is_trained(tmp_path):
    job = click_job(tmp_path, dense_mode="async")
    service = LocalService.of(job)
    with pytest.raises(JobError, match="leave out embedding workers"):
        Trainer(job, service=service, pooler=LocalPooler(Plan.of(job), service), run_dir=tmp_path / "run")


REFUSED = [
    (["train.dense_mode=asynchronous"], "train.dense_mode"),
    (["train.dense_mode=async", "train.sync_warmup_steps=5"], "train.sync_warmup_steps"),
    (["features.a.table=_dense", "tables=[]"], "features: a table cannot be named '_dense'"),
]


@pytest.mark.parametrize(("overrides", "message"), REFUSED, ids=lambda x: x[0] if isinstance(x, list) else None)
def test_settings_that_do_not_go_with_it_are_refused_by_name(overrides, message):
    job = job_of(FEATURES, (table(),))
    with pytest.raises(JobError, match=message.replace("(", r"\(")):
        override(job, overrides)


@pytest.mark.parametrize(
    ("model", "message"),
    [(nn.Identity(), "no dense weights"), (nn.Linear(2, 1, dtype=torch.float64), "float64")],
    ids=["none", "float64"],
)
def test_model_that_a_table_cannot_hold_is_refused(tmp_path, model, message):
    job = click_job(tmp_path, dense_mode="async")
    with pytest.raises(JobError, match=message):
        Trainer(job, model, run_dir=tmp_path / "run", progress=False)


def test_digest_and_rows_name_the_dense_table_only_in_this_mode(tmp_path):
    job = click_job(tmp_path, optimizer=Adam(lr=0.01))
    assert DENSE_TABLE not in {t.name for t in job.resolved_tables()}
    changed = msgspec.structs.replace(job, train=msgspec.structs.replace(job.train, dense_mode="async"))
    last = changed.resolved_tables()[-1]
    assert (last.name, last.dim, last.optimizer) == (DENSE_TABLE, DENSE_DIM, Adam(lr=0.01))
