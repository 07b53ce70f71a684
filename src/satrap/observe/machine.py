"""The machine a run is on: what it has, and what this process uses of it."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_CGROUP = Path("/sys/fs/cgroup")


def rss_bytes() -> int:
    """Memory of this process that is in RAM now.

    >>> rss_bytes() > 1_000_000
    True
    """
    try:
        with open("/proc/self/statm", "rb") as f:
            return int(f.read().split()[1]) * resource.getpagesize()
    except OSError:  # no /proc (macOS): the highest so far is the nearest there is
        return peak_rss_bytes()


def peak_rss_bytes() -> int:
    """The highest `rss_bytes` of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts in bytes, Linux in KiB


def cpu_seconds() -> float:
    """User and system time of all threads of this process, without its children."""
    return time.process_time()


def threads_cpu_seconds(name: str) -> float:
    """CPU seconds of the living threads of this process that the system knows by a name; 0 where it does not tell.

    >>> threads_cpu_seconds("no such thread")
    0.0
    """
    ticks = 0
    with contextlib.suppress(OSError):
        for task in os.scandir("/proc/self/task"):
            with contextlib.suppress(OSError), open(f"{task.path}/stat", "rb") as f:
                head, _, rest = f.read().rpartition(b")")
                if head.partition(b"(")[2] == name.encode():
                    ticks += sum(map(int, rest.split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def process_began_at() -> float:
    """When this process was started, in seconds since 1970; where the system does not tell, now.

    >>> 0 <= time.time() - process_began_at() < 1e6
    True
    """
    try:
        with open("/proc/self/stat", "rb") as f:
            # The name, in brackets, may hold anything.
            ticks = int(f.read().rpartition(b")")[2].split()[19])
        ago = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return time.time()
    return time.time() - max(0.0, ago)


def cores_available() -> int:
    """Cores this process may keep busy: its affinity mask, cut by its container's quota. At least 1.

    >>> 1 <= cores_available() <= (os.cpu_count() or 1)
    True
    """
    mask = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    # A quota of 1.5 cores is best used by two threads; one would leave half a core idle.
    return max(1, mask if quota is None else min(mask, -int(-quota // 1)))


def cpu_quota(root: Path = _CGROUP) -> float | None:
    """Cores' worth of time the control group allows; None without a limit."""
    limits = []
    for folder in _cgroups(root):
        words = _words(folder / "cpu.max")
        if len(words) == 2 and words[0] != "max":
            limits.append(int(words[0]) / int(words[1]))
    # Version 1 keeps the two numbers in files of their own.
    quota, period = _words(root / "cpu/cpu.cfs_quota_us"), _words(root / "cpu/cpu.cfs_period_us")
    if quota and period and int(quota[0]) > 0:
        limits.append(int(quota[0]) / int(period[0]))
    return min(limits, default=None)


def memory_limit_bytes(root: Path = _CGROUP) -> int | None:
    """Memory the control group allows; None without a limit."""
    files = [folder / "memory.max" for folder in _cgroups(root)] + [root / "memory/memory.limit_in_bytes"]
    limits = [int(w[0]) for w in map(_words, files) if w and w[0] != "max"]
    limits = [n for n in limits if n < 1 << 60]  # version 1 writes "no limit" as a huge number
    return min(limits, default=None)


def memory_in_use_bytes(root: Path = _CGROUP) -> int | None:
    """Memory in use in the control group with the least left of its limit, without what the kernel would give up (files
    not in use); None without a limit."""
    left = []
    for folder in (*_cgroups(root), root / "memory"):
        most = _words(folder / "memory.max") or _words(folder / "memory.limit_in_bytes")
        now = _words(folder / "memory.current") or _words(folder / "memory.usage_in_bytes")
        if not most or not now or most[0] == "max" or int(most[0]) >= 1 << 60:
            continue
        stat = dict(line.split()[:2] for line in _lines(folder / "memory.stat") if len(line.split()) == 2)
        files = int(stat.get("inactive_file", stat.get("total_inactive_file", 0)))
        left.append((int(most[0]) - int(now[0]), max(0, int(now[0]) - files)))
    return min(left)[1] if left else None


def memory_bytes() -> int:
    """Memory of the machine, or what the control group allows of it."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = memory_limit_bytes()
    return total if limit is None else min(total, limit)


def _cgroups(root: Path) -> list[Path]:
    """This process's control group and those above it: the tightest limit of any of them holds."""
    own = next((line[3:].strip() for line in _lines(Path("/proc/self/cgroup")) if line.startswith("0::")), "/")
    folder = root / own.lstrip("/")
    return [folder, *(p for p in folder.parents if p == root or root in p.parents)]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)[:1]).split()


def _cpu() -> tuple[str, list[str]]:
    """Model name, and those of the vector instruction sets that matter to satrap."""
    model, flags = platform.processor() or platform.machine(), set[str]()
    for line in _lines(Path("/proc/cpuinfo")):
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            model = value.strip()
        elif key.strip() in ("flags", "Features"):
            flags = set(value.split())
            break
    return model, [x for x in ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve") if x in flags]


def _version(package: str) -> str | None:
    try:
        return version(package)  # read from its metadata: importing torch takes seconds
    except PackageNotFoundError:
        return None


def describe() -> dict[str, Any]:
    """What a result depends on besides the job, as plain JSON values.

    >>> sorted(describe())[:3]
    ['cores', 'cores_available', 'cpu']
    """
    model, vector = _cpu()
    return {
        "cpu": model,
        "vector": vector,
        "cores": os.cpu_count(),
        "cores_available": cores_available(),
        "memory_bytes": memory_bytes(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {p: _version(p) for p in ("satrap", "torch", "numpy", "pyarrow")},
    }
