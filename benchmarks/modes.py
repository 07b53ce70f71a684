"""`python -m benchmarks modes`: what staleness costs in AUC, and how sure that is.

Every comparison is paired: the same seeds on both sides, and the 95 % confidence interval of the mean difference (by
Student's t). Nothing here is timed. A run is one line of JSON; with `--results FILE` runs that are in the file are not
done again, only told again, and new ones are added to it, so that a long list may be done in pieces (`--limit-s`).
What it prints, kept as docs/figures/NAME.jsonl, is what `python -m benchmarks figures` draws.

Groups (`--only`, comma-separated):
  early    synthetic data with known Bayes AUC, one worker: AUC against samples for each staleness at small and large
           batches, as the job's defaults have it and with what they do against staleness turned off
  modes    synchronous, hybrid and fully asynchronous training by data set and number of workers
  wire     rows and gradients as fp32, fp16 and int8 on their way between workers and servers
  formats  rows stored as fp32, fp16, bf16 and int8, stochastic or to the nearest, moments in 8 bits; synchronous
  bounds   tables of a half and a quarter of their ids, by eviction, admission, hashes; synchronous, fp32
  theory   error against staleness times the highest frequency of a row

ml-1m and criteo_80k may not be passed on: `--real-data DIR` names the folder with `ml-1m/` and `criteo_80k/`, each
holding train.parquet, valid.parquet and test.parquet. Without it they are skipped, and the output says so.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import modes_plots, modes_theory
from benchmarks.harness import QUIET_CORES, commit, describe, emit, result_hash
from benchmarks.modes_cases import BOUNDS, REAL, Case, missing
from benchmarks.modes_run import run
from benchmarks.modes_stats import Interval, paired
from benchmarks.synthetic import FILE_ROWS, Dataset, Sizes, default_data_dir, ensure
from satrap.ps.heat import CLASSES

GROUPS = ("early", "modes", "wire", "formats", "bounds", "theory")
STORED = (
    {},
    {"format": "fp16"},
    {"format": "bf16"},
    {"format": "bf16", "rounding": "nearest"},
    {"format": "int8"},
    {"format": "int8", "rounding": "nearest"},
    {"state": "int8"},
    {"format": "int8", "state": "int8"},
)
"""What formats compares: how rows are kept."""
RAW = ("train.staleness_damping=false",)
"""What the defaults do against staleness, turned off."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How much is run."""

    sizes: Sizes
    window: int
    seeds: int
    batches: tuple[int, ...]
    early: tuple[int, ...]
    """Staleness of the curves."""
    data: tuple[str, ...]
    workers: tuple[int, ...]
    staleness: tuple[int, ...]
    asynchronous: tuple[int, ...]
    wire: tuple[str, ...]
    """Data sets of the formats, on the wire and of rows."""


SMOKE = Shape(
    sizes=Sizes(train_rows=8_192, test_rows=4_096, divide=100),
    window=2_048,
    seeds=2,
    batches=(512,),
    early=(0, 4),
    data=("synthetic",),
    workers=(1, 2),
    staleness=(0, 4),
    asynchronous=(4,),
    wire=("synthetic",),
)
USUAL = Shape(
    sizes=Sizes(train_rows=5 * FILE_ROWS, test_rows=262_144),
    window=131_072,
    seeds=5,
    batches=(1024, 4096),
    early=(0, 1, 2, 4, 8, 10, 16),
    data=("synthetic", *REAL),
    workers=(1, 2),
    staleness=(0, 8),
    asynchronous=(8,),
    wire=tuple(REAL),
)
FULL = replace(USUAL, workers=(1, 2, 4), staleness=(0, 1, 2, 4, 8, 16, 64))


def main(argv: list[str]) -> int:
    """Runs the groups, prints JSON lines, the headline last."""
    options = _parse(argv)
    shape = SMOKE if options.smoke else FULL if options.full else USUAL
    wanted = list(cases(options, shape))
    synthetic = ensure(options.data_dir, shape.sizes) if any(c.data == "synthetic" for c in wanted) else None
    emit(
        benchmark="modes",
        machine=describe(),
        groups=options.only,
        runs=len(wanted),
        rows=asdict(shape.sizes),
        bayes_auc=None if synthetic is None else synthetic.bayes_auc,
    )
    skipped = {d: reason for d in dict.fromkeys(c.data for c in wanted) if (reason := missing(d, options.real_data))}
    for data, reason in skipped.items():
        emit(skipped=data, reason=reason)
    found = perform([c for c in wanted if c.data not in skipped], synthetic, options, shape)
    for line in summaries(found):
        emit(**line)
    theory = modes_theory.study(smoke=options.smoke) if "theory" in options.only else []
    for line in theory:
        emit(**line)
    plots = draw(found, theory, synthetic, options.plots) if options.plots else []
    emit(headline="modes", **headline(found), skipped=skipped, plots=[p.name for p in plots], commit=commit(),
         result_hash=result_hash(repr(f["test_auc"]).encode() for f in found.values()))  # fmt: skip
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks modes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--full", action="store_true", help="every staleness on 1, 2 and 4 workers; many hours")
    parser.add_argument("--only", type=lambda s: s.split(","), default=list(GROUPS))
    parser.add_argument("--data", type=lambda s: s.split(","), default=None, help="only these data sets")
    parser.add_argument("--batch", type=_numbers, default=None, help="of early")
    parser.add_argument("--staleness", type=_numbers, default=None, help="of early, and of hybrid training")
    parser.add_argument("--asynchronous", type=_numbers, default=None, help="staleness of asynchronous training, or ''")
    parser.add_argument("--workers", type=_numbers, default=None)
    parser.add_argument("--formats", type=lambda s: s.split(","), default=None, help="some of them, beside fp32")
    parser.add_argument("--bounds", type=lambda s: s.split(";"), default=None, help="some of them, separated by ;")
    parser.add_argument("--rows", default="rowwise", help="optimizer of the rows of synthetic data, or: original")
    parser.add_argument("--seeds", type=int, default=None, help="default 5, with --smoke 2")
    parser.add_argument("--set", action="append", default=[], help="a setting of every job, as train.epochs=2")
    parser.add_argument("--real-data", type=Path, default=None, help="folder with ml-1m/ and criteo_80k/")
    parser.add_argument("--data-dir", type=Path, default=default_data_dir(), help="where synthetic data is made")
    parser.add_argument("--results", type=Path, default=None, help="file of runs that are done")
    parser.add_argument("--limit-s", type=float, default=None, help="begins no run after so long")
    parser.add_argument("--plots", type=Path, default=None, help="folder for PNG files")
    options = parser.parse_args(argv)
    unknown = set(options.only) - set(GROUPS)
    if unknown:
        parser.error(f"no group is called {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}")
    return options


def _numbers(text: str) -> list[int]:
    return [int(x) for x in text.split(",") if x]


def cases(options: argparse.Namespace, shape: Shape) -> Iterator[Case]:
    """The runs asked for, each once, seed by seed: cut short, what was done is still paired."""
    given = tuple(options.set)
    seen = set()
    for seed in range(options.seeds or shape.seeds):
        for case in _of_seed(seed, options, shape):
            case = replace(case, overrides=(*case.overrides, *given))
            if case not in seen and (options.data is None or case.data in options.data):
                seen.add(case)
                yield case


def _of_seed(seed: int, options: argparse.Namespace, shape: Shape) -> Iterator[Case]:
    if "early" in options.only:
        for batch in options.batch or shape.batches:
            for k in options.staleness or shape.early:
                case = Case("synthetic", seed, k, batch=batch, rows=options.rows)
                yield case
                if k:
                    yield replace(case, overrides=RAW)
    if "modes" in options.only:
        for data in shape.data:
            for workers in options.workers or shape.workers:
                batch = shape.batches[-1] if data == "synthetic" else None
                for k in options.staleness or shape.staleness:
                    yield Case(data, seed, k, workers=workers, batch=batch)
                for k in shape.asynchronous if options.asynchronous is None else options.asynchronous:
                    yield Case(data, seed, k, dense_mode="async", workers=workers, batch=batch)
    if "wire" in options.only:
        for data in shape.wire:
            for wire in ("fp32", "fp16", "int8"):
                yield Case(data, seed, 8, wire=wire, batch=shape.batches[-1] if data == "synthetic" else None)
    if "formats" in options.only:
        other = any("embedding_optimizer.kind" in o for o in options.set)
        for data in shape.wire:
            for stored in STORED:
                if "state" in stored and (other or data == "synthetic"):
                    continue  # rows that are not stepped by Adam
                if stored and options.formats is not None and stored.get("format", "fp32") not in options.formats:
                    continue
                yield Case(data, seed, 0, batch=shape.batches[-1] if data == "synthetic" else None, **stored)
    if "bounds" in options.only:
        for data in shape.wire:
            for bounds in (None, *(n for n in BOUNDS if options.bounds is None or n in options.bounds)):
                yield Case(data, seed, 0, batch=shape.batches[-1] if data == "synthetic" else None, bounds=bounds)


def perform(
    wanted: Sequence[Case], synthetic: Dataset | None, options: argparse.Namespace, shape: Shape
) -> dict[Case, dict[str, Any]]:
    """Runs what is not in the file of results; the figures of all."""
    known: dict[str, dict[str, Any]] = {}
    if options.results is not None and options.results.exists():
        known = {line["key"]: line for line in map(json.loads, options.results.read_text().splitlines())}
    start, found = time.perf_counter(), {}
    for case in wanted:
        if case.key not in known:
            if options.limit_s is not None and time.perf_counter() - start > options.limit_s:
                continue
            figures = run(case, synthetic, options.real_data, window=shape.window)
            known[case.key] = {"key": case.key, "commit": commit(), "date": time.strftime("%Y-%m-%d"), **figures}
            if options.results is not None:
                with options.results.open("a") as file:
                    file.write(json.dumps(known[case.key]) + "\n")
        emit(case=asdict(case), **{k: v for k, v in known[case.key].items() if k != "key"})
        found[case] = known[case.key]
    left = len(wanted) - len(found)
    if left:
        emit(left=left, reason="time was up; run again with the same --results")
    return found


def sides(found: Mapping[Case, dict[str, Any]]) -> dict[tuple[Any, ...], dict[int, float]]:
    """Side of a comparison → test AUC by seed."""
    by_side: dict[tuple[Any, ...], dict[int, float]] = {}
    for case, figures in found.items():
        by_side.setdefault(case.paired, {})[case.seed] = figures["test_auc"]
    return by_side


def base_of(case: Case) -> Case:
    """What a case is compared with: fp32 in place of other formats, else the synchronous run of the same job."""
    if case.stored != "fp32":
        return replace(case, format="fp32", rounding=None, state="fp32", bounds=None)
    if case.wire != "fp32":
        return replace(case, wire="fp32")
    kept = tuple(o for o in case.overrides if o not in RAW)
    return replace(case, staleness=0, dense_mode="sync", overrides=kept)


def compared(found: Mapping[Case, dict[str, Any]]) -> Iterator[tuple[Case, dict[int, float], Interval | None]]:
    """(a case of each side, its test AUC by seed, the interval of its difference from its base)."""
    by_side = sides(found)
    for side, aucs in by_side.items():
        case = next(c for c in found if c.paired == side)
        base = base_of(case)
        yield case, aucs, None if base.paired == side else paired(aucs, by_side.get(base.paired, {}))


def summaries(found: Mapping[Case, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A line for each side."""
    for case, aucs, interval in compared(found):
        staleness = [f["staleness_mean"] for c, f in found.items() if c.paired == case.paired]
        line: dict[str, Any] = {"side": {k: v for k, v in asdict(case).items() if k != "seed"}, "mode": case.mode}
        line |= {"test_auc": sum(aucs.values()) / len(aucs), "seeds": sorted(aucs)}
        line["staleness_mean"] = sum(staleness) / len(staleness)
        if interval is not None:
            line |= {"difference": interval.mean, "half_width": interval.half, "pairs": interval.n}
        hot = heats(found, case)
        yield line | ({"staleness_by_heat": hot} if hot else {})


def heats(found: Mapping[Case, dict[str, Any]], of: Case) -> dict[str, float]:
    """Updates a row has had before → mean staleness of its gradients, over all seeds of a side."""
    told = [f.get("staleness_by_heat", {}) for c, f in found.items() if c.paired == of.paired]
    means = {}
    for name in CLASSES:
        seen = [t[name] for t in told if name in t]
        n = sum(s["gradients"] for s in seen)
        if n:
            means[name] = sum(s["gradients"] * s["mean"] for s in seen) / n
    return means


def headline(found: Mapping[Case, dict[str, Any]]) -> dict[str, Any]:
    """The largest losses against the base, by data set and workers."""
    worst: dict[str, list[float | None]] = {}
    for case, _, interval in compared(found):
        if interval is not None:
            what = f"{case.data}_workers_{case.workers}_{case.wire if case.wire != 'fp32' else case.mode}"
            what += f"_batch_{case.batch}" if case.batch else ""
            what += "_raw" if set(RAW) <= set(case.overrides) else ""
            worst[what.replace(" ", "_")] = [interval.mean, interval.half]
    return {"differences": worst}


def draw(
    found: Mapping[Case, dict[str, Any]], theory: Sequence[dict[str, Any]], synthetic: Dataset | None, folder: Path
) -> list[Path]:
    """PNG files of what there is."""
    drawn = []
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    timed: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for case, _, _ in compared(found):
        runs = [f for c, f in found.items() if c.paired == case.paired and f.get("progressive")]
        if (case.workers, case.dense_mode, case.wire) != (1, "sync", "fp32") or not runs:
            continue
        aucs = [
            sum(p[1] for p in points) / len(points) for points in zip(*(f["progressive"] for f in runs), strict=False)
        ]
        millions = [end / 1e6 for end, _ in runs[0]["progressive"]]
        # A clock means something only where nobody else used the machine.
        quiet = all(max(f.get("other_cores", 9.0), f.get("steal_cores", 9.0)) <= QUIET_CORES for f in runs)
        ends = [sum(s) / len(s) for s in zip(*(f["window_ends_s"] for f in runs), strict=False)] if quiet else []
        for raw in (True, False):
            if case.staleness == 0 or (set(RAW) <= set(case.overrides)) == raw:
                title = f"batch {case.batch}, {'staleness alone' if raw else 'as it is by default'}"
                name = f"staleness {case.staleness}"
                panels.setdefault(title, {})[name] = list(zip(millions, aucs, strict=False))
                if ends:
                    timed.setdefault(title, {})[name] = list(zip(ends, aucs, strict=False))
    limit = None if synthetic is None else synthetic.bayes_auc
    y = "AUC of samples not yet seen"
    if panels:
        path = folder / "staleness-early.png"
        drawn.append(modes_plots.curves(path, panels, limit=limit, x="million samples", y=y))
    if timed:
        path = folder / "staleness-time.png"
        drawn.append(modes_plots.curves(path, timed, limit=limit, x="seconds of training", y=y))
    hot: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for case, _, _ in compared(found):
        means = heats(found, case)
        if means and case.staleness and case.wire == case.stored == "fp32" and not case.overrides:
            title = f"{case.data}, {case.workers} worker{'s' * (case.workers > 1)}" + f", batch {case.batch}" * bool(
                case.batch
            )
            hot.setdefault(title, {})[case.mode] = [(CLASSES.index(k), v) for k, v in means.items()]
    if hot:
        path = folder / "staleness-heat.png"
        x, y = "updates a row has had before", "mean updates between pull and push"
        drawn.append(modes_plots.curves(path, hot, limit=None, x=x, y=y, ticks=CLASSES))
    bars: dict[str, dict[str, Interval]] = {}
    for case, _, interval in compared(found):
        if interval is not None:
            name = case.mode if case.wire == "fp32" else case.wire
            name += ", plain" if set(RAW) <= set(case.overrides) else ""
            title = f"{case.data}, {case.workers} worker{'s' * (case.workers > 1)}"
            bars.setdefault(title + (f", batch {case.batch}" if case.batch else ""), {})[name] = interval
    if bars:
        drawn.append(modes_plots.differences(folder / "modes-auc.png", bars, y="test AUC minus its base's"))
    if theory:
        drawn.append(modes_theory.plot(theory, folder / "staleness-theory.png"))
    return drawn


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
