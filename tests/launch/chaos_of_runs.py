"""Whole runs whose processes are killed, stopped and continued at random: servers, workers, embedding workers, drivers.

    python tests/launch/chaos_of_runs.py --seconds 180 --seed 1

Each round draws servers, workers, embedding workers, durability, whether servers come and go meanwhile, and what is
done to whom, from the seed and the round's number. Training is synchronous, so the model at its end must be, bit for
bit, that of a run with as many workers to which nothing happened: a gradient that was lost, applied twice or misrouted
shows in it. A driver that was killed is followed by `satrap train --resume`. Ends with status 1, and the settings, at
the first difference.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launched import LIMIT_S, Running, all_end, digest, train

STEPS = 400
JOB = (
    "train.staleness=0",
    f"train.max_steps={STEPS}",
    "train.checkpoint.every_steps=40",
    "train.eval_every_steps=null",
)


@dataclass(frozen=True)
class Round:
    """What one round is like."""

    servers: int
    workers: int
    embedding_workers: int
    durability: str
    scaling: bool
    disturbances: int

    @classmethod
    def drawn(cls, rng: random.Random) -> Round:
        workers = rng.choice([1, 2])
        return cls(
            servers=rng.choice([1, 2, 3]),
            workers=workers,
            embedding_workers=rng.choice([0, 0, 1]),
            durability=rng.choice(["none", "process", "process", "disk"]),
            scaling=rng.random() < 0.4,
            disturbances=rng.randint(4, 7),
        )

    @property
    def words(self) -> list[str]:
        """Of the command line."""
        return [
            *JOB, "--servers", str(self.servers), "--workers", str(self.workers), "--embedding-workers",
            str(self.embedding_workers), f"store.durability={self.durability}", "--restarts", "50",
        ]  # fmt: skip


class Counts(dict[str, int]):
    """What has happened, by what and to whom: `killed server`, `stopped worker`, `killed driver`, `scaled`."""

    def add(self, what: str) -> None:
        self[what] = self.get(what, 0) + 1


def play(r: Round, rng: random.Random, run_dir: Path, counts: Counts) -> Path:
    """One round, to its end. Returns its run folder: another one where a driver died before its first checkpoint."""
    left, resume, scaling = r.disturbances, False, []
    while True:
        words = [w for w in r.words if not (resume and "=" in w)]
        with Running(run_dir, words, resume=resume) as run:
            processes: list[int] = []
            alone = False
            while left and run.process.poll() is None and not alone:
                if run.step() < 3 or rng.random() < 0.5:
                    time.sleep(rng.uniform(0.05, 0.4))
                    continue
                left -= 1
                processes = [t.pid for t in run.targets().values()]
                alone = disturb(run, rng, counts, driver_too=left % 3 == 0)
                if r.scaling and rng.random() < 0.5:
                    counts.add("scaled")
                    asks = [sys.executable, "-m", "satrap", "scale", str(run_dir), "--no-wait", "--servers"]
                    words = [*asks, str(rng.choice([1, 2, 3, 4]))]
                    scaling.append(subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            if not alone:
                run.ends()
                break
            left_over = all_end(processes, LIMIT_S)
            assert not left_over, f"processes {left_over} outlive the driver"
        resume = any((run_dir / "checkpoints").glob("step-*"))
        if not resume:
            run_dir = run_dir.with_name(f"{run_dir.name}-again")
    for process in scaling:
        process.wait(LIMIT_S)
    return run_dir


def disturb(run: Running, rng: random.Random, counts: Counts, *, driver_too: bool) -> bool:
    """Does something to somebody. Whether that was the end of the driver."""
    targets = run.targets()
    if driver_too and rng.random() < 0.5:
        counts.add("killed driver")
        run.process.send_signal(signal.SIGKILL)
        run.process.wait()
        return True
    if not targets:
        return False
    name = rng.choice(sorted(targets))
    role = name.rpartition(" ")[0]
    with suppress(ProcessLookupError):
        if rng.random() < 0.75:
            os.kill(targets[name].pid, signal.SIGKILL)
            counts.add(f"killed {role}")
        else:
            os.kill(targets[name].pid, signal.SIGSTOP)
            time.sleep(rng.uniform(0.1, 1.5))
            counts.add(f"stopped {role}")
            os.kill(targets[name].pid, signal.SIGCONT)
    return False


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0, help="no round begins after so long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=None, help="at most")
    parser.add_argument("--first", type=int, default=0, help="number of the first round")
    parser.add_argument("--undisturbed", type=Path, default=None, help="where the digests of undisturbed runs are kept")
    options = parser.parse_args(argv)
    total, deadline, number = Counts(), time.monotonic() + options.seconds, options.first
    with tempfile.TemporaryDirectory(prefix="satrap-chaos-") as folder:
        kept = options.undisturbed or Path(folder) / "undisturbed.json"
        while time.monotonic() < deadline and number - options.first != options.rounds:
            rng = random.Random(1000 * options.seed + number)
            r = Round.drawn(rng)
            counts: Counts = Counts()
            try:
                want = undisturbed(r.workers, Path(folder), kept)
                run_dir = Path(folder) / f"run-{number}"
                play(r, rng, run_dir, counts)
                have = digest(
                    max(Path(folder).glob(f"run-{number}*/checkpoints"), key=lambda p: len(p.parent.name)).parent
                )
                assert have == want, f"the model is {have}, that of an undisturbed run {want}"
            except BaseException:
                print(json.dumps({"round": number, "failed": True, **counts, **vars(r)}), flush=True)
                raise
            print(json.dumps({"round": number, **counts, **vars(r)}), flush=True)
            for what, n in counts.items():
                total[what] = total.get(what, 0) + n
            number += 1
    kills = sum(n for what, n in total.items() if what.startswith("killed"))
    print(json.dumps({"model": "the same", "rounds": number - options.first, "kills": kills, **total}), flush=True)
    return 0


def undisturbed(workers: int, folder: Path, kept: Path) -> str:
    """Names the model of a run with so many workers to which nothing happened."""
    known: dict[str, Any] = json.loads(kept.read_text()) if kept.is_file() else {}
    if str(workers) not in known:
        run = folder / f"undisturbed-{workers}"
        train(run, *JOB, "--servers", "1", "--workers", str(workers))
        known[str(workers)] = digest(run)
        kept.write_text(json.dumps(known))
    return str(known[str(workers)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
