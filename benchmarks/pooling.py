"""`python -m benchmarks pooling`: what an embedding worker takes off an NN worker and its link, and what it costs.

One server, one NN worker without a network (the gradient of a vector is a thousandth of it), with and without an
embedding worker between them, each a process of its own on this machine; 26 features of dim 16 with the vocabularies
of the synthetic clicks, batch 4096, four lookups under way. Features have one value a sample, or lists of 20 on
average. Per way: bytes a sample on the NN worker's link, both directions, CPU seconds per million samples of each
process, and samples/s. The ways take turns; figures are medians over the rounds.

With single values an embedding worker cannot save bytes: a batch has fewer unique ids than places. It saves the NN
worker's CPU. With lists it saves both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from contextlib import ExitStack
from itertools import product
from typing import Any

from benchmarks.harness import REPOSITORY, THIS_PYTHON, Meter, describe, emit

STEPS, SMOKE_STEPS = {1: 80, 20: 16}, 4
WARM = 12
"""Steps before: they make rows."""


class Side:
    """A process of `benchmarks.pooling_side`."""

    def __init__(self, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [THIS_PYTHON, "-m", "benchmarks.pooling_side", *arguments],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        self.address = self._read()

    def ask(self, line: str = "") -> dict[str, Any]:
        """Its answer to a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._read())
        return answer

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            raise RuntimeError("a process of the benchmark ended; its error is above")
        return line

    def close(self) -> None:
        """Ends it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


def measure(*, pooled: bool, steps: int, warm: int, options: list[str], batch: int) -> dict[str, float]:
    """One run of one way."""
    with ExitStack() as stack:

        def start(*arguments: str) -> Side:
            side = Side(*arguments, *options)
            stack.callback(side.close)
            return side

        server = start("serve")
        sides = {"server": server}
        if pooled:
            sides["embedding_worker"] = start("pool", server.address)
        worker = start("work", server.address, *([sides["embedding_worker"].address] if pooled else []))
        worker.ask(str(warm))
        before = {name: side.ask() for name, side in sides.items()}
        meter = Meter(others=[worker.pid, *(side.pid for side in sides.values())])
        work = worker.ask(str(steps))
        noise = meter.read()
        after = {name: side.ask() for name, side in sides.items()}
    samples = steps * batch
    moved = {n: {k: after[n][k] - before[n][k] for k in after[n]} for n in sides}
    link = moved["embedding_worker" if pooled else "server"]
    cpu = {"worker": work["cpu_s"], **{n: m["cpu_s"] for n, m in moved.items()}}
    return {
        "samples_per_s": samples / work["wall_s"],
        "bytes_per_sample": (link["bytes_in"] + link["bytes_out"]) / samples,
        "bytes_out_of_worker": link["bytes_in"] / samples,
        "bytes_into_worker": link["bytes_out"] / samples,
        "bytes_at_server": (moved["server"]["bytes_in"] + moved["server"]["bytes_out"]) / samples,
        **{f"{n}_cpu_s_per_million": s / samples * 1e6 for n, s in cpu.items()},
        "cpu_s_per_million": sum(cpu.values()) / samples * 1e6,
        "gradients": work["applied"],
        "other_cores": noise.other_cores,
        "steal_cores": noise.steal_cores,
    }


def main(argv: list[str]) -> int:
    """Runs the cases, prints JSON lines, the headline last."""
    parser = argparse.ArgumentParser(prog="benchmarks pooling", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--values", type=lambda s: [int(x) for x in s.split(",")], default=[1, 20])
    parser.add_argument("--formats", type=lambda s: s.split(","), default=["fp32", "fp16"])
    parser.add_argument("--dim", type=int, default=16)
    given = parser.parse_args(argv)
    batch, rounds = (64, 1) if given.smoke else (4096, given.rounds)
    emit(benchmark="pooling", batch=batch, rounds=rounds, dim=given.dim, machine=describe())
    headline: dict[str, Any] = {}
    for values, wire in product(given.values, given.formats):
        steps = SMOKE_STEPS if given.smoke else STEPS.get(values, 40)
        options = [f"--{n}={v}" for n, v in (("values", values), ("wire", wire), ("batch", batch), ("dim", given.dim))]
        runs: dict[str, list[dict[str, float]]] = {"direct": [], "pooled": []}
        for r in range(rounds):
            for way in ("direct", "pooled") if r % 2 == 0 else ("pooled", "direct"):
                warm = 1 if given.smoke else WARM
                runs[way].append(measure(pooled=way == "pooled", steps=steps, warm=warm, options=options, batch=batch))
        if {x["gradients"] for x in runs["direct"]} != {x["gradients"] for x in runs["pooled"]}:
            raise RuntimeError(f"the two ways did not push the same gradients: {runs}")
        medians = {way: {k: statistics.median(x[k] for x in found) for k in found[0]} for way, found in runs.items()}
        for way, figures in medians.items():
            emit(case={"values": values, "wire": wire, "way": way}, **figures)
        for figure in ("bytes_per_sample", "worker_cpu_s_per_million", "cpu_s_per_million", "samples_per_s"):
            headline[f"{figure}_ratio_{values}_{wire}"] = medians["pooled"][figure] / medians["direct"][figure]
    emit(headline=True, commit=describe()["commit"], **headline)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
