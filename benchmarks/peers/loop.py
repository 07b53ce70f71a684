"""The training run every peer is measured by: same rows, same order, same network, same optimizers, same meters.

B batch, F features (26), D dimension (16).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.harness import Meter, peak_rss_mib

DIM = 16
NUMBERS = 13
INITIAL = 0.01
"""Rows start uniform in ±INITIAL on every side."""
EMBEDDING_LR, EMBEDDING_EPS = 0.02, 1e-8
DENSE_LR = 1e-3


class Deep(nn.Module):
    """The full model: numbers through 64 units (or straight), beside the embeddings, then 256, 64, 1."""

    def __init__(self, features: int, *, bottom: bool = True) -> None:
        super().__init__()
        self.bottom = nn.Sequential(nn.Linear(NUMBERS, 64), nn.ReLU()) if bottom else nn.Identity()
        width = features * DIM + (64 if bottom else NUMBERS)
        self.top = nn.Sequential(
            nn.Linear(width, 256), nn.ReLU(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 1)
        )

    def forward(self, numbers: Tensor, embeddings: Tensor) -> Tensor:
        """numbers [B, 13], embeddings [B, F D] → logits [B]"""
        logits: Tensor = self.top(torch.cat([embeddings, self.bottom(numbers)], dim=1))
        return logits.squeeze(1)


class Sum(nn.Module):
    """The embedding path alone: the logit is the sum of every pooled value, and a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, numbers: Tensor, embeddings: Tensor) -> Tensor:
        """numbers [B, 13] (not used), embeddings [B, F D] → logits [B]"""
        return embeddings.sum(dim=1) + self.bias


def network(name: str, features: int) -> nn.Module:
    """"deep" (13→64, 480-256-64-1), "flat" (429-256-64-1) or "sum"."""
    return Sum() if name == "sum" else Deep(features, bottom=name == "deep")


@dataclass(frozen=True, slots=True)
class Clicks:
    """Rows in memory."""

    rows: Tensor
    """int64 [F, N]: row numbers, mapped from ids beforehand."""
    numbers: Tensor
    """float32 [N, 13]"""
    label: Tensor
    """float32 [N]"""

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Whole batches of `size` samples, in file order."""
        for at in range(0, self.rows.shape[1] - size + 1, size):
            to = slice(at, at + size)
            yield self.rows[:, to], self.numbers[to], self.label[to]


def load(arrays: Path, split: str) -> Clicks:
    """One split of a generated data set, whole, in memory."""
    rows, numbers, label = (np.load(arrays / f"{split}_{what}.npy") for what in ("rows", "numbers", "label"))
    return Clicks(torch.from_numpy(rows), torch.from_numpy(numbers), torch.from_numpy(label.astype(np.float32)))


def vocabularies(arrays: Path) -> list[int]:
    """Rows of each table."""
    sizes: list[int] = json.loads((arrays / "vocabularies.json").read_text())
    return sizes


def auc(label: NDArray[np.float32], score: NDArray[np.float32]) -> float:
    """Area under the ROC curve, exact, equal scores counting half."""
    _, group, count = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2.0)[group]
    ones = int((label == 1).sum())
    return float((rank[label == 1].sum() - ones * (ones + 1) / 2.0) / (ones * (len(label) - ones)))


def arguments(description: str) -> argparse.ArgumentParser:
    """The options every peer takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--arrays", type=Path, required=True)
    parser.add_argument("--model", choices=["deep", "flat", "sum"], default="deep")
    parser.add_argument("--optimizer", choices=["rowwise_adagrad", "adagrad", "adam"], default="rowwise_adagrad")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--warm-steps", type=int, default=128)
    parser.add_argument("--seed", type=int, default=3)
    return parser


Step = Callable[[Tensor, Tensor, Tensor], object]
Forward = Callable[[Tensor, Tensor], Tensor]


def measure(options: argparse.Namespace, step: Step, forward: Forward) -> dict[str, Any]:
    """Trains on every batch once, meters those after the warm-up, and tests. `step` gets rows, numbers, label."""
    data = load(options.arrays, "train")
    batches = list(data.batches(options.batch))
    for batch in batches[: options.warm_steps]:
        step(*batch)
    seconds: list[float] = []
    meter = Meter()
    for batch in batches[options.warm_steps :]:
        start = time.perf_counter()
        step(*batch)
        seconds.append(time.perf_counter() - start)
    reading = meter.read()
    samples = options.batch * len(seconds)
    answer = {
        "samples": samples,
        "samples_per_s": samples / reading.wall_s,
        "samples_per_s_best_tenth": options.batch / float(np.percentile(seconds, 10)),
        "step_ms_median": statistics.median(seconds) * 1e3,
        "cpu_s_per_million": reading.cpu_s / samples * 1e6,
        "other_cores": reading.other_cores,
        "steal_cores": reading.steal_cores,
        "peak_rss_mib": peak_rss_mib(),
        "data_mib": sum(t.numel() * t.element_size() for t in (data.rows, data.numbers, data.label)) / 2**20,
        "test_auc": test_auc(options, forward),
    }
    return {**_options(options), "torch": torch.__version__, **answer}


def _options(options: argparse.Namespace) -> dict[str, Any]:
    return {k: v for k, v in vars(options).items() if k != "arrays"}


def test_auc(options: argparse.Namespace, forward: Forward) -> float:
    """AUC on the test rows (whole batches of them)."""
    data = load(options.arrays, "test")
    with torch.no_grad():
        scores = [forward(rows, numbers).float().numpy() for rows, numbers, _ in data.batches(options.batch)]
    score = np.concatenate(scores)
    return auc(data.label.numpy()[: len(score)], score)
