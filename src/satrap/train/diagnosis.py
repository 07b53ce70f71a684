"""When a loss is not finite: where the first number that is not finite came from.

B batch, D dim, L padded length.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from satrap.data.batch import Position
from satrap.errors import TrainingError
from satrap.models import Named, Padded
from satrap.train.step import Outcome


def not_finite(step: int, before: Position, lookup: Any, model: nn.Module, outcome: Outcome) -> TrainingError:
    """The error for a step whose loss or dense gradient is NaN or infinite, naming the batch and the culprit."""
    after = lookup.batch.position
    what = f"the loss ({outcome.loss})" if not isfinite(outcome.loss) else "the loss is finite, but the dense gradient"
    found = "; ".join(_culprits(lookup, model)) or _overflowed(model, lookup)
    return TrainingError(
        f"step {step}: {what} is not finite. The batch: {lookup.batch.size} samples, from epoch {before.epoch}, window "
        f"{before.window}, row {before.row} to epoch {after.epoch}, window {after.window}, row {after.row}. {found}. "
        "Nothing of this batch was applied; checkpoints are intact. Usual cures: a lower learning rate, "
        "train.clip_norm, a table's max_gradient, log scaling of large numbers"
    )


def _culprits(lookup: Any, model: nn.Module) -> Iterator[str]:
    for kind, named in (("numeric feature", lookup.numeric), ("embedding of feature", lookup.embeddings)):
        for name, sample in _bad_features(named):
            yield f"the {kind} '{name}' is not finite, first in sample {sample} of the batch"
    for name, tensor in (("label", lookup.labels), ("sample weight", lookup.weights)):
        if tensor is not None and not bool(tensor.isfinite().all()):
            yield f"a {name} is not finite, first in sample {_first_bad(tensor)} of the batch"
    names = [name for name, parameter in model.named_parameters() if not bool(parameter.isfinite().all())]
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        yield f"the dense parameter {', '.join(names[:3])}{more} is not finite"
    buffers = [name for name, b in model.named_buffers() if b.is_floating_point() and not bool(b.isfinite().all())]
    if buffers:
        yield f"the dense buffer {', '.join(buffers[:3])} is not finite"


def _overflowed(model: nn.Module, lookup: Any) -> str:
    """Everything that went in is finite, so the network itself overflowed: the largest numbers are the best hint."""
    named = [(f"feature '{n}'", t) for n, t in _tensors(lookup.numeric, lookup.embeddings)]
    named += [(f"dense parameter {n}", p.detach()) for n, p in model.named_parameters()]
    size, name = max(((float(t.abs().max()), n) for n, t in named if t.numel()), default=(0.0, "nothing"))
    return f"All that goes in is finite, so the network overflowed; the largest number is {size:.3g}, in {name}"


def _tensors(*groups: Named) -> Iterator[tuple[str, Tensor]]:
    for named in groups:
        for name, value in named.items():
            if isinstance(value, Padded):
                yield name, torch.where(value.mask.unsqueeze(-1), value.values.detach(), 0.0)
            else:
                yield name, value.detach()


def _bad_features(named: Named) -> Iterator[tuple[str, int]]:
    for name, tensor in _tensors(named):
        if not bool(tensor.isfinite().all()):
            yield name, _first_bad(tensor)


def _first_bad(tensor: Tensor) -> int:
    """The first row (sample) that holds a number that is not finite."""
    bad = ~tensor.isfinite().flatten(1) if tensor.dim() > 1 else ~tensor.isfinite().unsqueeze(1)
    return int(bad.any(1).nonzero()[0])
