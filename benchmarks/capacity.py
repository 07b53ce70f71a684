"""`python -m benchmarks capacity`: how large a table fills and trains here, and what size costs.

sizes   for 1, 10, 100 and the maximal million rows, as far as they go: the table is filled (rows a second, bytes a row
        beside the planner's and beside what the process grew by), then lookups and hinted updates of random rows,
        beside a raw gather and read-modify-write by known row number in a table of as many rows
train   the maximal table and one of a million rows train in turns on the same job: batches of 4,096 samples of 8 ids
        each, zipf-distributed over all rows (a rank's row lies anywhere), pooled into a small network, by `Trainer.fit`
        at staleness 8; samples a second, and the ratio
cold    the same with a table of which a fifth (`--memory`) of the rows lies in memory, the others in a file in
        `--folder`: it is filled, and trains in turns with the one of a million rows. Not one of the parts that run
        unless named: the file takes `--cold-rows` times a record, and half as much again

Rows are of dim 64, int8, with row-wise Adagrad, unless told otherwise. Every table and every raw one lies in a process
of its own, and takes turns with what it is compared with where memory has room for both; else one comes behind the
other. `--full` takes as many rows as memory has room for beside training (or `--rows`): the machine must have nothing
else to do.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from msgspec import structs

from benchmarks.capacity_data import ensure
from benchmarks.harness import (
    REPOSITORY,
    THIS_PYTHON,
    Reading,
    Side,
    answer_of,
    describe,
    emit,
    interleave,
    ratio,
    result_hash,
)
from benchmarks.synthetic import default_data_dir
from satrap.plan import RowBytes, bounds_of, row_bytes
from satrap.schema import Cold, RowWiseAdagrad, Table, ValueFormat
from satrap.schema.strict import plain
from satrap.store.limit import MemoryRoom

PARTS, USUAL_PARTS, TURNS = ("sizes", "train", "cold"), ("sizes", "train"), ("lookup", "update")
PARTITIONS = 64
MILLION = 1_000_000
TRAINING_BYTES = 2 << 30
"""Memory that is left beside the largest table: of a process that trains, its batches and its files."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large a run is."""

    rows: int | None
    """Of the largest table; None: as many as memory has room for."""
    steps: tuple[int, ...]
    """Rows of the smaller ones, ascending; the first is what training is compared with."""
    batch: int
    batches: int
    """Of a turn of lookups or updates."""
    rounds: int
    warm_steps: int
    metered_steps: int
    train_rounds: int
    cold_rows: int


FULL = Sizes(None, (MILLION, 10 * MILLION, 100 * MILLION), 65_536, 64, 5, 64, 512, 5, 500 * MILLION)
USUAL = replace(
    FULL,
    rows=20 * MILLION,
    steps=(MILLION, 10 * MILLION),
    rounds=3,
    metered_steps=256,
    train_rounds=3,
    cold_rows=20 * MILLION,
)
SMOKE = Sizes(40_000, (10_000,), 2_048, 2, 2, 2, 6, 2, 40_000)


def main(argv: list[str]) -> int:
    """Runs the parts, prints JSON lines, the headline last."""
    options = _parse(argv)
    sizes = SMOKE if options.smoke else FULL if options.full else USUAL
    table = Table(name="t", dim=options.dim, format=ValueFormat(options.format), optimizer=RowWiseAdagrad(lr=0.02))
    if options.only == ["cold"]:
        emit(benchmark="capacity", machine=describe(), sizes=asdict(sizes), table=plain(table), threads=options.threads)
        emit(**cold(table, sizes, options))
        return 0
    left = MemoryRoom().left_bytes()
    rows = options.rows or sizes.rows or most_rows(table, left - TRAINING_BYTES)
    need = rows * planned(table, rows).total
    if need + TRAINING_BYTES > left:
        most = most_rows(table, left - TRAINING_BYTES)
        raise SystemExit(
            f"{rows:,} rows take {need / 2**30:.1f} GiB and training {TRAINING_BYTES / 2**30:.0f}; "
            f"{left / 2**30:.1f} GiB are free. {most:,} rows would fit (--rows {most}), or stop what else is running"
        )
    counts = [*(n for n in sizes.steps if n < rows), rows]
    emit(
        benchmark="capacity",
        machine=describe(),
        sizes=asdict(sizes),
        rows=counts,
        table=plain(table),
        threads=options.threads,
        free_gib=left / 2**30,
    )
    found: list[dict[str, Any]] = []
    with ExitStack() as stack:
        large: Child | None = None
        for count in counts:
            train = "train" in options.only and count == counts[-1]
            if "sizes" not in options.only and not train:
                continue
            alone = None
            if "sizes" in options.only and not fit_beside(table, count):
                with opened(table, count, sizes, options, raw=True) as raw:
                    alone = {what: interleave({"raw": raw.turn(what)}, rounds=sizes.rounds)["raw"] for what in TURNS}
            child = stack.enter_context(opened(table, count, sizes, options))
            line = {"filled": count, **filled(table, count, child)}
            if "sizes" in options.only:
                line |= rates(table, count, child, alone, sizes, options)
            emit(**line)
            found.append(line)
            if train:
                large = child
            else:
                child.close()
        trained: dict[str, Any] = {}
        if large is not None and len(counts) > 1:
            small = stack.enter_context(opened(table, counts[0], sizes, options))
            trained = compare_training(small, large, counts, sizes)
            emit(**trained)
    on_disk = cold(table, sizes, options) if "cold" in options.only else {}
    emit(**{**headline(table, found, trained), **on_disk})
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks capacity", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--full", action="store_true", help="as many rows as memory has room for")
    parser.add_argument("--only", type=lambda s: s.split(","), default=list(USUAL_PARTS), help=f"of: {','.join(PARTS)}")
    parser.add_argument("--rows", type=int, default=None, help="of the largest table, other than 20 million")
    parser.add_argument("--dim", type=int, default=64, choices=(16, 64, 128))
    parser.add_argument("--format", default="int8", choices=[f.value for f in ValueFormat if f != ValueFormat.BF16])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cold-rows", type=int, default=None, help="of the table with rows on disk")
    parser.add_argument("--memory", type=float, default=0.2, help="share of its rows that stay in memory")
    parser.add_argument("--evict", choices=("recency", "frequency"), default="frequency", help="which stay")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="of the file with these rows")
    parser.add_argument("--data-dir", type=Path, default=default_data_dir(), help="where samples are made")
    return parser.parse_args(argv)


def planned(table: Table, rows: int) -> RowBytes:
    """Bytes a row of it, filled at once."""
    assert table.optimizer is not None
    form = table.format.value
    bounds = bounds_of(table, form, PARTITIONS)
    return row_bytes(
        table.dim, form, table.optimizer, rows=rows, partitions=PARTITIONS, bounds=bounds, reserved=True
    )  # fmt: skip


def most_rows(table: Table, room: float) -> int:
    """Rows that so many bytes have room for: whole millions, or thousands where that is not one."""
    rows = int(room / planned(table, 100 * MILLION).total)
    unit = MILLION if rows >= MILLION else 1000
    return max(unit, rows // unit * unit)


class Child:
    """A table, or a raw one, in a process of its own, told what to do by lines."""

    def __init__(self, process: subprocess.Popen[str], command: Sequence[str]) -> None:
        self._process, self._command = process, command
        self.ready = self._answer()

    def ask(self, what: str) -> dict[str, Any]:
        """One turn."""
        assert self._process.stdin is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        return self._answer()

    def turn(self, what: str) -> Callable[[], Reading]:
        """A side of a comparison; the reading is the process's own."""
        return lambda: Reading(**self.ask(what))

    def close(self) -> None:
        """Ends the process, and gives its memory back."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=120)
        self._process.stdout.close()

    def _answer(self) -> dict[str, Any]:
        return answer_of(self._process, f"{' '.join(self._command)} ended; what it said is above")


@contextmanager
def opened(table: Table, rows: int, sizes: Sizes, options: argparse.Namespace, *, raw: bool = False) -> Iterator[Child]:
    """A child with so many rows."""
    samples = (sizes.warm_steps + sizes.metered_steps + 8) * 4096
    # Samples of their own for each round: those of the round before have their rows in memory.
    data = [str(ensure(options.data_dir, rows, samples, seed=7 + r)) for r in range(sizes.train_rounds)]
    command = [THIS_PYTHON, "-m", "benchmarks.capacity_side", json.dumps(plain(table)), str(rows), str(options.threads)]
    command += [
        str(sizes.batch),
        str(sizes.batches),
        str(sizes.warm_steps),
        str(sizes.metered_steps),
        os.pathsep.join(data),
    ]
    command += [str(options.data_dir if table.cold is None else options.folder)] + (["raw"] if raw else [])
    process = subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        child = Child(process, command[:5])
        yield child
        if process.poll() is None:
            child.close()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def filled(table: Table, rows: int, child: Child) -> dict[str, Any]:
    """What the fill took, beside the plan."""
    r, each = child.ready, planned(table, rows).total
    return {
        "fill_s": r["fill_s"],
        "fill_mrows_per_s": rows / r["fill_s"] / 1e6,
        "planned_bytes_a_row": each,
        "held_bytes_a_row": r["held_bytes"] / rows,
        "grown_bytes_a_row": r["grown_bytes"] / rows,
        "off": r["grown_bytes"] / rows / each - 1,
        "result_hash": r["hash"],
    }


def fit_beside(table: Table, rows: int) -> bool:
    """Whether memory has room for a table and a raw one."""
    both = rows * (planned(table, rows).total + table.format.row_bytes(table.dim))
    return both + TRAINING_BYTES < MemoryRoom().left_bytes()


def rates(
    table: Table,
    rows: int,
    child: Child,
    alone: Mapping[str, Side] | None,
    sizes: Sizes,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Lookups and updates beside raw ones: in turns, or `alone` what the raw ones took without the table."""
    answer: dict[str, Any] = {"in_turns": alone is None}
    with ExitStack() as stack:
        raw = stack.enter_context(opened(table, rows, sizes, options, raw=True)) if alone is None else None
        for what in TURNS:
            sides = {"satrap": child.turn(what), **({} if raw is None else {"raw": raw.turn(what)})}
            found = {**interleave(sides, rounds=sizes.rounds), **({} if alone is None else {"raw": alone[what]})}
            count = {"satrap": child.ready["rows_a_turn"], "raw": sizes.batch * sizes.batches}
            answer[f"{what}_mrows_per_s"] = {n: count[n] / s.median_s / 1e6 for n, s in found.items()}
            share = count["satrap"] / count["raw"]
            answer[f"{what}_vs_raw"] = share * ratio(found["satrap"].seconds, found["raw"].seconds)
            answer["other_cores"] = max(answer.get("other_cores", 0.0), *(s.other_cores for s in found.values()))
    return answer


def compare_training(small: Child, large: Child, counts: Sequence[int], sizes: Sizes) -> dict[str, Any]:
    """Training on both, in turns."""
    rounds: dict[int, list[dict[str, Any]]] = {counts[0]: [], counts[-1]: []}
    sides = {counts[0]: small, counts[-1]: large}
    for r in range(sizes.train_rounds):
        for count in list(sides) if r % 2 == 0 else list(sides)[::-1]:
            rounds[count].append(sides[count].ask("train"))
            emit(trained=count, round=r, **rounds[count][-1])
    speeds = {n: [x["samples_per_s"] for x in found] for n, found in rounds.items()}
    pairs = list(zip(speeds[counts[-1]], speeds[counts[0]], strict=True))
    costs = [a["cpu_s_per_million"] / b["cpu_s_per_million"] for a, b in zip(*(rounds[n] for n in sides), strict=True)]
    return {
        "trained": list(sides),
        "samples_per_s": {n: statistics.median(s) for n, s in speeds.items()},
        "throughput_ratio": statistics.median(a / b for a, b in pairs),
        "cpu_ratio": statistics.median(costs),
        "peak_rss_mib": rounds[counts[-1]][-1]["peak_rss_mib"],
        "other_cores": max(x["other_cores"] for found in rounds.values() for x in found),
    }


def cold(table: Table, sizes: Sizes, options: argparse.Namespace) -> dict[str, Any]:
    """A table whose rarer rows lie on disk, beside a small one in memory."""
    rows, few = options.cold_rows or sizes.cold_rows, sizes.steps[0]
    large = structs.replace(table, cold=Cold(memory_rows=int(rows * options.memory), evict=options.evict))
    with opened(large, rows, sizes, options) as child, opened(table, few, sizes, options) as small:
        fill = {n: child.ready[n] for n in ("fill_s", "held_bytes", "grown_bytes", "cold", "hash")}
        emit(filled_cold=rows, memory=options.memory, fill_mrows_per_s=rows / fill["fill_s"] / 1e6, **fill)
        trained = compare_training(small, child, (few, rows), sizes)
    return {
        "headline": "capacity",
        "cold_rows": rows,
        "cold_parameters": rows * table.dim,
        "cold_memory_gib": fill["held_bytes"] / 2**30,
        "cold_fill_s": fill["fill_s"],
        "cold_vs_smallest": trained["throughput_ratio"],
        "cold_samples_per_s": trained["samples_per_s"],
        "cold_cpu_ratio": trained["cpu_ratio"],
        "other_cores": trained["other_cores"],
        "commit": describe()["commit"],
    }


def headline(table: Table, found: Sequence[dict[str, Any]], trained: dict[str, Any]) -> dict[str, Any]:
    """The figures the goals are about."""
    largest = found[-1]
    return {
        "headline": "capacity",
        "rows": largest["filled"],
        "parameters": largest["filled"] * table.dim,
        "table_gib": largest["filled"] * largest["held_bytes_a_row"] / 2**30,
        "bytes_a_row": largest["grown_bytes_a_row"],
        "planner_off": largest["off"],
        "fill_s": largest["fill_s"],
        "fill_mrows_per_s": largest["fill_mrows_per_s"],
        "train_vs_smallest": trained.get("throughput_ratio"),
        "samples_per_s": trained.get("samples_per_s"),
        **{
            f"{what}_{figure}": {x["filled"]: x[f"{what}_{figure}"] for x in found if f"{what}_{figure}" in x}
            for what in ("lookup", "update")
            for figure in ("mrows_per_s", "vs_raw")
        },
        "commit": describe()["commit"],
        "result_hash": result_hash(x["result_hash"].encode() for x in found),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
