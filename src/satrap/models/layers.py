"""Parts the networks share.

B batch, H outputs of a layer, P parts side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from satrap.models.repeatable import BatchNorm, LayerNorm, Linear, affine

Norm = Literal["none", "batch", "layer"]


class JoinedLinear(nn.Module):
    """A linear layer on parts that lie side by side in thought only: Σ x_p W_pᵀ + b, [B, H].

    The same map as `nn.Linear` on the concatenation and initialised like it. The parts are never copied together, and
    the gradient of a part comes out contiguous, ready to be pushed, instead of as a slice of a wider one.

    >>> layer = JoinedLinear([2, 3], 4)
    >>> layer([torch.zeros(5, 2), torch.zeros(5, 3)]).shape
    torch.Size([5, 4])
    """

    def __init__(self, widths: Sequence[int], out: int) -> None:
        super().__init__()
        if not sum(widths):
            raise ValueError("a layer needs at least one input column")
        whole = nn.Linear(sum(widths), out)
        pieces = torch.split(whole.weight.detach(), list(widths), 1)
        self.weights = nn.ParameterList(nn.Parameter(w.clone()) for w in pieces if w.shape[1])
        self.bias = nn.Parameter(whole.bias.detach())

    def forward(self, parts: Sequence[Tensor]) -> Tensor:
        """`parts` as the widths given, without those of width 0. Returns [B, H]."""
        out: Tensor | None = None
        for x, w in zip(parts, self.weights, strict=True):
            out = affine(x, w, self.bias if out is None else out)
        assert out is not None
        return out


def tower(widths: Sequence[int], *, norm: Norm = "none", dropout: float = 0.0) -> nn.Sequential:
    """Hidden layers after the first linear one: (norm, ReLU, dropout) and, between them, linear layers.

    `widths` starts with the width that comes in, the output of that first layer.

    >>> len(tower([8, 4]))  # ReLU, Linear, ReLU
    3
    """
    layers: list[nn.Module] = []
    for i, width in enumerate(widths):
        if i:
            layers.append(Linear(widths[i - 1], width))
        if norm == "batch":
            layers.append(BatchNorm(width))
        elif norm == "layer":
            layers.append(LayerNorm(width))
        layers.append(nn.ReLU(inplace=True))
        if dropout:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers)


class Deep(nn.Module):
    """A multi-layer perceptron over parts side by side, [B, widths] → [B, out].

    >>> Deep([2, 3], hidden=(4,), out=1)([torch.zeros(5, 2), torch.zeros(5, 3)]).shape
    torch.Size([5, 1])
    """

    def __init__(
        self,
        widths: Sequence[int],
        hidden: Sequence[int],
        out: int | None,
        *,
        norm: Norm = "none",
        dropout: float = 0.0,
    ) -> None:
        """`out` None: the last hidden layer is what comes out, `self.width` wide."""
        super().__init__()
        if not hidden and out is None:
            raise ValueError("a perceptron without hidden layers needs an output width")
        first, *rest = hidden if hidden else [out or 0]
        self.width = out if out is not None else [first, *rest][-1]
        self.first = JoinedLinear(widths, first)
        self.hidden = tower([first, *rest], norm=norm, dropout=dropout) if hidden else nn.Sequential()
        self.out = Linear([first, *rest][-1], out) if hidden and out is not None else nn.Identity()

    def forward(self, parts: Sequence[Tensor]) -> Tensor:
        """`parts` [B, widths], without those of width 0."""
        y: Tensor = self.out(self.hidden(self.first(parts)))
        return y
