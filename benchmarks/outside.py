"""Metering a system from outside: by what it tells of its progress, and by the processes it is made of."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.harness import machine_seconds
from benchmarks.process_tree import used

LOOK_S = 0.02
"""How often progress is looked at."""


@dataclass(frozen=True, slots=True)
class Watched:
    """How to look at a system that runs."""

    samples: Callable[[], Iterable[int]]
    """What it has told since it was last asked: samples trained on so far, in order."""
    cpu: Callable[[], Mapping[str, float]]
    """Role of its processes → CPU seconds so far."""
    memory: Callable[[], float]
    """MiB of all its processes now."""
    over: Callable[[], bool]
    """Whether it has ended."""


def metered(system: Watched, *, warm: int, length: int) -> dict[str, Any] | None:
    """Figures of the stretch of `length` samples that begins when `warm` are done; None where it ended before.

    A stretch begins and ends when the system tells that it has come so far, and has at least `length` samples.
    """
    begun: tuple[int, float, Mapping[str, float], tuple[float, float]] | None = None
    while not system.over():
        time.sleep(LOOK_S)
        for samples in system.samples():
            if (begun is None and samples < warm) or (begun is not None and samples < begun[0] + length):
                continue
            now = (samples, time.perf_counter(), system.cpu(), machine_seconds())
            if begun is not None:
                return {**between(begun, now), "memory_mib": system.memory()}
            begun = now
    return None


def between(begun: tuple[Any, ...], now: tuple[Any, ...]) -> dict[str, Any]:
    """Figures between two looks (samples, clock, CPU seconds by role, busy and stolen seconds of the machine)."""
    samples, wall = now[0] - begun[0], now[1] - begun[1]
    by_role = used(begun[2], now[2])
    cpu = sum(by_role.values())
    return {
        "samples_per_s": samples / wall,
        "cpu_s_per_million": cpu / samples * 1e6,
        "cpu_by_role": {k: v / samples * 1e6 for k, v in by_role.items()},
        "other_cores": max(0.0, (now[3][0] - begun[3][0] - cpu) / wall),
        "steal_cores": (now[3][1] - begun[3][1]) / wall,
    }
