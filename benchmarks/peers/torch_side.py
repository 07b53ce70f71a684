"""Plain torch, one process: 26 `nn.EmbeddingBag(sparse=True)` tables, rows mapped beforehand, sparse optimizers.

torch has no row-wise Adagrad: that name runs its element-wise sparse Adagrad, the nearest it offers (the answer
names the optimizer). `--alone` leaves the tables out and feeds random inputs: the dense network by itself.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers.loop import (
    DENSE_LR,
    DIM,
    EMBEDDING_EPS,
    EMBEDDING_LR,
    INITIAL,
    NUMBERS,
    arguments,
    measure,
    network,
    pin,
    vocabularies,
)


def main(argv: list[str]) -> int:
    """Trains, prints one JSON line."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--alone", choices=["with-input-gradient", "without-input-gradient"], default=None)
    options = parser.parse_args(argv)
    pin(options.cores)
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    answer = _dense_alone(options) if options.alone else _train(options)
    print(json.dumps({"side": "dense" if options.alone else "torch", **answer}), flush=True)
    return 0


def _train(options: Any) -> dict[str, Any]:
    sizes = vocabularies(options.arrays)
    bags = nn.ModuleList(
        nn.EmbeddingBag(v, DIM, mode="sum", sparse=True, _weight=torch.empty(v, DIM).uniform_(-INITIAL, INITIAL))
        for v in sizes
    )
    dense = network(options.model, len(sizes))
    rows_optimizer: torch.optim.Optimizer
    if options.optimizer == "adam":
        rows_optimizer = torch.optim.SparseAdam(list(bags.parameters()), lr=DENSE_LR)
    else:
        rows_optimizer = torch.optim.Adagrad(bags.parameters(), lr=EMBEDDING_LR, eps=EMBEDDING_EPS)
    adam = torch.optim.Adam(dense.parameters(), lr=DENSE_LR, fused=True)
    loss_of = nn.BCEWithLogitsLoss()
    offsets = torch.arange(options.batch)

    def forward(rows: Tensor, numbers: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bf16"):
            pooled = [bag(row, offsets) for bag, row in zip(bags, rows, strict=True)]
            logits: Tensor = dense(numbers, torch.cat(pooled, dim=1))
        return logits

    def step(rows: Tensor, numbers: Tensor, label: Tensor) -> None:
        loss = loss_of(forward(rows, numbers).float(), label)
        for optimizer in (rows_optimizer, adam):
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in (rows_optimizer, adam):
            optimizer.step()

    return {"row_optimizer": type(rows_optimizer).__name__, **measure(options, step, forward)}


def _dense_alone(options: Any) -> dict[str, Any]:
    features = len(vocabularies(options.arrays))
    dense = network(options.model, features)
    adam = torch.optim.Adam(dense.parameters(), lr=DENSE_LR, fused=True)
    loss_of = nn.BCEWithLogitsLoss()
    inputs = torch.randn(options.batch, features * DIM)
    inputs.requires_grad_(options.alone == "with-input-gradient")
    numbers = torch.randn(options.batch, NUMBERS)

    def forward(rows: Tensor, unused: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bf16"):
            logits: Tensor = dense(numbers, inputs)
        return logits

    def step(rows: Tensor, unused: Tensor, label: Tensor) -> None:
        loss = loss_of(forward(rows, unused).float(), label)
        adam.zero_grad(set_to_none=True)
        inputs.grad = None
        loss.backward()
        adam.step()

    answer = measure(options, step, forward)
    del answer["test_auc"]  # of random inputs
    return answer


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
