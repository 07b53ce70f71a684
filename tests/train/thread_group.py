"""Workers as threads of one process: a `Group` whose sums are taken in the order of the ranks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch

from satrap.errors import TrainingError
from satrap.train.group import Agreed


class Meeting:
    """Where W threads exchange values: each gives one, and all get all of them."""

    def __init__(self, world: int) -> None:
        self.world = world
        self._given: list[Any] = [None] * world
        self._barrier = threading.Barrier(world)

    def exchange(self, rank: int, value: Any) -> list[Any]:
        try:
            self._given[rank] = value
            self._barrier.wait()
            everything = list(self._given)
            self._barrier.wait()
        except threading.BrokenBarrierError as e:
            raise TrainingError(f"worker {rank} of {self.world}: another worker is gone") from e
        return everything

    def leave(self) -> None:
        self._barrier.abort()


class ThreadGroup:
    """One thread's view of a meeting."""

    def __init__(self, rank: int, meeting: Meeting) -> None:
        self.rank, self.world, self._meeting = rank, meeting.world, meeting
        self.calls: list[str] = []

    def _exchange(self, what: str, value: Any) -> list[Any]:
        self.calls.append(what)
        return self._meeting.exchange(self.rank, value)

    def agree(self, weight: float, has_data: bool, stop: bool) -> Agreed:
        all_ = self._exchange("agree", (weight, has_data, stop))
        return Agreed(sum(a[0] for a in all_), sum(a[1] for a in all_), any(a[2] for a in all_))

    def sum_(self, flat: torch.Tensor) -> None:
        all_ = self._exchange("sum", flat.clone())
        flat.copy_(torch.stack(all_).sum(0))

    def gather(self, data: bytes) -> list[bytes]:
        return self._exchange("gather", data)

    def broadcast(self, data: bytes | None) -> bytes:
        return self._exchange("broadcast", data)[0]

    def barrier(self) -> None:
        self._exchange("barrier", None)

    def close(self) -> None:
        self._meeting.leave()


def in_threads(world: int, work: Callable[[ThreadGroup], Any]) -> list[Any]:
    """Runs `work` as each worker at once; returns what each returned. Raises the first worker's error that is its
    own."""
    meeting = Meeting(world)
    results: list[Any] = [None] * world
    errors: list[BaseException | None] = [None] * world

    def run(rank: int) -> None:
        try:
            results[rank] = work(ThreadGroup(rank, meeting))
        except BaseException as e:
            errors[rank] = e
            meeting.leave()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    failed = [e for e in errors if e is not None]
    for e in sorted(failed, key=lambda e: "another worker" in str(e)):
        raise e
    return results
