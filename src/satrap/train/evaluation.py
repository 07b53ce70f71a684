"""Evaluation and prediction: lookups that create no row, forward passes that keep nothing, and the figures of both.

B batch, T labels.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from satrap.data.batch import Batch
from satrap.observe import BinaryMetrics
from satrap.observe.stages import StageSeconds
from satrap.train.group import ALONE, Group
from satrap.train.pipeline import Engine, Feed, Leg
from satrap.train.results import Evaluation
from satrap.train.schedule import StalenessSchedule
from satrap.train.state import random_state, set_random_state
from satrap.train.step import DenseStep

AHEAD = 2
"""Batches looked up ahead of the forward pass."""


def forward_all(engine: Engine, dense: DenseStep, batches: Iterator[Batch]) -> Iterator[tuple[Any, Tensor]]:
    """(lookup, logits float32 [B, T]) of every batch, in order, in evaluation mode. Learns nothing and makes no row."""
    seconds = StageSeconds()
    feed = Feed(batches, getattr(engine, "prepare", None), seconds)
    try:
        with (
            _evaluation_mode(dense.model),
            Leg(engine, feed, StalenessSchedule(AHEAD), train=False, seconds=seconds) as leg,
        ):
            for lookup in leg:
                with torch.inference_mode():
                    logits = dense.logits(lookup.numeric, lookup.embeddings, lookup.batch.size)
                yield lookup, logits
                leg.release(lookup)
    finally:
        feed.close()


def evaluate(
    engine: Engine,
    dense: DenseStep,
    batches: Iterator[Batch],
    labels: tuple[str, ...],
    exact_samples: int = 1 << 23,
    group: Group = ALONE,
) -> Evaluation:
    """The figures of a model on some data, by label. A group's workers each bring their part of the data, and all get
    the figures of the whole.

    The model's mode and the global random generators are left as they were found, whatever the model draws from them,
    so that training goes on as if the evaluation had not happened.
    """
    metrics = [BinaryMetrics(exact_samples=exact_samples) for _ in labels]
    before = random_state(dense.device)
    try:
        for lookup, logits in forward_all(engine, dense, batches):
            add(metrics, logits, lookup.batch)
    finally:
        set_random_state(before, dense.device)
    if group.world > 1:
        metrics = _merged(group, metrics)
    return Evaluation({name: m.result() for name, m in zip(labels, metrics, strict=True)})


def _merged(group: Group, mine: list[BinaryMetrics]) -> list[BinaryMetrics]:
    """What all workers have measured, taken together in their order, so that everyone has the same figures."""
    first, *others = (
        [BinaryMetrics.from_dict(m) for m in json.loads(state)]
        for state in group.gather(json.dumps([m.to_dict() for m in mine]).encode())
    )
    for other in others:
        for whole, part in zip(first, other, strict=True):
            whole.merge(part)
    return first


def predict(engine: Engine, dense: DenseStep, batches: Iterator[Batch]) -> Iterator[NDArray[np.float32]]:
    """Probabilities [B, T] of each batch, in the order of the data."""
    for _, logits in forward_all(engine, dense, batches):
        yield torch.sigmoid(logits).cpu().numpy()


def add(metrics: list[BinaryMetrics], logits: Tensor, batch: Batch) -> None:
    """Takes a batch's logits [B, T] into one accumulator for each label."""
    scores = logits.cpu().numpy()
    for t, m in enumerate(metrics):
        m.update(batch.labels[:, t], scores[:, t], weights=batch.weights)


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Every module's own mode is put back after: a user may keep parts of a model in evaluation mode for good."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
