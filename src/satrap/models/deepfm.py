"""DeepFM: a factorisation machine and a deep tower on the same rows (Guo et al., IJCAI 2017, arXiv 1703.04247).

B batch, n numbers, F vectors, D their dimension, T labels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from satrap.models.inputs import Inputs
from satrap.models.layers import Deep
from satrap.models.named import Named
from satrap.models.repeatable import affine
from satrap.schema import DeepFM


class FactorisationMachine(nn.Module):
    """Σ w + ½ Σ_d ((Σ v)² - Σ v²): linear weights and all pairwise products, in time linear in F. → [B, 1].

    A row of D values is a linear weight, then D - 1 factors. A number x has a row of its own, learned here, that counts
    x times, as in factorisation machines (Rendle, ICDM 2010).

    >>> machine = FactorisationMachine(0, 3)
    >>> machine(None, torch.tensor([[[0.5, 1.0, 2.0], [0.25, 3.0, 4.0]]]))  # 0.5 + 0.25 + 1·3 + 2·4
    tensor([[11.7500]])
    """

    def __init__(self, numbers: int, dim: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(0.01 * torch.randn(numbers, dim)) if numbers else None

    def forward(self, numbers: Tensor | None, vectors: Tensor) -> Tensor:
        """`numbers` [B, n], None where there are none; `vectors` [B, F, D]."""
        total, squares = vectors.sum(1), vectors.square().sum(1)
        if numbers is not None and self.rows is not None:
            total = total + affine(numbers, self.rows.t())
            squares = squares + affine(numbers.square(), self.rows.square().t())
        pairs = (total.square() - squares)[:, 1:].sum(1, keepdim=True)
        return total[:, :1] + 0.5 * pairs


class DeepFMNetwork(nn.Module):
    """Logits [B, T] = factorisation machine (one, for all labels) + deep tower over [numbers n | rows F·D].

    The tower reads whole rows, the linear weight included: leaving it out would cost a copy of them all.

    >>> net = DeepFMNetwork(DeepFM(hidden=(8,)), Inputs(numeric={}, pooled={"a": 4, "b": 4}, sequences={}, labels=1))
    >>> net(Named.packed(torch.zeros(3, 0), {}), Named.packed(torch.zeros(3, 8), {"a": 4, "b": 4})).shape
    torch.Size([3, 1])
    """

    def __init__(self, spec: DeepFM, inputs: Inputs) -> None:
        super().__init__()
        self.numbers = inputs.numbers
        self.machine = FactorisationMachine(self.numbers, inputs.dims[0])
        widths = [self.numbers, sum(inputs.dims)]
        self.deep = Deep(widths, spec.hidden, inputs.labels, norm=spec.norm, dropout=spec.dropout)

    def forward(self, numeric: Named, embeddings: Named) -> Tensor:
        """Logits [B, T]."""
        rows = embeddings.pooled()
        numbers = numeric.cat() if self.numbers else None
        parts = [rows.cat()] if numbers is None else [numbers, rows.cat()]
        logits: Tensor = self.deep(parts) + self.machine(numbers, rows.stack())
        return logits
