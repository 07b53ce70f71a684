"""What workers tell each other beside the steps: at the beginning, with a model, and at the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from satrap.observe.profile import WorkerTime
from satrap.schema import Job, job_from_dict, job_to_dict
from satrap.train.group import Group
from satrap.train.plain import from_bytes, to_bytes
from satrap.train.step import DenseStep
from satrap.train.summing import statistics_of


@dataclass(frozen=True, slots=True)
class Beginning:
    """What a run begins with, as worker 0 found it."""

    job: Job
    run_dir: Path
    step: int | None
    """Of the checkpoint to go on from; None: from the start."""


def begin(group: Group, mine: Beginning | None) -> Beginning:
    """Worker 0's beginning, for all; the others give None. Only worker 0 needs to reach the run folder."""
    if group.world == 1:
        assert mine is not None
        return mine
    data = None
    if mine is not None:
        data = to_bytes({"job": job_to_dict(mine.job), "run_dir": str(mine.run_dir), "step": mine.step})
    told = from_bytes(group.broadcast(data))
    return mine or Beginning(job_from_dict(told["job"]), Path(told["run_dir"]), told["step"])


def share_dense(group: Group, dense: DenseStep, more: Any = None, *, optimizer: bool = False) -> Any:
    """Gives every worker the dense weights of worker 0, and where asked its optimizer's state; returns its `more`."""
    if group.world == 1:
        return more
    data = None
    if group.rank == 0:
        state = dense.optimizer.state_dict() if optimizer and dense.optimizer is not None else None
        data = to_bytes({"weights": dict(dense.model.state_dict()), "optimizer": state, "more": more})
    told = from_bytes(group.broadcast(data))
    if group.rank > 0:
        dense.model.load_state_dict(told["weights"])
        if told["optimizer"] is not None and dense.optimizer is not None:
            dense.optimizer.load_state_dict(told["optimizer"])
    return told["more"]


@torch.no_grad()
def meet(group: Group, model: nn.Module, step: int, samples: int) -> tuple[int, int]:
    """Workers that trained each at its own pace: returns the most steps that any has come to, and the sum of their
    samples. Running statistics of batch norms become their mean over the workers."""
    if group.world == 1:
        return step, samples
    told = [from_bytes(data) for data in group.gather(to_bytes({"step": step, "samples": samples}))]
    for statistic in statistics_of(model):
        total = statistic.double()
        group.sum_(total)
        total /= group.world
        statistic.copy_(total if statistic.is_floating_point() else total.round())
    return max(t["step"] for t in told), sum(t["samples"] for t in told)


def totals(
    group: Group, gradients: Mapping[str, int], staleness: NDArray[np.int64]
) -> tuple[dict[str, int], NDArray[np.int64]]:
    """The ledgers of all workers in one, and their gradients by staleness."""
    told = [(dict(gradients), staleness.tolist())]
    if group.world > 1:
        told = [from_bytes(data) for data in group.gather(to_bytes(told[0]))]
    names = dict.fromkeys(name for ledger, _ in told for name in ledger)
    whole = {name: sum(ledger.get(name, 0) for ledger, _ in told) for name in names}
    return whole, np.sum([np.array(s, np.int64) for _, s in told], axis=0)


def times(group: Group, mine: WorkerTime) -> tuple[WorkerTime, ...]:
    """Where the time of every worker went, by rank."""
    if group.world == 1:
        return (mine,)
    return tuple(msgspec.json.decode(data, type=WorkerTime) for data in group.gather(msgspec.json.encode(mine)))


def seed_of(seed: int, rank: int) -> int:
    """The seed of a worker's random generators (dropout, say): the job's for worker 0, another for each other one."""
    return seed if rank == 0 else (seed + rank * 0x9E3779B97F4A7C15) % 2**63
