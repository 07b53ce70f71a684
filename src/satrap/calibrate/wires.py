"""Pulls and pushes over loopback: CPU-seconds of client and servers, a message and a row.

The same batches go to one server and, divided, to two; whole, cut to a few ids a table, and to a few ids of one table.
Three sizes give so much a message, so much a table in it, so much a row. What the store itself takes is measured in
this process and taken off.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from satrap.calibrate.children import ServerChild
from satrap.plan.constants import LegCost, WireCost
from satrap.plan.network import ID, VERSION
from satrap.ps import LocalService, PullRequest, PushRequest, RemoteService, Rows
from satrap.ps.placement import Placement
from satrap.schema import Job, save_job

Ids = Mapping[str, NDArray[np.uint64]]
UNDER_WAY = 4
FEW = 4
"""Ids a table of a small batch."""


@dataclass(slots=True)
class _Spent:
    """CPU-seconds a batch."""

    pull_client: float = 0.0
    pull_server: float = 0.0
    push_client: float = 0.0
    push_server: float = 0.0


def wire_cost(job: Job, batches: Sequence[Ids], *, rounds: int = 2) -> WireCost:
    """Measures with the distinct ids of some batches of a job."""
    sizes: dict[str, list[Ids]] = {
        "whole": list(batches),
        "few": [{t: x[:FEW].copy() for t, x in b.items()} for b in batches],
        "one table": [{t: b[t][:FEW].copy() for t in list(b)[:1]} for b in batches],
    }
    spent = {(n, k): _over_servers(job, some, n, rounds) for n in (1, 2) for k, some in sizes.items()}
    alone = {k: _alone(job, some, rounds) for k, some in sizes.items()}
    rows = {k: float(np.mean([sum(x.size for x in b.values()) for b in some])) for k, some in sizes.items()}
    tables = len(batches[0])

    def line(side: str, servers: int) -> tuple[float, float, float]:
        """Seconds a message, a table, a row, from batches of three sizes."""
        took = {k: getattr(spent[servers, k], side) for k in sizes}
        if side.endswith("server"):
            took = {k: t - getattr(alone[k], side) for k, t in took.items()}
        row = max(0.0, (took["whole"] - took["few"]) / (rows["whole"] - rows["few"]))
        few, one = (max(0.0, took[k] - row * rows[k]) / servers for k in ("few", "one table"))
        table = max(0.0, (few - one) / (tables - 1)) if tables > 1 else 0.0
        return max(0.0, one - table), table, row

    def leg(side: str) -> LegCost:
        message, table, row = line(side, 1)
        several = line(side, 2)
        return LegCost(
            message_us=message * 1e6,
            table_us=table * 1e6,
            row_ns=row * 1e9,
            divided_message_us=several[0] * 1e6,
            divided_table_us=several[1] * 1e6,
            divided_row_ns=several[2] * 1e9,
        )

    by_name = {t.name: t for t in job.resolved_tables()}
    values = sum(by_name[t].wire.section_bytes(x.size, by_name[t].dim) for b in batches for t, x in b.items())
    per_row = ID + VERSION + values / sum(x.size for b in batches for x in b.values())
    pull = leg("pull_client")
    return WireCost(
        pull_client=pull,
        pull_server=leg("pull_server"),
        push_client=leg("push_client"),
        push_server=leg("push_server"),
        bytes_per_row=per_row,
        # Most of what a row costs here is its bytes, copied in and out of the kernel: a bound from above.
        byte_ns=pull.row_ns / per_row,
    )


def _over_servers(job: Job, batches: Sequence[Ids], servers: int, rounds: int) -> _Spent:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as open_ones:
        path = Path(folder) / "job.yaml"
        save_job(job, path)
        children = [ServerChild(path, i, job.store.threads or 0) for i in range(servers)]
        for child in children:
            open_ones.enter_context(child)
        placement = Placement.even([c.address for c in children], job.store.partitions)
        service = open_ones.enter_context(RemoteService(job.resolved_tables(), placement, seed=job.seed))

        def server_s() -> float:
            return sum(c.cpu_s() for c in children)

        return _spent(service, batches, rounds, server_s, submitted=True)


def _alone(job: Job, batches: Sequence[Ids], rounds: int) -> _Spent:
    """What the store takes, as the part of the servers."""
    service = LocalService.of(job)
    spent = _spent(service, batches, rounds, lambda: 0.0, submitted=False)
    return _Spent(pull_server=spent.pull_client, push_server=spent.push_client)


def _spent(service: Any, batches: Sequence[Ids], rounds: int, server_s: Any, *, submitted: bool) -> _Spent:
    """The first round makes the rows; the best of the others counts."""
    best = _Spent(*[float("inf")] * 4)
    seq = 0
    rng = np.random.default_rng(3)
    gradients = [
        {t: rng.standard_normal((x.size, _dim(service, t)), np.float32) * np.float32(1e-3) for t, x in b.items()}
        for b in batches
    ]
    for round_ in range(rounds + 1):
        pulled: list[Rows] = []
        at_server, at_client = server_s(), process_time()
        _do([PullRequest(ids=b, create=True, distinct=True) for b in batches], service, "pull", submitted, pulled)
        client, server = process_time() - at_client, server_s() - at_server
        requests: list[PushRequest] = []
        for b, g, rows in zip(batches, gradients, pulled, strict=True):
            seq += 1
            named: dict[str, Any] = {"client": 0, "epoch": 0, "seq": seq, "distinct": True}
            requests.append(PushRequest(ids=b, gradients=g, versions=rows.versions, hints=rows.hints, **named))
        at_server, at_client = server_s(), process_time()
        _do(requests, service, "push", submitted, [])
        push_client, push_server = process_time() - at_client, server_s() - at_server
        if round_ == 0:
            continue
        now = _Spent(*(x / len(batches) for x in (client, server, push_client, push_server)))
        for field in ("pull_client", "pull_server", "push_client", "push_server"):
            setattr(best, field, min(getattr(best, field), getattr(now, field)))
    return best


def _do(requests: Sequence[Any], service: Any, what: str, submitted: bool, answers: list[Any]) -> None:
    """Asks one after the other, in a service behind a network a few ahead."""
    if not submitted:
        answers.extend(getattr(service, what)(r) for r in requests)
        return
    pending: deque[Any] = deque()
    for r in requests:
        pending.append(getattr(service, f"submit_{what}")(r))
        if len(pending) == UNDER_WAY:
            answers.append(pending.popleft().result())
    answers.extend(p.result() for p in pending)


def _dim(service: Any, table: str) -> int:
    return next(int(t.dim) for t in service.tables() if t.name == table)


def with_threads(job: Job, threads: int) -> Job:
    """The job with that many store threads: CPU-seconds are those of one."""
    return msgspec.structs.replace(job, store=msgspec.structs.replace(job.store, threads=threads))
