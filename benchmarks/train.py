"""`python -m benchmarks train`: training on synthetic clicks, from Parquet on disk, beside torch and TorchRec.

Every side is a program of its own with the same rows in the same order, the same network, the same optimizers and the
same cores; satrap reads Parquet with hashed ids from disk, the peers have rows in memory with ids mapped to row
numbers beforehand. A round runs every side once; ratios are medians over the rounds. CPU seconds are those of all
threads and processes of a side over the metered stretch (1,048,576 samples after 524,288 of warm-up).

Groups (`--only`, comma-separated):
  deep     the full model (13→64 beside 26 x 16, then 480-256-64-1): satrap at staleness 8 and 0, TorchRec, torch, and
           the dense network alone on random inputs
  flat     the variant without the layer of 64: 429-256-64-1
  sum      the embedding path alone: the logit is the sum of every pooled value and a bias
  bf16     the full model with the dense network in bf16: satrap, TorchRec, dense alone
  one-core the full and the sum model with every side on one core
  read     Parquet to batches and nothing else, in file order and shuffled
  adam     Adam on the rows, against torch's SparseAdam (FBGEMM's CPU kernel has no Adam)

With `--servers S` it measures training on servers instead: see `benchmarks.train_servers`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness import (
    THIS_PYTHON,
    describe,
    emit,
    python_has,
    quietest,
    result_hash,
    run_json,
)
from benchmarks.synthetic import Dataset, Sizes, default_data_dir, ensure

PROGRAMS = {"satrap": "satrap_side", "torchrec": "peers.torchrec_side", "torch": "peers.torch_side"}
HUGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}
"""TorchRec is allowed huge pages, which help it by up to a third; satrap asks for its own."""
SLEEPING = ", threads sleeping"
"""Mark of a side whose OpenMP threads sleep while they wait (`OMP_WAIT_POLICY=PASSIVE`), as satrap sets it for itself.

Spinning threads, the default, are a little faster on an idle machine and far slower on a busy one; so peers on two
threads run both ways, and satrap is compared with the better of the two, round by round.
"""


RUN_FIGURES = ("samples_per_s", "cpu_s_per_million", "test_auc", "other_cores", "steal_cores", "digest")
"""What the line of a single run tells; the line of its side, after the rounds, tells more."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One side of one group: a program and its options."""

    group: str
    name: str
    program: str
    options: tuple[str, ...]

    @property
    def is_variant(self) -> bool:
        """Whether it runs the code of another side with other numbers: a smoke run does without it."""
        return self.name.endswith(SLEEPING) or (self.group, self.name) == ("sum", "satrap staleness 0")


@dataclass(frozen=True, slots=True)
class Shape:
    """How long a run is."""

    sizes: Sizes
    batch: int
    warm_steps: int
    metered_steps: int
    slow_steps: int
    """Steps of the whole run of a side that is too slow for all rows (torch's SparseAdam)."""


FULL = Shape(Sizes(train_rows=2_097_152, test_rows=262_144), 4096, 128, 256, 32)
SMOKE = Shape(Sizes(train_rows=16_384, test_rows=4_096, divide=100), 512, 8, 16, 12)


@dataclass(slots=True)
class Figures:
    """The rounds of one entry."""

    rounds: list[dict[str, Any]] = field(default_factory=list)

    def median(self, key: str) -> float | None:
        """Median over the rounds; None where the side does not tell."""
        values = [r[key] for r in self.rounds if isinstance(r.get(key), int | float)]
        return statistics.median(values) if values else None

    def summary(self) -> dict[str, Any]:
        """The line of this entry."""
        keys = ("samples_per_s", "cpu_s_per_million", "step_ms_median", "peak_rss_mib", "data_mib", "test_auc")
        keys += ("rows", "bytes_per_row", "staleness_mean")
        medians = {k: m for k in keys if (m := self.median(k)) is not None}
        noise = {k: max(r[k] for r in self.rounds) for k in ("other_cores", "steal_cores")}
        last = self.rounds[-1]
        more = {k: last[k] for k in ("stages_s", "torch", "torchrec", "fbgemm", "row_optimizer") if k in last}
        digests = {r["digest"] for r in self.rounds if "digest" in r}
        if digests:
            more["digest"] = digests.pop()[:16] if len(digests) == 1 else "DIFFERS FROM ROUND TO ROUND"
        spread = [r["cpu_s_per_million"] for r in self.rounds]
        return {**medians, "cpu_s_per_million_rounds": spread, **noise, **more}


def main(argv: list[str]) -> int:
    """Runs the groups, prints JSON lines, the headline last."""
    if any(a.partition("=")[0] == "--servers" for a in argv):
        from benchmarks import train_servers

        return train_servers.main(argv)
    options = _parse(argv)
    shape = SMOKE if options.smoke else FULL
    data = ensure(options.data_dir, shape.sizes)
    torchrec = python_has(options.torchrec_python, "torchrec")
    emit(
        benchmark="train",
        machine=describe(),
        rows={"train": shape.sizes.train_rows, "test": shape.sizes.test_rows, "mib_on_disk": data.bytes_on_disk >> 20},
        batch=shape.batch, warm_steps=shape.warm_steps, metered_steps=shape.metered_steps,
        rounds=options.rounds, bayes_auc=data.bayes_auc, torchrec=torchrec,
    )  # fmt: skip
    wanted = [e for e in entries(shape) if e.group in options.only and (torchrec or e.program != "torchrec")]
    wanted = [e for e in wanted if not (options.smoke and e.is_variant)]
    figures = {e: Figures() for e in wanted}
    for r in range(options.rounds):
        for entry in wanted[r % len(wanted) :] + wanted[: r % len(wanted)]:
            run = quietest(partial(run_entry, entry, data, options.torchrec_python, shape), options)
            figures[entry].rounds.append(run)
            emit(round=r, group=entry.group, side=entry.name, **{k: run[k] for k in RUN_FIGURES if k in run})
    for entry, found in figures.items():
        emit(
            median_of=len(found.rounds),
            group=entry.group,
            side=entry.name,
            options=" ".join(entry.options),
            **found.summary(),
        )
    emit(**headline(figures, data))
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    groups = ["deep", "flat", "sum", "bf16", "one-core", "read", "adam"]
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--only", type=lambda s: s.split(","), default=groups)
    parser.add_argument("--rounds", type=int, default=None, help="default 3, with --smoke 1")
    parser.add_argument("--repeats", type=int, default=2, help="how often a noisy run is repeated, at most")
    parser.add_argument("--wait-quiet-s", type=float, default=0.0, help="wait so long for others to be quiet")
    parser.add_argument("--torchrec-python", default=THIS_PYTHON, help="an interpreter that has torchrec")
    parser.add_argument("--data-dir", type=Path, default=default_data_dir())
    options = parser.parse_args(argv)
    unknown = set(options.only) - set(groups)
    if unknown:
        parser.error(f"no group {', '.join(sorted(unknown))}; there are {', '.join(groups)}")
    options.rounds = options.rounds or (1 if options.smoke else 3)
    if options.smoke:
        options.repeats = 0
    return options


def entries(shape: Shape) -> Iterator[Entry]:
    """Every side of every group, neighbours next to each other."""
    two, one = ("--threads", "2"), ("--threads", "1")
    alone = ("--alone", "with-input-gradient")
    for group in ("deep", "flat", "sum"):
        model = ("--model", group)
        yield Entry(group, "satrap", "satrap", (*model, *two, "--staleness", "8"))
        yield from _both_ways(Entry(group, "torchrec", "torchrec", (*model, *two)))
        yield Entry(group, "satrap staleness 0", "satrap", (*model, *two, "--staleness", "0"))
        if group == "sum":  # two threads cost every side more CPU here: the figure of one is the fair one
            yield Entry(group, "satrap 1 thread", "satrap", (*model, *one, "--staleness", "8"))
            yield Entry(group, "torchrec 1 thread", "torchrec", (*model, *one))
            yield Entry(group, "torch 1 thread", "torch", (*model, *one))
        else:
            yield from _both_ways(Entry(group, "dense alone", "torch", (*model, *two, *alone)))
            yield Entry(group, "torch", "torch", (*model, *two))
    bf16 = ("--model", "deep", "--precision", "bf16", *two)
    yield Entry("bf16", "satrap", "satrap", (*bf16, "--staleness", "8"))
    yield from _both_ways(Entry("bf16", "torchrec", "torchrec", bf16))
    yield from _both_ways(Entry("bf16", "dense alone", "torch", (*bf16, *alone)))
    for model in ("deep", "sum"):
        pinned = ("--model", model, *one, "--cores", "1")
        yield Entry("one-core", f"satrap {model}", "satrap", (*pinned, "--staleness", "8"))
        yield Entry("one-core", f"torchrec {model}", "torchrec", pinned)
    pinned = ("--model", "deep", *one, "--cores", "1")
    yield Entry("one-core", "dense alone", "torch", (*pinned, *alone))
    yield Entry("one-core", "dense alone, no input gradient", "torch", (*pinned, "--alone", "without-input-gradient"))
    yield Entry("read", "in file order", "satrap", ("--read-only",))
    yield Entry("read", "shuffled", "satrap", ("--read-only", "--shuffle-rows", "262144"))
    adam = ("--model", "deep", "--optimizer", "adam", *two)
    yield Entry("adam", "satrap", "satrap", (*adam, "--staleness", "8"))
    half = str(shape.slow_steps // 2)
    short = ("--steps", str(shape.slow_steps), "--warm-steps", half, "--metered-steps", half)
    yield Entry("adam", "torch, few steps", "torch", (*adam, *short))


def _both_ways(entry: Entry) -> Iterator[Entry]:
    yield entry
    yield replace(entry, name=entry.name + SLEEPING)


def run_entry(entry: Entry, data: Dataset, torchrec_python: str, shape: Shape) -> dict[str, Any]:
    """One run of one side, in a process of its own."""
    python = torchrec_python if entry.program == "torchrec" else THIS_PYTHON
    common = ["--arrays", str(data.arrays), "--batch", str(shape.batch)]
    common += ["--warm-steps", str(shape.warm_steps), "--metered-steps", str(shape.metered_steps)]
    command = [python, "-m", f"benchmarks.{PROGRAMS[entry.program]}", *common, *entry.options]
    sleeping = {"OMP_WAIT_POLICY": "PASSIVE"} if entry.name.endswith(SLEEPING) else {}
    began = time.time()
    answer = run_json(command, environment={**HUGE_PAGES, **sleeping})
    if "first_batch_at" in answer:
        answer["first_batch_s"] = answer.pop("first_batch_at") - began
    return answer


def headline(figures: dict[Entry, Figures], data: Dataset) -> dict[str, Any]:
    """The figures the goals are about. `None` where a side was not run."""
    rounds = {(e.group, e.name): f.rounds for e, f in figures.items()}
    cpu, speed = "cpu_s_per_million", "samples_per_s"

    def best(group: str, name: str, key: str) -> list[float] | None:
        """Round by round the better of the side's two ways."""
        ways = [rounds[group, n] for n in (name, name + SLEEPING) if (group, n) in rounds]
        better = max if key == speed else min
        return [better(r[key] for r in runs) for runs in zip(*ways, strict=True)] if ways else None

    def of(group: str, name: str, key: str) -> float | None:
        found = best(group, name, key)
        return None if found is None else statistics.median(found)

    def quotient(a: tuple[str, str], b: tuple[str, str], key: str) -> float | None:
        ours, others = best(*a, key), best(*b, key)
        if ours is None or others is None:
            return None
        return statistics.median(x / y for x, y in zip(ours, others, strict=True))

    dense, deep = of("deep", "dense alone", cpu), of("deep", "satrap", cpu)
    hashes = [f.summary().get("digest", "") for f in figures.values()]
    return {
        "headline": "train",
        "sum_cpu_vs_torchrec": quotient(("sum", "satrap 1 thread"), ("sum", "torchrec 1 thread"), cpu),
        "sum_cpu_s_per_million": of("sum", "satrap 1 thread", cpu),
        "read_cpu_s_per_million": of("read", "in file order", cpu),
        "deep_cpu_s_per_million": deep,
        "deep_cpu_above_dense_alone": None if dense is None or deep is None else deep - dense,
        "deep_cpu_vs_torchrec": quotient(("deep", "satrap"), ("deep", "torchrec"), cpu),
        "deep_samples_per_s": of("deep", "satrap", speed),
        "deep_speed_vs_torchrec": quotient(("deep", "satrap"), ("deep", "torchrec"), speed),
        "bf16_speed_vs_torchrec_fp32": quotient(("bf16", "satrap"), ("deep", "torchrec"), speed),
        "bf16_speed_vs_torchrec_bf16": quotient(("bf16", "satrap"), ("bf16", "torchrec"), speed),
        "staleness_8_speed_vs_0": quotient(("deep", "satrap"), ("deep", "satrap staleness 0"), speed),
        "peak_rss_mib": of("deep", "satrap", "peak_rss_mib"),
        "test_auc": of("deep", "satrap", "test_auc"),
        "test_auc_torchrec": of("deep", "torchrec", "test_auc"),
        "bayes_auc": data.bayes_auc,
        "other_cores_max": max((f.summary()["other_cores"] for f in figures.values()), default=None),
        "commit": describe()["commit"],
        "result_hash": result_hash(h.encode() for h in hashes),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
