"""The dense step: loss, pieces, clipping, precision, optimizers; and what is said when a number is not finite."""

from __future__ import annotations

import copy

import msgspec
import numpy as np
import pytest
import torch
from samples import click_job, random_batches
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from reference import ReferenceEngine, ReferenceService
from satrap import models
from satrap.errors import TrainingError
from satrap.models import Named
from satrap.schema import MLP, SGD, Label
from satrap.train.diagnosis import not_finite
from satrap.train.step import DenseStep, torch_optimizer

CPU = torch.device("cpu")


def setup(tmp_path, *, labels=1, weight=None, sizes=(13,), **train):
    """A job on the reference engine (plain autograd) with one batch looked up."""
    job = click_job(tmp_path, rows=20, changes={"model": MLP(hidden=(8,))}, **train)
    data = msgspec.structs.replace(
        job.data, label=tuple(Label(column=c) for c in ("click", "buy")[:labels]), weight=weight
    )
    job = msgspec.structs.replace(job, data=data)
    torch.manual_seed(0)
    model, engine = models.build(job), ReferenceEngine(job, ReferenceService(job.resolved_tables()))
    batches = random_batches(job, list(sizes), seed=7)
    return job, model, engine, batches


def gradients(lookup, model):
    return [p.grad.clone() for p in model.parameters()] + [t.grad.clone() for t in lookup.leaves.values()]


@pytest.mark.parametrize("labels", [1, 2])
@pytest.mark.parametrize("weight", [None, "weight"])
def test_loss_is_the_weighted_mean_over_samples_and_the_mean_over_labels(tmp_path, labels, weight):
    job, model, engine, (batch,) = setup(tmp_path, labels=labels, weight=weight)
    lookup = engine.lookup(batch, train=True)
    outcome = DenseStep(job, model, CPU).compute(lookup)
    with torch.no_grad():
        logits = model(lookup.numeric, lookup.embeddings)
    each = binary_cross_entropy_with_logits(logits, lookup.labels, reduction="none").mean(1).numpy()
    expected = np.average(each, weights=batch.weights)
    assert outcome.loss == pytest.approx(expected, rel=1e-6)
    assert torch.equal(outcome.logits, logits)


@pytest.mark.parametrize("piece", [1, 4, 5, 12])
@pytest.mark.parametrize("weight", [None, "weight"])
def test_pieces_accumulate_to_the_gradient_of_the_whole_batch(tmp_path, piece, weight):
    # A mean of means is the wrong mean when the last piece is smaller, or when weights differ between pieces.
    job, model, engine, (batch,) = setup(tmp_path, labels=2, weight=weight)
    whole, pieces = engine.lookup(batch, train=True), engine.lookup(batch, train=True)
    loss = DenseStep(job, model, CPU).compute(whole).loss
    expected = gradients(whole, model)
    cut = msgspec.structs.replace(job, train=msgspec.structs.replace(job.train, micro_batch_size=piece))
    outcome = DenseStep(cut, model, CPU).compute(pieces)
    assert outcome.loss == pytest.approx(loss, rel=1e-6)
    assert outcome.logits.shape == (13, 2)
    for have, want in zip(gradients(pieces, model), expected, strict=True):
        torch.testing.assert_close(have, want, rtol=1e-5, atol=1e-7)


def test_batch_whose_weights_are_all_zero_has_no_gradient(tmp_path):
    # 0 / 0 is NaN: one such batch would end the training.
    job, model, engine, (batch,) = setup(tmp_path, weight="weight")
    batch.weights[:] = 0
    lookup = engine.lookup(batch, train=True)
    outcome = DenseStep(job, model, CPU).compute(lookup)
    assert (outcome.loss, outcome.gradient_norm) == (0.0, 0.0)
    assert all(not g.any() for g in gradients(lookup, model))


def test_clipping_scales_the_dense_gradient_to_the_norm_and_leaves_small_ones_alone(tmp_path):
    for limit in (0.01, 1e9):
        job, model, engine, (batch,) = setup(tmp_path, clip_norm=limit, optimizer=SGD(lr=1.0))
        before = copy.deepcopy(model)
        step = DenseStep(job, model, CPU)
        outcome = step.compute(engine.lookup(batch, train=True))
        expected = [p.grad * min(1.0, limit / (outcome.gradient_norm + 1e-6)) for p in model.parameters()]
        assert limit > 1 or outcome.gradient_norm > limit
        step.apply(outcome, 1.0)
        for was, now, g in zip(before.parameters(), model.parameters(), expected, strict=True):
            torch.testing.assert_close(now, was - g)


def test_learning_rate_factor_scales_the_dense_step(tmp_path):
    job, model, engine, (batch,) = setup(tmp_path, optimizer=SGD(lr=0.5))
    before = copy.deepcopy(model)
    step = DenseStep(job, model, CPU)
    step.apply(step.compute(engine.lookup(batch, train=True)), 0.25)
    for was, now in zip(before.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(now, was - 0.125 * now.grad)


def test_bf16_computes_close_to_fp32_and_keeps_weights_and_gradients_fp32(tmp_path):
    job, model, engine, (batch,) = setup(tmp_path)
    exact = DenseStep(job, model, CPU).compute(engine.lookup(batch, train=True))
    half = msgspec.structs.replace(job, train=msgspec.structs.replace(job.train, precision="bf16"))
    lookup = engine.lookup(batch, train=True)
    outcome = DenseStep(half, model, CPU).compute(lookup)
    assert outcome.loss != exact.loss
    assert outcome.loss == pytest.approx(exact.loss, rel=2e-2)
    assert {g.dtype for g in gradients(lookup, model)} == {torch.float32} == {outcome.logits.dtype}


def test_module_without_parameters_trains_its_embeddings_alone(tmp_path):
    # The sum model: torch's optimizers refuse an empty list of parameters.
    class Total(nn.Module):
        def forward(self, numeric: Named, embeddings: Named) -> torch.Tensor:
            return embeddings.pooled().cat().sum(1)

    job, _, engine, (batch,) = setup(tmp_path)
    step, lookup = DenseStep(job, Total(), CPU), engine.lookup(batch, train=True)
    outcome = step.compute(lookup)
    step.apply(outcome, 1.0)
    assert step.optimizer is None
    assert all(leaf.grad.any() for leaf in lookup.leaves.values())


@pytest.mark.parametrize("shape", [(13, 2), (12,), (13, 1, 1)])
def test_logits_of_another_shape_are_refused_by_name(tmp_path, shape):
    # Logits [B] against labels [B, 1] would broadcast to [B, B] and train on nonsense.
    class Odd(nn.Module):
        def forward(self, numeric: Named, embeddings: Named) -> torch.Tensor:
            return torch.zeros(shape, requires_grad=True)

    job, _, engine, (batch,) = setup(tmp_path)
    with pytest.raises(TrainingError, match=r"must return \[13, 1\] or \[13\]"):
        DenseStep(job, Odd(), CPU).compute(engine.lookup(batch, train=True))


@pytest.mark.parametrize(
    ("poison", "message"),
    [
        ("row", r"the embedding of feature 'tags' is not finite, first in sample \d+ of the batch"),
        ("number", "the numeric feature 'price' is not finite, first in sample 3 of the batch"),
        ("parameter", r"the dense parameter \S+ is not finite"),
        ("weight", "a sample weight is not finite, first in sample 5 of the batch"),
    ],
)
def test_loss_that_is_not_finite_names_batch_and_culprit(tmp_path, poison, message):
    job, model, engine, (batch,) = setup(tmp_path, weight="weight")
    lookup = engine.lookup(batch, train=True)
    with torch.no_grad():
        if poison == "row":
            lookup.embeddings["tags"][batch.ids["tags"].offsets.argmax() - 1] = float("nan")
        elif poison == "number":
            lookup.numeric["price"][3] = float("inf")
        elif poison == "parameter":
            next(model.parameters()).fill_(float("nan"))
        else:
            lookup.weights[5] = float("nan")
    outcome = DenseStep(job, model, CPU).compute(lookup)
    assert not outcome.finite
    error = not_finite(8, batch.position, lookup, model, outcome)
    assert isinstance(error, TrainingError)
    assert str(error).startswith("step 8: the loss (nan)")
    with pytest.raises(TrainingError, match=message):
        raise error


def test_fused_optimizers_are_the_plain_ones(tmp_path):
    from test_equivalence import DENSE_OPTIMIZERS

    from reference import torch_optimizer as plain_optimizer

    for spec in DENSE_OPTIMIZERS:
        torch.manual_seed(1)
        ours, plain = nn.Linear(37, 11), nn.Linear(37, 11)
        plain.load_state_dict(ours.state_dict())
        a, b = torch_optimizer(spec, list(ours.parameters())), plain_optimizer(spec, list(plain.parameters()))
        for _ in range(4):
            x = torch.randn(5, 37)
            for module, optimizer in ((ours, a), (plain, b)):
                optimizer.zero_grad()
                module(x).square().mean().backward()
                optimizer.step()
        torch.testing.assert_close(ours.weight, plain.weight, rtol=1e-5, atol=1e-6)
