"""Workers of one training as threads of this process, with rows that they share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from thread_group import ThreadGroup, in_threads

from satrap.data.batch import Batch, Jagged
from satrap.ps import LocalService
from satrap.schema import Job
from satrap.train import Result, Trainer


def part_of(batch: Batch, a: int, b: int) -> Batch:
    """Samples a … b of a batch."""
    ids = {}
    for name, x in batch.ids.items():
        if x.offsets is None:
            ids[name] = Jagged(x.values[a:b], None, None if x.weights is None else x.weights[a:b])
            continue
        at = slice(int(x.offsets[a]), int(x.offsets[b]))
        weights = None if x.weights is None else x.weights[at]
        ids[name] = Jagged(x.values[at], x.offsets[a : b + 1] - x.offsets[a], weights)
    weights = None if batch.weights is None else batch.weights[a:b]
    return Batch(b - a, batch.numeric[a:b], ids, batch.labels[a:b], weights, batch.position)


def divided(batches: list[Batch], sizes: list[list[int]]) -> list[list[Batch]]:
    """Each worker's batches, of `sizes[step][worker]` samples; 0 for a worker whose data has ended."""
    each: list[list[Batch]] = [[] for _ in sizes[0]]
    for batch, of_step in zip(batches, sizes, strict=True):
        ends = np.cumsum(of_step)
        assert ends[-1] == batch.size
        for mine, a, b in zip(each, [0, *ends[:-1]], ends, strict=True):
            if a < b:
                mine.append(part_of(batch, a, b))
    return each


class Workers:
    """W trainers of one job on the same rows, and what they came to."""

    def __init__(
        self,
        job: Job,
        world: int,
        run_dir: Path,
        *,
        services: Callable[[int], Any] | None = None,
        poolers: Callable[[int], Any] | None = None,
        prepare: Callable[[Trainer, int], None] | None = None,
        **options: Any,
    ) -> None:
        """`services`: rank → the way to the rows; None: one table in this process. `poolers`: rank → who pools them;
        None: each worker itself. `prepare` changes a trainer before
        it starts. `options`: of `fit`."""
        shared = LocalService.of(job) if services is None else None
        self.service = shared
        # One after the other: they draw their weights from the process's one generator.
        self.trainers: list[Trainer] = []
        for rank in range(world):
            service = shared if services is None else services(rank)
            trainer = Trainer(
                job,
                run_dir=run_dir,
                service=service,
                pooler=None if poolers is None else poolers(rank),
                group=_Later(rank, world),
                progress=False,
                plots=False,
            )
            if prepare is not None:
                prepare(trainer, rank)
            self.trainers.append(trainer)

        def work(group: ThreadGroup) -> Result:
            trainer = self.trainers[group.rank]
            trainer._group.group = group  # type: ignore[attr-defined]
            return trainer.fit(**options)

        self.results: list[Result] = in_threads(world, work)

    @property
    def result(self) -> Result:
        return self.results[0]


class _Later:
    """A group that is known when the threads run: a trainer is made before."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world
        self.group: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.group, name)
