"""How much memory tables may still take, so that a process ends with an error it can explain, and not by the kernel."""

from __future__ import annotations

import os
from pathlib import Path

from satrap.observe.machine import memory_bytes, memory_in_use_bytes, rss_bytes

MARGIN_PART, MARGIN_LEAST, MARGIN_MOST = 32, 64 << 20, 2 << 30
"""Kept free: this part of the memory there is, and at least and at most so much."""
_MEMINFO = Path("/proc/meminfo")


class MemoryRoom:
    """What is left of the memory that this process may use.

    >>> 0 <= MemoryRoom(1 << 50).left_bytes() < 1 << 50
    True
    >>> MemoryRoom(1).left_bytes()
    0
    """

    def __init__(self, limit_bytes: int | None = None) -> None:
        """`limit_bytes`: of this process (`store.memory`). None: what the machine and the container have, for all
        processes there, less a margin."""
        self.limit_bytes = limit_bytes

    def left_bytes(self) -> int:
        """0 where there is none."""
        if self.limit_bytes is not None:
            return max(0, self.limit_bytes - rss_bytes())
        total = memory_bytes()
        margin = min(max(total // MARGIN_PART, MARGIN_LEAST), MARGIN_MOST)
        used = memory_in_use_bytes()
        left = [_available_bytes(), *([] if used is None else [total - used])]
        return max(0, min(left) - margin)

    def text(self) -> str:
        """The limit against the value, for people."""
        own = f"process {os.getpid()} uses {_gib(rss_bytes())}"
        if self.limit_bytes is not None:
            return f"{own}, and may use {_gib(self.limit_bytes)} (store.memory)"
        used = memory_in_use_bytes()
        held = "" if used is None else f", of which {_gib(used)} are in use in this container"
        return f"{own}; of {_gib(memory_bytes())}{held}, {_gib(_available_bytes())} are free on this machine"


def _available_bytes() -> int:
    """What the kernel says can be had without swapping; where it does not say, all of the machine's."""
    try:
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    return memory_bytes()


def _gib(n: int) -> str:
    return f"{n / 2**30:.2f} GiB"
