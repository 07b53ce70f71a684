"""The processes of `python -m benchmarks pooling`.

    serve                       a parameter server
    pool SERVER                 an embedding worker before it
    work SERVER [POOLER]        an NN worker without a network: looks batches up and pushes gradients, in an embedding
                                worker where one is given

Each prints its address first (`work`: `ready`), then a line of JSON for every line it reads: the first two their
counters, the worker the figures of so many batches. They end when their input is closed.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections import deque
from typing import Any

import numpy as np

from benchmarks.synthetic import VOCABULARIES, ZIPF_EXPONENT
from satrap.data.batch import Jagged
from satrap.observe.scrape import Scrape
from satrap.pooling import EmbeddingWorker, Gradients, LocalPooler, Plan, Pooled, Pooler, RemotePooler
from satrap.ps import Placement, RemoteService, Server
from satrap.schema import Categorical, Data, Job, Label, RowWiseAdagrad, Store, Table, WireFormat
from satrap.store import keep_freed_memory

PARTITIONS = 64
AHEAD = 4
"""Lookups, and pushes, under way: as at staleness 4."""
BATCHES = 4
"""Different ones, in turns."""


def job_of(options: argparse.Namespace) -> Job:
    """26 features, each with a table of its own."""
    tables = tuple(
        Table(name=f"C{i + 1}", dim=options.dim, optimizer=RowWiseAdagrad(lr=0.02), wire=WireFormat(options.wire))
        for i in range(len(VOCABULARIES))
    )
    return Job(
        data=Data(train=("none.parquet",), label=(Label(column="label"),)),
        features=tuple(Categorical(name=t.name) for t in tables),
        tables=tables,
        store=Store(partitions=PARTITIONS, threads=options.threads),
        seed=3,
    )


def batches_of(options: argparse.Namespace) -> list[dict[str, Jagged]]:
    """Ids with the ranks of the synthetic clicks, one a sample and feature or lists of `--values` on average."""
    rng = np.random.default_rng(7)
    out = []
    for _ in range(BATCHES):
        batch = {}
        for i, vocabulary in enumerate(VOCABULARIES):
            lengths = None if options.values == 1 else rng.integers(1, 2 * options.values, options.batch)
            n = options.batch if lengths is None else int(lengths.sum())
            ranks = _ranks(rng, vocabulary, n)
            offsets = None if lengths is None else np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
            batch[f"C{i + 1}"] = Jagged((ranks + 1).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15), offsets, None)
        out.append(batch)
    return out


def _ranks(rng: np.random.Generator, vocabulary: int, n: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Zipf over a vocabulary, by the inverse of the continuous distribution."""
    s = 1.0 - ZIPF_EXPONENT
    top = (vocabulary + 1.0) ** s
    return np.minimum(((1.0 + rng.random(n) * (top - 1.0)) ** (1.0 / s)).astype(np.int64) - 1, vocabulary - 1)


class Work:
    """Steps of an NN worker with nothing to compute: the gradient of a vector is a thousandth of it."""

    def __init__(self, pooler: Pooler, options: argparse.Namespace) -> None:
        self._pooler, self._size = pooler, options.batch
        self._batches = batches_of(options)
        self._seq = 0

    def run(self, steps: int) -> dict[str, Any]:
        """So many steps."""
        looked_up: deque[Any] = deque()
        pushes: deque[Any] = deque()
        applied = 0
        begun, cpu = time.perf_counter(), _cpu()
        for step in range(steps):
            prepared = self._pooler.prepare(self._batches[step % BATCHES], self._size)
            looked_up.append(self._pooler.begin_lookup(prepared, train=True))
            if len(looked_up) > AHEAD:
                pushes.append(self._push(looked_up.popleft()()))
            if len(pushes) > AHEAD:
                applied += pushes.popleft()().ack.applied
        pushes.extend(self._push(finish()) for finish in looked_up)
        applied += sum(finish().ack.applied for finish in pushes)
        return {"wall_s": time.perf_counter() - begun, "cpu_s": _cpu() - cpu, "applied": applied}

    def _push(self, found: Pooled) -> Any:
        self._seq += 1
        gradient = Gradients(found.pooled * np.float32(1e-3), [])
        return self._pooler.begin_push(found, gradient, epoch=0, seq=self._seq)


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def counters(text: str) -> dict[str, float]:
    """What a server or an embedding worker has moved, and its CPU seconds."""
    now = Scrape.of(text, at=0.0)
    names = {"bytes_in": "satrap_received_bytes_total", "bytes_out": "satrap_sent_bytes_total"}
    return {"cpu_s": _cpu(), **{k: now.total(v) or 0.0 for k, v in names.items()}}


def main(argv: list[str]) -> int:
    """Runs one of them until its input ends."""
    parser = argparse.ArgumentParser(prog="benchmarks pooling_side")
    parser.add_argument("kind", choices=("serve", "pool", "work"))
    parser.add_argument("addresses", nargs="*")
    for name, default in (("dim", 16), ("threads", 1), ("batch", 4096), ("values", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--wire", default="fp32")
    options = parser.parse_args(argv)
    keep_freed_memory()
    plan = Plan.of(job_of(options))
    if options.kind == "serve":
        with Server(plan.tables, seed=plan.seed, partitions=PARTITIONS, threads=options.threads) as server:
            _serve(server.address, lambda _: counters(server.metrics()))
        return 0
    placement = Placement.even(options.addresses[:1], PARTITIONS)
    if options.kind == "pool":
        with EmbeddingWorker(plan, placement, threads=options.threads) as worker:
            _serve(worker.address, lambda _: counters(worker.metrics()))
        return 0
    pooler: Pooler
    if len(options.addresses) > 1:
        pooler = RemotePooler(plan, options.addresses[1])
    else:
        service = RemoteService(plan.tables, placement, seed=plan.seed)
        pooler = LocalPooler(plan, service, threads=options.threads)
    work = Work(pooler, options)
    _serve("ready", lambda line: work.run(int(line)))
    pooler.close()
    return 0


def _serve(first: str, answer: Any) -> None:
    print(first, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(line)), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
