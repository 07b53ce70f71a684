"""DLRM: pairwise dot products of embeddings (Naumov et al. 2019, arXiv 1906.00091).

B batch, n numbers, F vectors, D their dimension, T labels. V = F + 1 with numbers, F without.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from satrap.models.inputs import Inputs
from satrap.models.layers import Deep
from satrap.models.named import Named
from satrap.schema import DLRM


class PairwiseDots(nn.Module):
    """All dot products of different vectors of a sample, [B, V, D] → [B, V (V - 1) / 2].

    >>> x = torch.tensor([[[1.0, 0.0], [2.0, 3.0], [0.0, 4.0]]])
    >>> PairwiseDots(3)(x)
    tensor([[ 2.,  0., 12.]])
    """

    below: Tensor

    def __init__(self, vectors: int) -> None:
        super().__init__()
        row, column = torch.tril_indices(vectors, vectors, -1)
        # A flat index: index_select on it and its gradient take a fraction of the time of advanced indexing.
        self.register_buffer("below", row * vectors + column, persistent=False)

    def forward(self, vectors: Tensor) -> Tensor:
        """Pairs (i, j), j < i, in row order."""
        dots = torch.bmm(vectors, vectors.transpose(1, 2))
        return dots.flatten(1).index_select(1, self.below)


class DLRMNetwork(nn.Module):
    """numbers → bottom → [B, D]; it and the vectors → pairwise dots; [bottom | dots] → top → logits [B, T].

    Without numbers there is no bottom, and the top sees the dots alone. The vectors themselves do not reach the top,
    as in the paper; a single one, with nothing to be multiplied by, does.

    >>> net = DLRMNetwork(DLRM(), Inputs(numeric={"age": 1}, pooled={"a": 4, "b": 4}, sequences={}, labels=1))
    >>> numbers = Named.packed(torch.zeros(2, 1), {"age": 1})
    >>> net(numbers, Named.packed(torch.zeros(2, 8), {"a": 4, "b": 4})).shape
    torch.Size([2, 1])
    """

    def __init__(self, spec: DLRM, inputs: Inputs) -> None:
        super().__init__()
        self.numbers, self.features = inputs.numbers, len(inputs.dims)
        dim = inputs.dims[0]
        self.bottom = Deep([self.numbers], (*spec.bottom, dim), None) if self.numbers else None
        vectors = self.features + int(self.bottom is not None)
        self.dots = PairwiseDots(vectors) if vectors > 1 else None
        widths = [dim] if self.bottom is not None or self.dots is None else []
        if self.dots is not None:
            widths.append(vectors * (vectors - 1) // 2)
        self.top = Deep(widths, spec.top, inputs.labels, dropout=spec.dropout)

    def forward(self, numeric: Named, embeddings: Named) -> Tensor:
        """Logits [B, T]."""
        vectors = embeddings.pooled().stack()
        parts = []
        if self.bottom is not None:
            parts.append(self.bottom([numeric.cat()]))
            # Rounded by autocast, the bottom's output would not stack with fp32 rows.
            vectors = torch.cat([parts[0].to(vectors.dtype).unsqueeze(1), vectors], 1)
        parts.append(vectors.squeeze(1) if self.dots is None else self.dots(vectors))
        logits: Tensor = self.top(parts)
        return logits
