"""Servers with a history, killed and stopped at random behind a bad network, while workers push: `make chaos`.

    python tests/ps/chaos.py --seconds 60 --seed 1

Each round draws servers, workers, durability, how pushes merge, how often snapshots are taken, whether partitions move
meanwhile (by coordinators that may die in the middle), and what the network does, from the seed and the round's number.
At its end the rows are compared with the sums of what was sent, and every
worker's ledger: to the gradient. Ends with status 1, and with the round's settings, at the first difference.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from killed import SOON, Servers
from test_ledger_under_faults import TABLES, Worker, check, run

from satrap.ps import Mover
from satrap.testing import FaultProxy, Faults


@dataclass(frozen=True)
class Round:
    """What one round is like."""

    servers: int
    workers: int
    merge: int
    window: int
    level: str
    snapshot_bytes: int
    segment_bytes: int
    drop: float
    duplicate: float
    reorder: float
    disturbances: int
    moving: bool
    spare: int
    """Servers that own nothing before something moves there."""

    @classmethod
    def drawn(cls, rng: random.Random) -> Round:
        workers = rng.choice([1, 2, 3])
        merge = rng.choice([1, workers])
        bad = rng.random() < 0.6
        return cls(
            servers=rng.choice([1, 2, 3]),
            workers=workers,
            merge=merge,
            window=1 if merge > 1 else rng.choice([1, 4, 8]),
            level=rng.choice(["process", "process", "disk"]),
            snapshot_bytes=rng.choice([1 << 15, 1 << 17, 1 << 30]),
            segment_bytes=rng.choice([1 << 12, 1 << 16, 1 << 20]),
            drop=rng.choice([0.0, 0.1]) if bad else 0.0,
            duplicate=rng.choice([0.0, 0.2]) if bad else 0.0,
            reorder=rng.choice([0.0, 0.3]) if bad else 0.0,
            disturbances=rng.randint(2, 6),
            moving=(moving := rng.random() < 0.5),
            spare=rng.choice([0, 1, 2]) if moving else 0,
        )


class Disturber:
    """Kills servers, or stops and continues them, each time after some gradients more."""

    def __init__(self, cluster: Servers, workers: list[Worker], rng: random.Random) -> None:
        self._cluster, self._workers, self._random = cluster, workers, rng
        self._stop = threading.Event()
        self.kills = self.stops = 0
        self._thread = threading.Thread(target=self._run)

    @property
    def done(self) -> int:
        return self.kills + self.stops

    def _run(self) -> None:
        wanted = 0.0
        while not self._stop.wait(self._random.uniform(0.0, 0.05)):
            sent = sum(w.ledger.sent for w in self._workers)
            if sent < wanted:
                continue
            wanted = sent + self._random.uniform(100, 1500)
            server = self._random.choice(self._cluster.servers)
            if self._random.random() < 0.7:
                server.kill()
                server.begin()
                self.kills += 1
            else:
                server.process.send_signal(signal.SIGSTOP)
                self._stop.wait(self._random.uniform(0.0, 0.5))
                server.process.send_signal(signal.SIGCONT)
                self.stops += 1

    def __enter__(self) -> Disturber:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


class Dead(Exception):  # noqa: N818
    """The end of a coordinator."""


class Coordinators:
    """Move partitions as long as it lasts: one after another, each until it dies."""

    def __init__(self, cluster: Servers, rng: random.Random) -> None:
        self._cluster, self._random = cluster, rng
        self._stop = threading.Event()
        self.moves = self.deaths = 0
        self.failed: BaseException | None = None
        self._thread = threading.Thread(target=self._guarded)

    def _guarded(self) -> None:
        try:
            while not self._stop.is_set():
                self._one()
        except BaseException as e:
            self.failed = e

    def _one(self) -> None:
        with Mover(TABLES, self._cluster.placement, seed=0, patience=SOON) as mover:
            for address in self._cluster.addresses[len(self._cluster.placement.addresses) :]:
                mover.add(address)
            placement = mover.settle()
            while not self._stop.is_set():
                if len(self._cluster.servers) == 1:
                    self._stop.wait()
                    return
                to = self._random.randrange(len(self._cluster.servers))
                dies_at = self._random.choice(["copied", "released", "accepted", "placed", *[""] * 8])
                try:
                    placement = mover.move(self._random.randrange(8), to, lambda stage, at=dies_at: self._at(stage, at))
                except Dead:
                    self.deaths += 1
                    return
                self.moves += placement is not self._cluster.placement
                self._cluster.placement = placement

    def _at(self, stage: str, dies_at: str) -> None:
        if stage == dies_at:
            raise Dead

    def __enter__(self) -> Coordinators:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self.failed is not None:
            raise self.failed
        with Mover(TABLES, self._cluster.placement, seed=0, patience=SOON) as mover:
            for address in self._cluster.addresses[len(self._cluster.placement.addresses) :]:
                mover.add(address)
            mover.settle()


def play(r: Round, seed: int, folder: Path) -> dict[str, Any]:
    """One round. Raises AssertionError where a gradient was lost, applied twice or misrouted."""
    faults = Faults(drop=r.drop, duplicate=r.duplicate, reorder=r.reorder) if r.drop + r.duplicate + r.reorder else None
    options = {"level": r.level, "snapshot_bytes": r.snapshot_bytes, "segment_bytes": r.segment_bytes}
    with Servers(folder, TABLES, servers=r.servers, spare=r.spare, **options) as cluster, ExitStack() as more:
        proxies: list[FaultProxy] = []
        if faults is not None:
            proxies = [FaultProxy(s.address, faults, seed=seed + i) for i, s in enumerate(cluster.servers)]
            cluster.through([p.address for p in proxies])
        workers = [Worker(cluster.connect(c), c, window=r.window, merge=r.merge) for c in range(r.workers)]
        coordinators = Coordinators(cluster, random.Random(seed + 1))
        if r.moving:
            more.enter_context(coordinators)
        with Disturber(cluster, workers, random.Random(seed)) as disturber:
            while disturber.done < r.disturbances:
                run(workers, 40)
        more.close()
        check(cluster.connect(9), workers)
        snapshots = len(list(folder.glob("server-*/snapshot-*")))
        for p in proxies:
            p.stop()
        return {
            "kills": disturber.kills,
            "stops": disturber.stops,
            "gradients": sum(w.ledger.sent for w in workers),
            "snapshots": snapshots,
            "moves": coordinators.moves,
            "coordinators_dead": coordinators.deaths,
        }


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="no round begins after so long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=None, help="at most")
    options = parser.parse_args(argv)
    counted = ("kills", "stops", "gradients", "moves", "coordinators_dead")
    total = {"rounds": 0, **dict.fromkeys(counted, 0)}
    deadline = time.monotonic() + options.seconds
    while time.monotonic() < deadline and total["rounds"] != options.rounds:
        seed = 1000 * options.seed + total["rounds"]
        r = Round.drawn(random.Random(seed))
        try:
            with tempfile.TemporaryDirectory(prefix="satrap-chaos-") as folder:
                found = play(r, seed, Path(folder))
        except BaseException:
            print(json.dumps({"round": total["rounds"], "seed": seed, "failed": True, **vars(r)}), flush=True)
            raise
        print(json.dumps({"round": total["rounds"], **found, **vars(r)}), flush=True)
        total = {"rounds": total["rounds"] + 1, **{k: total[k] + found[k] for k in counted}}
    print(json.dumps({"ledger": "exact", **total}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
