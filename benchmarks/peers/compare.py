"""`python -m benchmarks peers`: satrap beside plain PyTorch, TorchRec with FBGEMM, and the original Persia.

The same synthetic clicks, network and optimizers on every side, each in an environment of its own, run and metered as
`python -m benchmarks train` does; all processes of a side count. Sides take turns within a round.

Sides: satrap in one process, in fp32 and bf16, at the staleness a job has by default; `satrap train --servers 1
--workers 1`; plain PyTorch and TorchRec, fp32 and bf16, with OpenMP threads that spin and that sleep, of which the
better counts round by round; Persia where --persia-python names an interpreter that has it. satrap reads Parquet with
hashed ids; the peers have rows in memory, with ids mapped beforehand.

Figures: samples/s, CPU seconds per million samples, memory at the end of the metered stretch (pages that processes
share count once), test AUC, seconds from the command until the first training step, lines of user code in
examples/clicks.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tokenize
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import train, train_servers
from benchmarks.harness import REPOSITORY, THIS_PYTHON, describe, emit, python_has, quietest
from benchmarks.peers import persia_side
from benchmarks.synthetic import Dataset, default_data_dir, ensure
from benchmarks.train import SLEEPING

CLICKS = REPOSITORY / "examples" / "clicks"
FILES: dict[str, Sequence[Path]] = {
    "satrap": [CLICKS / "with_satrap.py"],
    "torch": [CLICKS / "with_pytorch.py"],
    "torchrec": [CLICKS / "with_torchrec.py"],
    "persia": persia_side.user_files(),
}
"""System → what a user writes for this task."""
STALENESS = 4
"""What a job has by default."""
AUC_ALIKE, CPU_OF_PERSIA = 0.0005, 0.4
"""Goals: how much lower than a peer's the AUC may be; servers' CPU seconds as a share of Persia's."""
KEYS = ("samples_per_s", "cpu_s_per_million", "memory_mib", "test_auc", "first_batch_s")
NOISE = ("other_cores", "steal_cores")


@dataclass(frozen=True, slots=True)
class Side:
    """A system, as it is run."""

    system: str
    """A key of `FILES`."""
    name: str
    precision: str
    run: Callable[[], dict[str, Any]]


Rounds = Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]
"""(name, precision) → figures round by round."""


def main(argv: list[str]) -> int:
    """Runs the sides, prints JSON lines, the headline last."""
    options = _parse(argv)
    shape = train_servers.SMOKE if options.smoke else train_servers.QUICK if options.quick else train_servers.FULL
    data = ensure(options.data_dir, shape.sizes)
    persia = persia_side.Persia.find(options.persia_python)
    found = list(sides(options, shape, data, persia))
    emit(
        benchmark="peers", machine=describe(), batch=shape.batch, rounds=options.rounds, staleness=STALENESS,
        samples={"warm": shape.warm, "metered": shape.metered}, bayes_auc=data.bayes_auc,
    )  # fmt: skip
    if not python_has(options.torchrec_python, "torchrec"):
        emit(skipped="torchrec", reason=f"{options.torchrec_python} has no torchrec; name one by --torchrec-python")
    if isinstance(persia, str):
        emit(skipped="persia", reason=persia)
    rounds: dict[tuple[str, str], list[dict[str, Any]]] = {(s.name, s.precision): [] for s in found}
    for r in range(options.rounds):
        for side in found[r % len(found) :] + found[: r % len(found)]:
            figures = quietest(side.run, options)
            figures["first_batch_s"] = figures.get("first_batch_s", figures.get("first_step_s"))
            rounds[side.name, side.precision].append(figures)
            emit(round=r, side=side.name, precision=side.precision, **_told(figures))
    code = {system: sum(map(lines_of, files)) for system, files in FILES.items()}
    for side in found:
        runs = rounds[side.name, side.precision]
        medians = {k: statistics.median(f[k] for f in runs) for k in (*KEYS, *NOISE) if runs[0].get(k) is not None}
        emit(median_of=len(runs), side=side.name, system=side.system, precision=side.precision, **medians,
             lines=code[side.system])  # fmt: skip
    emit(**headline(rounds), lines=code, bayes_auc=data.bayes_auc, commit=describe()["commit"])
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--quick", action="store_true", help="fewer samples a run; the AUC is that of fewer rows")
    parser.add_argument("--only", type=lambda s: s.split(","), default=None, help="systems: " + ", ".join(FILES))
    help_one = "systems whose threads only spin, to save time: the better way on a quiet machine, at more CPU time"
    parser.add_argument("--one-way", type=lambda s: s.split(","), default=[], help=help_one)
    parser.add_argument("--precision", type=lambda s: s.split(","), default=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=None, help="default 3, with --smoke 1")
    parser.add_argument("--repeats", type=int, default=2, help="how often a noisy run is repeated, at most")
    parser.add_argument("--wait-quiet-s", type=float, default=0.0, help="wait so long for others to be quiet")
    parser.add_argument("--torchrec-python", default=THIS_PYTHON, help="an interpreter that has torchrec")
    parser.add_argument("--persia-python", default=None, help="an interpreter (CPython 3.9) that has persia")
    parser.add_argument("--persia-threads", type=int, default=1, help="of its trainer; it has five processes")
    parser.add_argument("--data-dir", type=Path, default=default_data_dir())
    options = parser.parse_args(argv)
    unknown = set(options.only or ()) - set(FILES)
    if unknown:
        parser.error(f"no system {', '.join(sorted(unknown))}; there are {', '.join(FILES)}")
    options.rounds = options.rounds or (1 if options.smoke else 3)
    options.servers = options.workers = 1
    if options.smoke:
        options.repeats, options.precision = 0, ["fp32"]
    return options


def sides(
    options: argparse.Namespace, shape: train_servers.Shape, data: Dataset, persia: persia_side.Persia | str
) -> Iterator[Side]:
    """Every side that can be run here, neighbours next to each other."""
    wanted = options.only or list(FILES)
    programs = [s for s in ("torchrec", "torch") if s in wanted]
    if not python_has(options.torchrec_python, "torchrec"):
        programs = [s for s in programs if s != "torchrec"]
    length = train.Shape(shape.sizes, shape.batch, shape.warm // shape.batch, shape.metered // shape.batch, 0)
    for precision in options.precision:
        settings = ["--model", "deep", "--threads", "2", "--precision", precision]
        settings += [] if shape.steps is None else ["--steps", str(shape.steps)]
        entries = [train.Entry(precision, name, name, tuple(settings)) for name in programs]
        if not options.smoke:
            slept = [replace(e, name=e.name + SLEEPING) for e in entries if e.program not in options.one_way]
            entries = [way for e in entries for way in (e, *(s for s in slept if s.program == e.program))]
        if "satrap" in wanted:
            own = (*settings, "--staleness", str(STALENESS))
            entries.insert(0, train.Entry(precision, "satrap", "satrap", own))
        for e in entries:
            yield Side(e.program, e.name, precision, partial(train.run_entry, e, data, options.torchrec_python, length))
    if "satrap" in wanted:
        way = train_servers.Entry("launched", "full model", staleness=STALENESS)
        yield Side(
            "satrap", "satrap on servers", "fp32", partial(train_servers.run_launched, way, data, options, shape)
        )
    if "persia" in wanted and not isinstance(persia, str):
        run = partial(persia_side.run, persia, data.arrays, batch=shape.batch, steps=shape.steps, warm=shape.warm)
        yield Side("persia", "persia", "fp32", partial(run, length=shape.metered, threads=options.persia_threads))


def _told(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {k: figures[k] for k in (*KEYS, "cpu_by_role", "data_mib", *NOISE) if figures.get(k) is not None}


def lines_of(path: Path) -> int:
    """Lines of a file that say something: no blank ones, comments and docstrings.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "a.py"
    ...     _ = path.write_text('\"\"\"What.\"\"\"\\n\\n# why\\nx = (1,\\n     2)  # here\\n')
    ...     lines_of(path)
    2
    """
    text = path.read_text()
    if path.suffix != ".py":
        return sum(bool(line.strip()) and not line.strip().startswith("#") for line in text.splitlines())
    quiet = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    said: set[int] = set()
    before = tokenize.NEWLINE
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        docstring = token.type == tokenize.STRING and before in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
        if token.type not in quiet and not docstring:
            said.update(range(token.start[0], token.end[0] + 1))
        if token.type not in (tokenize.COMMENT, tokenize.NL):
            before = token.type
    return len(said)


def headline(rounds: Rounds) -> dict[str, Any]:
    """The goals, each with what was measured; `None` where a side was not run."""
    cpu, speed, quality = "cpu_s_per_million", "samples_per_s", "test_auc"

    def best(name: str, precision: str, key: str) -> list[float] | None:
        """Round by round the better of its ways."""
        ways = [rounds[n, precision] for n in (name, name + SLEEPING) if rounds.get((n, precision))]
        better = min if key == cpu else max
        return [better(f[key] for f in runs) for runs in zip(*ways, strict=True)] if ways else None

    def over_rounds(ours: list[float] | None, other: list[float] | None, how: Callable[[float, float], float]) -> Any:
        return None if not ours or not other else statistics.median(map(how, ours, other))

    found: dict[str, Any] = {"headline": "peers"}
    goals: dict[str, bool | None] = {}
    for precision in ("fp32", "bf16"):
        ours, auc = best("satrap", precision, speed), best("satrap", precision, quality)
        for peer in ("torch", "torchrec"):
            faster = over_rounds(ours, best(peer, precision, speed), lambda a, b: a / b)
            above = over_rounds(auc, best(peer, precision, quality), lambda a, b: a - b)
            cheaper = over_rounds(best("satrap", precision, cpu), best(peer, precision, cpu), lambda a, b: a / b)
            found[f"{precision}_speed_vs_{peer}"], found[f"{precision}_auc_above_{peer}"] = faster, above
            found[f"{precision}_cpu_vs_{peer}"] = cheaper
            goals[f"{precision}_ahead_of_{peer}"] = None if faster is None else faster > 1 and above >= -AUC_ALIKE
    servers, persia = best("satrap on servers", "fp32", cpu), best("persia", "fp32", cpu)
    share = over_rounds(servers, persia, lambda a, b: a / b)
    found["servers_cpu_vs_persia"] = share
    goals["servers_cpu_vs_persia_at_most_0.4"] = None if share is None else share <= CPU_OF_PERSIA
    found["other_cores_max"] = max((f["other_cores"] for runs in rounds.values() for f in runs), default=None)
    return {**found, "goals": goals}
