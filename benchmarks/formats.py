"""`python -m benchmarks formats`: what a row format costs in memory and in time.

memory   tables of every format and optimizer are filled with random ids, as training fills them, in a process that does
         nothing else; what its resident set grows by against the planner's number, in bytes a row
speed    lookup and row-wise Adagrad update (hinted, as in training) of every format, in turns, on one thread, over
         tables that no cache holds; million rows a second of CPU time, and against fp32

What it costs in AUC: `python -m benchmarks modes --only formats`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import REPOSITORY, THIS_PYTHON, Meter, Reading, describe, emit, interleave, ratio, result_hash
from satrap.plan import bounds_of, row_bytes
from satrap.schema import Rounding, RowWiseAdagrad, Table, ValueFormat
from satrap.schema.strict import convert, plain
from satrap.store import Store, keep_freed_memory

PARTS = ("memory", "speed")
PARTITIONS = 64
KEPT: dict[str, tuple[ValueFormat, Rounding | None]] = {
    "fp32": (ValueFormat.FP32, None),
    "fp16": (ValueFormat.FP16, None),
    "fp16 stochastic": (ValueFormat.FP16, Rounding.STOCHASTIC),
    "bf16": (ValueFormat.BF16, None),
    "int8": (ValueFormat.INT8, None),
    "int8 nearest": (ValueFormat.INT8, Rounding.NEAREST),
}
"""Sides of the comparison of speed."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large a run is."""

    megabytes: int
    """Of each table that is weighed."""
    rows: int
    """Of each table that is timed."""
    batch: int
    batches: int
    rounds: int


FULL = Sizes(megabytes=256, rows=2_000_000, batch=65_536, batches=8, rounds=7)
SMOKE = Sizes(megabytes=2, rows=10_000, batch=2_048, batches=2, rounds=2)


def main(argv: list[str]) -> int:
    """Runs the parts, prints JSON lines, the headline last."""
    parser = argparse.ArgumentParser(
        prog="benchmarks formats", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--only", type=lambda s: s.split(","), default=list(PARTS))
    parser.add_argument("--dims", type=lambda s: [int(x) for x in s.split(",")], default=[16, 64, 128])
    parser.add_argument("--megabytes", type=int, default=None, help="of each table that is weighed, other than 256")
    parser.add_argument("--rows", type=int, default=None, help="of each table that is timed, other than 2 million")
    options = parser.parse_args(argv)
    sizes = SMOKE if options.smoke else FULL
    sizes = replace(sizes, megabytes=options.megabytes or sizes.megabytes, rows=options.rows or sizes.rows)
    emit(benchmark="formats", sizes={n: getattr(sizes, n) for n in Sizes.__slots__}, machine=describe())
    found: list[dict[str, Any]] = []
    if "memory" in options.only:
        found += weighed(sizes.megabytes)
    if "speed" in options.only:
        keep_freed_memory()
        for dim in options.dims:
            found.append(timed(dim, sizes))
            emit(**found[-1])
    emit(**headline(found))
    return 0


def weighed(megabytes: int) -> Iterator[dict[str, Any]]:
    """Emits a line for each format and optimizer."""
    command = [THIS_PYTHON, str(REPOSITORY / "tests/plan/fill_tables.py"), str(megabytes), "all"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in map(json.loads, process.stdout):
        table: Table = convert(line["table"], Table, "")
        assert table.optimizer is not None
        form, bounds = table.format.value, bounds_of(table, table.format.value, PARTITIONS)
        planned = row_bytes(
            table.dim, form, table.optimizer,
            rows=line["rows"], partitions=PARTITIONS, bounds=bounds, reserved=line["reserved"],
        ).total  # fmt: skip
        measured = line["bytes"] / line["rows"]
        optimizer = plain(table.optimizer)
        kept = {"optimizer": optimizer["kind"], "state": optimizer.get("state", "fp32"), "bounded": table.bounded}
        answer = {
            "memory": {"format": form, **kept, "reserved": line["reserved"]},
            "dim": table.dim,
            "rows": line["rows"],
            "planned_bytes_a_row": planned,
            "measured_bytes_a_row": measured,
            "off": measured / planned - 1,
        }
        emit(**answer)
        yield answer
    if process.wait():
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")


def timed(dim: int, sizes: Sizes) -> dict[str, Any]:
    """Every format's lookups and updates, at one dim."""
    rng = np.random.default_rng(11)
    ids = rng.permutation(np.arange(1, sizes.rows + 1, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
    batches = [rng.choice(ids, sizes.batch, replace=False) for _ in range(sizes.batches)]
    gradient = (rng.standard_normal((sizes.batch, dim)) * 1e-3).astype(np.float32)
    values = np.empty((sizes.batch, dim), np.float32)
    stores = {name: filled(dim, *kept, ids) for name, kept in KEPT.items()}
    answer: dict[str, Any] = {"speed": {"dim": dim, "rows": sizes.rows}}
    for operation, side in (("lookup", _lookups), ("update", _updates)):
        sides = {name: side(store, batches, values, gradient) for name, store in stores.items()}
        found = interleave(sides, rounds=sizes.rounds)
        base, count = found["fp32"].seconds, sizes.batch * sizes.batches
        answer[operation] = {n: count / s.median_s / 1e6 for n, s in found.items()}
        answer[f"{operation}_vs_fp32"] = {n: ratio(s.seconds, base) for n, s in found.items()}
        answer["other_cores"] = max(s.other_cores for s in found.values())
    answer["result_hash"] = result_hash(store.lookup("t", batches[0]).tobytes() for store in stores.values())
    return answer


def filled(dim: int, form: ValueFormat, rounding: Rounding | None, ids: NDArray[np.uint64]) -> Store:
    """A table of these ids, in fresh rows."""
    table = Table(name="t", dim=dim, format=form, rounding=rounding, optimizer=RowWiseAdagrad(lr=0.02))
    store = Store([table], seed=1, partitions=PARTITIONS, threads=1)
    for at in range(0, ids.size, 1 << 18):
        store.pull("t", ids[at : at + (1 << 18)], create=True)
    return store


def _cpu(work: Callable[[], None]) -> Callable[[], Reading]:
    """A side that is measured in CPU seconds: others on this machine take time from it, but not CPU time."""

    def run() -> Reading:
        meter = Meter()
        work()
        reading = meter.read()
        return replace(reading, wall_s=reading.cpu_s)

    return run


def _lookups(
    store: Store, batches: list[NDArray[np.uint64]], values: NDArray[np.float32], gradient: NDArray[np.float32]
) -> Callable[[], Reading]:
    def lookup() -> None:
        for ids in batches:
            store.lookup("t", ids, values)

    return _cpu(lookup)


def _updates(
    store: Store, batches: list[NDArray[np.uint64]], values: NDArray[np.float32], gradient: NDArray[np.float32]
) -> Callable[[], Reading]:
    hints = [store.pull_many({"t": ids}, create=False)[2] for ids in batches]

    def update() -> None:
        for ids, hint in zip(batches, hints, strict=True):
            store.push_many({"t": ids}, {"t": gradient}, hints=hint, distinct=True)

    return _cpu(update)


def headline(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The planner's largest error, and the slowest of each format against fp32."""
    speeds = [x for x in found if "speed" in x]
    slowest = {
        f"{operation}_vs_fp32": {n: min(x[f"{operation}_vs_fp32"][n] for x in speeds) for n in KEPT}
        for operation in ("lookup", "update")
        if speeds
    }
    return {
        "headline": "formats",
        "planner_off_max": max((abs(x["off"]) for x in found if "memory" in x), default=None),
        **slowest,
        "commit": describe()["commit"],
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
