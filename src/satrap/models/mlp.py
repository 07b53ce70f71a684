"""A plain multi-layer perceptron over everything side by side.

B batch, n numbers, Σ columns of all vectors, T labels.
"""

from __future__ import annotations

from torch import Tensor, nn

from satrap.models.inputs import Inputs
from satrap.models.layers import Deep
from satrap.models.named import Named
from satrap.schema import MLP


class MLPNetwork(nn.Module):
    """[numbers n | vectors Σ] → hidden layers → logits [B, T]. With `numeric_hidden` the numbers pass layers first.

    >>> import torch
    >>> net = MLPNetwork(MLP(hidden=(8,)), Inputs(numeric={"age": 1}, pooled={"city": 4}, sequences={}, labels=1))
    >>> age, city = Named.packed(torch.zeros(2, 1), {"age": 1}), Named.packed(torch.zeros(2, 4), {"city": 4})
    >>> net(age, city).shape
    torch.Size([2, 1])
    """

    def __init__(self, spec: MLP, inputs: Inputs) -> None:
        super().__init__()
        n = inputs.numbers
        self.arm = Deep([n], spec.numeric_hidden, None, norm=spec.norm) if n and spec.numeric_hidden else None
        self.numbers = n
        self.vectors = sum(inputs.dims)
        self.deep = Deep(
            [self.arm.width if self.arm else n, self.vectors],
            spec.hidden,
            inputs.labels,
            norm=spec.norm,
            dropout=spec.dropout,
        )

    def forward(self, numeric: Named, embeddings: Named) -> Tensor:
        """Logits [B, T]."""
        parts = []
        if self.numbers:
            x = numeric.cat()
            parts.append(self.arm([x]) if self.arm is not None else x)
        if self.vectors:
            parts.append(embeddings.pooled().cat())
        logits: Tensor = self.deep(parts)
        return logits
