"""The other processes of `python -m benchmarks train --servers`: parameter servers, and a network with a delay.

`python -m benchmarks.server_side serve …` is the server of a job (the options of `benchmarks.satrap_side`) as
`satrap train` starts it, without Ray; `… pool JOB ADDRESS…` an embedding worker before servers; `… proxy ADDRESS`
passes messages on to it, each `--delay-ms` late. They print their address, and end when their input is closed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from satrap.observe.machine import cores_available
from satrap.pooling import EmbeddingWorker, Plan
from satrap.ps import Keeping, Placement, Server
from satrap.ps.server import bind_at
from satrap.schema import load_job


def main(argv: list[str]) -> int:
    """Runs one of them until its input ends."""
    parser = argparse.ArgumentParser(prog="benchmarks server_side")
    commands = parser.add_subparsers(dest="kind", required=True)
    serve = commands.add_parser("serve")
    serve.add_argument("job")
    serve.add_argument("--index", type=int, default=0)
    serve.add_argument("--servers", type=int, default=1)
    serve.add_argument("--durability", default="none")
    serve.add_argument("--history", type=Path)
    pool = commands.add_parser("pool")
    pool.add_argument("job")
    pool.add_argument("addresses", nargs="+")
    proxy = commands.add_parser("proxy")
    proxy.add_argument("address")
    proxy.add_argument("--delay-ms", type=float, default=0.0)
    options = parser.parse_args(argv)
    if options.kind == "proxy":
        from satrap.testing import FaultProxy, Faults

        between = FaultProxy(options.address, Faults(delay_ms=options.delay_ms))
        print(between.address, flush=True)
        sys.stdin.read()
        between.stop()
        return 0
    job = load_job(options.job)
    if options.kind == "pool":
        placement = Placement.even(options.addresses, job.store.partitions)
        threads = job.store.threads or max(1, int(cores_available()))
        with EmbeddingWorker(Plan.of(job), placement, threads=threads) as worker:
            print(worker.address, flush=True)
            sys.stdin.read()
        return 0
    threads = job.store.threads or max(1, int(cores_available()) // options.servers)
    tables, partitions = job.resolved_tables(), job.store.partitions
    keeping = None if options.durability == "none" else Keeping(folder=options.history, level=options.durability)
    with Server(
        tables,
        seed=job.seed,
        partitions=partitions,
        threads=threads,
        bind=bind_at("127.0.0.1"),
        index=options.index,
        keeping=keeping,
    ) as server:
        print(server.address, flush=True)
        sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
