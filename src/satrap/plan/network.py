"""Bytes on the way. B samples of one worker's step, U distinct ids, W workers, S servers, T tables.

The lengths are those of `docs/formats/wire.md`.
"""

from __future__ import annotations

from dataclasses import dataclass

from satrap.plan.workload import Workload

HEADER, ENTRY, PUSH_BODY, ACK = 40, 16, 80, 72
"""Bytes of a header, of a table in the directory, of a push's body, of an acknowledgement's body and tallies."""
ID, VERSION = 8, 1


@dataclass(frozen=True, slots=True)
class Legs:
    """Bytes of one worker's step, over all servers."""

    pull_request: float
    pull_reply: float
    push_request: float
    push_reply: float
    pooled: float
    """To the worker, where others pool for it; its gradients are as many. 0 where it pools itself."""
    all_reduce: float
    """Out of one worker, and into it, for the sum of the dense gradients by a ring."""

    @property
    def to_servers(self) -> float:
        """Out of who looks up."""
        return self.pull_request + self.push_request

    @property
    def from_servers(self) -> float:
        """Into who looks up."""
        return self.pull_reply + self.push_reply


def legs(workload: Workload, *, samples: float, servers: int, workers: int, pooling: bool) -> Legs:
    """Bytes of a step of `samples` samples of one of the workers."""
    unique = {t.name: t.unique(samples) for t in workload.tables}
    rows = sum(unique.values())
    values = sum(t.wire.section_bytes(1_000_000, t.dim) / 1_000_000 * unique[t.name] for t in workload.tables)
    fixed = servers * (HEADER + ENTRY * len(workload.tables))
    return Legs(
        pull_request=fixed + ID * rows,
        pull_reply=fixed + values + VERSION * rows,
        push_request=fixed + servers * PUSH_BODY + (ID + VERSION) * rows + values,
        push_reply=float(servers * (HEADER + ACK)),
        pooled=samples * (4 * workload.columns + workload.other_bytes) if pooling else 0.0,
        all_reduce=2 * (workers - 1) / workers * 4 * (workload.dense_parameters or 0),
    )
