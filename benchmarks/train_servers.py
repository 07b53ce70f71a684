"""`python -m benchmarks train --servers S --workers W`: the same clicks, job and meter, with rows in server processes.

CPU seconds are those of all processes, reader included, over the same metered stretch as in one process. Two ways:

* *launched*: `satrap train job.yaml --servers S --workers W`, as a user runs it: driver, Ray and its agents, servers
  and workers, by role. Metered from outside, by the steps in the log of the run. Tells also when the first step came.
* *processes*: the same server and trainer as processes without Ray, one worker, and how it is metered in one process.

Groups (`--only`, comma-separated):
  launched  the full and the sum model, staleness 8, and the full model with batches of 1,024
  deep      the full model as processes: staleness 8 with rows in fp32 and fp16, batches of 1,024, staleness 0
  sum       the embedding path alone as processes: fp32 and fp16
  pooled    as deep and sum, with an embedding worker between the trainer and its servers
  delay     with `--delay-ms D`: the full model at staleness 8 and 0, and at 8 with asynchronous dense weights, through
            a proxy that holds every message D ms each way, and through the same proxy without delay; the proxy's own
            CPU time is told, not counted
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from benchmarks.harness import (
    REPOSITORY,
    THIS_PYTHON,
    describe,
    emit,
    pss_mib,
    quietest,
    run_json,
)
from benchmarks.outside import Watched, metered
from benchmarks.process_tree import cpu_by_role, descendants
from benchmarks.synthetic import Dataset, Sizes, default_data_dir, ensure

GROUPS = ("launched", "deep", "sum", "pooled", "delay")


@dataclass(frozen=True, slots=True)
class Shape:
    """How long a run is, in samples, so that it is the same for every batch size."""

    sizes: Sizes
    batch: int
    small_batch: int
    warm: int
    metered: int
    steps: int | None = None
    """Of `batch`, after which a run ends; None: after all rows."""


FULL = Shape(Sizes(train_rows=2_097_152, test_rows=262_144), 4096, 1024, 128 * 4096, 256 * 4096)
QUICK = replace(FULL, warm=48 * 4096, metered=112 * 4096, steps=164)
"""Half a minute for a run becomes a quarter; the AUC is that of fewer rows."""
SMOKE = Shape(Sizes(train_rows=16_384, test_rows=4_096, divide=100), 512, 128, 8 * 512, 16 * 512)


@dataclass(frozen=True, slots=True)
class Entry:
    """One way to run."""

    group: str
    name: str
    model: str = "deep"
    staleness: int = 8
    dense_mode: str = "sync"
    wire: str = "fp32"
    small: bool = False
    delay_ms: float | None = None
    """Of the proxy between worker and servers; None: there is none."""

    @property
    def is_variant(self) -> bool:
        """Whether it runs the code of another way with other numbers: a smoke run does without it."""
        usual = (self.wire, self.model, self.dense_mode) == ("fp32", "deep", "sync")
        return self.small or self.staleness == 0 or not usual


def entries(delay_ms: float | None) -> Iterator[Entry]:
    """Every way, neighbours next to each other."""
    yield Entry("launched", "full model")
    yield Entry("deep", "fp32")
    yield Entry("deep", "fp16", wire="fp16")
    yield Entry("deep", "staleness 0", staleness=0)
    yield Entry("pooled", "fp32")
    yield Entry("pooled", "fp16", wire="fp16")
    yield Entry("pooled", "staleness 0", staleness=0)
    yield Entry("launched", "full model, small batch", small=True)
    yield Entry("deep", "small batch", small=True)
    yield Entry("launched", "sum model", model="sum")
    yield Entry("sum", "fp32", model="sum")
    yield Entry("sum", "fp16", model="sum", wire="fp16")
    yield Entry("pooled", "sum", model="sum")
    if delay_ms is not None:
        yield Entry("delay", "hybrid, proxy alone", delay_ms=0.0)
        yield Entry("delay", "hybrid, delayed", delay_ms=delay_ms)
        yield Entry("delay", "synchronous, proxy alone", staleness=0, delay_ms=0.0)
        yield Entry("delay", "synchronous, delayed", staleness=0, delay_ms=delay_ms)
        yield Entry("delay", "asynchronous, proxy alone", dense_mode="async", delay_ms=0.0)
        yield Entry("delay", "asynchronous, delayed", dense_mode="async", delay_ms=delay_ms)


def main(argv: list[str]) -> int:
    """Runs the groups, prints JSON lines, the headline last."""
    options = _parse(argv)
    shape = SMOKE if options.smoke else QUICK if options.quick else FULL
    data = ensure(options.data_dir, shape.sizes)
    wanted = [e for e in entries(options.delay_ms) if e.group in options.only and not (options.smoke and e.is_variant)]
    emit(
        benchmark="train on servers", machine=describe(), servers=options.servers, workers=options.workers,
        batch=shape.batch, small_batch=shape.small_batch, samples={"warm": shape.warm, "metered": shape.metered},
        rounds=options.rounds, delay_ms=options.delay_ms, bayes_auc=data.bayes_auc,
    )  # fmt: skip
    rounds: dict[Entry, list[dict[str, Any]]] = {e: [] for e in wanted}
    for r in range(options.rounds):
        for entry in wanted[r % len(wanted) :] + wanted[: r % len(wanted)]:
            run = run_launched if entry.group == "launched" else run_processes
            found = quietest(partial(run, entry, data, options, shape), options)
            rounds[entry].append(found)
            emit(round=r, group=entry.group, way=entry.name, **found)
    for entry, found in rounds.items():
        emit(median_of=len(found), group=entry.group, way=entry.name, **_medians(found))
    emit(**headline(rounds, data))
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--servers", type=int, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--delay-ms", type=float, default=None, help="each way")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--quick", action="store_true", help="fewer samples: a run of 20 instead of 40 seconds")
    parser.add_argument("--only", type=lambda s: s.split(","), default=list(GROUPS))
    parser.add_argument("--rounds", type=int, default=None, help="default 3, with --smoke 1")
    parser.add_argument("--repeats", type=int, default=2, help="how often a noisy run is repeated, at most")
    parser.add_argument("--wait-quiet-s", type=float, default=0.0, help="wait so long for others to be quiet")
    parser.add_argument("--data-dir", type=Path, default=default_data_dir())
    options = parser.parse_args(argv)
    unknown = set(options.only) - set(GROUPS)
    if unknown:
        parser.error(f"no group {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}")
    if options.workers > 1:
        options.only = [g for g in options.only if g == "launched"]
    options.rounds = options.rounds or (1 if options.smoke else 3)
    if options.smoke:
        options.repeats = 0
    return options


# ---- as processes


def run_processes(entry: Entry, data: Dataset, options: argparse.Namespace, shape: Shape) -> dict[str, Any]:
    """One run of a trainer and its servers, each a process."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        arguments = _job_arguments(entry, data, shape)
        job = _write_job(folder, arguments)
        servers = [
            stack.enter_context(_process("serve", str(job), f"--index={i}", f"--servers={options.servers}"))
            for i in range(options.servers)
        ]
        addresses = [address for address, _ in servers]
        proxies: list[tuple[str, int]] = []
        if entry.delay_ms is not None:
            proxies = [stack.enter_context(_process("proxy", a, f"--delay-ms={entry.delay_ms}")) for a in addresses]
            addresses = [address for address, _ in proxies]
        poolers = []
        if entry.group == "pooled":
            poolers = [stack.enter_context(_process("pool", str(job), *addresses))]
        pids = ",".join(str(pid) for _, pid in (*servers, *poolers))
        command = [THIS_PYTHON, "-m", "benchmarks.satrap_side", *arguments]
        command += [f"--servers={','.join(addresses)}", f"--count={pids}"]
        command += [f"--pooler={address}" for address, _ in poolers]
        command += [f"--known={','.join(str(pid) for _, pid in proxies)}"] if proxies else []
        answer = run_json(command)
        keys = ("samples_per_s", "cpu_s_per_million", "step_ms_median", "test_auc", "other_cores", "steal_cores")
        cpu = answer["cpu_s_per_million"]
        servers_cpu = answer["others_cpu_s_per_million"]
        behind = "servers and embedding worker" if poolers else "servers"
        by_role = {behind: servers_cpu, "workers": cpu - servers_cpu}
        proxy = {"proxy_cpu_s_per_million": answer["known_cpu_s_per_million"]} if proxies else {}
        figures = {k: answer[k] for k in keys}
        return {**figures, "cpu_by_role": by_role, **proxy, "stages_s": answer["stages_s"], "digest": answer["digest"]}


@contextmanager
def _process(*arguments: str) -> Iterator[tuple[str, int]]:
    """A process of `benchmarks.server_side`: its address and number."""
    command = [THIS_PYTHON, "-m", "benchmarks.server_side", *arguments]
    with subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as made:
        assert made.stdin is not None
        assert made.stdout is not None
        address = made.stdout.readline().strip()
        if not address:
            raise RuntimeError(f"{' '.join(command)} ended; its error is above")
        yield address, made.pid
        made.stdin.close()


def _job_arguments(entry: Entry, data: Dataset, shape: Shape) -> list[str]:
    batch = shape.small_batch if entry.small else shape.batch
    return [
        *("--arrays", str(data.arrays), "--model", entry.model, "--staleness", str(entry.staleness)),
        *("--dense-mode", entry.dense_mode, "--wire", entry.wire, "--batch", str(batch), "--threads", "0"),
        *(["--steps", str(shape.steps * shape.batch // batch)] if shape.steps else []),
        *("--warm-steps", str(shape.warm // batch), "--metered-steps", str(shape.metered // batch)),
    ]


def _write_job(folder: Path, arguments: list[str]) -> Path:
    path = folder / "job.yaml"
    path.write_text(_job(*arguments))
    return path


@cache
def _job(*arguments: str) -> str:
    """In a process of its own: what makes the job imports torch, and this one only looks on."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.yaml"
        run_json([THIS_PYTHON, "-m", "benchmarks.satrap_side", *arguments, f"--write-job={path}"])
        return path.read_text()


# ---- as launched


def run_launched(entry: Entry, data: Dataset, options: argparse.Namespace, shape: Shape) -> dict[str, Any]:
    """One run of `satrap train --servers --workers`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job = _write_job(folder, _job_arguments(entry, data, shape))
        command = [THIS_PYTHON, "-m", "satrap", "train", str(job), "--run-dir", str(folder / "run")]
        command += [f"--servers={options.servers}", f"--workers={options.workers}"]
        path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
        with (folder / "said").open("w") as said:
            process = subprocess.Popen(
                command, cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": path}, stdout=said, stderr=said
            )
            try:
                watched = _watched(process, folder / "run" / "metrics.jsonl")
                figures = metered(watched, warm=shape.warm, length=shape.metered)
                status = process.wait()
            finally:
                process.kill()  # Ray and its processes end with it
        text = (folder / "said").read_text()
        if status != 0 or figures is None:
            raise RuntimeError(f"{' '.join(command)} ended with {status}:\n{text[-3000:]}")
        first = re.search(r"first step ([\d.]+) s after the command \(Ray ([\d.]+) s\)", text)
        records = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
        end = next(record for record in records if record["kind"] == "end")
        return {
            **figures,
            "first_step_s": float(first[1]) if first else None,
            "ray_s": float(first[2]) if first else None,
            "test_auc": end["test"]["auc"] if isinstance(end.get("test"), dict) else None,
        }


def _watched(process: subprocess.Popen[bytes], log: Path) -> Watched:
    seen = 0

    def samples() -> Iterator[int]:
        nonlocal seen
        lines = log.read_bytes().splitlines(keepends=True) if log.exists() else []
        news = [x for x in lines[seen:] if x.endswith(b"\n")]
        seen += len(news)
        return (record["samples"] for record in map(json.loads, news) if record["kind"] == "train")

    def memory() -> float:
        return sum(map(pss_mib, descendants(process.pid)))

    return Watched(samples, lambda: cpu_by_role(process.pid), memory, lambda: process.poll() is not None)


# ---- what came out


def _medians(found: list[dict[str, Any]]) -> dict[str, Any]:
    numbers = [k for k, v in found[0].items() if isinstance(v, int | float)]
    out: dict[str, Any] = {k: statistics.median(f[k] for f in found if f[k] is not None) for k in numbers}
    roles = {role for f in found for role in f["cpu_by_role"]}
    out["cpu_by_role"] = {r: statistics.median(f["cpu_by_role"].get(r, 0.0) for f in found) for r in sorted(roles)}
    return {**out, "cpu_s_per_million_rounds": [f["cpu_s_per_million"] for f in found]}


def headline(rounds: dict[Entry, list[dict[str, Any]]], data: Dataset) -> dict[str, Any]:
    """The figures the goals are about. `None` where a way was not run."""
    by_name = {(e.group, e.name): found for e, found in rounds.items()}
    cpu, speed = "cpu_s_per_million", "samples_per_s"

    def of(group: str, name: str, key: str) -> float | None:
        found = [f[key] for f in by_name.get((group, name), []) if f.get(key) is not None]
        return statistics.median(found) if found else None

    def kept(mode: str) -> float | None:
        plain, delayed = (by_name.get(("delay", f"{mode}, {how}")) for how in ("proxy alone", "delayed"))
        if not plain or not delayed:
            return None
        return statistics.median(d[speed] / p[speed] for p, d in zip(plain, delayed, strict=True))

    return {
        "headline": "train on servers",
        "launched_cpu_s_per_million": of("launched", "full model", cpu),
        "launched_samples_per_s": of("launched", "full model", speed),
        "launched_small_batch_cpu_s_per_million": of("launched", "full model, small batch", cpu),
        "launched_sum_cpu_s_per_million": of("launched", "sum model", cpu),
        "first_step_s": of("launched", "full model", "first_step_s"),
        "deep_cpu_s_per_million": of("deep", "fp32", cpu),
        "deep_samples_per_s": of("deep", "fp32", speed),
        "small_batch_cpu_s_per_million": of("deep", "small batch", cpu),
        "sum_cpu_s_per_million": of("sum", "fp32", cpu),
        "sum_fp16_cpu_s_per_million": of("sum", "fp16", cpu),
        "hybrid_kept_under_delay": kept("hybrid"),
        "synchronous_kept_under_delay": kept("synchronous"),
        "asynchronous_kept_under_delay": kept("asynchronous"),
        "bayes_auc": data.bayes_auc,
        "other_cores_max": max((f["other_cores"] for found in rounds.values() for f in found), default=None),
        "commit": describe()["commit"],
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
