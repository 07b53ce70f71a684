"""Wide & Deep: a linear model and a deep tower, trained together (Cheng et al. 2016, arXiv 1606.07792).

B batch, n numbers, F vectors, Σ columns of all vectors, T labels.
"""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor, nn

from satrap.models.inputs import Inputs
from satrap.models.layers import Deep
from satrap.models.named import Named
from satrap.models.repeatable import Linear
from satrap.schema import WideDeep


class WideDeepNetwork(nn.Module):
    """Logits [B, T] = wide + deep.

    Wide: the first value of each row, which is its weight and counts for every label, and a linear layer on the
    numbers. Deep: a tower over [numbers n | rows Σ], whole rows. The paper's cross-product features are columns of the
    data: a column made of two others is a feature like any other.

    >>> inputs = Inputs(numeric={}, pooled={"a": 4, "b": 2}, sequences={}, labels=1)
    >>> net = WideDeepNetwork(WideDeep(hidden=(8,)), inputs)
    >>> net(Named.packed(torch.zeros(3, 0), {}), Named.packed(torch.zeros(3, 6), {"a": 4, "b": 2})).shape
    torch.Size([3, 1])
    """

    wide_columns: Tensor

    def __init__(self, spec: WideDeep, inputs: Inputs) -> None:
        super().__init__()
        self.numbers, self.vectors = inputs.numbers, sum(inputs.dims)
        starts = list(accumulate(inputs.dims, initial=0))[:-1]
        self.register_buffer("wide_columns", torch.tensor(starts, dtype=torch.int64), persistent=False)
        self.wide = Linear(self.numbers, inputs.labels, bias=False) if self.numbers else None
        widths = [self.numbers, self.vectors]
        self.deep = Deep(widths, spec.hidden, inputs.labels, norm=spec.norm, dropout=spec.dropout)

    def forward(self, numeric: Named, embeddings: Named) -> Tensor:
        """Logits [B, T]."""
        parts = []
        wide: Tensor | None = None
        if self.wide is not None:
            parts.append(numeric.cat())
            wide = self.wide(parts[0])
        if self.vectors:
            parts.append(embeddings.pooled().cat())
            rows = parts[-1].index_select(1, self.wide_columns).sum(1, keepdim=True)
            wide = rows if wide is None else wide + rows
        assert wide is not None
        logits: Tensor = self.deep(parts) + wide
        return logits
