"""A small discrete-event simulation: processes that compute on shared cores, send over links, and wait in queues.

A process is a generator. What it yields says what it waits for: `cores.run(…)`, `link.send(…)`, `queue.get()`,
`queue.put(x)`, `barrier.arrive()`. Events at one time come in the order in which they were asked for, so a simulation
is repeatable.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Generator
from typing import Any

Resume = Callable[[Any], None]
Wait = Callable[[Resume], None]
"""What a process yields: is given the function that lets it go on."""
Process = Generator[Wait, Any, None]


class Clock:
    """Time, and what happens when."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self.happened = 0

    def at(self, time: float, do: Callable[[], None]) -> None:
        """Has something done at a time."""
        self._number += 1
        heapq.heappush(self._events, (max(time, self.now), self._number, do))

    def start(self, process: Process) -> None:
        """Lets a process run until it ends."""

        def go_on(value: Any = None) -> None:
            try:
                wait = process.send(value)
            except StopIteration:
                return
            # By way of the clock, so that processes that never have to wait do not call each other ever deeper.
            wait(lambda v: self.at(self.now, lambda: go_on(v)))

        self.at(self.now, go_on)

    def run(self, *, until: Callable[[], bool]) -> None:
        """Until it is true, or nothing more can happen."""
        while self._events and not until():
            self.now, _, do = heapq.heappop(self._events)
            self.happened += 1
            do()


class _Task:
    __slots__ = ("left", "resume", "threads")

    def __init__(self, left: float, threads: float, resume: Resume) -> None:
        self.left, self.threads, self.resume = left, threads, resume


class Cores:
    """Cores of a machine, shared equally among runnable threads."""

    def __init__(self, clock: Clock, cores: float, *, speed: float = 1.0) -> None:
        self._clock, self.cores, self._speed = clock, cores, speed
        self._tasks: list[_Task] = []
        self._since = 0.0
        self._version = 0
        self.busy_s = 0.0
        """Core-seconds used so far."""

    def run(self, cpu_s: float, threads: float = 1.0) -> Wait:
        """Waits until work of so many CPU-seconds is done, by that many threads at once at best."""

        def wait(resume: Resume) -> None:
            if cpu_s <= 0:
                resume(None)
                return
            self._advance()
            self._tasks.append(_Task(cpu_s / self._speed, threads, resume))
            self._plan()

        return wait

    def _rate(self) -> float:
        """Cores that one thread has."""
        return min(1.0, self.cores / sum(t.threads for t in self._tasks))

    def _advance(self) -> None:
        passed, self._since = self._clock.now - self._since, self._clock.now
        if passed <= 0 or not self._tasks:
            return
        rate = self._rate()
        for t in self._tasks:
            done = min(t.left, passed * rate * t.threads)
            t.left -= done
            self.busy_s += done

    def _plan(self) -> None:
        self._version += 1
        if not self._tasks:
            return
        rate, version = self._rate(), self._version
        soonest = min(t.left / t.threads for t in self._tasks) / rate
        self._clock.at(self._clock.now + soonest, lambda: self._finish(version))

    def _finish(self, version: int) -> None:
        if version != self._version:
            return
        self._advance()
        done = [t for t in self._tasks if t.left <= 1e-12]
        self._tasks = [t for t in self._tasks if t.left > 1e-12]
        self._plan()
        for t in done:
            t.resume(None)


class Link:
    """One direction of a machine's network: one message after the other."""

    def __init__(self, clock: Clock, bytes_per_s: float) -> None:
        self._clock, self._rate = clock, bytes_per_s
        self._free_at = 0.0
        self.busy_s = 0.0

    def seconds(self, size: float) -> float:
        """That so many bytes take."""
        return size / self._rate

    def taken(self, size: float, since: float) -> float:
        """Puts a message in line that is ready at a time; when its last byte is through."""
        seconds = self.seconds(size)
        self.busy_s += seconds
        self._free_at = max(since, self._free_at) + seconds
        return self._free_at


def send(
    clock: Clock, out: Link, into: Link, out_bytes: float, into_bytes: float, latency_s: float, then: Callable[[], None]
) -> None:
    """Has a message go out of one machine and into another; does something when its last byte is there.

    The two numbers of bytes differ where the message stands for several, to or from machines that are alike.
    """
    left = out.taken(out_bytes, clock.now)
    begun = left - out.seconds(out_bytes)
    clock.at(max(left, into.taken(into_bytes, begun)) + latency_s, then)


class Queue:
    """First in, first out; with a bound, who puts waits for room."""

    def __init__(self, bound: int | None = None) -> None:
        self._items: deque[Any] = deque()
        self._getters: deque[Resume] = deque()
        self._putters: deque[tuple[Any, Resume]] = deque()
        self._bound = bound

    def __len__(self) -> int:
        return len(self._items)

    def push(self, item: Any) -> None:
        """Puts without waiting."""
        if self._getters:
            self._getters.popleft()(item)
        else:
            self._items.append(item)

    def put(self, item: Any) -> Wait:
        """Waits for room."""

        def wait(resume: Resume) -> None:
            if self._bound is None or len(self._items) < self._bound or self._getters:
                self.push(item)
                resume(None)
            else:
                self._putters.append((item, resume))

        return wait

    def get(self) -> Wait:
        """Waits for an item."""

        def wait(resume: Resume) -> None:
            if not self._items:
                self._getters.append(resume)
                return
            resume(self._items.popleft())
            if self._putters:
                item, putter = self._putters.popleft()
                self._items.append(item)
                putter(None)

        return wait


class Barrier:
    """Lets all of W go on when the last has come, after a time."""

    def __init__(self, clock: Clock, parties: int, seconds: float) -> None:
        self._clock, self._parties, self._seconds = clock, parties, seconds
        self._waiting: list[Resume] = []

    def arrive(self) -> Wait:
        """Waits for the others."""

        def wait(resume: Resume) -> None:
            self._waiting.append(resume)
            if len(self._waiting) == self._parties:
                waiting, self._waiting = self._waiting, []
                for each in waiting:
                    self._clock.at(self._clock.now + self._seconds, lambda each=each: each(None))  # type: ignore[misc]

        return wait
