"""The theory where it can be seen: error against staleness times the highest frequency of a row.

Lian et al. (KDD 2022, theorem 1) bound what the staleness τ of embeddings adds to the error of synchronous training
by a term in τ α, where α is the highest frequency with which a row is in a sample. Here rows of one number learn the
means of what is seen under their ids, by plain SGD on squares, through a parameter service and the schedule of hybrid
training. One row is in a share α of the samples and has something to learn; the others share the rest and begin where
they belong. What staleness costs is the sum over steps of the error beyond that of synchronous training on the same
samples: τ steps in which the frequent row has not yet moved cost τ α of its first error. Where the step times its
frequency times the delay is too much for it (π, in round figures), it swings further with every step instead.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.modes_plots import COLORS
from satrap.ps import LocalService, PullRequest, PushRequest
from satrap.schema import SGD, Table, Zeros
from satrap.train.schedule import StalenessSchedule

ROWS, BATCH, RATE = 1000, 64, 0.002
"""Rows beside the frequent one; samples a step; step a sample."""


def regret(staleness: int, alpha: float, *, steps: int, seed: int) -> float:
    """Σ over steps of the expected squared error of a sample beyond its noise, of one run."""
    rng = np.random.default_rng(seed)
    means = np.zeros(ROWS + 1)
    means[0] = 1.0
    share = np.full(ROWS + 1, (1.0 - alpha) / ROWS)
    share[0] = alpha
    service = LocalService(
        [Table(name="t", dim=1, initializer=Zeros(), optimizer=SGD(lr=1.0))], seed=0, partitions=1, threads=1
    )
    everything = {"t": np.arange(ROWS + 1, dtype=np.uint64)}
    schedule, applied, total = StalenessSchedule(staleness), 0, 0.0
    waiting: list[tuple[NDArray[np.uint64], NDArray[np.float32]]] = []
    for step in range(steps):
        while applied < schedule.applied_before(step, 0):
            _push(service, *waiting.pop(0), applied)
            applied += 1
        held = service.pull(PullRequest(ids=everything, create=True)).values["t"][:, 0]
        total += float(share @ (held - means) ** 2)
        ids = rng.choice(ROWS + 1, BATCH, p=share)
        seen = means[ids] + rng.standard_normal(BATCH)
        unique, inverse = np.unique(ids, return_inverse=True)
        gradient = np.bincount(inverse, RATE * (held[ids] - seen)).astype(np.float32)
        waiting.append((unique.astype(np.uint64), gradient[:, None]))
    return total


def _push(service: LocalService, ids: NDArray[np.uint64], gradient: NDArray[np.float32], seq: int) -> None:
    service.push(PushRequest(client=0, epoch=0, seq=seq + 1, ids={"t": ids}, gradients={"t": gradient}))


def study(*, smoke: bool) -> list[dict[str, Any]]:
    """A line for each α and τ: the mean and standard error over seeds of the regret above that at τ = 0."""
    alphas, taus = ((0.1,), (4,)) if smoke else ((0.05, 0.1, 0.2, 0.4), (1, 2, 4, 8, 16, 32, 64))
    steps, seeds = (50, 2) if smoke else (1000, 10)
    lines = []
    for alpha in alphas:
        plain = [regret(0, alpha, steps=steps, seed=s) for s in range(seeds)]
        for tau in taus:
            extra = [regret(tau, alpha, steps=steps, seed=s) - p for s, p in enumerate(plain)]
            error = statistics.stdev(extra) / seeds**0.5
            lines.append(
                {"theory": {"alpha": alpha, "staleness": tau}, "tau_alpha": tau * alpha,
                 "extra_regret": statistics.fmean(extra), "standard_error": error,
                 "stable": RATE * BATCH * alpha * (2 * tau + 1) < np.pi}
            )  # fmt: skip
    return lines


def plot(lines: Sequence[dict[str, Any]], path: Path) -> Path:
    """Extra regret against τ α, a colour for each α."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(5.6, 4.0), dpi=110, layout=ConstrainedLayoutEngine())
    ax = figure.subplots()
    for alpha, color in zip(sorted({x["theory"]["alpha"] for x in lines}), COLORS[1:], strict=False):
        own = [x for x in lines if x["theory"]["alpha"] == alpha]
        ax.errorbar(
            [x["tau_alpha"] for x in own],
            [x["extra_regret"] for x in own],
            yerr=[x["standard_error"] for x in own],
            fmt="o-",
            color=color,
            lw=1,
            label=f"frequency {alpha}",
        )
    ends = (min(x["tau_alpha"] for x in lines), max(x["tau_alpha"] for x in lines))
    ax.plot(ends, ends, color="#7b8794", ls="--", lw=1, label="in proportion")
    ax.set(xscale="log", yscale="log", xlabel="staleness times highest frequency", ylabel="regret above synchronous")
    ax.grid(color="#e4e8ec")
    ax.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
    return path
