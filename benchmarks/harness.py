"""What every benchmark shares: meters, interleaved rounds, medians, JSON lines, and the machine they ran on.

A noisy machine is the rule. So the sides of a comparison take turns in the same run, the figure is the median of the
ratios of neighbours, and every line says how many cores other processes used meanwhile (`other_cores`) and how many
the hypervisor took away (`steal_cores`). A round with more than `QUIET_CORES` of either is run again, a few times.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

QUIET_CORES = 0.3
"""Cores used by others (or stolen) above which a round does not count and is repeated."""

REPOSITORY = Path(__file__).resolve().parent.parent


def emit(**fields: Any) -> None:
    """Prints one JSON line; floats with five significant digits, more of them mean nothing here."""
    print(json.dumps(_rounded(fields)), flush=True)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(v) for v in value]
    return value


def cpu_seconds() -> float:
    """CPU seconds, user and system, of this process and of its children that have ended."""
    total = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        used = resource.getrusage(who)
        total += used.ru_utime + used.ru_stime
    return total


def machine_seconds() -> tuple[float, float]:
    """(busy, stolen) CPU seconds of the whole machine since it started; zeros where there is no /proc/stat."""
    try:
        line = Path("/proc/stat").read_text().partition("\n")[0].split()
    except OSError:
        return 0.0, 0.0
    user, nice, system, _idle, _iowait, irq, softirq, steal = (int(x) for x in line[1:9])
    tick = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + irq + softirq) / tick, steal / tick


@dataclass(frozen=True, slots=True)
class Reading:
    """What a meter saw between its start and now."""

    wall_s: float
    cpu_s: float
    other_cores: float
    """Cores that processes other than this one used, on average."""
    steal_cores: float
    others_s: float = 0.0
    """Of `cpu_s`, that of the other processes that count."""
    known_s: float = 0.0
    """CPU seconds of processes that do not count."""

    @property
    def quiet(self) -> bool:
        """Whether the machine was ours enough for the figure to count."""
        return max(self.other_cores, self.steal_cores) <= QUIET_CORES


def cpu_seconds_of(pid: int) -> float:
    """CPU seconds of a running process, in hundredths; 0 where it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Meter:
    """Wall time, own CPU time and the noise of the machine since it was made. Not thread-safe.

    `others`: processes that count as this one does. `known`: those that do not count, and are no noise either.
    """

    def __init__(self, others: Sequence[int] = (), known: Sequence[int] = ()) -> None:
        self._pids, self._known_pids = others, known
        self._known = sum(map(cpu_seconds_of, known))
        self._others = sum(map(cpu_seconds_of, others))
        self._cpu, (self._busy, self._stolen) = cpu_seconds(), machine_seconds()
        self._wall = time.perf_counter()

    def read(self) -> Reading:
        """The figures so far; the meter goes on."""
        wall = time.perf_counter() - self._wall
        others = sum(map(cpu_seconds_of, self._pids)) - self._others
        cpu, (busy, stolen) = cpu_seconds() - self._cpu + others, machine_seconds()
        known = sum(map(cpu_seconds_of, self._known_pids)) - self._known
        other = max(0.0, (busy - self._busy - cpu - known) / wall)
        return Reading(wall, cpu, other, (stolen - self._stolen) / wall, others, known)


def wait_until_quiet(limit_s: float, *, sample_s: float = 1.0) -> None:
    """Waits until others leave the machine alone for a moment, or `limit_s` are over. 0: does not wait."""
    deadline = time.perf_counter() + limit_s
    while time.perf_counter() < deadline:
        meter = Meter()
        time.sleep(sample_s)
        if meter.read().quiet:
            return


def quietest(run: Callable[[], dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """The figures of the run with the quietest machine, of at most 1 + `options.repeats`: the first that was quiet."""
    found: list[dict[str, Any]] = []
    for _ in range(1 + options.repeats):
        wait_until_quiet(options.wait_quiet_s)
        found.append(run())
        if _noise_of(found[-1]) <= QUIET_CORES:
            break
    return min(found, key=_noise_of)


def _noise_of(figures: Mapping[str, Any]) -> float:
    return float(max(figures["other_cores"], figures["steal_cores"]))


def peak_rss_mib() -> float:
    """The most memory this process has held so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0


def pss_mib(pid: int) -> float:
    """Memory of a process in MiB, pages that several share divided among them; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024.0 for line in lines if line.startswith("Pss:")), 0.0)


def rss_mib() -> float:
    """Memory this process holds now, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@dataclass(frozen=True, slots=True)
class Side:
    """The rounds of one side of a comparison."""

    seconds: list[float]
    other_cores: float
    """The noisiest round that counted."""
    steal_cores: float
    noisy_rounds: int
    """Rounds that counted although the machine was not quiet, because repeating them did not help."""

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds)


def interleave(
    sides: Mapping[str, Callable[[], Reading | None]], *, rounds: int, repeats_max: int = 2
) -> dict[str, Side]:
    """Runs every side once a round, in turns, each round starting with another side; one untimed round first.

    A side that runs in another process returns the reading of that process's own meter.
    A side that ran while the machine was busy is run again at once, at most `repeats_max` times a round; the quietest
    try counts. Returns the seconds of each side, round by round, so that `ratio` can compare neighbours.
    """
    for run in sides.values():
        run()
    names = list(sides)
    seconds: dict[str, list[float]] = {n: [] for n in names}
    worst: dict[str, list[Reading]] = {n: [] for n in names}
    for r in range(rounds):
        for name in names[r % len(names) :] + names[: r % len(names)]:
            best: Reading | None = None
            for _ in range(1 + repeats_max):
                meter = Meter()
                reading = sides[name]() or meter.read()
                if best is None or _noise(reading) < _noise(best):
                    best = reading
                if best.quiet:
                    break
            assert best is not None
            seconds[name].append(best.wall_s)
            worst[name].append(best)
    return {
        n: Side(
            seconds[n],
            max(w.other_cores for w in worst[n]),
            max(w.steal_cores for w in worst[n]),
            sum(not w.quiet for w in worst[n]),
        )
        for n in names
    }


def _noise(reading: Reading) -> float:
    return max(reading.other_cores, reading.steal_cores)


def ratio(ours: Sequence[float], other: Sequence[float]) -> float:
    """Median over the rounds of `other / ours` seconds: above 1, ours is the faster one."""
    return statistics.median(b / a for a, b in zip(ours, other, strict=True))


def result_hash(parts: Iterable[bytes]) -> str:
    """A short hash of what was computed, so that two runs can be seen to have done the same work."""
    h = hashlib.sha256()
    for part in parts:
        h.update(part)
    return h.hexdigest()[:16]


def describe() -> dict[str, Any]:
    """Machine, versions and commit: what a figure means nothing without."""
    return {
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "cpu": _first("/proc/cpuinfo", "model name"),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "huge_pages": _chosen("/sys/kernel/mm/transparent_hugepage/enabled"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "numpy")},
    }


@cache
def commit() -> str:
    """The commit the code was at when this process first asked, with `+` behind it where tracked sources differ."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", "src", "native", "benchmarks")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changed else "")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _first(path: str, key: str) -> str:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), platform.machine())


def _chosen(path: str) -> str:
    try:
        text = Path(path).read_text()
    except OSError:
        return "none"
    return text.partition("[")[2].partition("]")[0]


def _version(name: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None


def run_json(
    command: Sequence[str], *, environment: Mapping[str, str] | None = None, timeout_s: float = 900
) -> dict[str, Any]:
    """Runs a program in the repository root and returns the JSON object it printed last.

    Raises:
        RuntimeError: it failed, or printed no JSON; the message ends with the tail of its error output.
    """
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": path, **(environment or {})}
    done = subprocess.run(
        list(command), cwd=REPOSITORY, capture_output=True, text=True, env=env, timeout=timeout_s, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0 or not lines:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    answer: dict[str, Any] = json.loads(lines[-1])
    return answer


def answer_of(process: subprocess.Popen[str], ended: str) -> dict[str, Any]:
    """The next JSON object that a process prints on a line of its own; other lines are passed over. Raises SystemExit
    with `ended` where it has none."""
    assert process.stdout is not None
    line = process.stdout.readline()
    while line and not line.startswith("{"):
        line = process.stdout.readline()
    if not line:
        raise SystemExit(ended)
    answer: dict[str, Any] = json.loads(line)
    return answer


def python_has(python: str, module: str) -> bool:
    """Whether the interpreter at `python` can import `module`."""
    done = subprocess.run([python, "-c", f"import {module}"], capture_output=True, check=False)
    return done.returncode == 0


THIS_PYTHON = sys.executable
