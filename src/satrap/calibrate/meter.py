"""CPU-seconds of this process, and seconds by the clock."""

from __future__ import annotations

from time import perf_counter, process_time


class Stopwatch:
    """Adds up CPU-seconds of all threads, and seconds by the clock, over the stretches in which it is entered."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """From nothing."""
        self.cpu = self.wall = 0.0
        self._cpu = self._wall = 0.0

    def __enter__(self) -> Stopwatch:
        self._wall, self._cpu = perf_counter(), process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.cpu += process_time() - self._cpu
        self.wall += perf_counter() - self._wall
