"""A batch computed in parts side by side, each part by a thread of its own.

torch divides one operation at a time among its threads: they meet at the end of each, some fifty times a step, and wait
for the one that had to share its core with a lookup or with the reader. Parts of a batch meet once a step.

It needs a network whose logits of a sample depend on that sample alone and on no random number: `divisible` says of
which that is known. The parts depend on the size of the batch only, and their gradients are added in their order: the
bits are the same for any number of threads, as long as those of one part are.

B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import torch

from satrap.observe.stages import name_thread
from satrap.schema import Custom, Job

R = TypeVar("R")

LEAST, MOST = 512, 1024
"""Samples of a part: below the first Python's share of the work is too large, above the second the caches are small."""


def divisible(job: Job) -> bool:
    """Whether the job's network may be computed in parts: it is one of ours, without dropout and batch norm."""
    model = job.model
    return (
        not isinstance(model, Custom)
        and not job.train.compile
        and getattr(model, "norm", "none") != "batch"
        and not getattr(model, "dropout", 0.0)
    )


def parts_of(size: int) -> list[slice]:
    """The parts of a batch of this many samples: one below 1,024, two up to 3,071, then one for every 1,024.

    >>> parts_of(1000), parts_of(2500)
    ([slice(0, 1000, None)], [slice(0, 1250, None), slice(1250, 2500, None)])
    """
    count = max(1, min(size // LEAST, max(2, size // MOST)))
    return [slice(size * i // count, size * (i + 1) // count) for i in range(count)]


class SideBySide:
    """Runs the parts of batches, on as many threads as torch computes with. Used by one thread."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._shape = (0, 0)

    def map(self, work: Callable[[slice], R], parts: Sequence[slice]) -> list[R]:
        """What `work` returns for each part, in their order. Raises what the first part that failed raised, when all
        have ended."""
        threads = torch.get_num_threads()
        if threads == 1 or len(parts) == 1:
            return [work(p) for p in parts]
        futures = [self._threads(threads, len(parts)).submit(work, p) for p in parts]
        for f in futures:
            f.exception()  # waits
        return [f.result() for f in futures]

    def _threads(self, threads: int, parts: int) -> ThreadPoolExecutor:
        """A pool of threads that share what torch may compute with."""
        count = min(threads, parts)
        if self._pool is None or self._shape != (threads, count):
            self.close()
            each, met = threads // count, Barrier(count + 1)
            self._pool = ThreadPoolExecutor(count, initializer=_begin, initargs=(each,))
            for _ in range(count):
                self._pool.submit(met.wait)
            met.wait()
            # A thread's own number is also what torch gives threads that begin later.
            torch.set_num_threads(threads)
            self._shape = threads, count
        return self._pool

    def close(self) -> None:
        """Ends the threads."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


def _begin(threads: int) -> None:
    name_thread("satrap-dense")
    torch.set_num_threads(threads)
    torch.get_num_threads()  # or the first operation of this thread would take over what was set last anywhere
