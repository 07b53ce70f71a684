"""The gradient that all samples share is divided by the batches that push it unseen; the rest is left as it is."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import click_job

from satrap import checkpoint
from satrap.schema import override
from satrap.train import Trainer
from satrap.train.damping import damp
from satrap.train.schedule import StalenessSchedule


def lookup_of(gradient):
    pooled = torch.zeros_like(gradient).requires_grad_()
    pooled.grad = gradient.clone()
    return SimpleNamespace(pooled=pooled)


@settings(deadline=None)
@given(samples=st.integers(1, 40), columns=st.integers(1, 9), outstanding=st.integers(0, 20), seed=st.integers(0, 999))
def test_shared_part_is_divided_and_what_differs_between_samples_is_kept(samples, columns, outstanding, seed):
    gradient = torch.randn(samples, columns, generator=torch.Generator().manual_seed(seed))
    lookup = lookup_of(gradient)
    damp(lookup, outstanding)
    have, shared = lookup.pooled.grad.double(), gradient.double().mean(0)
    torch.testing.assert_close(have.mean(0), shared / (1 + outstanding), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(have - have.mean(0), gradient.double() - shared, rtol=1e-4, atol=1e-5)


def test_batches_that_push_unseen_add_up_to_one_step_of_the_shared_part():
    gradient = torch.full((4, 2), 3.0)
    total = torch.zeros(2)
    for _ in range(5):
        lookup = lookup_of(gradient)
        damp(lookup, 4)
        total += lookup.pooled.grad.mean(0)
    torch.testing.assert_close(total, torch.full((2,), 3.0))


def test_nothing_outstanding_leaves_every_bit():
    gradient = torch.randn(7, 3)
    lookup = lookup_of(gradient)
    damp(lookup, 0)
    assert torch.equal(lookup.pooled.grad, gradient)
    damp(SimpleNamespace(pooled=torch.zeros(2, 2, requires_grad=True)), 3)


def test_synchronous_training_has_the_same_bits_with_and_without_it(tmp_path):
    job = click_job(tmp_path, max_steps=12)
    digests = set()
    for value in ("true", "false"):
        trainer = Trainer(
            override(job, [f"train.staleness_damping={value}"]), run_dir=tmp_path / value, progress=False, plots=False
        )
        trainer.fit()
        digests.add(rows_digest(trainer.service))
    assert len(digests) == 1


def rows_digest(service):
    blocks = [service.export_rows(t.name, p) for t in service.tables() for p in range(service.partitions)]
    return b"".join(b.values.tobytes() + b.state.tobytes() for b in blocks)


@pytest.mark.parametrize(("staleness", "warmup"), [(3, 0), (2, 5)])
def test_each_step_is_damped_by_the_pushes_its_lookup_has_not_seen(tmp_path, monkeypatch, staleness, warmup):
    # A fixed divisor would hold back the steps after a drain or in a warm-up, which see everything.
    seen = []
    monkeypatch.setattr("satrap.train.run.damp", lambda lookup, outstanding: seen.append(outstanding))
    options = {"staleness": staleness, "sync_warmup_steps": warmup, "max_steps": 12, "eval_every_steps": 8}
    Trainer(click_job(tmp_path, **options), run_dir=tmp_path / "run", progress=False, plots=False).fit()
    schedule = StalenessSchedule(staleness, warmup)
    expected = [t - schedule.applied_before(t, 0 if t < 8 else 8) for t in range(12)]
    assert seen == expected
    assert max(seen) == staleness


def test_resumed_run_damps_as_the_uninterrupted_one(tmp_path):
    options = {"staleness": 3, "max_steps": 14, "eval_every_steps": 7}
    job = click_job(tmp_path, **options)
    whole = Trainer(job, run_dir=tmp_path / "whole", progress=False, plots=False).fit()
    Trainer(override(job, ["train.max_steps=7"]), run_dir=tmp_path / "run", progress=False, plots=False).fit()
    resumed = Trainer(job, run_dir=tmp_path / "run", progress=False, plots=False).fit(resume=True)
    assert checkpoint.digest(resumed.checkpoint) == checkpoint.digest(whole.checkpoint)


def test_damping_has_the_bits_of_one_thread_on_two():
    gradient = torch.randn(5000, 300)
    found = []
    threads = torch.get_num_threads()
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            lookup = lookup_of(gradient)
            damp(lookup, 4)
            found.append(lookup.pooled.grad.numpy().copy())
    finally:
        torch.set_num_threads(threads)
    assert np.array_equal(*found)
