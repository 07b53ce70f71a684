"""One training run of `python -m benchmarks modes`, on one compute thread a worker.

One worker trains in this process, its rows here too unless they are to travel in another format. Several workers are
processes, and the rows lie in a server of this one: what they lead to is then a matter of timing, as in real use.
"""

from __future__ import annotations

import multiprocessing
import socket
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.harness import Meter
from benchmarks.modes_cases import Case, job_of
from benchmarks.synthetic import Dataset, auc
from satrap import models
from satrap.models import Named
from satrap.ps import LocalService, Placement, RemoteService
from satrap.ps.heat import CLASSES, Heat
from satrap.schema import Job
from satrap.testing import Cluster
from satrap.train import Result, TorchGroup, Trainer, listen

WINDOW_ROWS = 131_072
"""Samples of one point of a progressive curve."""
WAIT_S = 3600.0


class Recorded(nn.Module):
    """The network, keeping the logits of every training step: each is a prediction of samples not yet learned from."""

    def __init__(self, inner: nn.Module, every: int) -> None:
        super().__init__()
        self.inner = inner
        self.logits: list[Tensor] = []
        self.ends_s: list[float] = []
        """Seconds from the first step on until each multiple of `every` steps has begun."""
        self._every, self._began = every, 0.0

    def forward(self, numeric: Named, embeddings: Named) -> Tensor:
        """Logits, as the network's."""
        logits: Tensor = self.inner(numeric, embeddings)
        if self.training:
            now = time.perf_counter()
            self._began = self._began or now
            if self.logits and len(self.logits) % self._every == 0:
                self.ends_s.append(now - self._began)
            self.logits.append(logits.detach().flatten())
        return logits


def run(case: Case, synthetic: Dataset | None, real: Path | None, *, window: int = WINDOW_ROWS) -> dict[str, Any]:
    """Trains; returns its figures: AUC by test rows, and for synthetic data by windows of training rows before they
    were learned from."""
    job = job_of(case, synthetic, real)
    meter = Meter()
    with tempfile.TemporaryDirectory() as folder:
        if case.workers > 1:
            figures = _in_processes(job, case.workers, Path(folder) / "run")
        elif case.wire != "fp32":
            tables = job.resolved_tables()
            with (
                Cluster(tables, partitions=job.store.partitions, seed=job.seed) as cluster,
                RemoteService(tables, cluster.placement, seed=job.seed) as service,
            ):
                figures = _figures(_trainer(job, Path(folder) / "run", service=service).fit())
                figures |= by_heat(s.service.pushes.heat for s in cluster.servers)
        else:
            figures = _alone(job, Path(folder) / "run", window if case.data == "synthetic" else None)
    reading = meter.read()
    noise = {"other_cores": reading.other_cores, "steal_cores": reading.steal_cores}
    return {**figures, "wall_s": reading.wall_s, "cpu_s": reading.cpu_s, **noise}


def by_heat(measured: Iterable[Heat | None]) -> dict[str, Any]:
    """Staleness by heat: of each class that has any, gradients looked at, mean, and what 99 % do not exceed."""
    counts = np.sum([h.counts for h in measured if h is not None], axis=0)
    classes = {}
    for name, bins in zip(CLASSES, counts, strict=True):
        n = int(bins.sum())
        if n:
            mean = float(bins @ np.arange(bins.size)) / n
            p99 = int(np.searchsorted(np.cumsum(bins), 0.99 * n))
            classes[name] = {"gradients": n, "mean": mean, "p99": p99}
    return {"staleness_by_heat": classes}


def _trainer(job: Job, run_dir: Path, model: nn.Module | None = None, **options: Any) -> Trainer:
    return Trainer(job, model, run_dir=run_dir, progress=False, plots=False, **options)


def _alone(job: Job, run_dir: Path, window: int | None) -> dict[str, Any]:
    service, heat = LocalService.of(job), Heat()
    service.watch(heat)
    if window is None:
        return _figures(_trainer(job, run_dir, service=service).fit()) | by_heat([heat])
    torch.manual_seed(job.seed)
    recorded = Recorded(models.build(job), -(-window // job.train.batch_size))
    figures = _figures(_trainer(job, run_dir, recorded, service=service).fit()) | by_heat([heat])
    figures["window_ends_s"] = recorded.ends_s
    label = pq.read_table(job.data.train[0], columns=["label"])["label"].to_numpy()
    return {**figures, "progressive": progressive(label, torch.cat(recorded.logits).numpy(), window)}


def progressive(label: NDArray[np.int8], logits: NDArray[np.float32], window: int) -> list[tuple[int, float]]:
    """(samples at the end of the window, AUC in it) of whole windows in a row."""
    ends = range(window, len(logits) + 1, window)
    return [(end, auc(label[end - window : end], logits[end - window : end])) for end in ends]


def _figures(result: Result) -> dict[str, Any]:
    assert result.test is not None
    assert result.gradients["sent"] == sum(n for k, n in result.gradients.items() if k != "sent"), "the ledger"
    return {
        "test_auc": result.test.auc,
        "test_log_loss": result.test.log_loss,
        "valid_auc": None if result.valid is None else result.valid.auc,
        "steps": result.steps,
        "epochs": result.epochs,
        "samples": result.samples,
        "staleness_mean": result.staleness_mean,
        "staleness_max": result.staleness_max,
        "gradients": dict(result.gradients),
    }


def _in_processes(job: Job, world: int, run_dir: Path) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    listener, address = listen()
    answers = context.SimpleQueue()
    with Cluster(job.resolved_tables(), partitions=job.store.partitions, seed=job.seed) as cluster:
        workers = [
            context.Process(
                target=_work,
                args=(job, rank, world, address, listener if rank == 0 else None, cluster.placement, run_dir, answers),
            )
            for rank in range(world)
        ]
        for worker in workers:
            worker.start()
        listener.close()
        for worker in workers:
            worker.join(WAIT_S)
        heat = by_heat(s.service.pushes.heat for s in cluster.servers)
        ended = [worker.exitcode for worker in workers]
        if ended != [0] * world:
            for worker in workers:
                worker.kill()
            raise RuntimeError(f"the workers ended with {ended}")
    figures: dict[str, Any] = answers.get()
    return figures | heat


def _work(
    job: Job,
    rank: int,
    world: int,
    address: str,
    listener: socket.socket | None,
    placement: Placement,
    run_dir: Path,
    answers: Any,
) -> None:
    """One worker, in a process of its own."""
    group = TorchGroup(rank, world, address, listener=listener)
    with RemoteService(job.resolved_tables(), placement, seed=job.seed, client=rank) as service:
        result = _trainer(job, run_dir, service=service, group=group).fit()
    group.close()
    if rank == 0:
        answers.put(_figures(result))
