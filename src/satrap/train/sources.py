"""The rows a job trains, validates and tests on, as streams of batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from satrap.data import Reader
from satrap.data.batch import Batch, Position
from satrap.data.deal import ALL
from satrap.observe.stages import StageSeconds
from satrap.schema import Job


class Sources:
    """Readers of a job, opened when they are first needed: of the rows that a worker has."""

    def __init__(self, job: Job, shard: tuple[int, int] = ALL) -> None:
        """`shard`: (rank, world) of the worker."""
        self._job, self._shard = job, shard
        held_out = isinstance(job.data.valid, float | int)
        self.has_valid = bool(job.data.valid)
        """Whether there is anything to validate on."""
        self._split_off = held_out and self.has_valid
        self._train = Reader(
            job,
            job.data.train,
            seed=job.seed,
            shuffle=job.data.shuffle_rows > 0,
            split="train" if self._split_off else "all",
            shard=shard,
        )
        self.seconds: StageSeconds | None = None
        """Where the time of reading the training rows is counted."""

    def train(self, epoch: int, start: Position) -> Iterator[Batch]:
        """Batches of an epoch from a position on."""
        return self._train.epoch(epoch, start, seconds=self.seconds)

    def valid(self) -> Iterator[Batch]:
        """All validation rows of this worker, in file order."""
        if isinstance(self._job.data.valid, float | int):
            reader = Reader(
                self._job, self._job.data.train, seed=self._job.seed, shuffle=False, split="valid", shard=self._shard
            )
            return reader.epoch()
        return rows_of(self._job, self._job.data.valid, shard=self._shard)

    def test(self) -> Iterator[Batch]:
        """All test rows of this worker, in file order."""
        return rows_of(self._job, self._job.data.test, shard=self._shard)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What a position in the training rows depends on, as plain values."""
        return self._train.fingerprint

    def check_fingerprint(self, saved: Mapping[str, Any], *, between_epochs: bool) -> None:
        """Raises DataError where a position saved beside this fingerprint does not fit the data as it is now.

        `between_epochs`: it is the beginning of an epoch, which any number of workers can begin.
        """
        self._train.check_fingerprint(saved, between_epochs=between_epochs)

    @property
    def samples_total(self) -> int | None:
        """Samples of the whole run, of all workers; None where only reading would tell."""
        rows = self._train.rows
        if rows is None or self._job.train.max_steps is None:
            return None if rows is None else rows * self._job.train.epochs
        return min(rows * self._job.train.epochs, self._job.train.max_steps * self._job.train.batch_size)

    @property
    def steps_total(self) -> int | None:
        """Steps of the whole run; None where only reading would tell."""
        train = self._job.train
        steps = self._steps(train.epochs)
        if train.max_steps is None or steps is None:
            return steps if train.max_steps is None else train.max_steps
        return min(steps, train.max_steps)

    def _steps(self, epochs: int) -> int | None:
        """Steps of the first epochs, which take as many as the worker with most batches has."""
        first = self._train.steps(0)
        if first is None:
            return None
        if self._shard[1] == 1:
            return first * epochs  # whoever has all rows has as many in every epoch
        return sum(self._train.steps(epoch) or 0 for epoch in range(epochs))


def rows_of(job: Job, paths: Sequence[str], *, labels: bool = True, shard: tuple[int, int] = ALL) -> Iterator[Batch]:
    """All rows of some files that a worker has, in file order."""
    return Reader(job, tuple(paths), seed=job.seed, shuffle=False, labels=labels, shard=shard).epoch()
