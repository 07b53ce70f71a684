"""`python -m benchmarks store`: lookup and row-wise Adagrad update of the native store, against the machine's limits.

Ten million rows at random 64-bit ids; batches of 65,536 random present ids, raw and unsorted, through the public
`Store` API. Beside it, taking turns in the same run, over the same rows in the same order:

* `raw`: a gather (or read-modify-write) by known row number with the best prefetch distance, on huge pages;
* `raw_gradient`: the read-modify-write that also streams one gradient a row, as any optimizer must;
* `torch`: `nn.EmbeddingBag`, one row a bag, on the raw table's own memory;
* `fbgemm`: FBGEMM's CPU kernel, with `--fbgemm-python` naming an interpreter that has it.

`lookup` is ids in, values [N, D] out (fp16 rows come out as fp32 on every side but torch's): `satrap` as evaluation
reads, into the same array each time as `raw` does; `satrap_pull` as training does, with versions and hints. `update`
is distinct ids and gradients in: `satrap` finds every row anew, `satrap_hinted` is told where the pull before it found
them, as it is in training. `step` is what a layer does in training: ids in, pooled values out, gradient in, rows
updated, with repeated ids found and merged by satrap. Memory is measured as the resident set of a process that does
nothing else.
"""

from __future__ import annotations

import argparse
import gc
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import limits
from benchmarks.harness import (
    REPOSITORY,
    THIS_PYTHON,
    Reading,
    Side,
    answer_of,
    describe,
    emit,
    interleave,
    python_has,
    ratio,
    result_hash,
    run_json,
    wait_until_quiet,
)
from benchmarks.synthetic import default_data_dir
from satrap.schema import Pooling, RowWiseAdagrad, Table, ValueFormat
from satrap.store import Store, TicketFeature, keep_freed_memory

DTYPES: dict[str, type[np.float32] | type[np.float16]] = {"fp32": np.float32, "fp16": np.float16}
LEARNING_RATE = 0.02
Sides = dict[str, Callable[[], Reading | None]]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large a run is."""

    rows: int
    batch: int
    batches: int
    """Batches of one turn; a turn has to last long enough for the noise meter to see it."""
    rounds: int


FULL = Sizes(rows=10_000_000, batch=65_536, batches=64, rounds=7)
SMOKE = Sizes(rows=20_000, batch=4_096, batches=2, rounds=2)


@dataclass(frozen=True, slots=True)
class Case:
    """One line of the result: a table, and the threads on it."""

    dim: int
    format: str
    threads: int


@dataclass(frozen=True, slots=True)
class Work:
    """The same batches, named twice."""

    ids: NDArray[np.uint64]
    """[rows]: id of raw row i."""
    rows: NDArray[np.int64]
    """[batches, batch] row numbers, distinct within a batch."""
    batch_ids: NDArray[np.uint64]
    """[batches, batch]"""


def main(argv: list[str]) -> int:
    """Runs the cases, prints JSON lines, the headline last."""
    options = _parse(argv)
    sizes = SMOKE if options.smoke else FULL
    if options.rows:
        sizes = replace(sizes, rows=options.rows)
    fbgemm = options.fbgemm_python if python_has(options.fbgemm_python, "fbgemm_gpu") else None
    emit(benchmark="store", sizes=_fields(sizes), machine=describe(), fbgemm=fbgemm is not None)
    keep_freed_memory()  # as training and servers do
    work = make_work(sizes)
    results = []
    for dim in options.dims:
        for form in options.formats:
            for threads in options.threads:
                wait_until_quiet(options.wait_quiet_s)
                line = run_case(Case(dim, form, threads), sizes, work, options.data_dir, fbgemm)
                emit(**line)
                results.append(line)
    memories = []
    for dim in options.dims:
        for form in options.formats:
            memories.append(_memory_in_process(dim, form, sizes))
            emit(**memories[-1])
    emit(**headline(results, memories))
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks store", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--dims", type=_numbers, default=[16, 64, 128])
    parser.add_argument("--formats", type=lambda s: s.split(","), default=["fp32", "fp16"])
    parser.add_argument("--threads", type=_numbers, default=[1, 2])
    parser.add_argument("--rows", type=int, default=None, help="rows of the table, other than 10 million")
    parser.add_argument("--wait-quiet-s", type=float, default=0.0, help="wait so long for others to be quiet")
    parser.add_argument("--fbgemm-python", default=THIS_PYTHON, help="an interpreter that has fbgemm-gpu-cpu")
    parser.add_argument("--data-dir", type=Path, default=default_data_dir(), help="where compiled kernels are kept")
    return parser.parse_args(argv)


def _numbers(text: str) -> list[int]:
    return [int(x) for x in text.split(",")]


def make_work(sizes: Sizes, *, seed: int = 11) -> Work:
    """Random ids for every row, and batches of random rows, each row at most once a batch."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(1, 2**63, sizes.rows, np.uint64) * np.uint64(2) + np.uint64(1)
    rows = np.stack([rng.choice(sizes.rows, sizes.batch, replace=False) for _ in range(sizes.batches)])
    return Work(ids, rows, ids[rows])


def run_case(case: Case, sizes: Sizes, work: Work, folder: Path, fbgemm: str | None) -> dict[str, Any]:
    """Builds the table twice (raw and satrap's), checks that both read alike, and times every side."""
    torch.set_num_threads(case.threads)
    dtype = DTYPES[case.format]
    with ExitStack() as stack:
        raw = stack.enter_context(
            closing(limits.RawTable(sizes.rows, case.dim, dtype, batch=sizes.batch, folder=folder))
        )
        store = Store([_table(case)], seed=1, threads=case.threads)
        fill(raw, store, work)
        read = check_equal(raw, store, work)
        worker = stack.enter_context(_fbgemm(fbgemm, case, sizes, work)) if fbgemm else None
        distances = {
            name: raw.best_distance(operation, work.rows.reshape(-1), threads=case.threads)
            for name, operation in (("gather", 0), ("add_constant", 1), ("add_gradient", 2))
        }
        count = work.rows.size
        answer: dict[str, Any] = {"case": _fields(case), "prefetch_distance": distances}
        for name, sides in _operations(case, raw, store, work, worker, distances):
            answer[name] = summarize(interleave(sides, rounds=sizes.rounds), count)
        answer["result_hash"] = read
        del store
        gc.collect()
    return answer


def _table(case: Case) -> Table:
    optimizer = RowWiseAdagrad(lr=LEARNING_RATE)
    return Table(name="t", dim=case.dim, format=ValueFormat(case.format), optimizer=optimizer)


def fill(raw: limits.RawTable, store: Store, work: Work, *, chunk: int = 1 << 18) -> None:
    """The same random values in both tables."""
    rng = np.random.default_rng(5)
    total, dim = raw.values.shape
    for at in range(0, total, chunk):
        to = slice(at, min(at + chunk, total))
        values = rng.random((to.stop - to.start, dim), np.float32).astype(raw.values.dtype)
        raw.values[to] = values
        store.import_rows("t", work.ids[to], values, np.zeros((len(values), 1), np.float32))


def check_equal(raw: limits.RawTable, store: Store, work: Work) -> str:
    """Hash of one batch as read; asserts that both tables read alike, so that both do the same work."""
    values, _ = store.pull("t", np.ascontiguousarray(work.batch_ids[0]))
    raw.run(limits.GATHER, np.ascontiguousarray(work.rows[0]), distance=8, threads=1)
    assert np.array_equal(values, raw.dense), "the two tables hold different values: the comparison would be void"
    return result_hash([values.tobytes()])


def _operations(
    case: Case, raw: limits.RawTable, store: Store, work: Work, worker: Worker | None, distances: dict[str, int]
) -> Iterator[tuple[str, Sides]]:
    """The sides of lookup, update and step, made when their turn comes: gradients stand where values stood."""
    batches = [np.ascontiguousarray(x) for x in work.batch_ids]
    rows = np.ascontiguousarray(work.rows.reshape(-1))
    gradient = np.full(raw.dense.shape, 1e-3, np.float32)

    def raw_side(operation: int, distance: int) -> Callable[[], None]:
        return lambda: raw.run(operation, rows, distance=distance, threads=case.threads)

    values = np.empty_like(raw.dense)

    def lookup() -> None:
        for ids in batches:
            store.lookup("t", ids, values)

    def pull() -> None:
        for ids in batches:
            store.pull_many({"t": ids}, create=True)

    def push() -> None:
        for ids in batches:
            store.push_many({"t": ids}, {"t": gradient}, distinct=True)

    hints = [store.pull_many({"t": ids}, create=True)[2] for ids in batches]

    def push_hinted() -> None:
        for ids, hint in zip(batches, hints, strict=True):
            store.push_many({"t": ids}, {"t": gradient}, hints=hint, distinct=True)

    looked_up: Sides = {"satrap": lookup, "satrap_pull": pull, "raw": raw_side(limits.GATHER, distances["gather"])}
    weight = torch.from_numpy(raw.values)
    row_batches = list(torch.from_numpy(work.rows))
    offsets = torch.arange(work.rows.shape[1])

    def bag() -> None:
        with torch.no_grad():
            for batch in row_batches:
                torch.nn.functional.embedding_bag(batch, weight, offsets, mode="sum")

    looked_up["torch"] = bag
    if worker:
        looked_up["fbgemm"] = lambda: worker.run("lookup")
    yield "lookup", looked_up
    raw.dense[:] = gradient
    yield (
        "update",
        {
            "satrap": push,
            "satrap_hinted": push_hinted,
            "raw": raw_side(limits.ADD_CONSTANT, distances["add_constant"]),
            "raw_gradient": raw_side(limits.ADD_GRADIENT, distances["add_gradient"]),
        },
    )
    step: Sides = {"satrap": lambda: _steps(store, batches, gradient)}
    if worker:
        step["fbgemm"] = lambda: worker.run("step")
    yield "step", step


def _steps(store: Store, batches: list[NDArray[np.uint64]], gradient: NDArray[np.float32]) -> None:
    pooled = np.empty_like(gradient)
    for ids in batches:
        ticket = store.ticket([TicketFeature("t", ids, None, None, Pooling.SUM)], ids.size)
        unique = ticket.unique()
        rows, versions, hints = store.pull_many(unique, create=True)
        store.pool(ticket, rows, pooled)
        store.push_many(unique, store.unpool(ticket, gradient), versions, hints, distinct=True)


def summarize(sides: dict[str, Side], count: int) -> dict[str, Any]:
    """Million rows a second of every side, and satrap's speed relative to each (above 1: satrap is faster)."""
    ours = {n: s for n, s in sides.items() if n.startswith("satrap")}
    others = {n: s for n, s in sides.items() if n not in ours}
    return {
        **{f"{n}_mrows_per_s": count / s.median_s / 1e6 for n, s in sides.items()},
        **{f"{n}_vs_{m}": ratio(s.seconds, o.seconds) for n, s in ours.items() for m, o in others.items()},
        "other_cores": max(s.other_cores for s in sides.values()),
        "steal_cores": max(s.steal_cores for s in sides.values()),
        "noisy_rounds": sum(s.noisy_rounds for s in sides.values()),
    }


class Worker:
    """FBGEMM in its own process, told what to run by lines."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.ready = self._answer()

    def run(self, operation: str) -> Reading:
        """One turn; the reading is the worker's own."""
        assert self._process.stdin is not None
        self._process.stdin.write(operation + "\n")
        self._process.stdin.flush()
        return Reading(**self._answer())

    def _answer(self) -> dict[str, Any]:
        why = "the FBGEMM worker ended; run it by hand to see why: python -m benchmarks.peers.fbgemm_side"
        return answer_of(self._process, why)


@contextmanager
def _fbgemm(python: str, case: Case, sizes: Sizes, work: Work) -> Iterator[Worker]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "batches.npy"
        np.save(path, work.rows)
        command = [python, "-m", "benchmarks.peers.fbgemm_side", "--rows", str(sizes.rows), "--dim", str(case.dim)]
        command += ["--threads", str(case.threads), "--format", case.format, "--batches", str(path)]
        environment = {"PYTHONPATH": str(REPOSITORY), "THP_MEM_ALLOC_ENABLE": "1", "PATH": "/usr/bin:/bin"}
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        try:
            yield Worker(process)
        finally:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.close()
            process.wait(timeout=60)
            process.stdout.close()


def _memory_in_process(dim: int, form: str, sizes: Sizes) -> dict[str, Any]:
    return run_json([THIS_PYTHON, "-m", "benchmarks.store_memory", str(dim), form, str(sizes.rows)])


def headline(results: list[dict[str, Any]], memories: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures the goals are about: the worst case of each."""

    def worst(operation: str, key: str, dims: set[int]) -> float | None:
        found = [r[operation][key] for r in results if r["case"]["dim"] in dims]
        return min(found) if found else None

    return {
        "headline": "store",
        "lookup_vs_raw_gather_dim_64_128": worst("lookup", "satrap_vs_raw", {64, 128}),
        "lookup_vs_raw_gather_dim_16": worst("lookup", "satrap_vs_raw", {16}),
        "update_vs_raw_read_modify_write": worst("update", "satrap_vs_raw", {16, 64, 128}),
        "update_vs_raw_with_gradient": worst("update", "satrap_vs_raw_gradient", {16, 64, 128}),
        "update_hinted_vs_raw_read_modify_write": worst("update", "satrap_hinted_vs_raw", {16, 64, 128}),
        "overhead_bytes_per_row_max": max((m["overhead_bytes_per_row_max"] for m in memories), default=None),
        "noisy_rounds": sum(r[o]["noisy_rounds"] for r in results for o in ("lookup", "update", "step")),
        "commit": describe()["commit"],
        "result_hash": result_hash([r["result_hash"].encode() for r in results]),
    }


def _fields(x: Sizes | Case) -> dict[str, Any]:
    return {name: getattr(x, name) for name in x.__slots__}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
