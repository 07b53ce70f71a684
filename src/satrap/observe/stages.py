"""Where the time of training goes: wall and CPU seconds by stage, and who waits for whom.

    reader threads   read, decode                       room_wait
    engine thread    dedup, pull, pool, unpool, push    read_wait, gradient_wait, server_wait
    main thread      dense, reduce                      lookup_wait, worker_wait, drain_wait; evaluation, checkpoint

The threads work side by side, so the seconds of all stages together may be several times those of the clock.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from time import perf_counter, thread_time
from typing import Any

THREADS: Mapping[str, tuple[str, ...]] = {
    "reader": ("read", "decode"),
    "engine": ("dedup", "pull", "pool", "unpool", "push"),
    "main": ("dense", "reduce"),
}
"""Thread → the stages it works on, in the order of a batch."""
STAGES = tuple(stage for stages in THREADS.values() for stage in stages)
WAITS: Mapping[str, tuple[str, ...]] = {
    "reader": ("room_wait",),
    "engine": ("read_wait", "gradient_wait", "server_wait"),
    "main": ("lookup_wait", "worker_wait", "drain_wait"),
}
"""Thread → what it waits for."""


class Trace:
    """The first spans of a run, for a Chrome trace (chrome://tracing, ui.perfetto.dev). Thread-safe."""

    def __init__(self, spans_max: int = 20_000) -> None:
        self._spans_max = spans_max
        self._spans: list[tuple[str, str, float, float]] = []
        self._began = perf_counter()

    def span(self, name: str, start: float, seconds: float) -> None:
        """A stage of the calling thread, by the clock of `perf_counter`. Beyond the limit it is left out."""
        if len(self._spans) < self._spans_max:
            self._spans.append((name, threading.current_thread().name, start - self._began, seconds))

    def events(self) -> dict[str, Any]:
        """In the trace event format, times in microseconds."""
        spans = list(self._spans)
        threads = {name: i for i, name in enumerate(dict.fromkeys(t for _, t, _, _ in spans))}
        names = [
            {"ph": "M", "name": "thread_name", "pid": 0, "tid": i, "args": {"name": name}}
            for name, i in threads.items()
        ]
        return {
            "displayTimeUnit": "ms",
            "traceEvents": names
            + [
                {"ph": "X", "name": name, "pid": 0, "tid": threads[t], "ts": round(at * 1e6), "dur": round(took * 1e6)}
                for name, t, at, took in spans
            ],
        }


class Span:
    """A stage while it is worked on: what `StageSeconds.time` and `waiting` hand out, for one `with`."""

    __slots__ = ("_beside", "_cpu", "_other", "_other_cpu", "_seconds", "_stage", "_wait", "_wall")

    def __init__(self, seconds: StageSeconds, stage: str, beside: str | None, wait: str | None) -> None:
        self._seconds, self._stage, self._beside, self._wait = seconds, stage, beside, wait

    def __enter__(self) -> None:
        if self._beside is not None:
            self._other = getattr(self._seconds, self._beside)
            self._other_cpu = self._seconds.cpu[self._beside]
        self._wall, self._cpu = perf_counter(), thread_time()

    def __exit__(self, *_: object) -> None:
        took, used = perf_counter() - self._wall, thread_time() - self._cpu
        seconds = self._seconds
        if seconds.trace is not None:
            seconds.trace.span(self._stage, self._wall, took)
        if self._beside is not None:
            took -= getattr(seconds, self._beside) - self._other
            used -= seconds.cpu[self._beside] - self._other_cpu
        if self._wait is not None:
            seconds.add(self._wait, max(0.0, took - used))
            took = used
        seconds.add(self._stage, took, used)


@dataclass(slots=True)
class StageSeconds:
    """Seconds of the clock spent in, and waited for, each stage of a run by one worker. Thread-safe.

    >>> seconds = StageSeconds()
    >>> with seconds.time("dense"):
    ...     _ = sum(range(1000))
    >>> seconds.dense > 0, seconds.cpu["dense"] > 0, seconds.pull
    (True, True, 0.0)
    """

    read: float = 0.0
    """Reader: rows from files."""
    decode: float = 0.0
    """Reader: hashing, scaling, shuffling."""
    room_wait: float = 0.0
    """Reader, both threads: for what comes behind to take what is ready."""
    dedup: float = 0.0
    """Engine thread: unique ids."""
    pull: float = 0.0
    """Engine thread: rows of the unique ids; with servers, asking for them and taking them in."""
    pool: float = 0.0
    """Engine thread: rows to one vector a feature and sample."""
    unpool: float = 0.0
    """Engine thread: gradients to one per unique id."""
    push: float = 0.0
    """Engine thread: their application; with servers, sending them and taking the answers in."""
    read_wait: float = 0.0
    """Engine thread: for the reader to deliver a batch."""
    gradient_wait: float = 0.0
    """Engine thread: for the gradients that must be pushed before the next lookup."""
    server_wait: float = 0.0
    """Engine's threads: for the answers of servers."""
    dense: float = 0.0
    """Main thread: forward, backward, dense optimizer."""
    reduce: float = 0.0
    """Main thread: the sum of all workers' dense gradients, waiting for them included."""
    lookup_wait: float = 0.0
    """Main thread: for the engine to have a batch ready."""
    worker_wait: float = 0.0
    """Main thread: for all workers to come to the same step."""
    drain_wait: float = 0.0
    """Main thread: for the last pushes before a checkpoint, an evaluation or the end."""
    evaluation: float = 0.0
    """Evaluations in the middle of training."""
    checkpoint: float = 0.0
    """Saving checkpoints."""
    cpu: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    """Stage → CPU seconds of the thread that works on it: threads that torch and the store start beside are not in."""
    trace: Trace | None = None
    """Takes every span down, where there is one."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def time(self, stage: str, *, beside: str | None = None) -> Span:
        """Counts what is done inside as a stage of the calling thread, less what counts as stage `beside` meanwhile."""
        return Span(self, stage, beside, None)

    def waiting(self, stage: str, wait: str) -> Span:
        """Counts the CPU time of what is done inside as a stage, and the rest of its time as a wait: for calls that
        mostly wait for another process."""
        return Span(self, stage, None, wait)

    def add(self, stage: str, wall_s: float, cpu_s: float | None = None) -> None:
        """Enters some seconds."""
        with self._lock:
            setattr(self, stage, getattr(self, stage) + wall_s)
            if cpu_s is not None:
                self.cpu[stage] += cpu_s

    def __reduce__(self) -> Any:
        # To another process go the figures alone.
        return _figures_alone, (self.as_dict(), dict(self.cpu))

    def as_dict(self) -> dict[str, float]:
        """Seconds of the clock by name, for logs."""
        return {name: getattr(self, name) for name in NAMES}


def _figures_alone(wall: dict[str, float], cpu: dict[str, float]) -> StageSeconds:
    seconds = StageSeconds(cpu=cpu)
    for name, value in wall.items():
        seconds.add(name, value)
    return seconds


NAMES = tuple(f.name for f in fields(StageSeconds) if f.name not in ("cpu", "trace", "_lock"))
"""Every stage and wait."""


def name_thread(name: str) -> None:
    """Has the system call the calling thread so, and those that it starts. Where there is no /proc, nothing happens."""
    try:
        with open("/proc/thread-self/comm", "w") as f:
            f.write(name[:15])
    except OSError:
        pass
