"""A table of `python -m benchmarks capacity`, in a process of its own: filled, then doing what standard input says.

    lookup, update   a turn over the same random rows: prints a reading
    train            trains from the next file of samples and stops behind the metered stretch: prints its figures

With `raw` it is rows side by side, known by number, instead: the limit that lookups and updates are compared with. A
table with rows on disk is filled with the rarest rows first, as the samples have them, so that those in memory are at
the beginning about the ones that long training leaves there.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import limits
from benchmarks.capacity_data import FEATURES, ids_of
from benchmarks.harness import Meter, result_hash
from satrap.observe import Progress, rss_bytes
from satrap.ps import LocalService
from satrap.schema import Table, ValueFormat
from satrap.schema.strict import convert
from satrap.store import keep_freed_memory
from satrap.train.filling import BATCH, fill

BATCH_SAMPLES = 4096
PARTITIONS = 64
DTYPES: dict[ValueFormat, Any] = {ValueFormat.FP32: np.float32, ValueFormat.FP16: np.float16, ValueFormat.INT8: np.int8}


def main(argv: list[str]) -> int:
    """Fills, says so, and takes turns until its input ends."""
    table: Table = convert(json.loads(argv[0]), Table, "")
    rows, threads, batch, batches, warm, metered = map(int, argv[1:7])
    data, folder = argv[7].split(os.pathsep), Path(argv[8])
    rng = np.random.default_rng(11)
    numbers = rng.integers(0, rows, (batches, batch), np.int64)
    gradient = (rng.standard_normal((batch, table.dim)) * 1e-3).astype(np.float32)
    if argv[9:] == ["raw"]:
        with closing(limits.RawTable(rows, table.dim, DTYPES[table.format], batch=batch, folder=folder)) as raw:
            _serve(*_raw(raw, numbers, gradient, threads))
        return 0
    keep_freed_memory()
    service = LocalService([table], seed=1, partitions=PARTITIONS, threads=threads, cold_folder=str(folder))
    distinct = [np.unique(x).astype(np.uint64) for x in numbers]
    filled = _filled(service, rows, numbers[0]) if table.cold is None else _filled_cold(service, rows, numbers[0])
    ready = {**filled, "rows_a_turn": sum(x.size for x in distinct)}
    for x in distinct:
        rng.shuffle(x)
    turns = _turns(service, distinct, gradient)
    trains = _Training(service, table, data, threads, warm, metered)
    _serve(ready, {**{n: _read(turn) for n, turn in turns.items()}, "train": trains.train})
    return 0


def _serve(ready: dict[str, Any], turns: dict[str, Callable[[], dict[str, Any]]]) -> None:
    print(json.dumps(ready), flush=True)
    for line in sys.stdin:
        print(json.dumps(turns[line.strip()]()), flush=True)


def _read(turn: Callable[[], None]) -> Callable[[], dict[str, Any]]:
    def run() -> dict[str, Any]:
        meter = Meter()
        turn()
        return asdict(meter.read())

    return run


def _raw(
    raw: limits.RawTable, numbers: NDArray[np.int64], gradient: NDArray[np.float32], threads: int
) -> tuple[dict[str, Any], dict[str, Callable[[], dict[str, Any]]]]:
    for at in range(0, len(raw.values), BATCH):
        raw.values[at : at + BATCH] = 1  # pages that were never written are all one page of zeros
    raw.dense[:] = gradient
    flat = np.ascontiguousarray(numbers.reshape(-1))
    operations = {"lookup": limits.GATHER, "update": limits.ADD_GRADIENT}
    best = {n: raw.best_distance(o, flat, threads=threads, tries=1) for n, o in operations.items()}

    def turn(name: str) -> Callable[[], None]:
        return lambda: raw.run(operations[name], flat, distance=best[name], threads=threads)

    return {"distances": best}, {n: _read(turn(n)) for n in operations}


def _filled(service: LocalService, rows: int, some: NDArray[np.int64]) -> dict[str, Any]:
    """Fills, in the open where a person watches; the figures."""
    before, started = rss_bytes(), perf_counter()
    (told,) = fill(service, {"t": rows}, progress=True if sys.stderr.isatty() else None)
    seconds = perf_counter() - started
    grown = rss_bytes() - before
    read = service.store.lookup("t", some.astype(np.uint64))
    return {
        "fill_s": seconds,
        "held_bytes": told.held_bytes,
        "grown_bytes": grown,
        "hash": result_hash([read.tobytes()]),
    }


def _filled_cold(service: LocalService, rows: int, some: NDArray[np.int64]) -> dict[str, Any]:
    """As `_filled`, the rarest rows first."""
    before, started = rss_bytes(), perf_counter()
    with Progress(show=None if sys.stderr.isatty() else False, total_samples=rows, title="filling t", unit="rows") as p:
        for end in range(rows, 0, -BATCH):
            service.store.fill("t", ids_of(np.arange(max(0, end - BATCH), end), rows).astype(np.uint64)[::-1].copy())
            p.update(samples=rows - max(0, end - BATCH), rss_bytes=rss_bytes())
    seconds = perf_counter() - started
    size = service.stats()["t"]
    assert size.rows == rows
    return {
        "fill_s": seconds,
        "held_bytes": size.overhead_bytes + size.value_bytes + size.state_bytes,
        "grown_bytes": rss_bytes() - before,
        "cold": asdict(service.store.cold_counts("t")),
        "hash": result_hash([service.store.lookup("t", some.astype(np.uint64)).tobytes()]),
    }


def _turns(
    service: LocalService, batches: list[NDArray[np.uint64]], gradient: NDArray[np.float32]
) -> dict[str, Callable[[], None]]:
    store = service.store
    values = np.empty_like(gradient)
    hints = [store.pull_many({"t": ids}, create=False)[2] for ids in batches]

    def lookup() -> None:
        for ids in batches:
            store.lookup("t", ids, values[: ids.size])

    def update() -> None:
        for ids, hint in zip(batches, hints, strict=True):
            store.push_many({"t": ids}, {"t": gradient[: ids.size]}, hints=hint, distinct=True)

    return {"lookup": lookup, "update": update}


class _EnoughError(Exception):
    """The metered stretch is over: no evaluation and no checkpoint, which would be as large as the table."""


class _Training:
    def __init__(
        self, service: LocalService, table: Table, data: list[str], threads: int, warm: int, metered: int
    ) -> None:
        self._service, self._table, self._data = service, table, data
        self._threads, self._warm, self._metered = threads, warm, metered

    def train(self) -> dict[str, Any]:
        """Trains; the figures of the metered stretch."""
        import torch
        from torch import Tensor, nn

        from benchmarks.peers.loop import Metered
        from satrap import models
        from satrap.models import Named
        from satrap.schema import MLP, Adam, Categorical, Data, Job, Label, Train
        from satrap.schema import Store as StoreSpec
        from satrap.train import Trainer

        metered = Metered(batch=BATCH_SAMPLES, warm_steps=self._warm, metered_steps=self._metered)

        class Watched(nn.Module):
            def __init__(self, inner: nn.Module) -> None:
                super().__init__()
                self.inner = inner

            def forward(self, numeric: Named, embeddings: Named) -> Tensor:
                metered.begin_step()
                if metered.figures is not None:
                    raise _EnoughError
                logits: Tensor = self.inner(numeric, embeddings)
                return logits

        job = Job(
            data=Data(train=(self._data.pop(0),), label=(Label(column="label"),), valid=0.0, shuffle_rows=0),
            features=tuple(Categorical(name=n, table="t") for n in FEATURES),
            tables=(self._table,),
            model=MLP(hidden=(256, 64)),
            train=Train(
                batch_size=BATCH_SAMPLES,
                optimizer=Adam(lr=1e-3),
                staleness=8,
                threads=self._threads,
                device="cpu",
                log_every_steps=16,
            ),
            store=StoreSpec(threads=self._threads, partitions=PARTITIONS),
        )
        torch.manual_seed(job.seed)
        network = Watched(models.build(job))
        self._service.set_clients({})  # pushes of a round before must not make this one's duplicates
        before = self._service.stats()["t"]
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(
                job, network, run_dir=Path(folder) / "run", service=self._service, progress=False, plots=False
            )
            with suppress(_EnoughError):
                trainer.fit()
        assert metered.figures is not None, "the samples ended before the stretch did"
        after = self._service.stats()["t"]
        assert after.rows == before.rows, "every id had its row"
        if before.cold is None or after.cold is None:
            return metered.figures
        steps, rows = self._warm + self._metered, after.cold.written - before.cold.written
        return {
            **metered.figures,
            "returned_a_sample": (after.cold.returned - before.cold.returned) / (steps * BATCH_SAMPLES),
            "write_amplification": 1 + (after.cold.moved - before.cold.moved) / max(rows, 1),
            "file_gb": after.cold.file_bytes / 1e9,
        }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
