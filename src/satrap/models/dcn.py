"""DCN-v2: cross layers beside or below a deep tower (Wang et al., WWW 2021, arXiv 2008.13535).

B batch, n numbers, Σ columns of all vectors, C = n + Σ, R rank, T labels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from satrap.models.inputs import Inputs
from satrap.models.layers import Deep, JoinedLinear
from satrap.models.named import Named
from satrap.models.repeatable import Linear
from satrap.schema import DCNv2


class Cross(nn.Module):
    """One cross layer: x₀ ⊙ (W x + b) + x, equation 1; with a rank R, W = U Vᵀ, equation 2. [B, C] → [B, C].

    >>> layer = Cross(3, None)
    >>> layer(torch.zeros(2, 3), torch.ones(2, 3))
    tensor([[1., 1., 1.],
            [1., 1., 1.]], grad_fn=<AddcmulBackward0>)
    """

    def __init__(self, columns: int, rank: int | None) -> None:
        super().__init__()
        self.down = None if rank is None else Linear(columns, rank, bias=False)
        self.up = Linear(columns if rank is None else rank, columns)

    def forward(self, x0: Tensor, x: Tensor) -> Tensor:
        """`x0` the input of the first layer, `x` of this one."""
        y = self.up(x if self.down is None else self.down(x))
        # Under autocast y is bf16 and x is not: the sum stays in the precision of x.
        return torch.addcmul(x, x0, y.to(x.dtype))


class DCNv2Network(nn.Module):
    """x₀ = [numbers n | vectors Σ] → cross layers and a deep tower, in parallel or stacked → logits [B, T].

    >>> net = DCNv2Network(DCNv2(hidden=(8,)), Inputs(numeric={"age": 1}, pooled={"a": 4}, sequences={}, labels=2))
    >>> net(Named.packed(torch.zeros(3, 1), {"age": 1}), Named.packed(torch.zeros(3, 4), {"a": 4})).shape
    torch.Size([3, 2])
    """

    def __init__(self, spec: DCNv2, inputs: Inputs) -> None:
        super().__init__()
        self.numbers, self.vectors = inputs.numbers, sum(inputs.dims)
        columns = self.numbers + self.vectors
        self.cross = nn.ModuleList(Cross(columns, spec.low_rank) for _ in range(spec.cross_layers))
        self.deep: Deep | None = None
        widths = [columns]
        if spec.hidden:
            self.deep = Deep([columns], spec.hidden, None, norm=spec.norm, dropout=spec.dropout)
            widths = [columns, self.deep.width] if spec.structure == "parallel" else [self.deep.width]
        self.parallel = spec.structure == "parallel"
        self.out = JoinedLinear(widths, inputs.labels)

    def forward(self, numeric: Named, embeddings: Named) -> Tensor:
        """Logits [B, T]."""
        parts = [numeric.cat()] if self.numbers else []
        if self.vectors:
            parts.append(embeddings.pooled().cat())
        # Every cross layer multiplies by all of x₀, so here the copy side by side is worth it.
        x0 = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        x = x0
        for layer in self.cross:
            x = layer(x0, x)
        if self.deep is None:
            ends = [x]
        elif self.parallel:
            ends = [x, self.deep([x0])]
        else:
            ends = [self.deep([x])]
        logits: Tensor = self.out(ends)
        return logits
