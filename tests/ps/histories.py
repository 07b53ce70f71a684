"""A server without sockets, its history on disk, and requests that use everything that is recorded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import structs

from satrap import wire
from satrap.durable.files import LOCAL, Files
from satrap.durable.segment import SEGMENT
from satrap.ps import LocalService, Role
from satrap.ps.handling import Handler
from satrap.ps.keeper import Keeper, Keeping
from satrap.ps.snapshots import Snapshots
from satrap.ps.state import State
from satrap.schema import Adam, Admission, Capacity, Cold, Expiry, Table

PLAIN = (Table(name="a", dim=3, optimizer=Adam(lr=0.1)), Table(name="b", dim=2, optimizer=Adam(lr=0.1)))
BOUNDED = (
    PLAIN[0],
    structs.replace(
        PLAIN[1], capacity=Capacity(rows=8), expire=Expiry(steps=3), admit=Admission(sightings=2, window=40)
    ),
)
COLD = tuple(structs.replace(t, cold=Cold(memory_rows=4)) for t in PLAIN)
"""Most rows on disk: fewer in memory than a request names."""
TABLES = BOUNDED
"""What servers of a test have; a test may set it."""
LIMITS = wire.Limits(frame_bytes=1 << 20)
IDS = 40


def handler(index: int = 0, life: int = 77) -> Handler:
    service = LocalService(TABLES, seed=3, partitions=4, threads=1)
    service.life = life
    return Handler(service, seed=3, index=index, epoch=0)


@dataclass
class Life:
    """One life of the server, from beginning to end."""

    folder: Path
    level: Any = "process"
    files: Files = LOCAL
    segment_bytes: int = 4096
    handler: Handler = field(init=False)

    def __post_init__(self) -> None:
        # Only the first one gives itself its number; the others must find it.
        known = any(p.stat().st_size >= SEGMENT.size for p in self.folder.glob("journal-*"))
        self.handler = handler(life=78 if known else 77)
        keeping = Keeping(folder=self.folder, level=self.level, files=self.files, segment_bytes=self.segment_bytes)
        self.keeper = Keeper(keeping, self.handler, 0, LIMITS)
        hello(self.handler)

    def ask(self, request: wire.Message) -> list[wire.Message]:
        """The answers, as a client would see them: after a sync where the level asks for one."""
        answers = [m for _, m in self.handler.handle(b"x", request, Role.ADMIN)]
        if self.keeper.waits:
            self.keeper.journal.sync()
        return answers

    def snapshot(self, between: Callable[[], object] = lambda: None) -> Path | None:
        """`between`: run after each piece of it, as requests are."""

        def run(work: Callable[[], Any]) -> Any:
            done = work()
            between()
            return done

        return Snapshots(self.keeper, self.handler, run).take()

    def close(self) -> None:
        self.keeper.close()


def hello(h: Handler) -> None:
    answer = h.handle(b"x", wire.Hello(request=1, client=0, fingerprint=h.fingerprint), Role.ADMIN)[0][1]
    assert isinstance(answer, wire.Welcome), answer


def digest(h: Handler) -> str:
    """Everything a server knows: rows, who has pushed what, what waits, what was answered."""
    out = hashlib.sha256()
    for t in h.service.tables():
        for p in range(h.service.partitions):
            block = h.service.export_rows(t.name, p)
            for part in (block.ids, block.values, block.state, block.marks, block.bound):
                out.update(b"" if part is None else np.ascontiguousarray(part).tobytes())
    for kind, frames in State.of(h).records():
        out.update(bytes([kind]))
        for frame in frames:
            out.update(bytes(frame))
    return out.hexdigest()


def requests(count: int = 40, seed: int = 0) -> list[wire.Message]:
    """Pulls, pushes of three clients, some of them merged, and now and then something else."""
    rng = np.random.default_rng(seed)
    numbers = iter(range(1000, 100_000))
    seqs = {c: 0 for c in range(4)}
    last: dict[int, tuple[int, int]] = {}
    out: list[wire.Message] = []

    def some() -> tuple[tuple[wire.Section, ...], Any]:
        ids = [rng.choice(IDS, rng.integers(1, 12), replace=False).astype(np.uint64) * 7919 for _ in TABLES]
        sections = tuple(wire.Section(i, x.size, t.dim) for i, (x, t) in enumerate(zip(ids, TABLES, strict=True)))
        return sections, np.concatenate(ids)

    def push(client: int, merge: int = 1) -> None:
        sections, ids = some()
        gradients = rng.standard_normal(sum(s.rows * s.dim for s in sections)).astype(np.float32)
        seqs[client] += 1
        name = (0, seqs[client])
        out.append(
            wire.Push(
                request=next(numbers), client=client, epoch=0, seq=seqs[client], sections=sections, ids=ids,
                gradients=gradients.view(np.uint8), previous=last.get(client), merge=merge,
            )
        )  # fmt: skip
        last[client] = name

    for step in range(count):
        sections, ids = some()
        match step % 10:
            case 0 | 3 | 6:
                out.append(wire.Pull(request=next(numbers), sections=sections, ids=ids, create=True))
            case 7:
                n = 5
                values = rng.standard_normal((n, 3)).astype(np.float32)
                imported = (rng.choice(IDS, n, replace=False).astype(np.uint64) * 7919).copy()
                state = np.zeros((n, 7), np.float32)
                out.append(wire.ImportRows(request=next(numbers), table=0, ids=imported, values=values, state=state))
            case 8:
                out.append(wire.Erase(request=next(numbers), table=1, ids=ids[: sections[0].rows].copy()))
            case 2 | 5:
                # Two clients, one step; the second comes a few requests later.
                push(2 if step % 10 == 2 else 3, merge=2)
            case 4 if step == 14:
                # Drops what client 2 has waiting.
                del last[2]
                out.append(wire.SetClients(request=next(numbers), clients=dict(last)))
            case _:
                push(int(rng.integers(0, 2)))
    return out


def states(messages: Sequence[wire.Message]) -> Iterator[str]:
    """The digest before each request and after the last, of a server that keeps no history."""
    h = handler()
    hello(h)
    yield digest(h)
    for m in messages:
        h.handle(b"x", m, Role.ADMIN)
        yield digest(h)
