"""CPU seconds of a running program and all it has started, by what each process is for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from benchmarks.harness import cpu_seconds_of

ROLES = {
    "ray::ServerProcess": "servers",
    "ray::EmbeddingProcess": "embedding workers",
    "ray::WorkerProcess": "workers",
}
"""Beginning of a command line → role. The root is the driver, all else Ray's own."""


def descendants(root: int) -> list[int]:
    """The processes that descend from `root`, itself first. Those whose parent has ended are not found."""
    children: defaultdict[int, list[int]] = defaultdict(list)
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            parent = _parent(folder)
            if parent is not None:
                children[parent].append(int(folder.name))
    found = [root]
    for pid in found:
        found += children[pid]
    return found


def cpu_by_role(root: int) -> dict[str, float]:
    """Role → CPU seconds so far, of the processes that run now."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for pid in descendants(root):
        seconds["driver" if pid == root else _role(pid)] += cpu_seconds_of(pid)
    return dict(seconds)


def used(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """What was used between two answers of `cpu_by_role`."""
    return {role: max(0.0, s - before.get(role, 0.0)) for role, s in after.items()}


def _parent(folder: Path) -> int | None:
    try:
        return int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return None


def _role(pid: int) -> str:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return "ray"
    return next((role for sign, role in ROLES.items() if command.startswith(sign)), "ray")
