"""Deep Interest Network (Zhou et al., KDD 2018, arXiv 1706.06978): what a user did before, weighed by what is offered now.

B batch, L padded length, D dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from satrap import Named


class DIN(nn.Module):
    """Attention of the offered item over a history of the same table, then a perceptron over all of it."""

    def __init__(self, item: str, history: str, dim: int, others: int, hidden: int = 64) -> None:
        """`item`, `history`: names of the features; both look the same table up. `others`: width of all other
        embeddings together."""
        super().__init__()
        self.item, self.history = item, history
        self.attention = nn.Sequential(nn.Linear(4 * dim, 36), nn.PReLU(), nn.Linear(36, 1))
        self.layers = nn.Sequential(nn.Linear(3 * dim + others, hidden), nn.PReLU(), nn.Linear(hidden, 1))

    def forward(self, numeric: Named, embeddings: Named) -> Tensor:
        item = embeddings[self.item]  # [B, D]
        past, mask = embeddings[self.history]  # [B, L, D], bool [B, L]
        # Under the mask lies padding: it must not come into a sum, whatever it holds.
        past = torch.where(mask.unsqueeze(-1), past, past.new_zeros(()))
        each = item.unsqueeze(1).expand_as(past)
        weight = self.attention(torch.cat([each, past, each - past, each * past], dim=-1)).squeeze(-1)
        # As in the paper, the weights are not normalised: how much there is of an interest matters too.
        interest = (weight * mask).unsqueeze(-1).mul(past).sum(1)
        others = embeddings.cat([n for n in embeddings.widths if n != self.item])
        return self.layers(torch.cat([item, interest, item * interest, others], dim=1))
