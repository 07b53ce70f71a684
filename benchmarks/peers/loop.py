"""The training run every peer is measured by: same rows, same order, same network, same optimizers, same meters.

B batch, F features (26), D dimension (16).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.harness import Meter, Reading, peak_rss_mib, pss_mib

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
        self.top = nn.Sequential(nn.Linear(width, 256), nn.ReLU(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 1))

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
    """ "deep" (13→64, 480-256-64-1), "flat" (429-256-64-1) or "sum"."""
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
    parser.add_argument("--metered-steps", type=int, default=256, help="steps the meter runs, after the warm-up")
    parser.add_argument("--steps", type=int, default=None, help="stop after so many; default: all rows once")
    parser.add_argument("--cores", type=int, default=0, help="keep the process on so many cores; 0: all")
    parser.add_argument("--seed", type=int, default=3)
    return parser


Step = Callable[[Tensor, Tensor, Tensor], object]
Forward = Callable[[Tensor, Tensor], Tensor]


def pin(cores: int) -> None:
    """Keeps this process and the threads it will start on so many of its cores. 0: all of them."""
    if cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


class Metered:
    """Meters a stretch in the middle of a training run: tell it of every step as the step begins.

    The stretch goes from the beginning of one step to the beginning of another, with work before and after it, so a
    pipeline is as full at its end as at its start and nothing read ahead comes for free. `others`: processes whose CPU
    time is counted too, and told apart; `known`: processes whose time is told and does not count.
    """

    def __init__(
        self,
        *,
        batch: int,
        warm_steps: int,
        metered_steps: int,
        others: Sequence[int] = (),
        known: Sequence[int] = (),
    ) -> None:
        self._others, self._known = others, known
        self._batch, self._first, self._last = batch, warm_steps, warm_steps + metered_steps
        self._step = 0
        self._meter: Meter | None = None
        self._starts: list[float] = []
        self._first_at = 0.0
        self.figures: dict[str, Any] | None = None
        """What was metered, `first_batch_at` in seconds since 1970; None until the stretch is over."""

    def begin_step(self) -> None:
        """A step begins (or, after the last, training has ended)."""
        if self._step == 0:
            self._first_at = time.time()
        if self._step == self._first:
            self._meter = Meter(self._others, self._known)
        if self._first <= self._step <= self._last:
            self._starts.append(time.perf_counter())
        if self._step == self._last and self._meter is not None:
            self.figures = self._measured(self._meter.read())
        self._step += 1

    def _measured(self, reading: Reading) -> dict[str, Any]:
        seconds = np.diff(self._starts)
        samples = self._batch * len(seconds)
        return {
            "samples": samples,
            "samples_per_s": samples / reading.wall_s,
            "step_ms_median": float(np.median(seconds)) * 1e3,
            "cpu_s_per_million": reading.cpu_s / samples * 1e6,
            **({"others_cpu_s_per_million": reading.others_s / samples * 1e6} if self._others else {}),
            **({"known_cpu_s_per_million": reading.known_s / samples * 1e6} if self._known else {}),
            "other_cores": reading.other_cores,
            "steal_cores": reading.steal_cores,
            "peak_rss_mib": peak_rss_mib(),
            "memory_mib": sum(map(pss_mib, (os.getpid(), *self._others))),
            "first_batch_at": self._first_at,
        }


def measure(options: argparse.Namespace, step: Step, forward: Forward) -> dict[str, Any]:
    """Trains on every batch once, meters the stretch after the warm-up, and tests. `step` gets rows, numbers, label."""
    data = load(options.arrays, "train")
    metered = Metered(batch=options.batch, warm_steps=options.warm_steps, metered_steps=options.metered_steps)
    for batch in islice(data.batches(options.batch), options.steps):
        metered.begin_step()
        step(*batch)
    metered.begin_step()
    if metered.figures is None:
        raise SystemExit(f"the data ended before {options.warm_steps} + {options.metered_steps} steps")
    held = sum(t.numel() * t.element_size() for t in (data.rows, data.numbers, data.label)) / 2**20
    return {**metered.figures, "data_mib": held, "test_auc": test_auc(options, forward), "torch": torch.__version__}


def test_auc(options: argparse.Namespace, forward: Forward) -> float:
    """AUC on the test rows (whole batches of them)."""
    data = load(options.arrays, "test")
    with torch.no_grad():
        scores = [forward(rows, numbers).float().numpy() for rows, numbers, _ in data.batches(options.batch)]
    score = np.concatenate(scores)
    return auc(data.label.numpy()[: len(score)], score)
