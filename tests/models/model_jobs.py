"""Jobs, and random inputs as an engine would hand them over, for the tests of models."""

from __future__ import annotations

import torch

from satrap.models import Inputs, Named, Padded
from satrap.schema import Categorical, Data, Feature, Job, Label, ModelSpec, Numeric, Sequence, Table

DIM, LENGTH = 4, 3

NUMBERS = (Numeric(name="age"), Numeric(name="pixels", width=2, indicator=True))
IDS = (Categorical(name="user"), Categorical(name="item"), Categorical(name="city"))
HISTORY = Sequence(name="history", max_length=LENGTH, table="item")

SHAPES: dict[str, tuple[Feature, ...]] = {
    "numbers and ids": (*NUMBERS, *IDS),
    "ids only": IDS,
    "one id": IDS[:1],
    # The sequence comes first in the job and yet behind the pooled features in `Named`.
    "with a sequence": (HISTORY, *NUMBERS, *IDS),
    "a sequence only": (HISTORY,),
}


def make_job(
    features: tuple[Feature, ...], model: ModelSpec, *, labels: int = 1, dims: dict[str, int] | None = None
) -> Job:
    return Job(
        data=Data(train=("a.parquet",), label=tuple(Label(column=f"label{i}") for i in range(labels))),
        features=features,
        tables=tuple(Table(name=k, dim=d) for k, d in (dims or {}).items()),
        default_dim=DIM,
        model=model,
    )


def make_inputs(job: Job, size: int = 5, seed: int = 0) -> tuple[Named, Named, list[torch.Tensor]]:
    """Numeric and embedding inputs, and the leaf tensors that gradients arrive at."""
    g = torch.Generator().manual_seed(seed)
    shapes = Inputs.of(job)
    numeric = Named.packed(torch.randn(size, shapes.numbers, generator=g), shapes.numeric)
    flat = torch.randn(size, sum(shapes.pooled.values()), generator=g).requires_grad_()
    sequences = {}
    for name, dim in shapes.sequences.items():
        values = torch.randn(size, LENGTH, dim, generator=g).requires_grad_()
        lengths = torch.randint(0, LENGTH + 1, (size, 1), generator=g)
        sequences[name] = Padded(values, torch.arange(LENGTH) < lengths)
    leaves = [flat, *(s.values for s in sequences.values())]
    return numeric, Named.packed(flat, shapes.pooled, sequences), [x for x in leaves if x.numel()]


def vectors_of(embeddings: Named) -> list[torch.Tensor]:
    """The vectors the built-in models see, one by one and in order: the plainest way to say it."""
    out = []
    for value in embeddings.values():
        if isinstance(value, Padded):
            rows = [v[m].mean(0) if m.any() else torch.zeros(v.shape[1]) for v, m in zip(*value, strict=True)]
            value = torch.stack(rows)
        out.append(value)
    return out
