"""A job's own batches through the stages of training, one stage at a time, in one process.

The tables are filled by the first batches as training fills them, and measured on those that follow. B samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from satrap import models
from satrap.calibrate.meter import Stopwatch
from satrap.data import Batch, Reader, measure
from satrap.embedding import EmbeddingEngine
from satrap.errors import DataError
from satrap.plan.constants import JobCost, TableSeen
from satrap.ps import Ack, LocalService, PullRequest, PushRequest, Rows
from satrap.schema import Job
from satrap.store import Store
from satrap.train.cores import compute_threads
from satrap.train.parts import divisible, parts_of
from satrap.train.reporting import Report
from satrap.train.state import RunState
from satrap.train.step import DenseStep

BATCHES = 160
"""Of the job, at most; two thirds fill the tables."""
READ_SAMPLES, READ_S = 4_000_000, 20.0
"""Where reading stops to be measured."""


class Watched:
    """A local service that times what it does, so that lookups are told from pooling, and pushes from unpooling."""

    def __init__(self, service: LocalService) -> None:
        self._service = service
        self.pulling, self.pushing = Stopwatch(), Stopwatch()
        self.asked: dict[str, NDArray[np.uint64]] = {}
        """Ids of the last pull."""

    @property
    def store(self) -> Store:
        """The kernels."""
        return self._service.store

    def tables(self) -> Any:
        """The tables."""
        return self._service.tables()

    def stats(self) -> Any:
        """Their sizes."""
        return self._service.stats()

    def pull(self, request: PullRequest) -> Rows:
        """A timed pull."""
        self.asked = {t: x.copy() for t, x in request.ids.items()}
        with self.pulling:
            return self._service.pull(request)

    def push(self, request: PushRequest) -> Ack:
        """A timed push."""
        with self.pushing:
            return self._service.push(request)


@dataclass(slots=True)
class Stages:
    """What was measured, and the distinct ids of some batches."""

    cost: JobCost
    ids: list[Mapping[str, NDArray[np.uint64]]] = field(default_factory=list)


def stages_of(job: Job, *, cores: int, batches: int = BATCHES) -> Stages:
    """Measures a job on its training files. Raises DataError where they hold fewer than three batches."""
    job = measure(job)
    read_s, read_samples = _reading(job)
    reader = Reader(job, job.data.train, seed=job.seed, shuffle=True, split=_split(job))
    with closing(reader.epoch()) as epoch:
        some: list[Batch] = list(islice(epoch, batches))
    if some and some[-1].size < job.train.batch_size:
        some.pop()
    if len(some) < 3:
        raise DataError(
            f"{job.name}: {read_samples} training samples are fewer than three batches of {job.train.batch_size}; "
            "set a smaller train.batch_size to calibrate with"
        )
    compute_threads(job.train.threads or cores)
    return _trained(job, some, read_s / read_samples, read_samples, job.train.threads or cores)


def _split(job: Job) -> Any:
    return "train" if isinstance(job.data.valid, float) and job.data.valid > 0 else "all"


def _reading(job: Job) -> tuple[float, int]:
    """CPU-seconds of reading and decoding, and of how many samples."""
    reader = Reader(job, job.data.train, seed=job.seed, shuffle=True, split=_split(job))
    samples, until = 0, perf_counter() + READ_S
    watch = Stopwatch()
    with watch, closing(reader.epoch()) as epoch:
        for batch in epoch:
            samples += batch.size
            if samples >= READ_SAMPLES or perf_counter() > until:
                break
    return watch.cpu, max(samples, 1)


def _trained(job: Job, batches: list[Batch], read_s: float, read_samples: int, threads: int) -> Stages:
    torch.manual_seed(job.seed)
    model = models.build(job)
    service = Watched(LocalService.of(job))
    device = torch.device("cpu")
    engine = EmbeddingEngine(job, service, device=device, threads=job.store.threads)
    dense = DenseStep(job, model, device)
    first = len(batches) * 2 // 3
    prepared, looked_up, pushed, beside = (Stopwatch() for _ in range(4))
    steps: list[tuple[float, float]] = []
    ids: list[Mapping[str, NDArray[np.uint64]]] = []
    report = Report(job, Path(), service, False, writes=False)
    with report.training():
        for number, batch in enumerate(batches):
            if number == first:
                for watch in (prepared, looked_up, pushed, beside, service.pulling, service.pushing):
                    watch.reset()
            with prepared:
                prepared_batch = engine.prepare(batch)
            with looked_up:
                lookup = engine.lookup(prepared_batch, train=True)
            with (computed := Stopwatch()):
                outcome = dense.compute(lookup)
                dense.apply(outcome, 1.0)
            steps.append((computed.cpu, computed.wall))
            with beside:
                report.stepped(RunState(step=number), outcome, batch, 1.0)
            with pushed:
                ack = engine.push(lookup, seq=number + 1)
            report.pushed(ack)
            if number >= first:
                ids.append(service.asked)
    counted = len(batches) - first
    samples = counted * job.train.batch_size
    us = 1e6 / samples
    dense_cpu, dense_wall = np.array(steps[first:]).T / job.train.batch_size * 1e6
    rows = {name: s.rows for name, s in service.stats().items()}
    cost = JobCost(
        name=job.name,
        batch_size=job.train.batch_size,
        samples=read_samples,
        read_us=read_s * 1e6,
        prepare_us=prepared.cpu * us,
        pull_us=service.pulling.cpu * us,
        pool_us=max(0.0, looked_up.cpu - service.pulling.cpu) * us,
        dense_us=float(np.median(dense_cpu)),
        # Whatever else ran made it longer, never shorter.
        dense_wall_us=float(np.percentile(dense_wall, 20)),
        dense_threads=threads,
        dense_parts=len(parts_of(job.train.batch_size)) if divisible(job) else 1,
        step_us=beside.cpu * us,
        unpool_us=max(0.0, pushed.cpu - service.pushing.cpu) * us,
        push_us=service.pushing.cpu * us,
        tables=tuple(
            TableSeen(
                name=t.name,
                ids_per_sample=_ids_per_sample(job, t.name, batches[first:]),
                unique_per_batch=float(np.mean([b[t.name].size for b in ids])),
                rows_seen=rows[t.name],
            )
            for t in job.resolved_tables()
        ),
        dense_parameters=sum(p.numel() for p in model.parameters()),
    )
    return Stages(cost, ids)


def _ids_per_sample(job: Job, table: str, batches: list[Batch]) -> float:
    features = [f.name for f in job.id_features if job.table_of(f) == table]
    return sum(b.ids[f].values.size for b in batches for f in features) / sum(b.size for b in batches)
