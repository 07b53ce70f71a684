"""Histories that nobody wrote: a real one with bits flipped, files cut, swapped, deleted, doubled.

    python tests/ps/history_fuzz.py --histories 20000 --seed 1

Recovery may do two things with one: raise JournalError, or bring back a state that the server has been in. Nothing in
between, no other error, no memory for lengths that were never there.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import tracemalloc
from collections import Counter
from pathlib import Path

from histories import Life, digest, requests, states

from satrap.errors import JournalError

REQUESTS = requests(30)
STATES = list(states(REQUESTS))
SNAPSHOT_AT = 14
PEAK_BYTES = 16 << 20


def history(folder: Path) -> None:
    """A snapshot with records during and after it."""
    life = Life(folder, segment_bytes=2048)
    done = 0

    def step() -> None:
        nonlocal done
        life.ask(REQUESTS[done])
        done += 1

    while done < len(REQUESTS):
        if done == SNAPSHOT_AT:
            upto = done + 3
            life.snapshot(lambda upto=upto: step() if done < upto else None)  # type: ignore[misc]
        step()
    life.close()


def mutate(folder: Path, rng: random.Random) -> str:
    """One thing wrong; says what."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != ".lock")
    path = rng.choice(files)
    data = bytearray(path.read_bytes())
    what = rng.choice(["flip", "flip", "flip", "edge", "cut", "delete", "swap", "add", "hole", "copy"])
    match what:
        case "flip" if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            path.write_bytes(data)
        case "edge" if len(data) > 8:
            at = rng.randrange(len(data) - 8)
            data[at : at + rng.choice([1, 2, 4, 8])] = rng.choice([b"\0", b"\xff"]) * rng.choice([1, 2, 4, 8])
            path.write_bytes(data[: len(path.read_bytes())])
        case "cut":
            path.write_bytes(data[: rng.randrange(len(data) + 1)])
        case "delete":
            path.unlink()
        case "swap":
            other = rng.choice(files)
            theirs = other.read_bytes()
            other.write_bytes(data)
            path.write_bytes(theirs)
        case "add":
            path.write_bytes(data + rng.randbytes(rng.randrange(1, 200)))
        case "hole":
            at, n = rng.randrange(len(data) + 1), rng.randrange(1, 64)
            path.write_bytes(data[:at] + data[at + n :])
        case "copy":
            path.with_name(path.name.replace("0000.", "0001.")).write_bytes(data)
    return f"{what} {path.name}"


def try_one(base: Path, folder: Path, rng: random.Random) -> str:
    """Mutates a copy and recovers from it: `refused` or `recovered`. Raises AssertionError for anything else."""
    shutil.copytree(base, folder)
    what = ", ".join(mutate(folder, rng) for _ in range(rng.choice([1, 1, 1, 2])))
    tracemalloc.start()
    try:
        life = Life(folder)
    except JournalError as e:
        outcome, said = "refused", str(e)
    else:
        outcome, said = "recovered", str(folder)
        assert digest(life.handler) in STATES, what
        life.close()
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        shutil.rmtree(folder)
    assert str(folder) in said, (what, said)
    assert peak < PEAK_BYTES, (what, peak)
    return outcome


def fuzz(count: int, seed: int) -> Counter[str]:
    """Outcomes of that many."""
    home = Path(tempfile.mkdtemp(prefix="history-fuzz-"))
    history(home / "base")
    rng = random.Random(seed)
    outcomes: Counter[str] = Counter()
    for i in range(count):
        outcomes[try_one(home / "base", home / str(i), rng)] += 1
    shutil.rmtree(home)
    return outcomes


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--histories", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(dict(fuzz(options.histories, options.seed)))
