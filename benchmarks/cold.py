"""`python -m benchmarks cold`: what it costs when four fifths of a table's rows lie on disk.

One step is a pull and a push of one batch of distinct ids, drawn by a power law from all rows (`--exponent`; rank k
comes with a probability of about k^-exponent), the ids of the batch after it asked for ahead, as training does. Sides:

small    1 million rows, all in memory: the same job on a small table
memory   all rows in memory (left out where they would not fit, or with `--only`)
cold     a fifth of the rows in memory, the others in a file in `--folder`
cold, nothing cached   the same, and before each round the file is dropped from the page cache: what a file many times
         larger than the memory would see

Each is warmed up first. `ids_per_s` counts distinct ids; `vs_small` is the goal's ratio (0.35 or more).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import Meter, Reading, describe, emit, interleave, ratio, result_hash, rss_mib
from satrap.schema import Cold, RowWiseAdagrad, Table, ValueFormat
from satrap.store import Store, keep_freed_memory

SIDES = ("small", "memory", "cold", "cold, nothing cached")
Ids = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large a run is."""

    rows: int
    small_rows: int
    dim: int
    batch: int
    """Draws of a batch; of them, each id counts once."""
    batches: int
    """Of a round."""
    warm: int
    """Batches before."""
    rounds: int


FULL = Sizes(rows=20_000_000, small_rows=1_000_000, dim=64, batch=65_536, batches=20, warm=300, rounds=5)
SMOKE = Sizes(rows=20_000, small_rows=2_000, dim=16, batch=1_024, batches=3, warm=5, rounds=2)


def main(argv: list[str]) -> int:
    """Fills, warms up, measures; prints JSON lines, the headline last."""
    parser = argparse.ArgumentParser(
        prog="benchmarks cold", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--rows", type=int, default=None, help="of the large table, other than 20 million")
    parser.add_argument("--part", type=float, default=0.2, help="of its rows that stay in memory")
    parser.add_argument("--exponent", type=float, default=1.05, help="of the power law")
    parser.add_argument("--evict", choices=("recency", "frequency"), default="recency")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to measure")
    parser.add_argument("--only", type=lambda s: s.split(","), default=list(SIDES), help=f"of: {','.join(SIDES)}")
    options = parser.parse_args(argv)
    sizes = SMOKE if options.smoke else FULL
    sizes = replace(sizes, rows=options.rows or sizes.rows)
    settings = {n: getattr(options, n) for n in ("part", "exponent", "evict", "threads")}
    emit(benchmark="cold", sizes={n: getattr(sizes, n) for n in Sizes.__slots__}, **settings, machine=describe())
    keep_freed_memory()
    jobs = {n: Job(n, sizes, options) for n in ("small", "memory", "cold") if n in options.only}
    sides: dict[str, Callable[[], Reading | None]] = {n: job.round for n, job in jobs.items()}
    if "cold" in jobs and SIDES[3] in options.only:
        sides[SIDES[3]] = lambda: jobs["cold"].round(drop=True)
    found = interleave(sides, rounds=sizes.rounds, repeats_max=0)
    headline: dict[str, Any] = {}
    for name, side in found.items():
        job = jobs["cold"] if name.startswith("cold") else jobs[name]
        answer = {
            "side": name,
            "rows": job.rows,
            "seconds": side.median_s,
            "ids_per_s": job.ids_of_a_round / side.median_s,
            "other_cores": side.other_cores,
        }
        if "small" in found:
            scale = job.ids_of_a_round / jobs["small"].ids_of_a_round
            answer["vs_small"] = headline[f"{name} vs small"] = ratio(side.seconds, found["small"].seconds) * scale
        emit(**answer)
    if "cold" in jobs:
        emit(**jobs["cold"].told())
    emit(headline="cold", rows=sizes.rows, **headline, commit=describe()["commit"])
    return 0


class Job:
    """A table, and batches of its ids without end."""

    def __init__(self, name: str, sizes: Sizes, options: argparse.Namespace) -> None:
        self._sizes, self.rows = sizes, sizes.small_rows if name == "small" else sizes.rows
        self._exponent = options.exponent
        evict: Literal["recency", "frequency"] = options.evict
        cold = Cold(memory_rows=int(self.rows * options.part), evict=evict) if name == "cold" else None
        optimizer = RowWiseAdagrad(lr=0.02)
        table = Table(name="t", dim=sizes.dim, format=ValueFormat.INT8, optimizer=optimizer, cold=cold)
        folder = str(options.folder)
        self.store = Store([table], seed=1, threads=options.threads, cold_folder=folder)
        self._rng = np.random.default_rng(7)
        self._gradient = (self._rng.standard_normal((sizes.batch, sizes.dim)) * 1e-3).astype(np.float32)
        rss, begun = rss_mib(), time.perf_counter()
        for end in range(self.rows, 0, -sizes.batch):  # the rarest first
            self.store.pull("t", ids_of(np.arange(max(1, end - sizes.batch + 1), end + 1)), create=True)
        self.fill_s, self.memory_mib = time.perf_counter() - begun, rss_mib() - rss
        emit(
            filled=name,
            rows=self.rows,
            rows_per_s=self.rows / self.fill_s,
            memory_mib=self.memory_mib,
            cold=dict_of(self.store) if cold else None,
        )
        self._steps: list[int] = []
        self._run([self._batch() for _ in range(sizes.warm + 1)])
        self._steps.clear()
        self._before = self.store.cold_counts("t")
        self._io = disk_bytes()
        self._file = None if cold is None else file_in(folder)

    @property
    def ids_of_a_round(self) -> float:
        """On average: batches are not alike."""
        return float(np.mean(self._steps)) * self._sizes.batches

    def round(self, *, drop: bool = False) -> Reading:
        """Some steps; the time that drawing ids and dropping the cache take is not counted."""
        batches = [self._batch() for _ in range(self._sizes.batches + 1)]
        if drop and self._file is not None:
            os.fdatasync(self._file)
            os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_DONTNEED)
        meter = Meter()
        self._run(batches)
        return meter.read()

    def _run(self, batches: list[Ids]) -> None:
        """A step of each but the last."""
        for ids, following in pairwise(batches):
            self.store.prefetch({"t": following})
            _, versions, hints = self.store.pull_many({"t": ids}, create=True)
            self.store.push_many({"t": ids}, {"t": self._gradient[: ids.size]}, versions, hints, distinct=True)
            self._steps.append(ids.size)

    def _batch(self) -> Ids:
        """Distinct ids in the order in which they come first."""
        u, e, n = self._rng.random(self._sizes.batch), 1.0 - self._exponent, float(self.rows)
        ranks = n**u if abs(e) < 1e-9 else (u * (n**e - 1.0) + 1.0) ** (1.0 / e)
        ranks = np.minimum(ranks, n).astype(np.uint64)
        found, first = np.unique(ranks, return_index=True)
        return ids_of(found[np.argsort(first)])

    def told(self) -> dict[str, Any]:
        """What the disk had to do since the warm-up."""
        now, before, steps = self.store.cold_counts("t"), self._before, len(self._steps)
        written, moved = now.written - before.written, now.moved - before.moved
        read, wrote = (a - b for a, b in zip(disk_bytes(), self._io, strict=True))
        return {
            "told": "cold",
            "ids_a_batch": float(np.mean(self._steps)),
            "returned_a_batch": (now.returned - before.returned) / steps,
            "write_amplification": 1 + moved / max(written, 1),
            "disk_read_mb": read / 1e6,
            "disk_written_mb": wrote / 1e6,
            "cold": dict_of(self.store),
            "index_bytes_a_row": now.index_bytes / max(now.rows, 1),
            "file_bytes_a_row": now.file_bytes / max(now.rows, 1),
            "result_hash": result_hash([self.store.lookup("t", ids_of(np.arange(1, 1001))).tobytes()]),
        }


def ids_of(ranks: NDArray[Any]) -> Ids:
    """Ids that say nothing of their rank."""
    return ranks.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def dict_of(store: Store) -> dict[str, int]:
    """The counts of the cold tier."""
    counts = store.cold_counts("t")
    return {n: getattr(counts, n) for n in type(counts).__slots__}


def file_in(folder: str) -> int:
    """The file of the cold rows, which has no name."""
    for fd in os.listdir("/proc/self/fd"):
        try:
            path = os.readlink(f"/proc/self/fd/{fd}")
            if path.startswith(f"{os.path.realpath(folder)}/") and path.endswith("(deleted)"):
                return int(fd)
        except OSError:
            continue
    raise RuntimeError(f"no file is open in {folder}")


def disk_bytes() -> tuple[int, int]:
    """(read, written) by this process so far, of disks."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["read_bytes"]), int(lines["write_bytes"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
