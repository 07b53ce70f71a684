"""Multi-gate Mixture-of-Experts (Ma et al., KDD 2018): experts that all tasks share, and a gate and a tower for each task.

B batch, T tasks, E experts, H width of an expert.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from satrap import Named


class MMoE(nn.Module):
    """Logits [B, T], one column a label of the job, in its order."""

    def __init__(self, inputs: int, tasks: int, experts: int = 4, hidden: int = 32) -> None:
        """`inputs`: width of all embeddings and numbers together."""
        super().__init__()
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU()) for _ in range(experts))
        self.gates = nn.ModuleList(nn.Linear(inputs, experts) for _ in range(tasks))
        self.towers = nn.ModuleList(
            nn.Sequential(nn.Linear(hidden, hidden // 2), nn.ReLU(), nn.Linear(hidden // 2, 1)) for _ in range(tasks)
        )

    def forward(self, numeric: Named, embeddings: Named) -> Tensor:
        x = torch.cat([embeddings.cat(), numeric.cat()], dim=1)
        experts = torch.stack([expert(x) for expert in self.experts], dim=1)  # [B, E, H]
        logits = []
        for gate, tower in zip(self.gates, self.towers, strict=True):
            share = gate(x).softmax(dim=1).unsqueeze(1)  # [B, 1, E]
            logits.append(tower((share @ experts).squeeze(1)))
        return torch.cat(logits, dim=1)
